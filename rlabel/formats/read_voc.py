"""Pascal VOC: Annotations/*.xml, and SegmentationObject/*.png where there are some.

VOC2012 development kit, section 5: boxes in whole pixels counted from 1, both ends inside; the n-th object of a picture has index
n in SegmentationObject, 0 is background, 255 the border that nobody judges. <polygon> (x1, y1, x2 ...) is what supervision and
Roboflow add.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from rlabel.errors import InputError
from rlabel.formats.folders import PICTURE_ENDS, PictureFolder, files_below, read_text, upright_size
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.id_maps import masks_of_ids, read_ids
from rlabel.formats.safe_xml import elements, number, whole, words
from rlabel.records import BoxXywh, JsonObject, JsonValue

_FLAGS = ("difficult", "truncated", "occluded")
_PARTS = ("folder", "filename", "size", "object")
_CORNER = re.compile(r"([xy])([0-9]{1,6})")


class VocLayout:
    """A VOC folder, the folder of its XML files, or one of them. images: the picture folder; JPEGImages beside Annotations if None."""

    def __init__(self, source: Path, images: str | None) -> None:
        self.notes = Notes()
        self.names: list[str] = []
        self.root = source / "Annotations" if (source / "Annotations").is_dir() else source
        home = self.root.parent if source.is_dir() else source.parent
        self.objects = home / "SegmentationObject"
        if (home / "labels.txt").is_file():
            lines = read_text(home / "labels.txt", str(home / "labels.txt")).splitlines()
            self.names = [line.strip() for line in lines if line.strip()]
        near = next((home / name for name in ("JPEGImages", "images") if (home / name).is_dir()), None)
        beside = self.root if self.root.is_dir() else self.root.parent
        if near is None and next(files_below(beside, PICTURE_ENDS), None) is not None:  # as Roboflow has them
            near = beside
        folder = images if images is not None else near
        self.folder = PictureFolder.of(folder) if folder is not None else None

    def pictures(self) -> Iterator[FoundPicture]:
        if self.root.is_file():
            yield self._picture(self.root)
            return
        for name in files_below(self.root, (".xml",)):
            try:
                yield self._picture(self.root / name)
            except InputError as error:
                self.notes.say("annotation files left out, since they cannot be read", f"{name}: {error}")

    def _picture(self, path: Path) -> FoundPicture:
        parts: dict[str, Element] = {}
        objects: list[Element] = []
        for index, element in enumerate(elements(path, _PARTS)):
            if index == 0:
                if element.tag != "annotation":
                    raise InputError(
                        f"{path}: expected <annotation>, as VOC has it, got <{element.tag}>. Check the file."
                    )
            elif element.tag == "object":
                objects.append(element)
            else:
                parts[element.tag] = element
        stated = words(parts["filename"].text) if "filename" in parts else None
        name = self._file_name(stated, path)
        size = _size(parts.get("size"))
        if size is None and self.folder is not None:
            size = upright_size(self.folder.root / name)
        masks = self._masks(path.stem, size, len(objects))
        regions = [
            region
            for number_of, element in enumerate(objects, start=1)
            if (region := self._region(element, masks.get(number_of), f"{path.name}, object {number_of}")) is not None
        ]
        return FoundPicture(
            file_name=name,
            width_px=size[0] if size else None,
            height_px=size[1] if size else None,
            regions=tuple(regions),
        )

    def _file_name(self, stated: str | None, path: Path) -> str:
        if self.folder is not None:
            found = (self.folder.find(stated) if stated else None) or self.folder.of_stem(path.stem)
            if found is not None:
                return found
            self.notes.say("pictures that are not in the picture folder", stated or path.stem)
        return (stated or f"{path.stem}.jpg").replace("\\", "/").rpartition("/")[2]

    def _masks(self, stem: str, size: tuple[int, int] | None, num_objects: int) -> dict[int, JsonObject]:
        path = self.objects / f"{stem}.png"
        if not path.is_file():
            return {}
        try:
            ids = read_ids(path)
        except InputError as error:
            self.notes.say("masks left out, since they cannot be read", str(error))
            return {}
        if size is not None and (ids.shape[1], ids.shape[0]) != size:
            self.notes.say("masks left out, since their size is not that of the picture", path.name)
            return {}
        masks = masks_of_ids(ids, ignored=frozenset({255}), most=10_000, where=str(path))
        self.notes.say(
            "masks left out, since they belong to no object of the file",
            path.name,
            sum(key > num_objects for key in masks),
        )
        return masks

    def _region(self, element: Element, mask: JsonObject | None, where: str) -> FoundRegion | None:
        box = self._box(element.find("bndbox"), where)
        polygon = _polygon(element.find("polygon"))
        if box is None and polygon is None and mask is None:
            self.notes.say("objects left out, since they have no box of four numbers", where)
            return None
        flags: JsonObject = {flag: True for flag in _FLAGS if words(element.findtext(flag)) in ("1", "true", "True")}
        return FoundRegion(
            segmentation=mask if mask is not None else polygon,
            box_xywh=None if mask is not None or polygon is not None else box,
            name=words(element.findtext("name")),
            attributes=flags,
        )

    def _box(self, element: Element | None, where: str) -> BoxXywh | None:
        sides = [
            number(element.findtext(tag)) if element is not None else None for tag in ("xmin", "ymin", "xmax", "ymax")
        ]
        if any(side is None for side in sides):
            return None
        left, top, right, bottom = (side for side in sides if side is not None)
        if left < 1 or top < 1:
            self.notes.say(
                "boxes that begin before pixel 1: VOC counts from 1, so this file may count from 0 and be one pixel off",
                where,
            )
        return (left - 1, top - 1, right - left + 1, bottom - top + 1)


def _size(element: Element | None) -> tuple[int, int] | None:
    if element is None:
        return None
    width, height = whole(element.findtext("width")), whole(element.findtext("height"))
    return None if width is None or height is None else (width, height)


def _polygon(element: Element | None) -> JsonValue:
    """Return the corners x1, y1, x2, y2 ..., counted from 1 as the boxes are, as one COCO polygon; None without three of them."""
    if element is None:
        return None
    corners: dict[int, dict[str, float]] = {}
    for child in element:
        match, value = _CORNER.fullmatch(str(child.tag)), number(child.text)
        if match is not None and value is not None:
            corners.setdefault(int(match[2]), {})[match[1]] = value - 1
    points = [corners[index] for index in sorted(corners) if len(corners[index]) == 2]
    return [[point[axis] for point in points for axis in "xy"]] if len(points) >= 3 else None
