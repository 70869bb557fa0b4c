"""Continuous batching against batch after batch: the same regions, no more of them at once.

    python benchmarks/continuous_batching.py [--shape 135m] [--images 5] [--regions-per-image 100] [--most-regions 192] [--mean 12] [--deviation 4]

A model of random weights, which would never end, on drawn pictures, float32; answers end where lengths drawn from a normal distribution say. Images join
in a shard's order, as the labeler lets them; both ways alternate, and the ratio is the median over the rounds. (Texts: tests/test_continuous.py.)
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from transformers.utils import logging

from rlabel.bench.corpus import draw_corpus
from rlabel.bench.models import SHAPES, make_model
from rlabel.corpus.coco import read_corpus
from rlabel.corpus.inputs import prepare_image
from rlabel.corpus.limits import Limits
from rlabel.labeling import continuous as continuous_module
from rlabel.labeling import engine as engine_module
from rlabel.labeling.continuous import ContinuousBatch
from rlabel.labeling.engine import Decoded, Engine, EngineOptions
from rlabel.labeling.growing import Growing
from rlabel.regiongpt.processing import RegionInputs
from rlabel.storage import Store

_Answers = dict[int, list[Decoded]]


@click.command()
@click.option("--shape", default="135m", type=click.Choice(sorted(SHAPES)))
@click.option("--images", "num_images", default=5)
@click.option("--regions-per-image", default=100)
@click.option("--most-regions", default=192)
@click.option("--mean", default=12.0, help="tokens of an answer")
@click.option("--deviation", default=4.0)
@click.option("--longest", default=48)
@click.option("--rounds", default=3)
@click.option("--threads", default=2)
def main(
    shape: str, num_images: int, regions_per_image: int, most_regions: int, mean: float, deviation: float, longest: int,
    rounds: int, threads: int,
) -> None:  # fmt: skip
    """Compare the two ways."""
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        corpus = draw_corpus(Path(folder), num_images, regions_per_image, 0)
        model, processor = make_model(SHAPES[shape], corpus.names, 0)
        images = Store.open(corpus.images)
        with read_corpus(str(corpus.regions)) as read:
            prepared = [prepare_image(images, record, Limits()) for record in read.images()]
        inputs = [
            processor.image_processor.prepare(image.picture, [region.mask for region in image.regions])
            for image in prepared
            if image.picture is not None
        ]
    engine = Engine(model, processor, EngineOptions(max_new_tokens=longest, max_batch_tokens=1 << 30))
    random = torch.Generator()

    class Drawn(Growing[Any]):
        """Answers of drawn lengths."""

        def __init__(self, rows: Any, num_answers: int, most: int, device: torch.device) -> None:
            super().__init__(rows, num_answers, most, device)
            lengths_N = torch.normal(mean, deviation, (num_answers,), generator=random)
            self.lengths_N = lengths_N.round().clamp(1, most)

        def take(self, token_R: Tensor, logprob_R: Tensor, stops_R: Tensor) -> None:
            super().take(token_R, logprob_R, self._number + 1 >= self.lengths_N[self._answer_R])

    engine_module.Growing = continuous_module.Growing = Drawn  # type: ignore[misc]
    ways: dict[str, Callable[[], _Answers]] = {
        "batch after batch": lambda: _apart(engine, inputs, most_regions),
        "continuous": lambda: _joined(engine, inputs, most_regions),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            random.manual_seed(number)
            started = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - started)
    for name, own in seconds.items():
        click.echo(f"{name}: {num_images * regions_per_image / statistics.median(own):.2f} regions/s")
    apart, joined = seconds.values()
    click.echo(
        f"continuous is {statistics.median(a / b for a, b in zip(apart, joined, strict=True)):.3f} times as fast"
    )


def _groups(inputs: list[RegionInputs], most: int) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    for number, item in enumerate(inputs):
        if groups[-1] and sum(len(inputs[i].region_masks_RGG) for i in groups[-1]) + len(item.region_masks_RGG) > most:
            groups.append([])
        groups[-1].append(number)
    return groups


def _apart(engine: Engine, inputs: list[RegionInputs], most: int) -> _Answers:
    answers: _Answers = {}
    for group in _groups(inputs, most):
        answers.update(zip(group, engine.answer([inputs[i] for i in group]), strict=True))
    return answers


def _joined(engine: Engine, inputs: list[RegionInputs], most: int) -> _Answers:
    batch: ContinuousBatch[int] = ContinuousBatch(engine, most)
    group: list[int] = []
    for number in range(len(inputs)):
        if group and not batch.fits([inputs[i] for i in [*group, number]]):
            batch.add(group, [inputs[i] for i in group])
            group = []
        group.append(number)
    batch.add(group, [inputs[i] for i in group])
    batch.finish()
    return dict(batch.take())


if __name__ == "__main__":
    main()
