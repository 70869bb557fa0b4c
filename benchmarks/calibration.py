"""Measures calibrated scores on held-out images of a run: calibration error, Brier, risk and coverage, coverage at a precision.

    python benchmarks/calibration.py RUN --truth INSTANCES.json [--provenance P] [--splits 20] [--precision 0.95] [--confidence 0.95]
        [--method M] [--group-by source]

Images are parted into halves in several ways; each half is labeled by a calibrator of the other. Means over the ways, with their standard deviation.
Prints tables in Markdown: each method forced, then what cross-validation chooses (with --method, only that one); all pictures, then (with
--provenance) the unseen alone, fitted on unseen ones too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from rlabel.evaluation.calibrating import CALIBRATED, Calibration, calibrate
from rlabel.evaluation.fitting import METHODS, Method
from rlabel.evaluation.judged_labels import ScoredRun, read_scored_run


def mean_and_spread(values: Sequence[float], scale: float = 1.0, digits: int = 4) -> str:
    return f"{scale * np.mean(values):.{digits}f} ± {scale * np.std(values):.{digits}f}"


def several(
    run: ScoredRun, options: argparse.Namespace, methods: Sequence[Method], unseen_only: bool
) -> list[Calibration]:
    return [
        calibrate(
            run,
            seed=seed,
            precision=options.precision,
            confidence=options.confidence,
            methods=methods,
            unseen_only=unseen_only,
            group_by=options.group_by,
        )
        for seed in range(options.splits)
    ]


def print_worth(name: str, found: Sequence[Calibration]) -> None:
    """Print a row: errors of a single half, then of both halves' held-out labels together."""
    halves = [one.held_out for calibration in found for one in calibration.directions]
    both = [calibration.held_out for calibration in found]
    cells = [
        *(mean_and_spread([getattr(one, key) for one in halves]) for key in ("ece", "ece_by_chance")),
        *(
            mean_and_spread([getattr(one, key) for one in both])
            for key in ("ece", "ece_by_chance", "ece_equal_mass", "brier", "log_loss", "aurc", "excess_aurc")
        ),
    ]
    print(f"| {name} | {' | '.join(cells)} |")


def print_uncalibrated(found: Sequence[Calibration]) -> None:
    one = found[0].uncalibrated
    halves = [half.uncalibrated.ece for calibration in found for half in calibration.directions]
    cells = [mean_and_spread(halves), "", *(f"{getattr(one, key):.4f}" for key in (
        "ece", "ece_by_chance", "ece_equal_mass", "brier", "log_loss", "aurc", "excess_aurc"
    ))]  # fmt: skip
    print(f"| uncalibrated | {' | '.join(cells)} |")


def print_coverage(found: Sequence[Calibration]) -> None:
    """Print, for each signal, the coverage of a threshold that was read off one half, on the other; and how often its promise held."""
    wanted = found[0].precision
    print(
        f"\n| threshold for {100 * wanted:g} % on | sure | coverage % | right % | promise held | best order: coverage % |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    best = {name: [dict(one.best_coverage)[name].coverage for one in found] for name, _ in found[0].best_coverage}
    for signal in best:
        for confidence in (0.0, found[0].confidence):
            held = [
                item.held
                for calibration in found
                for direction in calibration.directions
                for item in direction.thresholds
                if item.signal == signal and item.threshold.confidence == confidence
            ]
            num_labels = sum(one.num_labels for one in held)
            right = f"{100 * sum(one.num_right for one in held) / num_labels:.1f}" if num_labels else "-"
            kept = [one for one in held if one.precision is not None]
            promise = f"{sum((one.precision or 0) >= wanted for one in kept)} of {len(kept)}" if kept else "-"
            coverage = mean_and_spread([one.coverage for one in held], 100, 1)
            order = mean_and_spread(best[signal], 100, 1) if confidence == 0 else ""
            sure = f"{100 * confidence:g} %" if confidence else "as seen"
            print(f"| {signal} | {sure} | {coverage} | {right} | {promise} | {order} |")


def print_seen(found: Sequence[Calibration]) -> None:
    """Print the seen and the unseen pictures of calibrations that were fitted on both."""
    rows = [(name, [getattr(one, name) for one in found]) for name in ("seen", "unseen")]
    if any(one is None for _, groups in rows for one in groups):
        return
    print("\n| fitted on all, measured on | labels | right % | mean score % | ECE | Brier | kept % | right of kept % |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, groups in rows:
        kept = sum(one.held.num_labels for one in groups)
        right = f"{100 * sum(one.held.num_right for one in groups) / kept:.1f}" if kept else "-"
        print(
            f"| {name} | {groups[0].num_labels} | {100 * groups[0].num_right / groups[0].num_labels:.1f} "
            f"| {mean_and_spread([one.mean_score for one in groups], 100, 1)} | {mean_and_spread([one.ece for one in groups])} "
            f"| {mean_and_spread([one.brier for one in groups])} | {mean_and_spread([one.held.coverage for one in groups], 100, 1)} | {right} |"
        )


def print_all(title: str, run: ScoredRun, options: argparse.Namespace, unseen_only: bool) -> None:
    """Print everything of one population."""
    methods: tuple[Method, ...] = (options.method,) if options.method else METHODS
    auto = several(run, options, methods, unseen_only)
    first = auto[0]
    print(f"\n## {title}\n")
    print(
        f"{first.num_labels} labels of {first.num_regions} regions in {first.num_images} images, {100 * first.num_right / first.num_labels:.1f} % right; "
        f"{options.splits} ways of parting the images; mean ± standard deviation\n"
    )
    print(
        "| held-out | ECE of a half | by chance | ECE of both | by chance | equal mass | Brier | log loss | AURC | excess |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    print_uncalibrated(auto)
    for method in methods if len(methods) > 1 else ():
        print_worth(method, several(run, options, (method,), unseen_only))
    print_worth("chosen by cross-validation" if len(methods) > 1 else methods[0], auto)
    chosen = [direction.method for one in auto for direction in one.directions]
    print(f"\nchosen: {', '.join(f'{name} {chosen.count(name)}' for name in METHODS if name in chosen)}")
    print_coverage(auto)
    calibrated, similarity = (
        np.mean([dict(one.best_coverage)[name].coverage for one in auto]) for name in (CALIBRATED, "similarity")
    )
    print(f"\ncalibrated minus similarity, best order: {100 * (calibrated - similarity):+.1f} points of coverage")
    if not unseen_only:
        print_seen(auto)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--truth", required=True)
    parser.add_argument("--provenance")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--precision", type=float, default=0.95)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--group-by", choices=["image", "source"], default="image")
    options = parser.parse_args()
    run = read_scored_run(options.run, options.truth, options.provenance)
    print_all("all pictures", run, options, unseen_only=False)
    if options.provenance:
        print_all("unseen pictures only, fitted on unseen ones", run, options, unseen_only=True)


if __name__ == "__main__":
    main()
