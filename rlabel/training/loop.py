"""The training loop: stages of a recipe over a labeled corpus, resumable at any checkpoint, deterministic by seed for one worker.

Plain torch. Where it runs, and where its checkpoints lie, is the affair of a `Surroundings`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers.utils import logging

from rlabel.corpus.labeled import Format
from rlabel.errors import InputError, RunError
from rlabel.memory import give_idle_memory_back, reuse_freed_memory
from rlabel.regiongpt.assembly import load_processor, save
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor
from rlabel.regiongpt.quantization import Precision, load_model
from rlabel.training.adapters import add_lora, merge_lora, quantize_base, set_gradient_checkpointing
from rlabel.training.anchor import draw_back
from rlabel.training.best import Best, changing
from rlabel.training.checkpoint import (
    RunPlace,
    checkpoint_writer,
    load_best,
    load_optimizer,
    load_state,
    load_weights,
    read_place,
)
from rlabel.training.corpus import TrainCorpus
from rlabel.training.dataset import Batch, BatchDataset, NameDataset, Sample, keep_samples
from rlabel.training.freezing import parameter_groups
from rlabel.training.mixture import Mixture, open_mixture
from rlabel.training.names import remember_names
from rlabel.training.objectives import TrainingStep, learning_rate_share
from rlabel.training.parts import load_corpus
from rlabel.training.progress import Meter, Progress
from rlabel.training.recipe import Recipe
from rlabel.training.sampling import check_stage, for_stage
from rlabel.training.sharding import (
    check_shardable,
    gathered,
    load_optimizer_state,
    norm_of,
    of_rank_0,
    put_back,
    whole,
    whole_optimizer,
    whole_state,
)
from rlabel.training.surroundings import LocalSurroundings, Surroundings
from rlabel.training.validation import validate


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Everything that decides the weights. URLs are folders and files that every worker can read. mixture: trained on instead of images and annotations."""

    model: str
    images_url: str
    annotations_url: str
    recipe: Recipe
    seed: int = 0
    limit: int | None = None
    val_images_url: str | None = None
    val_annotations_url: str | None = None
    val_limit: int = 100
    format: Format | Literal["auto"] = "coco"
    split: str | None = None
    val_split: str | None = None
    val_format: Format | Literal["auto"] | None = None  # None: as format
    mixture: Mixture | None = None
    num_loader_workers: int = 1

    def corpus(self) -> TrainCorpus:
        """Return what is trained on, opened and checked, also by the stages of the recipe. Raises InputError."""
        if self.mixture is not None:
            corpus = open_mixture(self.mixture, self.limit)
        else:
            corpus = load_corpus(self.images_url, self.annotations_url, self.limit, self.format, self.split)
        for stage in self.recipe.stages:
            check_stage(corpus, stage)
        return corpus

    @property
    def is_validated(self) -> bool:
        return bool(self.val_images_url and self.val_annotations_url)

    def validation(self) -> TrainCorpus | None:
        """Return what is validated on, opened and checked; None where there is nothing. Raises InputError."""
        if not (self.val_images_url and self.val_annotations_url):
            return None
        format = self.val_format or self.format
        return load_corpus(self.val_images_url, self.val_annotations_url, self.val_limit, format, self.val_split)


# A person who watches wants a line at least so often.
_HEARTBEAT_S = 15.0
# Steps in a row with gradients that are not finite before the training is given up; fewer are left out.
_MAX_REFUSED = 10
# Steps after which holes in the heap are given back.
_TRIM_EVERY = 100
# Batches in a row without one usable picture before it is given up: then it is the folder or its disk, and no picture.
_MAX_EMPTY = 100
# Pictures whose tokens are kept, encoded once, while names are spelled: some 100 MB at a width of 256.
_BANK_IMAGES = 1500
_BANK_BATCH = 8


def train(job: TrainJob, surroundings: Surroundings) -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]:
    """Run the recipe from the newest checkpoint (or the start) to its end; return the trained model, whole, unquantized, float32.

    Raises InputError, before the first step, for what does not fit: data, recipe, model.
    """
    torch.manual_seed(job.seed)
    logging.disable_progress_bar()  # bars would flood a job's log
    for stage in job.recipe.stages:
        stage.check_validated(job.is_validated)
        if surroundings.sharded:
            check_shardable(stage)
    model = _load(job)
    processor = load_processor(job.model)
    corpus = job.corpus()
    validation = job.validation()
    remember_names(model, processor, corpus.all_names)  # before weights are loaded: a checkpoint's memory is as large
    checkpoint = surroundings.restore()
    place = read_place(checkpoint)
    if checkpoint and not place.step:  # the end of a stage: plain weights, before the next stage adds LoRA
        load_weights(model, checkpoint)
        checkpoint = None
    for number in range(place.stage, len(job.recipe.stages)):
        begun = place if number == place.stage else RunPlace(stage=number)
        # Bound to no name: its optimizer, and the processes that load its pictures, end with it.
        model = _StageRun(job, begun, checkpoint, model, processor, corpus, validation, surroundings).train()
        checkpoint = None
    set_gradient_checkpointing(model, None)
    return model.eval(), processor


def _load(job: TrainJob) -> RegionGPTForConditionalGeneration:
    return load_model(job.model, Precision(dtype="float32"), "cpu")


class _StageRun:
    """One stage, from where it was left to its end."""

    def __init__(
        self,
        job: TrainJob,
        begun: RunPlace,
        checkpoint: Path | None,
        model: RegionGPTForConditionalGeneration,
        processor: RegionGPTProcessor,
        corpus: TrainCorpus,
        validation: TrainCorpus | None,
        surroundings: Surroundings,
    ) -> None:
        self.job, self.begun, self.model, self.surroundings = job, begun, model, surroundings
        self.stage = stage = job.recipe.stages[begun.stage]
        self.validation = validation
        set_gradient_checkpointing(model, stage)
        self._add_lora(model)
        if checkpoint is not None:
            load_weights(model, checkpoint)
        self.originals = quantize_base(model, stage)
        if not surroundings.sharded:
            model.to(surroundings.device)  # type: ignore[arg-type]
        parameter_groups(model, stage)  # before the model is wrapped: what is frozen has no gradient to share
        sampled = for_stage(corpus, stage, job.seed + begun.stage)
        self.num_steps = stage.num_steps(sampled.epoch_size, surroundings.world_size)
        self.step = TrainingStep(model, processor, stage, corpus.all_names)
        self.wrapped = surroundings.wrap(self.step)
        groups = parameter_groups(model, stage)
        self.trained = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=stage.weight_decay, betas=(0.9, 0.98))
        self.best = Best(stage, begun)
        self.num_empty = 0
        if checkpoint is not None:
            load_optimizer_state(self.optimizer, load_optimizer(checkpoint))
            if stage.keep == "best" and begun.best_accuracy is not None:
                self.best.weights = load_best(checkpoint) or self._changing()
        if stage.objective == "spell":
            with gathered(self.wrapped):
                self.step.fill_bank(self._pictures_to_encode(sampled))
        self.batches = self._batches(corpus, sampled)

    def _add_lora(self, model: RegionGPTForConditionalGeneration) -> None:
        torch.manual_seed(self.job.seed + self.begun.stage)  # the same fresh weights on every rank, and after a resume
        add_lora(model, self.stage)

    def _changing(self) -> dict[str, Tensor]:
        """Return copies, whole and on the CPU, of all that the stage changes."""
        state = self.model.state_dict()
        return {name: whole(state[name]).to("cpu", copy=True) for name in changing(self.model)}

    def train(self) -> RegionGPTForConditionalGeneration:
        """Train the rest of the stage; return the model it leaves, whole and without LoRA."""
        stage, meter, num_refused = self.stage, Meter(), 0
        self.model.train()
        for step in range(self.begun.step, self.num_steps):
            norm = self._one_step(step, meter)
            num_refused = 0 if torch.isfinite(norm) else num_refused + 1
            if num_refused == 0:
                self.optimizer.step()
            elif num_refused == _MAX_REFUSED:  # the gradients are those of all ranks, so every rank stops here
                raise RunError(
                    f"stage {stage.name}, step {step + 1}: expected finite gradients, got none in {_MAX_REFUSED} steps. "
                    "Lower the learning rates or clip_norm of the recipe, or use dtype float32."
                )
            self.optimizer.zero_grad(set_to_none=True)
            done = step + 1
            due_validation = self.validation is not None and (
                done == self.num_steps or (stage.validate_every is not None and done % stage.validate_every == 0)
            )
            accuracy = self._validate(done) if due_validation else None
            if done == self.num_steps or self.best.is_waiting_in_vain:
                return self._finish(done, meter, accuracy)
            if done % _TRIM_EVERY == 0:
                give_idle_memory_back()
            due_checkpoint = done % stage.checkpoint_every == 0
            if due_checkpoint or due_validation or done % 20 == 0 or meter.age_s > _HEARTBEAT_S:
                progress = meter.progress(stage.name, done, self.num_steps, accuracy)
                self._report(progress, self._checkpoint(done) if due_checkpoint else None)
        return self.model  # a stage without a step left

    def _one_step(self, step: int, meter: Meter) -> Tensor:
        """Do forward and backward passes of a step; return the norm of its gradients, which are clipped."""
        job, stage = self.job, self.stage
        share = learning_rate_share(step, self.num_steps, stage.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        # Dropout of this step is the same whether the run was resumed before it or not.
        drawn = np.random.SeedSequence((job.seed, self.begun.stage, step, self.surroundings.rank))
        torch.manual_seed(int(drawn.generate_state(1)[0]))
        self.step.progress = step / self.num_steps
        for samples in islice(self.batches, stage.accumulate):
            result = self.wrapped(samples)
            if not result.loss.requires_grad:
                raise InputError(
                    f"recipe, stage {stage.name}: nothing that learning_rates names ({', '.join(stage.learning_rates)}) takes part in "
                    f"objective {stage.objective} of this model. Name a part that does."
                )
            (result.loss / stage.accumulate).backward()
            meter.add(float(result.loss.detach()), result.num_right, result.num_regions)
            if isinstance(samples, Batch):
                meter.add_unusable(stage.images_per_batch - len(samples), samples.unusable)
                self._count_empty(samples, step)
        return norm_of(torch.nn.utils.clip_grad_norm_(self.trained, stage.clip_norm))

    def _count_empty(self, batch: Batch, step: int) -> None:
        """Raise RunError when no batch gave anything for too long. One that trains on nothing would end as if all were well."""
        self.num_empty = 0 if batch else self.num_empty + 1
        if self.num_empty == _MAX_EMPTY:
            reason = batch.unusable[0] if batch.unusable else "their regions cannot be used."
            raise RunError(
                f"stage {self.stage.name}, step {step + 1}: expected pictures to train on, got none in {_MAX_EMPTY} batches; the last: "
                f"{reason} Check the folder of the pictures; the same command goes on from the last checkpoint."
            )

    def _validate(self, done: int) -> float:
        assert self.validation is not None
        with gathered(self.wrapped):
            accuracy = of_rank_0(validate(self.step, self.validation), self.surroundings.device)
        self.model.train()
        self.best.take(accuracy, done, self._changing)
        return accuracy

    def _finish(self, done: int, meter: Meter, accuracy: float | None) -> RegionGPTForConditionalGeneration:
        """End the stage: its best weights, LoRA merged into them, and a checkpoint that points at the start of the next stage."""
        kept = self.best.kept_step(done)
        if kept not in (None, done):
            assert self.best.weights is not None
            put_back(self.model, self.best.weights)
        model, self.best.weights = self.model, None
        if self.surroundings.sharded:
            state = whole_state(model.state_dict())
            model = _load(self.job)
            remember_names(model, self.step.processor, list(self.step.name_index))
            self._add_lora(model)
            load_state(model, state, f"stage {self.stage.name}")
        merge_lora(model, self.originals)
        if self.stage.anchor:
            draw_back(model, _load(self.job), self.stage.anchor)
        progress = meter.progress(self.stage.name, done, self.num_steps, accuracy)
        progress = replace(progress, kept_step=kept, best_accuracy=self.best.place.best_accuracy)
        self._report(progress, checkpoint_writer(model.state_dict, None, None, RunPlace(stage=self.begun.stage + 1)))
        return model

    def _checkpoint(self, done: int) -> Callable[[Path], None]:
        place = replace(self.best.place, step=done)
        best = self.best.weights if place.best_step != done else None
        if not self.surroundings.sharded:
            return checkpoint_writer(
                lambda: self.originals.state_dict(self.model), self.optimizer.state_dict, best, place
            )
        # Shards are put together here, where every rank is, for the one that writes.
        state, optimizer = whole_state(self.model.state_dict()), whole_optimizer(self.optimizer)
        return checkpoint_writer(lambda: state, lambda: optimizer, best, place)

    def _report(self, progress: Progress, write_checkpoint: Callable[[Path], None] | None) -> None:
        self.surroundings.report(progress, write_checkpoint)
        self.model.train()

    def _batches(self, corpus: TrainCorpus, sampled: TrainCorpus) -> Iterator[list[Sample] | list[str]]:
        stage, surroundings = self.stage, self.surroundings
        seed = self.job.seed + 1000 * self.begun.stage
        dataset: BatchDataset | NameDataset
        if stage.objective == "spell":
            dataset = NameDataset(corpus.all_names, stage, seed, surroundings.rank)
        else:
            dataset = BatchDataset(
                sampled, self.step.processor, stage, seed, surroundings.rank, surroundings.world_size
            )
        dataset.first_batch = self.begun.step * stage.accumulate
        num_loader_workers = self.job.num_loader_workers
        loader = DataLoader(
            dataset,
            batch_size=None,
            collate_fn=keep_samples,
            num_workers=num_loader_workers,
            prefetch_factor=4 if num_loader_workers else None,
        )
        return iter(loader)

    def _pictures_to_encode(self, corpus: TrainCorpus) -> Iterator[list[Sample]]:
        """Yield this rank's share of some pictures for `spell`, and say now and then how far that is."""
        job, surroundings = self.job, self.surroundings
        batched = self.stage.model_copy(update={"images_per_batch": _BANK_BATCH})
        pictures = BatchDataset(
            corpus, self.step.processor, batched, job.seed, surroundings.rank, surroundings.world_size
        )
        num_batches = min(pictures.batches_per_epoch, -(-_BANK_IMAGES // (_BANK_BATCH * surroundings.world_size)))
        loader = DataLoader(
            Subset(pictures, range(num_batches)),
            batch_size=None,
            collate_fn=keep_samples,
            num_workers=job.num_loader_workers,
        )
        waits = Progress(
            stage=self.stage.name,
            step=self.begun.step,
            num_steps=self.num_steps,
            loss=0,
            train_accuracy=0,
            regions_per_s=0,
        )
        said = -math.inf
        for number, samples in enumerate(loader):
            if time.monotonic() - said > _HEARTBEAT_S:
                said = time.monotonic()
                note = f"encodes pictures, once: {number * _BANK_BATCH} of {num_batches * _BANK_BATCH}"
                surroundings.report(replace(waits, note=note), None)
            yield samples


def write_model(
    model: RegionGPTForConditionalGeneration,
    processor: RegionGPTProcessor,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the model folder that `--model` takes."""
    save(model.to(dtype), processor, folder)  # type: ignore[arg-type]


def train_here(
    job: TrainJob,
    folder: Path,
    log: Path | None,
    num_threads: int,
    save_dtype: str,
    say: Callable[[str], None],
    tensorboard: bool = False,
) -> Callable[[Path], None]:
    """Train in this process, on its GPU if it has one; return the function that writes the model folder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        reuse_freed_memory()
    torch.set_num_threads(num_threads)
    model, processor = train(job, LocalSurroundings(folder, device, say, log, tensorboard))
    return lambda target: write_model(model, processor, target, getattr(torch, save_dtype))
