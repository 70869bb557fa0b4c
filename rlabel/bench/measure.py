"""Rounds over the rows: all of them once a round, one after the other, so that a machine that is slow for a while is slow for all; medians at the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rlabel.bench.arithmetic import Work, language_shape, matrix_peak, needed, synchronize
from rlabel.bench.rows import Prepared, Row
from rlabel.labeling.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """regions_per_s, ratio, cpu_s_per_region: medians over the rounds; the ratio is to the first row, round by round.

    num_same of num_compared texts are those of the first row in free text; None where the answers are not free.
    """

    name: str
    what: str
    seconds: tuple[float, ...]
    regions_per_s: float
    ratio: float
    cpu_s_per_region: float | None
    num_same: int | None
    num_compared: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Operations of the whole corpus, the machine's peak (operations a second), and the shares of it that the engine reached; 0 to 1.

    sharing: see `Engine.sharing`.
    """

    dtype: str
    threads: int
    sharing: str
    work: Work
    peak_flop_per_s: float
    tower_s: float
    prefill_s: float
    prefill_share: float
    overall_s: float
    overall_share: float


def measure(rows: Sequence[Row], rounds: int, say: Callable[[str], None]) -> list[RowResult]:
    """Return what each row reached. Nothing is left out of a round; a first, uncounted round warms the rows that are not warm by themselves."""
    seconds: dict[str, list[float]] = {row.name: [] for row in rows}
    rates: dict[str, list[float]] = {row.name: [] for row in rows}
    cpus: dict[str, list[float]] = {row.name: [] for row in rows}
    texts: dict[str, Mapping[str, str]] = {}
    for number in range(rounds + 1):
        for row in rows:
            if number == 0 and not row.warms_up:
                continue
            timed = row.run()
            texts[row.name] = timed.texts
            if number:
                seconds[row.name].append(timed.seconds)
                rates[row.name].append(len(timed.texts) / timed.seconds)
                if timed.cpu_s is not None:
                    cpus[row.name].append(timed.cpu_s / len(timed.texts))
                say(f"round {number} of {rounds}: {row.what}: {rates[row.name][-1]:.2f} regions/s")
    first = rates[rows[0].name]
    told = next((row.name for row in rows if row.free), None)
    results = []
    for row in rows:
        own = rates[row.name]
        same = compared = None
        if row.free and told is not None:
            keys = texts[row.name].keys() & texts[told].keys()
            same, compared = sum(texts[row.name][key] == texts[told][key] for key in keys), len(keys)
        results.append(
            RowResult(
                name=row.name,
                what=row.what,
                seconds=tuple(round(value, 4) for value in seconds[row.name]),
                regions_per_s=statistics.median(own),
                ratio=statistics.median(a / b for a, b in zip(own, first, strict=True)),
                cpu_s_per_region=statistics.median(cpus[row.name]) if cpus[row.name] else None,
                num_same=same,
                num_compared=compared,
            )
        )
    return results


def arithmetic(engine: Engine, short: Engine, prepared: Prepared, rounds: int) -> Arithmetic:
    """Return the operations and the shares of the peak, which is measured in every round.

    short: the same engine, one token an answer. Prefill is what it takes beyond encoding the images, whose time is measured alone.
    """
    dtype, device = next(engine.model.language_model.parameters()).dtype, engine.device
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        dtype = torch.float32
    tower_s: list[float] = []
    short_s: list[float] = []
    overall_s: list[float] = []
    peaks: list[float] = []
    num_tokens: list[int] = []
    for _ in range(rounds):
        peaks.append(matrix_peak(dtype, device))
        tower_s.append(_seconds(device, lambda batch: _encode(engine, batch), prepared))
        short_s.append(_seconds(device, short.answer, prepared))
        num_tokens = []

        def answered(batch: Sequence[Any], counts: list[int] = num_tokens) -> None:
            counts += [len(answer.token_logprobs) for own in engine.answer(batch) for answer in own]

        overall_s.append(_seconds(device, answered, prepared))
    work = needed(engine, prepared.inputs, num_tokens, language_shape(engine.model))
    peak = max(peaks)
    # The best of each, as the peak is the best of all products.
    tower, overall, prefill = min(tower_s), min(overall_s), min(short_s) - min(tower_s)
    return Arithmetic(
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        sharing=engine.sharing,
        work=work,
        peak_flop_per_s=peak,
        tower_s=tower,
        prefill_s=prefill,
        prefill_share=work.prefill / prefill / peak if prefill > 0 else 0.0,
        overall_s=overall,
        overall_share=work.total / overall / peak,
    )


@torch.inference_mode()
def _encode(engine: Engine, batch: Sequence[Any]) -> None:
    engine.encode(batch)


def _seconds(device: torch.device, call: Callable[[Sequence[Any]], object], prepared: Prepared) -> float:
    synchronize(device)
    started = time.perf_counter()
    for batch in prepared.batches:
        call(batch)
    synchronize(device)
    return time.perf_counter() - started


def table(results: Sequence[RowResult], found: Arithmetic | None) -> str:
    """Return the table for people."""
    width = max(len(row.what) for row in results)
    lines = [f"{'':{width}}  regions/s   ratio  CPU ms/region  same texts"]
    for row in results:
        same = "" if row.num_same is None else f"{row.num_same} of {row.num_compared}"
        cpu = "" if row.cpu_s_per_region is None else f"{1000 * row.cpu_s_per_region:.1f}"
        lines.append(f"{row.what:{width}}  {row.regions_per_s:9.2f}  {row.ratio:6.2f}  {cpu:>13}  {same}".rstrip())
    if found is not None:
        work = found.work
        lines += [
            "",
            f"needed: {work.total / 1e9:.1f} GFLOP (tower {work.tower / 1e9:.1f}, prefill {work.prefill / 1e9:.1f}, decoding {work.decode / 1e9:.1f})",
            f"matrix products in {found.dtype} on {found.threads} thread{'s' if found.threads > 1 else ''} reach "
            f"{found.peak_flop_per_s / 1e9:.1f} GFLOP/s here (wall clock); the engine ({found.sharing}) "
            f"{found.prefill_share:.1%} of that in prefill, {found.overall_share:.1%} overall",
        ]
    return "\n".join(lines)


def document(results: Sequence[RowResult], found: Arithmetic | None, about: Mapping[str, object]) -> dict[str, object]:
    """Return everything as a JSON object."""
    return {
        **about,
        "rows": [asdict(row) for row in results],
        "arithmetic": None if found is None else {**asdict(found), "needed_flop": found.work.total},
    }
