"""The rows of the table: each a way to label the same corpus, called once a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from rlabel.bench.arithmetic import synchronize
from rlabel.bench.pipeline import Timed, in_process, on_ray
from rlabel.bench.plain import generate, one_region
from rlabel.corpus.inputs import prepare_image
from rlabel.labeling.describer import RegionGPTDescriber, sight_of
from rlabel.labeling.engine import Engine
from rlabel.labeling.labeler import Labeler
from rlabel.regiongpt.processing import RegionInputs
from rlabel.run.job import LabelJob
from rlabel.run.worker import LabelWorker

RowName = Literal[
    "generate", "batched", "unshared", "expanded", "packed", "constrained", "exact", "no-ray", "ray-1", "ray-2", "ray-4"
]
_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The corpus as tensors, in the batches that the labeler makes of it. keys: of the regions of each image."""

    batches: tuple[tuple[RegionInputs, ...], ...]
    keys: tuple[tuple[tuple[str, ...], ...], ...]

    @property
    def inputs(self) -> list[RegionInputs]:
        return [item for batch in self.batches for item in batch]

    def regions(self) -> Iterator[tuple[str, RegionInputs]]:
        """Yield each region alone, with its key."""
        for batch, keys in zip(self.batches, self.keys, strict=True):
            for item, own in zip(batch, keys, strict=True):
                for number, key in enumerate(own):
                    yield key, one_region(item, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is called in each round. free: it answers in free text, so its texts are compared with those of the others.

    warms_up: the first call is slower than the others.
    """

    name: RowName
    what: str
    run: Callable[[], Timed]
    free: bool = True
    warms_up: bool = True


def prepare(job: LabelJob, worker: LabelWorker) -> Prepared:
    """Return the corpus as the worker's labeler would give it to its model."""
    labeler = worker.labeler
    assert isinstance(labeler, Labeler)
    batches: list[list[RegionInputs]] = []
    keys: list[list[tuple[str, ...]]] = []
    for shard in job.shards():
        num_regions = labeler.max_regions_per_batch  # a shard begins a batch
        for record in shard.images:
            image = prepare_image(
                worker.images, record, labeler.limits, sight=sight_of(labeler.describer), decoder=labeler.decoder
            )
            for start in range(0, len(image.regions), labeler.max_regions_per_batch):
                group = image.regions[start : start + labeler.max_regions_per_batch]
                if num_regions + len(group) > labeler.max_regions_per_batch:
                    batches.append([])
                    keys.append([])
                    num_regions = 0
                num_regions += len(group)
                batches[-1].append(labeler.describer.prepare(image, group))
                keys[-1].append(tuple(region.region.key for region in group))
    return Prepared(batches=tuple(map(tuple, batches)), keys=tuple(map(tuple, keys)))


def engine_of(worker: LabelWorker) -> Engine:
    assert isinstance(worker.labeler, Labeler) and isinstance(worker.labeler.describer, RegionGPTDescriber)
    return worker.labeler.describer.engine


def shortened(engine: Engine) -> Engine:
    """Return an engine that answers with one token: prefill and no decoding."""
    return Engine(engine.model, engine.processor, replace(engine.options, max_new_tokens=1))


def make_rows(
    job: LabelJob, worker: LabelWorker, prepared: Prepared, names: tuple[str, ...], num_plain: int, folder: Path
) -> list[Row]:
    """Return all rows, the slowest first. num_plain: regions that `generate` is asked about; folder: for runs."""
    engine = engine_of(worker)
    options = engine.options
    some = [region for number, region in enumerate(prepared.regions()) if number < num_plain]

    def plain(size: int) -> Callable[[], Timed]:
        return lambda: _plain(engine, some, size)

    def engine_row(**changed: Any) -> Callable[[], Timed]:
        made = Engine(engine.model, engine.processor, replace(options, **changed))
        return lambda: _engine(made, prepared)

    rows = [
        Row(name="generate", what=f"one `generate` a region ({len(some)} regions)", run=plain(1)),
        Row(name="batched", what=f"`generate`, batches of {_BATCH} ({len(some)} regions)", run=plain(_BATCH)),
        Row(name="unshared", what="engine, a prefix a region", run=engine_row(prefix_sharing="none")),
        Row(name="expanded", what="engine, prefix copied", run=engine_row(prefix_sharing="expanded")),
        Row(name="packed", what="engine, prefix kept once", run=engine_row(prefix_sharing="packed")),
        Row(
            name="constrained",
            what=f"engine, one of {len(names)} names, greedy",
            run=engine_row(names=names),
            free=False,
        ),
        Row(
            name="exact",
            what=f"engine, the likeliest of {len(names)} names",
            run=engine_row(names=names, search="exact"),
            free=False,
        ),
        Row(name="no-ray", what="pipeline in this process", run=lambda: in_process(job, worker, folder)),
    ]
    gpus = 1.0 if engine.device.type == "cuda" else 0.0
    for name, number in (("ray-1", 1), ("ray-2", 2), ("ray-4", 4)):
        rows.append(_ray_row(name, number, job, gpus / number, folder))  # type: ignore[arg-type]
    return rows


def _ray_row(name: RowName, number: int, job: LabelJob, gpus: float, folder: Path) -> Row:
    threads = max(1, job.settings.cpus_per_actor // number)
    own = replace(job, settings=job.settings.model_copy(update={"cpus_per_actor": threads}))
    what = f"pipeline on Ray, {number} actor{'s' if number > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
    return Row(name=name, what=what, run=lambda: on_ray(own, number, gpus, folder), warms_up=False)


def _plain(engine: Engine, some: Sequence[tuple[str, RegionInputs]], size: int) -> Timed:
    texts: dict[str, str] = {}
    started, cpu_started = _now(engine.device), time.process_time()
    for start in range(0, len(some), size):
        batch = some[start : start + size]
        texts.update(zip((key for key, _ in batch), generate(engine, [item for _, item in batch]), strict=True))
    seconds = _now(engine.device) - started
    return Timed(seconds=seconds, texts=texts, cpu_s=time.process_time() - cpu_started)


def _engine(engine: Engine, prepared: Prepared) -> Timed:
    texts: dict[str, str] = {}
    started, cpu_started = _now(engine.device), time.process_time()
    for batch, keys in zip(prepared.batches, prepared.keys, strict=True):
        for own, answers in zip(keys, engine.answer(batch), strict=True):
            texts.update((key, answer.text) for key, answer in zip(own, answers, strict=True))
    seconds = _now(engine.device) - started
    return Timed(seconds=seconds, texts=texts, cpu_s=time.process_time() - cpu_started)


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()
