"""The engine against one plain `generate` a region, on pictures: are the texts the same, and how much faster is it?

    python benchmarks/engine_texts.py --images DIR --regions FILE.json [--model DIR] [--vocabulary names.json] [--num-images N] [--rounds K]

All get the same prepared inputs, float32, greedy, one thread count; they alternate, and ratios are medians over the rounds. With a vocabulary, the exact
search for the likeliest name is compared with greedy constrained answers, and judged by the probability of every name.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import torch
from transformers.utils import logging

from rlabel.bench.plain import generate, one_region
from rlabel.corpus.coco import read_corpus
from rlabel.corpus.inputs import prepare_image
from rlabel.corpus.limits import Limits
from rlabel.labeling.engine import Decoded, Engine, EngineOptions
from rlabel.labeling.search import searched
from rlabel.regiongpt.assembly import load_processor
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs
from rlabel.regiongpt.quantization import Precision, load_model
from rlabel.run.job import resolve
from rlabel.storage import Store
from rlabel.vocabulary.likelihood import Choosing
from rlabel.vocabulary.vocabulary import load_vocabulary


@click.command()
@click.option("--images", required=True)
@click.option("--regions", required=True)
@click.option("--model", default="embedded")
@click.option("--vocabulary")
@click.option("--num-images", default=200)
@click.option("--batch", default=12, help="images at once")
@click.option("--rounds", default=3)
@click.option("--threads", default=2)
@click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", help="cpu: processor seconds, for a busy machine"
)
def main(
    images: str, regions: str, model: str, vocabulary: str | None, num_images: int, batch: int, rounds: int, threads: int,
    clock: str,
) -> None:  # fmt: skip
    """Compare the engine with plain generate."""
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    folder = str(resolve(model))
    processor = load_processor(folder)
    loaded = load_model(folder, Precision(dtype="float32"), "cpu")
    now = time.process_time if clock == "cpu" else time.perf_counter
    inputs = _inputs(images, regions, num_images, processor)
    groups = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
    num_regions = sum(len(item.region_masks_RGG) for item in inputs)
    print(f"{len(inputs)} images, {num_regions} regions, {threads} threads, float32, {clock} clock")
    options = EngineOptions()

    def way(options: EngineOptions) -> Callable[[], list[Decoded]]:
        engine = Engine(loaded, processor, options)
        return lambda: [answer for group in groups for own in engine.answer(group) for answer in own]

    ways: dict[str, Callable[[], list[Any]]] = {
        "generate": lambda: _generate(Engine(loaded, processor, options), inputs),
        "packed": way(replace(options, prefix_sharing="packed")),
        "expanded": way(replace(options, prefix_sharing="expanded")),
    }
    if vocabulary:
        names = Choosing(load_vocabulary(vocabulary, keep_zero_ids=True)).names
        inside = replace(options, names=names)
        print(f"{len(names)} names")
        ways |= {"constrained": way(inside), "exact": way(replace(inside, search="exact"))}
        ways["all names"] = lambda: _all_names(Engine(loaded, processor, inside), groups)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, list[Any]] = {}
    for number in range(rounds + 1):
        for name, answered in ways.items():
            started = now()
            said[name] = [getattr(answer, "text", answer) for answer in answered()]
            if number:  # the first round warms up
                seconds[name].append(now() - started)
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(seconds["generate"], seconds[name], strict=True))
        print(f"{name:12} {num_regions / statistics.median(seconds[name]):8.1f} regions/s, {ratio:6.2f} times generate")
    for name in ("packed", "expanded"):
        same = sum(a == b for a, b in zip(said[name], said["generate"], strict=True))
        print(f"{name}: {same} of {num_regions} texts are generate's")
    if vocabulary:
        times = statistics.median(a / b for a, b in zip(seconds["exact"], seconds["constrained"], strict=True))
        print(f"exact: {times:.2f} times greedy constrained")
        for name in ("exact", "constrained"):
            same = sum(a == b for a, b in zip(said[name], said["all names"], strict=True))
            print(f"{name}: {same} of {num_regions} names are the likeliest of all")


def _inputs(images: str, regions: str, num_images: int, processor: RegionGPTProcessor) -> list[RegionInputs]:
    store = Store.open(images)
    found = []
    with read_corpus(regions) as corpus:
        for record in corpus.images(num_images):
            prepared = prepare_image(store, record, Limits())
            if prepared.pixels_HWC is not None:
                masks = [region.mask for region in prepared.regions]
                found.append(processor.image_processor.prepare(prepared.pixels_HWC, masks))
    return found


def _generate(engine: Engine, inputs: list[RegionInputs]) -> list[str]:
    return [
        text
        for item in inputs
        for number in range(len(item.region_masks_RGG))
        for text in generate(engine, [one_region(item, number)])
    ]


@torch.inference_mode()
def _all_names(engine: Engine, groups: list[list[RegionInputs]]) -> list[str]:
    """Return the likeliest name of each region, the probability of every name worked out."""
    texts = []
    assert engine.stretches is not None
    for group in groups:
        encoded = engine.encode(group)
        rows, logits = engine.ask(encoded.image_tokens_BTD, encoded.regions_RKD, encoded.image_index_R)
        for found in searched(engine.stretches, rows, logits, "all"):
            texts += [engine.processor.decode_answer(ids[:-1]) for ids, _, _ in found.answers()]
    return texts


if __name__ == "__main__":
    main()
