"""Labelers that leave a mark for each shard they begin: the real one, and one that looks at pictures and masks but asks no model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.memory import MemoryKeeper, reuse_freed_memory
from rlabel.records import Shard
from rlabel.run.worker import LabelWorker, WorkerSpec
from rlabel.storage import Store
from rlabel.vocabulary.snapping import Snapper
from tests.chaos.bench import mark

# The driver imports this module, too, and is to be without torch.
if TYPE_CHECKING:
    from rlabel.labeling.engine import Decoded
    from rlabel.labeling.stages import ShardWork

# A file RUN.hold keeps workers from the shards from this one on.
_HELD_FROM = 6


def _begun(out: str, index: int) -> None:
    mark(out, index)
    while index >= _HELD_FROM and Path(f"{out}.hold").exists():
        time.sleep(0.05)


class CountingWorker(LabelWorker):
    """The labeler of `rlabel label`."""

    def begin(self, shard: Shard) -> ShardWork[Any, Any]:
        work = super().begin(shard)
        answer = work.answer

        def counted() -> None:
            _begun(self.run.store.url, shard.index)
            answer()

        work.answer = counted  # type: ignore[method-assign]
        return work


class TrivialDescriber:
    """Answers by the region's key and the pixels under its mask: every other answer is a name of the vocabulary."""

    def __init__(self, names: Sequence[str], pause_s: float) -> None:
        self.names, self.pause_s = names, pause_s

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> list[bytes]:
        assert image.pixels_HWC is not None
        return [item.region.key.encode() + image.pixels_HWC[0].tobytes() for item in regions]

    def describe(self, inputs: Sequence[list[bytes]]) -> list[list[Decoded]]:
        time.sleep(self.pause_s)
        return [[self._decoded(data) for data in own] for own in inputs]

    def _decoded(self, data: bytes) -> Decoded:
        from rlabel.labeling.engine import Decoded

        number = int.from_bytes(hashlib.sha256(data).digest()[:4], "big")
        text = self.names[number // 2 % len(self.names)] if number % 2 else f"thing {number % 1000}"
        return Decoded(text=text, token_logprobs=(-number % 1000 / 1000, -0.25))


class TrivialWorker(LabelWorker):
    """Everything of the labeler but its models: pictures, masks, snapping by words, commits. pause_s: of each batch."""

    pause_s = 0.0
    marks = True

    def __init__(self, spec: WorkerSpec) -> None:
        from rlabel.labeling.labeler import Labeler

        assert spec.vocabulary is not None
        reuse_freed_memory(in_new_threads=True)
        self.memory = MemoryKeeper()
        self.quantized_layers = []
        settings = spec.settings
        names = [category.name for category in spec.vocabulary.categories]
        self.labeler = Labeler(
            TrivialDescriber(names, self.pause_s),
            Snapper(spec.vocabulary, None, settings.threshold, settings.margin),
            max_regions_per_batch=settings.max_regions_per_batch,
        )
        self.images = Store.open(settings.images)
        self.run = spec.run

    def begin(self, shard: Shard) -> ShardWork[Any, Any]:
        if self.marks:
            _begun(self.run.store.url, shard.index)
        return super().begin(shard)


class SlowTrivialWorker(TrivialWorker):
    """Slow enough to be killed in the middle."""

    pause_s = 0.05


class UnmarkedTrivialWorker(TrivialWorker):
    """As fast as it gets."""

    marks = False
