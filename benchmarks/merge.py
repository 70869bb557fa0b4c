"""Measures how fast committed shards are merged into labels.json: wall and processor time, and peak memory, of a fresh process.

    python benchmarks/merge.py [--labels 1000000] [--like plain] [--folder DIR]

Every region is made up from a seed: 16 to an image, 256 to a shard, of every 50th a failure, of every 9th an abstention. `plain` has masks as
compressed RLE; `polygons` outlines of 8 to 40 points; `boxes` neither; `keys` masks with five more keys, as a mask proposer
writes them; `candidates` eight categories with their likelihood. The disk's cache is as the writing left it.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

import rlabel
from rlabel.corpus.masks import mask_to_rle
from rlabel.records import Abstention, Evidence, Failure, JsonObject, JsonValue, Label, LikelyCategory, Region, Snap
from rlabel.run.manifest import CorpusSummary, Manifest, PlanSummary, manifest_to_bytes
from rlabel.run.records_io import Footer, close_body, outcome_to_line

KINDS = ("plain", "polygons", "boxes", "keys", "candidates")
PER_IMAGE, PER_SHARD = 16, 256
WIDTH, HEIGHT = 640, 480
# Stand in the template of a line for what each region has of its own.
IMAGE_ID, REGION_ID = 900000001, 900000002

MERGE = """
import json, resource, sys, time
from rlabel.run.directory import RunDirectory
from rlabel.storage import Store
run = RunDirectory.open(Store.open(sys.argv[1]))
before, own = time.perf_counter(), time.process_time()
counts = run.merge()
print(json.dumps({"wall_s": time.perf_counter() - before, "cpu_s": time.process_time() - own,
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "regions": counts.regions}))
"""


@click.command()
@click.option("--labels", "num_regions", default=1_000_000, help="Regions of the run.")
@click.option("--like", "kinds", type=click.Choice(KINDS), multiple=True, default=("plain",), help="May be repeated.")
@click.option("--times", default=1, help="Merges of each run; the kinds take turns.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps the runs; a temporary one if left out.")
def main(num_regions: int, kinds: tuple[str, ...], times: int, folder: Path | None) -> None:
    """Merge made-up runs and print what it took."""
    print(f"rlabel {rlabel.__version__}, {num_regions} regions\n")
    print("| regions | wall s | CPU s | regions/s | peak MB | labels.json MB |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        runs = {kind: (folder or Path(temporary)) / f"{kind}-{num_regions}" for kind in kinds}
        for kind, run in runs.items():
            if not (run / "manifest.json").exists():
                write_run(run, num_regions, kind)
        for _ in range(times):
            for kind, run in runs.items():
                command = [sys.executable, "-c", MERGE, str(run)]
                done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                size_mb = (run / "labels.json").stat().st_size / 1e6
                speed = done["regions"] / done["wall_s"]
                row = f"| {kind} | {done['wall_s']:.1f} | {done['cpu_s']:.1f} | {speed:.0f} | {done['peak_mb']:.0f} | {size_mb:.0f} |"
                print(row, flush=True)


def write_run(folder: Path, num_regions: int, kind: str) -> None:
    """Write a finished run of so many regions; its manifest comes last."""
    num_shards = -(-num_regions // PER_SHARD)
    num_images = -(-num_regions // PER_IMAGE)
    manifest = Manifest(
        rlabel_version="0",
        settings={"task": "classify", "threshold": 0.6},
        corpus=CorpusSummary(sha256="a" * 64, num_images=num_images, num_regions=num_regions),
        plan=PlanSummary(num_shards=num_shards, num_images=num_images, num_regions=num_regions, sha256="b" * 64),
        categories=({"id": 3, "name": "red bear"},),
    )
    templates = [[outcome_to_line(outcome) for outcome in three] for three in made_up_outcomes(kind)]
    fingerprint = manifest.fingerprint
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    for index in range(num_shards):
        own = range(index * PER_SHARD, min((index + 1) * PER_SHARD, num_regions))
        images = range(own.start // PER_IMAGE, (own.stop - 1) // PER_IMAGE + 1)
        lines = [
            b'{"kind":"image","row":{"file_name":"%09d.jpg","height":%d,"id":%d,"width":%d}}'
            % (image, HEIGHT, image + 1, WIDTH)
            for image in images
        ]
        counts = [0, 0, 0]
        for number in own:
            which = 2 if number % 50 == 7 else 1 if number % 9 == 3 else 0
            counts[which] += 1
            line = templates[number % len(templates)][which].replace(
                b"%d" % IMAGE_ID, b"%d" % (number // PER_IMAGE + 1)
            )
            lines.append(line.replace(b"%d" % REGION_ID, b"%d" % (number + 1)))
        footer = Footer(
            shard=index,
            fingerprint=fingerprint,
            rows=0,
            sha256="",
            images=len(images),
            labels=counts[0],
            abstentions=counts[1],
            failures_by_kind={"image": counts[2]} if counts[2] else {},
            largest_annotation_id=own.stop,
        )
        # Without the sync of every file that a commit does: it is the merge that is measured.
        path = folder / "shards" / f"{index:06d}.jsonl"
        path.write_bytes(close_body(b"".join(line + b"\n" for line in lines), footer))
    (folder / "manifest.json").write_bytes(manifest_to_bytes(manifest))


def made_up_outcomes(kind: str) -> Iterator[tuple[Label, Abstention, Failure]]:
    """Yield 64 regions, each as a label, an abstention and a failure."""
    dice = random.Random(3)
    snap = Snap(category_id=3, nearest_name="red bear", similarity=0.731234, margin=0.112345, decided_by="embedding")
    evidence = Evidence(num_tokens=4, mean_logprob=-0.112345, min_logprob=-0.412345)
    if kind == "candidates":
        likely = tuple(LikelyCategory(category_id=3 + one, logprob=-0.512345 * (one + 1)) for one in range(8))
        evidence = replace(evidence, candidates=likely)
    for _ in range(64):
        box, segmentation, area_px = made_up_shape(dice, kind)
        extra: JsonObject = {}
        if kind == "keys":
            extra = {
                "predicted_iou": round(dice.random(), 6), "stability_score": round(dice.random(), 6), "source": "points",
                "crop_box": [0.0, 0.0, 640.0, 480.0], "point_coords": [[round(dice.uniform(0, 640), 2), round(dice.uniform(0, 480), 2)]],
            }  # fmt: skip
        region = Region(
            key=str(REGION_ID), region_id=REGION_ID, annotation_id=REGION_ID, segmentation=segmentation, box_xywh=box,
            extra=extra,
        )  # fmt: skip
        label = Label(
            region=region, image_id=IMAGE_ID, category_id=3, score=0.412345, text="a red bear", text_score=0.512345,
            snap=snap, box_xywh=box, area_px=area_px, segmentation=segmentation, evidence=evidence,
        )  # fmt: skip
        abstention = Abstention(
            region=region, image_id=IMAGE_ID, text="a blorp", text_score=0.512345, box_xywh=box, area_px=area_px,
            snap=replace(snap, category_id=None, decided_by=None, reason="less similar than 0.6"), evidence=evidence,
        )  # fmt: skip
        yield label, abstention, Failure(region=region, image_id=IMAGE_ID, kind="image", reason="1.jpg: cut off")


def made_up_shape(dice: random.Random, kind: str) -> tuple[tuple[float, float, float, float], JsonValue, float]:
    """Return a box, the outline or mask of an ellipse in it, and its area."""
    left, top = dice.randrange(400), dice.randrange(300)
    width, height = dice.randrange(20, 200), dice.randrange(20, 150)
    box = (float(left), float(top), float(width), float(height))
    middle_x, middle_y = left + width / 2, top + height / 2
    area_px = round(float(np.pi) * width * height / 4, 2)
    if kind == "boxes":
        return box, None, float(width * height)
    if kind == "polygons":
        angles = sorted(dice.uniform(0, 6.28) for _ in range(dice.randrange(8, 41)))
        points = [
            round(value, 2)
            for angle in angles
            for value in (middle_x + width / 2 * float(np.cos(angle)), middle_y + height / 2 * float(np.sin(angle)))
        ]
        return box, [points], area_px  # type: ignore[list-item]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = ((x - middle_x) / width * 2) ** 2 + ((y - middle_y) / height * 2) ** 2 <= 1
    return box, mask_to_rle(mask), float(mask.sum())


if __name__ == "__main__":
    main()
