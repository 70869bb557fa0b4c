"""Says which layout a file or folder has, and why, by its name, its first bytes and what lies beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from rlabel.corpus.json_list import stream_elements
from rlabel.corpus.json_stream import stream_members
from rlabel.errors import InputError
from rlabel.formats import read_tar
from rlabel.formats.folders import PICTURE_ENDS, files_below
from rlabel.formats.read_masks import MASK_FOLDERS
from rlabel.formats.read_yolo import DATA_FILES, NAME_FILES
from rlabel.formats.safe_xml import root_tag
from rlabel.records import JsonValue

SourceFormat = Literal[
    "coco",
    "lvis",
    "panoptic",
    "masks",
    "sa1b",
    "labelme",
    "yolo",
    "voc",
    "labelstudio",
    "cvat",
    "huggingface",
    "webdataset",
]
SOURCE_FORMATS: tuple[SourceFormat, ...] = get_args(SourceFormat)
TITLES: dict[SourceFormat, str] = {
    "coco": "COCO JSON",
    "lvis": "LVIS JSON",
    "panoptic": "COCO panoptic JSON with its PNGs",
    "masks": "a picture folder with mask PNGs",
    "sa1b": "SA-1B's one JSON a picture",
    "labelme": "labelme's one JSON a picture",
    "yolo": "YOLO text files",
    "voc": "Pascal VOC XML",
    "labelstudio": "Label Studio's JSON export",
    "cvat": "CVAT for images XML",
    "huggingface": "a Hugging Face data set in parquet",
    "webdataset": "WebDataset tar archives",
}
_LOOKED_AT = 2000
_XML_ROOTS: dict[str, SourceFormat] = {"annotations": "cvat", "annotation": "voc"}
# The first of these names in a COCO-like file says what its annotations are; rows of images have none of them.
_OF_ANNOTATIONS = re.compile(rb'"(segments_info|segmentation|bbox)"')
_MOST_SEARCHED = 1 << 28
_LVIS_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
# What packed files begin with (PKWARE's APPNOTE 4.3.7; RFC 1952).
_ZIP, _GZIP = b"PK\x03\x04", b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """format: None where nothing that we read was recognised. why: words that follow "since"."""

    format: SourceFormat | None
    why: str


def guess_format(source: Path) -> Guess:
    """Return the layout of an existing file or folder. Raises InputError for a file whose head is broken."""
    return _of_folder(source) if source.is_dir() else _of_file(source)


def refusal(source: Path, guess: Guess, option: str = "--from") -> InputError:
    """Return the error of a source that no layout was recognised in. option: what names one."""
    known = ", ".join(f"{name} ({title})" for name, title in TITLES.items())
    return InputError(f"{source}: no layout that is known: {guess.why}. Name it with {option}, one of {known}.")


def _of_file(path: Path) -> Guess:
    name = path.name.lower()
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head.strip():
        return Guess(format=None, why="the file is empty")
    if name.endswith(".parquet") or head.startswith(b"PAR1"):
        return Guess(format="huggingface", why="it is a parquet file")
    if name.endswith(read_tar.ENDS) or head[257:262] == b"ustar":
        return Guess(format="webdataset", why="it is a tar archive")
    if head.startswith(_ZIP):
        return Guess(format=None, why="it is a zip archive, which must be unpacked first")
    if head.startswith(_GZIP):
        return Guess(format=None, why="it is a gzip file, which must be unpacked first")
    if name.endswith((".yaml", ".yml")):
        return Guess(format="yolo", why="it is a YAML file, as YOLO's data.yaml")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"<":
        tag = root_tag(path)
        format = _XML_ROOTS.get(tag)
        return Guess(format=format, why=f"its root element is <{tag[:60]}>")
    if start == b"[":
        return _of_list(path)
    if start == b"{":
        return _of_object(path)
    return Guess(format=None, why=f"the file begins with {head[:20]!r}")


def _of_list(path: Path) -> Guess:
    with path.open("rb") as stream:
        first = next(stream_elements(stream, str(path)), None)
    if isinstance(first, dict):
        if "data" in first and ("annotations" in first or "predictions" in first):
            return Guess(format="labelstudio", why="it is a list of tasks with data and annotations")
        if "category_id" in first and "score" in first:
            return Guess(format=None, why="it holds COCO results: detections without images and categories")
    return Guess(format=None, why=f"it is a JSON list{_keys(first)}")


def _of_object(path: Path) -> Guess:
    seen: dict[str, JsonValue] = {}
    with path.open("rb") as stream:
        for member in islice(stream_members(stream, str(path)), _LOOKED_AT):
            if member.name == "images":
                is_lvis = isinstance(member.value, dict) and any(key in member.value for key in _LVIS_KEYS)
                if is_lvis:
                    return Guess(format="lvis", why=f"its images have {_LVIS_KEYS[0]} or {_LVIS_KEYS[1]}")
                if _has_segments(path):
                    return Guess(format="panoptic", why="its annotations have segments_info")
                return Guess(format="coco", why="it has a list of images and no field of LVIS")
            seen.setdefault(member.name, member.value)
            if "annotations" in seen and isinstance(seen.get("image"), dict):
                return Guess(format="sa1b", why="it has one image and its annotations")
            if {"shapes", "imagePath"} <= seen.keys():
                return Guess(format="labelme", why="it has labelme's shapes and imagePath")
    if "annotations" in seen:
        return Guess(format="coco", why="it has a list of annotations")
    return Guess(format=None, why=f"it is a JSON object{_keys(seen)}")


def _has_segments(path: Path) -> bool:
    """Return whether a COCO-like file's annotations are panoptic ones, by the first name that tells."""
    before = b""
    with path.open("rb") as stream:
        for _ in range(_MOST_SEARCHED >> 20):
            chunk = stream.read(1 << 20)
            match = _OF_ANNOTATIONS.search(before + chunk)
            if match is not None or not chunk:
                return match is not None and match[1] == b"segments_info"
            before = chunk[-20:]
    return False


def _of_folder(root: Path) -> Guess:
    names = sorted(entry.name for entry in islice(root.iterdir(), 100_000))
    for name in DATA_FILES:
        if name in names:
            return Guess(format="yolo", why=f"it has {name}")
    if (root / "Annotations").is_dir() and _first(root / "Annotations", (".xml",)) is not None:
        return Guess(format="voc", why="it has XML files in Annotations/")
    if "annotations.xml" in names:
        return _of_file(root / "annotations.xml")
    masks = next((name for name in MASK_FOLDERS if name in names and (root / name).is_dir()), None)
    if masks is not None:
        return Guess(format="masks", why=f"it has a folder {masks}/")
    if "labels" in names and _first(root / "labels", (".txt",)) is not None:
        return Guess(format="yolo", why="it has text files in labels/")
    if any(name in names for name in NAME_FILES) and _first(root, (".txt",)) is not None:
        return Guess(format="yolo", why="it has a list of class names and text files")
    for ends, format, what in (
        ((".parquet",), "huggingface", "parquet files"),
        (read_tar.ENDS, "webdataset", "tar archives"),
    ):
        if _first(root, ends) is not None:
            return Guess(format=format, why=f"it has {what}")  # type: ignore[arg-type]
    xml = _first(root, (".xml",))
    if xml is not None:
        return _of_file(root / xml)
    json = list(islice(files_below(root, (".json",)), 2))
    if json:
        inner = _of_file(root / json[0])
        if inner.format in ("sa1b", "labelme"):
            return Guess(format=inner.format, why=f"in {json[0]}, {inner.why}")
        if inner.format is not None:
            return Guess(
                format=None,
                why=f"it is a folder, in which {json[0]} looks like {TITLES[inner.format]}: name that file instead",
            )
    if _first(root, PICTURE_ENDS) is not None:
        return Guess(
            format=None,
            why="it holds pictures alone (for masks, give their folder, name its layout, masks, and the pictures with --images)",
        )
    return Guess(
        format=None, why=f"the folder holds {', '.join(names[:5]) or 'nothing'}{', ...' if len(names) > 5 else ''}"
    )


def _first(root: Path, ends: tuple[str, ...]) -> str | None:
    found: Iterator[str] = files_below(root, ends)
    return next(found, None)


def _keys(value: JsonValue) -> str:
    if not isinstance(value, dict) or not value:
        return ""
    return f" with the keys {', '.join(repr(key[:40]) for key in list(value)[:5])}"
