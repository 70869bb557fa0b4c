"""Recall of a proposer's regions at IoU 0.5 with 10, 30 and 100 a picture, boxes and masks, and what a picture takes.

    python benchmarks/proposals.py --images DIR --truth instances.json [--regions regions.json] [--num-images 200]

Judged by pycocotools without categories. Without --regions they are found here by the embedded proposer, in one thread; `rlabel propose` writes the same.
Seconds are of this process's own time, so that they say the same on a machine with other work; reading and decoding pictures is not in them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from rlabel.corpus.images import open_image
from rlabel.corpus.limits import Limits
from rlabel.proposing.embedded import EmbeddedProposer
from rlabel.proposing.found import Keeping, kept
from rlabel.records import ImageRecord
from rlabel.storage import Store

COUNTS = (10, 30, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--truth", required=True)
    parser.add_argument("--regions", help="a regions.json of `rlabel propose`, instead of finding them here")
    parser.add_argument("--num-images", type=int, default=10**9)
    options = parser.parse_args()
    truth = json.loads(Path(options.truth).read_text())
    truth["images"] = truth["images"][: options.num_images]
    names = {row["file_name"]: row["id"] for row in truth["images"]}
    if options.regions is None:
        results, seconds = found_here(options.images, truth["images"])
        print(f"{statistics.median(seconds):.3f} s of processor time a picture (median of {len(seconds)})")
    else:
        results = read(json.loads(Path(options.regions).read_text()), names)
    print(
        "| recall at IoU 0.5 | "
        + " | ".join(f"{count} a picture" for count in COUNTS)
        + " |\n| --- |"
        + " --- |" * len(COUNTS)
    )
    for kind, name in (("bbox", "boxes"), ("segm", "masks")):
        print(f"| {name} | " + " | ".join(f"{one:.1%}" for one in recalls(truth, results, kind)) + " |", flush=True)


def found_here(images: str, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[float]]:
    """Return results in COCO's form, and the seconds of each picture."""
    store, proposer, limits = Store.open(images), EmbeddedProposer(), Limits()
    results, seconds = [], []
    for row in rows:
        picture = open_image(store, row["file_name"], limits)
        record = ImageRecord(row=row, file_name=row["file_name"], width_px=None, height_px=None, regions=())
        started_s = time.process_time()
        found = kept(proposer.propose(picture, record), Keeping(), *picture.shape[:2])
        seconds.append(time.process_time() - started_s)
        results += [
            {
                "image_id": row["id"],
                "category_id": 1,
                "bbox": list(one.box_xywh),
                "segmentation": one.rle,
                "score": one.score,
            }
            for one in found
        ]
    return results, seconds


def read(regions: dict[str, Any], names: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the results of a regions.json for the pictures of those names; its own ids may be others."""
    ids = {row["id"]: names[row["file_name"]] for row in regions["images"] if row["file_name"] in names}
    return [
        {**row, "image_id": ids[row["image_id"]], "category_id": 1}
        for row in regions["annotations"]
        if row["image_id"] in ids
    ]


def recalls(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float]:
    """Return the recall with each number of regions a picture, of things of any size. kind: pycocotools' iouType."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        given = COCO()
        kept_ids = {row["id"] for row in truth["images"]}
        # One category for all: pycocotools leaves out results of a category that the truth does not have, even where it compares none.
        things = [{**row, "category_id": 1} for row in truth["annotations"] if row["image_id"] in kept_ids]
        given.dataset = {**truth, "annotations": things, "categories": [{"id": 1, "name": "thing"}]}
        given.createIndex()
        judge = COCOeval(given, given.loadRes([dict(row) for row in results]), kind)
        judge.params.iouThrs = np.asarray([0.5])
        judge.params.maxDets = list(COUNTS)
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    return [float(one) for one in judge.eval["recall"][0, 0, 0]]


if __name__ == "__main__":
    main()
