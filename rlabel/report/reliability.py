"""What a calibration is worth, as text for a console of 100 columns and as a picture. No arithmetic but shares."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np

from rlabel.evaluation.calibrating import Calibration, Group
from rlabel.evaluation.reliability import Held, Reliability, least_labels, risk_coverage
from rlabel.evaluation.text import percent, table
from rlabel.report.charts import draw_diagram, draw_risk

_PANEL_INCHES = (5.2, 4.6)
_NUM_GROUPS = 40  # supercategories that a person reads


def calibration_to_text(calibration: Calibration) -> str:
    """Return the numbers of a calibration in blocks: what was tried, what it is worth in-sample and held-out, thresholds, groups."""
    parts = [_head(calibration), _tried(calibration), _worth(calibration), _thresholds(calibration)]
    apart = [group for group in (calibration.seen, calibration.unseen) if group is not None]
    if apart:
        parts += [
            _groups("held-out, by picture", apart, calibration),
            _own_thresholds("by picture", apart, calibration),
        ]
        parts += _warning(calibration)
    if len(calibration.groups) > 1:
        parts += [
            _groups("held-out, labeled as", calibration.groups[:_NUM_GROUPS], calibration),
            _own_thresholds("labeled as", calibration.groups[:_NUM_GROUPS], calibration),
        ]
        if len(calibration.groups) > _NUM_GROUPS:
            parts.append(
                f"and {len(calibration.groups) - _NUM_GROUPS} more supercategories; all of them with --json.\n"
            )
    return "\n".join(parts)


def _head(calibration: Calibration) -> str:
    share = calibration.num_right / calibration.num_labels
    return (
        f"{calibration.num_labels} labels of {calibration.num_regions} regions in {calibration.num_images} images, {percent(share)} of them right.\n"
        f"Saved: {calibration.calibrator.method}, fitted on {_fitted_on(calibration)}.\n"
    )


def _fitted_on(calibration: Calibration) -> str:
    about = calibration.calibrator.fitted_on
    part = "all images" if about["part"] is None else f"part {about['part']} of the images"
    return f"{part}{', unseen pictures only' if about['unseen_only'] else ''}{_kept_together(calibration)} ({about['num_labels']} labels)"


def _kept_together(calibration: Calibration) -> str:
    return "; images are counted by source" if calibration.calibrator.fitted_on.get("group_by") == "source" else ""


def _tried(calibration: Calibration) -> str:
    rows = []
    for one in calibration.tried:
        setting = ", ".join(
            f"{name} {value:g}"
            for name, value in (("C", one.strength), ("steps of", one.step_size))
            if value is not None
        )
        rows.append((f"{one.method} ({setting})", f"{one.log_loss:.4f}", f"{one.brier:.4f}"))
    return table(("tried, the taken first (cross-validated)", "log loss", "Brier"), rows)


def _worth(calibration: Calibration) -> str:
    rows: list[tuple[str, ...]] = []
    for one in calibration.directions:
        rows.append(_reliability_row(f"in-sample: part {one.fitted_part}", one.in_sample))
    for one in calibration.directions:
        rows.append(_reliability_row(f"held-out: part {one.fitted_part} -> {1 - one.fitted_part}", one.held_out))
    rows.append(_reliability_row("held-out: all", calibration.held_out))
    rows.append(_reliability_row("  the same, uncalibrated", calibration.uncalibrated))
    return (
        table(("scores", "labels", "right", "mean", "ECE", "chance", "mass", "Brier", "AURC", "excess"), rows)
        + "ECE: 15 bins of equal width; mass: of as many labels each; chance: what scores that are exactly right would show.\n"
        + f"Fitted: {', '.join(f'part {one.fitted_part} by {one.method}' for one in calibration.directions)}.\n"
    )


def _reliability_row(name: str, one: Reliability) -> tuple[str, ...]:
    measures = (one.ece, one.ece_by_chance, one.ece_equal_mass, one.brier, one.aurc, one.excess_aurc)
    return (
        name,
        str(one.num_labels),
        percent(one.accuracy),
        percent(one.mean_score),
        *(f"{value:.4f}" for value in measures),
    )


def _thresholds(calibration: Calibration) -> str:
    wanted = percent(calibration.precision)
    rows: list[tuple[str, ...]] = []
    for one in calibration.directions:
        for item in one.thresholds:
            sure = f"{100 * item.threshold.confidence:.0f} %" if item.threshold.confidence else "as seen"
            rows.append(
                (
                    f"{item.signal}: part {one.fitted_part} -> {1 - one.fitted_part}",
                    sure,
                    "-" if item.threshold.score is None else f"{item.threshold.score:.4f}",
                    percent(item.threshold.coverage),
                    *_held_cells(item.held),
                )
            )
    header = (f"threshold for {wanted} right", "sure", "from", "coverage", "held-out", "right of it")
    text = table(header, rows)
    best = [
        (name, percent(one.coverage), percent(one.num_right / one.num_labels if one.num_labels else None))
        for name, one in calibration.best_coverage
    ]
    text += "\n" + table((f"held-out labels in order: most coverage at {wanted} right", "coverage", "right"), best)
    for saved in calibration.calibrator.thresholds:
        if saved.score is None:
            words = f"No score promises {wanted} right with {percent(saved.confidence)} confidence: too few labels, or too many wrong ones."
        else:
            words = (
                f"Label only what is {wanted} right: score at least {saved.score:g}, which labels {percent(saved.coverage)} of the regions "
                f"({saved.num_right} of {saved.num_labels} right where it was read off)."
            )
        text += "\n" + textwrap.fill(words, 98) + "\n"
    return text


def _groups(title: str, groups: Sequence[Group], calibration: Calibration) -> str:
    rows = [
        (
            group.name,
            str(group.num_labels),
            percent(group.num_right / group.num_labels),
            percent(group.mean_score),
            f"{group.ece:.4f}",
            f"{group.brier:.4f}",
            *_held_cells(group.held),
        )
        for group in groups
    ]
    goal = f"kept at {percent(calibration.precision)}"
    return table((title, "labels", "right", "mean score", "ECE", "Brier", goal, "right of it"), rows)


def _own_thresholds(title: str, groups: Sequence[Group], calibration: Calibration) -> str:
    """Return the threshold of each group, read off its own held-out labels, or why it has none."""
    least = least_labels(calibration.precision, calibration.confidence)
    rows: list[tuple[str, ...]] = []
    for group in groups:
        own = group.threshold
        if own.score is None:
            why = "none promises it" if group.is_enough else f"too few (of {least})"
            rows.append((group.name, str(group.num_labels), why, "-", "-"))
        else:
            right = f"{percent(own.num_right / own.num_labels)} of {own.num_labels}"
            rows.append((group.name, str(group.num_labels), f"{own.score:.4f}", percent(own.coverage), right))
    sure = f"{100 * calibration.confidence:.0f} % sure" if calibration.confidence else "as seen"
    header = (
        f"own threshold for {percent(calibration.precision)}, {title}",
        "labels",
        f"from ({sure})",
        "coverage",
        "right of it",
    )
    return table(header, rows)


def _warning(calibration: Calibration) -> list[str]:
    """Say so where the threshold of all pictures promises too much for new ones."""
    unseen = calibration.unseen
    if unseen is None or calibration.seen is None or unseen.held.precision is None:
        return []
    if unseen.held.precision >= calibration.precision:
        return []
    words = (
        f"Of labels on unseen pictures that a threshold of all pictures lets through, {percent(unseen.held.precision)} are right, not "
        f"{percent(calibration.precision)}: for pictures that training did not show, fit with --unseen-only."
    )
    return [textwrap.fill(words, 98) + "\n"]


def _held_cells(held: Held) -> tuple[str, str]:
    return percent(held.coverage), f"{percent(held.precision)} of {held.num_labels}"


def draw_calibration(calibration: Calibration) -> bytes:
    """Return a PNG: the reliability diagram of the held-out labels with how many lie where, and their risk-coverage curves.

    The same calibration gives the same bytes with the same matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * _PANEL_INCHES[0], _PANEL_INCHES[1]), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
    diagram, counts, curve = (
        figure.add_subplot(grid[0, 0]),
        figure.add_subplot(grid[1, 0]),
        figure.add_subplot(grid[:, 1]),
    )
    diagram.plot([0, 1], [0, 1], color="tab:grey", linestyle=":", label="exactly right")
    shown = (
        (calibration.uncalibrated, calibration.uncalibrated_N, "tab:orange", "s", "uncalibrated"),
        (calibration.held_out, calibration.score_N, "tab:blue", "o", "calibrated"),
    )
    for worth, score_N, color, marker, name in shown:
        label = f"{name}: ECE {worth.ece:.3f} (chance {worth.ece_by_chance:.3f}), Brier {worth.brier:.3f}"
        draw_diagram(diagram, worth.bins, color, marker, label)
        counts.hist(score_N, bins=15, range=(0, 1), color=color, alpha=0.5)
        risk_N = risk_coverage(score_N, calibration.is_right_N)
        share_N = np.arange(1, len(risk_N) + 1) / calibration.held_out.num_labels
        draw_risk(curve, share_N.tolist(), risk_N.tolist(), color, f"{name}: area {worth.aurc:.3f}")
    perfect_N = risk_coverage(calibration.is_right_N.astype(np.float64), calibration.is_right_N)
    curve.plot(share_N, 100 * perfect_N, color="tab:grey", linestyle=":", label="perfect order")
    curve.axhline(100 * (1 - calibration.precision), color="tab:red", linewidth=0.8, label="wanted")
    diagram.set(title="held-out labels", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    counts.set(xlabel="score", ylabel="labels", xlim=(0, 1))
    curve.set(title="risk and coverage", xlabel="share of labels kept, surest first", ylabel="wrong, %")
    diagram.legend(loc="lower right", fontsize="small")
    curve.legend(loc="upper left", fontsize="small")
    for panel in (diagram, curve):
        panel.grid(alpha=0.3)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=100, format="png", metadata={"Software": None})
    return stream.getvalue()
