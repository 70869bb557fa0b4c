"""CVAT for images 1.1: one annotations.xml with boxes, polygons and masks of every picture.

CVAT's documentation, "CVAT for images export": a mask's rle are the lengths of runs of outside and inside in turn along the rows
of the window left, top, width, height, beginning with outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from rlabel.corpus.limits import Limits
from rlabel.corpus.rle import counts_to_rle
from rlabel.corpus.runs import runs_of_bitmap
from rlabel.errors import InputError
from rlabel.formats.folders import PictureFolder
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.safe_xml import elements, number, whole, words
from rlabel.records import BoxXywh, JsonObject, JsonValue

_SHAPES = ("box", "polygon", "mask", "ellipse", "polyline", "points", "cuboid", "skeleton")


class CvatLayout:
    """One CVAT XML file. images: the picture folder, to find the pictures below it; names as the file has them if None."""

    def __init__(self, source: Path, images: str | None) -> None:
        self.notes = Notes()
        self.source = source / "annotations.xml" if source.is_dir() else source
        self.limits = Limits()
        near = next(
            (self.source.parent / name for name in ("images", "data") if (self.source.parent / name).is_dir()), None
        )
        folder = images if images is not None else near
        self.folder = PictureFolder.of(folder) if folder is not None else None
        self.names: list[str] = []
        for index, element in enumerate(elements(self.source, ("meta",))):
            if index == 0 and element.tag != "annotations":
                raise InputError(
                    f"{self.source}: expected <annotations>, as CVAT has it, got <{element.tag}>. Check the file."
                )
            self.names += [name for label in element.iter("label") if (name := words(label.findtext("name")))]
        self.names = list(dict.fromkeys(self.names))

    def pictures(self) -> Iterator[FoundPicture]:
        num_tracks = 0
        for element in elements(self.source, ("image", "track")):
            if element.tag == "image":
                yield self._picture(element)
            num_tracks += element.tag == "track"
        self.notes.say("tracks of videos left out: only CVAT for images is read", None, num_tracks)

    def _picture(self, element: Element) -> FoundPicture:
        name = words(element.get("name")) or f"{element.get('id')}.jpg"
        width, height = whole(element.get("width")), whole(element.get("height"))
        if self.folder is not None:
            found = self.folder.find(name)
            if found is None:
                self.notes.say("pictures that are not in the picture folder", name)
            name = found or name
        regions = []
        for index, shape in enumerate((child for child in element if child.tag in _SHAPES), start=1):
            region = self._region(shape, width, height)
            if isinstance(region, str):
                self.notes.say(region, f"{name}, shape {index}")
            else:
                regions.append(region)
        return FoundPicture(file_name=name, width_px=width, height_px=height, regions=tuple(regions))

    def _region(self, shape: Element, width: int | None, height: int | None) -> FoundRegion | str:
        """Return the region of one shape, or why it is left out."""
        segmentation: JsonValue = None
        box: BoxXywh | None = None
        if shape.tag == "box":
            sides = [number(shape.get(key)) for key in ("xtl", "ytl", "xbr", "ybr")]
            turn = number(shape.get("rotation") or "0")
            if any(side is None for side in sides):
                return "boxes left out, since they have not four numbers"
            left, top, right, bottom = (side for side in sides if side is not None)
            box = (left, top, right - left, bottom - top)
            if turn:
                segmentation, box = turned_box(box, turn, (left + right) / 2, (top + bottom) / 2), None
        elif shape.tag == "polygon":
            points = [number(part) for pair in (shape.get("points") or "").split(";") for part in pair.split(",")]
            if len(points) < 6 or any(point is None for point in points):
                return "polygons left out, since they have not three points"
            segmentation = [list(points)]
        elif shape.tag == "mask":
            rle = self._mask(shape, width, height)
            if isinstance(rle, str):
                return rle
            segmentation = rle
        else:
            return f"shapes of the kind {shape.tag} left out: they enclose no region that is read"
        own: JsonObject = {
            str(attribute.get("name")): attribute.text or ""
            for attribute in shape.iter("attribute")
            if attribute.get("name")
        }
        return FoundRegion(segmentation=segmentation, box_xywh=box, name=words(shape.get("label")), attributes=own)

    def _mask(self, shape: Element, width: int | None, height: int | None) -> JsonObject | str:
        left, top, w, h = (number(shape.get(key)) for key in ("left", "top", "width", "height"))
        if left is None or top is None or w is None or h is None or width is None or height is None:
            return "masks left out, since they do not say where they lie or how large the picture is"
        x, y, columns, rows = int(left), int(top), int(w), int(h)
        if width * height > self.limits.max_pixels or not (
            x >= 0 and y >= 0 and columns > 0 and rows > 0 and x + columns <= width and y + rows <= height
        ):
            return "masks left out, since their window is not inside the picture"
        try:
            counts = np.array((shape.get("rle") or "").split(","), dtype=np.int64)
        except (ValueError, OverflowError):
            return "masks left out, since their rle is not whole numbers"
        num_pixels = rows * columns
        if counts.min() < 0 or counts.max() > num_pixels or int(counts.sum()) > num_pixels:
            return "masks left out, since their runs are longer than their window"
        flat = np.zeros(num_pixels, dtype=np.bool_)
        filled = np.repeat(np.arange(counts.size) % 2 == 1, counts)
        flat[: filled.size] = filled
        if not flat.any():
            return "masks left out, since they cover no pixel"
        return counts_to_rle(runs_of_bitmap(flat.reshape(rows, columns), x, y).counts(height, width), height, width)


def turned_box(box: BoxXywh, degrees: float, around_x: float, around_y: float) -> JsonValue:
    """Return a box turned clockwise around a point as one COCO polygon."""
    x, y, width, height = box
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    turned = (
        (
            around_x + (px - around_x) * cosine - (py - around_y) * sine,
            around_y + (px - around_x) * sine + (py - around_y) * cosine,
        )
        for px, py in corners
    )
    return [[value for point in turned for value in point]]
