"""`rlabel export`: a run's labels in other layouts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from rlabel.cli.numbers import FiniteRange
from rlabel.cli.options import ends_cleanly, print_json

if TYPE_CHECKING:
    from rlabel.formats.export import TargetFormat

# As rlabel.formats.export.TARGET_FORMATS, written out so that help loads nothing; a test compares them.
_FORMATS = ("coco-results", "lvis", "yolo", "voc", "labelstudio", "cvat", "fiftyone", "huggingface", "parquet", "csv")


@click.command(context_settings={"max_content_width": 110})
@click.argument("source", metavar="RUN")
@click.option("--to", "format", type=click.Choice(_FORMATS), required=True, help="Layout to write.")
@click.option("--out", required=True, help="New or empty folder to write into.")
@click.option("--images", help="Folder of the pictures, to copy (yolo, voc, fiftyone) or to embed (huggingface).")
@click.option("--boxes-only", is_flag=True, help="Leave masks out.")
@click.option(
    "--tolerance",
    type=FiniteRange(0.0, 100.0),
    default=0.0,
    show_default=True,
    help="How far polygons may leave a mask's edge, in pixels; 0 keeps masks exactly.",
)
@click.option(
    "--image-prefix",
    default="/data/local-files/?d=",
    show_default=True,
    help="What Label Studio finds the pictures under.",
)
@ends_cleanly
def export(
    source: str,
    format: TargetFormat,
    out: str,
    images: str | None,
    boxes_only: bool,
    tolerance: float,
    image_prefix: str,
) -> None:
    """Write a run's labels, or a COCO file, for another tool; labels.json in the run stays as it is.

    \b
    Example:
      rlabel export run/ --to yolo --images photos/ --out yolo-dataset/

    The last lines say what the layout cannot hold.
    """
    from rlabel.formats.export import export as run_export

    done = run_export(
        source, out, to=format, images=images, boxes_only=boxes_only, tolerance_px=tolerance, image_prefix=image_prefix
    )
    print(
        f"rlabel: wrote {done.num_images} images and {done.num_labels} labels as {format} into {out}", file=sys.stderr
    )
    for line in done.lines:
        print(f"rlabel: {line}", file=sys.stderr)
    print_json(
        {
            "out": out,
            "format": format,
            "files": done.files,
            "num_images": done.num_images,
            "num_labels": done.num_labels,
            "losses": done.losses,
        }
    )
