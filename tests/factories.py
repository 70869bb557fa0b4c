"""Small pictures and COCO files, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from rlabel.records import ImageRecord, JsonObject, JsonValue, Region

WIDTH, HEIGHT = 24, 16


def pixels(width: int = WIDTH, height: int = HEIGHT) -> npt.NDArray[np.uint8]:
    """Return an RGB picture whose corners all differ: red to the right, green downwards, so that a turn shows."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    planes = [np.tile(across, (height, 1)), np.tile(down[:, None], (1, width)), np.full((height, width), 40.0)]
    return np.stack(planes, axis=2).astype(np.uint8)


def save_picture(path: Path, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """Write a picture in the format that its name says. PNG keeps the pixels exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(width, height)).save(path)
    return path


def image_row(image_id: JsonValue = 1, file_name: str = "a.png", **more: JsonValue) -> JsonObject:
    return {"id": image_id, "file_name": file_name, "width": WIDTH, "height": HEIGHT, **more}


def annotation(region_id: JsonValue = 1, image_id: JsonValue = 1, **more: JsonValue) -> JsonObject:
    """Return an annotation row with a box of 6 x 4 pixels unless `more` brings a bbox of its own."""
    return {"id": region_id, "image_id": image_id, "bbox": [2, 3, 6, 4], "iscrowd": 0, **more}


def coco_file(
    path: Path,
    images: Sequence[JsonValue],
    annotations: Sequence[JsonValue],
    more: Mapping[str, JsonValue] | None = None,
) -> Path:
    """Write a COCO file and return its path."""
    content = {"images": list(images), "annotations": list(annotations), **(more or {})}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def region(key: str = "1", **more: object) -> Region:
    fields: dict[str, object] = {"key": key, "region_id": int(key), "annotation_id": int(key), **more}
    return Region(**fields)  # type: ignore[arg-type]


def image_record(*regions: Region, **row: JsonValue) -> ImageRecord:
    values = {**image_row(), **row}
    return ImageRecord(
        row=values,
        file_name=str(values["file_name"]),
        width_px=values["width"] if isinstance(values["width"], int) else None,
        height_px=values["height"] if isinstance(values["height"], int) else None,
        regions=regions,
    )
