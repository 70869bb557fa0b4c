"""The whole labeling command on the collection of odd inputs: every region ends as its README.json expects.

Needs RLABEL_CORPUS, the folder that holds things-odd. Each expectation stands here in the words of its case.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import hotcoco
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from label_factories import Outcome, Setup, rlabel_here, save_model, save_vocabulary

ODD = Path(os.environ.get("RLABEL_CORPUS", "not set")) / "things-odd"
pytestmark = pytest.mark.skipif(not ODD.is_dir(), reason="RLABEL_CORPUS does not name a folder with things-odd")

# What README.json expects of each case: all of the image's regions answered, all failed with a reason of these words, or
# those named failed and the others answered.
ANSWERED = [
    "exif-orientation-3", "exif-orientation-6", "exif-orientation-8", "grayscale-jpeg", "palette-png", "16-bit-png",
    "rgba-png", "cmyk-jpeg", "progressive-jpeg", "webp", "wrong-extension", "unicode-file-name",
    "subfolder-file-name", "one-pixel-mask", "no-segmentation", "no-bbox", "crowd-uncompressed", "no-category",
    "unknown-category", "tiny-polygon", "duplicate-annotation-ids", "no-annotations",
]  # fmt: skip
IMAGE_FAILS = {
    "truncated-jpeg": "truncated.jpg: .*cut off",
    "zero-bytes": "empty_file.jpg: .*0 bytes",
    "missing-file": "not_there.jpg: there is no such file",
    "decompression-bomb": "bomb.png: its header says more pixels than the limit",
    "path-traversal": r"outside_of_images.jpg: .*stay inside",
    "wrong-image-size": "sizelie.jpg: .*its row says",
    "duplicate-image-ids": "twin_a.jpg.*twin_b.jpg",
}
REGION_FAILS = {
    "empty-mask": {900195: "empty.jpg, region 900195: .*no pixel"},
    "mask-of-wrong-size": {900213: "wrongsize.jpg, region 900213: .*the RLE is"},
    "bbox-outside": {
        900225: "outside.jpg, region 900225: .*outside the picture",
        900231: "region 900231: .*no positive width",
    },
    "annotation-of-no-image": {900414: "no image, region 900414: .*in no image row"},
}
NUM_REGIONS, NUM_FAILED = 138, 34


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Outcome, list[str]]:
    """The run's folder, how the command ended, and its arguments."""
    folder = tmp_path_factory.mktemp("odd")
    setup = Setup.__new__(Setup)
    setup.folder, setup.corpus = folder, ODD
    setup.model, setup.vocabulary = save_model(folder / "model"), save_vocabulary(folder / "names.json")
    arguments = setup.arguments(folder / "run", regions=ODD / "instances.json", images_per_shard=8, no_ray=True)
    return folder / "run", rlabel_here("label", arguments), arguments


def cases() -> list[dict]:
    return json.loads((ODD / "README.json").read_text(encoding="utf-8"))["cases"] if ODD.is_dir() else []


def rows() -> list[dict]:
    return json.loads((ODD / "instances.json").read_text(encoding="utf-8"))["annotations"]


def outcomes(folder: Path) -> dict[int, list[tuple[str, dict]]]:
    """Return ("label" | "abstention" | "failure", row) of every region id."""
    found: dict[int, list[tuple[str, dict]]] = {}
    for row in json.loads((folder / "labels.json").read_bytes())["annotations"]:
        found.setdefault(row["attributes"]["region_id"], []).append(("label", row))
    for kind, name in (("abstention", "abstained.jsonl"), ("failure", "failures.jsonl")):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.setdefault(row["region_id"], []).append((kind, row))
    return found


def test_the_run_ends_well_and_counts_every_region(run):
    folder, ended, _ = run
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert (said["regions"], said["failures"], said["images"]) == (NUM_REGIONS, NUM_FAILED, 32)
    assert said["labels"] + said["abstentions"] == NUM_REGIONS - NUM_FAILED and said["labels"] > 50
    assert "Traceback" not in ended.stderr and "900203" in ended.stderr and "900393" in ended.stderr


def test_every_region_has_as_many_outcomes_as_rows(run):
    found = outcomes(run[0])
    given: dict[int, int] = {}
    for row in rows():
        given[row["id"]] = given.get(row["id"], 0) + 1
    assert {region_id: len(items) for region_id, items in found.items()} == given
    assert given[900393] == 2


def test_the_table_here_has_every_case_of_the_readme():
    assert sorted(case["case"] for case in cases()) == sorted([*ANSWERED, *IMAGE_FAILS, *REGION_FAILS])


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["case"])
def test_a_case_ends_as_expected(run, case):
    name, found = case["case"], outcomes(run[0])
    of_image = (
        {row["id"] for row in rows() if row["image_id"] == case["image_id"]}
        if case["image_id"]
        else set(case["annotation_ids"])
    )
    reasons = (
        {region_id: IMAGE_FAILS[name] for region_id in of_image} if name in IMAGE_FAILS else REGION_FAILS.get(name, {})
    )
    assert set(case["annotation_ids"]) <= of_image or name == "annotation-of-no-image"
    for region_id in of_image:
        for kind, row in found[region_id]:
            if region_id in reasons:
                assert kind == "failure" and re.search(reasons[region_id], row["reason"]), row
            else:
                assert kind != "failure", row
                assert row.get("image_id") == case["image_id"]


def test_a_threshold_of_failures_ends_with_code_3(run):
    result = rlabel_here("label", [*run[2], "--max-failure-rate", "0.2"])
    assert result.returncode == 3 and "34 of 138 regions failed (24.6%)" in result.stderr


def test_readers_take_the_labels(run):
    coco = COCO(str(run[0] / "labels.json"))
    by_id = {row["id"]: row for row in rows()}
    num_masks = 0
    for row in coco.loadAnns(coco.getAnnIds()):
        assert row["iscrowd"] == 0 and row["area"] > 0 and row["category_id"] in coco.cats
        if "segmentation" in row:
            assert abs(coco_mask.area(coco.annToRLE(row)) - row["area"]) < 0.5
            num_masks += 1
        given = by_id[row["attributes"]["region_id"]]
        assert row["id"] == given["id"] or given["id"] == 900393
    assert num_masks > 40
    health = hotcoco.COCO(str(run[0] / "labels.json")).healthcheck()
    assert health["errors"] == []


def test_every_input_image_is_kept_also_those_without_regions(run):
    labels = json.loads((run[0] / "labels.json").read_bytes())
    given = json.loads((ODD / "instances.json").read_text(encoding="utf-8"))["images"]
    # Of the two rows with one id, readers could keep only one.
    assert [row["file_name"] for row in labels["images"]] == [
        row["file_name"] for row in given if row["file_name"] != "twin_b.jpg"
    ]


def test_scores_are_numbers_from_the_model_and_no_constant(run):
    scores = [row["score"] for row in json.loads((run[0] / "labels.json").read_bytes())["annotations"]]
    assert all(0 <= score <= 1 for score in scores) and len(set(scores)) > 10 and np.isfinite(scores).all()
