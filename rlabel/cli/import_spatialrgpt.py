"""`rlabel import-spatialrgpt`: a SpatialRGPT checkpoint as a model folder of rlabel."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rlabel.cli.options import ends_cleanly, print_json
from rlabel.errors import UsageError

if TYPE_CHECKING:
    from rlabel.regiongpt.spatialrgpt import ImportReport


@click.command("import-spatialrgpt", context_settings={"max_content_width": 110})
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Model folder to write.")
@click.option("--vision", help="Folder or hub id of the vision tower [default: DIR/vision_tower].")
@click.option("--llm", help="Folder or hub id of the language model [default: DIR/llm].")
@click.option("--dry-run", is_flag=True, help="Only say what would be taken and left; no weights are read.")
@ends_cleanly
def import_spatialrgpt(directory: str, out: str, vision: str | None, llm: str | None, dry_run: bool) -> None:
    """Convert a SpatialRGPT checkpoint: its refinement and connectors exactly, without its depth branch.

    \b
    Example:
      rlabel import-spatialrgpt SpatialRGPT-VILA1.5-8B/ --out spatialrgpt/
    """
    from pathlib import Path

    from rlabel.regiongpt.assembly import save
    from rlabel.regiongpt.spatialrgpt import check_nothing_missing, plan_import
    from rlabel.regiongpt.spatialrgpt import import_spatialrgpt as convert

    if Path(out).exists() and any(Path(out).iterdir()):
        raise UsageError(f"--out {out}: expected a new or empty folder, got one with files. Give another name.")
    if dry_run:
        report = plan_import(directory, vision, llm)
        _tell(report)
        print_json(asdict(report))
        check_nothing_missing(report, directory)
        print(f"rlabel: nothing written; without --dry-run it goes to {out}", file=sys.stderr)
        return
    model, processor, report = convert(directory, vision, llm)
    save(model, processor, out)
    _tell(report)
    print_json(asdict(report))
    print(f"rlabel: wrote {out}; use it: rlabel label --model {out} ...", file=sys.stderr)


def _tell(report: ImportReport) -> None:
    """Say on stderr what was taken and what was not."""
    lines = [f"taken: {weight.name} {weight.shape} as {weight.target}" for weight in report.used]
    lines += [f"taken: vision tower from {report.vision}"] if report.vision else []
    lines += [f"taken: language model from {report.llm}"] if report.llm else []
    lines += [f"not used: {weight.name} {weight.shape}: {weight.reason}" for weight in report.unused]
    lines += [f"not used: {file.name}: {file.reason}" for file in report.unused_files]
    lines += [f"missing: {name}" for name in report.missing]
    lines += [f"differs: {sentence}" for sentence in report.differences]
    for line in lines:
        print(f"rlabel: {line}", file=sys.stderr)
