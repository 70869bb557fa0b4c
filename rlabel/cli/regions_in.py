"""--regions, and the labels of training and evaluation, of any layout, as the COCO file that the rest of a command reads."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

from rlabel.cli.dry_run import Measure
from rlabel.config import DatasetFormat, LabelSettings
from rlabel.corpus.labeled import Format
from rlabel.errors import InputError, UsageError
from rlabel.formats.guess import SourceFormat
from rlabel.formats.rows import Boxes
from rlabel.formats.taken import TO_LABEL, Asked, Recognised, recognise, recognise_labels, take_regions, taken_before
from rlabel.run.directory import MANIFEST
from rlabel.storage import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Labels as training and evaluation read them. format: for `open_labeled`, of the file. was_converted: from another layout."""

    file: str
    format: Format | Literal["auto"]
    was_converted: bool


@contextmanager
def regions_as_coco(settings: LabelSettings, *, dry_run: bool, measure: Measure | None) -> Iterator[LabelSettings]:
    """Give the settings with --regions as a COCO file: as it is, or converted into OUT-regions/; of a dry run, into a temporary folder.

    Raises InputError or UsageError for what cannot be read.
    """
    given = settings.regions
    source = None if given is None else recognise(given, settings.regions_format)
    if source is None or source.format is None:
        yield settings
        return
    into = settings.proposals_out
    if Store.open(into).exists(MANIFEST):
        raise UsageError(f"--out {settings.out}: {into} holds regions that --propose found. Give another --out.")
    needs_pictures = "--measure" if measure is not None else None
    with _taken(
        source, into, settings.images, settings.regions_boxes, TO_LABEL, dry_run=dry_run, needs_pictures=needs_pictures
    ) as file:
        yield settings.model_copy(update={"regions": file, "regions_format": "coco"})


@contextmanager
def labels_as_coco(
    given: str,
    format: DatasetFormat,
    images: str | None,
    into: str,
    asked: Asked,
    *,
    boxes: Boxes = "xywh",
    dry_run: bool = False,
) -> Iterator[Labels]:
    """Give labels as a file that `open_labeled` reads: as they are, or converted into a folder; of a dry run, into a temporary one.

    Raises InputError or UsageError for what cannot be read, has no category, or has another layout than told.
    """
    source = recognise_labels(given, format, asked)
    if source.format is None:
        yield Labels(file=given, format=cast(Literal[Format, "auto"], format), was_converted=False)
        return
    with _taken(source, into, images, boxes, asked, dry_run=dry_run, needs_pictures="--dry-run") as file:
        yield Labels(file=file, format="coco", was_converted=True)


@contextmanager
def truth_as_coco(
    given: str, format: SourceFormat | Literal["auto"], images: str | None, boxes: Boxes = "xywh"
) -> Iterator[Labels]:
    """Give a truth as a COCO file: as it is, or converted, with its categories, into a temporary file; the pictures in tables and archives stay there.

    Raises InputError or UsageError for what cannot be read or has no category.
    """
    asked = Asked(source="--truth", format="--truth-format", with_categories=True)
    source = recognise(given, format, asked) if format == "auto" else recognise_labels(given, format, asked)
    if source.format is None:
        yield Labels(file=given, format="coco", was_converted=False)
        return
    with tempfile.TemporaryDirectory(prefix=".rlabel-tmp-") as folder:
        taken = take_regions(source, folder, images, boxes=boxes, keep_pictures=False, asked=asked)
        _tell(taken.lines[:-1], asked)
        try:
            yield Labels(file=taken.file, format="coco", was_converted=True)
        except InputError as error:  # that speaks of a file which is gone then
            raise InputError(str(error).replace(taken.file, given)) from error


@contextmanager
def _taken(
    source: Recognised,
    into: str,
    images: str | None,
    boxes: Boxes,
    asked: Asked,
    *,
    dry_run: bool,
    needs_pictures: str | None,
) -> Iterator[str]:
    """Give the COCO file of a source. needs_pictures: the option of a dry run that reads pictures too, which it does not write."""
    if not dry_run:
        taken = take_regions(source, into, images, boxes=boxes, asked=asked)
        _tell(taken.lines, asked)
        yield taken.file
        return
    before = taken_before(source, into, images, boxes=boxes)
    if before is not None:
        _tell(before.lines, asked)
        yield before.file
        return
    if source.holds_pictures and needs_pictures is not None:
        raise UsageError(
            f"{needs_pictures}: the pictures of {source.given} are still in it. Run `rlabel convert` first, then give its regions.json with "
            f"{asked.source}."
        )
    with tempfile.TemporaryDirectory(prefix=".rlabel-tmp-") as folder:
        taken = take_regions(source, folder, images, boxes=boxes, keep_pictures=False, asked=asked)
        _tell(taken.lines[:-1], asked)
        yield taken.file


def _tell(lines: list[str], asked: Asked) -> None:
    for line in lines:
        print(f"rlabel: {asked.source.removeprefix('--')}: {line}", file=sys.stderr, flush=True)
