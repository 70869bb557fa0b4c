"""Measures snapping: synonyms left out one at a time, and human captions with a known category.

    python benchmarks/snapping.py VOCABULARY.json [...] [--captions INSTANCES.json]

For each vocabulary, every synonym is taken out in turn and snapped: by the embedding alone, and by the whole cascade.
For the captions, the first vocabulary is the target and an annotation's `category_id` the truth. Prints tables in
Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlabel.records import Snap
from rlabel.vocabulary.embedding import MiniLmEmbedder, Rows, TextEmbedder
from rlabel.vocabulary.prototypes import Prototypes, query_text
from rlabel.vocabulary.snapping import DEFAULT_MARGIN, DEFAULT_THRESHOLD, Snapper
from rlabel.vocabulary.vocabulary import Vocabulary, load_vocabulary
from rlabel.vocabulary.words import fold

STEPS = ("exact", "synonym", "inflection", "phrase", "embedding")


class RememberingEmbedder:
    """Embeds each text once, alone: the vocabularies below differ in one synonym only."""

    def __init__(self, inner: TextEmbedder) -> None:
        self._inner = inner
        self._row_of: dict[str, Rows] = {}

    def embed(self, texts: Sequence[str]) -> Rows:
        new = sorted(set(texts) - self._row_of.keys())
        self._row_of.update(zip(new, self._inner.embed(new), strict=True))
        return np.stack([self._row_of[text] for text in texts])


def left_out(vocabulary: Vocabulary) -> list[tuple[int, str, Vocabulary]]:
    """Return (category id, synonym, the vocabulary without it) for each synonym that does not only repeat the name."""
    cases = []
    for index, category in enumerate(vocabulary.categories):
        for synonym in dict.fromkeys(category.synonyms):
            if fold(synonym) != fold(category.name):
                rest = tuple(other for other in category.synonyms if fold(other) != fold(synonym))
                categories = list(vocabulary.categories)
                categories[index] = replace(category, synonyms=rest)
                cases.append((category.category_id, synonym, replace(vocabulary, categories=tuple(categories))))
    return cases


def row(label: str, snaps: Sequence[Snap], truth: Sequence[int]) -> str:
    """Return a table row: how many, right of all, coverage, precision, and right/decided by each step."""
    decided = [(snap, snap.category_id == category_id) for snap, category_id in zip(snaps, truth, strict=True)]
    labeled = [(snap, right) for snap, right in decided if snap.category_id is not None]
    num_right = sum(right for _, right in labeled)
    tried = Counter(str(snap.decided_by) for snap, _ in labeled)
    correct = Counter(str(snap.decided_by) for snap, right in labeled if right)
    steps = ", ".join(f"{step} {correct[step]}/{tried[step]}" for step in STEPS if tried[step])
    share = [
        100.0 * num_right / len(snaps),
        100.0 * len(labeled) / len(snaps),
        100.0 * num_right / max(len(labeled), 1),
    ]
    return f"| {label} | {len(snaps)} | {share[0]:.1f} | {share[1]:.1f} | {share[2]:.1f} | {steps} |"


def nearest_accuracy(cases: list[tuple[int, str, Vocabulary]], embedder: TextEmbedder) -> float:
    """Return the share of synonyms, in percent, whose nearest category by embedding alone is the right one."""
    num_right = 0
    for category_id, synonym, vocabulary in cases:
        similarities = Prototypes(vocabulary, embedder).similarities(embedder.embed([query_text(synonym)])[0])
        num_right += vocabulary.categories[int(np.argmax(similarities))].category_id == category_id
    return 100.0 * num_right / len(cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabularies", nargs="+", metavar="VOCABULARY")
    parser.add_argument("--captions", type=Path, metavar="INSTANCES")
    parser.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD)
    parser.add_argument("--margin", type=float, default=DEFAULT_MARGIN)
    options = parser.parse_args()
    embedder = RememberingEmbedder(MiniLmEmbedder())
    print(f"threshold {options.threshold}, margin {options.margin}\n")
    print("| texts | number | right % | coverage % | precision % | right/decided by step |")
    print("| --- | --- | --- | --- | --- | --- |")
    if options.captions:
        vocabulary = load_vocabulary(options.vocabularies[0], keep_zero_ids=True)
        rows = [one for one in json.loads(options.captions.read_text())["annotations"] if one.get("caption")]
        snapper = Snapper(vocabulary, embedder, options.threshold, options.margin)
        started = time.perf_counter()
        snaps = snapper.snap([one["caption"] for one in rows])
        seconds = time.perf_counter() - started
        print(row(f"captions, {vocabulary.name}", snaps, [one["category_id"] for one in rows]))
        print(f"\n{len(rows) / seconds:.0f} captions a second, the vocabulary's vectors included\n")
    for url in options.vocabularies:
        cases = left_out(load_vocabulary(url, keep_zero_ids=True))
        if not cases:
            continue
        snaps = [
            Snapper(vocabulary, embedder, options.threshold, options.margin).snap([synonym])[0]
            for _, synonym, vocabulary in cases
        ]
        truth = [category_id for category_id, _, _ in cases]
        name = cases[0][2].name
        print(row(f"{name}, synonym left out", snaps, truth))
        print(f"\n{name}: nearest by embedding alone, no threshold: {nearest_accuracy(cases, embedder):.1f} % right\n")


if __name__ == "__main__":
    main()
