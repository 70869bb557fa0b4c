"""Prefill alone beside plain matrix products, round by round: the share of the machine's peak that the prompts of a corpus reach."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlabel.bench.arithmetic import language_shape, matrix_peak, prefill_flop, synchronize
from rlabel.bench.rows import Prepared
from rlabel.labeling.engine import Engine

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """clock: "processor" (one thread on a CPU: others on the machine do not count) or "wall". seconds, peak_flop_per_s, share: medians over the rounds.

    sharing: how prompts were kept; "packed, own layers" where rlabel computed the language model itself.
    """

    dtype: str
    threads: int
    clock: str
    sharing: str
    num_prefix_tokens: int
    num_suffix_tokens: int
    flop: float
    seconds: float
    peak_flop_per_s: float
    share: float
    shares: tuple[float, ...]


@torch.inference_mode()
def measure_prefill(engine: Engine, prepared: Prepared, rounds: int, say: Callable[[str], None]) -> Prefill:
    """Return what the prompts of a corpus reach of the peak; images and regions are encoded before, the first token of an answer is chosen.

    A round measures the peak, then the prefill; the share is the median of the rounds' own.
    """
    device, threads = engine.device, torch.get_num_threads()
    alone = device.type == "cpu" and threads == 1
    clock = time.process_time if alone else time.perf_counter
    weight = next(engine.model.language_model.parameters())
    dtype = weight.dtype if weight.dtype in _DTYPES else torch.float32
    encoded = [engine.encode(batch) for batch in prepared.batches]
    index = [torch.repeat_interleave(torch.arange(len(one.counts)), torch.tensor(one.counts)) for one in encoded]

    def ask() -> list[Tensor]:
        return [
            engine.ask(one.image_tokens_BTD, one.regions_RKD, own)[1] for one, own in zip(encoded, index, strict=True)
        ]

    ask()
    prefix, suffix = len(engine.prompt.prefix_ids), len(engine.prompt.suffix_ids)
    num_images, num_regions = sum(len(one.counts) for one in encoded), sum(sum(one.counts) for one in encoded)
    flop = prefill_flop(language_shape(engine.model), prefix, suffix, num_images, num_regions)
    seconds, peaks = [], []
    for number in range(1, rounds + 1):
        peaks.append(matrix_peak(dtype, device, clock=clock))
        synchronize(device)
        started = clock()
        ask()
        synchronize(device)
        seconds.append(clock() - started)
        say(
            f"round {number} of {rounds}: prefill {flop / seconds[-1] / peaks[-1]:.1%} of {peaks[-1] / 1e9:.0f} GFLOP/s"
        )
    shares = [flop / own_s / peak for own_s, peak in zip(seconds, peaks, strict=True)]
    return Prefill(
        dtype=str(dtype).removeprefix("torch."),
        threads=threads,
        clock="processor" if alone else "wall",
        sharing=engine.sharing,
        num_prefix_tokens=num_images * prefix,
        num_suffix_tokens=num_regions * suffix,
        flop=flop,
        seconds=statistics.median(seconds),
        peak_flop_per_s=statistics.median(peaks),
        share=statistics.median(shares),
        shares=tuple(round(share, 4) for share in shares),
    )


def prefill_text(found: Prefill) -> str:
    """Return the lines for people."""
    plural = "s" if found.threads > 1 else ""
    return (
        f"prefill of {found.num_prefix_tokens} tokens of prefixes and {found.num_suffix_tokens} behind them, {found.dtype}, "
        f"{found.threads} thread{plural}, {found.sharing}:\n"
        f"{found.flop / 1e9:.0f} GFLOP in {found.seconds:.2f} s ({found.clock} time), {found.share:.1%} of the "
        f"{found.peak_flop_per_s / 1e9:.0f} GFLOP/s that matrix products reach here (median of {len(found.shares)} rounds)"
    )
