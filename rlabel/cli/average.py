"""`rlabel average`: one labeler out of several that were trained from the same start."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rlabel.cli.options import ends_cleanly
from rlabel.errors import UsageError


@click.command(context_settings={"max_content_width": 110})
@click.argument("models", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Model folder to write.")
@click.option("--save-dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32")
@ends_cleanly
def average(models: tuple[str, ...], out: str, save_dtype: str) -> None:
    """Write the mean of the weights of several labelers that were trained from one start with different seeds.

    \b
    Example:
      rlabel train --model fresh/ --recipe mini --stages align --seed 0 ... --out a/
      rlabel train --model fresh/ --recipe mini --stages align --seed 1 ... --out b/
      rlabel average a/ b/ --out ab/
    """
    if len(models) < 2:
        raise UsageError(f"MODELS: expected two model folders or more, got {len(models)}. Name each of them.")
    if Path(out).exists() and any(Path(out).iterdir()):
        raise UsageError(f"--out {out}: expected a new or empty folder, got one with files. Give another name.")
    from rlabel.regiongpt.averaging import write_average
    from rlabel.run.job import resolve

    write_average([str(resolve(model)) for model in models], out, save_dtype)
    print(f"rlabel: wrote {out}, the mean of {len(models)} models", file=sys.stderr)
