"""Two curves of scores as matplotlib draws them: the reliability diagram and the risk-coverage curve. Knows nothing of runs and files.

The same numbers give the same bytes with the same matplotlib: SVG without a date, with ids from a fixed salt, and letters as outlines, so that a page that
holds it needs no font.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlabel.evaluation.records import ScoreWorth
from rlabel.evaluation.reliability import Bin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (4.6, 3.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours as the page has them around the picture. line: the measured curve; grid: of axes and rules."""

    ink: str
    faint: str
    grid: str
    line: str
    other: str


LIGHT = Theme(ink="#181c24", faint="#5c6370", grid="#dde1e8", line="#2f6fde", other="#b45309")
DARK = Theme(ink="#e8ebf1", faint="#9ea7b6", grid="#303745", line="#6ea2ff", other="#f0a35c")


def draw_diagram(axes: Axes, bins: Sequence[Bin], color: str, marker: str, label: str) -> None:
    """Draw the share that is right against the mean score of each bin, with the 95 % interval (normal) of a share of so many labels."""
    means, accuracies = [one.mean_score for one in bins], [one.accuracy for one in bins]
    spread = [1.96 * (a * (1 - a) / one.num_labels) ** 0.5 for a, one in zip(accuracies, bins, strict=True)]
    axes.errorbar(means, accuracies, yerr=spread, color=color, marker=marker, capsize=2, alpha=0.9, label=label)


def draw_risk(axes: Axes, coverages: Sequence[float], risks: Sequence[float], color: str, label: str) -> None:
    """Draw the wrong share, in percent, of the surest labels against the share of labels that these are."""
    axes.plot(coverages, [100 * risk for risk in risks], color=color, label=label)


def reliability_svg(scores: ScoreWorth, theme: Theme) -> bytes:
    """Return the reliability diagram with bars below for how many labels lie where."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    diagram, counts = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    worth = scores.reliability
    diagram.plot([0, 1], [0, 1], color=theme.faint, linestyle=":", label="exactly right")
    draw_diagram(diagram, worth.bins, theme.line, "o", "the labels' scores")
    counts.bar(
        [one.low for one in worth.bins],
        [one.num_labels for one in worth.bins],
        width=[one.high - one.low for one in worth.bins],
        align="edge",
        color=theme.line,
        alpha=0.7,
    )
    diagram.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    counts.set(xlabel="score", ylabel="labels")
    return _to_svg(figure, theme)


def risk_svg(scores: ScoreWorth, theme: Theme) -> bytes:
    """Return the risk-coverage curve, beside that of a perfect order of the same labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    worth = scores.reliability
    coverages = [point.coverage for point in scores.curve]
    right = worth.num_right / worth.num_labels
    perfect = [max(0.0, coverage - right) / coverage for coverage in coverages]
    axes.plot(coverages, [100 * risk for risk in perfect], color=theme.faint, linestyle=":", label="perfect order")
    draw_risk(axes, coverages, [point.risk for point in scores.curve], theme.line, "by score")
    axes.set(xlabel="share of labels kept, surest first", ylabel="wrong, %", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    return _to_svg(figure, theme)


def _to_svg(figure: Figure, theme: Theme) -> bytes:
    from matplotlib import rc_context

    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.grid(color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=theme.faint, labelcolor=theme.ink)
        for name in ("xaxis", "yaxis"):
            getattr(axes, name).label.set_color(theme.ink)
        for spine in axes.spines.values():
            spine.set_color(theme.grid)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, labelcolor=theme.ink)
    stream = io.BytesIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "rlabel"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return stream.getvalue()
