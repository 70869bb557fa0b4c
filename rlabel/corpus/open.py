"""Opens a labeled dataset of any layout we read, after a look at what is there."""

from __future__ import annotations

import os
from typing import Literal, get_args

from rlabel.corpus.coco import LabeledCorpus, read_labeled
from rlabel.corpus.coco_source import CocoSource
from rlabel.corpus.labeled import Format, LabeledSource
from rlabel.corpus.layouts import Look, look_at
from rlabel.corpus.limits import Limits
from rlabel.corpus.lvis import IMAGE_KEYS, lvis_source
from rlabel.corpus.refcoco import open_refcoco
from rlabel.corpus.v3det import CATEGORY_KEY, v3det_source
from rlabel.corpus.visual_genome import open_visual_genome
from rlabel.errors import InputError, UsageError

FORMATS: tuple[Format, ...] = get_args(Format)
_TITLES: dict[Format, str] = {
    "coco": "a COCO file",
    "lvis": "an LVIS file",
    "v3det": "a V3Det file",
    "visual_genome": "Visual Genome's files",
    "refcoco": "RefCOCO's references",
}
# The layout that `look_at` can tell from outside.
_KIN: dict[Format, Format] = {"lvis": "coco", "v3det": "coco"}


def open_labeled(
    format: Format | Literal["auto"],
    annotations_url: str | os.PathLike[str],
    split: str | None = None,
    *,
    spool_dir: str | None = None,
    limits: Limits | None = None,
) -> LabeledSource:
    """Return a labeled dataset, read once and checked, in flat memory.

    format: its layout, or "auto" to tell it from the file; `guess` of the result then says why. annotations_url: a JSON
    file; for Visual Genome its folder, or one file of it; for RefCOCO the references or their folder. split: RefCOCO
    only, and needed there. spool_dir: where the temporary file lies, about as large as the JSON; by default the system's
    temporary folder.

    Raises InputError, naming file, record and remedy, for what no training could use: another layout than told, a category
    or split that does not exist, no usable region at all. UsageError for a wrong call. Single bad rows are in `problems`.
    """
    where = os.fspath(annotations_url)
    if format != "auto" and format not in FORMATS:
        raise UsageError(f"dataset format {format!r}: expected one of auto, {', '.join(FORMATS)}.")
    look = look_at(where)
    told = _checked(format, look, where)
    if split is not None and told != "refcoco":
        raise UsageError(
            f"{where}: a split ({split!r}) is only read from RefCOCO's references, and this is {look.words}. Leave it out, and name "
            "the file of the split."
        )
    guess = f"{where} looks like {look.words}" if format == "auto" else None
    if told == "visual_genome":
        return open_visual_genome(where, spool_dir, limits, guess)
    if told == "refcoco":
        return open_refcoco(where, split, spool_dir, limits, guess)
    labeled = read_labeled(where, spool_dir)
    if format == "auto":
        told, guess = _told_by_rows(labeled, where)
    if told == "lvis":
        return lvis_source(labeled, where, guess)
    if told == "v3det":
        return v3det_source(labeled, where, guess)
    return CocoSource(labeled, where, "coco", guess)


def _checked(format: Format | Literal["auto"], look: Look, where: str) -> Format:
    """Return the layout to read by, which for "auto" is that of the look."""
    if format == "auto":
        if look.format is None:
            raise InputError(
                f"{where}: expected {', '.join(list(_TITLES.values())[:-1])} or {_TITLES['refcoco']}, got {look.words}. Check the path."
            )
        return look.format
    if look.format != _KIN.get(format, format):
        remedy = (
            "Check the path" if look.format is None else f"Read it with the format {look.format}, or check the path"
        )
        raise InputError(f"{where}: expected {_TITLES[format]}, but it looks like {look.words}. {remedy}.")
    return format


def _told_by_rows(labeled: LabeledCorpus, where: str) -> tuple[Format, str]:
    """Return which of COCO's kin a file is, and why."""
    first = next(labeled.images(limit=1), None)
    if first is not None and any(key in first.record.row for key in IMAGE_KEYS):
        return "lvis", f"{where} looks like an LVIS file: its images have {IMAGE_KEYS[0]} or {IMAGE_KEYS[1]}"
    rows = labeled.categories if isinstance(labeled.categories, list) else []
    if any(isinstance(row, dict) and CATEGORY_KEY in row for row in rows):
        return "v3det", f"{where} looks like a V3Det file: its categories have {CATEGORY_KEY}"
    return "coco", f"{where} looks like a COCO file: it has images and annotations, and nothing of LVIS or V3Det"
