"""Plants wrong human labels and counts how many `rlabel audit` finds.

    rlabel label --images images/ --regions instances.json --vocabulary names.json --out run/
    python benchmarks/audit.py --run run/ --truth instances.json [--share 0.05] [--seeds 5] [--provenance FILE] [--calibrator FILE]

In a copy of the truth a share of the non-crowd regions gets another category, drawn uniformly among the others. The run's suspects,
likeliest to be wrong first, are compared with what was planted: recall where precision is still 50 %, the whole curve, and what `--precision 0.5` lists.
True labels that the labeler contradicts count as false alarms, also where people were wrong before. With provenance, seen and unseen pictures apart.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rlabel.evaluation.auditing import Audit, Suspect, audit_run, choose_suspects
from rlabel.evaluation.reading import read_provenance, read_run_image_ids
from rlabel.storage import Store

Key = tuple[str, str]
RECALLS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def plant(document: dict[str, Any], share: float, seed: int) -> set[Key]:
    """Give a share of the non-crowd annotations another category, in place, and return their image and annotation ids."""
    generator = random.Random(seed)
    categories = [category["id"] for category in document["categories"]]
    rows = [row for row in document["annotations"] if not row.get("iscrowd")]
    chosen = generator.sample(rows, round(share * len(rows)))
    for row in chosen:
        row["category_id"] = generator.choice([c for c in categories if c != row["category_id"]])
    return {(str(row["image_id"]), str(row["id"])) for row in chosen}


def curve(suspects: tuple[Suspect, ...], planted: set[Key]) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall of the first 1, 2, ... suspects."""
    hits = np.cumsum([(s.image_id, s.region_id) in planted for s in suspects])
    return hits / np.arange(1, len(hits) + 1), hits / len(planted)


def recall_at(precision_N: np.ndarray, recall_N: np.ndarray, wanted: float) -> float:
    """Return the greatest recall at which precision is at least `wanted`; 0 where it never is."""
    enough = precision_N >= wanted
    return float(recall_N[enough].max()) if enough.any() else 0.0


def measure(
    run: str, document: dict[str, Any], share: float, seed: int, calibrator: str | None
) -> tuple[Audit, set[Key]]:
    changed = json.loads(json.dumps(document))
    planted = plant(changed, share, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planted.json"
        path.write_text(json.dumps(changed), encoding="utf-8")
        return audit_run(run, str(path), calibrator), planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--truth", required=True, type=Path)
    parser.add_argument("--provenance")
    parser.add_argument("--calibrator")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    document = json.loads(options.truth.read_text(encoding="utf-8"))
    covered = read_run_image_ids(Store.open(options.run))  # a run of --limit: nothing is planted where it cannot look
    document["annotations"] = [row for row in document["annotations"] if str(row["image_id"]) in covered]
    measured = [
        measure(options.run, document, options.share, seed, options.calibrator) for seed in range(options.seeds)
    ]
    groups: dict[str, set[str] | None] = {"all regions": None}
    if options.provenance:
        origins = read_provenance(options.provenance)
        groups["pictures seen in training"] = {i for i, origin in origins.items() if origin.seen_in_train}
        groups["unseen pictures"] = {i for i, origin in origins.items() if not origin.seen_in_train}
    print(f"{options.share:.1%} of the labels made wrong, {options.seeds} seeds: mean (lowest to highest)\n")
    print(
        "| regions | planted | contradicted | recall at 50 % precision | recall at 80 % | of all suspects | confident: recall | precision |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for title, ids in groups.items():
        print(row(title, [of_group(audit, planted, ids) for audit, planted in measured]))
    print("\nthe curve of all regions, mean over the seeds:\n\n| recall | precision |\n| --- | --- |")
    curves = [curve(audit.suspects, planted) for audit, planted in measured]
    for wanted in RECALLS:
        at = [float(p[r >= wanted].max()) if (r >= wanted).any() else float("nan") for p, r in curves]
        print(f"| {100 * wanted:.0f} % | {'not reached' if np.isnan(at).any() else f'{100 * np.mean(at):.1f} %'} |")
    listed = [choose_suspects(audit, precision=0.5) for audit, _ in measured]
    held = [
        sum((s.image_id, s.region_id) in planted for s in own)
        for own, (_, planted) in zip(listed, measured, strict=True)
    ]
    num_listed, num_planted = sum(len(own) for own in listed), sum(len(planted) for _, planted in measured)
    noise = np.mean([audit.noise or 0 for audit, _ in measured])
    print(
        f"\n{measured[0][0].num_judged} of {measured[0][0].num_regions} regions judged; estimated noise {100 * noise:.1f} %; "
        f"--precision 0.5 lists {num_listed / len(listed):.0f}, of which {100 * sum(held) / max(num_listed, 1):.1f} % were planted: "
        f"{100 * sum(held) / num_planted:.1f} % of all that was"
    )


def of_group(audit: Audit, planted: set[Key], ids: set[str] | None) -> tuple[tuple[Suspect, ...], set[Key]]:
    if ids is None:
        return audit.suspects, planted
    return tuple(s for s in audit.suspects if s.region_id in ids), {key for key in planted if key[1] in ids}


def row(title: str, rows: list[tuple[tuple[Suspect, ...], set[Key]]]) -> str:
    curves = [curve(suspects, planted) for suspects, planted in rows]
    confident = [sum(s.is_confident for s in suspects) for suspects, _ in rows]
    cells = [
        [recall_at(p, r, 0.5) for p, r in curves],
        [recall_at(p, r, 0.8) for p, r in curves],
        [float(r[-1]) for _, r in curves],
        [float(r[n - 1]) if n else 0.0 for (_, r), n in zip(curves, confident, strict=True)],
        [float(p[n - 1]) if n else 0.0 for (p, _), n in zip(curves, confident, strict=True)],
    ]
    shown = [f"{100 * np.mean(c):.1f} % ({100 * min(c):.1f} to {100 * max(c):.1f})" for c in cells]
    counts = [f"{np.mean([len(p) for _, p in rows]):.0f}", f"{np.mean([len(s) for s, _ in rows]):.0f}"]
    return f"| {' | '.join([title, *counts, *shown])} |"


if __name__ == "__main__":
    main()
