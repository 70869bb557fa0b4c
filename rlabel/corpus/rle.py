"""COCO's run-length encoding: read without trusting it, written by pycocotools.

An RLE is {"size": [height, width], "counts": ...}: the lengths of runs of outside and inside in turn, beginning with
outside, down the columns. `counts` is a list (uncompressed), or text or bytes (compressed, LEB128-like; pycocotools,
common/maskApi.c, rleToString). pycocotools decodes counts that sum below the picture from memory that is not its own,
so it is only ever given checked input.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from rlabel.records import JsonValue

Counts = npt.NDArray[np.int64]
MaskHW = npt.NDArray[np.bool_]

_LONGEST_NUMBER = 7  # characters of 5 bits: more than any run in a picture that can be held needs
_LONGEST_TEXT = 2**27  # characters: sums of that many such numbers stay below 2^63


class BadRle(ValueError):
    """The RLE contradicts itself or the picture; the message says how."""


def rle_counts(rle: JsonValue, height_px: int, width_px: int) -> Counts:
    """Return the runs of an RLE, checked. counts: int64 (n,), >= 0, summing to height_px * width_px, outside first.

    Raises BadRle when it is of another size, malformed, or does not cover the picture exactly.
    """
    if not isinstance(rle, dict) or "counts" not in rle or "size" not in rle:
        raise BadRle("the RLE needs the keys size and counts")
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, list | tuple) or len(size) != 2 or any(type(side) is not int for side in size):
        raise BadRle(f"the RLE's size must be [height, width] in whole numbers, got {str(size)[:60]}")
    if size[0] != height_px or size[1] != width_px:
        raise BadRle(f"the RLE is {size[1]} x {size[0]} pixels, the picture {width_px} x {height_px} (width x height)")
    num_pixels = height_px * width_px
    if isinstance(counts, str | bytes):
        runs = _decompressed(counts, num_pixels)
    elif isinstance(counts, list):
        runs = _checked_list(counts, num_pixels)
    else:
        raise BadRle("the RLE's counts must be text or a list of numbers")
    if runs.size and int(runs.min()) < 0:
        raise BadRle("the RLE has a run of negative length")
    # In this order: where no run is longer than the picture, their sum cannot wrap round.
    if (runs.size and int(runs.max()) > num_pixels) or int(runs.sum()) != num_pixels:
        raise BadRle(f"the RLE's runs sum to {int(runs.sum())} pixels, the picture has {num_pixels}")
    return runs


def counts_to_mask(counts: Counts, height_px: int, width_px: int) -> MaskHW:
    """Return the mask of checked runs. mask_HW: bool (height_px, width_px), True inside; Fortran-ordered."""
    inside = np.zeros(counts.size, dtype=np.bool_)
    inside[1::2] = True
    return np.repeat(inside, counts).reshape(width_px, height_px).T


def rle_to_mask(rle: JsonValue, height_px: int, width_px: int) -> MaskHW:
    """Return the mask of an RLE, compressed or not. mask_HW: bool (height_px, width_px), True inside. Raises BadRle."""
    return counts_to_mask(rle_counts(rle, height_px, width_px), height_px, width_px)


def mask_to_rle(mask_HW: MaskHW) -> dict[str, JsonValue]:
    """Return the compressed RLE of a mask, bool (H, W): {"size": [H, W], "counts": text}, fit for JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return {"size": [int(mask_HW.shape[0]), int(mask_HW.shape[1])], "counts": rle["counts"].decode("ascii")}


def counts_to_rle(counts: Counts, height_px: int, width_px: int) -> dict[str, JsonValue]:
    """Return the compressed RLE of checked runs as pycocotools writes it of their mask: none of them empty but the first."""
    size = [height_px, width_px]
    rle = coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, height_px, width_px)
    return {"size": [height_px, width_px], "counts": rle["counts"].decode("ascii")}


def _decompressed(text: str | bytes, num_pixels: int) -> Counts:
    """Return the runs of compressed counts, unchecked but for their form.

    5 bits a character, low bits first; bit 5 says that more follow, bit 4 of the last is the sign; from the fourth run
    on, the difference to the run two before.
    """
    try:
        data = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise BadRle("the RLE's counts hold characters that are not of the encoding") from error
    if len(data) > min(_LONGEST_NUMBER * (2 * num_pixels + 2), _LONGEST_TEXT):
        raise BadRle("the RLE's counts are longer than the picture allows")
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    if int(codes.min()) < 0 or int(codes.max()) > 63:
        raise BadRle("the RLE's counts hold characters that are not of the encoding")
    ends = np.flatnonzero((codes & 0x20) == 0)
    if ends.size == 0 or ends[-1] != codes.size - 1:
        raise BadRle("the RLE's counts are cut off in the middle of a number")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if int(lengths.max()) > _LONGEST_NUMBER:
        raise BadRle("the RLE's counts hold a number that is too large")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 0x1F) << (5 * places), starts)
    numbers -= ((codes[ends] & 0x10) != 0).astype(np.int64) << (5 * lengths)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _checked_list(counts: list[JsonValue], num_pixels: int) -> Counts:
    if len(counts) > 2 * num_pixels + 2:
        raise BadRle("the RLE's counts are longer than the picture allows")
    if not counts:
        return np.zeros(0, dtype=np.int64)
    try:
        numbers = np.asarray(counts)
    except (ValueError, OverflowError) as error:
        raise BadRle("the RLE's counts must be whole numbers") from error
    if numbers.ndim != 1 or numbers.dtype.kind not in "if":
        raise BadRle("the RLE's counts must be whole numbers")
    if numbers.dtype.kind == "f":
        if not np.isfinite(numbers).all() or (numbers != np.rint(numbers)).any() or np.abs(numbers).max() > 2**40:
            raise BadRle("the RLE's counts must be whole numbers")
    elif int(numbers.max()) > 2**40:
        raise BadRle("the RLE's counts hold a number that is too large")
    return numbers.astype(np.int64)
