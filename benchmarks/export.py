"""Measures what exports cost: processor time, wall time and peak memory of a fresh process for each layout.

    python benchmarks/export.py [--labels 20000] [--to yolo] [--times 1] [--folder DIR]

Labels are made up from a seed, 10 to a picture of 640 x 480: of ten, seven have a mask as compressed RLE, two a polygon of 8 to 60 points, one a box
alone. Masks are 5 to 300 pixels wide, with the edge of a segmenter's: noise blurred and cut off, so that some have holes and some several pieces.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

import rlabel
from rlabel.corpus.masks import mask_to_rle
from rlabel.formats.export import TARGET_FORMATS
from rlabel.records import JsonObject, JsonValue

WIDTH, HEIGHT, PER_IMAGE, NUM_SHAPES = 640, 480, 10, 400

EXPORT = """
import json, resource, sys, time
from rlabel.formats.export import export
before, own = time.perf_counter(), time.process_time()
done = export(sys.argv[1], sys.argv[2], to=sys.argv[3])
print(json.dumps({"wall_s": time.perf_counter() - before, "cpu_s": time.process_time() - own,
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "labels": done.num_labels}))
"""


@click.command()
@click.option("--labels", "num_labels", default=20_000)
@click.option("--to", "formats", type=click.Choice(TARGET_FORMATS), multiple=True, default=TARGET_FORMATS)
@click.option("--times", default=1, help="Exports to each layout; the layouts take turns.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps the labels; a temporary one if left out.")
def main(num_labels: int, formats: tuple[str, ...], times: int, folder: Path | None) -> None:
    """Export made-up labels to each layout and print what it took."""
    print(f"rlabel {rlabel.__version__}, {num_labels} labels\n")
    print("| layout | CPU s | wall s | labels/CPU s | peak MB |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        labels = (folder or Path(temporary)) / f"labels-{num_labels}.json"
        if not labels.exists():
            labels.parent.mkdir(parents=True, exist_ok=True)
            write_labels(labels, num_labels)
        for number in range(times):
            for to in formats:
                command = [sys.executable, "-c", EXPORT, str(labels), str(Path(temporary) / f"{to}-{number}"), to]
                done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                speed = done["labels"] / done["cpu_s"]
                print(
                    f"| {to} | {done['cpu_s']:.2f} | {done['wall_s']:.2f} | {speed:.0f} | {done['peak_mb']:.0f} |",
                    flush=True,
                )


def write_labels(path: Path, num_labels: int) -> None:
    """Write a COCO file of so many labels with scores, as a run has it."""
    num_images = -(-num_labels // PER_IMAGE)
    with path.open("w") as out:
        out.write('{"info":{},"categories":[{"id":3,"name":"bear"},{"id":7,"name":"cat"}],\n"images":[')
        images = (
            {"id": number + 1, "file_name": f"{number:09d}.jpg", "width": WIDTH, "height": HEIGHT}
            for number in range(num_images)
        )
        out.write(",\n".join(map(json.dumps, images)) + '],\n"annotations":[')
        out.write(",\n".join(map(json.dumps, made_up_labels(num_labels))) + "]}\n")


def made_up_labels(num_labels: int) -> Iterator[JsonObject]:
    dice = np.random.default_rng(5)
    shapes = [made_up_shape(dice) for _ in range(NUM_SHAPES)]
    for number in range(num_labels):
        shape = shapes[int(dice.integers(NUM_SHAPES))]
        height, width = shape.shape
        x, y = int(dice.integers(WIDTH - width + 1)), int(dice.integers(HEIGHT - height + 1))
        row: JsonObject = {"id": number + 1, "image_id": number // PER_IMAGE + 1, "category_id": (3, 7)[number % 2]}
        row |= {"bbox": [x, y, width, height], "area": int(shape.sum()), "iscrowd": 0, "score": round(dice.random(), 6)}
        if number % 10 < 7:
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
            mask[y : y + height, x : x + width] = shape
            row["segmentation"] = mask_to_rle(mask)
        elif number % 10 < 9:
            row["segmentation"] = [made_up_polygon(dice, x, y, width, height)]
        text: JsonObject = {"text": "a brown bear", "similarity": 0.7531, "margin": 0.11, "decided_by": "embedding"}
        yield row | {"attributes": {"region_id": str(number + 1), "text_score": 0.71828, "num_tokens": 4, **text}}


def made_up_shape(dice: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return a mask of 5 to 300 pixels' side, cut to what it fills."""
    height, width = (int(side) for side in np.exp(dice.uniform(np.log(5), np.log(300), 2)))
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    noise = Image.fromarray(dice.integers(0, 256, (height, width), dtype=np.uint8))
    rough = np.asarray(noise.filter(ImageFilter.GaussianBlur(max(height, width) / 40 + 0.5)), dtype=np.float64)
    rough = (rough - rough.mean()) / (rough.std() + 1e-9)
    shape = rows**2 + columns**2 + 0.12 * rough < 0.9
    shape[height // 2, width // 2] = True
    filled_rows, filled_columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
    return shape[filled_rows[0] : filled_rows[-1] + 1, filled_columns[0] : filled_columns[-1] + 1]


def made_up_polygon(dice: np.random.Generator, x: int, y: int, width: int, height: int) -> list[JsonValue]:
    turns = np.sort(dice.uniform(0, 2 * np.pi, int(dice.integers(8, 61))))
    reach = dice.uniform(0.35, 0.5, turns.size)
    points = np.stack((x + width * (0.5 + reach * np.cos(turns)), y + height * (0.5 + reach * np.sin(turns))), axis=1)
    found: list[JsonValue] = points.ravel().round(2).tolist()
    return found


if __name__ == "__main__":
    main()
