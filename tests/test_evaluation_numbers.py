"""Average precision, judged by pycocotools, and intervals, judged by hand."""

from __future__ import annotations

import contextlib
import io
import random
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rlabel.evaluation.average_precision import Detection, average_precision
from rlabel.evaluation.bootstrap import bootstrap_interval95, macro_interval95
from rlabel.evaluation.precision_interval import CategoryMatches, match_detections, weighted_ap
from rlabel.evaluation.reading import TruthRegion


def pycocotools_ap(regions: list[TruthRegion], detections: list[Detection], tied: bool) -> list[float]:
    """AP, AP50 and AP75 as pycocotools prints them."""
    images = sorted({int(region.image_id) for region in regions})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image_id} for image_id in images],
        "categories": [{"id": i} for i in sorted({r.category_id for r in regions})],
        "annotations": [
            {
                "id": i,
                "image_id": int(r.image_id),
                "category_id": r.category_id,
                "bbox": list(r.box_xywh or ()),
                "area": r.area_px,
                "iscrowd": int(r.is_crowd),
            }
            for i, r in enumerate(regions, start=1)
        ],
    }
    results = [
        {
            "image_id": int(d.region.image_id),
            "category_id": d.category_id,
            "bbox": list(d.region.box_xywh or ()),
            "score": 1.0 if tied else d.score,
        }
        for d in detections
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats[:3]]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_average_precision_agrees_with_pycocotools(seed: int, tied: bool) -> None:
    generator = random.Random(seed)
    regions = [
        TruthRegion(
            image_id=str(i // 8),
            region_id=str(i),
            category_id=generator.randint(1, 4),
            is_crowd=generator.random() < 0.1,
            area_px=900.0,
            box_xywh=(generator.randint(0, 20), generator.randint(0, 20), 30.0, 30.0),  # many overlap
        )
        for i in range(60)
    ]
    detections = [
        Detection(
            region=r,
            category_id=r.category_id if generator.random() < 0.6 else generator.randint(1, 4),
            score=generator.random(),
        )
        for r in regions
        if not r.is_crowd and generator.random() < 0.8
    ]
    ours = average_precision(regions, detections, tied)
    assert [ours.ap, ours.ap50, ours.ap75] == pytest.approx(pycocotools_ap(regions, detections, tied), abs=1e-9)
    assert 0.1 < (ours.ap or 0) < 0.9


def test_more_than_a_hundred_regions_of_one_category_in_an_image_all_count() -> None:
    regions = [
        TruthRegion(
            image_id="1",
            region_id=str(i),
            category_id=1,
            is_crowd=False,
            area_px=100.0,
            box_xywh=(20.0 * i, 0.0, 10.0, 10.0),
        )
        for i in range(150)
    ]
    detections = [Detection(region=region, category_id=1, score=0.5) for region in regions]
    assert average_precision(regions, detections, tied=False).ap == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("correct", "total", "expected"),
    [
        ([2, 3], [2, 3], (1.0, 1.0)),
        ([0, 0, 0], [1, 5, 2], (0.0, 0.0)),
        ([1], [4], (0.25, 0.25)),  # one image: nothing to resample
        ([4, 0], [4, 4], (0.0, 1.0)),  # each of the two images alone is drawn in a quarter of the resamples
        ([4, 0, 0], [4, 4, 0], (0.0, 1.0)),  # an image without regions changes nothing
    ],
)
def test_intervals_that_can_be_told_by_hand(
    correct: list[int], total: list[int], expected: tuple[float, float]
) -> None:
    assert bootstrap_interval95(np.array(correct), np.array(total)) == expected


def test_an_interval_of_independent_regions_is_close_to_the_binomial_one() -> None:
    # 400 images of one region, half of them right: 0.5 +- 1.96 sqrt(0.25 / 400) = 0.5 +- 0.049
    interval = bootstrap_interval95(np.array([0, 1] * 200), np.ones(400, dtype=np.int64))
    assert interval == pytest.approx((0.451, 0.549), abs=0.008)


def test_regions_of_one_image_do_not_count_as_independent() -> None:
    # the same 400 regions in 4 images that are all right or all wrong: the interval must be far wider
    low, high = bootstrap_interval95(np.array([0, 100, 0, 100]), np.full(4, 100)) or (0.5, 0.5)
    assert high - low > 0.7


def test_there_is_no_interval_without_regions() -> None:
    assert bootstrap_interval95(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)) is None


def scattered(seed: int, num_images: int = 12) -> tuple[list[TruthRegion], list[Detection]]:
    """Overlapping regions of 5 categories, crowds among them, and labels that are right for 60 %."""
    generator = random.Random(seed)
    regions = [
        TruthRegion(
            image_id=str(i % num_images),
            region_id=str(i),
            category_id=generator.randint(1, 5),
            is_crowd=generator.random() < 0.1,
            area_px=900.0,
            box_xywh=(generator.randint(0, 20), generator.randint(0, 20), 30.0, 30.0),
        )
        for i in range(80)
    ]
    detections = [
        Detection(
            region=r,
            category_id=r.category_id if generator.random() < 0.6 else generator.randint(1, 6),
            score=generator.random(),
        )
        for r in regions
        if generator.random() < 0.8
    ]
    return regions, detections


def matches_of(regions: list[TruthRegion], detections: list[Detection]) -> list[CategoryMatches]:
    rows = [
        {
            "id": i,
            "image_id": int(r.image_id),
            "category_id": r.category_id,
            "bbox": list(r.box_xywh or ()),
            "area": r.area_px,
            "iscrowd": int(r.is_crowd),
        }
        for i, r in enumerate(regions, start=1)
    ]
    results = [
        {
            "image_id": int(d.region.image_id),
            "category_id": d.category_id,
            "bbox": list(d.region.box_xywh or ()),
            "score": d.score,
        }
        for d in detections
    ]
    dataset = {
        "images": [{"id": i} for i in sorted({int(r.image_id) for r in regions})],
        "categories": [{"id": i} for i in range(1, 7)],
        "annotations": rows,
    }
    return match_detections(dataset, results, 100)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_resample_has_the_ap_that_pycocotools_gives_to_those_images(seed: int) -> None:
    regions, detections = scattered(seed)
    weights = np.random.default_rng(seed).multinomial(12, [1 / 12] * 12, size=4)
    weights[0] = 1  # the images themselves
    found = weighted_ap(matches_of(regions, detections), weights)
    for weight_I, ap in zip(weights, found, strict=True):
        copied_regions, copied_detections = [], []
        for image, count in enumerate(weight_I):
            for copy in range(count):
                new_id = str(image * 100 + copy)
                copied_regions += [replace(r, image_id=new_id) for r in regions if r.image_id == str(image)]
                copied_detections += [
                    replace(d, region=replace(d.region, image_id=new_id))
                    for d in detections
                    if d.region.image_id == str(image)
                ]
        assert ap == pytest.approx(pycocotools_ap(copied_regions, copied_detections, tied=False)[0], abs=1e-9)


def test_the_interval_of_an_ap_holds_it_and_is_no_point() -> None:
    regions, detections = scattered(1, num_images=40)
    measured = average_precision(regions, detections, tied=False)
    assert measured.interval95 is not None and measured.ap is not None
    low, high = measured.interval95
    assert low < measured.ap < high
    assert 0.02 < high - low < 0.5


def test_the_interval_of_the_mean_over_categories_by_hand() -> None:
    # two images of one region each: category 1 right, category 2 wrong. Each image alone is drawn in a quarter of the resamples
    assert macro_interval95(["a", "b"], [1, 2], [True, False]) == (0.0, 1.0)
    assert macro_interval95(["a", "a"], [1, 2], [True, False]) == (0.5, 0.5)  # one image: nothing to resample
    assert macro_interval95([], [], []) is None


def test_the_mean_over_categories_weighs_categories_not_regions() -> None:
    # category 1: 90 regions, all right; category 2: 10, all wrong. In one image each, over 50 pairs of images
    ids = [f"{i}" for i in range(100) for _ in range(1 if i % 2 else 9)]
    categories = [1 + (i % 2) for i in range(100) for _ in range(1 if i % 2 else 9)]
    assert macro_interval95(ids, categories, [c == 1 for c in categories]) == (0.5, 0.5)
