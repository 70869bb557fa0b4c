"""`rlabel validate`: what is wrong with a corpus, before anything is spent on it."""

from __future__ import annotations

import sys

import click

from rlabel.cli.options import ends_cleanly


@click.command()
@click.option("--images", required=True, help="Folder of the pictures.")
@click.option("--regions", required=True, help="COCO JSON with masks or boxes.")
@click.option("--vocabulary", help="Vocabulary file to check as well.")
@click.option("--pixels/--no-pixels", default=True, help="Open every picture and draw every mask (slow, thorough).")
@ends_cleanly
def validate(images: str, regions: str, vocabulary: str | None, pixels: bool) -> None:
    """List every problem of a corpus, one a line; exit code 1 if any is an error.

    \b
    Example:
      rlabel validate --images photos/ --regions masks.json
    """
    from rlabel.corpus.validate import validate_corpus

    if vocabulary is not None:
        from rlabel.vocabulary.vocabulary import load_vocabulary

        for note in load_vocabulary(vocabulary).notes:
            print(f"warning  {vocabulary}: {note}")
    errors = warnings = 0
    for problem in validate_corpus(images, regions, pixels):
        print(f"{problem.severity:8} {problem.where}: {problem.what}")
        errors += problem.severity == "error"
        warnings += problem.severity == "warning"
    print(f"rlabel: {regions}: {errors} errors, {warnings} warnings", file=sys.stderr)
    if errors:
        sys.exit(1)
