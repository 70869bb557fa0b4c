"""`rlabel vocabulary`: what is wrong with a vocabulary, before it is used."""

from __future__ import annotations

import sys
from itertools import groupby

import click

from rlabel.cli.numbers import FiniteRange
from rlabel.cli.options import ends_cleanly, print_json

_NEAR = 0.9
_SHOWN_OF_A_KIND = 20
_UNUSABLE = 2


@click.group(context_settings={"max_content_width": 110})
def vocabulary() -> None:
    """Look at vocabularies before they are used."""


@vocabulary.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every problem instead of a table.")
@click.option("--keep-zero-ids", is_flag=True, help="Accept id 0, as `rlabel label --keep-zero-ids` does.")
@click.option(
    "--near",
    type=FiniteRange(-1, 1),
    help=f"Also compare the names' embeddings, and list pairs of at least this cosine. [with --embedder: {_NEAR}]",
)
@click.option("--embedder", help="sentence-transformers folder or id for that; the bundled MiniLM if left out.")
@click.option("--tree", metavar="FILE", help="V3Det's category tree, checked with it: the parents of its categories.")
@ends_cleanly
def check(
    file: str, as_json: bool, keep_zero_ids: bool, near: float | None, embedder: str | None, tree: str | None
) -> None:
    """List all that is wrong with a vocabulary: names that collide, ids, names that no answer reaches.

    Ends with 0 where the file can be used, notes or not, and with 2 where `rlabel label` would refuse it.

    \b
    Example:
      rlabel vocabulary check names.json --near 0.9
      rlabel vocabulary check v3det_2023_v1_val.json --tree v3det_2023_v1_category_tree.json
    """
    run_check(file, as_json, keep_zero_ids, near, embedder, tree)


def run_check(
    file: str,
    as_json: bool,
    keep_zero_ids: bool,
    near: float | None,
    embedder: str | None,
    tree: str | None = None,
) -> None:
    """Check, print, and end with 2 where the file is unusable."""
    from rlabel.vocabulary.check import check_vocabulary
    from rlabel.vocabulary.embedding import MiniLmEmbedder

    model = MiniLmEmbedder(embedder) if near is not None or embedder is not None else None
    bound = _NEAR if near is None else near
    found = check_vocabulary(file, keep_zero_ids=keep_zero_ids, embedder=model, near=bound, tree=tree)
    if as_json:
        print_json(found.to_json())
    else:
        parents = f", {found.num_parents} with a parent" if found.num_parents else ""
        print(f"{file}: {found.num_categories} categories, {found.num_synonyms} synonyms{parents}")
        for (fatal, kind), group in groupby(found.problems, key=lambda problem: (problem.fatal, problem.kind)):
            messages = [problem.message for problem in group]
            print(f"\n{'error' if fatal else 'note'}: {kind} ({len(messages)})")
            for message in messages[:_SHOWN_OF_A_KIND]:
                print(f"  {message}")
            if len(messages) > _SHOWN_OF_A_KIND:
                print(f"  and {len(messages) - _SHOWN_OF_A_KIND} more; --json lists them all")
        num_fatal = sum(problem.fatal for problem in found.problems)
        num_notes = len(found.problems) - num_fatal
        verdict = "usable" if found.usable else "not usable"
        print(f"\n{verdict}: {num_fatal} errors, {num_notes} notes", flush=True)
    if not found.usable:
        sys.exit(_UNUSABLE)
