"""Label Studio's JSON export: tasks with rectangles, polygons and brush strokes, in percent of the picture.

Label Studio's documentation, "Label Studio JSON format of annotated tasks"; rotation turns a rectangle clockwise around its upper
left corner.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from rlabel.corpus.json_list import stream_elements
from rlabel.corpus.limits import Limits
from rlabel.corpus.rle import mask_to_rle
from rlabel.errors import InputError
from rlabel.formats.brush import BadBrush, brush_to_mask
from rlabel.formats.folders import PictureFolder
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.read_cvat import turned_box
from rlabel.formats.rows import finite, side
from rlabel.records import JsonObject, JsonValue
from rlabel.run.canonical import object_of

_KINDS = ("rectanglelabels", "polygonlabels", "brushlabels", "rectangle", "polygon", "brush")
# Uploads get eight hexadecimal digits and a hyphen before their name.
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")


class LabelStudioLayout:
    """One JSON export. Of each task the first annotation that was not cancelled, or without one the first prediction."""

    names: tuple[str, ...] = ()

    def __init__(self, source: Path, images: str | None) -> None:
        self.notes = Notes()
        self.source = source
        self.limits = Limits()
        self.folder = PictureFolder.of(images) if images is not None else None

    def pictures(self) -> Iterator[FoundPicture]:
        with self.source.open("rb") as stream:
            for index, task in enumerate(stream_elements(stream, str(self.source)), start=1):
                picture = self._picture(object_of(task), f"task {index}")
                if picture is not None:
                    yield picture

    def _picture(self, task: JsonObject, where: str) -> FoundPicture | None:
        data = object_of(task.get("data"))
        if "annotations" not in task and "predictions" not in task:
            raise InputError(
                f"{self.source}, {where}: expected the keys data and annotations, got {', '.join(map(repr, list(task)[:5]))}. Export "
                "as JSON; JSON-MIN, CSV and TSV are not read."
            )
        url = next(
            (
                data[key]
                for key in ("image", "img", "photo", "url", *sorted(data))
                if isinstance(data.get(key), str) and _is_picture(data[key])
            ),
            None,
        )
        if not isinstance(url, str):
            self.notes.say("tasks left out, since their data names no picture", where)
            return None
        name = self._file_name(url, task)
        results = self._results(task, where)
        size = next((stated for result in results if (stated := _stated_size(result)) is not None), None)
        if size is None and self.folder is not None:
            size = self.folder.size(name)
        regions: list[FoundRegion] = []
        for result in results:
            region = self._region(result, size)
            if isinstance(region, str):
                self.notes.say(region, where)
            elif region is not None:
                regions.append(region)
        return FoundPicture(
            file_name=name,
            width_px=size[0] if size else None,
            height_px=size[1] if size else None,
            regions=tuple(regions),
        )

    def _results(self, task: JsonObject, where: str) -> list[JsonObject]:
        for key in ("annotations", "predictions"):
            rows = task.get(key)
            kept = [object_of(row) for row in rows] if isinstance(rows, list) else []
            kept = [row for row in kept if row and not row.get("was_cancelled")]
            if len(kept) > 1:
                self.notes.say(f"tasks with several {key}, of which the first was taken", where)
            if kept:
                found = kept[0].get("result")
                return [object_of(row) for row in found] if isinstance(found, list) else []
        return []

    def _file_name(self, url: str, task: JsonObject) -> str:
        """Return the picture's path: what a local-files URL names, or the last part of an address, upload prefix aside."""
        parts = urlsplit(url)
        local = parse_qs(parts.query).get("d")
        path = local[0] if local else unquote(parts.path)
        last = path.rpartition("/")[2]
        plain = _UPLOAD_PREFIX.sub("", last, count=1) if "/upload/" in path else last
        own = task.get("file_upload")
        if self.folder is not None:
            for choice in (path, last, own, plain):
                found = self.folder.find(choice) if isinstance(choice, str) and choice else None
                if found is not None:
                    return found
            self.notes.say("pictures that are not in the picture folder", plain)
        return path.lstrip("/") if local else plain

    def _region(self, result: JsonObject, size: tuple[int, int] | None) -> FoundRegion | str | None:
        """Return the region of one result, why it is left out, or None for what is no region (a choice, a text)."""
        kind, value = result.get("type"), object_of(result.get("value"))
        if kind not in _KINDS:
            is_shape = isinstance(kind, str) and ("x" in value or "points" in value or "vertices" in value)
            return (
                f"results of the kind {str(kind)[:40]} left out: they enclose no region that is read"
                if is_shape
                else None
            )
        if size is None or size[0] * size[1] > self.limits.max_pixels:
            return "results left out, since the size of their picture is not known, or beyond the limit"
        if result.get("image_rotation"):
            return "results left out, since their picture was turned in Label Studio"
        width, height = size
        labels = value.get(kind)
        name = labels[0].strip() if isinstance(labels, list) and labels and isinstance(labels[0], str) else None
        score = finite(result.get("score"))
        more: JsonObject = {} if score is None else {"confidence": score}
        if kind.startswith("rectangle"):
            sides = [finite(value.get(key)) for key in ("x", "y", "width", "height")]
            if any(item is None for item in sides):
                return "rectangles left out, since they have not four numbers"
            x, y, w, h = (
                round(item / 100 * whole, 4)
                for item, whole in zip(sides, (width, height, width, height), strict=True)
                if item is not None
            )
            turn = finite(value.get("rotation"))
            if turn:
                return FoundRegion(segmentation=turned_box((x, y, w, h), turn, x, y), name=name, attributes=more)
            return FoundRegion(box_xywh=(x, y, w, h), name=name, attributes=more)
        if kind.startswith("polygon"):
            flat = _flat(value.get("points"))
            if len(flat) < 6 or any(item is None for item in flat):
                return "polygons left out, since they have not three points"
            scaled: JsonValue = [
                [
                    round(item / 100 * (height if index % 2 else width), 4)
                    for index, item in enumerate(flat)
                    if item is not None
                ]
            ]
            return FoundRegion(segmentation=scaled, name=name, attributes=more)
        try:
            mask = brush_to_mask(value.get("rle"), height, width)
        except BadBrush as bad:
            self.notes.say("brush strokes left out, since they cannot be unpacked", str(bad))
            return None
        if not mask.any():
            return "brush strokes left out: they cover no pixel"
        return FoundRegion(segmentation=mask_to_rle(mask), name=name, attributes=more)


def _flat(points: JsonValue) -> list[float | None]:
    """Return a list of pairs as x, y, x, y ...; None for what is no number, and for what is no pair."""
    pairs = points if isinstance(points, list) else []
    return [finite(item) for pair in pairs for item in (pair if isinstance(pair, list) and len(pair) == 2 else [None])]


def _stated_size(result: JsonObject) -> tuple[int, int] | None:
    width, height = side(result.get("original_width")), side(result.get("original_height"))
    return None if width is None or height is None else (width, height)


def _is_picture(value: JsonValue) -> bool:
    return isinstance(value, str) and bool(
        re.search(r"\.(jpe?g|png|webp|bmp|tiff?|gif|avif)(\?|$)|[?&]d=|^s3:|^gs:|/", value, re.I)
    )
