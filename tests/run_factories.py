"""Small records for the tests of the run directory: labels, abstentions and failures on pictures of 64 x 48 pixels."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from rlabel.records import (
    Abstention,
    Evidence,
    Failure,
    ImageRecord,
    JsonObject,
    JsonValue,
    Label,
    LikelyCategory,
    Outcome,
    Region,
    Shard,
    ShardResult,
    Snap,
)
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import CorpusSummary, Manifest, PlanSummary
from rlabel.storage import Store

WIDTH, HEIGHT = 64, 48
CATEGORIES: tuple[JsonObject, ...] = (
    {"id": 7, "name": "cat", "synonyms": ["kitty"], "def": "a small feline", "frequency": "f"},
    {"id": 3, "name": "dog", "supercategory": "animal"},
    {"id": 1203, "name": "überraschungsei"},
)


def image_row(image_id: JsonValue, **more: JsonValue) -> JsonObject:
    return {"id": image_id, "file_name": f"{image_id}.jpg", "width": WIDTH, "height": HEIGHT, **more}


def box_rle(x: int, y: int, width: int, height: int) -> JsonObject:
    """Compressed RLE of a filled rectangle, made by pycocotools."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    encoded = coco_mask.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode("ascii")}


def box_polygon(x: int, y: int, width: int, height: int) -> JsonValue:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def region(key: str, annotation_id: int | None = None, **more: object) -> Region:
    fields: dict[str, object] = {"key": key, "region_id": annotation_id, "annotation_id": annotation_id, **more}
    return Region(**fields)  # type: ignore[arg-type]


def snap(category_id: int | None = 7, **more: object) -> Snap:
    fields: dict[str, object] = {
        "category_id": category_id,
        "nearest_name": "cat",
        "similarity": 0.875,
        "margin": 0.25,
        "decided_by": None if category_id is None else "embedding",
        "reason": "similarity 0.875 is below 0.9" if category_id is None else None,
        **more,
    }
    return Snap(**fields)  # type: ignore[arg-type]


EVIDENCE = Evidence(
    num_tokens=3,
    mean_logprob=-0.25,
    min_logprob=-0.5,
    candidates=(LikelyCategory(category_id=7, logprob=-0.5), LikelyCategory(category_id=2, logprob=-1.25)),
    agreement=0.75,
)


def label(
    of: Region,
    image_id: JsonValue = 1,
    box: tuple[int, int, int, int] = (4, 6, 20, 10),
    category_id: int = 7,
    score: float = 0.5,
    segmentation: JsonValue = None,
    text: str = "a cat",
) -> Label:
    return Label(
        region=of,
        image_id=image_id,
        category_id=category_id,
        score=score,
        text=text,
        text_score=0.75,
        snap=snap(category_id),
        box_xywh=tuple(float(number) for number in box),  # type: ignore[arg-type]
        area_px=float(box[2] * box[3]),
        segmentation=segmentation,
        evidence=EVIDENCE,
    )


def abstention(of: Region, image_id: JsonValue = 1, text: str = "a thing") -> Abstention:
    return Abstention(
        region=of,
        image_id=image_id,
        text=text,
        text_score=0.3,
        snap=snap(None),
        box_xywh=(1.0, 2.0, 3.0, 4.0),
        area_px=12.0,
    )


def failure(of: Region, image_id: JsonValue = 1, kind: str = "image", reason: str = "1.jpg: cut off") -> Failure:
    return Failure(region=of, image_id=image_id, kind=kind, reason=reason)


def shard_result(index: int, num_images: int = 3, num_regions: int = 4, share_with_ids: float = 0.7) -> ShardResult:
    """A result with all kinds of outcomes, the same for the same index; its last image has no regions."""
    dice = random.Random(index)
    images: list[JsonObject] = []
    outcomes: list[Outcome] = []
    for image_number in range(num_images):
        image_id = index * 1000 + image_number + 1
        images.append(image_row(image_id, note=f"π {image_number}"))
        for number in range(num_regions if image_number + 1 < num_images else 0):
            annotation_id = image_id * 10 + number if dice.random() < share_with_ids else None
            x, y = dice.randrange(30), dice.randrange(20)
            box = (x, y, dice.randrange(2, 30), dice.randrange(2, 25))
            shape = box_polygon(*box) if number % 2 else box_rle(*box)
            of = region(f"{index}/{image_number}/{number}", annotation_id, segmentation=shape, extra={"source": "made"})
            chance = dice.random()
            if chance < 0.6:
                category_id = dice.choice([7, 3, 1203])
                score = round(dice.random(), 6)
                outcomes.append(label(of, image_id, box, category_id, score, shape))
            elif chance < 0.8:
                outcomes.append(abstention(of, image_id))
            else:
                outcomes.append(failure(of, image_id, kind=dice.choice(["image", "region"])))
    return ShardResult(index=index, images=tuple(images), outcomes=tuple(outcomes))


def everything(index: int = 5) -> ShardResult:
    """One of each kind, with the odd values that corpus files hold."""
    odd = region(
        "9#2",
        None,
        region_id="9",
        segmentation={"size": [48, 64], "counts": [3000, 72]},
        box_xywh=(1, 2.5, 3, 4),
        is_crowd=True,
        extra={"z": [1, {"y": None}], "a": "\u2028 \ud800 ü"},
        problem="the id 9 is used twice",
    )
    outcomes = (
        label(region("1", 1), segmentation=[[0, 0, 9, 0, 9, 9]]),
        abstention(region("2", 2**40)),
        failure(odd, image_id=["not", "an", "id"], kind="region"),
    )
    return ShardResult(index=index, images=(image_row(1), image_row("two")), outcomes=outcomes)


def shard_of(result: ShardResult) -> Shard:
    """The shard that a result answers, as the corpus would have given it."""
    records = []
    for row in result.images:
        own = tuple(outcome.region for outcome in result.outcomes if outcome.image_id == row["id"])
        records.append(ImageRecord(row=row, file_name=None, width_px=None, height_px=None, regions=own))
    return Shard(index=result.index, content_sha256="0" * 64, images=tuple(records))


def manifest(num_shards: int = 1, settings: JsonObject | None = None, **more: object) -> Manifest:
    fields: dict[str, object] = {
        "rlabel_version": "0.1.0",
        "settings": settings or {"threshold": 0.4, "prompt": "What is <region>?", "quantization": "none"},
        "corpus": CorpusSummary(sha256="a" * 64, num_images=3, num_regions=12),
        "plan": PlanSummary(num_shards=num_shards, num_images=3, num_regions=12, sha256="b" * 64),
        "categories": CATEGORIES,
        "header": {"info": {"description": "made up"}, "licenses": [{"id": 1, "name": "CC0"}]},
        **more,
    }
    return Manifest(**fields)  # type: ignore[arg-type]


def begin_run(folder: Path | str, num_shards: int) -> RunDirectory:
    return RunDirectory.create_or_resume(Store.open(folder), manifest(num_shards))


def committed_run(folder: Path | str, results: Iterable[ShardResult]) -> RunDirectory:
    """A run of these results, committed in the order given."""
    in_order = list(results)
    run = begin_run(folder, len(in_order))
    for result in in_order:
        assert run.commit(result)
    return run
