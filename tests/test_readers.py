"""labels.json before the readers that will open it: pycocotools, faster-coco-eval, hotcoco, and the rules of others."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import faster_coco_eval
import hotcoco
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rlabel.records import JsonObject, JsonValue, Outcome, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.storage import Store
from run_factories import (
    HEIGHT,
    WIDTH,
    abstention,
    box_polygon,
    box_rle,
    committed_run,
    failure,
    image_row,
    label,
    manifest,
    region,
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every form a label can take: polygons in parts, RLE, boxes only, a former crowd, one pixel."""
    folder = tmp_path_factory.mktemp("run")
    in_parts: JsonValue = [[2, 2, 12, 2, 12, 12, 2, 12], [30, 20, 40, 20, 40, 30, 30, 30]]
    ring = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    ring[10:30, 10:40] = 1
    ring[15:25, 15:35] = 0
    first: list[Outcome] = [
        label(region("1", 41), 1, (4, 6, 20, 10), 7, 0.9, box_polygon(4, 6, 20, 10)),
        label(region("2", None, region_id="no number"), 1, (10, 10, 30, 20), 3, 0.3, rle_of(ring)),
        label(region("3", 2, is_crowd=True), 1, (30, 5, 10, 10), 7, 0.4, box_rle(30, 5, 10, 10)),
        failure(region("4", 43), 1),
    ]
    second: list[Outcome] = [
        label(region("5", None), 20, (5, 5, 30, 30), 1203, 0.2),
        label(region("6", 1), 20, (63, 47, 1, 1), 3, 0.6, box_rle(63, 47, 1, 1)),
        label(region("7", 3), 20, (2, 2, 38, 28), 7, 0.1, in_parts),
        abstention(region("8", 99), 20),
    ]
    results = [
        ShardResult(index=0, images=(image_row(1), image_row(5)), outcomes=tuple(first)),
        ShardResult(index=1, images=(image_row(20),), outcomes=tuple(second)),
    ]
    counts = committed_run(folder, results).merge(results_files=True)
    assert (counts.labels, counts.without_segm_result) == (6, 0)
    return folder


def rle_of(mask: np.ndarray[Any, Any]) -> Any:
    encoded = coco_mask.encode(mask)
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def quietly(function: Any, *arguments: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def average_precision(evaluation: Any) -> float:
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        quietly(step)
    return float(evaluation.stats[0])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_pycocotools_gives_our_own_results_a_perfect_score(run_folder: Path, kind: str) -> None:
    truth = quietly(COCO, str(run_folder / "labels.json"))
    found = quietly(truth.loadRes, str(run_folder / f"labels.{kind}.json"))
    assert len(found.anns) == 6
    assert average_precision(COCOeval(truth, found, kind)) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_faster_coco_eval_gives_our_own_results_a_perfect_score(run_folder: Path, kind: str) -> None:
    truth = quietly(faster_coco_eval.COCO, str(run_folder / "labels.json"))
    found = quietly(truth.loadRes, str(run_folder / f"labels.{kind}.json"))
    evaluation = quietly(faster_coco_eval.COCOeval_faster, truth, found, kind)
    assert average_precision(evaluation) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_wrong_label_costs_its_score(run_folder: Path, tmp_path: Path, kind: str) -> None:
    rows = json.loads((run_folder / f"labels.{kind}.json").read_bytes())
    for row in rows:
        row["category_id"] = {7: 3, 3: 1203, 1203: 7}[row["category_id"]]
    (tmp_path / "wrong.json").write_text(json.dumps(rows))
    truth = quietly(COCO, str(run_folder / "labels.json"))
    found = quietly(truth.loadRes, str(tmp_path / "wrong.json"))
    assert average_precision(COCOeval(truth, found, kind)) < 0.1


def test_pycocotools_draws_every_form_of_mask_that_we_write(run_folder: Path) -> None:
    coco = quietly(COCO, str(run_folder / "labels.json"))
    decoded = {row["attributes"]["region_id"]: int(coco.annToMask(row).sum()) for row in coco.anns.values()}
    assert decoded[41] == coco.anns[41]["area"] == 200
    assert decoded[1] == coco.anns[1]["area"] == 1
    assert decoded[None] == 900, "the corners of a box cover the box"
    assert decoded["no number"] == 400, "the hole stays a hole"
    assert decoded[3] == 200, "two parts of 10 x 10"
    assert coco.getImgIds() == [1, 5, 20]


def test_hotcoco_finds_no_error(run_folder: Path) -> None:
    coco = hotcoco.COCO(str(run_folder / "labels.json"))
    health = coco.healthcheck()
    assert health["errors"] == []
    assert {warning["code"] for warning in health["warnings"]} <= {"low_instance_category", "zero_instance_category"}
    assert (health["summary"]["num_images"], health["summary"]["num_annotations"]) == (3, 6)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"info": {"year": "2024", "version": 1.0, "url": None, "mine": [1]}}, {"year": 2024, "version": "1.0"}),
        ({"info": {"year": "last", "description": {"en": "x"}}}, {"description": '{"en":"x"}'}),
        ({"info": None, "licenses": None}, {}),
        ({"licenses": "CC0"}, {}),
    ],
)
def test_hotcoco_reads_what_exporters_make_of_the_header(
    tmp_path: Path, given: JsonObject, written: JsonObject
) -> None:
    run = RunDirectory.create_or_resume(Store.open(tmp_path), manifest(1, header=given))
    run.commit(ShardResult(index=0, images=(image_row(1),), outcomes=(label(region("1", 1)),)))
    run.merge()
    info = json.loads((tmp_path / "labels.json").read_bytes())["info"]
    assert {key: info[key] for key in written} == written
    assert ("year" in info) == ("year" in written)
    assert hotcoco.COCO(str(tmp_path / "labels.json")).healthcheck()["errors"] == []


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_hotcoco_finds_our_results_to_fit_our_labels(run_folder: Path, kind: str) -> None:
    truth = hotcoco.COCO(str(run_folder / "labels.json"))
    health = truth.healthcheck(truth.load_res(str(run_folder / f"labels.{kind}.json")))
    assert health["errors"] == []


def test_the_rules_that_detectron2_and_mmdetection_assert_hold(run_folder: Path) -> None:
    """detectron2/data/datasets/coco.py: unique ids, forms of masks. mmdet/datasets/coco.py: area, w, h, overlap."""
    document = json.loads((run_folder / "labels.json").read_bytes())
    annotations, images = document["annotations"], {row["id"]: row for row in document["images"]}
    assert len({row["id"] for row in annotations}) == len(annotations)
    assert len(images) == len(document["images"])
    categories = {row["id"] for row in document["categories"]}
    for row in annotations:
        assert row["category_id"] in categories
        assert row["id"] > 0 and row["iscrowd"] == 0 and "ignore" not in row
        x, y, width, height = row["bbox"]
        image = images[row["image_id"]]
        assert row["area"] > 0 and width >= 1 and height >= 1
        assert max(0, min(x + width, image["width"]) - max(x, 0)) * max(0, min(y + height, image["height"]) - max(y, 0))
        segmentation = row["segmentation"]
        if isinstance(segmentation, dict):
            assert isinstance(segmentation["counts"], str) and segmentation["size"] == [HEIGHT, WIDTH]
        else:
            assert segmentation and all(len(part) % 2 == 0 and len(part) >= 6 for part in segmentation)


def test_no_attribute_takes_a_name_that_fiftyone_keeps_for_itself(run_folder: Path) -> None:
    kept = {"label", "id", "confidence", "mask", "bounding_box", "tags", "iscrowd", "area"}
    for row in json.loads((run_folder / "labels.json").read_bytes())["annotations"]:
        assert not kept & row["attributes"].keys()
        assert all(value is None or isinstance(value, str | int | float) for value in row["attributes"].values())
        assert 0 <= row["score"] <= 1
