"""A contact sheet: some pictures of a run with their labels drawn, side by side in one PNG."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image, ImageDraw

from rlabel.corpus.images import BadImage, open_image
from rlabel.corpus.isolation import shared_decoders
from rlabel.corpus.limits import Limits
from rlabel.errors import InputError
from rlabel.report.drawing import ABSTAINED, FAILED, RIGHT, WRONG, Color, draw_regions, load_font, tag_lines
from rlabel.report.reading import DrawnImage, DrawnRegion, read_drawn_images
from rlabel.storage import Store, split_url

TILE_WIDTH_PX = 480
TILE_HEIGHT_PX = 640
_MARGIN_PX = 24
_CAPTION_PX = 34
_CAPTION_FONT_PX = 16
_HEADER_PX = 56
_NUM_COLUMNS = 3
_PAPER: Color = (238, 240, 243)
_CARD: Color = (255, 255, 255)
_INK: Color = (24, 28, 36)
_FAINT_INK: Color = (92, 99, 112)
_MAX_DESCRIBED = 40  # regions, in words for those who do not see the picture
_CANDIDATES_PER_PICTURE = 3  # some pictures cannot be opened
# Words and the colour that they explain.
Legend: TypeAlias = "tuple[tuple[str, Color], ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A drawn picture. counts: "4 right, 1 wrong" and the like. description: its tags in words."""

    file_name: str
    counts: str
    description: str
    image: Image.Image


def make_sheet(
    run_url: str,
    images_url: str,
    out_path: str | os.PathLike[str],
    truth_url: str | None = None,
    max_images: int = 12,
) -> int:
    """Write a contact sheet of a run as PNG and return how many pictures are on it.

    With a truth: right labels green, wrong ones red with the true name. Abstentions are grey, failures orange.
    Raises InputError when a file cannot be read or no picture of the run can be opened.
    """
    pictures = draw_pictures(run_url, images_url, truth_url, max_images)
    store, name = split_url(out_path)
    store.put(name, sheet_to_png(pictures, run_legend(is_judged=truth_url is not None)))
    return len(pictures)


def draw_pictures(run_url: str, images_url: str, truth_url: str | None, max_images: int) -> list[Picture]:
    """Return up to max_images drawn pictures in the run's order. Raises InputError when none can be opened."""
    images = Store.open(images_url)
    candidates = read_drawn_images(run_url, max_images * _CANDIDATES_PER_PICTURE, truth_url)
    opened: list[tuple[int, Picture]] = []
    refusals: list[str] = []
    for candidate in candidates:
        if len(opened) == max_images:
            break
        try:
            opened.append((candidate.position, _draw(candidate, images)))
        except BadImage as error:
            refusals.append(f"{candidate.file_name}: {error}")
    if not opened:
        reason = refusals[0] if refusals else "the run lists no image with a file name"
        raise InputError(
            f"{images_url}: none of {len(candidates)} pictures of the run {run_url} can be opened ({reason}). "
            "Name the image folder that was labeled."
        )
    return [picture for _, picture in sorted(opened, key=lambda pair: pair[0])]


def _draw(image: DrawnImage, images: Store) -> Picture:
    pixels_HWC = open_image(images, image.file_name, Limits(), shared_decoders())
    return Picture(
        file_name=image.file_name,
        counts=_counts(image.regions),
        description=_description(image.regions),
        image=draw_regions(pixels_HWC, image.regions, TILE_WIDTH_PX, TILE_HEIGHT_PX),
    )


def _description(regions: Sequence[DrawnRegion]) -> str:
    more = len(regions) - _MAX_DESCRIBED
    said = "; ".join(" ".join(tag_lines(region)) for region in regions[:_MAX_DESCRIBED])
    return said if more <= 0 else f"{said}; and {more} more"


def _counts(regions: Sequence[DrawnRegion]) -> str:
    words = {None: "labeled", True: "right", False: "wrong"}
    counted = Counter(
        words[region.is_correct]
        if region.outcome == "label"
        else {"abstention": "abstained"}.get(region.outcome, "failed")
        for region in regions
    )
    order = ("right", "wrong", "labeled", "abstained", "failed")
    return ", ".join(f"{counted[word]} {word}" for word in order if counted[word]) or "no regions"


def run_legend(is_judged: bool) -> Legend:
    """Return what the colours of a run's regions mean. is_judged: a truth is given."""
    judged: Legend = (("right", RIGHT), ("wrong, with the true name", WRONG)) if is_judged else ()
    return (*judged, ("abstained", ABSTAINED), ("failed", FAILED))


def sheet_to_png(pictures: Sequence[Picture], legend: Legend) -> bytes:
    """Return the PNG of a sheet: the legend, then the pictures in columns, each with its file name and counts above."""
    num_columns = max(1, min(_NUM_COLUMNS, len(pictures)))
    bottoms = [_HEADER_PX] * num_columns
    spots: list[tuple[int, int, Picture]] = []
    for picture in pictures:
        column = bottoms.index(min(bottoms))
        spots.append((_MARGIN_PX + column * (TILE_WIDTH_PX + _MARGIN_PX), bottoms[column], picture))
        bottoms[column] += _CAPTION_PX + picture.image.height + _MARGIN_PX
    width = _MARGIN_PX + num_columns * (TILE_WIDTH_PX + _MARGIN_PX)
    sheet = Image.new("RGB", (width, max(bottoms)), _PAPER)
    brush = ImageDraw.Draw(sheet)
    _draw_legend(brush, legend)
    for left, top, picture in spots:
        bottom = top + _CAPTION_PX + picture.image.height
        brush.rectangle((left, top, left + TILE_WIDTH_PX - 1, bottom - 1), fill=_CARD)
        _draw_caption(brush, left, top, picture)
        sheet.paste(picture.image, (left + (TILE_WIDTH_PX - picture.image.width) // 2, top + _CAPTION_PX))
    stream = io.BytesIO()
    sheet.save(stream, format="PNG")  # optimize=True takes four times as long for 2 % fewer bytes
    return stream.getvalue()


def _draw_legend(brush: ImageDraw.ImageDraw, legend: Legend) -> None:
    font = load_font(_CAPTION_FONT_PX)
    x, middle = _MARGIN_PX, _HEADER_PX // 2
    for words, color in legend:
        brush.rounded_rectangle((x, middle - 8, x + 16, middle + 8), 3, fill=color)
        brush.text((x + 24, middle), words, fill=_INK, font=font, anchor="lm")
        x += 24 + round(brush.textlength(words, font=font)) + 24


def _draw_caption(brush: ImageDraw.ImageDraw, left: int, top: int, picture: Picture) -> None:
    font = load_font(_CAPTION_FONT_PX)
    middle, right = top + _CAPTION_PX // 2, left + TILE_WIDTH_PX - 10
    room = TILE_WIDTH_PX - 40 - brush.textlength(picture.counts, font=font)
    name = picture.file_name.rsplit("/", 1)[-1]
    name = "".join(character if character.isprintable() else "?" for character in name)
    while len(name) > 1 and brush.textlength(name, font=font) > room:
        name = name[:-2] + "…"
    brush.text((left + 10, middle), name, fill=_INK, font=font, anchor="lm")
    brush.text((right, middle), picture.counts, fill=_FAINT_INK, font=font, anchor="rm")
