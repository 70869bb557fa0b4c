"""SA-1B: one JSON a picture, {"image": {...}, "annotations": [...]}, as Segment Anything's dataset and automatic masks have it.

Format: github.com/facebookresearch/segment-anything, README, "Dataset". No categories.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rlabel.corpus.json_stream import parse_row
from rlabel.corpus.limits import Limits
from rlabel.errors import InputError
from rlabel.formats.folders import PictureFolder, files_below, read_text
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.rows import region_of_row, side
from rlabel.records import JsonObject, JsonValue
from rlabel.run.canonical import object_of


class Sa1bLayout:
    """A folder of such files, or one. images: the picture folder; that of the files if None."""

    names: tuple[str, ...] = ()

    def __init__(self, source: Path, images: str | None) -> None:
        self.notes = Notes()
        self.limits = Limits()
        self.source = source
        self.folder = PictureFolder.of(images if images is not None else source if source.is_dir() else source.parent)

    def pictures(self) -> Iterator[FoundPicture]:
        names = [self.source.name] if self.source.is_file() else files_below(self.source, (".json",))
        root = self.source.parent if self.source.is_file() else self.source
        for path in (root / name for name in names):
            try:
                document = parse_document(read_text(path, str(path)))
            except (InputError, ValueError, RecursionError) as error:
                self.notes.say("files left out, since they are not JSON that can be read", f"{path.name}: {error}")
                continue
            if not isinstance(document, dict) or not isinstance(document.get("image"), dict):
                self.notes.say("files left out, since they have not SA-1B's image and annotations", path.name)
                continue
            stated = object_of(document["image"]).get("file_name")
            found = (self.folder.find(stated) if isinstance(stated, str) else None) or self.folder.of_stem(path.stem)
            if found is None:
                self.notes.say("pictures that are not in the picture folder", str(stated or path.stem))
            name = found or (
                stated.rpartition("/")[2] if isinstance(stated, str) and stated.strip() else f"{path.stem}.jpg"
            )
            yield picture_of(document, name, self.notes, self.limits)


def parse_document(text: str) -> JsonValue:
    """Return the value of a JSON text; NaN and infinities are None. Raises ValueError or RecursionError."""
    try:
        return parse_row(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {error.lineno}") from error


def picture_of(document: JsonObject, name: str, notes: Notes, limits: Limits) -> FoundPicture:
    """Return the picture of one such document. Rows that are no regions, and those beyond the limit, go into the notes."""
    image = object_of(document.get("image"))
    rows = document.get("annotations")
    regions: list[FoundRegion] = []
    for index, row in enumerate(rows if isinstance(rows, list) else [], start=1):
        if index > limits.max_regions_per_image:
            notes.say(f"pictures cut at {limits.max_regions_per_image} regions", name)
            break
        region = region_of_row(object_of(row), (), "xywh")
        if isinstance(region, str):
            notes.say(region, f"{name}, row {index}")
        else:
            regions.append(region)
    return FoundPicture(
        file_name=name, width_px=side(image.get("width")), height_px=side(image.get("height")), regions=tuple(regions)
    )
