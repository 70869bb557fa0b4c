"""SA-1B: one JSON a picture, {"image": {...}, "annotations": [...]}, as Segment Anything's dataset and automatic masks have it.

Format: github.com/facebookresearch/segment-anything, README, "Dataset". No categories.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlabel.corpus.limits import Limits
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.json_files import JsonFiles
from rlabel.formats.rows import region_of_row, side
from rlabel.records import JsonObject
from rlabel.run.canonical import object_of


class Sa1bLayout:
    """A folder of such files, or one. images: the picture folder; that of the files if None."""

    names: tuple[str, ...] = ()

    def __init__(self, source: Path, images: str | None) -> None:
        self.notes = Notes()
        self.limits = Limits()
        self.files = JsonFiles(source, images, self.notes, "SA-1B's image and annotations")
        self.folder = self.files.folder

    def pictures(self) -> Iterator[FoundPicture]:
        for path, document in self.files.documents("image"):
            name = self.files.picture(object_of(document["image"]).get("file_name"), path)
            yield picture_of(document, name, self.notes, self.limits)


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
