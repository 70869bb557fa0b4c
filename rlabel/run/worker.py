"""What labels shards of a run: builds the model once, then one call a shard, committed by itself. Ray wraps it; --no-ray calls it directly.

Torch and all that needs it is imported where a worker is made: a driver under Ray names the class, and never holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rlabel.config import LabelSettings
from rlabel.corpus.decoding import IN_PROCESS
from rlabel.corpus.isolation import IsolatedDecoders
from rlabel.corpus.limits import Limits
from rlabel.memory import MemoryKeeper, return_freed_memory, reuse_freed_memory
from rlabel.prompts.instructions import CLASSIFY
from rlabel.records import Shard, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.run.job import LabelJob
from rlabel.run.questions import example_question, name_questions
from rlabel.run.records_io import check_complete
from rlabel.spans import Profile, recorded, span, start_recording
from rlabel.storage import Store
from rlabel.vlm.families import PlainModel
from rlabel.vocabulary.calibration import Calibrator
from rlabel.vocabulary.likelihood import Choosing
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.thesaurus import NO_THESAURUS, WORDNET, load_thesaurus
from rlabel.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from rlabel.labeling.askers import Asker
    from rlabel.labeling.describer import Describer
    from rlabel.labeling.engine import Engine
    from rlabel.labeling.labeler import Labeler
    from rlabel.labeling.queries import QueryLabeler
    from rlabel.labeling.stages import ShardWork
    from rlabel.regiongpt.quantization import Precision

# Categories whose likelihood is worked out since the free text is near to them, beside those that the beam finds.
_NUM_NEAR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """All a worker needs, small enough to send: no weights, no pictures. question: as `questions.task_question` gives it.

    plain: how regions are shown to a model that is no RegionGPT, else None.
    """

    settings: LabelSettings
    model: str
    question: str
    vocabulary: Vocabulary | None
    run: RunDirectory | None  # None: nothing is committed
    calibrator: Calibrator | None = None
    min_score: float | None = None
    plain: PlainModel | None = None


class LabelWorker:
    """Holds one loaded labeler and the run it labels for. Its calls may come from several threads; the model answers one shard at a time."""

    # One at the model, and one before it whose pictures are prepared, or behind it, whose answers are snapped and committed.
    shards_at_once: ClassVar[int] = 2

    def __init__(self, spec: WorkerSpec) -> None:
        """Load the model (quantized on load where asked) and the embedder.

        Raises UsageError for a device that is not here, InputError when the model cannot be loaded, RunError where no decoder can be started.
        """
        import torch
        from transformers.utils import logging

        from rlabel.labeling.engine import Engine, EngineOptions
        from rlabel.regiongpt.assembly import load_processor
        from rlabel.regiongpt.devices import usable_device
        from rlabel.regiongpt.quantization import Precision, load_model, quantized_layers

        settings = spec.settings
        # Another number of threads sums in another order: it is a setting, so that every worker gives the same bytes.
        torch.set_num_threads(settings.cpus_per_actor)
        device = usable_device(settings.device)
        self.device = device
        self.memory: MemoryKeeper | None = None
        if device.startswith("cuda"):
            return_freed_memory()
        else:
            reuse_freed_memory(in_new_threads=True)
            self.memory = MemoryKeeper()
        precision = Precision(
            quantization=settings.quantization,
            double_quantization=settings.double_quantization,
            dtype=settings.dtype,
            compute_dtype=settings.compute_dtype or settings.dtype,
            attention=settings.attention,
            compile=settings.compile,
            compile_mode=settings.compile_mode,
        )
        decoders = IsolatedDecoders() if settings.isolate_decoders else None  # starts while the model is loaded
        logging.disable_progress_bar()  # bars would flood a job's log
        # On a GPU the CPUs have nothing else to do; without one they are the model's.
        num_prepare = settings.cpus_per_actor if device.startswith("cuda") else 1
        if spec.plain is not None:
            self.labeler: Labeler | QueryLabeler
            self.labeler, self.quantized_layers = _plain_labeler(spec, spec.plain, precision, device, num_prepare)
        else:
            model = load_model(spec.model, precision, device)
            self.quantized_layers = quantized_layers(model) if settings.quantization != "none" else []
            engine = Engine(
                model,
                load_processor(spec.model),
                EngineOptions(
                    question=example_question(settings),
                    max_new_tokens=settings.answer_tokens,
                    views=settings.views,
                    names=_names_to_choose_from(spec),
                    search=settings.search,
                    prefix_sharing=settings.prefix_sharing,
                    max_batch_tokens=settings.max_batch_tokens,
                ),
            )
            self.labeler = _labeler(spec, engine, num_prepare)
        self.labeler.limits = Limits(
            max_pixels=settings.max_pixels,
            max_file_bytes=settings.max_file_bytes,
            max_regions_per_image=settings.max_regions_per_image,
            max_polygon_points=settings.max_polygon_points,
        )
        if decoders is not None:
            decoders.check()
        self.labeler.decoder = decoders or IN_PROCESS
        self.images = Store.open(settings.images)
        self.run = spec.run
        if settings.profile:
            start_recording(torch.cuda.synchronize if device.startswith("cuda") else None)

    def describe(self) -> tuple[str, ...]:
        """Return the names of the quantized layers; also the call by which a pool learns that the model is loaded."""
        return tuple(self.quantized_layers)

    def begin(self, shard: Shard) -> ShardWork[Any, Any]:
        """Return a shard in work: its pictures are being prepared. The caller takes it through `answer` and `result`."""
        if self.memory is not None:
            self.memory.tidy()
        return self.labeler.begin(shard, self.images)

    def label_only(self, shard: Shard) -> ShardResult:
        """Return a shard's result without committing it."""
        with self.begin(shard) as work:
            work.answer()
            result = work.result()
        check_complete(shard, result)
        return result

    def label_and_commit(self, shard: Shard) -> int:
        """Label a shard and commit it; return its number of regions."""
        result = self.label_only(shard)
        assert self.run is not None
        with span("commit"):
            self.run.commit(result)
        return shard.num_regions

    def profile(self) -> Profile | None:
        """Return where this process's time went, if that is recorded."""
        return recorded()


def _names_to_choose_from(spec: WorkerSpec) -> tuple[str, ...]:
    """Return the names and synonyms that answers are kept to; none for free text."""
    if spec.settings.decoding != "constrained" or spec.vocabulary is None:
        return ()
    return Choosing(spec.vocabulary).names


def _labeler(spec: WorkerSpec, engine: Engine, num_prepare: int) -> Labeler | QueryLabeler:
    """Return the labeler of the run's task."""
    from rlabel.labeling.describer import RegionGPTDescriber
    from rlabel.labeling.ensemble import EnsembleDescriber
    from rlabel.labeling.hybrid import HybridDescriber
    from rlabel.labeling.modes import MultiTurnDescriber, OneTurnDescriber
    from rlabel.labeling.queries import QueryLabeler

    settings, vocabulary = spec.settings, spec.vocabulary
    if settings.task in ("relate", "refer"):
        return QueryLabeler(
            _asker(spec, engine),
            max_regions_per_batch=settings.max_regions_per_batch,
            include_crowds=settings.include_crowds,
            num_prepare=num_prepare,
        )
    snapper = _snapper(spec)
    describer: Describer = RegionGPTDescriber(engine)
    choosing = None
    if settings.mode == "multi_turn":
        describer = MultiTurnDescriber(engine)
    elif settings.mode == "one_turn":
        describer = OneTurnDescriber(engine, spec.question)
    elif settings.num_questions > 1 and settings.decoding != "hybrid":
        describer = EnsembleDescriber(engine, name_questions(settings))
    elif settings.decoding == "hybrid" and vocabulary is not None and snapper is not None:
        choosing = _choosing(settings, vocabulary)
        near = _near_names(snapper, choosing)
        questions = name_questions(settings) if settings.num_questions > 1 else ()
        describer = HybridDescriber(engine, choosing.names, settings.num_candidates, near, settings.rank_by, questions)
    return _region_labeler(spec, describer, snapper, choosing, num_prepare)


def _region_labeler(
    spec: WorkerSpec, describer: Describer, snapper: Snapper | None, choosing: Choosing | None, num_prepare: int
) -> Labeler:
    from rlabel.labeling.labeler import Labeler

    settings = spec.settings
    return Labeler(
        describer,
        snapper,
        max_regions_per_batch=settings.max_regions_per_batch,
        include_crowds=settings.include_crowds,
        choosing=choosing,
        calibrator=spec.calibrator,
        min_score=spec.min_score,
        num_prepare=num_prepare,
    )


def _snapper(spec: WorkerSpec) -> Snapper | None:
    from rlabel.vocabulary.embedding import MiniLmEmbedder

    settings = spec.settings
    if spec.vocabulary is None:
        return None
    return Snapper(
        spec.vocabulary,
        MiniLmEmbedder(settings.embedder, dtype=settings.embedder_dtype),
        settings.threshold,
        settings.margin,
        thesaurus=load_thesaurus(settings.thesaurus),
        fallback=settings.fallback,
    )


def _choosing(settings: LabelSettings, vocabulary: Vocabulary) -> Choosing:
    return Choosing(vocabulary, by_sum=settings.rank_by == "total")


def _plain_labeler(
    spec: WorkerSpec, plain: PlainModel, precision: Precision, device: str, num_prepare: int
) -> tuple[Labeler, list[str]]:
    """Return the labeler of a model that is no RegionGPT, and the names of its quantized layers."""
    from rlabel.regiongpt.quantization import quantized_layers
    from rlabel.vlm.describer import PlainDescriber
    from rlabel.vlm.inputs import open_processor
    from rlabel.vlm.loading import load_model
    from rlabel.vlm.naming import NameOptions

    settings, snapper, trusted = spec.settings, _snapper(spec), spec.settings.trust_remote_code
    model = load_model(Path(spec.model), precision, device, trust_remote_code=trusted)
    names = choosing = None
    if settings.decoding != "free" and spec.vocabulary is not None and snapper is not None:
        candidates = _choosing(settings, spec.vocabulary)
        hybrid = settings.decoding == "hybrid"
        choosing = candidates if hybrid else None
        names = NameOptions(
            names=candidates.names,
            hybrid=hybrid,
            num_candidates=settings.num_candidates,
            search=settings.search,
            rank_by=settings.rank_by,
            near=_near_names(snapper, candidates) if hybrid else None,
        )
    describer = PlainDescriber(
        model,
        open_processor(Path(spec.model), plain, trust_remote_code=trusted),
        max_new_tokens=settings.answer_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        share="none" if settings.prefix_sharing == "none" else "auto",
        names=names,
    )
    layers = quantized_layers(model) if settings.quantization != "none" else []
    return _region_labeler(spec, describer, snapper, choosing, num_prepare), layers


def _near_names(snapper: Snapper, choosing: Choosing) -> Callable[[Sequence[str]], list[list[str]]]:
    """Return a look-up of the names of the categories that texts are nearest to."""

    def near(texts: Sequence[str]) -> list[list[str]]:
        return [
            [choosing.main_name(category_id) for category_id, _ in own] for own in snapper.nearest(texts, _NUM_NEAR)
        ]

    return near


def _asker(spec: WorkerSpec, engine: Engine) -> Asker:
    from rlabel.labeling.askers import LikelihoodChooser, NumberChooser, PairAsker

    settings = spec.settings
    if settings.task == "relate":
        return PairAsker(engine, spec.question)
    if settings.refer_by == "number":
        return NumberChooser(engine, spec.question)
    return LikelihoodChooser(
        engine, (spec.question,) if settings.refer_by == "likelihood" else (spec.question, CLASSIFY[0])
    )


def worker_spec(job: LabelJob, run: RunDirectory | None) -> WorkerSpec:
    """Return what a worker needs of a planned job, its paths absolute: workers run in other folders than the command. run: None commits nothing."""
    settings = job.settings
    places = {"embedder": _absolute(settings.embedder)}
    if settings.thesaurus not in (WORDNET, NO_THESAURUS):
        places["thesaurus"] = _absolute(settings.thesaurus)
    return WorkerSpec(
        settings=settings.model_copy(update={"images": Store.open(settings.images).url, **places}),
        model=str(job.model),
        question=job.question,
        vocabulary=job.vocabulary,
        run=run,
        calibrator=job.calibrator,
        min_score=job.min_score,
        plain=job.plain,
    )


def _absolute(place: str | None) -> str | None:
    return str(Path(place).absolute()) if place is not None and Path(place).is_dir() else place
