"""`rlabel label --calibrator`: what it refuses before a model is loaded, and what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from label_factories import Outcome, Setup, rlabel_here, save_model, save_vocabulary
from rlabel.vocabulary.calibration import Calibrator, Threshold, calibrator_to_bytes, load_calibrator, made_for

pytestmark = pytest.mark.timeout(400)
# Two steps: what is nearly impossible, and the rest.
STEPS = Calibrator(method="isotonic", starts=(0.0, 0.0001), values=(0.25, 0.75))
THRESHOLD = Threshold(precision=0.9, confidence=0.0, score=0.9, num_labels=10, num_right=9, coverage=0.5)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("calibrated")
    return Setup(folder, save_model(folder / "model"), 2)


def label(setup: Setup, out: str, **more: object) -> Outcome:
    return rlabel_here("label", setup.arguments(setup.folder / out, no_ray=True, **more))


@pytest.fixture(scope="module")
def plain(setup: Setup) -> dict[str, Any]:
    """The labels of a run without a calibrator; a calibrator made for it lies beside it."""
    assert label(setup, "plain").returncode == 0
    manifest = json.loads((setup.folder / "plain" / "manifest.json").read_text())
    fitted = replace(STEPS, made_for=made_for(manifest["settings"], manifest["categories"]), thresholds=(THRESHOLD,))
    (setup.folder / "c.json").write_bytes(calibrator_to_bytes(fitted))
    labels: dict[str, Any] = json.loads((setup.folder / "plain" / "labels.json").read_text())
    assert labels["annotations"]
    return labels


def test_labels_carry_the_calibrated_score_and_the_one_before(setup: Setup, plain: dict[str, Any]) -> None:
    result = label(setup, "calibrated", calibrator=setup.folder / "c.json")
    assert result.returncode == 0, result.stderr
    labels = json.loads((setup.folder / "calibrated" / "labels.json").read_text())
    for before, after in zip(plain["annotations"], labels["annotations"], strict=True):
        assert after["category_id"] == before["category_id"]
        assert after["attributes"]["raw_score"] == before["score"] and "raw_score" not in before["attributes"]
        assert after["score"] == (0.75 if before["score"] >= 0.0001 else 0.25)
    manifest = json.loads((setup.folder / "calibrated" / "manifest.json").read_text())
    assert manifest["settings"]["calibrator_sha256"] == load_calibrator(str(setup.folder / "c.json")).sha256
    # Another calibrator would mix two kinds of scores in one run.
    other = setup.folder / "other.json"
    other.write_bytes(calibrator_to_bytes(replace(load_calibrator(str(setup.folder / "c.json")), values=(0.2, 0.8))))
    refused = label(setup, "calibrated", calibrator=other)
    assert refused.returncode == 2 and "calibrator_sha256" in refused.stderr


def test_a_precision_takes_the_calibrators_threshold(setup: Setup, plain: dict[str, Any]) -> None:
    result = label(setup, "precise", calibrator=setup.folder / "c.json", precision=0.9)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((setup.folder / "precise" / "manifest.json").read_text())
    assert manifest["settings"]["min_score"] == 0.9
    assert json.loads((setup.folder / "precise" / "labels.json").read_text())["annotations"] == []
    abstained = (setup.folder / "precise" / "abstained.jsonl").read_text().splitlines()
    assert len(abstained) >= len(plain["annotations"])
    assert any("is below 0.9" in json.loads(line)["reason"] for line in abstained)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"precision": 0.9}, 2, "Give --calibrator"),
        ({"calibrator": "c.json", "precision": 0.9, "min_score": 0.5}, 2, "leave out --min-score"),
        ({"calibrator": "c.json", "precision": 0.99}, 2, "holds thresholds for 0.9"),
        ({"calibrator": "gone.json"}, 1, "no such file"),
        ({"calibrator": "names.json"}, 1, "calibrator.schema.json"),
        ({"calibrator": "c.json", "question": "What is <region>?"}, 1, "fitted for question"),
        ({"min_score": "nan"}, 2, "--min-score"),
        ({"min_score": 2}, 2, "--min-score"),
        ({"calibrator": "c.json", "task": "caption"}, 2, "--calibrator"),
    ],
)
def test_what_does_not_go_together_is_refused(
    setup: Setup, plain: dict[str, Any], more: dict[str, object], code: int, words: str
) -> None:
    if "calibrator" in more:
        more = {**more, "calibrator": setup.folder / str(more["calibrator"])}
    result = label(setup, "refused", **more)
    assert result.returncode == code, result.stderr
    assert words in result.stderr and "Traceback" not in result.stderr
    assert not (setup.folder / "refused").exists()


def test_a_calibrator_of_another_vocabulary_is_refused(setup: Setup, plain: dict[str, Any]) -> None:
    others = save_vocabulary(setup.folder / "others.json", ("sofa", "chair"))
    result = label(setup, "refused", calibrator=setup.folder / "c.json", vocabulary=others)
    assert result.returncode == 1 and "fitted for the vocabulary" in result.stderr
    assert not Path(setup.folder / "refused").exists()
