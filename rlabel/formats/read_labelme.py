"""labelme: one JSON a picture, its shapes in picture pixels.

Format: github.com/wkentaro/labelme, labelme/label_file.py, and labelme/utils/shape.py for what each shape encloses. Shapes of one
group_id and label are one object (examples/instance_segmentation).
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlabel.corpus.limits import Limits
from rlabel.corpus.rle import counts_to_rle
from rlabel.corpus.runs import runs_of_bitmap
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.json_files import JsonFiles
from rlabel.formats.rows import finite, side
from rlabel.records import JsonObject, JsonValue
from rlabel.run.canonical import object_of

_CIRCLE_CORNERS = 72


class LabelmeLayout:
    """A folder of labelme's files, or one. images: the picture folder; that of the files if None."""

    names: tuple[str, ...] = ()

    def __init__(self, source: Path, images: str | None) -> None:
        self.notes = Notes()
        self.limits = Limits()
        self.files = JsonFiles(source, images, self.notes, "labelme's shapes")
        self.folder = self.files.folder

    def pictures(self) -> Iterator[FoundPicture]:
        for name, document in self.files.documents("shapes"):
            picture = self.files.picture(document.get("imagePath"), name)
            width, height = side(document.get("imageWidth")), side(document.get("imageHeight"))
            if width is None or height is None:
                width, height = self.folder.size(picture) or (None, None)
            rows = document["shapes"]
            objects = [object_of(row) for row in rows] if isinstance(rows, list) else []
            most = self.limits.max_regions_per_image
            self.notes.say(f"shapes left out beyond {most} of a picture", name, len(objects) - most)
            regions = tuple(self._regions(objects[:most], width, height, name))
            yield FoundPicture(file_name=picture, width_px=width, height_px=height, regions=regions)

    def _regions(
        self, rows: list[JsonObject], width: int | None, height: int | None, name: str
    ) -> Iterator[FoundRegion]:
        """Yield the regions of a file: polygons of a group as one."""
        groups: dict[tuple[object, object], list[JsonValue]] = {}
        for index, row in enumerate(rows, start=1):
            where = f"{name}, shape {index}"
            label = row.get("label")
            title = label.strip() or None if isinstance(label, str) else None
            shape = self._shape(row, width, height)
            if isinstance(shape, str):
                self.notes.say(shape, where)
                continue
            group = row.get("group_id")
            if isinstance(shape, dict):
                if type(group) is int:
                    self.notes.say("masks of a group written as regions of their own", where)
                yield FoundRegion(segmentation=shape, name=title)
            elif type(group) is int:
                groups.setdefault((group, title), []).append(shape)
            else:
                yield FoundRegion(segmentation=[shape], name=title)
        for (_, grouped), parts in groups.items():
            yield FoundRegion(segmentation=parts, name=grouped if isinstance(grouped, str) else None)

    def _shape(self, row: JsonObject, width: int | None, height: int | None) -> list[JsonValue] | JsonObject | str:
        """Return what a shape encloses, a polygon x, y, x, y ... or an RLE, or why it is left out."""
        kind = row.get("shape_type", "polygon")
        given = row.get("points")
        points = [_point(point) for point in given] if isinstance(given, list) else []
        known = [point for point in points if point is not None]
        if len(known) != len(points) or not known:
            return "shapes left out, since their points are not pairs of numbers"
        if kind in ("polygon", "oriented_rectangle", None) or (kind == "rectangle" and len(known) == 4):
            if len(known) < 3:
                return "polygons left out, since they have not three points"
        elif kind == "rectangle" and len(known) == 2:
            (x0, y0), (x1, y1) = known
            known = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        elif kind == "circle" and len(known) == 2:
            (x, y), (edge_x, edge_y) = known
            radius = math.hypot(edge_x - x, edge_y - y)
            turns = [2 * math.pi * step / _CIRCLE_CORNERS for step in range(_CIRCLE_CORNERS)]
            known = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
        elif kind == "mask" and len(known) == 2:
            return self._mask(row.get("mask"), known[0], width, height)
        else:
            return f"shapes of the kind {str(kind)[:40]} left out: they enclose no region that is read"
        return [round(value, 4) for point in known for value in point]

    def _mask(
        self, packed: JsonValue, corner: tuple[float, float], width: int | None, height: int | None
    ) -> JsonObject | str:
        """Return the RLE of a mask: a PNG of a window of the picture, base64, whose first corner is given."""
        if width is None or height is None or width * height > self.limits.max_pixels:
            return "masks left out, since the size of their picture is not known, or beyond the limit"
        window = _bitmap(packed, width * height)
        if window is None:
            return "masks left out, since they are no PNG of at most their picture's size"
        # Pixels of the window that lie outside the picture are none of it.
        left, top = (math.floor(min(max(value, -(2.0**31)), 2.0**31)) for value in corner)
        x, y = max(left, 0), max(top, 0)
        inside = window[y - top : max(height - top, 0), x - left : max(width - left, 0)]
        if not inside.any():
            return "masks left out, since they cover no pixel"
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        tight = np.ascontiguousarray(inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        runs = runs_of_bitmap(tight, x + int(columns[0]), y + int(rows[0]))
        return counts_to_rle(runs.counts(height, width), height, width)


def _point(value: JsonValue) -> tuple[float, float] | None:
    numbers = [finite(item) for item in value] if isinstance(value, list) and len(value) == 2 else [None]
    if any(number is None for number in numbers):
        return None
    x, y = (number for number in numbers if number is not None)
    return x, y


def _bitmap(packed: JsonValue, most_pixels: int) -> npt.NDArray[np.bool_] | None:
    """Return a base64 PNG as a bitmap, bool (h, w), True where it is not 0; None where it is none, or too large."""
    from PIL import Image

    if not isinstance(packed, str):
        return None
    try:
        with Image.open(io.BytesIO(base64.b64decode(packed, validate=True)), formats=["PNG"]) as image:
            if image.width * image.height > most_pixels or image.mode not in ("1", "L", "P", "I", "I;16"):
                return None
            return np.asarray(image) > 0
    except (binascii.Error, OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError):
        return None
