"""A drawn corpus: pictures of coloured shapes, a mask for each, and names that stand for a vocabulary. The same for the same seed."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

WIDTH_PX, HEIGHT_PX = 640, 480
_SYLLABLES = ("ba", "chi", "dor", "fen", "gul", "ka", "lim", "mo", "nar", "pe", "ri", "sto", "tam", "vu", "wil", "zo")


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnCorpus:
    """Where it lies. names: of the vocabulary."""

    images: Path
    regions: Path
    vocabulary: Path
    names: tuple[str, ...]


def draw_names(count: int = 250, seed: int = 0) -> tuple[str, ...]:
    """Return different made-up names of one or two words, of a few syllables each."""
    dice = random.Random(seed)
    names: dict[str, None] = {}
    while len(names) < count:
        words = ["".join(dice.choices(_SYLLABLES, k=dice.choice((2, 2, 3)))) for _ in range(dice.choice((1, 1, 2)))]
        names[" ".join(words)] = None
    return tuple(names)


def draw_corpus(folder: Path, num_images: int, regions_per_image: int, seed: int = 0) -> DrawnCorpus:
    """Write pictures (JPEG, 640 x 480), regions.json and names.json into a folder; masks alternate between RLE, polygons and boxes."""
    dice = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(1, num_images + 1):
        noise = np.random.default_rng([seed, number]).integers(0, 256, (HEIGHT_PX // 8, WIDTH_PX // 8, 3), np.uint8)
        picture = Image.fromarray(noise).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
        canvas = ImageDraw.Draw(picture)
        for _ in range(regions_per_image):
            width, height = dice.randrange(24, 200), dice.randrange(24, 160)
            x, y = dice.randrange(WIDTH_PX - width), dice.randrange(HEIGHT_PX - height)
            ends = (x, y, x + width, y + height)
            canvas.ellipse(ends, fill=(dice.randrange(256), dice.randrange(256), dice.randrange(256)))
            annotations.append({"id": len(annotations) + 1, "image_id": number, **_region(len(annotations), *ends)})
        name = f"{number:06d}.jpg"
        picture.save(folder / "images" / name, quality=90)
        images.append({"id": number, "file_name": name, "width": WIDTH_PX, "height": HEIGHT_PX})
    names = draw_names(seed=seed)
    (folder / "regions.json").write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    (folder / "names.json").write_text(json.dumps({"name": "drawn", "categories": categories}), encoding="utf-8")
    return DrawnCorpus(
        images=folder / "images", regions=folder / "regions.json", vocabulary=folder / "names.json", names=names
    )


def _region(number: int, left: int, top: int, right: int, bottom: int) -> dict[str, object]:
    if number % 3 == 0:
        return {"bbox": [left, top, right - left, bottom - top]}
    if number % 3 == 1:
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        return {"segmentation": [[left, middle_y, middle_x, top, right, middle_y, middle_x, bottom]]}
    drawn = Image.new("L", (WIDTH_PX, HEIGHT_PX))
    ImageDraw.Draw(drawn).ellipse((left, top, right, bottom), fill=1)
    encoded = coco_mask.encode(np.asfortranarray(np.asarray(drawn)))
    return {"segmentation": {"size": [HEIGHT_PX, WIDTH_PX], "counts": encoded["counts"].decode("ascii")}}
