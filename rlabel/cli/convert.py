"""`rlabel convert`: other layouts of regions as the COCO file that the other commands read."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from rlabel.cli.options import ends_cleanly, print_json

if TYPE_CHECKING:
    from rlabel.formats.guess import SourceFormat
    from rlabel.formats.rows import Boxes

# As rlabel.formats.guess.SOURCE_FORMATS, written out so that help loads nothing; a test compares them.
FORMATS = (
    "coco", "lvis", "panoptic", "masks", "sa1b", "labelme", "yolo", "voc", "labelstudio", "cvat", "huggingface", "webdataset",
)  # fmt: skip


@click.command(context_settings={"max_content_width": 110})
@click.argument("source", metavar="SRC")
@click.option("--out", required=True, help="COCO JSON to write.")
@click.option(
    "--from", "format", type=click.Choice(["auto", *FORMATS]), default="auto", show_default=True, help="Layout of SRC."
)
@click.option(
    "--images", help="Folder of the pictures; for huggingface and webdataset a new folder to write them into."
)
@click.option("--class-free", is_flag=True, help="Leave out what SRC calls its regions.")
@click.option(
    "--boxes",
    type=click.Choice(["xywh", "xyxy"]),
    default="xywh",
    show_default=True,
    help="How huggingface and webdataset mean four numbers: corner and sides, or two corners.",
)
@ends_cleanly
def convert(
    source: str, out: str, format: SourceFormat | Literal["auto"], images: str | None, class_free: bool, boxes: Boxes
) -> None:
    """Turn masks or boxes of another layout into the COCO file that label, train and evaluate read.

    \b
    Example:
      rlabel convert yolo-dataset/ --out regions.json
      rlabel label --images yolo-dataset/images --regions regions.json --vocabulary names.txt --out run/

    Known categories stay with their regions, for training and evaluation; labeling never looks at them.
    """
    from rlabel.formats.convert import convert as run_conversion

    done = run_conversion(source, out, format=format, images=images, class_free=class_free, boxes=boxes)
    if done.why is not None:
        print(f"rlabel: {source} is read as {done.format}, since {done.why}; name another with --from", file=sys.stderr)
    for line in done.lines:
        print(f"rlabel: {line}", file=sys.stderr)
    written = done.written
    known = f", {written.num_known} of them with one of {written.num_categories} categories"
    print(
        f"rlabel: wrote {out}: {written.num_images} images, {written.num_regions} regions{known if written.num_categories else ''}",
        file=sys.stderr,
    )
    if done.pictures is not None:
        below = Path(done.pictures).is_relative_to(Path.cwd())
        pictures = os.path.relpath(done.pictures) if below else done.pictures
        next_call = ["rlabel", "label", "--images", pictures, "--regions", out]
        print(f"rlabel: next: {shlex.join(next_call)} --vocabulary names.txt --out run/", file=sys.stderr)
    print_json(
        {
            "out": out,
            "format": done.format,
            "guessed_by": done.why,
            "pictures": done.pictures,
            **asdict(written),
            "notes": done.notes,
        }
    )
