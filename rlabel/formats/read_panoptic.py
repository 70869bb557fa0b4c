"""COCO panoptic: a JSON of segments, and beside it one PNG a picture whose colours are the segments' ids.

Format: cocodataset.org, "Data format", 4. Panoptic Segmentation: id = R + 256 G + 256^2 B, 0 is no segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlabel.corpus.json_stream import stream_members
from rlabel.corpus.limits import Limits
from rlabel.corpus.rows import image_key, usable_file_name
from rlabel.errors import InputError
from rlabel.formats.folders import PictureFolder, inside
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.id_maps import masks_of_ids, read_ids
from rlabel.formats.rows import side
from rlabel.records import JsonObject, JsonValue
from rlabel.run.canonical import object_of

_MOST_IMAGES = 5_000_000


class PanopticLayout:
    """One such JSON; its PNGs lie in a folder of its stem beside it (panoptic_val2017.json, panoptic_val2017/), or beside it.

    images: the picture folder, to find the pictures below it; names as the file has them if None. Each segment is a region, things
    and stuff alike; whether its category is a thing stands in the region's attributes.
    """

    def __init__(self, source: Path, images: str | None) -> None:
        self.notes = Notes()
        self.limits = Limits()
        self.source = source
        if source.is_dir():
            raise InputError(f"{source}: expected a panoptic JSON file, got a folder. Name the file in it.")
        beside = source.with_suffix("")
        self.masks = beside if beside.is_dir() else source.parent
        self.folder = PictureFolder.of(images) if images is not None else None
        self.images: dict[int | str, tuple[str, int | None, int | None]] = {}
        self.titles: dict[int, tuple[str, bool]] = {}
        self._read_head()
        self.names = list(dict.fromkeys(name for name, _ in self.titles.values()))

    def pictures(self) -> Iterator[FoundPicture]:
        left = dict.fromkeys(self.images)
        with self.source.open("rb") as stream:
            for member, index, value in stream_members(stream, str(self.source)):
                if member != "annotations" or index is None:
                    continue
                row = object_of(value)
                key = image_key(row.get("image_id"))
                if key is None or key not in left:
                    self.notes.say(
                        "annotations left out, since no image has their image_id, or another one has it",
                        f"row {index + 1}",
                    )
                    continue
                del left[key]
                yield self._picture(key, row)
        for key in left:
            self.notes.say("pictures without segments, written without regions", self.images[key][0])
            yield self._picture(key, {})

    def _read_head(self) -> None:
        """Take images and categories, which may stand behind the annotations."""
        with self.source.open("rb") as stream:
            for member, index, value in stream_members(stream, str(self.source)):
                row = object_of(value)
                if index is None or member not in ("images", "categories"):
                    continue
                identity, title = row.get("id"), row.get("name")
                if member == "categories" and type(identity) is int and isinstance(title, str) and title.strip():
                    self.titles[identity] = (title.strip(), row.get("isthing") in (1, True))
                    continue
                key, name = image_key(identity), usable_file_name(row)
                if member == "images" and key is not None and name is not None:
                    self.images.setdefault(key, (name, side(row.get("width")), side(row.get("height"))))
                if len(self.images) > _MOST_IMAGES:
                    raise InputError(f"{self.source}: more than {_MOST_IMAGES} images. Split the file.")

    def _picture(self, key: int | str, row: JsonObject) -> FoundPicture:
        name, width, height = self.images[key]
        if self.folder is not None:
            found = self.folder.find(name)
            if found is None:
                self.notes.say("pictures that are not in the picture folder", name)
            name = found or name
        regions = self._regions(row, width, height) if row else ()
        return FoundPicture(file_name=name, width_px=width, height_px=height, regions=tuple(regions))

    def _regions(self, row: JsonObject, width: int | None, height: int | None) -> Iterator[FoundRegion]:
        stated = row.get("file_name")
        path = inside(self.masks.resolve(), stated) if isinstance(stated, str) else None
        if path is None:
            self.notes.say("PNGs that are not there, their pictures written without regions", str(stated)[:80])
            return
        try:
            ids = read_ids(path, self.limits)
            if width is not None and height is not None and ids.shape != (height, width):
                self.notes.say("PNGs left out, since their size is not that of the picture", path.name)
                return
            masks = masks_of_ids(ids, most=self.limits.max_regions_per_image, where=str(path))
        except InputError as error:
            self.notes.say("PNGs left out, since they cannot be read", str(error))
            return
        segments = row.get("segments_info")
        listed: dict[JsonValue, JsonObject] = {}
        for item in segments if isinstance(segments, list) else []:
            identity = object_of(item).get("id")
            if type(identity) is int:
                listed[identity] = object_of(item)
        self.notes.say("segments left out, since their PNG has no pixel of them", path.name, len(listed.keys() - masks))
        self.notes.say("colours left out, since no segment has them", path.name, len(masks.keys() - listed))
        for identity, mask in masks.items():
            if identity not in listed:
                continue
            category = listed[identity].get("category_id")
            title, is_thing = self.titles.get(category, (None, None)) if type(category) is int else (None, None)
            own: JsonObject = {"segment_id": identity}
            if is_thing is not None:
                own["is_thing"] = is_thing
            yield FoundRegion(
                segmentation=mask,
                name=title,
                is_crowd=listed[identity].get("iscrowd") in (1, True),
                attributes=own,
            )
