"""The collection of odd inputs, each against what its own README.json expects.

Needs RLABEL_CORPUS, the folder that holds things-odd. The same oddities in small are in the tests of the single rooms.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from rlabel.corpus.coco import read_corpus
from rlabel.corpus.inputs import PreparedImage, PreparedRegion, prepare_image, stray_failure
from rlabel.corpus.limits import Limits
from rlabel.corpus.sharding import plan_shards
from rlabel.corpus.validate import validate_corpus
from rlabel.records import Failure
from rlabel.storage import Store

ODD = Path(os.environ.get("RLABEL_CORPUS", "not set")) / "things-odd"
pytestmark = pytest.mark.skipif(not ODD.is_dir(), reason="RLABEL_CORPUS does not name a folder with things-odd")

# Cases in which every region of the image can be labeled; in those of the table below, all but the ones named.
WHOLE_IMAGE_FAILS = {
    "truncated-jpeg": "cut off",
    "zero-bytes": "0 bytes",
    "missing-file": "no such file",
    "decompression-bomb": "header",
    "path-traversal": "stay inside the image folder",
    "wrong-image-size": "362 x 452 .* 426 x 420",
}
REGIONS_FAIL = {
    "empty-mask": {900195: "no pixel"},
    "mask-of-wrong-size": {900213: "190 x 253 .* 380 x 507"},
    "bbox-outside": {900225: "outside", 900231: "no positive width"},
}


@dataclass
class Outcome:
    images: dict[int, PreparedImage] = field(default_factory=dict)
    regions: dict[str, PreparedRegion] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    found = Outcome()
    store = Store.open(ODD / "images")
    with read_corpus(ODD / "instances.json") as corpus:
        for shard in plan_shards(corpus, 8, 64):
            for record in shard.images:
                image = prepare_image(store, record, Limits())
                found.images[record.row["id"]] = image  # type: ignore[index]
                found.regions |= {item.region.key: item for item in image.regions}
                found.failures |= {item.region.key: item for item in image.failures}
            found.failures |= {region.key: stray_failure(region) for region in shard.stray_regions}
    return found


def cases() -> list[dict]:
    return json.loads((ODD / "README.json").read_text(encoding="utf-8"))["cases"] if ODD.is_dir() else []


def rows() -> dict[int, dict]:
    return {row["id"]: row for row in json.loads((ODD / "instances.json").read_text(encoding="utf-8"))["annotations"]}


def test_every_region_has_exactly_one_outcome(outcome):
    assert not outcome.regions.keys() & outcome.failures.keys()
    assert len(outcome.regions) + len(outcome.failures) == 138


def test_every_failure_names_the_file_and_a_cause(outcome):
    names = {image.record.row["id"]: image.record.file_name for image in outcome.images.values()}
    for failure in outcome.failures.values():
        name, _, cause = failure.reason.partition(": ")
        assert failure.image_id is None or name.startswith(names[failure.image_id])
        assert len(cause) > 10


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["case"])
def test_a_case_comes_out_as_expected(outcome, case):
    name = case["case"]
    if case["image_id"] is None:
        assert "in no image row" in outcome.failures["900414"].reason
        return
    image = outcome.images[case["image_id"]]
    if name in WHOLE_IMAGE_FAILS:
        assert image.regions == () and {failure.kind for failure in image.failures} == {"image"}
        assert {failure.region.region_id for failure in image.failures} == set(case["annotation_ids"])
        for failure in image.failures:
            assert re.search(WHOLE_IMAGE_FAILS[name], failure.reason)
    elif name == "duplicate-image-ids":
        assert image.regions == () and len(image.failures) == 9
        assert all("twin_a.jpg" in item.reason and "twin_b.jpg" in item.reason for item in image.failures)
    else:
        expected = REGIONS_FAIL.get(name, {})
        assert {failure.region.region_id for failure in image.failures} == set(expected)
        for failure in image.failures:
            assert failure.kind == "region"
            assert re.search(expected[failure.region.region_id], failure.reason)
        assert len(image.regions) + len(expected) == len(image.record.regions)


def test_masks_are_those_of_pycocotools_and_lie_in_the_upright_picture(outcome):
    by_id = rows()
    num_compared = 0
    for key, prepared in outcome.regions.items():
        segmentation = by_id[int(key.partition("#")[0])].get("segmentation")
        if not segmentation or prepared.mask.source == "box" or "#" in key or key == "900393":
            continue
        image = outcome.images[by_id[int(key)]["image_id"]]
        assert image.pixels_HWC is not None
        height, width = image.pixels_HWC.shape[:2]
        if isinstance(segmentation, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = coco_mask.frPyObjects(segmentation, height, width)
        else:
            rle = segmentation
        assert (coco_mask.decode(rle).astype(bool) == prepared.mask.mask_HW).all()
        num_compared += 1
    assert num_compared > 60


@pytest.mark.parametrize("key", ["900198", "900303", "900306"])
def test_a_mask_without_area_falls_back_to_the_box(outcome, key):
    assert outcome.regions[key].mask.source == "box" and outcome.regions[key].mask.note is not None
    assert outcome.regions[key].mask.box_xywh == tuple(rows()[int(key)]["bbox"])


def test_a_box_half_outside_is_clipped_and_one_pixel_is_a_region(outcome):
    assert outcome.regions["900228"].mask.box_xywh == (405.0, 405.0, 30.0, 30.0)
    assert outcome.regions["900177"].mask.area_px == 1.0 and outcome.regions["900177"].mask.resample(16, 16).max() > 0


def test_a_repeated_annotation_id_is_kept_by_neither_row(outcome):
    pair = [outcome.regions[key].region for key in ("900393", "900393#2")]
    assert [(region.region_id, region.annotation_id) for region in pair] == [(900393, None), (900393, None)]


def test_the_picture_without_annotations_passes_through(outcome):
    assert outcome.images[900231].failures == () and outcome.images[900231].record.file_name == "noann.jpg"


def test_sixteen_bit_grey_is_scaled_and_not_white(outcome):
    found = outcome.images[900042].pixels_HWC
    stored = np.asarray(Image.open(ODD / "images" / "deep.png"))
    assert found is not None and np.abs(found[:, :, 0].astype(float) - stored / 257).max() <= 0.5


@pytest.mark.parametrize("name", ["exif3", "exif6", "exif8"])
def test_turned_pictures_stand_upright(outcome, name):
    (image,) = [item for item in outcome.images.values() if item.record.file_name == f"{name}.jpg"]
    expected = np.asarray(ImageOps.exif_transpose(Image.open(ODD / "images" / f"{name}.jpg")).convert("RGB"))
    assert image.pixels_HWC is not None and (image.pixels_HWC == expected).all()


def test_validate_reports_what_a_run_would_meet():
    found = list(validate_corpus(ODD / "images", ODD / "instances.json", True))
    text = "\n".join(f"{problem.severity} {problem.where} {problem.what}" for problem in found)
    for part in (
        "twin_b.jpg",
        "900393",
        "900414",
        "99999",
        "900195",
        "900213",
        "truncated.jpg",
        "bomb.png",
        "sizelie.jpg",
    ):
        assert part in text
    assert [problem.severity for problem in found if "99999" in problem.what] == ["warning"]
