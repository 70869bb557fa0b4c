"""A contact sheet of suspect human labels: what the labeler says, and under it what the people said."""

from __future__ import annotations

from collections import defaultdict

from rlabel.corpus.images import BadImage, open_image
from rlabel.corpus.isolation import shared_decoders
from rlabel.corpus.limits import Limits
from rlabel.errors import InputError
from rlabel.evaluation.reading import id_to_text
from rlabel.records import JsonObject
from rlabel.report.drawing import WRONG, draw_regions
from rlabel.report.reading import DrawnRegion
from rlabel.report.sheet import TILE_HEIGHT_PX, TILE_WIDTH_PX, Picture, sheet_to_png
from rlabel.storage import Store, split_url

MAX_PICTURES = 24


def write_suspects_sheet(document: JsonObject, images_url: str, out_url: str, max_pictures: int = MAX_PICTURES) -> int:
    """Write the pictures of the first suspects as PNG and return how many are on it.

    document: of `rlabel.evaluation.auditing.suspects_document`. Raises InputError when there are no suspects or no picture can be opened.
    """
    images = Store.open(images_url)
    names = {id_to_text(row.get("id")): row.get("file_name") for row in _rows(document, "images")}
    regions: defaultdict[str, list[DrawnRegion]] = defaultdict(list)
    for row in _rows(document, "annotations"):
        case, name = row.get("suspect"), names.get(id_to_text(row.get("image_id")))
        if isinstance(case, dict) and isinstance(name, str):
            regions[name].append(_drawn(row, case))
    pictures: list[Picture] = []
    refusals: list[str] = []
    for name, suspects in regions.items():
        if len(pictures) == max_pictures:
            break
        try:
            pixels_HWC = open_image(images, name, Limits(), shared_decoders())
        except BadImage as error:
            refusals.append(f"{name}: {error}")
            continue
        pictures.append(
            Picture(
                file_name=name,
                counts=f"{len(suspects)} suspect{'' if len(suspects) == 1 else 's'}",
                description="; ".join(f"{one.true_name} or {one.words}" for one in suspects),
                image=draw_regions(pixels_HWC, suspects, TILE_WIDTH_PX, TILE_HEIGHT_PX),
            )
        )
    if not pictures:
        why = refusals[0] if refusals else "there are no suspects"
        raise InputError(
            f"{images_url}: no picture of a suspect can be drawn ({why}). Name the folder that was labeled."
        )
    store, name = split_url(out_url)
    store.put(name, sheet_to_png(pictures, (("the labeler's name, and what people said", WRONG),)))
    return len(pictures)


def _rows(document: JsonObject, name: str) -> list[JsonObject]:
    rows = document.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _drawn(row: JsonObject, case: JsonObject) -> DrawnRegion:
    score = case.get("score")
    return DrawnRegion(
        outcome="label",
        words=str(case.get("labeler_name")),
        score=float(score) if isinstance(score, int | float) else None,
        true_name=str(case.get("human_name")),
        is_correct=False,
        segmentation=row.get("segmentation"),
        box_xywh=row.get("bbox"),
        true_from="human",
    )
