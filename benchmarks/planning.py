"""Measures what planning a large corpus costs its driver: wall and processor time, and peak memory, of a fresh process.

    python benchmarks/planning.py [--regions 1000000] [--like masks] [--file CORPUS.json]

The corpus is a COCO file made up from a seed, written without holding it: regions with compressed RLE, with outlines or with boxes alone, 16 to
an image. Planned as `rlabel label` does: read once into the temporary file, then every shard made and hashed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import click
import numpy as np

import rlabel
from rlabel.corpus.masks import mask_to_rle

KINDS = ("masks", "polygons", "boxes")
PER_IMAGE = 16
WIDTH, HEIGHT = 640, 480

PLAN = """
import json, resource, sys, time
from rlabel.corpus.coco import read_corpus
from rlabel.corpus.sharding import plan_contents
from rlabel.run.manifest import plan_summary
before, own = time.perf_counter(), time.process_time()
with read_corpus(sys.argv[1]) as corpus:
    read_s, read_cpu_s = time.perf_counter() - before, time.process_time() - own
    plan = plan_summary(plan_contents(corpus, 16, 256))
    print(json.dumps({"read_s": read_s, "read_cpu_s": read_cpu_s, "wall_s": time.perf_counter() - before,
                      "cpu_s": time.process_time() - own, "regions": plan.num_regions, "plan": plan.sha256, "corpus": corpus.sha256,
                      "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


@click.command()
@click.option("--regions", "num_regions", default=1_000_000)
@click.option("--like", "kind", type=click.Choice(KINDS), default="masks")
@click.option("--times", default=1)
@click.option("--file", "path", type=click.Path(path_type=Path), help="The corpus, kept; made where it is not there.")
def main(num_regions: int, kind: str, times: int, path: Path | None) -> None:
    """Plan a made-up corpus and print what it took."""
    with tempfile.TemporaryDirectory() as temporary:
        path = path or Path(temporary) / "corpus.json"
        if not path.exists():
            with path.open("wb") as out:
                write_corpus(out, num_regions, kind)
        print(f"rlabel {rlabel.__version__}, {kind}, {path.stat().st_size / 1e6:.0f} MB\n")
        print("| regions | wall s (reading) | CPU s (reading) | regions/s | peak MB | plan | corpus |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for _ in range(times):
            command = [sys.executable, "-c", PLAN, str(path)]
            done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"| {done['regions']} | {done['wall_s']:.1f} ({done['read_s']:.1f}) | {done['cpu_s']:.1f} ({done['read_cpu_s']:.1f}) | "
                f"{done['regions'] / done['wall_s']:.0f} | {done['peak_mb']:.0f} | {done['plan'][:12]} | {done['corpus'][:12]} |",
                flush=True,
            )


def write_corpus(out: BinaryIO, num_regions: int, kind: str) -> None:
    """Write a COCO file of so many regions: annotations first, as the hardest order for a reader, then their images."""
    templates = made_up_rows(kind)
    out.write(b'{"info": {"description": "made up"}, "annotations": [')
    for number in range(num_regions):
        row = templates[number % len(templates)] % (number + 1, number // PER_IMAGE + 1)
        out.write((b", " if number else b"") + row)
    out.write(b'], "images": [')
    for image in range(-(-num_regions // PER_IMAGE)):
        row = b'{"id": %d, "file_name": "%09d.jpg", "height": %d, "width": %d}' % (image + 1, image, HEIGHT, WIDTH)
        out.write((b", " if image else b"") + row)
    out.write(b'], "categories": [{"id": 1, "name": "thing"}]}')


def made_up_rows(kind: str) -> list[bytes]:
    """Return 64 annotations with places for their id and their image's."""
    dice = random.Random(3)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rows = []
    for _ in range(64):
        left, top = dice.randrange(400), dice.randrange(300)
        width, height = dice.randrange(20, 200), dice.randrange(20, 150)
        row: dict[str, object] = {"category_id": 1, "bbox": [left, top, width, height], "iscrowd": 0}
        angles = np.array(sorted(dice.uniform(0, 6.28) for _ in range(dice.randrange(8, 41))))
        if kind == "masks":
            mask = ((x - left) / width * 2 - 1) ** 2 + ((y - top) / height * 2 - 1) ** 2 <= 1
            row.update(segmentation=mask_to_rle(mask), area=int(mask.sum()))
        elif kind == "polygons":
            points = np.stack(
                [left + width * (1 + np.cos(angles)) / 2, top + height * (1 + np.sin(angles)) / 2], axis=1
            )
            row.update(segmentation=[points.round(2).ravel().tolist()], area=width * height / 2)
        text = json.dumps(row).replace("%", "%%")
        rows.append(f'{{"id": %d, "image_id": %d, {text[1:]}'.encode())
    return rows


if __name__ == "__main__":
    main()
