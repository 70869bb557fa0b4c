"""Measures snapping: synonyms left out one at a time, and human captions with a known category.

    python benchmarks/snapping.py VOCABULARY.json [...] [--captions INSTANCES.json] [--thesaurus wordnet|none|FOLDER] \
        [--embedder-dtype float32 bfloat16]

For each vocabulary, every synonym is taken out in turn and snapped to what is left: by plain comparison of embedded names, by
the prototypes, by words first and then the nearest category without a threshold, and by the whole cascade, which may abstain.
Each row of the embedding is there without and with the thesaurus, by default the nouns that rlabel carries. For the captions, the
first vocabulary is the target and an annotation's `category_id` the truth. Prints tables in Markdown.

With two dtypes it says how many outcomes of the whole cascade (the last row of a table) differ between them.

Every text is embedded once. Taking out a synonym changes only its own category, so only that one's cosine is worked out again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlabel.records import Snap
from rlabel.vocabulary.blending import Blender
from rlabel.vocabulary.embedding import MiniLmEmbedder, Rows, TextEmbedder
from rlabel.vocabulary.lexicon import Lexicon, surface_forms
from rlabel.vocabulary.prototypes import Prototypes, query_text
from rlabel.vocabulary.snapping import DEFAULT_MARGIN, DEFAULT_THRESHOLD, Snapper
from rlabel.vocabulary.thesaurus import Thesaurus, load_thesaurus
from rlabel.vocabulary.vocabulary import Category, Vocabulary, load_vocabulary
from rlabel.vocabulary.words import fold

STEPS = ("exact", "synonym", "inflection", "phrase", "embedding")


class RememberingEmbedder:
    """Embeds each text once: the vocabularies below differ in one synonym only."""

    def __init__(self, inner: TextEmbedder) -> None:
        self._inner = inner
        self._row_of: dict[str, Rows] = {}

    def embed(self, texts: Sequence[str]) -> Rows:
        new = sorted(set(texts) - self._row_of.keys())
        if new:
            self._row_of.update(zip(new, self._inner.embed(new), strict=True))
        return np.stack([self._row_of[text] for text in texts])


@dataclass(frozen=True)
class Case:
    """A synonym, the index of its category, and that category without it."""

    synonym: str
    category_index: int
    rest: Category


def left_out(vocabulary: Vocabulary) -> Iterator[Case]:
    """Give each synonym that does not only repeat its category's name."""
    for index, category in enumerate(vocabulary.categories):
        for synonym in dict.fromkeys(category.synonyms):
            if fold(synonym) != fold(category.name):
                rest = tuple(other for other in category.synonyms if fold(other) != fold(synonym))
                yield Case(synonym=synonym, category_index=index, rest=replace(category, synonyms=rest))


def without(vocabulary: Vocabulary, case: Case) -> Vocabulary:
    """Return the vocabulary without a case's synonym."""
    categories = list(vocabulary.categories)
    categories[case.category_index] = case.rest
    return replace(vocabulary, categories=tuple(categories))


def alone(category: Category) -> Vocabulary:
    """Return a vocabulary of one category."""
    return Vocabulary(name="one", categories=(category,), sha256="")


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


def plain_cosines(vocabulary: Vocabulary, rows_QD: Rows, embedder: TextEmbedder) -> np.ndarray:
    """Return (Q, C): what comparing with each category's name alone gives, the baseline."""
    names_CD = embedder.embed([query_text(category.name) for category in vocabulary.categories])
    return rows_QD @ names_CD.T


def prototype_cosines(
    vocabulary: Vocabulary, cases: Sequence[Case], rows_QD: Rows, embedder: TextEmbedder
) -> np.ndarray:
    """Return (Q, C): the cosines of each left-out synonym to what is left of the vocabulary."""
    prototypes = Prototypes(vocabulary, embedder)
    cosines_QC = np.stack([prototypes.similarities(row_D) for row_D in rows_QD])
    for number, case in enumerate(cases):
        own = Prototypes(alone(case.rest), embedder).similarities(rows_QD[number])[0]
        cosines_QC[number, case.category_index] = own
    return cosines_QC


def bonuses(vocabulary: Vocabulary, cases: Sequence[Case], thesaurus: Thesaurus) -> np.ndarray:
    """Return (Q, C): what the thesaurus adds to these cosines."""
    blender = Blender(vocabulary, thesaurus)
    bonus_QC = np.zeros((len(cases), len(vocabulary.categories)))
    for number, case in enumerate(cases):
        for index, bonus in blender.bonuses(query_text(case.synonym)).items():
            bonus_QC[number, index] = bonus
        own = Blender(alone(case.rest), thesaurus).bonuses(query_text(case.synonym))
        bonus_QC[number, case.category_index] = own.get(0, 0.0)
    return bonus_QC


def snap_by(step_cosines_C: np.ndarray, vocabulary: Vocabulary, threshold: float, margin: float) -> Snap:
    """Return what the embedding step makes of cosines, as `Snapper` does."""
    first, second = np.sort(step_cosines_C)[::-1][:2]
    category = vocabulary.categories[int(step_cosines_C.argmax())]
    decides = first >= threshold and round(float(first - second), 6) >= margin
    return Snap(
        category_id=category.category_id if decides else None,
        nearest_name=category.name,
        similarity=float(first),
        margin=float(first - second),
        decided_by="embedding" if decides else None,
    )


def measure(
    url: str, embedder: TextEmbedder, thesaurus: Thesaurus | None, threshold: float, margin: float
) -> list[Snap]:
    """Print the table of a vocabulary's synonyms and return what became of them in its last row."""
    vocabulary = load_vocabulary(url, keep_zero_ids=True)
    cases = list(left_out(vocabulary))
    if not cases:
        print(f"{vocabulary.name}: no synonyms to leave out\n")
        return []
    started = time.perf_counter()
    queries = [query_text(case.synonym) for case in cases]
    glosses = [f"{category.name}: {category.definition}" for category in vocabulary.categories if category.definition]
    forms = [query_text(form) for category in vocabulary.categories for form, _ in surface_forms(category)]
    embedder.embed([*queries, *glosses, *filter(None, forms)])
    rows_QD = embedder.embed(queries)
    truth = [vocabulary.categories[case.category_index].category_id for case in cases]
    near_QC = prototype_cosines(vocabulary, cases, rows_QD, embedder)
    steps = {"plain names, nearest": plain_cosines(vocabulary, rows_QD, embedder), "prototypes, nearest": near_QC}
    more = {"words, then nearest": near_QC}
    if thesaurus is not None:
        blended_QC = near_QC + bonuses(vocabulary, cases, thesaurus)
        steps["prototypes and thesaurus, nearest"] = blended_QC
        more["words, then thesaurus and nearest"] = blended_QC
    found = [Lexicon(without(vocabulary, case)).find(case.synonym) for case in cases]

    def cascade(cosines_QC: np.ndarray, at: float, lead: float) -> list[Snap]:
        own = None if cosines_QC is near_QC else thesaurus
        return [
            snap_by(cosines_QC[number], vocabulary, at, lead)
            if found[number] is None
            else Snapper(without(vocabulary, case), embedder, at, lead, thesaurus=own).snap([case.synonym])[0]
            for number, case in enumerate(cases)
        ]

    print(f"### {vocabulary.name}: {len(cases)} synonyms, each left out\n")
    print("| way | number | right % | coverage % | precision % | right/decided by step |")
    print("| --- | --- | --- | --- | --- | --- |")
    for label, cosines_QC in steps.items():
        print(row(label, [snap_by(cosines_C, vocabulary, -1.0, 0.0) for cosines_C in cosines_QC], truth))
    for label, cosines_QC in more.items():
        print(row(label, cascade(cosines_QC, -1.0, 0.0), truth))
    snaps = cascade(near_QC, threshold, margin)
    print(row("the whole cascade", snaps, truth))
    if thesaurus is not None:
        snaps = cascade(blended_QC, threshold, margin)
        print(row("the whole cascade with the thesaurus", snaps, truth))
    print(f"\n{time.perf_counter() - started:.1f} s\n", flush=True)
    return snaps


def measure_captions(
    url: str, captions: Path, embedder: TextEmbedder, thesaurus: Thesaurus | None, threshold: float, margin: float
) -> list[Snap]:
    """Print the table of human captions and return what became of them in its last row."""
    vocabulary = load_vocabulary(url, keep_zero_ids=True)
    rows = [one for one in json.loads(captions.read_text())["annotations"] if one.get("caption")]
    texts, truth = [one["caption"] for one in rows], [one["category_id"] for one in rows]
    print("| texts | number | right % | coverage % | precision % | right/decided by step |")
    print("| --- | --- | --- | --- | --- | --- |")
    snaps = Snapper(vocabulary, embedder, threshold, margin).snap(texts)
    print(row(f"captions, {vocabulary.name}", snaps, truth))
    if thesaurus is not None:
        snaps = Snapper(vocabulary, embedder, threshold, margin, thesaurus=thesaurus).snap(texts)
        print(row("with the thesaurus", snaps, truth))
    print(flush=True)
    return snaps


def print_changes(of: str, snaps: dict[str, list[Snap]]) -> None:
    """Print how many outcomes differ between the first dtype and each further one. snaps: by dtype, of the same texts."""
    (first, own), *others = snaps.items()
    for dtype, theirs in others:
        pairs = list(zip(own, theirs, strict=True))
        changed = [(one, two) for one, two in pairs if one.category_id != two.category_id]
        labels = sum(one.category_id is not None and two.category_id is not None for one, two in changed)
        most = max((abs(one.similarity - two.similarity) for one, two in pairs), default=0.0)
        print(
            f"{of}: {len(changed)} of {len(pairs)} outcomes differ between {first} and {dtype}, {labels} of them labels in both; "
            f"similarities by at most {most:.4f}\n",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabularies", nargs="+", metavar="VOCABULARY")
    parser.add_argument("--captions", type=Path, metavar="INSTANCES")
    parser.add_argument("--thesaurus", default="wordnet", help="wordnet, none, or a folder with WordNet's own files")
    parser.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD)
    parser.add_argument("--margin", type=float, default=DEFAULT_MARGIN)
    parser.add_argument("--embedder-dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    options = parser.parse_args()
    embedders = {dtype: RememberingEmbedder(MiniLmEmbedder(dtype=dtype)) for dtype in options.embedder_dtype}
    thesaurus = load_thesaurus(options.thesaurus)
    print(f"threshold {options.threshold}, margin {options.margin}\n")
    if options.captions:
        first = options.vocabularies[0]
        snaps = {}
        for dtype, embedder in embedders.items():
            print(f"## {dtype}\n")
            snaps[dtype] = measure_captions(
                first, options.captions, embedder, thesaurus, options.threshold, options.margin
            )
        print_changes("captions", snaps)
    for url in options.vocabularies:
        snaps = {}
        for dtype, embedder in embedders.items():
            print(f"## {dtype}\n")
            snaps[dtype] = measure(url, embedder, thesaurus, options.threshold, options.margin)
        print_changes(url, snaps)


if __name__ == "__main__":
    main()
