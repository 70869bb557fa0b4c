"""An evaluation as text for a console of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rlabel.evaluation.bootstrap import NUM_RESAMPLES
from rlabel.evaluation.records import (
    Accuracy,
    AveragePrecision,
    Evaluation,
    Interval,
    LvisPrecision,
    ScoreWorth,
    SemanticRow,
)

_WIDTH = 98
_NUM_PAIRS = 10


def evaluation_to_text(evaluation: Evaluation) -> str:
    """Return the numbers and tables of an evaluation, at most 100 columns wide, ending with a newline."""
    parts = [_accuracies(evaluation), _outcomes(evaluation), _precisions(evaluation)]
    if evaluation.scores is not None:
        parts.append(_scores(evaluation.scores))
    if evaluation.lvis is not None:
        parts.append(_lvis(evaluation.lvis))
    if evaluation.semantic:
        parts.append(_semantic(evaluation.semantic))
    for title, groups in (("by supercategory", evaluation.per_supercategory), ("by size", evaluation.per_size)):
        grouped = [
            (g.name, str(g.num_regions), str(g.num_labeled), str(g.num_correct), percent(g.top1)) for g in groups
        ]
        parts.append(table((title, "regions", "labeled", "right", "top-1"), grouped))
    if evaluation.decided_by:
        decided = [
            (d.step, str(d.num_labeled), str(d.num_correct), percent(d.num_correct / d.num_labeled))
            for d in evaluation.decided_by
        ]
        parts.append(table(("label decided by", "labels", "right", "share"), decided))
    if evaluation.confusions:
        shown = evaluation.confusions[:_NUM_PAIRS]
        pairs = [(f"{c.true_name} -> {c.predicted_name}", str(c.num_regions)) for c in shown]
        parts.append(table(("most confused (true -> labeled)", "regions"), pairs))
    if evaluation.unmatched_texts:
        texts = [
            (repr(u.text), str(u.num_regions), u.nearest_name or "-", u.true_name)
            for u in evaluation.unmatched_texts[:_NUM_PAIRS]
        ]
        parts.append(table(("unmatched answer", "regions", "nearest name", "true name"), texts, left=(0, 2, 3)))
    if evaluation.failures_by_kind:
        failed = [(kind or "-", str(count)) for kind, count in evaluation.failures_by_kind]
        parts.append(table(("failed because of", "regions"), failed))
    return "\n".join(parts)


def percent(share: float | None) -> str:
    """Return a share in [0, 1] as percent with one digit, "-" where there was nothing to measure."""
    return "-" if share is None else f"{100 * share:.1f} %"


def interval(accuracy: Accuracy) -> str:
    """Return the 95 % interval in percent, "-" without regions."""
    if accuracy.low95 is None or accuracy.high95 is None:
        return "-"
    return bounds((accuracy.low95, accuracy.high95))


def bounds(pair: Interval | None) -> str:
    """Return an interval of shares in percent, "-" where there is none."""
    return "-" if pair is None else f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f}"


def named_accuracies(evaluation: Evaluation) -> list[tuple[str, Accuracy]]:
    """Return the accuracies that were measured, with their names, in the order to show them."""
    rows = [
        ("all regions", evaluation.top1),
        ("pictures seen in training", evaluation.top1_seen),
        ("unseen pictures", evaluation.top1_unseen),
        ("unseen photographs", evaluation.top1_unseen_photo),
        ("unseen drawings", evaluation.top1_unseen_drawing),
        ("labeled regions only", evaluation.when_labeled),
    ]
    return [(name, accuracy) for name, accuracy in rows if accuracy is not None]


def notes(evaluation: Evaluation) -> list[str]:
    """Return what limits these numbers, a sentence each: regions left out, categories that could not be answered."""
    counted = [
        (evaluation.num_missing, "of the truth with no outcome in the run; counted as wrong."),
        (evaluation.num_crowd, "marked as a crowd; not judged."),
        (evaluation.num_ambiguous, "with an id that another one has too; left out."),
        (evaluation.num_not_in_truth, "of the run that the truth does not have."),
        (evaluation.num_without_box, "without a box; left out of the average precisions."),
    ]
    found = [f"{_regions(count)} {what}" for count, what in counted if count]
    if evaluation.num_images_left_out:
        found.insert(
            0,
            f"The run covers {evaluation.num_images} of the truth's images. Left out: {evaluation.num_images_left_out} "
            f"with {_regions(evaluation.num_regions_left_out)}.",
        )
    if evaluation.matching.method == "name":
        found.append("Truth and vocabulary number their categories differently; matched by name.")
    if evaluation.num_regions:
        found.append(f"Intervals are of {NUM_RESAMPLES} resamples of the images.")
    missing = evaluation.matching.names_missing
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        found.append(f"True categories that the vocabulary lacks: {len(missing)} ({shown}).")
    return found


def _regions(count: int) -> str:
    return f"{count} region{'' if count == 1 else 's'}"


def _accuracies(evaluation: Evaluation) -> str:
    rows = [
        (name, str(a.num_regions), str(a.num_correct), percent(a.share), interval(a))
        for name, a in named_accuracies(evaluation)
    ]
    rows.append(("mean over categories", "", "", percent(evaluation.macro), bounds(evaluation.macro_interval95)))
    return table(("accuracy", "regions", "right", "top-1", "95 % interval"), rows)


def _outcomes(evaluation: Evaluation) -> str:
    def share(count: int) -> str:
        return percent(count / evaluation.num_regions if evaluation.num_regions else None)

    counts = (
        ("labeled (coverage)", evaluation.num_labeled),
        ("abstained", evaluation.num_abstained),
        ("failed", evaluation.num_failed),
        ("missing", evaluation.num_missing),
    )
    rows = [(name, str(count), share(count), "") for name, count in counts]
    rows[0] = (*rows[0][:3], bounds(evaluation.coverage_interval95))
    lines = [table(("outcome", "regions", "share", "95 % interval"), rows)]
    lines += [
        textwrap.fill(f"Note: {_printable(note)}", _WIDTH, subsequent_indent="      ") + "\n"
        for note in notes(evaluation)
    ]
    return "".join(lines)


def _precisions(evaluation: Evaluation) -> str:
    def row(name: str, precision: AveragePrecision) -> tuple[str, ...]:
        shown = bounds(precision.interval95)
        return (name, percent(precision.ap), shown, percent(precision.ap50), percent(precision.ap75))

    rows = [row("all scores 1.0 (tied)", evaluation.tied), row("the labels' own scores", evaluation.scored)]
    return table(("mAP on the truth's boxes", "AP", "95 % interval", "AP50", "AP75"), rows)


def _scores(scores: ScoreWorth) -> str:
    worth = scores.reliability
    measures = (worth.ece, worth.ece_by_chance, worth.brier, worth.aurc)
    row = (str(worth.num_labels), percent(worth.accuracy), percent(worth.mean_score), *(f"{m:.4f}" for m in measures))
    return table(
        ("scores as they are: labels", "right", "mean score", "ECE", "by chance", "Brier", "AURC"), [row], left=()
    )


def _lvis(lvis: LvisPrecision) -> str:
    cells = [
        (
            "the labels' own scores",
            percent(lvis.ap),
            percent(lvis.ap_rare),
            percent(lvis.ap_common),
            percent(lvis.ap_frequent),
        )
    ]
    shown = table(("LVIS AP on the truth's boxes", "AP", "APr", "APc", "APf"), cells)
    if not lvis.num_ignored:
        return shown
    return f"{shown}{lvis.num_ignored} of {lvis.num_labels} labels ignored: nobody checked their categories there.\n"


def _semantic(rows: Sequence[SemanticRow]) -> str:
    cells = [
        (
            row.name,
            str(row.num_regions),
            percent(row.similarity),
            bounds(row.similarity_interval95),
            percent(row.iou),
            bounds(row.iou_interval95),
        )
        for row in rows
    ]
    return table(("meaning (Osprey)", "regions", "similarity", "95 % interval", "IoU", "95 % interval"), cells)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: tuple[int, ...] = (0,)) -> str:
    """Return an aligned table for a console; the columns in `left` are texts and are cut where the table would get too wide."""
    cells = [[_printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    room = _WIDTH - 2 * (len(header) - 1) - sum(w for column, w in enumerate(widths) if column not in left)
    for column in sorted(left, key=lambda c: widths[c]):
        texts_left = sum(1 for c in left if widths[c] >= widths[column] and c != column)
        widths[column] = min(widths[column], max(8, room // (texts_left + 1)))
        room -= widths[column]
    lines = []
    for row in cells:
        fitted = [_cut(cell, widths[c]) for c, cell in enumerate(row)]
        padded = [cell.ljust(widths[c]) if c in left else cell.rjust(widths[c]) for c, cell in enumerate(fitted)]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _printable(text: str) -> str:
    """An answer or a file name may hold control characters; a terminal must not obey them."""
    return "".join(character if character.isprintable() else "?" for character in text)
