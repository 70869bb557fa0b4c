"""Object hallucination by POPE's protocol (Li et al. 2023, arXiv 2305.10355), asked of regions and of pictures, from a run.

    python benchmarks/pope.py --run run/ --truth instances.json [--provenance FILE] [--seed 0]

Of regions: of each non-crowd one two questions are put, "is this a NAME?": once with its true name (the answer is yes) and once with a wrong one (no).
The wrong name is drawn among all others (random); is the most frequent other category of the truth (popular); or the category, other than
the region's, that shares most pictures with the true one (adversarial). The run answers yes where it labeled the region NAME, else no;
abstentions and failures are a no. A yes costs a label, so a wrong yes needs a label that is just the wrong name, and recall is top-1 accuracy.

Of pictures, as in POPE: "is there a NAME?", once for each category in it and as often for one that is not: drawn (random), the most frequent ones (popular),
those that share most pictures with what is in it (adversarial). The run answers yes where the chance that no region shows NAME, the product of each
region's, is below 1/2. A region shows NAME with NAME's share of the likelihood of its candidates in a run of --decoding hybrid; in other runs where it is
labeled so. Nothing is asked in words, which the embedded labeler never learned to answer with yes or no: not to be compared with published figures.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlabel.evaluation.auditing import read_candidates
from rlabel.evaluation.judging import Judged, JudgedRun, RegionKey, judge_run, read_origins
from rlabel.evaluation.reading import Truth, read_truth


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Answers to as many yes as no questions."""

    true_yes: int
    false_yes: int
    num_pairs: int

    @property
    def cells(self) -> list[float]:
        """Accuracy, precision, recall, F1 and the share of yes, in [0, 1]; 0 where there is nothing to divide by."""
        yes, n = self.true_yes + self.false_yes, self.num_pairs
        precision = self.true_yes / yes if yes else 0.0
        recall = self.true_yes / n if n else 0.0
        both = precision + recall
        accuracy = (self.true_yes + n - self.false_yes) / (2 * n) if n else 0.0
        return [
            accuracy,
            precision,
            recall,
            2 * precision * recall / both if both else 0.0,
            yes / (2 * n) if n else 0.0,
        ]


def wrong_names(truth: Truth, seed: int) -> dict[str, Callable[[int], int]]:
    """Return, for each way, the function that gives a wrong category id for a true one."""
    generator = random.Random(seed)
    everything = [category.category_id for category in truth.categories]
    regions = [region for region in truth.regions if not region.is_crowd]
    frequency = Counter(region.category_id for region in regions)
    popular = sorted(everything, key=lambda i: (-frequency[i], i))
    in_image: dict[str, set[int]] = {}
    for region in regions:
        in_image.setdefault(region.image_id, set()).add(region.category_id)
    together = Counter((a, b) for present in in_image.values() for a in present for b in present if a != b)

    def adversarial(true: int) -> int:
        return min((i for i in everything if i != true), key=lambda i: (-together[true, i], -frequency[i], i))

    return {
        "random": lambda true: generator.choice([i for i in everything if i != true]),
        "popular": lambda true: next(i for i in popular if i != true),
        "adversarial": adversarial,
    }


def count(judged: list[Judged], wrong: Callable[[int], int]) -> Counts:
    """Return the answers to both questions about each region."""
    return Counts(
        true_yes=sum(j.is_correct for j in judged),
        false_yes=sum(j.predicted_id == wrong(j.region.category_id) for j in judged),
        num_pairs=len(judged),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Is there a category in a picture? is_there: what the truth says."""

    image_id: str
    category_id: int
    is_there: bool


def questions(truth: Truth, image_ids: frozenset[str], way: str, seed: int) -> list[Question]:
    """Return as many questions to be answered with yes as with no about these pictures; fewer where too few categories are absent."""
    generator = random.Random(seed)
    asked: dict[str, set[int]] = {}
    present: dict[str, set[int]] = {}  # with the crowds: what is there only as a crowd is not asked about
    for region in truth.regions:
        if region.image_id in image_ids:
            present.setdefault(region.image_id, set()).add(region.category_id)
            if not region.is_crowd:
                asked.setdefault(region.image_id, set()).add(region.category_id)
    frequency = Counter(category_id for own in present.values() for category_id in own)
    together = Counter((a, b) for own in present.values() for a in own for b in own if a != b)
    found: list[Question] = []
    for image_id in sorted(asked):
        there = sorted(asked[image_id])
        absent = [c.category_id for c in truth.categories if c.category_id not in present[image_id]]
        if way == "random":
            generator.shuffle(absent)
        elif way == "popular":
            absent.sort(key=lambda i: (-frequency[i], i))
        else:
            absent.sort(key=lambda i: (-sum(together[j, i] for j in there), -frequency[i], i))
        num = min(len(there), len(absent))
        found += [Question(image_id=image_id, category_id=i, is_there=True) for i in there[:num]]
        found += [Question(image_id=image_id, category_id=i, is_there=False) for i in absent[:num]]
    return found


def presences(run: JudgedRun, candidates: dict[RegionKey, dict[int, float]] | None) -> dict[tuple[str, int], float]:
    """Return the probability that a picture shows a category, by (image id, the truth's category id); 0 for those that are left out."""
    absence: dict[tuple[str, int], float] = {}
    for j in run.judged:
        for category_id, share in shares(j, run, candidates):
            key = (j.region.image_id, category_id)
            absence[key] = absence.get(key, 1.0) * (1.0 - share)
    return {key: 1.0 - value for key, value in absence.items()}


def shares(
    j: Judged, run: JudgedRun, candidates: dict[RegionKey, dict[int, float]] | None
) -> Iterator[tuple[int, float]]:
    own = (candidates or {}).get((j.region.image_id, j.region.region_id))
    if not own:
        if j.predicted_id is not None:
            yield j.predicted_id, 1.0
        return
    most = max(own.values())
    total = math.fsum(math.exp(value - most) for value in own.values())
    for category_id, value in own.items():
        if category_id in run.to_truth_id:
            yield run.to_truth_id[category_id], math.exp(value - most) / total


def count_pictures(found: list[Question], presence: dict[tuple[str, int], float]) -> Counts:
    """Return the answers to questions about pictures."""
    yes = [q for q in found if presence.get((q.image_id, q.category_id), 0.0) > 0.5]
    return Counts(
        true_yes=sum(q.is_there for q in yes),
        false_yes=sum(not q.is_there for q in yes),
        num_pairs=sum(q.is_there for q in found),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--truth", required=True)
    parser.add_argument("--provenance")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    truth = read_truth(options.truth)
    run = judge_run(options.run, truth, options.truth)
    judged = list(run.judged)
    groups = {"all regions": judged}
    origins = read_origins(options.provenance, truth, options.truth)
    if origins is not None:
        groups["unseen pictures"] = [
            j for j in judged if (o := origins.get(j.region.region_id)) is not None and not o.seen_in_train
        ]
    print("| of | wrong names | questions | accuracy | precision | recall | F1 | yes |\n" + "| --- " * 8 + "|")
    for title, rows in groups.items():
        for name, wrong in wrong_names(truth, options.seed).items():
            cells = " | ".join(f"{100 * cell:.1f} %" for cell in count(rows, wrong).cells)
            print(f"| {title} | {name} | {2 * len(rows)} | {cells} |")
    presence = presences(run, read_candidates(options.run))
    for way in ("random", "popular", "adversarial"):
        found = questions(truth, run.covered, way, options.seed)
        cells = " | ".join(f"{100 * cell:.1f} %" for cell in count_pictures(found, presence).cells)
        print(f"| pictures | {way} | {len(found)} | {cells} |")


if __name__ == "__main__":
    main()
