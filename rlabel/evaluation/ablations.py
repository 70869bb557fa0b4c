"""The tables of an ablation: ours beside RegionGPT's numbers, and whether the paper's direction of effect holds. Knows nothing of training.

The paper's numbers are of other pictures, other metrics and other sizes of models: only their direction is compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rlabel.evaluation.records import Evaluation
from rlabel.training.cells import Cell, Given, Variant

TableName = Literal["refinement", "masks", "tokens", "data", "modes"]
TABLES: tuple[TableName, ...] = get_args(TableName)
Mode = Literal["one_turn", "multi_turn", "separate"]
MODES: tuple[Mode, ...] = get_args(Mode)

# A difference below so many standard errors of it is not told apart from chance.
_SURE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a table: a variant (whatever its seed), the masks it is judged on, and what the paper measured."""

    name: str
    variant: Variant
    given: Given = "mask"
    paper: str = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """That the row named `better` is above the one named `worse`, by so many points in the paper."""

    better: str
    worse: str
    points: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """note: what a reader must know of how its cells were made. paper: what the paper's numbers are of."""

    title: str
    paper: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Shares over seeds. spread: standard deviation over them (n - 1); None for one seed."""

    mean: float
    spread: float | None
    num_seeds: int


_MASK, _BOX = Variant(), Variant(trained_on="box")
_COARSE, _COARSE_BOX = Variant(refine=False), Variant(refine=False, trained_on="box")

# Numbers: RegionGPT (arXiv 2403.02330), ablations on COCO 2017 val with ground-truth regions; tokens: PixelRefer's ablation on PACO.
_REFINEMENT = Table(
    title="Refinement",
    paper="COCO mAP, SigLIP tower",
    rows=(
        Row(name="refined, masks", variant=_MASK, paper="71.0"),
        Row(name="refined, boxes", variant=_BOX, given="box", paper="70.4"),
        Row(name="not refined, masks", variant=_COARSE, paper="65.6"),
        Row(name="not refined, boxes", variant=_COARSE_BOX, given="box", paper="60.0"),
    ),
    claims=(
        Claim(better="refined, masks", worse="not refined, masks", points=5.4),
        Claim(better="refined, boxes", worse="not refined, boxes", points=10.4),
        Claim(better="refined, masks", worse="refined, boxes", points=0.6),
        Claim(better="not refined, masks", worse="not refined, boxes", points=5.6),
    ),
    note="Trained and judged on the same kind of regions.",
)
_MASKS = Table(
    title="Masks that are off",
    paper="COCO mAP, kernel of 5 at 336 px",
    rows=(
        Row(name="mask", variant=_MASK, paper="70.0"),
        Row(name="box", variant=_MASK, given="box", paper="69.3"),
        Row(name="dilated", variant=_MASK, given="dilated", paper="71.0"),
        Row(name="eroded", variant=_MASK, given="eroded", paper="68.2"),
    ),
    claims=(
        Claim(better="mask", worse="box", points=0.7),
        Claim(better="dilated", worse="mask", points=1.0),
        Claim(better="mask", worse="eroded", points=1.8),
    ),
    note="One model, trained on masks, judged on each. Eroded masks of which less than a third would be left shrink by less.",
)
_TOKENS = Table(
    title="Tokens a region",
    paper="PixelRefer on PACO, 1 / 8 / 16 tokens of an object's crop",
    rows=(
        Row(name="1 token", variant=_MASK, paper="87.2"),
        Row(name="4 tokens", variant=Variant(tokens_per_region=4), paper="89.9 (8)"),
        Row(name="9 tokens", variant=Variant(tokens_per_region=9), paper="90.1 (16)"),
        Row(name="4 tokens by attention", variant=Variant(tokens_per_region=4, region_pooling="attention")),
    ),
    claims=(
        Claim(better="4 tokens", worse="1 token", points=2.7),
        Claim(better="9 tokens", worse="4 tokens", points=0.2),
    ),
    note="By the nearest name, which takes the mean of a region's tokens: a language model that reads them one by one is not in this table.",
)
_DATA = Table(
    title="Annotations a category",
    paper="COCO mAP, 10 / 20 / 50 / 200 a category, ViT-B/16",
    rows=(
        Row(name="5", variant=Variant(per_category=5), paper="52.7 (10)"),
        Row(name="10", variant=Variant(per_category=10), paper="56.8 (20)"),
        Row(name="20", variant=Variant(per_category=20), paper="57.3 (50)"),
        Row(name="all", variant=_MASK, paper="60.9 (200)"),
    ),
    claims=(
        Claim(better="10", worse="5", points=4.1),
        Claim(better="20", worse="10", points=0.5),
        Claim(better="all", worse="20", points=3.6),
    ),
    note="Every cell takes the same number of steps: fewer annotations are seen more often. The paper's amounts are larger than ours.",
)
TRAINED: Mapping[TableName, Table] = {"refinement": _REFINEMENT, "masks": _MASKS, "tokens": _TOKENS, "data": _DATA}

_PAPER_MODES: Mapping[Mode, str] = {"one_turn": "70.0", "multi_turn": "73.8", "separate": "71.5"}


def variants_of(names: Sequence[TableName], num_seeds: int) -> list[Variant]:
    """Return the variants that tables need, each once, seed by seed: the first seed of every cell comes before any second one."""
    rows = [row for name in names if name in TRAINED for row in TRAINED[name].rows]
    once = dict.fromkeys(row.variant for row in rows)
    return [variant.with_seed(seed) for seed in range(num_seeds) for variant in once]


def table_to_markdown(table: Table, cells: Sequence[Cell]) -> str:
    """Return a table with what was measured, and below it whether each of the paper's directions holds."""
    lines = [f"### {table.title}", ""]
    lines += [
        f"| | top-1, all | top-1, unseen | regions learned from | seeds | paper ({table.paper}) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    measured = {row.name: _cells_of(row, cells) for row in table.rows}
    for row in table.rows:
        own = measured[row.name]
        whole = summarise([cell.top1 for cell in own])
        learned = sorted({cell.num_trained_on for cell in own})
        counts = "-" if not learned else str(learned[0]) if len(learned) == 1 else f"{learned[0]} to {learned[-1]}"
        seeds = str(whole.num_seeds) if whole else "0"
        unseen = summarise([cell.top1_unseen for cell in own])
        lines.append(f"| {row.name} | {told(whole)} | {told(unseen)} | {counts} | {seeds} | {row.paper} |")
    lines.append("")
    for claim in table.claims:
        verdict = _verdict(measured[claim.better], measured[claim.worse])
        lines.append(f"- {claim.better} above {claim.worse} (paper {claim.points:+.1f}): {verdict}")
    if table.note:
        lines += ["", table.note]
    return "\n".join(lines) + "\n"


def _cells_of(row: Row, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of a row, one a seed."""
    found = {
        cell.variant.seed: cell
        for cell in cells
        if cell.given == row.given and cell.variant.with_seed(0) == row.variant.with_seed(0)
    }
    return [found[seed] for seed in sorted(found)]


def summarise(shares: Sequence[float | None]) -> Summary | None:
    """Return mean and spread of shares; None without any."""
    known = [share for share in shares if share is not None]
    if not known:
        return None
    spread = statistics.stdev(known) if len(known) > 1 else None
    return Summary(mean=statistics.fmean(known), spread=spread, num_seeds=len(known))


def told(summary: Summary | None) -> str:
    """Return a summary in percent: "34.1 ± 0.6", "34.1" for one seed, "-" for nothing."""
    if summary is None:
        return "-"
    spread = "" if summary.spread is None else f" ± {100 * summary.spread:.1f}"
    return f"{100 * summary.mean:.1f}{spread}"


def _verdict(better: Sequence[Cell], worse: Sequence[Cell]) -> str:
    """Say whether one row is above another: over the seeds that both have, since these share order and choice."""
    mates = {cell.variant.seed: cell for cell in worse}
    pairs = [(cell, mates[cell.variant.seed]) for cell in better if cell.variant.seed in mates]
    points = [100 * ((a.top1 or 0.0) - (b.top1 or 0.0)) for a, b in pairs]
    if not points:
        return "not measured"
    mean = statistics.fmean(points)
    if len(points) == 1:
        return f"ours {mean:+.1f} (1 seed): {'holds' if mean > 0 else 'does not hold'}"
    error = statistics.stdev(points) / math.sqrt(len(points))
    sure = abs(mean) >= _SURE * error
    answer = ("holds" if mean > 0 else "does not hold") if sure else "not told apart from chance"
    return f"ours {mean:+.1f} ± {error:.1f}: {answer}"


def modes_to_markdown(
    evaluations: Mapping[Mode, Evaluation], seconds: Mapping[Mode, float | None], trained_for: Sequence[str] | None
) -> str:
    """Return the table of how regions are asked: one model labeled the corpus in each mode.

    trained_for: the modes that the model was trained in, None where nothing says so; a model that never saw a mode is no evidence against it.
    """
    lines = ["### One turn, many turns, or a conversation a region", ""]
    lines += [
        "| | top-1, all | top-1, unseen | seconds | trained for it | paper (COCO mAP) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for mode, evaluation in evaluations.items():
        unseen = evaluation.top1_unseen.share if evaluation.top1_unseen is not None else None
        took = seconds.get(mode)
        trained = "not known" if trained_for is None else "yes" if mode in trained_for else "no"
        lines.append(
            f"| {mode} | {_percent(evaluation.top1.share)} | {_percent(unseen)} | {'-' if took is None else f'{took:.0f}'} | {trained} | "
            f"{_PAPER_MODES[mode]} |"
        )
    return "\n".join(lines) + "\n\nOne model, greedy free text, snapped: 1 seed.\n"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
