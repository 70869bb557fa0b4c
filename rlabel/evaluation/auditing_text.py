"""An audit as text for a console of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rlabel.evaluation.auditing import Audit, Suspect
from rlabel.evaluation.text import percent, table

_NUM_LISTED = 40


def audit_to_text(audit: Audit, listed: Sequence[Suspect]) -> str:
    """Return the counts and the listed suspects, at most 100 columns wide, ending with a newline."""
    confident = sum(s.is_confident for s in audit.suspects)
    told = (
        f"{audit.num_judged} of {audit.num_regions} human labels compared; {audit.num_contradicted} contradicted, {confident} of them "
        f"confidently. Estimated share of wrong human labels: {percent(audit.noise)}{'' if audit.has_candidates else ', rather too high than too low'}."
    )
    lines = [textwrap.fill(told, 98)]
    left_out = (
        (audit.num_unlabeled, "the run has no label for."),
        (audit.num_unknown_to_labeler, "have a human category that the run's vocabulary lacks."),
        (audit.num_unknown_to_humans, "are labeled with a category that the human file lacks."),
    )
    lines += [f"Left out: {count} regions {why}" for count, why in left_out if count]
    if not audit.has_candidates:
        lines.append("Only the answers' scores are known: label with --decoding hybrid --num-candidates 32 for more.")
    cells = [
        (
            f"{s.region_id} of {s.image_id}",
            s.human_name,
            s.labeler_name,
            f"{s.probability:.3f}",
            f"{s.threshold:.3f}",
            "-" if s.human_probability is None else f"{s.human_probability:.3f}",
            percent(s.expected_precision),
        )
        for s in listed[:_NUM_LISTED]
    ]
    header = ("suspect region", "human", "labeler", "labeler's p", "threshold", "human's p", "wrong")
    # the last column: how likely the human label is wrong
    body = table(header, cells, left=(0, 1, 2)) if cells else "No suspects.\n"
    more = len(listed) - len(cells)
    tail = f"and {more} more; all of them with --out or --json.\n" if more > 0 else ""
    return "\n".join([*lines, "", body]) + tail
