"""Object hallucination by POPE's protocol (Li et al. 2023, arXiv 2305.10355), asked of regions, from a run's labels.

    python benchmarks/pope.py --run run/ --truth instances.json [--provenance FILE] [--seed 0]

Of each non-crowd region two questions are put, "is this a NAME?": once with its true name (the answer is yes) and once with a wrong one (no).
The wrong name is drawn among all others (random); is the most frequent other category of the truth (popular); or the category, other than
the region's, that shares most pictures with the true one (adversarial). The run answers yes where it labeled the region NAME, else no;
abstentions and failures are a no. Nothing is asked of the model: a yes costs a label, so a wrong yes needs a label that is just the wrong
name, and recall is top-1 accuracy.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rlabel.evaluation.judging import Judged, judge_run, read_origins
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--truth", required=True)
    parser.add_argument("--provenance")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    truth = read_truth(options.truth)
    judged = list(judge_run(options.run, truth, options.truth).judged)
    groups = {"all regions": judged}
    origins = read_origins(options.provenance, truth, options.truth)
    if origins is not None:
        groups["unseen pictures"] = [
            j for j in judged if (o := origins.get(j.region.region_id)) is not None and not o.seen_in_train
        ]
    print("| regions | wrong names | questions | accuracy | precision | recall | F1 | yes |\n" + "| --- " * 8 + "|")
    for title, rows in groups.items():
        for name, wrong in wrong_names(truth, options.seed).items():
            cells = " | ".join(f"{100 * cell:.1f} %" for cell in count(rows, wrong).cells)
            print(f"| {title} | {name} | {2 * len(rows)} | {cells} |")


if __name__ == "__main__":
    main()
