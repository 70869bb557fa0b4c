"""`rlabel evaluate-captions`: what the captions of a run are worth."""

from __future__ import annotations

import click

from rlabel.cli.options import ends_cleanly, print_json


@click.command(context_settings={"max_content_width": 110})
@click.argument("run")
@click.option("--truth", required=True, help="COCO JSON with categories and a human caption for the same regions.")
@click.option(
    "--embedder", help="sentence-transformers folder or id; the bundled MiniLM, which Osprey takes, if left out."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@ends_cleanly
def evaluate_captions(run: str, truth: str, embedder: str | None, as_json: bool) -> None:
    """Compare a run's captions with human ones: CIDEr-D, the true name in them, semantic similarity and IoU; BLEU, ROUGE-L and METEOR
    where pycocoevalcap is installed (METEOR runs in Java).

    \b
    Example:
      rlabel evaluate-captions run/ --truth instances.json
    """
    from rlabel.evaluation.captions import (
        check_captioned,
        read_caption_truth,
        read_captions,
        score_captions,
        scores_to_text,
    )
    from rlabel.vocabulary.embedding import MiniLmEmbedder

    wanted = read_caption_truth(truth)
    captions = read_captions(run)
    check_captioned(captions, wanted, run, truth)
    scores = score_captions(captions, wanted, MiniLmEmbedder(embedder))
    if as_json:
        print_json(scores.to_json())
    else:
        print(scores_to_text({"captions": scores}), end="")
