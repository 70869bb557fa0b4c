"""POPE's questions about a truth of a few regions, counted by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlabel.evaluation.judging import judge_run
from rlabel.evaluation.reading import read_truth
from test_evaluation import CAT, CUP, DOG, annotation, label, write_run, write_truth


@pytest.fixture(scope="module")
def pope() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "pope.py"
    spec = importlib.util.spec_from_file_location("pope_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_wrong_names_and_answers_by_hand(pope: ModuleType, tmp_path: Path) -> None:
    # cats are most frequent; cups share a picture with dogs only, cats with dogs
    rows = [
        annotation(11, 1, CAT),
        annotation(12, 1, DOG),
        annotation(21, 2, CUP),
        annotation(22, 2, DOG),
        annotation(31, 3, CAT),
        annotation(32, 3, CAT),
    ]
    path = write_truth(tmp_path / "truth.json", [1, 2, 3], rows)
    truth = read_truth(path)
    wrong = pope.wrong_names(truth, 0)
    assert [wrong["popular"](i) for i in (CAT, DOG, CUP)] == [DOG, CAT, CAT]
    assert [wrong["adversarial"](i) for i in (CAT, CUP)] == [DOG, DOG]
    assert {wrong["random"](CAT) for _ in range(50)} == {DOG, CUP}
    # right: 11, 31. 21 is called a dog, the adversarial but not the popular wrong name of a cup; 12 a cat; 22, 32 have no label
    labels = [label(11, 1, CAT), label(31, 3, CAT), label(21, 2, DOG), label(12, 1, CAT)]
    judged = list(judge_run(write_run(tmp_path / "run", [1, 2, 3], labels), truth, path).judged)
    popular, adversarial = (pope.count(judged, wrong[name]) for name in ("popular", "adversarial"))
    assert (popular.true_yes, popular.false_yes, popular.num_pairs) == (2, 1, 6)
    assert adversarial.false_yes == 2
    assert popular.cells == pytest.approx([(2 + 5) / 12, 2 / 3, 2 / 6, 2 * (2 / 3) * (1 / 3) / 1, 3 / 12])
    assert pope.count([], wrong["popular"]).cells == [0, 0, 0, 0, 0]
