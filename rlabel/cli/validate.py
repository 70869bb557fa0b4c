"""`rlabel validate`: what is wrong with a corpus, before anything is spent on it."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

import click

from rlabel.cli.convert import FORMATS
from rlabel.cli.options import ends_cleanly

if TYPE_CHECKING:
    from rlabel.formats.guess import SourceFormat
    from rlabel.formats.rows import Boxes


@click.command()
@click.option("--images", help="Folder of the pictures; not needed where parquet or tar hold them.")
@click.option(
    "--regions",
    required=True,
    help="Masks or boxes: COCO JSON, or a file or folder of another layout that label reads.",
)
@click.option(
    "--regions-format",
    type=click.Choice(["auto", *FORMATS]),
    default="auto",
    show_default=True,
    help="Layout of --regions.",
)
@click.option(
    "--regions-boxes",
    type=click.Choice(["xywh", "xyxy"]),
    default="xywh",
    show_default=True,
    help="Of --regions in parquet or tar: how it means four numbers.",
)
@click.option("--vocabulary", help="Vocabulary file to check as well.")
@click.option("--pixels/--no-pixels", default=True, help="Open every picture and draw every mask (slow, thorough).")
@ends_cleanly
def validate(
    images: str | None,
    regions: str,
    regions_format: SourceFormat | Literal["auto"],
    regions_boxes: Boxes,
    vocabulary: str | None,
    pixels: bool,
) -> None:
    """List every problem of a corpus, one a line; exit code 1 if any is an error.

    \b
    Example:
      rlabel validate --images photos/ --regions masks.json
      rlabel validate --images yolo/images/ --regions yolo/

    Of another layout than COCO, rows are those of the file that it is converted into; what could not be converted comes before them.
    """
    from rlabel.corpus.validate import validate_corpus
    from rlabel.errors import UsageError
    from rlabel.formats.taken import recognise, take_regions

    if vocabulary is not None:
        from rlabel.vocabulary.vocabulary import load_vocabulary

        for note in load_vocabulary(vocabulary).notes:
            print(f"warning  {vocabulary}: {note}")
    errors = warnings = 0
    with ExitStack() as stack:
        source = recognise(regions, regions_format)
        file, pictures = regions, images
        if source.format is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".rlabel-tmp-"))
            if source.holds_pictures:
                pictures = f"{folder}/images"
            taken = take_regions(source, f"{folder}/regions", pictures, boxes=regions_boxes, keep_pictures=pixels)
            file = taken.file
            for line in taken.lines[:1]:
                print(f"rlabel: regions: {line}", file=sys.stderr)
            for line in taken.notes:
                warnings += 1
                print(f"warning  {regions}: {line}")
        if pictures is None:
            raise UsageError("--images: missing. Give the folder of the pictures.")
        for problem in validate_corpus(pictures, file, pixels):
            print(f"{problem.severity:8} {problem.where}: {problem.what}")
            errors += problem.severity == "error"
            warnings += problem.severity == "warning"
    print(f"rlabel: {regions}: {errors} errors, {warnings} warnings", file=sys.stderr)
    if errors:
        sys.exit(1)
