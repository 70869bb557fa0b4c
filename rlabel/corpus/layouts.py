"""Tells the layout of a labeled dataset from the head of its file, or from the names in its folder. Reads no further."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from rlabel.corpus.json_list import stream_elements
from rlabel.corpus.json_stream import stream_members
from rlabel.corpus.labeled import Format
from rlabel.errors import InputError
from rlabel.records import JsonValue
from rlabel.storage import Store, open_url

VISUAL_GENOME_FILES = ("region_descriptions.json", "objects.json", "relationships.json")
IMAGE_DATA = "image_data.json"
INSTANCES = "instances.json"

_HEAD_BYTES = 512
_MOST_MEMBERS = 10_000
# What the packed files begin with (RFC 1952; PKWARE's APPNOTE 4.3.7).
_PACKED = {b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a zip archive"}
# A pickle of a list or dict: PROTO, or, in protocols 0 and 1, MARK or the opcode of an empty one (pickle.py).
_PICKLE_STARTS = (b"\x80", b"(lp", b"(dp", b"]q", b"}q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a file or folder looks like, in words that follow "it looks like".

    format: "coco" stands for every COCO-like layout: LVIS and V3Det show only further on. None: no layout we read.
    names: what the folder holds, sorted; None for a file.
    """

    format: Format | None
    words: str
    names: tuple[str, ...] | None = None


def look_at(url: str) -> Look:
    """Return what lies at a path or fsspec URL. Raises InputError where there is nothing, or the file's head is broken."""
    names = folder_names(url)
    if names is not None:
        return _folder(names)
    try:
        with open_url(url) as stream:
            head = stream.read(_HEAD_BYTES)
        return _file(url, head)
    except FileNotFoundError as error:
        raise InputError(f"{url}: there is no such file. Give the path or URL of a dataset's annotations.") from error


def folder_names(url: str) -> tuple[str, ...] | None:
    """Return the sorted names in a folder; None for a file, and where nothing is."""
    store = Store.open(url)
    folder = store.local_path("")
    if folder is not None:
        return tuple(store.list()) if folder.is_dir() else None
    return tuple(store.list()) or None


def is_refs_file(name: str) -> bool:
    """Return whether RefCOCO's references have such a name: refs(unc).p, or the same as JSON."""
    return name.startswith("refs") and name.endswith((".p", ".pkl", ".pickle", ".json"))


def is_pickle(head: bytes) -> bool:
    return head.startswith(_PICKLE_STARTS)


def _folder(names: tuple[str, ...]) -> Look:
    if any(name in names for name in VISUAL_GENOME_FILES):
        return Look(format="visual_genome", words="a folder of Visual Genome's files", names=names)
    if any(is_refs_file(name) for name in names):
        return Look(format="refcoco", words="a folder of RefCOCO's files", names=names)
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return Look(format=None, words=f"a folder with {shown or 'nothing in it'}", names=names)


def _file(url: str, head: bytes) -> Look:
    if not head.strip():
        return Look(format=None, words="an empty file")
    for start, words in _PACKED.items():
        if head.startswith(start):
            return Look(format=None, words=f"{words}, which must be unpacked first")
    if is_pickle(head):
        return Look(format="refcoco", words="a pickle, as RefCOCO's references are")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start not in (b"{", b"["):
        return Look(format=None, words=f"no JSON (it begins with {head[:20]!r})")
    with open_url(url) as stream:
        return _list(stream, url) if start == b"[" else _object(stream, url)


def _list(stream: BinaryIO, where: str) -> Look:
    first = next(stream_elements(stream, where), None)
    if isinstance(first, dict):
        part = visual_genome_part(first)
        if part is not None:
            return Look(format="visual_genome", words=f"Visual Genome's {part}.json")
        if "sentences" in first and "ann_id" in first:
            return Look(format="refcoco", words="RefCOCO's references as JSON")
        if "url" in first and "flickr_id" in first:
            return Look(
                format=None, words=f"Visual Genome's {IMAGE_DATA}; name the file of its annotations, or the folder"
            )
        if "category_id" in first and "score" in first:
            return Look(format=None, words="COCO results: detections without images and categories")
        return Look(format=None, words=f"a JSON list of objects with {_shown(first)}")
    return Look(format=None, words="a JSON list" if first is not None else "an empty JSON list")


def visual_genome_part(row: JsonValue) -> str | None:
    """Return which of Visual Genome's files a row comes from: region_descriptions, objects or relationships."""
    if isinstance(row, dict) and ("image_id" in row or "id" in row):
        for key, part in (
            ("regions", "region_descriptions"),
            ("relationships", "relationships"),
            ("objects", "objects"),
        ):
            if isinstance(row.get(key), list):
                return part
    return None


def _object(stream: BinaryIO, where: str) -> Look:
    seen: dict[str, None] = {}
    for member in islice(stream_members(stream, where), _MOST_MEMBERS):
        if member.name in ("images", "annotations"):
            return Look(format="coco", words="a COCO file, or one of its kin")
        if member.name == "refs":
            return Look(format="refcoco", words="RefCOCO's references as JSON")
        seen[member.name] = None
    return Look(format=None, words=f"a JSON object with {_shown(seen)}")


def _shown(keys: dict[str, None] | dict[str, JsonValue]) -> str:
    names = [repr(name[:40]) for name in list(keys)[:5]]
    return f"the keys {', '.join(names)}" if names else "no keys"
