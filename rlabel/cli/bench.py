"""`rlabel bench`: how fast this machine labels, beside plain `generate` and beside its own matrix products."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from rlabel.cli.options import ends_cleanly, print_json, stop_on_sigterm
from rlabel.errors import InputError, UsageError

_ROWS = (
    "generate", "batched", "unshared", "expanded", "packed", "constrained", "exact", "no-ray", "ray-1", "ray-2", "ray-4",
)  # fmt: skip


@click.command(context_settings={"max_content_width": 110})
@click.option(
    "--model", help="Model folder, hub id, or `embedded`; a model of --shape with random weights if left out."
)
@click.option("--shape", type=click.Choice(["tiny", "135m"]), default="tiny", show_default=True)
@click.option("--images", "num_images", type=click.IntRange(1, 100_000), default=32, show_default=True)
@click.option("--regions-per-image", type=click.IntRange(1, 1000), default=12, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(_ROWS), help="These rows only. May be repeated.")
@click.option(
    "--plain-regions",
    type=click.IntRange(1),
    default=24,
    show_default=True,
    help="Regions that `generate` is asked about.",
)
@click.option("--max-new-tokens", type=click.IntRange(1, 1024), default=6, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option(
    "--attention", type=click.Choice(["auto", "eager", "sdpa", "flash_attention_2"]), default="auto", show_default=True
)
@click.option("--compile", is_flag=True, help="Let torch.compile fuse the language model's layers.")
@click.option(
    "--compile-mode",
    type=click.Choice(["default", "reduce-overhead", "max-autotune-no-cudagraphs"]),
    default="default",
    show_default=True,
    help="Of --compile, by torch's names; reduce-overhead: CUDA graphs, on a CPU the same as default.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="Of torch; all CPUs if left out.")
@click.option("--max-regions-per-batch", type=click.IntRange(1), default=192, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--profile", is_flag=True, help="Also print where the time of the pipeline in this process goes.")
@click.option(
    "--prefill",
    is_flag=True,
    help="No rows: only the share of the matrix products' peak that prompts reach; with one thread by processor time.",
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also write the numbers into this file.")
@ends_cleanly
def bench(
    model: str | None,
    shape: str,
    num_images: int,
    regions_per_image: int,
    rounds: int,
    only: tuple[str, ...],
    plain_regions: int,
    max_new_tokens: int,
    dtype: str,
    attention: str,
    compile: bool,
    compile_mode: str,
    device: str,
    threads: int | None,
    max_regions_per_batch: int,
    seed: int,
    profile: bool,
    prefill: bool,
    json_path: str | None,
) -> None:
    """Measure regions a second on a drawn corpus: plain `generate`, the engine, and the whole pipeline.

    \b
    Example:
      rlabel bench --shape 135m --images 12 --only generate --only packed
      rlabel bench --model embedded --json bench.json
      rlabel bench --shape 135m --images 16 --threads 1 --dtype bfloat16 --prefill

    All rows run once a round, one after the other; the numbers are medians over the rounds.
    """
    from rlabel.bench.command import BenchOptions, run_bench

    stop_on_sigterm()
    if prefill and (only or profile):
        raise UsageError("--prefill: it measures no rows. Leave out --only and --profile, or leave it out.")
    if compile_mode != "default" and not compile:
        raise UsageError(f"--compile-mode {compile_mode}: it is of --compile. Give that too, or leave it out.")
    options = BenchOptions(
        model=model,
        shape=shape,  # type: ignore[arg-type]
        num_images=num_images,
        regions_per_image=regions_per_image,
        rounds=rounds,
        only=only,  # type: ignore[arg-type]
        plain_regions=plain_regions,
        max_new_tokens=max_new_tokens,
        dtype=dtype,  # type: ignore[arg-type]
        attention=attention,  # type: ignore[arg-type]
        compile=compile,
        compile_mode=compile_mode,  # type: ignore[arg-type]
        device=device,
        threads=threads or os.cpu_count() or 1,
        max_regions_per_batch=max_regions_per_batch,
        seed=seed,
        profile=profile,
        prefill=prefill,
    )
    # stdout is for results; Ray tells of its workers there.
    with redirect_stdout(sys.stderr):
        table, found = run_bench(options, _say)
    print(table)
    if json_path is not None:
        try:
            Path(json_path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--json {json_path}: cannot be written ({error.strerror}). Name another file.") from error
    print_json(found)


def _say(text: str) -> None:
    print(f"rlabel: {text}", file=sys.stderr, flush=True)
