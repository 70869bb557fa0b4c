"""Pictures whose pixels are the ids of regions: grey, 16-bit, palette and RGB-coded PNGs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlabel.corpus.limits import Limits
from rlabel.corpus.rle import counts_to_rle
from rlabel.corpus.runs import runs_of_bitmap
from rlabel.errors import InputError
from rlabel.records import JsonObject

Ids = npt.NDArray[np.int32]

_STRIP_PX = 1 << 20
_GREY = ("1", "L", "P", "I", "I;16", "I;16B")
_COLOURED = ("RGB", "RGBA", "LA")


def read_ids(path: Path, limits: Limits | None = None) -> Ids:
    """Return the ids that a picture's pixels say. int32 (H, W), >= 0, 0 for background.

    Grey levels and palette indexes as they are; RGB as R + 256 G + 65536 B (cocodataset.org, panoptic format); what is
    transparent is 0. Raises InputError for a lossy file, one beyond the limits, and what is no picture.
    """
    from PIL import Image

    limits = limits or Limits()
    try:
        with Image.open(path) as image:
            if image.format not in ("PNG", "TIFF", "BMP", "GIF"):
                raise InputError(
                    f"{path}: masks must be PNG (or TIFF, BMP, GIF), got {image.format}, which changes ids where it "
                    "compresses. Export the masks as PNG."
                )
            if image.width * image.height > limits.max_pixels:
                raise InputError(
                    f"{path}: {image.width} x {image.height} pixels are beyond the limit of {limits.max_pixels}."
                )
            mode = image.mode
            pixels = np.asarray(image) if mode in _GREY or mode in _COLOURED else None
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as a mask ({error}). Export it anew.") from error
    if pixels is None:
        raise InputError(f"{path}: masks of {mode} pixels are not known. Export it as grey, 16-bit or RGB PNG.")
    ids = np.zeros(pixels.shape[:2], dtype=np.int32)
    channels = pixels if pixels.ndim == 3 else pixels[..., None]
    for index in range(3 if mode in ("RGB", "RGBA") else 1):
        ids += channels[..., index].astype(np.int32) << (8 * index)
    np.maximum(ids, 0, out=ids)
    if mode in ("RGBA", "LA"):
        ids[pixels[..., -1] == 0] = 0
    return ids


def masks_of_ids(ids: Ids, *, ignored: Collection[int] = (), most: int, where: str) -> dict[int, JsonObject]:
    """Return the RLE of the pixels of each id but 0, by id.

    ids: int32 (H, W). ignored: ids that are no regions. most: how many there may be. Raises InputError beyond that: a
    photograph taken for a mask has one id a pixel.
    """
    from scipy import ndimage

    height, width = ids.shape
    # By strips of rows: sorting all pixels of a large picture at once takes many times its memory.
    strips = [slice(top, top + max(1, _STRIP_PX // width)) for top in range(0, height, max(1, _STRIP_PX // width))]
    values = np.unique(np.concatenate([np.unique(ids[strip]) for strip in strips]))
    if len(values) > most + 1:
        raise InputError(
            f"{where}: {len(values)} different ids, and at most {most} regions are read of one picture. Is this a mask?"
        )
    numbers = np.empty(ids.shape, dtype=np.int32)
    for strip in strips:
        numbers[strip] = np.searchsorted(values, ids[strip]) + 1
    found: dict[int, JsonObject] = {}
    for index, window in enumerate(ndimage.find_objects(numbers), start=1):
        value = int(values[index - 1])
        if value == 0 or value in ignored or window is None:
            continue
        rows, columns = window
        runs = runs_of_bitmap(np.ascontiguousarray(numbers[window] == index), columns.start, rows.start)
        found[value] = counts_to_rle(runs.counts(height, width), height, width)
    return found
