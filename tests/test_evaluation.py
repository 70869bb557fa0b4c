"""What an evaluation says of runs small enough to judge by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlabel.errors import InputError
from rlabel.evaluation.categories import match_categories
from rlabel.evaluation.evaluate import evaluate_run
from rlabel.evaluation.reading import NamedCategory
from rlabel.evaluation.records import Evaluation
from rlabel.evaluation.text import evaluation_to_text

CAT, DOG, CUP = 5, 7, 9
CATEGORIES = [
    {"id": CAT, "name": "cat", "supercategory": "animal"},
    {"id": DOG, "name": "dog", "supercategory": "animal"},
    {"id": CUP, "name": "cup", "supercategory": "vessel"},
]


def annotation(region_id: Any, image_id: Any, category_id: int, area: float = 400, **more: Any) -> dict[str, Any]:
    """A region of the truth; no two of them overlap as long as their ids differ modulo 50."""
    box = [20.0 * (int(region_id) % 50), 0.0, 10.0, 10.0]
    return {
        "id": region_id,
        "image_id": image_id,
        "category_id": category_id,
        "area": area,
        "bbox": box,
        "iscrowd": 0,
    } | more


def label(region_id: Any, image_id: Any, category_id: int, score: float = 0.5, step: str = "exact") -> dict[str, Any]:
    attributes = {"region_id": region_id, "text": "text", "decided_by": step, "similarity": 1.0, "margin": 0.5}
    return annotation(region_id, image_id, category_id) | {"score": score, "attributes": attributes}


def abstention(region_id: Any, image_id: Any, text: str, nearest: str = "cat") -> dict[str, Any]:
    return {"region_id": region_id, "image_id": image_id, "text": text, "nearest_name": nearest, "reason": "too far"}


def failure(region_id: Any, image_id: Any, kind: str = "image") -> dict[str, Any]:
    return {
        "region_id": region_id,
        "image_id": image_id,
        "kind": kind,
        "reason": "x.jpg: cut off",
        "file_name": "x.jpg",
    }


def write_run(
    folder: Path,
    image_ids: list[Any],
    labels: list[dict[str, Any]],
    abstentions: list[dict[str, Any]] | None = None,
    failures: list[dict[str, Any]] | None = None,
    categories: list[dict[str, Any]] | None = None,
) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    images = [{"id": image_id, "file_name": f"{image_id}.jpg"} for image_id in image_ids]
    listed = CATEGORIES if categories is None else categories
    content: dict[str, Any] = {"info": {}, "categories": listed, "images": images, "annotations": labels}
    (folder / "labels.json").write_text(json.dumps(content))
    for name, rows in (("abstained.jsonl", abstentions), ("failures.jsonl", failures)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows or []))
    return str(folder)


def write_truth(
    path: Path, image_ids: list[Any], annotations: list[dict[str, Any]], categories: list[dict[str, Any]] | None = None
) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"images": [{"id": image_id} for image_id in image_ids], "annotations": annotations}
    content["categories"] = CATEGORIES if categories is None else categories
    path.write_text(json.dumps(content))
    return str(path)


TRUTH = [
    annotation(11, 1, CAT, area=100),
    annotation(12, 1, DOG, area=1024),  # COCO's medium begins here
    annotation(13, 1, CUP, area=10_000),
    annotation(21, 2, CAT),
    annotation(22, 2, DOG, iscrowd=1),
    annotation(23, 2, DOG),
    annotation(31, 3, CUP),  # an image that the run does not cover
]
LABELS = [label(11, 1, CAT, 0.9), label(12, 1, CAT, 0.8, "embedding"), label(22, 2, CUP, 0.7)]
ABSTAINED = [abstention(13, 1, "mug thing", "dog")]
FAILED = [failure(21, 2)]  # and 23 has no outcome


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, str]:
    run_url = write_run(tmp_path / "run", [1, 2], LABELS, ABSTAINED, FAILED)
    return run_url, write_truth(tmp_path / "truth.json", [1, 2, 3], TRUTH)


def evaluate_small(tmp_path: Path, labels: list[dict[str, Any]], truth: list[dict[str, Any]]) -> Evaluation:
    ids = sorted({row["image_id"] for row in truth})
    return evaluate_run(write_run(tmp_path / "run", ids, labels), write_truth(tmp_path / "truth.json", ids, truth))


def test_everything_but_a_right_label_counts_as_wrong(small: tuple[str, str]) -> None:
    evaluation = evaluate_run(*small)
    assert (evaluation.top1.num_correct, evaluation.top1.num_regions) == (1, 5)
    assert (evaluation.num_labeled, evaluation.num_abstained, evaluation.num_failed, evaluation.num_missing) == (
        2,
        1,
        1,
        1,
    )
    assert evaluation.when_labeled.share == 1 / 2
    assert evaluation.coverage == 2 / 5
    assert evaluation.abstention_rate == 1 / 5
    assert evaluation.macro == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert evaluation.failures_by_kind == (("image", 1),)


def test_crowds_and_images_outside_the_run_are_counted_but_not_judged(small: tuple[str, str]) -> None:
    evaluation = evaluate_run(*small)
    assert evaluation.num_images == 2
    assert evaluation.num_crowd == 1
    assert (evaluation.num_images_left_out, evaluation.num_regions_left_out) == (1, 1)


def test_groups_by_supercategory_and_by_cocos_sizes(small: tuple[str, str]) -> None:
    evaluation = evaluate_run(*small)
    rows = [(g.name, g.num_regions, g.num_labeled, g.num_correct) for g in evaluation.per_supercategory]
    assert rows == [("animal", 4, 2, 1), ("vessel", 1, 0, 0)]
    sizes = [(g.name, g.num_regions, g.num_correct) for g in evaluation.per_size]
    assert sizes == [("small", 3, 1), ("medium", 1, 0), ("large", 1, 0)]


def test_confusions_unmatched_answers_and_deciding_steps_are_listed(small: tuple[str, str]) -> None:
    evaluation = evaluate_run(*small)
    assert [(c.true_name, c.predicted_name, c.num_regions) for c in evaluation.confusions] == [("dog", "cat", 1)]
    unmatched = evaluation.unmatched_texts[0]
    assert (unmatched.text, unmatched.num_regions, unmatched.nearest_name, unmatched.true_name) == (
        "mug thing",
        1,
        "dog",
        "cup",
    )
    steps = [(d.step, d.num_labeled, d.num_correct) for d in evaluation.decided_by]
    assert steps == [("embedding", 1, 0), ("exact", 1, 1)]


def test_the_plain_object_holds_the_promised_names(small: tuple[str, str]) -> None:
    plain = json.loads(json.dumps(evaluate_run(*small).to_json(), allow_nan=False))
    assert plain["top1"] == 1 / 5
    assert plain["num_regions"] == 5
    assert plain["coverage"] == 2 / 5
    assert (plain["top1_seen"], plain["top1_unseen"], plain["top1_unseen_photo"]) == (None, None, None)
    assert (plain["abstentions"], plain["failures"], plain["accuracy_when_labeled"]) == (1, 1, 1 / 2)
    assert plain["per_supercategory"][0]["top1"] == 1 / 4


def test_average_precision_by_hand(small: tuple[str, str]) -> None:
    # cat: one of its two regions found, and found before the wrong one: precision 1 at the 51 of 101 recalls up to 0.5.
    # dog and cup: nothing found. The mean over three categories:
    evaluation = evaluate_run(*small)
    assert evaluation.scored.ap == pytest.approx(51 / 101 / 3)
    assert evaluation.tied.ap == pytest.approx(51 / 101 / 3)
    assert evaluation.scored.ap50 == pytest.approx(51 / 101 / 3)


def test_a_wrong_label_with_a_higher_score_lowers_the_scored_precision_only(tmp_path: Path) -> None:
    labels = [label(11, 1, CAT, 0.3), label(12, 1, CAT, 0.8)]
    evaluation = evaluate_small(tmp_path, labels, [row for row in TRUTH if row["image_id"] != 3])
    assert evaluation.scored.ap == pytest.approx(51 / 101 / 2 / 3)  # precision 1/2 where it was 1
    assert evaluation.tied.ap == pytest.approx(51 / 101 / 3)


def test_seen_and_unseen_pictures_are_told_apart(small: tuple[str, str], tmp_path: Path) -> None:
    origins = {
        "11": {"seen_in_train": False, "kind": "photo"},
        "12": {"seen_in_train": False, "kind": "drawing"},
        "13": {"seen_in_train": True, "kind": "photo"},
        "21": {"seen_in_train": False, "kind": "photo"},
    }
    path = tmp_path / "provenance.json"
    path.write_text(json.dumps({"annotations": origins}))
    plain = evaluate_run(*small, str(path)).to_json()
    assert (plain["top1_seen"], plain["top1_seen_num_regions"]) == (0.0, 1)
    assert (plain["top1_unseen"], plain["top1_unseen_num_regions"]) == (1 / 3, 3)
    assert (plain["top1_unseen_photo"], plain["top1_unseen_drawing"]) == (1 / 2, 0.0)


def test_ids_are_compared_as_text(tmp_path: Path) -> None:
    run_url = write_run(tmp_path / "run", ["1"], [label("11", "1", CAT)])
    truth_url = write_truth(tmp_path / "truth.json", [1], [annotation(11, 1, CAT)])
    assert evaluate_run(run_url, truth_url).top1.share == 1.0


def test_the_order_of_outcomes_changes_nothing(small: tuple[str, str], tmp_path: Path) -> None:
    run_url = write_run(tmp_path / "shuffled", [2, 1], list(reversed(LABELS)), ABSTAINED, FAILED)
    assert evaluate_run(run_url, small[1]) == evaluate_run(*small)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["right", "wrong", "abstained", "failed", "missing"]), min_size=1, max_size=12))
def test_every_region_of_the_truth_is_counted_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, fates: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("fates")
    ids = {fate: [i for i, f in enumerate(fates, start=1) if f == fate] for fate in set(fates)}
    labels = [label(i, 1, CAT) for i in ids.get("right", [])] + [label(i, 1, DOG) for i in ids.get("wrong", [])]
    abstentions = [abstention(i, 1, "blob") for i in ids.get("abstained", [])]
    failures = [failure(i, 1) for i in ids.get("failed", [])]
    run_url = write_run(folder / "run", [1], labels, abstentions, failures)
    truth_url = write_truth(folder / "truth.json", [1], [annotation(i, 1, CAT) for i in range(1, len(fates) + 1)])
    e = evaluate_run(run_url, truth_url)
    assert (e.num_labeled, e.num_abstained, e.num_failed, e.num_missing) == (
        fates.count("right") + fates.count("wrong"),
        fates.count("abstained"),
        fates.count("failed"),
        fates.count("missing"),
    )
    assert e.top1.share == fates.count("right") / len(fates)


# Truths that do not fit


def test_a_truth_of_another_corpus_is_refused(small: tuple[str, str], tmp_path: Path) -> None:
    other_ids = write_truth(tmp_path / "a.json", [1, 2], [annotation(91, 1, CAT), annotation(92, 2, CAT)])
    with pytest.raises(InputError, match="another corpus"):
        evaluate_run(small[0], other_ids)
    same_ids_in_other_images = write_truth(tmp_path / "b.json", [8], [annotation(11, 8, CAT)])
    with pytest.raises(InputError, match="11 of image 8"):
        evaluate_run(small[0], same_ids_in_other_images)


def test_proposals_without_categories_are_refused_as_truth(small: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lists no categories"):
        evaluate_run(small[0], write_truth(tmp_path / "proposals.json", [1], TRUTH, categories=[]))


def test_a_truth_with_an_unlisted_category_is_refused(small: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="annotation 11: category_id 77"):
        evaluate_run(small[0], write_truth(tmp_path / "t.json", [1], [annotation(11, 1, 77)]))


def test_a_vocabulary_that_shares_no_name_with_the_truth_is_refused(small: tuple[str, str], tmp_path: Path) -> None:
    categories = [{"id": CAT, "name": "chair"}]
    truth_url = write_truth(tmp_path / "t.json", [1], [annotation(11, 1, CAT)], categories)
    with pytest.raises(InputError, match="no category of the run's vocabulary"):
        evaluate_run(small[0], truth_url)


def test_a_label_outside_the_runs_own_categories_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="category_id 99"):
        evaluate_small(tmp_path, [label(11, 1, 99)], [annotation(11, 1, CAT)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.json", None, "there is no such file"),
        ("labels.json", '{"images": [', "not valid JSON|end of the file"),
        ("labels.json", '{"images": [7]}', "expected an object"),
        ("abstained.jsonl", "{}\nnonsense\n", "abstained.jsonl, line 2"),
        ("truth.json", None, "there is no such file"),
        ("provenance.json", "[]", "annotations"),
        ("provenance.json", '{"annotations": {"11": {"seen_in_train": "yes"}}}', "annotation 11"),
        ("provenance.json", '{"annotations": {"99": {"seen_in_train": true}}}', "none of its annotation ids"),
    ],
)
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    run_url = write_run(tmp_path, [1], [label(11, 1, CAT)])
    truth_url = write_truth(tmp_path / "truth.json", [1], [annotation(11, 1, CAT)])
    (tmp_path / "provenance.json").write_text('{"annotations": {"11": {"seen_in_train": true}}}')
    evaluate_run(run_url, truth_url, str(tmp_path / "provenance.json"))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        evaluate_run(run_url, truth_url, str(tmp_path / "provenance.json"))
    assert name in str(caught.value)


def test_annotations_that_share_an_id_are_left_out_and_counted(tmp_path: Path) -> None:
    twice = [annotation(12, 1, DOG), annotation(12, 1, CAT)]
    evaluation = evaluate_small(tmp_path, [label(11, 1, CAT)], [annotation(11, 1, CAT), *twice])
    assert (evaluation.num_regions, evaluation.num_ambiguous) == (1, 2)


# Categories


def test_categories_with_other_ids_are_matched_by_name_and_it_is_said(tmp_path: Path) -> None:
    own = [{"id": 1, "name": "Dog"}, {"id": 5, "name": "cup"}]  # 5 is the truth's cat: the id alone must not count
    labels = [label(11, 1, 5), label(12, 1, 1)]
    run_url = write_run(tmp_path / "run", [1], labels, categories=own)
    truth = [annotation(11, 1, CAT), annotation(12, 1, DOG), annotation(13, 1, CAT)]
    evaluation = evaluate_run(run_url, write_truth(tmp_path / "truth.json", [1], truth))
    assert evaluation.top1.num_correct == 1
    assert evaluation.matching.method == "name"
    assert evaluation.matching.names_missing == ("cat",)
    text = evaluation_to_text(evaluation)
    assert "matched by name" in text and "vocabulary lacks: 1 (cat)" in text


def test_a_synonym_matches_only_where_it_means_one_category() -> None:
    truth = [
        NamedCategory(category_id=1, name="television_set", synonyms=("tv",)),
        NamedCategory(category_id=2, name="mouse", synonyms=("rat",)),
        NamedCategory(category_id=3, name="hamster", synonyms=("rat",)),
    ]
    run = [
        NamedCategory(category_id=11, name="TV"),
        NamedCategory(category_id=12, name="rat"),
        NamedCategory(category_id=13, name="Television-Set"),
    ]
    assert match_categories(run, truth) == ({11: 1, 13: 1}, "name")


def test_a_name_that_repeats_across_senses_is_matched_by_its_id() -> None:
    bats = [NamedCategory(category_id=1, name="bat"), NamedCategory(category_id=2, name="bat")]
    assert match_categories(bats, bats) == ({1: 1, 2: 2}, "id")


# Nothing to measure


def test_a_run_without_labels_scores_zero(tmp_path: Path) -> None:
    evaluation = evaluate_small(tmp_path, [], [annotation(11, 1, CAT)])
    assert (evaluation.top1.share, evaluation.scored.ap, evaluation.tied.ap) == (0.0, 0.0, 0.0)
    assert evaluation.when_labeled.share is None
    assert "-" in evaluation_to_text(evaluation)


def test_images_without_regions_have_no_accuracy(tmp_path: Path) -> None:
    run_url = write_run(tmp_path / "run", [1], [])
    evaluation = evaluate_run(run_url, write_truth(tmp_path / "truth.json", [1], []))
    plain = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert (plain["top1"], plain["map_scored"], plain["coverage"], plain["num_regions"]) == (None, None, None, 0)
    assert evaluation_to_text(evaluation)


def test_regions_without_a_box_are_judged_but_left_out_of_the_average_precision(tmp_path: Path) -> None:
    truth = [annotation(11, 1, CAT), annotation(12, 1, DOG, bbox=None), annotation(13, 1, DOG, bbox=[1, 2, 0, 5])]
    labels = [label(11, 1, CAT), label(12, 1, DOG), label(13, 1, DOG)]
    evaluation = evaluate_small(tmp_path, labels, truth)
    assert evaluation.num_without_box == 2
    assert (evaluation.top1.share, evaluation.scored.ap) == (1.0, pytest.approx(1.0))


def test_evaluating_prints_nothing(small: tuple[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    evaluate_run(*small)
    assert capfd.readouterr() == ("", "")


# Text


def test_the_text_fits_100_columns_and_no_answer_can_command_the_terminal(small: tuple[str, str]) -> None:
    evaluation = evaluate_run(*small)
    rows = tuple(
        replace(row, text="\x1b[31m" + "word " * 60, nearest_name="n" * 200, true_name="t" * 200)
        for row in evaluation.unmatched_texts
    )
    groups = tuple(replace(row, name="g" * 300) for row in evaluation.per_supercategory)
    text = evaluation_to_text(replace(evaluation, unmatched_texts=rows, per_supercategory=groups))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\x1b" not in text


def test_the_text_names_the_numbers(small: tuple[str, str]) -> None:
    lines = [line.split() for line in evaluation_to_text(evaluate_run(*small)).splitlines()]
    assert ["all", "regions", "5", "1", "20.0", "%"] in [line[:6] for line in lines]
    assert ["failed", "1", "20.0", "%"] in lines
    assert ["dog", "->", "cat", "1"] in lines
