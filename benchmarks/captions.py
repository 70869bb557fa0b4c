"""Captions of a run beside the constant template that only knows the predicted name: "A NAME.", and the name alone.

    rlabel label --task caption ... --out captions
    rlabel label ... --out labels
    python benchmarks/captions.py --captions captions --labels labels --truth instances.json [--provenance FILE]

The last row is what people wrote, against itself: it shows how often they say the name.
With provenance, regions of unseen pictures are shown apart.
"""

from __future__ import annotations

import click

from rlabel.evaluation.captions import (
    CaptionTruth,
    read_caption_truth,
    read_captions,
    score_captions,
    scores_to_text,
    template_captions,
)
from rlabel.evaluation.reading import read_provenance
from rlabel.vocabulary.embedding import MiniLmEmbedder


@click.command()
@click.option("--captions")
@click.option("--labels", required=True)
@click.option("--truth", required=True)
@click.option("--provenance")
def main(captions: str | None, labels: str, truth: str, provenance: str | None) -> None:
    """CIDEr-D, the true name, similarity and IoU: captions, template, name alone."""
    wanted = {"all regions": read_caption_truth(truth)}
    if provenance is not None:
        wanted["regions of unseen pictures"] = unseen(wanted["all regions"], provenance)
    ways = {"captions": read_captions(captions)} if captions is not None else {}
    ways['template "A NAME."'] = template_captions(labels)
    ways["the name alone"] = template_captions(labels, "{name}")
    # The ceiling: people do not always say the name either.
    ways["people's own"] = {(region.image_id, region.region_id): region.caption for region in wanted["all regions"]}
    embedder = MiniLmEmbedder()
    for title, regions in wanted.items():
        print(
            f"{title}\n\n{scores_to_text({name: score_captions(said, regions, embedder) for name, said in ways.items()})}"
        )


def unseen(truth: list[CaptionTruth], provenance: str) -> list[CaptionTruth]:
    origins = read_provenance(provenance)
    return [region for region in truth if region.region_id in origins and not origins[region.region_id].seen_in_train]


if __name__ == "__main__":
    main()
