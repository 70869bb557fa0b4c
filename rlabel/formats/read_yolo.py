"""YOLO: one text file a picture, `class x y width height` or `class x1 y1 x2 y2 ...` in shares of the picture's sides, and data.yaml.

Ultralytics' documentation, "Object Detection Datasets" and "Instance Segmentation Datasets"; darknet's obj.names and classes.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlabel.errors import InputError, UsageError
from rlabel.formats.folders import PictureFolder, inside, read_text
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.safe_xml import number
from rlabel.records import JsonObject
from rlabel.yaml_files import BadYaml, load_yaml_file

DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAME_FILES = ("classes.txt", "obj.names", "labels.txt")
_MOST_LINES = 100_000


class YoloLayout:
    """A YOLO folder, or its data.yaml. Pictures without a text file come out without regions, as YOLO has it."""

    def __init__(self, source: Path, images: str | None) -> None:
        self.notes = Notes()
        self.root = source if source.is_dir() else source.parent
        self.names = _names(source)
        folder = (
            images
            if images is not None
            else str(self.root / "images" if (self.root / "images").is_dir() else self.root)
        )
        self.folder = PictureFolder.of(folder)

    def pictures(self) -> Iterator[FoundPicture]:
        num_files = 0
        for stem, path in sorted(self.folder.by_path.items(), key=lambda item: item[1]):
            labels = self._labels(stem)
            num_files += labels is not None
            size = self.folder.size(path)
            if size is None:
                self.notes.say("pictures left out, since they cannot be opened", path)
                continue
            regions = [] if labels is None else list(self._regions(labels, size))
            yield FoundPicture(file_name=path, width_px=size[0], height_px=size[1], regions=tuple(regions))
        if self.folder.by_path and not num_files:
            raise InputError(
                f"{self.root}: none of its {len(self.folder.by_path)} pictures has a text file of its name in labels/ or beside "
                "it. Name the folder that holds images/ and labels/, or another layout."
            )

    def _labels(self, stem: str) -> Path | None:
        """Return a picture's text file: images/ becomes labels/ in its path (Ultralytics), or it lies beside the picture."""
        picture = (self.folder.root / stem).as_posix()
        beside, _, rest = picture.rpartition("/images/")
        choices = [f"{beside}/labels/{rest}.txt"] if beside else []
        choices += [f"{self.root.as_posix()}/labels/{stem}.txt", f"{picture}.txt"]
        choices.append(f"{self.root.as_posix()}/labels/{stem.rpartition('/')[2]}.txt")
        return next((path for choice in choices if (path := Path(choice)).is_file()), None)

    def _regions(self, path: Path, size: tuple[int, int]) -> Iterator[FoundRegion]:
        where = path.name
        try:
            lines = read_text(path, str(path)).splitlines()
        except InputError as error:
            self.notes.say("text files left out, since they cannot be read", str(error))
            return
        if len(lines) > _MOST_LINES:
            self.notes.say(f"text files cut at {_MOST_LINES} lines", where)
        for index, line in enumerate(lines[:_MOST_LINES], start=1):
            if not line.strip():
                continue
            region = self._region(line.split(), size)
            if isinstance(region, str):
                self.notes.say(f"lines left out: {region}", f"{where}, line {index}")
            else:
                yield region

    def _region(self, parts: list[str], size: tuple[int, int]) -> FoundRegion | str:
        """Return the region of one line, or why it is none."""
        numbers = [number(part) for part in parts]
        if any(value is None for value in numbers):
            return "not numbers alone"
        first, *rest = (value for value in numbers if value is not None)
        if not first.is_integer() or first < 0 or (self.names and first >= len(self.names)):
            return "a class that is not in the list of names" if self.names else "a class that is no whole number"
        name = self.names[int(first)] if self.names else f"class {int(first)}"
        sides = [value * size[index % 2] for index, value in enumerate(rest)]
        if len(rest) in (4, 5):
            x, y, w, h = sides[:4]
            box = (_px(x - w / 2), _px(y - h / 2), _px(w), _px(h))
            confidence: JsonObject = {"confidence": rest[4]} if len(rest) == 5 else {}
            return FoundRegion(box_xywh=box, name=name, attributes=confidence)
        if len(rest) >= 6 and len(rest) % 2 == 0:
            return FoundRegion(segmentation=[[_px(value) for value in sides]], name=name)
        return "neither four numbers for a box nor three points and more"


def _px(value: float) -> float:
    """Return pixels without the last digits that shares of a side lose: an edge at 17.5 must not come out at 17.4999998."""
    return round(value, 4)


def _names(source: Path) -> list[str]:
    """Return the names of the classes, by index; [] where nothing lists them."""
    root = source if source.is_dir() else source.parent
    chosen = [source] if source.is_file() else [root / name for name in DATA_FILES]
    for path in chosen:
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            return _yaml_names(path)
    for name in NAME_FILES:
        found = inside(root, name) or inside(root, f"labels/{name}")
        if found is not None:
            return [line.strip() for line in read_text(found, str(found)).splitlines() if line.strip()]
    return []


def _yaml_names(path: Path) -> list[str]:
    try:
        document = load_yaml_file(path)
    except BadYaml as error:
        raise InputError(f"{path}: not YAML that can be read ({str(error)[:200]}). Correct the file.") from error
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict) and all(type(key) is int and 0 <= key < 1_000_000 for key in names):
        names = [names.get(index, f"class {index}") for index in range(max(names, default=-1) + 1)]
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise UsageError(
            f"{path}: expected `names:` with a list of class names, got {type(names).__name__}. Add it, as data.yaml has it."
        )
    return [str(name).strip() or f"class {index}" for index, name in enumerate(names)]
