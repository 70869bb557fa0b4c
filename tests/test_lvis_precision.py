"""LVIS's federated AP, by hand arithmetic on truths of a few regions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlabel.evaluation.average_precision import Detection
from rlabel.evaluation.evaluate import evaluate_run
from rlabel.evaluation.lvis_precision import is_lvis, lvis_precision
from rlabel.evaluation.reading import NamedCategory, TruthImage, TruthRegion, read_truth
from rlabel.evaluation.text import evaluation_to_text
from test_evaluation import CAT, CATEGORIES, CUP, DOG, annotation, label, write_run, write_truth

RARE, COMMON, FREQUENT = 1, 2, 3
KINDS = [NamedCategory(category_id=i, name=n, frequency=n[0]) for i, n in ((RARE, "r"), (COMMON, "c"), (FREQUENT, "f"))]


def region(region_id: int, category_id: int, image_id: str = "1") -> TruthRegion:
    return TruthRegion(
        image_id=image_id,
        region_id=str(region_id),
        category_id=category_id,
        is_crowd=False,
        area_px=100.0,
        box_xywh=(20.0 * region_id, 0.0, 10.0, 10.0),
    )


def found(of: TruthRegion, category_id: int, score: float = 0.5) -> Detection:
    return Detection(region=of, category_id=category_id, score=score)


IMAGE = TruthImage(image_id="1", is_federated=True)


def test_each_kind_of_category_has_an_ap_of_its_own() -> None:
    regions = [region(1, RARE), region(2, COMMON), region(3, COMMON), region(4, FREQUENT)]
    # rare found; of two common ones the first, then nothing: precision 1 at the 51 recalls up to 0.5; the frequent one missed
    detections = [found(regions[0], RARE), found(regions[1], COMMON)]
    result = lvis_precision(regions, detections, [IMAGE], KINDS)
    assert (result.ap_rare, result.ap_frequent) == (1.0, 0.0)
    assert result.ap_common == pytest.approx(51 / 101)
    assert result.ap == pytest.approx((1 + 51 / 101 + 0) / 3)
    assert (result.num_labels, result.num_ignored) == (2, 0)


def test_a_label_of_a_category_that_nobody_checked_there_is_ignored() -> None:
    regions = [region(1, RARE), region(2, COMMON), region(3, FREQUENT, "2")]
    # the surest label says "frequent" in an image without one: only as a negative category it is a mistake
    detections = [found(regions[0], FREQUENT, 0.9), found(regions[1], COMMON), found(regions[2], FREQUENT, 0.4)]
    other = TruthImage(image_id="2", is_federated=True)
    unchecked = lvis_precision(regions, detections, [IMAGE, other], KINDS)
    assert (unchecked.ap_frequent, unchecked.num_ignored) == (1.0, 1)
    checked = lvis_precision(regions, detections, [replace(IMAGE, neg_category_ids=(FREQUENT,)), other], KINDS)
    assert (checked.ap_frequent, checked.num_ignored) == (pytest.approx(0.5), 0)


def test_where_not_every_region_is_outlined_a_label_without_one_is_no_mistake() -> None:
    regions = [region(1, FREQUENT), region(2, COMMON)]
    # the surer "frequent" label is on the common region
    detections = [found(regions[1], FREQUENT, 0.9), found(regions[0], FREQUENT, 0.4)]
    assert lvis_precision(regions, detections, [IMAGE], KINDS).ap_frequent == pytest.approx(0.5)
    loose = replace(IMAGE, not_exhaustive_category_ids=(FREQUENT,))
    assert lvis_precision(regions, detections, [loose], KINDS).ap_frequent == 1.0


def test_nothing_labeled_is_zero_and_no_regions_is_nothing() -> None:
    regions = [region(1, RARE)]
    empty = lvis_precision(regions, [], [IMAGE], KINDS)
    assert (empty.ap, empty.ap_rare, empty.ap_common) == (0.0, 0.0, None)
    assert lvis_precision([], [], [IMAGE], KINDS).ap is None


def test_a_truth_is_lvis_only_with_its_fields_on_images_and_categories() -> None:
    assert is_lvis([IMAGE], KINDS)
    assert not is_lvis([TruthImage(image_id="1")], KINDS)
    assert not is_lvis([IMAGE], [NamedCategory(category_id=1, name="a")])


def lvis_truth(folder: Path) -> str:
    import json

    listed = [c | {"frequency": f} for c, f in zip(CATEGORIES, "rcf", strict=True)]
    rows = [annotation(11, 1, CAT), annotation(12, 1, DOG), annotation(21, 2, CUP)]
    path = Path(write_truth(folder / "truth.json", [1, 2], rows, listed))
    content = json.loads(path.read_text())
    content["images"][0] |= {"neg_category_ids": [CUP], "not_exhaustive_category_ids": ["bad", True]}
    path.write_text(json.dumps(content))
    return str(path)


def test_evaluate_gives_the_lvis_numbers_of_an_lvis_truth_and_only_then(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1, 2], [label(11, 1, CAT), label(12, 1, CUP, 0.9), label(21, 2, CUP, 0.3)])
    evaluation = evaluate_run(run, lvis_truth(tmp_path))
    assert evaluation.lvis is not None
    assert (evaluation.lvis.ap_rare, evaluation.lvis.ap_common) == (1.0, 0.0)
    assert evaluation.lvis.ap_frequent == pytest.approx(0.5)
    assert "APr" in evaluation_to_text(evaluation)
    assert evaluation.to_json()["lvis"]["ap_rare"] == 1.0  # type: ignore[index,call-overload]
    plain = write_truth(tmp_path / "coco.json", [1, 2], [annotation(11, 1, CAT)])
    assert evaluate_run(run, plain).lvis is None


def test_fields_of_other_types_are_read_as_nothing(tmp_path: Path) -> None:
    image = read_truth(lvis_truth(tmp_path)).images[0]
    assert (image.neg_category_ids, image.not_exhaustive_category_ids) == ((CUP,), ())
