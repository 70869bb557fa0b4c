"""How a region is put before a model that knows nothing of masks: a box as text, a crop, an outline or numbered marks drawn on the picture.

Pictures are RGB; boxes are [x1, y1, x2, y2] in upright image pixels, the far side not included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rlabel.corpus.masks import RegionMask
from rlabel.corpus.picture import LargePicture, scale_for
from rlabel.regiongpt.pixels import zoom_crop
from rlabel.vlm.families import Coordinates

# Regions marked on one picture: more of them hide each other.
MARKS_AT_ONCE = 16
# Red first: the question about a single outline names that colour. Then colours that differ for most colour-blind people too (Okabe and Ito, 2008).
_COLOURS = ((230, 30, 30), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 94, 240))
_RIM = (255, 255, 255)
_PADDING = (127, 127, 127)
# A wider or higher picture than this is padded: some processors refuse one of 200 to 1.
_MOST_STRETCHED = 20.0

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Whole:
    """A whole picture as it is shown. image: RGB, padding at its right and bottom included.

    scale_x, scale_y: shown pixels a pixel of the upright picture.
    """

    image: Image.Image
    scale_x: float
    scale_y: float

    @property
    def seen_px(self) -> tuple[float, float]:
        """Width and height of what is shown, padding included, in pixels of the upright picture."""
        return self.image.width / self.scale_x, self.image.height / self.scale_y


def box_of(mask: RegionMask) -> Box:
    """Return a mask's box as corners."""
    x, y, width, height = mask.box_xywh
    return x, y, x + width, y + height


def whole_picture(picture: NDArray[np.uint8] | LargePicture, longest_px: int, *, square: bool) -> Whole:
    """Return the whole picture, its longer side at most longest_px; padded at the right and the bottom, to a square if asked.

    picture: uint8 (H, W, 3), RGB, upright, or a large one. Raises what decoding a large one raises.
    """
    if isinstance(picture, LargePicture):
        height, width = picture.height_px, picture.width_px
        source = picture.level(scale_for(max(height, width) / longest_px, 1.0))
    else:
        (height, width), source = picture.shape[:2], Image.fromarray(picture)
    shrink = min(longest_px / max(height, width), 1.0)
    size = (max(round(width * shrink), 1), max(round(height * shrink), 1))
    if source.size != size:
        source = source.resize(size, Image.Resampling.BICUBIC)
    scale_x, scale_y = size[0] / width, size[1] / height
    width, height = size
    least = math.ceil(max(size) / _MOST_STRETCHED)
    wanted = (max(size), max(size)) if square else (max(width, least), max(height, least))
    if wanted != size:
        padded = Image.new("RGB", wanted, _PADDING)
        padded.paste(source)
        source = padded
    return Whole(image=source, scale_x=scale_x, scale_y=scale_y)


def crop(picture: NDArray[np.uint8] | LargePicture, mask: RegionMask, size_px: int, context: float) -> Image.Image:
    """Return a square window around a region, size_px a side; what lies outside the picture is grey. context: margin, share of the longer side."""
    return Image.fromarray(np.ascontiguousarray(zoom_crop(picture, mask, size_px, context)[..., :3]))


def outlined(whole: Whole, masks: Sequence[RegionMask], *, numbered: bool) -> Image.Image:
    """Return a copy of a whole picture with the outlines of some regions drawn on it; numbered from 1 if asked."""
    drawn = np.array(whole.image)
    tags: list[tuple[float, float, tuple[int, int, int]]] = []
    for number, mask in enumerate(masks):
        colour = _COLOURS[number % len(_COLOURS)] if numbered else _COLOURS[0]
        width, height = round(mask.width_px * whole.scale_x), round(mask.height_px * whole.scale_y)
        thick = max(3, round(max(width, height) / 300))
        x1, y1, x2, y2 = box_of(mask)
        x1, y1, x2, y2 = x1 * whole.scale_x, y1 * whole.scale_y, x2 * whole.scale_x, y2 * whole.scale_y
        # Only the part of the picture that the outline can touch.
        left, top = max(int(x1) - thick - 2, 0), max(int(y1) - thick - 2, 0)
        right, bottom = min(math.ceil(x2) + thick + 2, width), min(math.ceil(y2) + thick + 2, height)
        window = (left / whole.scale_x, top / whole.scale_y, right / whole.scale_x, bottom / whole.scale_y)
        inside_HW = mask.resample_window(window, bottom - top, right - left) >= 0.5
        if not inside_HW.any():  # thinner than a pixel of the shown picture: its box instead
            inside_HW[int(y1) - top : math.ceil(y2) - top, int(x1) - left : math.ceil(x2) - left] = True
        edge_HW = _edge(inside_HW, thick)
        part = drawn[top:bottom, left:right]
        part[_grown(edge_HW) & ~edge_HW & ~inside_HW] = _RIM  # or a red outline of a tomato would not be seen
        part[edge_HW] = colour
        tags.append((x1, y1, colour))
    picture = Image.fromarray(drawn)
    if numbered:
        _draw_numbers(picture, tags)
    return picture


def _edge(inside_HW: NDArray[np.bool_], thick: int) -> NDArray[np.bool_]:
    """Return the pixels within `thick` / 2 of the boundary of a bitmap, on either side, by four-neighbour steps."""
    grown, shrunk = inside_HW, inside_HW
    for _ in range((thick + 1) // 2):
        grown = _grown(grown)
    for _ in range(thick // 2):
        shrunk = ~_grown(~shrunk)
    return grown & ~shrunk


def _grown(bitmap_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    grown = bitmap_HW.copy()
    grown[1:] |= bitmap_HW[:-1]
    grown[:-1] |= bitmap_HW[1:]
    grown[:, 1:] |= bitmap_HW[:, :-1]
    grown[:, :-1] |= bitmap_HW[:, 1:]
    return grown


def _draw_numbers(picture: Image.Image, tags: Sequence[tuple[float, float, tuple[int, int, int]]]) -> None:
    """Write 1, 2, ... at the corners of the regions, each on a plate of its colour, moved down where an earlier plate lies."""
    size = max(12, round(max(picture.size) / 40))
    font, draw = ImageFont.load_default(size), ImageDraw.Draw(picture)
    taken: list[tuple[int, int, int, int]] = []
    for number, (x, y, colour) in enumerate(tags, start=1):
        text = str(number)
        width, height = round(draw.textlength(text, font)) + size // 2, round(size * 1.2)
        left = min(max(round(x), 0), max(picture.width - width, 0))
        top = min(max(round(y), 0), max(picture.height - height, 0))
        for _ in range(len(tags)):
            plate = (left, top, left + width, top + height)
            if not any(_meet(plate, other) for other in taken) or top + 2 * height > picture.height:
                break
            top += height
        plate = (left, top, left + width, top + height)
        taken.append(plate)
        draw.rectangle(plate, fill=colour)
        draw.text((left + width / 2, top + height / 2), text, fill=(255, 255, 255), font=font, anchor="mm")


def _meet(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def box_text(
    template: str,
    coordinates: Coordinates,
    box_xyxy: Box,
    picture_px: tuple[float, float],
    resized_px: tuple[int, int] | None = None,
) -> str:
    """Return the text of a box in a family's coordinates.

    picture_px: width and height of what the model sees, in the box's own pixels (a padded picture counts its padding).
    resized_px: the same in the pixels that the processor resized it to, which `pixels` needs.

    pixels: whole pixels of the resized picture. thousand: thousandths of the sides, cut off. unit: shares to two decimals.
    loc_yx: PaliGemma's <locDDDD>, 1024 bins, y1 x1 y2 x2. loc_xy: Florence-2's <loc_D>, 1000 bins, x1 y1 x2 y2.
    patches: Kosmos-2's first and last of 32 x 32 patches, row by row.
    """
    width, height = picture_px
    x1, y1, x2, y2 = box_xyxy
    shares = tuple(min(max(value, 0.0), 1.0) for value in (x1 / width, y1 / height, x2 / width, y2 / height))
    if coordinates == "loc_yx":
        order = (shares[1], shares[0], shares[3], shares[2])
        return template.replace("{box}", "".join(f"<loc{min(int(share * 1024), 1023):04d}>" for share in order))
    if coordinates == "loc_xy":
        return template.replace("{box}", "".join(f"<loc_{min(int(share * 1000), 999)}>" for share in shares))
    if coordinates == "patches":
        first, last = _patches(shares, 32)
        patches = f"<object><patch_index_{first:04d}><patch_index_{last:04d}></object>"
        return template.replace("{box}", patches)
    if coordinates == "pixels":
        assert resized_px is not None
        sides = (*resized_px, *resized_px)
        numbers = [str(round(share * side)) for share, side in zip(shares, sides, strict=True)]
    elif coordinates == "thousand":
        numbers = [str(int(share * 1000)) for share in shares]
    else:
        numbers = [f"{share:.2f}" for share in shares]
    for name, number in zip(("{x1}", "{y1}", "{x2}", "{y2}"), numbers, strict=True):
        template = template.replace(name, number)
    return template


def _patches(shares: Sequence[float], side: int) -> tuple[int, int]:
    """Return the patches that hold the upper left and the lower right corner, counted row by row (transformers' coordinate_to_patch_index)."""
    x1, y1, x2, y2 = shares
    left, top = min(int(x1 * side), side - 1), min(int(y1 * side), side - 1)
    right, bottom = max(math.ceil(x2 * side) - 1, left), max(math.ceil(y2 * side) - 1, top)
    return top * side + left, bottom * side + right
