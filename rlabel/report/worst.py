"""Pictures of single regions whose label a truth contradicts, cut out with what is around them, and what is to be said of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlabel.corpus.images import BadImage, open_image
from rlabel.corpus.isolation import shared_decoders
from rlabel.corpus.limits import Limits
from rlabel.evaluation.auditing import Audit, Suspect, suspects_document
from rlabel.evaluation.reading import LABELS, id_to_text, stream_rows
from rlabel.records import JsonObject
from rlabel.report.drawing import draw_regions, window_around
from rlabel.report.reading import DrawnRegion
from rlabel.report.sheet import Picture
from rlabel.storage import Store

NUM_DRAWN = 12
_TILE_PX = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """A contradicted label, and its picture; None where it cannot be drawn, for the reason given."""

    suspect: Suspect
    picture: Picture | None
    no_picture_because: str = ""


def surest_wrong(audit: Audit, num: int = NUM_DRAWN) -> tuple[Suspect, ...]:
    """Return the contradicted labels with the highest scores."""
    return tuple(sorted(audit.suspects, key=lambda s: (-s.score, s.image_id, s.region_id))[:num])


def draw_cases(suspects: Sequence[Suspect], run_url: str, truth_url: str, images_url: str | None) -> list[WorstCase]:
    """Return a case for each suspect, in their order. The outlines are the truth's. Raises InputError for a run or truth that cannot be read."""
    rows = _rows_by_key(suspects_document(truth_url, suspects)) if suspects else {}
    wanted = {suspect.image_id for suspect in suspects}
    names = {
        image_id: name
        for row in stream_rows(Store.open(run_url), LABELS, "images")
        if (image_id := id_to_text(row.get("id"))) in wanted and isinstance(name := row.get("file_name"), str)
    }
    images = None if images_url is None else Store.open(images_url)
    return [_case(one, rows[one.image_id, one.region_id], names.get(one.image_id), images) for one in suspects]


def _case(suspect: Suspect, row: JsonObject, file_name: str | None, images: Store | None) -> WorstCase:
    if images is None or file_name is None:
        why = "no image folder was given" if images is None else "the run does not name its file"
        return WorstCase(suspect=suspect, picture=None, no_picture_because=why)
    try:
        pixels_HWC = open_image(images, file_name, Limits(), shared_decoders())
    except BadImage as error:
        return WorstCase(suspect=suspect, picture=None, no_picture_because=str(error))
    region = DrawnRegion(
        outcome="label",
        words=suspect.labeler_name,
        score=suspect.score,
        true_name=suspect.human_name,
        is_correct=False,
        segmentation=row.get("segmentation"),
        box_xywh=row.get("bbox"),
    )
    height_px, width_px = pixels_HWC.shape[:2]
    window = window_around(row.get("bbox"), height_px, width_px)
    return WorstCase(
        suspect=suspect,
        picture=Picture(
            file_name=file_name,
            counts="",
            description=f"region {suspect.region_id} of {file_name}, outlined",
            image=draw_regions(pixels_HWC, [region], _TILE_PX, _TILE_PX, window_xyxy=window, with_tags=False),
        ),
    )


def _rows_by_key(document: JsonObject) -> dict[tuple[str, str], JsonObject]:
    rows = document["annotations"]
    return {
        (id_to_text(row.get("image_id")) or "", id_to_text(row.get("id")) or ""): row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    }
