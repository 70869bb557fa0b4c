"""Time and memory of planning a training on a corpus as large as V3Det, and of drawing its rows, without pictures.

    python benchmarks/training_data.py [--images 177000] [--regions 1400000] [--categories 13204] [--draws 20000]

Writes a COCO file of that size (about 300 MB) into a temporary folder, categories by a long tail as in LVIS and V3Det.
Seconds are those of the processor. Memory is the peak of the process that reads, less what it holds after its imports.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np


@click.command()
@click.option("--images", default=177_000)
@click.option("--regions", default=1_400_000)
@click.option("--categories", default=13_204)
@click.option("--draws", default=20_000)
@click.option("--file", help="Read this file; it is written first where it does not exist.")
@click.option("--read", hidden=True, is_flag=True)
def main(images: int, regions: int, categories: int, draws: int, file: str | None, read: bool) -> None:
    """Plan and draw from a generated corpus."""
    if read and file:
        return measure(file, draws)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(file) if file else Path(folder) / "instances.json"
        if not path.is_file():
            write_corpus(path, images, regions, categories)
        print(
            f"{images} images, {regions} regions, {categories} categories: {path.stat().st_size / 1e6:.0f} MB of JSON"
        )
        # A process of its own: the memory of the writing must not count.
        command = [sys.executable, __file__, "--file", str(path), "--draws", str(draws), "--read"]
        subprocess.run(command, check=True)
    return None


def write_corpus(path: Path, num_images: int, num_regions: int, num_categories: int) -> None:
    """Write boxes with polygons of 12 points; category k comes about as often as 1 / (k + 20)."""
    random = np.random.default_rng(0)
    often = 1 / (np.arange(num_categories) + 20)
    drawn = random.choice(num_categories, num_regions, p=often / often.sum()) + 1
    drawn[:num_categories] = np.arange(num_categories)[:num_regions] + 1  # none without a region
    of_image = random.integers(num_images, size=num_regions)
    of_image[:num_images] = np.arange(num_images)[:num_regions]
    random.shuffle(of_image)
    with path.open("w") as out:
        out.write('{"images": [')
        for i in range(num_images):
            row = {"id": i + 1, "file_name": f"images/{i:08d}.jpg", "width": 640, "height": 480}
            out.write((", " if i else "") + json.dumps(row))
        out.write('], "annotations": [')
        angles = np.arange(12) / 12 * 2 * np.pi
        for j in range(num_regions):
            x, y, width, height = random.integers((0, 0, 20, 20), (400, 300, 200, 150)).tolist()
            points = np.stack([x + width * (1 + np.cos(angles)) / 2, y + height * (1 + np.sin(angles)) / 2], 1)
            row = {
                "id": j + 1,
                "image_id": int(of_image[j]) + 1,
                "category_id": int(drawn[j]),
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
                "segmentation": [points.round(1).flatten().tolist()],
            }
            out.write((", " if j else "") + json.dumps(row))
        rows = [{"id": k + 1, "name": f"thing {k}"} for k in range(num_categories)]
        out.write('], "categories": ' + json.dumps(rows) + "}")


def measure(file: str, draws: int) -> None:
    from rlabel.training.corpus import union
    from rlabel.training.parts import read_part
    from rlabel.training.recipe import Stage
    from rlabel.training.sampling import epoch_order, for_stage

    stage = Stage.model_validate(
        {
            "name": "x",
            "objective": "instruct",
            "learning_rates": {"connector": 1e-3},
            "per_category": 100,
            "balance": 0.5,
        }
    )
    before_mb = peak_mb()
    print(f"after the imports          {before_mb:8.0f} MB")
    start = time.process_time()
    part = read_part("images", file)
    corpus = union([part])
    tell("opened, checked, packed", start, before_mb)
    start = time.process_time()
    planned = for_stage(corpus, stage, 0)
    tell(f"capped to {planned.num_regions}, balanced", start, before_mb)
    start = time.process_time()
    order, _ = epoch_order(planned, 0, 0)
    tell(f"an epoch's order ({len(order)})", start, before_mb)
    for name, drawn in (("all", corpus), ("capped", planned)):
        numbers = np.random.default_rng(0).integers(len(drawn.images), size=draws)
        start = time.process_time()
        num_regions = sum(len(drawn.images[int(number)].labels) for number in numbers)
        took = time.process_time() - start
        tell(
            f"{draws} draws, {name}",
            start,
            before_mb,
            f"{draws / took:.0f} images/s, {num_regions / took:.0f} regions/s",
        )


def tell(what: str, start: float, before_mb: float, more: str = "") -> None:
    print(
        f"{what:34}{time.process_time() - start:8.2f} s   peak {peak_mb() - before_mb:6.0f} MB more   {more}",
        flush=True,
    )


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
