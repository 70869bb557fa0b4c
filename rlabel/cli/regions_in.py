"""--regions of any layout, as the COCO file that the rest of a command reads."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from rlabel.cli.dry_run import Measure
from rlabel.config import LabelSettings
from rlabel.errors import UsageError
from rlabel.formats.taken import recognise, take_regions, taken_before
from rlabel.run.directory import MANIFEST
from rlabel.storage import Store


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
    if not dry_run:
        taken = take_regions(source, into, settings.images, boxes=settings.regions_boxes)
        yield _told(settings, taken.file, taken.lines)
        return
    before = taken_before(source, into, settings.images, boxes=settings.regions_boxes)
    if before is not None:
        yield _told(settings, before.file, before.lines)
        return
    if source.holds_pictures and measure is not None:
        raise UsageError(
            f"--measure: the pictures of {given} are still in it. Run `rlabel convert` first, then give its regions.json with --regions."
        )
    with tempfile.TemporaryDirectory(prefix=".rlabel-tmp-") as folder:
        taken = take_regions(source, folder, settings.images, boxes=settings.regions_boxes, keep_pictures=False)
        yield _told(settings, taken.file, taken.lines[:-1])


def _told(settings: LabelSettings, file: str, lines: list[str]) -> LabelSettings:
    for line in lines:
        print(f"rlabel: regions: {line}", file=sys.stderr, flush=True)
    return settings.model_copy(update={"regions": file, "regions_format": "coco"})
