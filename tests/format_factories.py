"""A small run with every form a label can take, and other people's files of each layout, made by hand here."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import RegionMask, rasterise
from rlabel.records import JsonValue, Outcome, ShardResult
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
    region,
)

IN_PARTS: JsonValue = [[2, 2, 12, 2, 12, 12, 2, 12], [30, 20, 40, 20, 40, 30, 30, 30]]
SLANTED: JsonValue = [[20.5, 3, 44.25, 17.5, 23, 30.75]]
PIXELS = 3072  # of a picture of 64 x 48


def ring() -> npt.NDArray[np.uint8]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[10:30, 10:40] = 1
    mask[15:25, 15:35] = 0
    return mask


def rle_of(mask: npt.NDArray[Any]) -> Any:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def make_run(folder: Path) -> Path:
    """A finished run: polygons, a ring, two pieces, a pixel, a former crowd; one abstention, one failure, an empty picture."""
    first: list[Outcome] = [
        label(region("1", 41), 1, (4, 6, 20, 10), 7, 0.9, box_polygon(4, 6, 20, 10), text="=cat"),
        label(region("2", 42), 1, (10, 10, 30, 20), 3, 0.3, rle_of(ring())),
        label(region("3", 2, is_crowd=True), 1, (50, 30, 10, 10), 7, 0.4, box_rle(50, 30, 10, 10)),
        failure(region("4", 43), 1),
    ]
    second: list[Outcome] = [
        label(region("6", 1), 20, (63, 47, 1, 1), 3, 0.6, box_rle(63, 47, 1, 1)),
        label(region("7", 3), 20, (2, 2, 38, 28), 7, 0.1, IN_PARTS),
        label(region("8", 4), 20, (20, 3, 24, 28), 1203, 0.2, SLANTED),
        abstention(region("9", 99), 20),
    ]
    results = [
        ShardResult(index=0, images=(image_row(1), image_row(5)), outcomes=tuple(first)),
        ShardResult(index=1, images=(image_row(20),), outcomes=tuple(second)),
    ]
    committed_run(folder, results).merge()
    return folder


def make_yolo(folder: Path, labels_a: str, labels_b: str) -> Path:
    """Two pictures in YOLO's layout, a.jpg and b.jpg, with these lines of labels; the classes are cat and dog."""
    make_pictures(folder / "images", "a.jpg", "b.jpg")
    (folder / "labels").mkdir()
    (folder / "labels/a.txt").write_text(labels_a)
    (folder / "labels/b.txt").write_text(labels_b)
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: images\nval: images\n")
    return folder


def make_pictures(folder: Path, *names: str) -> Path:
    """Pictures of 64 x 48 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture_bytes(number, "PNG" if name.endswith(".png") else "JPEG"))
    return folder


def picture_bytes(number: int = 0, kind: str = "JPEG", size: tuple[int, int] = (WIDTH, HEIGHT), **more: Any) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (10 * number % 256, 90, 120)).save(data, format=kind, **more)
    return data.getvalue()


def tar_of(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def masks_of(path: Path) -> dict[str, list[tuple[str | None, RegionMask]]]:
    """The drawn mask and category name of each annotation of a COCO file, by the picture's stem."""
    document = read(path)
    images = {row["id"]: row for row in document["images"]}
    names = {row["id"]: row["name"] for row in document.get("categories", [])}
    found: dict[str, list[tuple[str | None, RegionMask]]] = {Path(row["file_name"]).stem: [] for row in images.values()}
    for row in document["annotations"]:
        image = images[row["image_id"]]
        box = tuple(row["bbox"]) if row.get("bbox") else None
        mask = rasterise(row.get("segmentation"), box, image["height"], image["width"], Limits())  # type: ignore[arg-type]
        found[Path(image["file_name"]).stem].append((names.get(row.get("category_id")), mask))
    return found


def areas(path: Path) -> list[tuple[str | None, float]]:
    """Category name and area of each annotation of a COCO file, in order."""
    return [(name, mask.area_px) for rows in masks_of(path).values() for name, mask in rows]
