"""The engine against transformers' own `generate`, on the language model alone: image and region tokens are random, so the tower's share is left out.

    python benchmarks/engine.py [--shape 135m] [--images 5] [--regions 12] [--vocabulary names.json] [--rounds 3] [--threads 2] [--clock wall]

Random weights, float32, greedy, up to 6 new tokens; the tower, which `generate` runs once a region and the engine once an image, would only add to the
ratios. All ways alternate within a round; ratios are medians over the rounds. `generate` a region at a time is timed on some of the regions, of all images.
Random weights are unsure of everything, which makes the exact search visit nearly all names: --surer multiplies the logits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import click
import torch
from torch import Tensor

from rlabel.bench.models import SHAPES, make_model
from rlabel.labeling.engine import Decoded, Engine, EngineOptions
from rlabel.labeling.search import searched
from rlabel.regiongpt.processing import PromptTokens
from rlabel.vocabulary.likelihood import Choosing
from rlabel.vocabulary.vocabulary import load_vocabulary

SUFFIX_TOKENS = 15
Answers = list[tuple[int, ...]]


@click.command()
@click.option("--shape", type=click.Choice(["135m", "tiny"]), default="135m")
@click.option("--images", default=5, help="answered together")
@click.option("--regions", default=12, help="of each image")
@click.option("--vocabulary", help="names for constrained decoding; without, free text only")
@click.option("--new-tokens", default=6)
@click.option("--rounds", default=3)
@click.option("--plain", default=6, help="regions that `generate` answers one by one in a round")
@click.option("--threads", default=2)
@click.option("--score-all", is_flag=True, help="also score every name: slow")
@click.option("--surer", default=1.0, help="factor of the logits")
@click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", help="cpu: processor seconds, for a busy machine"
)
def main(
    shape: str, images: int, regions: int, vocabulary: str | None, new_tokens: int, rounds: int, plain: int,
    threads: int, score_all: bool, surer: float, clock: str,
) -> None:  # fmt: skip
    """Print milliseconds a region of each way, and how many times faster than `generate` it is."""
    torch.set_num_threads(threads)
    names = Choosing(load_vocabulary(vocabulary, keep_zero_ids=True)).names if vocabulary else ()
    model, processor = make_model(SHAPES[shape], names or ("cat", "dog"))  # type: ignore[index]
    with torch.no_grad():
        model.language_model.model.norm.weight.mul_(surer)
    free = Engine(model, processor, EngineOptions(max_new_tokens=new_tokens))
    prompt = _prompt(free)
    torch.manual_seed(1)
    width = model.config.text_config.hidden_size
    scale = float(model.get_input_embeddings().weight.detach().std())
    image_BTD = torch.randn(images, processor.num_image_tokens, width) * scale
    region_NKD = torch.randn(images * regions, 1, width) * scale * 2
    image_index_N = torch.arange(images).repeat_interleave(regions)
    tried = torch.linspace(0, images * regions - 1, plain).long()

    def engine_way(options: EngineOptions) -> Callable[[], Answers]:
        engine = Engine(model, processor, options)
        return lambda: _ids(engine.decode(image_BTD, region_NKD, image_index_N, prompt))

    @torch.inference_mode()
    def all_names() -> Answers:
        rows, logits = named.ask(image_BTD, region_NKD, image_index_N, prompt)
        assert named.stretches is not None
        founds = searched(named.stretches, rows, logits, "all")
        return [tuple(ids[:-1]) for found in founds for ids, _, _ in found.answers()]

    own = free.options
    batch = torch.arange(min(16, images * regions))
    ways: dict[str, tuple[Callable[[], Answers], int]] = {
        "generate, a region at a time": (
            lambda: [answer for n in tried for answer in _generate(free, prompt, image_BTD, region_NKD, image_index_N, n[None])],
            len(tried),
        ),
        f"generate, batches of {len(batch)}": (
            lambda: _generate(free, prompt, image_BTD, region_NKD, image_index_N, batch), len(batch),
        ),
        "engine, expanded": (engine_way(replace(own, prefix_sharing="expanded")), images * regions),
        "engine, packed": (engine_way(replace(own, prefix_sharing="packed")), images * regions),
    }  # fmt: skip
    if names:
        named = Engine(model, processor, replace(own, prefix_sharing="packed", names=names))
        ways |= {
            "constrained, expanded": (engine_way(replace(named.options, prefix_sharing="expanded")), images * regions),
            "constrained, packed": (engine_way(named.options), images * regions),
            "exact best name": (engine_way(replace(named.options, search="exact")), images * regions),
        }
        if score_all:
            ways["all names scored"] = (all_names, images * regions)
    print(
        f"{shape}, {images} images of {regions} regions, prompts of {len(prompt.prefix_ids)} + {len(prompt.suffix_ids)} tokens, "
        f"{len(names)} names, {threads} threads, {clock} clock"
    )
    _race(ways, tried, rounds, time.process_time if clock == "cpu" else time.perf_counter)


def _race(
    ways: dict[str, tuple[Callable[[], Answers], int]], tried: Tensor, rounds: int, now: Callable[[], float]
) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, Answers] = {}
    for number in range(rounds + 1):
        for name, (way, count) in ways.items():
            started = now()
            said[name] = way()
            if number:  # the first round warms up
                seconds[name].append((now() - started) / count)
    plain = next(iter(ways))
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(seconds[plain], seconds[name], strict=True))
        print(f"{name:30} {statistics.median(seconds[name]) * 1e3:9.2f} ms a region, {ratio:6.2f} times generate")
    for name in ("engine, expanded", "engine, packed"):
        same = sum(said[name][n] == text for n, text in zip(tried.tolist(), said[plain], strict=True))
        print(f"{name}: {same} of {len(tried)} answers are generate's")
    if "exact best name" in ways:
        times = statistics.median(
            a / b for a, b in zip(seconds["exact best name"], seconds["constrained, packed"], strict=True)
        )
        print(f"exact best name: {times:.2f} times one greedy constrained answer")
    if "all names scored" in ways:
        same = sum(a == b for a, b in zip(said["exact best name"], said["all names scored"], strict=True))
        greedy = sum(a == b for a, b in zip(said["constrained, packed"], said["all names scored"], strict=True))
        print(f"the best of all names scored: exact {same}, greedy {greedy} of {len(said['exact best name'])}")


def _prompt(engine: Engine) -> PromptTokens:
    """Return the engine's prompt with a suffix of the reference length."""
    suffix = list(engine.prompt.suffix_ids)
    filling = [token for token in range(100, 200) if token not in engine.processor.stop_ids]
    return replace(engine.prompt, suffix_ids=tuple([*suffix, *filling][:SUFFIX_TOKENS]))


def _ids(answers: list[Decoded]) -> Answers:
    return [answer.token_ids for answer in answers]


@torch.inference_mode()
def _generate(
    engine: Engine, prompt: PromptTokens, image_BTD: Tensor, region_NKD: Tensor, image_index_N: Tensor, rows: Tensor
) -> Answers:
    """Return what transformers' own generate says, all prompts of the rows in one batch."""
    ids = torch.tensor([[*prompt.prefix_ids, *prompt.suffix_ids]]).expand(len(rows), -1)
    embeddings = engine.model.embed_prompt(ids, image_BTD[image_index_N[rows]], region_NKD[rows])
    stops = list(engine.processor.stop_ids)
    new = engine.model.language_model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=engine.options.max_new_tokens,
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    return [tuple(row[: next((i for i, token in enumerate(row) if token in stops), len(row))]) for row in new.tolist()]


if __name__ == "__main__":
    main()
