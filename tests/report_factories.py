"""A run on drawn pictures with every outcome, to be shown by the page."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from rlabel.records import JsonObject, Outcome, Region, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import PlanSummary
from rlabel.storage import Store
from run_factories import CATEGORIES, abstention, failure, image_row, label, manifest, region

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
BOX = (4, 6, 20, 10)
SHAPE = [[4, 6, 24, 6, 24, 16, 4, 16]]


def outlined(key: str) -> Region:
    return region(key, int(key), segmentation=SHAPE, box_xywh=tuple(float(side) for side in BOX))


def drawn_run(folder: Path, num_labels: int = 6) -> RunDirectory:
    """Pictures under folder/images, folder/truth.json and folder/run: labels of rising score, then an abstention and a failure.

    Every other label is a cat where the truth has dogs only. Texts are hostile.
    """
    (folder / "images").mkdir(parents=True)
    images = [image_row(number) for number in (1, 2)]
    for row in images:
        Image.new("RGB", (64, 48), (30, 60, 90)).save(folder / "images" / str(row["file_name"]))
    outcomes: list[Outcome] = [
        label(
            outlined(str(10 + number)),
            1 + number % 2,
            BOX,
            (3, 7)[number % 2],
            score=(number + 1) / (num_labels + 1),
            segmentation=SHAPE,
            text=HOSTILE,
        )
        for number in range(num_labels)
    ]
    last = 10 + num_labels
    outcomes += [abstention(outlined(str(last)), 1, HOSTILE), failure(outlined(str(last + 1)), 2, reason=HOSTILE)]
    outcomes.sort(key=lambda outcome: str(outcome.image_id))
    num_regions = len(outcomes)
    plan = PlanSummary(num_shards=1, num_images=2, num_regions=num_regions, sha256="b" * 64)
    run = RunDirectory.create_or_resume(Store.open(folder / "run"), manifest(plan=plan))
    run.commit(ShardResult(index=0, images=tuple(images), outcomes=tuple(outcomes)))
    run.merge()
    annotations: list[JsonObject] = [
        {
            "id": 10 + number,
            "image_id": outcome.image_id,
            "category_id": 3,
            "bbox": list(BOX),
            "area": 200,
            "iscrowd": 0,
        }
        for outcome in outcomes
        for number in [int(outcome.key) - 10]
    ]
    truth = {"images": images, "categories": list(CATEGORIES), "annotations": annotations}
    (folder / "truth.json").write_text(json.dumps(truth))
    return run
