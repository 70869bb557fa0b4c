"""`rlabel report`: a page to look at, made from a run's directory at any time."""

from __future__ import annotations

import sys
import time

import click

from rlabel.cli.options import ends_cleanly, print_json


class _Thumbnails(click.ParamType):
    """A number, "all" (None) or "none" (0)."""

    name = "thumbnails"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        text = str(value)
        if text in ("all", "none"):
            return None if text == "all" else 0
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            self.fail(f"expected a whole number, all or none, got {text[:40]!r}.", param, ctx)
        return int(text)


@click.command(context_settings={"max_content_width": 110})
@click.argument("run")
@click.option(
    "--images", help="Folder of the pictures that were labeled; without it the page has words and numbers only."
)
@click.option("--truth", help="COCO JSON with categories for the same regions: accuracy, curves, right and wrong.")
@click.option("--out", help="Folder for report.html and what belongs to it; the run's own if left out.")
@click.option(
    "--max-regions",
    type=int,
    default=100_000,
    show_default=True,
    help="Regions in the gallery; of more, the most doubtful.",
)
@click.option(
    "--thumbnails",
    type=_Thumbnails(),
    default="10000",
    show_default=True,
    metavar="N|all|none",
    help="How many of these have a thumbnail, the most doubtful first; 10,000 take 50 MB.",
)
@click.option(
    "--sheet", help="Also write a contact sheet as PNG to this path, for those without a browser; needs --images."
)
@click.option("--max-images", type=click.IntRange(1, 200), default=12, show_default=True, help="Pictures on the sheet.")
@ends_cleanly
def report(
    run: str,
    images: str | None,
    truth: str | None,
    out: str | None,
    max_regions: int,
    thumbnails: int | None,
    sheet: str | None,
    max_images: int,
) -> None:
    """Write report.html: numbers, curves and a gallery of all regions to filter, sort and review. Opens from disk, offline.

    \b
    Example:
      rlabel report run/ --images photos/
      rlabel report run/ --images photos/ --truth instances.json --out page/ --sheet sheet.png
    """
    from rlabel.cli.live import counted_live
    from rlabel.errors import InputError, UsageError
    from rlabel.report.page import write_report
    from rlabel.run.directory import RunDirectory
    from rlabel.storage import Store, read_url, split_url

    if sheet is not None and images is None:
        raise UsageError("--sheet: expected --images beside it, the folder of the pictures to draw. Add it.")
    task = RunDirectory.open(Store.open(run)).manifest.task
    if task != "classify":
        raise UsageError(f"{run}: expected a run of --task classify, whose labels the page shows, got one of {task}.")
    folder = None if images is None else Store.open(images).local_path("")
    if folder is not None and not folder.is_dir():
        raise InputError(f"--images {images}: no such folder. Give the folder that was labeled.")
    started_s = time.monotonic()
    with counted_live("regions drawn") as beat:
        written = write_report(
            run,
            images,
            truth,
            None,
            max_images,
            out_url=out,
            max_regions=max_regions,
            max_thumbs=thumbnails,
            beat=beat,
        )
    for path in written:
        print(f"rlabel: wrote {path}", file=sys.stderr)
    if images is not None and len(written) == 1:
        print(f"rlabel: no picture of the run could be opened in {images}, so the page has none", file=sys.stderr)
    if sheet is not None and images is not None:
        if len(written) == 1:
            raise InputError(
                f"{images}: no picture of {run} could be opened, so there is no sheet. {written[0]} says why."
            )
        store, name = split_url(sheet)
        store.put(name, read_url(written[1]))
        print(f"rlabel: wrote {store.join(name)}", file=sys.stderr)
    print_json({"run": run, "page": written[0], "seconds": round(time.monotonic() - started_s, 1)})
