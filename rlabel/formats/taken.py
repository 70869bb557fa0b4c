"""Regions of any layout as the COCO file that a run reads: COCO itself as it is, anything else converted once and kept beside the run.

What was converted is done anew only where the source, its pictures' folder or the way of reading changed. The same source gives the same
bytes, so that a run goes on from either; another one gives another corpus hash, which the run's manifest refuses. Training and evaluation
take their labels the same way, with the categories.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import rlabel
from rlabel.corpus.labeled import Format
from rlabel.corpus.layouts import Look, look_at
from rlabel.errors import InputError, UsageError
from rlabel.formats.convert import convert
from rlabel.formats.folders import PICTURE_ENDS, files_below, local_source
from rlabel.formats.guess import TITLES, SourceFormat, guess_format, refusal
from rlabel.formats.kept_pictures import Keep
from rlabel.formats.named import keep_named
from rlabel.formats.rows import Boxes
from rlabel.records import JsonObject, JsonValue
from rlabel.run.canonical import canonical_bytes, canonical_sha256, object_of
from rlabel.storage import MissingFile, Store

REGIONS, CONVERTED = "regions.json", "converted.json"
_AS_IT_IS = ("coco", "lvis")
# What training reads itself, as rlabel.corpus.open.FORMATS, and of these the layouts that guess_format does not know.
_TRAINED: tuple[Format, ...] = get_args(Format)
_OF_LANGUAGE: tuple[Format, ...] = ("visual_genome", "refcoco")
# These say where objects are, never what they are.
_NAMELESS = ("masks", "sa1b")
# These hold their pictures, which are written into the pictures' folder.
CONTAINERS = ("huggingface", "webdataset")
_ENDS: dict[SourceFormat, tuple[str, ...]] = {
    "masks": (".png", ".tif", ".tiff", ".bmp"), "sa1b": (".json",), "labelme": (".json",), "yolo": (".txt", ".yaml", ".yml", ".names"),
    "voc": (".xml", ".png", ".txt"), "huggingface": (".parquet",), "webdataset": (".tar", ".tar.gz", ".tgz"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who asks for a source: what a command calls its options, for messages, and whether it needs to know what the regions show."""

    source: str = "--regions"
    format: str = "--regions-format"
    images: str = "--images"
    with_categories: bool = False


TO_LABEL = Asked()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """A source of regions. format: None for what is read as it is: COCO, a URL, or what its reader will refuse in its own words."""

    given: str
    format: SourceFormat | None
    why: str | None

    @property
    def holds_pictures(self) -> bool:
        return self.format in CONTAINERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The COCO file of a source. lines: what a person should know, one a line, notes (what was left out or is doubtful) among them."""

    file: str
    lines: list[str]
    notes: tuple[str, ...] = ()


def recognise(regions: str, format: SourceFormat | Literal["auto"] = "auto", asked: Asked = TO_LABEL) -> Recognised:
    """Return which layout a source of regions has. Raises InputError where none is recognised, UsageError for a URL of one that is not COCO."""
    if format in _AS_IT_IS or ("://" in regions and format == "auto"):
        return Recognised(given=regions, format=None, why=None)
    if format != "auto":
        local_source(regions)
        return Recognised(given=regions, format=format, why=None)
    path = Path(os.path.realpath(regions))
    if not path.is_dir() and not path.is_file():
        return Recognised(given=regions, format=None, why=None)
    try:
        guess = guess_format(path)
    except InputError:
        if path.is_dir():
            raise
        return Recognised(given=regions, format=None, why=None)
    if guess.format in _AS_IT_IS or (guess.format is None and _is_object(path)):
        return Recognised(given=regions, format=None, why=None)
    if guess.format is None:
        raise refusal(path, guess, asked.format)
    return Recognised(given=regions, format=guess.format, why=guess.why)


def recognise_labels(
    labels: str, format: SourceFormat | Format | Literal["auto"], asked: Asked = TO_LABEL
) -> Recognised:
    """Return which layout labels have; its format is None for all that `open_labeled` reads: COCO and its kin, Visual Genome, RefCOCO.

    Raises InputError where COCO (or its kin) is named and something else is there, with the format to name; else as `recognise`.
    """
    as_it_is = Recognised(given=labels, format=None, why=None)
    if format != "auto" and format not in _TRAINED:
        return recognise(labels, cast(SourceFormat, format), asked)
    path = Path(os.path.realpath(labels))
    if "://" in labels or format in _OF_LANGUAGE or not path.exists():
        return as_it_is
    look = _look(labels)
    if look is None or (look.format in _OF_LANGUAGE and (format == "auto" or _is_object(path))):
        return as_it_is
    if look.format in _OF_LANGUAGE:
        raise InputError(
            f"{asked.source} {labels}: expected COCO JSON, but it looks like {look.words}. Read it with {asked.format} {look.format}."
        )
    found = recognise(labels, "auto", asked)
    if found.format is None or format == "auto":
        return found
    raise InputError(
        f"{asked.source} {labels}: expected COCO JSON, got {TITLES[found.format]}, since {found.why}. "
        f"Read it with {asked.format} {found.format}."
    )


def take_regions(
    source: Recognised,
    into: str,
    images: str | None,
    *,
    boxes: Boxes = "xywh",
    keep_pictures: bool = True,
    asked: Asked = TO_LABEL,
) -> Taken:
    """Return the COCO file of a source, converting it where that is not done yet: without categories, or with them and without other regions.

    into: folder or URL for the file, and for what says of which source it is. images: the pictures' folder; of tables and archives, a
    folder that their pictures are written into, unless keep_pictures is False.

    Raises InputError and UsageError as `convert`; UsageError where `into` holds what something else wrote; InputError where categories are
    needed and no region has one.
    """
    if source.format is None:
        return Taken(file=source.given, lines=[])
    if asked.with_categories and source.format in _NAMELESS:
        raise _nameless(source, asked)
    store = Store.open(into)
    folder = None if images is not None and "://" in images else images
    if source.holds_pictures and folder is None and keep_pictures:
        raise UsageError(
            f"{asked.source} {source.given}: it holds its pictures itself. Name a new or empty folder of this machine for them with {asked.images}."
        )
    key = _key(source, folder, boxes, keep_pictures)
    before = _state(store)
    done_before = _done_before(source, store, before, key)
    if done_before is not None:
        return done_before
    if before is None and store.list():
        raise UsageError(
            f"{into}: expected nothing there, or what was converted before, got {', '.join(store.list()[:3])}. Give another --out."
        )
    file = store.join(REGIONS)
    begun = before is not None and before.get("source") == key
    keep: Keep = "no" if not keep_pictures else "again" if begun else "new"
    if source.holds_pictures and keep == "new":
        _check_empty(folder, asked)  # before anything says that the folder is ours
    state: JsonObject = {"source": key, "format": source.format, "state": "begun"}
    store.put(CONVERTED, canonical_bytes(state))
    done = convert(
        source.given,
        file,
        format=source.format,
        images=folder,
        class_free=not asked.with_categories,
        boxes=boxes,
        keep=keep,
        option=asked.format,
        why=source.why,
    )
    if asked.with_categories and not done.written.num_known:
        raise _nameless(source, asked)
    kept = keep_named(store, REGIONS, done.written) if asked.with_categories else done.written
    written: dict[str, JsonValue] = asdict(kept)
    store.put(CONVERTED, canonical_bytes({**state, "state": "done", **written}))
    told = f", since {source.why}; name another with {asked.format}" if source.why is not None else ""
    lines = [f"{source.given} is read as {TITLES[source.format]}{told}", *done.lines]
    if source.holds_pictures and keep_pictures:
        lines.append(f"its pictures are written into {images}")
    if done.written.num_dropped:
        lines.append(f"{done.written.num_dropped} regions have a category, which is left out: labeling looks at none")
    if kept.num_regions < done.written.num_regions:
        lines.append(f"{done.written.num_regions - kept.num_regions} regions have no category and are left out")
    lines.append(f"wrote {file}: {kept.num_images} images, {kept.num_regions} regions")
    return Taken(file=file, lines=lines, notes=tuple(done.lines))


def taken_before(source: Recognised, into: str, images: str | None, *, boxes: Boxes = "xywh") -> Taken | None:
    """Return what `take_regions` left in `into` of the same source; None where there is none. Writes nothing."""
    store = Store.open(into)
    state = _state(store)
    if source.format is None or state is None:
        return None
    folder = None if images is not None and "://" in images else images
    return _done_before(source, store, state, _key(source, folder, boxes, keep_pictures=True))


def _done_before(source: Recognised, store: Store, state: JsonObject | None, key: str) -> Taken | None:
    if source.format is None or state is None or state.get("source") != key or state.get("state") != "done":
        return None
    if not store.exists(REGIONS):
        return None
    file = store.join(REGIONS)
    line = f"{source.given} was converted before, from {TITLES[source.format]}, into {file}, and is as it was"
    return Taken(file=file, lines=[line])


def _nameless(source: Recognised, asked: Asked) -> InputError:
    assert source.format is not None
    return InputError(
        f"{asked.source} {source.given}: expected regions with categories, got {TITLES[source.format]} in which none has one. Give labels that have "
        f"them; or let `rlabel label --regions {source.given}` find them, and give its labels.json once you have reviewed it."
    )


def _look(labels: str) -> Look | None:
    """Return what labels look like; None for a broken file, which its reader tells in its own words."""
    try:
        return look_at(labels)
    except InputError:
        return None


def _is_object(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open("rb") as stream:
        return stream.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def _check_empty(folder: str | None, asked: Asked) -> None:
    if folder is not None and Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise UsageError(
            f"{asked.images} {folder}: expected a new or empty folder, into which the pictures of {asked.source} are written. Name another; or "
            f"give as {asked.source} the regions.json that an earlier run converted them into."
        )


def _state(store: Store) -> JsonObject | None:
    """Return what an earlier conversion wrote of itself; None where there was none."""
    try:
        return object_of(json.loads(store.read(CONVERTED)))
    except (MissingFile, ValueError):
        return None


def _key(source: Recognised, images: str | None, boxes: Boxes, keep_pictures: bool) -> str:
    """Return a digest of all that decides a conversion: names, sizes and times of its files, not what is in them."""
    assert source.format is not None
    root = local_source(source.given)
    digest = hashlib.sha256()
    for line in _stats(root if source.format != "panoptic" else root.parent, _ENDS.get(source.format, ("",))):
        digest.update(line)
    if not source.holds_pictures and images is not None and Path(images).is_dir():
        digest.update(b"images\n")
        for line in _stats(Path(os.path.realpath(images)), PICTURE_ENDS):
            digest.update(line)
    pictures = os.path.realpath(images) if source.holds_pictures and images is not None else None
    how: JsonValue = [rlabel.__version__, source.format, boxes, keep_pictures, pictures, root.name, digest.hexdigest()]
    return canonical_sha256(how)


def _stats(root: Path, ends: tuple[str, ...]) -> Iterator[bytes]:
    names = files_below(root, ends) if root.is_dir() else iter([""])
    for name in names:
        stat = os.stat(root / name if name else root)
        yield f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
