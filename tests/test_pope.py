"""POPE's questions about a truth of a few regions, counted by hand."""

from __future__ import annotations

import importlib.util
import math
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


def test_questions_about_pictures_by_hand(pope: ModuleType, tmp_path: Path) -> None:
    rows = [
        annotation(11, 1, CAT),
        annotation(12, 1, CAT),
        annotation(21, 2, DOG),
        annotation(22, 2, CAT, iscrowd=1),
        annotation(31, 3, CUP),
        annotation(32, 3, DOG),
    ]
    path = write_truth(tmp_path / "truth.json", [1, 2, 3], rows)
    truth = read_truth(path)

    def asked(way: str) -> dict[str, list[tuple[int, bool]]]:
        found: dict[str, list[tuple[int, bool]]] = {}
        for q in pope.questions(truth, frozenset("123"), way, 0):
            found.setdefault(q.image_id, []).append((q.category_id, q.is_there))
        return found

    # dogs and cats are in two pictures, cups in one; dogs were seen with cats and with cups. The crowd of cats is not asked about.
    assert asked("popular")["1"] == [(CAT, True), (DOG, False)]
    assert asked("adversarial")["1"] == [(CAT, True), (DOG, False)]
    assert asked("random")["2"] == [(DOG, True), (CUP, False)]
    assert asked("popular")["3"] == [(DOG, True), (CAT, False)]  # one is absent, so one is asked about of either kind
    run = judge_run(write_run(tmp_path / "run", [1, 2, 3], [label(11, 1, CAT), label(21, 2, CUP)]), truth, path)
    counts = pope.count_pictures(pope.questions(truth, run.covered, "popular", 0), pope.presences(run, None))
    assert (counts.true_yes, counts.false_yes, counts.num_pairs) == (1, 1, 3)  # the cat; a cup where there is none
    # 0.4 of a dog in each of two regions: 1 - 0.6 * 0.6 = 0.64
    likely = {CAT: math.log(0.6), DOG: math.log(0.4)}
    presence = pope.presences(run, {("1", "11"): likely, ("1", "12"): likely})
    assert presence["1", DOG] == pytest.approx(0.64) and presence["1", CAT] == pytest.approx(0.84)
