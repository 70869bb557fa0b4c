"""A comparison of two runs as text for a console of 100 columns."""

from __future__ import annotations

from rlabel.evaluation.comparing import CategoryChange, ChangedRegion, Comparison, PairedRow
from rlabel.evaluation.text import percent, table

_NUM_LISTED = 10


def comparison_to_text(comparison: Comparison) -> str:
    """Return the numbers and tables of a comparison, at most 100 columns wide, ending with a newline."""
    c = comparison
    kappa = "-" if c.kappa is None else f"{c.kappa:.3f}"
    same_label = c.num_same_label / c.num_both_labeled if c.num_both_labeled else None
    parts = [
        f"A: {c.run_a}\nB: {c.run_b}\n",
        f"{c.num_regions} regions; the same answer for {c.num_same} ({percent(c.num_same / c.num_regions if c.num_regions else None)}), "
        f"Cohen's kappa {kappa}.\nBoth label {c.num_both_labeled}, {percent(same_label)} of them alike.\n",
    ]
    if c.rows:
        parts += [_accuracies(c.rows), _tests(c.rows)]
        if c.num_not_in_truth:
            parts.append(f"Note: {c.num_not_in_truth} regions of the runs are not in the truth; left out.\n")
        groups = [
            (r.name, str(r.num_regions), percent(r.accuracy_a), percent(r.accuracy_b), points(r.difference))
            for r in c.per_supercategory
        ]
        parts.append(table(("by supercategory", "regions", "A", "B", "B - A"), groups))
    gained = [change for change in c.categories if change.right_b > change.right_a][:_NUM_LISTED]
    lost = [change for change in reversed(c.categories) if change.right_b < change.right_a][:_NUM_LISTED]
    parts += [_changes(title, rows) for title, rows in (("B gains most", gained), ("B loses most", lost)) if rows]
    if c.changed:
        parts.append(_changed(c.changed))
    return "\n".join(parts)


def points(difference: float | None) -> str:
    """Return a difference of shares in percentage points with its sign, "-" where there is none."""
    return "-" if difference is None else f"{100 * difference:+.1f}"


def _accuracies(rows: tuple[PairedRow, ...]) -> str:
    cells = [(r.name, *(str(n) for n in (r.num_regions, r.both, r.only_a, r.only_b, r.neither))) for r in rows]
    return table(("right", "regions", "both", "only A", "only B", "neither"), cells)


def _tests(rows: tuple[PairedRow, ...]) -> str:
    cells = [
        (
            r.name,
            percent(r.accuracy_a),
            percent(r.accuracy_b),
            points(r.difference),
            "-" if r.interval95 is None else f"{points(r.interval95[0])} to {points(r.interval95[1])}",
            _p(r.mcnemar_p),
            _p(r.sign_flip_p),
        )
        for r in rows
    ]
    shown = table(("accuracy", "A", "B", "B - A", "95 % interval", "McNemar p", "by image p"), cells)
    return (
        f"{shown}McNemar's exact test takes regions as independent; those of one picture are not. The p by image\n"
        "flips whole pictures (sign-flip permutation), and the interval draws whole pictures. Go by those.\n"
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _changes(title: str, rows: list[CategoryChange]) -> str:
    cells = [(r.name, str(r.num_regions), str(r.right_a), str(r.right_b), f"{r.right_b - r.right_a:+d}") for r in rows]
    return table((title, "regions", "A right", "B right", "change"), cells)


def _changed(changed: tuple[ChangedRegion, ...]) -> str:
    cells = [
        (
            f"{r.region_id} of {r.image_id}",
            r.true_name or "-",
            _marked(r.name_a, r.is_right_a),
            _marked(r.name_b, r.is_right_b),
        )
        for r in changed[:_NUM_LISTED]
    ]
    more = len(changed) - len(cells)
    tail = f"and {more} more; all of them with --json.\n" if more else ""
    title = f"changed: {len(changed)} region{'' if len(changed) == 1 else 's'}"
    return table((title, "true", "A", "B"), cells, left=(0, 1, 2, 3)) + tail


def _marked(name: str, is_right: bool | None) -> str:
    return f"{name} (right)" if is_right else name
