"""Human labels that a run contradicts: thresholds, order and estimates by hand, files and refusals."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from calibration_factories import save_run
from rlabel.cli.main import main
from rlabel.errors import UsageError
from rlabel.evaluation import auditing
from rlabel.evaluation.auditing import (
    audit_run,
    choose_suspects,
    class_thresholds,
    suspects_document,
)
from rlabel.evaluation.calibrating import calibrate
from rlabel.evaluation.judged_labels import read_scored_run
from rlabel.evaluation.suspicion import NOT_RANKED, mistake_probabilities
from rlabel.records import Label, LikelyCategory
from rlabel.report.suspects import write_suspects_sheet
from rlabel.vocabulary.calibration import apply, calibrator_to_bytes
from test_evaluation import CAT, CATEGORIES, CUP, DOG, abstention, annotation, label, write_run, write_truth

TRUTH = [
    annotation(11, 1, CAT),
    annotation(12, 1, CAT),
    annotation(13, 1, DOG, segmentation=[[260, 0, 270, 0, 270, 10, 260, 10]], caption="a note of the annotator"),
    annotation(14, 1, CUP),
    annotation(21, 2, DOG),
    annotation(22, 2, DOG, iscrowd=1),
    annotation(23, 2, CUP),
]
# 13 and 14 are contradicted: by 0.9 as a cat, by 0.3 as a dog; 23 has no label
LABELS = [
    label(11, 1, CAT, 0.8),
    label(12, 1, CAT, 0.6),
    label(13, 1, CAT, 0.9),
    label(14, 1, DOG, 0.3),
    label(21, 2, DOG, 0.8),
    label(22, 2, CUP, 1.0),
]


@pytest.fixture
def run_and_truth(tmp_path: Path) -> tuple[str, str]:
    run = write_run(tmp_path / "run", [1, 2], LABELS, [abstention(23, 2, "thing")])
    return run, write_truth(tmp_path / "truth.json", [1, 2], TRUTH)


def test_thresholds_are_the_mean_probabilities_of_what_people_named_so() -> None:
    assert class_thresholds([(1, 0.8), (1, 0.6), (2, 0.0), (2, 0.8)]) == {1: pytest.approx(0.7), 2: pytest.approx(0.4)}


def test_contradictions_are_listed_with_their_thresholds(run_and_truth: tuple[str, str]) -> None:
    audit = audit_run(*run_and_truth)
    assert (audit.num_regions, audit.num_judged, audit.num_unlabeled, audit.num_contradicted) == (6, 5, 1, 2)
    assert [(s.region_id, s.human_name, s.labeler_name) for s in audit.suspects] == [
        ("13", "dog", "cat"),
        ("14", "cup", "dog"),
    ]
    first, second = audit.suspects
    # cats: (0.8 + 0.6) / 2; dogs: 13 was answered with another name, so (0 + 0.8) / 2
    assert (first.threshold, first.is_confident) == (pytest.approx(0.7), True)
    assert (second.threshold, second.is_confident) == (pytest.approx(0.4), False)
    assert choose_suspects(audit) == (first,)
    assert choose_suspects(audit, top=5) == (first, second)


def test_labels_without_a_contradiction_give_no_suspects(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1], LABELS[:2])
    audit = audit_run(run, write_truth(tmp_path / "truth.json", [1], TRUTH[:2]))
    assert (audit.suspects, audit.noise) == ((), 0.0)
    assert choose_suspects(audit, precision=0.5) == ()


def test_categories_that_one_side_lacks_contradict_nothing(tmp_path: Path) -> None:
    # the vocabulary has no cup; the human file has no yak
    listed = [*CATEGORIES[:2], {"id": 30, "name": "yak"}]
    rows = [label(11, 1, CAT), label(12, 1, 30), label(14, 1, DOG)]
    run = write_run(tmp_path / "run", [1], rows, categories=listed)
    audit = audit_run(run, write_truth(tmp_path / "truth.json", [1], [TRUTH[0], TRUTH[1], TRUTH[3]]))
    assert (audit.num_judged, audit.num_unknown_to_labeler, audit.num_unknown_to_humans) == (1, 1, 1)
    assert audit.suspects == ()


def test_the_likelihood_of_the_humans_own_category_orders_suspects(
    run_and_truth: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 13 is answered more surely, but the people's dog is nearly as likely as the cat; of 14 their cup is far behind
    candidates = {
        ("1", "11"): {CAT: -0.1, DOG: -3.0},
        ("1", "12"): {CAT: -0.1, DOG: -2.0},
        ("1", "13"): {CAT: -0.7, DOG: -0.9},
        ("1", "14"): {DOG: -1.1, CAT: -2.5, CUP: -9.0},
        ("2", "21"): {DOG: -0.1, CAT: -4.0},
    }
    monkeypatch.setattr(auditing, "read_candidates", lambda run_url: candidates)
    audit = audit_run(*run_and_truth)
    assert audit.has_candidates
    assert [s.region_id for s in audit.suspects] == ["14", "13"]
    cat, dog = np.exp(-0.7), np.exp(-0.9)
    assert audit.suspects[1].human_probability == pytest.approx(dog / (cat + dog))
    assert audit.suspects[1].margin == pytest.approx((cat - dog) / (cat + dog))


def test_a_humans_category_that_is_no_candidate_has_no_probability(
    run_and_truth: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "read_candidates", lambda run_url: {("1", "14"): {DOG: -0.1, CAT: -5.0}})
    of_14 = next(s for s in audit_run(*run_and_truth).suspects if s.region_id == "14")
    assert of_14.human_probability == 0.0
    assert of_14.margin == of_14.probability == pytest.approx(1 / (1 + np.exp(-4.9)))


def test_candidates_are_read_from_the_shards_of_a_hybrid_run(
    run_and_truth: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = SimpleNamespace(candidates=(LikelyCategory(category_id=CAT, logprob=-0.5),))

    def opened(decoding: str) -> SimpleNamespace:
        label = Label.__new__(Label)  # the two fields that are read
        object.__setattr__(label, "image_id", 1)
        object.__setattr__(label, "region", SimpleNamespace(region_id=11.0))
        object.__setattr__(label, "evidence", evidence)
        return SimpleNamespace(
            manifest=SimpleNamespace(settings={"decoding": decoding}),
            results=lambda: [SimpleNamespace(outcomes=[label])],
        )

    Path(run_and_truth[0], "manifest.json").write_text("{}")
    monkeypatch.setattr(auditing.RunDirectory, "open", lambda store: opened("hybrid"))
    assert auditing.read_candidates(run_and_truth[0]) == {("1", "11"): {CAT: -0.5}}
    monkeypatch.setattr(auditing.RunDirectory, "open", lambda store: opened("free"))
    assert auditing.read_candidates(run_and_truth[0]) is None


def test_a_run_that_has_no_manifest_has_no_candidates(run_and_truth: tuple[str, str]) -> None:
    assert auditing.read_candidates(run_and_truth[0]) is None


def test_without_candidates_the_noise_is_what_the_surest_answers_contradict() -> None:
    # 100 regions; of the surest 20, 2 are contradicted; of all others every second one
    sureness_R = np.linspace(1, 0, 100)
    agrees_R = np.array([i not in (3, 9) if i < 20 else i % 2 == 0 for i in range(100)])
    noise, wrong_R = mistake_probabilities(sureness_R, agrees_R, np.full(100, NOT_RANKED), 0, 50, is_calibrated=False)
    assert noise == pytest.approx(0.1)
    # people slip in 0.1; at agreement 1/2 the labeler is right in 0.5 / 0.9, so 0.1 / (0.1 + 0.9 * (1 - 0.5 / 0.9)) = 0.2
    assert wrong_R[61] == pytest.approx(0.2, abs=0.02)
    # isotonic: people agree with 16 of the 18 from place 3 to 20
    assert wrong_R[3] == pytest.approx(0.1 / (0.1 + 0.9 * (1 - 16 / 18 / 0.9)))
    assert (wrong_R[agrees_R] == 0).all()


def test_planted_slips_are_counted_and_told_from_near_misses() -> None:
    # 4,000 regions, 5 % of the human labels drawn at random among 100 categories; the labeler errs in a quarter, and then the truth is mostly its second
    # or third candidate
    dice = np.random.default_rng(0)
    num, num_categories = 4000, 100
    sureness_R = dice.uniform(0.5, 1, num)
    is_right_R = dice.random(num) < sureness_R
    is_slip_R = dice.random(num) < 0.05
    near_R = np.minimum(dice.geometric(0.6, num), 99)
    rank_R = np.where(is_slip_R, dice.integers(1, 100, num), np.where(is_right_R, 0, near_R))
    rank_R = np.where(rank_R > 31, NOT_RANKED, rank_R)
    noise, wrong_R = mistake_probabilities(
        sureness_R, is_right_R & ~is_slip_R, rank_R, 32, num_categories, is_calibrated=False
    )
    assert noise == pytest.approx(is_slip_R.mean(), abs=0.01)
    listed = np.argsort(-wrong_R)[:150]
    assert is_slip_R[listed].mean() > 0.9  # by sureness alone: 0.5 and less
    assert wrong_R.sum() == pytest.approx(is_slip_R.sum(), rel=0.2)


def test_nothing_is_expected_of_no_regions() -> None:
    noise, wrong_R = mistake_probabilities(
        np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=np.int64), 0, 3, is_calibrated=False
    )
    assert (noise, len(wrong_R)) == (None, 0)


def test_a_calibrated_score_is_taken_at_its_word() -> None:
    # of the surest six (the first, as all are alike) one is contradicted, so people slip in 1/6; the labeler errs in 1/10
    sureness_R, agrees_R = np.full(30, 0.9), np.arange(30) % 10 != 0
    unranked_R = np.full(30, NOT_RANKED)
    _, wrong_R = mistake_probabilities(sureness_R, agrees_R, unranked_R, 0, 9, is_calibrated=True)
    assert wrong_R[0] == pytest.approx((1 / 6) / (1 / 6 + 5 / 6 * 0.1))
    _, wrong_R = mistake_probabilities(sureness_R, agrees_R, unranked_R, 0, 9, is_calibrated=False)
    assert wrong_R[0] > 0.99  # people agree with 0.9, more than 5/6: the labeler would never err


def test_a_calibrator_says_how_sure_the_answers_are(tmp_path: Path) -> None:
    run, truth = save_run(tmp_path / "run", lambda score: score**3, num_images=40)
    fitted = calibrate(read_scored_run(run, truth), methods=["logistic_score"]).calibrator
    (tmp_path / "calibrator.json").write_bytes(calibrator_to_bytes(fitted))
    plain, calibrated = audit_run(run, truth), audit_run(run, truth, str(tmp_path / "calibrator.json"))
    assert (plain.is_calibrated, calibrated.is_calibrated) == (False, True)
    before = {s.region_id: s for s in plain.suspects}
    for suspect in calibrated.suspects:
        features = {
            "log_score": np.log(before[suspect.region_id].score),
            "log_rest": np.log(1 - before[suspect.region_id].score),
        }
        assert suspect.score == suspect.probability == pytest.approx(apply(fitted, features), abs=1e-6)
    arguments = ["audit", run, "--truth", truth, "--json", "--calibrator"]
    shown = CliRunner().invoke(main, [*arguments, str(tmp_path / "calibrator.json")])
    assert shown.exit_code == 0 and json.loads(shown.stdout)["is_calibrated"]
    # Of another model its scores mean something else.
    other = replace(fitted, made_for={**fitted.made_for, "model_sha256": "x" * 8})
    (tmp_path / "other.json").write_bytes(calibrator_to_bytes(other))
    refused = CliRunner().invoke(main, [*arguments, str(tmp_path / "other.json")])
    assert refused.exit_code == 1 and "model_sha256" in refused.stderr
    missing = CliRunner().invoke(main, [*arguments, str(tmp_path / "gone.json")])
    assert missing.exit_code == 1 and "gone.json" in missing.stderr


def test_how_many_are_listed_is_one_choice(run_and_truth: tuple[str, str]) -> None:
    audit = audit_run(*run_and_truth)
    for wrong in ({"top": 0}, {"precision": 0.0}, {"precision": 1.5}, {"top": 1, "precision": 0.5}):
        with pytest.raises(UsageError):
            choose_suspects(audit, **wrong)  # type: ignore[arg-type]


def test_a_wanted_precision_lists_the_longest_head_that_is_expected_to_reach_it(
    run_and_truth: tuple[str, str],
) -> None:
    audit = audit_run(*run_and_truth)
    one = audit.suspects[0]
    listed = tuple(replace(one, region_id=str(i), expected_precision=p) for i, p in enumerate((0.9, 0.2, 0.7, 0.1)))
    # means of the heads: 0.9, 0.55, 0.6, 0.475
    assert len(choose_suspects(replace(audit, suspects=listed), precision=0.58)) == 3
    assert len(choose_suspects(replace(audit, suspects=listed), precision=0.95)) == 0


def test_the_document_holds_the_human_annotations_as_they_are(run_and_truth: tuple[str, str]) -> None:
    audit = audit_run(*run_and_truth)
    document = suspects_document(run_and_truth[1], audit.suspects)
    rows: Any = document["annotations"]
    assert [row["id"] for row in rows] == [13, 14]
    assert rows[0]["caption"] == "a note of the annotator" and rows[0]["category_id"] == DOG
    assert rows[0]["suspect"]["labeler_id"] == CAT and rows[0]["suspect"]["rank"] == 1
    assert [row["id"] for row in document["images"]] == [1]  # type: ignore[union-attr,index,call-overload]
    assert document["categories"] == CATEGORIES


def test_the_command_writes_the_file_the_sheet_and_the_table(run_and_truth: tuple[str, str], tmp_path: Path) -> None:
    run, truth = run_and_truth
    content = json.loads(Path(truth).read_text())
    content["images"] = [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)]
    Path(truth).write_text(json.dumps(content))
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (400, 60), (90, 120, 90)).save(photos / "1.png")
    out, sheet = tmp_path / "suspects.json", tmp_path / "suspects.png"
    arguments = ["audit", run, "--truth", truth, "--top", "2", "--out", str(out)]
    shown = CliRunner().invoke(main, [*arguments, "--images", str(photos), "--sheet", str(sheet)])
    assert shown.exit_code == 0, shown.output
    assert "13 of 1" in shown.stdout and "2 contradicted" in shown.stdout
    assert max(len(line) for line in shown.stdout.splitlines()) <= 100
    assert len(json.loads(out.read_text())["annotations"]) == 2
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and picture.width >= 480
    plain = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout.splitlines()[-1])
    assert [s["region_id"] for s in plain["suspects"]] == ["13", "14"]


def test_a_sheet_without_pictures_is_refused(run_and_truth: tuple[str, str], tmp_path: Path) -> None:
    run, truth = run_and_truth
    refused = CliRunner().invoke(main, ["audit", run, "--truth", truth, "--sheet", str(tmp_path / "s.png")])
    assert refused.exit_code == 2 and "--images" in refused.output
    nowhere = [*("audit", run, "--truth", truth, "--images", str(tmp_path)), "--sheet", str(tmp_path / "s.png")]
    refused = CliRunner().invoke(main, nowhere)
    assert refused.exit_code == 1 and "Traceback" not in refused.output


def test_the_sheet_of_no_suspects_is_refused(run_and_truth: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no suspects"):
        write_suspects_sheet(suspects_document(run_and_truth[1], ()), str(tmp_path), str(tmp_path / "s.png"))


def test_planting_changes_the_wanted_share_and_never_to_the_same_category() -> None:
    path = Path(__file__).parent.parent / "benchmarks" / "audit.py"
    spec = importlib.util.spec_from_file_location("audit_benchmark", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    rows = [annotation(i, 1, CAT) for i in range(1, 101)] + [annotation(200, 1, CAT, iscrowd=1)]
    document = {"categories": CATEGORIES, "annotations": rows}
    planted = benchmark.plant(document, 0.05, seed=3)
    changed = {("1", str(row["id"])) for row in rows if row["category_id"] != CAT}
    assert len(planted) == 5 and planted == changed
    precision, recall = np.array([1.0, 0.5, 0.67, 0.5, 0.4]), np.array([0.2, 0.2, 0.4, 0.4, 0.4])
    assert benchmark.recall_at(precision, recall, 0.5) == 0.4
    assert benchmark.recall_at(precision[4:], recall[4:], 0.5) == 0.0
