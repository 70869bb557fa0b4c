"""The training loop: stages of a recipe over a labeled corpus, resumable at any checkpoint, deterministic by seed for one worker.

Plain torch. Where it runs, and where its checkpoints lie, is the affair of a `Surroundings`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers.utils import logging

from rlabel.corpus.labeled import Format
from rlabel.errors import InputError, RunError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.regiongpt.assembly import load_processor, save
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor
from rlabel.regiongpt.quantization import Precision, load_model
from rlabel.training.checkpoint import checkpoint_writer, load_weights
from rlabel.training.dataset import (
    BatchDataset,
    NameDataset,
    Sample,
    TrainCorpus,
    cap_per_category,
    keep_samples,
    load_corpus,
)
from rlabel.training.objectives import TrainingStep, learning_rate_share
from rlabel.training.progress import Meter, Progress, append_progress, progress_text
from rlabel.training.recipe import Recipe, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Everything that decides the weights. URLs are folders and files that every worker can read."""

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
    num_loader_workers: int = 1


# A person who watches wants a line at least so often.
_HEARTBEAT_S = 15.0
# Steps in a row with gradients that are not finite before the training is given up; fewer are left out.
_MAX_REFUSED = 10
# Pictures whose tokens are kept, encoded once, while names are spelled: some 100 MB at a width of 256.
_BANK_IMAGES = 1500
_BANK_BATCH = 8
# Checkpoints kept on the disk.
_KEPT = 2


class Surroundings(Protocol):
    """What the loop asks of its place: who it is, how to wrap a module, where to leave progress and checkpoints."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, step: TrainingStep) -> nn.Module: ...

    def restore(self) -> Path | None:
        """Return the folder of the newest checkpoint, or None at the beginning."""

    def report(self, progress: Progress, write_checkpoint: Callable[[Path], None] | None) -> None:
        """Take a progress line, and where given a function that writes a checkpoint into a folder; with one, every rank calls at the same steps."""


def train(job: TrainJob, surroundings: Surroundings) -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]:
    """Run the recipe from the newest checkpoint (or the start) to its end; return the trained model, float32, on the surroundings' device."""
    torch.manual_seed(job.seed)
    logging.disable_progress_bar()  # bars would flood a job's log
    model = load_model(job.model, Precision(dtype="float32"), surroundings.device)
    processor = load_processor(job.model)
    corpus = load_corpus(job.images_url, job.annotations_url, job.limit, job.format, job.split)
    validation = None
    if job.val_images_url and job.val_annotations_url:
        validation = load_corpus(job.val_images_url, job.val_annotations_url, job.val_limit, job.format, job.val_split)
    checkpoint = surroundings.restore()
    state = json.loads((checkpoint / "trainer.json").read_text()) if checkpoint else {"stage": 0, "step": 0}
    if checkpoint and not state["step"]:  # the end of a stage: plain weights, before the next stage adds LoRA
        load_weights(model, checkpoint)
    for number, stage in enumerate(job.recipe.stages):
        if number < state["stage"]:
            continue
        first_step = state["step"] if number == state["stage"] else 0
        stage_checkpoint = checkpoint if number == state["stage"] else None
        _run_stage(job, number, stage, first_step, stage_checkpoint, model, processor, corpus, validation, surroundings)
    return model.eval(), processor


def _run_stage(
    job: TrainJob,
    number: int,
    stage: Stage,
    first_step: int,
    checkpoint: Path | None,
    model: RegionGPTForConditionalGeneration,
    processor: RegionGPTProcessor,
    corpus: TrainCorpus,
    validation: TrainCorpus | None,
    surroundings: Surroundings,
) -> None:
    if stage.lora is not None:
        torch.manual_seed(job.seed + number)  # the same fresh weights on every rank, and when the run is resumed here
        _add_lora(model, stage)
    if checkpoint is not None and first_step:
        load_weights(model, checkpoint)
    groups = _parameter_groups(model, stage)
    optimizer = torch.optim.AdamW(groups, weight_decay=stage.weight_decay, betas=(0.9, 0.98))
    if checkpoint is not None and first_step:
        optimizer.load_state_dict(
            torch.load(checkpoint / "optimizer.pt", map_location=surroundings.device, weights_only=True)
        )
    sampled = cap_per_category(corpus, stage.per_category, job.seed + number)
    dataset: BatchDataset | NameDataset
    if stage.objective == "spell":
        dataset = NameDataset(corpus.all_names, stage, job.seed + 1000 * number, surroundings.rank)
    else:
        dataset = BatchDataset(
            sampled, processor, stage, job.seed + 1000 * number, surroundings.rank, surroundings.world_size
        )
    num_steps = stage.num_steps(len(sampled.images), surroundings.world_size)
    dataset.first_batch = first_step * stage.accumulate
    loader = DataLoader(
        dataset,
        batch_size=None,
        collate_fn=keep_samples,
        num_workers=job.num_loader_workers,
        prefetch_factor=4 if job.num_loader_workers else None,
    )
    step_module = TrainingStep(model, processor, stage, corpus.all_names)
    if stage.objective == "spell":
        waits = Progress(
            stage=stage.name, step=first_step, num_steps=num_steps, loss=0, train_accuracy=0, regions_per_s=0
        )
        step_module.fill_bank(_pictures_to_encode(job, stage, sampled, processor, surroundings, waits))
    wrapped = surroundings.wrap(step_module)
    trained = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    meter = Meter()
    batches: Iterator[list[Sample] | list[str]] = iter(loader)
    num_refused = 0
    model.train()
    for step in range(first_step, num_steps):
        share = learning_rate_share(step, num_steps, stage.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        # Dropout of this step is the same whether the run was resumed before it or not.
        torch.manual_seed(int(np.random.SeedSequence((job.seed, number, step, surroundings.rank)).generate_state(1)[0]))
        step_module.progress = step / num_steps
        for samples in islice(batches, stage.accumulate):
            result = wrapped(samples)
            if not result.loss.requires_grad:
                raise InputError(
                    f"recipe, stage {stage.name}: nothing that learning_rates names ({', '.join(stage.learning_rates)}) takes part in "
                    f"objective {stage.objective} of this model. Name a part that does."
                )
            (result.loss / stage.accumulate).backward()
            meter.add(float(result.loss.detach()), result.num_right, result.num_regions)
            if stage.objective != "spell":
                meter.num_unusable += stage.images_per_batch - len(samples)
        norm = torch.nn.utils.clip_grad_norm_(trained, stage.clip_norm)
        num_refused = 0 if torch.isfinite(norm) else num_refused + 1
        if num_refused == 0:
            optimizer.step()
        elif num_refused == _MAX_REFUSED:  # the gradients are those of all ranks, so every rank stops here
            raise RunError(
                f"stage {stage.name}, step {step + 1}: expected finite gradients, got none in {_MAX_REFUSED} steps. "
                "Lower the learning rates or clip_norm of the recipe, or use dtype float32."
            )
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        last = done == num_steps
        due_checkpoint = last or done % stage.checkpoint_every == 0
        due_validation = validation is not None and (
            last or (stage.validate_every is not None and done % stage.validate_every == 0)
        )
        if due_checkpoint or due_validation or done % 20 == 0 or meter.age_s > _HEARTBEAT_S:
            accuracy = (
                _validate(step_module, validation, surroundings) if due_validation and validation is not None else None
            )
            progress = meter.progress(stage.name, done, num_steps, accuracy)
            # At the end of a stage the checkpoint points at the start of the next one: LoRA is merged, its optimizer is gone.
            if last and stage.lora is not None:
                _merge_lora(model)
            place = {"stage": number + 1, "step": 0} if last else {"stage": number, "step": done}
            write = checkpoint_writer(model, None if last else optimizer, place) if due_checkpoint else None
            surroundings.report(progress, write)
            model.train()


def _pictures_to_encode(
    job: TrainJob,
    stage: Stage,
    corpus: TrainCorpus,
    processor: RegionGPTProcessor,
    surroundings: Surroundings,
    waits: Progress,
) -> Iterator[list[Sample]]:
    """Yield this rank's share of some pictures for `spell`, and say now and then how far that is."""
    batched = stage.model_copy(update={"images_per_batch": _BANK_BATCH})
    pictures = BatchDataset(corpus, processor, batched, job.seed, surroundings.rank, surroundings.world_size)
    num_batches = min(pictures.batches_per_epoch, -(-_BANK_IMAGES // (_BANK_BATCH * surroundings.world_size)))
    loader = DataLoader(
        Subset(pictures, range(num_batches)),
        batch_size=None,
        collate_fn=keep_samples,
        num_workers=job.num_loader_workers,
    )
    said = -math.inf
    for number, samples in enumerate(loader):
        if time.monotonic() - said > _HEARTBEAT_S:
            said = time.monotonic()
            note = f"encodes pictures, once: {number * _BANK_BATCH} of {num_batches * _BANK_BATCH}"
            surroundings.report(replace(waits, note=note), None)
        yield samples


def _parameter_groups(model: RegionGPTForConditionalGeneration, stage: Stage) -> list[dict[str, object]]:
    """Freeze everything, then free what the stage names. The longest matching prefix decides a parameter's rate.

    Raises InputError for a name that no parameter has.
    """
    named = [(_plain_name(name), parameter) for name, parameter in model.named_parameters()]
    stage.check_names([name for name, _ in named])
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        prefixes = [prefix for prefix in stage.learning_rates if name == prefix or name.startswith(f"{prefix}.")]
        is_lora = ".lora_" in name
        frozen_base = stage.lora is not None and name.startswith("language_model.") and not is_lora
        parameter.requires_grad_(bool(prefixes) and not frozen_base)
        if parameter.requires_grad:
            groups.setdefault(stage.learning_rates[max(prefixes, key=len)], []).append(parameter)
    return [{"params": parameters, "lr": rate, "peak_lr": rate} for rate, parameters in groups.items()]


def _plain_name(name: str) -> str:
    """Return a parameter's name as it is without peft's wrapping."""
    return name.replace("language_model.base_model.model.", "language_model.", 1)


def _add_lora(model: RegionGPTForConditionalGeneration, stage: Stage) -> None:
    from peft import LoraConfig, get_peft_model

    assert stage.lora is not None
    config = LoraConfig(
        r=stage.lora.rank, lora_alpha=stage.lora.alpha, target_modules=stage.lora.targets, task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft 0.21 asks transformers 5.23 for a name that is on its way out
        model.language_model = get_peft_model(model.language_model, config)


def _merge_lora(model: RegionGPTForConditionalGeneration) -> None:
    if hasattr(model.language_model, "merge_and_unload"):
        model.language_model = model.language_model.merge_and_unload()


@torch.inference_mode()
def _validate(step: TrainingStep, corpus: TrainCorpus, surroundings: Surroundings) -> float:
    """Return top-1 over the validation regions: nearest name while aligning, else the free greedy answer. Every rank computes the same."""
    model, processor = step.model, step.processor
    model.eval()
    dataset = BatchDataset(corpus, processor, step.stage, 0, 0, 1)
    engine = Engine(model, processor, EngineOptions())
    right = total = 0
    pending: list[Sample] = []

    def flush() -> None:
        nonlocal right, total
        if not pending:
            return
        total += sum(name is not None for sample in pending for name in sample.names)
        if step.stage.objective == "align":
            training = step.training
            step.eval()
            known = [sample for sample in pending if all(name in step.name_index for name in sample.names)]
            if known:
                right += step(known).num_right
            step.train(training)
        else:
            answers = engine.answer([sample.inputs for sample in pending])
            right += sum(
                name is not None and decoded.text.lower() == name.lower()
                for sample, image in zip(pending, answers, strict=True)
                for name, decoded in zip(sample.names, image, strict=True)
            )
        pending.clear()

    for index in range(len(corpus.images)):
        sample = dataset.sample(index, 0, None)
        if sample is not None:
            pending.append(sample)
        if len(pending) == 8:
            flush()
    flush()
    return right / max(total, 1)


class LocalSurroundings:
    """One process, checkpoints in a local folder (none: nothing is kept), progress lines in log (progress.jsonl of that folder). Used without Ray."""

    rank = 0
    world_size = 1

    def __init__(
        self, folder: Path | None, device: torch.device, say: Callable[[str], None] = print, log: Path | None = None
    ) -> None:
        self.folder = folder
        self.log = log or (folder / "progress.jsonl" if folder else None)
        self.device = device
        self.say = say

    def wrap(self, step: TrainingStep) -> nn.Module:
        return step

    def restore(self) -> Path | None:
        done = self._checkpoints()
        return done[-1] if done else None

    def _checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path.parent for path in self.folder.glob("checkpoint-*/trainer.json")) if self.folder else []

    def report(self, progress: Progress, write_checkpoint: Callable[[Path], None] | None) -> None:
        self.say(progress_text(progress))
        if self.log is not None:
            append_progress(self.log, progress)
        if self.folder is None or write_checkpoint is None:
            return
        kept = self._checkpoints()
        number = int(kept[-1].name.removeprefix("checkpoint-")) + 1 if kept else 0
        writing = self.folder / ".writing"
        shutil.rmtree(writing, ignore_errors=True)  # of a process that was killed here
        write_checkpoint(writing)
        writing.rename(self.folder / f"checkpoint-{number:06d}")
        for old in kept[: 1 - _KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def write_model(
    model: RegionGPTForConditionalGeneration,
    processor: RegionGPTProcessor,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the model folder that `--model` takes."""
    save(model.to(dtype), processor, folder)  # type: ignore[arg-type]


def train_here(
    job: TrainJob, folder: Path, log: Path | None, num_threads: int, save_dtype: str, say: Callable[[str], None]
) -> Callable[[Path], None]:
    """Train in this process, on its GPU if it has one; return the function that writes the model folder."""
    torch.set_num_threads(num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = train(job, LocalSurroundings(folder, device, say, log))
    return lambda target: write_model(model, processor, target, getattr(torch, save_dtype))
