"""Thumbnails of regions, many to one JPEG: a page with 100,000 of them opens some hundred files and not 100,000."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from os import cpu_count

import numpy as np
import numpy.typing as npt
from PIL import Image

from rlabel.corpus.images import BadImage, open_image
from rlabel.corpus.isolation import shared_decoders
from rlabel.corpus.limits import Limits
from rlabel.report.drawing import draw_regions, window_around
from rlabel.report.items import Item
from rlabel.report.reading import DrawnRegion
from rlabel.storage import Store

# A multiple of 16, the block that JPEG encodes as one: a thumbnail does not bleed into its neighbours.
THUMB_PX = 160
# 25 to a sheet: sorted by score, each thumbnail in view lies on another sheet, and a browser decodes whole sheets.
SHEET_COLUMNS = 5
SHEET_THUMBS = SHEET_COLUMNS**2
_JPEG_QUALITY = 70
_PAPER = (128, 132, 140)
_AHEAD = 4
_MAX_REGIONS_AT_ONCE = 500


class Sheets:
    """Lays thumbnails on sheets, in the order they come, and stores each sheet when it is full."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self._sheet: Image.Image | None = None
        self.num_thumbs = 0
        self.written: list[str] = []

    def add(self, thumb: Image.Image) -> int:
        """Return the number of this thumbnail: it lies on sheet number // SHEET_THUMBS."""
        number = self.num_thumbs
        row, column = divmod(number % SHEET_THUMBS, SHEET_COLUMNS)
        if self._sheet is None:
            self._sheet = Image.new("RGB", (SHEET_COLUMNS * THUMB_PX, SHEET_COLUMNS * THUMB_PX), _PAPER)
        left, top = (THUMB_PX - thumb.width) // 2, (THUMB_PX - thumb.height) // 2
        self._sheet.paste(thumb, (column * THUMB_PX + left, row * THUMB_PX + top))
        self.num_thumbs += 1
        if self.num_thumbs % SHEET_THUMBS == 0:
            self.close()
        return number

    def close(self) -> None:
        """Store the sheet that is not full, if there is one."""
        if self._sheet is None:
            return
        stream = io.BytesIO()
        self._sheet.save(stream, format="JPEG", quality=_JPEG_QUALITY)
        path = f"{self._folder}/{sheet_name((self.num_thumbs - 1) // SHEET_THUMBS)}"
        self._store.put(path, stream.getvalue())
        self.written.append(path)
        self._sheet = None


def sheet_name(index: int) -> str:
    """Return a sheet's file name; the page's script makes the same one."""
    return f"sheet-{index}.jpg"


def draw_thumbs(
    items: Iterable[Item], images: Store | None, drawn: Container[int] | None = None
) -> Iterator[tuple[Item, Image.Image | None]]:
    """Yield each item with its thumbnail, at most THUMB_PX a side, in order; None where there is no picture, no outline, or none is wanted.

    drawn: positions of the items to draw, None for all. A picture is opened once for the regions of it that follow each
    other, and not at all for none; a few pictures are drawn at once.
    """
    if images is None:
        yield from ((item, None) for item in items)
        return
    waiting: deque[Future[list[tuple[Item, Image.Image | None]]]] = deque()
    workers = max(1, min(4, cpu_count() or 1))
    with ThreadPoolExecutor(workers, thread_name_prefix="thumbs") as pool:
        for group in _groups(items):
            waiting.append(pool.submit(_drawn, group, images, drawn))
            if len(waiting) > workers + _AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    for _, same in groupby(items, key=lambda item: item.file_name):
        group: list[Item] = []
        for item in same:
            group.append(item)
            if len(group) == _MAX_REGIONS_AT_ONCE:
                yield group
                group = []
        if group:
            yield group


def _drawn(items: list[Item], images: Store, wanted: Container[int] | None) -> list[tuple[Item, Image.Image | None]]:
    file_name = items[0].file_name
    is_wanted = [wanted is None or item.position in wanted for item in items]
    if file_name is None or not any(is_wanted):
        return [(item, None) for item in items]
    try:
        pixels_HWC = open_image(images, file_name, Limits(), shared_decoders())
    except BadImage:
        return [(item, None) for item in items]
    return [(item, _thumb(item, pixels_HWC) if is_one else None) for item, is_one in zip(items, is_wanted, strict=True)]


def _thumb(item: Item, pixels_HWC: npt.NDArray[np.uint8]) -> Image.Image:
    region = DrawnRegion(
        outcome=item.outcome,
        words="",
        score=None,
        true_name=None,
        is_correct=item.is_correct,
        segmentation=item.segmentation,
        box_xywh=item.box_xywh,
    )
    window = window_around(item.box_xywh, pixels_HWC.shape[0], pixels_HWC.shape[1])
    return draw_regions(pixels_HWC, [region], THUMB_PX, THUMB_PX, window_xyxy=window, with_tags=False)
