"""What labels shards of a run: builds the model once, then one call a shard, committed by itself. Ray wraps it; --no-ray calls it directly."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from rlabel.config import LabelSettings
from rlabel.labeling.describer import RegionGPTDescriber
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.labeling.labeler import Labeler
from rlabel.records import Shard, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.run.records_io import check_complete
from rlabel.storage import Store
from rlabel.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """All a worker needs, small enough to send: no weights, no pictures."""

    settings: LabelSettings
    model: str
    question: str
    vocabulary: Vocabulary
    run: RunDirectory


class LabelWorker:
    """Holds one loaded labeler and the run it labels for."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Load the model (quantized on load where asked) and the embedder.

        Raises InputError when the model cannot be loaded.
        """
        import torch
        from transformers.utils import logging

        from rlabel.regiongpt.assembly import load_processor
        from rlabel.regiongpt.quantization import Precision, load_model, quantized_layers
        from rlabel.vocabulary.embedding import MiniLmEmbedder
        from rlabel.vocabulary.snapping import Snapper

        settings = spec.settings
        return_freed_memory()
        # Another number of threads sums in another order: it is a setting, so that every worker gives the same bytes.
        torch.set_num_threads(settings.cpus_per_actor)
        device = settings.device if settings.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        precision = Precision(
            quantization=settings.quantization,
            double_quantization=settings.double_quantization,
            dtype=settings.dtype,
            compute_dtype=settings.compute_dtype or settings.dtype,
        )
        logging.disable_progress_bar()  # bars would flood a job's log
        model = load_model(spec.model, precision, device)
        self.quantized_layers = quantized_layers(model) if settings.quantization != "none" else []
        engine = Engine(
            model,
            load_processor(spec.model),
            EngineOptions(question=spec.question, max_new_tokens=settings.max_new_tokens),
        )
        snapper = Snapper(spec.vocabulary, MiniLmEmbedder(settings.embedder), settings.threshold, settings.margin)
        self.labeler = Labeler(
            RegionGPTDescriber(engine),
            snapper,
            max_regions_per_batch=settings.max_regions_per_batch,
            include_crowds=settings.include_crowds,
        )
        self.images = Store.open(settings.images)
        self.run = spec.run

    def describe(self) -> tuple[str, ...]:
        """Return the names of the quantized layers; also the call by which a pool learns that the model is loaded."""
        return tuple(self.quantized_layers)

    def label_only(self, shard: Shard) -> ShardResult:
        """Return a shard's result without committing it."""
        result = self.labeler.label(shard, self.images)
        check_complete(shard, result)
        return result

    def label_and_commit(self, shard: Shard) -> int:
        """Label a shard and commit it; return its number of regions."""
        self.run.commit(self.label_only(shard))
        return shard.num_regions


def worker_spec(
    settings: LabelSettings, model: Path, question: str, vocabulary: Vocabulary, run: RunDirectory
) -> WorkerSpec:
    """Return what a worker needs, its paths absolute: workers run in other folders than the command."""
    embedder = settings.embedder
    if embedder is not None and Path(embedder).is_dir():
        embedder = str(Path(embedder).absolute())
    placed = settings.model_copy(update={"images": Store.open(settings.images).url, "embedder": embedder})
    return WorkerSpec(settings=placed, model=str(model), question=question, vocabulary=vocabulary, run=run)


def return_freed_memory() -> None:
    """Make glibc give large freed blocks back to the system, where the C library is glibc.

    Batches of ever other sizes leave holes in the heap: the process of the embedded labeler grew by half over 10,000 regions.
    """
    # Of malloc.h. Setting the threshold also stops glibc from raising it by itself; each arena keeps holes of its own.
    mmap_threshold, arena_max = -3, -8
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 20)
        libc.mallopt(arena_max, 2)
    except (OSError, AttributeError):
        return
