"""The training loop: stages of a recipe over a labeled corpus, resumable at any checkpoint, deterministic by seed for one worker.

Plain torch. Where it runs, and where its checkpoints lie, is the affair of a `Surroundings`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rlabel.errors import InputError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.regiongpt.assembly import load_processor, save
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor
from rlabel.training.dataset import BatchDataset, Sample, TrainCorpus, cap_per_category, keep_samples, load_corpus
from rlabel.training.objectives import TrainingStep, learning_rate_share
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
    num_loader_workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One line of the training log."""

    stage: str
    step: int
    num_steps: int
    loss: float
    train_accuracy: float
    regions_per_s: float
    val_accuracy: float | None = None


class Surroundings(Protocol):
    """What the loop asks of its place: who it is, how to wrap a module, where to leave progress and checkpoints."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, step: TrainingStep) -> nn.Module: ...

    def restore(self) -> Path | None:
        """Return the folder of the newest checkpoint, or None at the beginning."""

    def report(self, progress: Progress, write_checkpoint: Callable[[Path], None] | None) -> None:
        """Take a progress line, and where given a function that writes a checkpoint into a folder. Called by every rank at the same steps."""


def train(job: TrainJob, surroundings: Surroundings) -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]:
    """Run the recipe from the newest checkpoint (or the start) to its end; return the trained model, float32, on the surroundings' device."""
    torch.manual_seed(job.seed)
    processor = load_processor(job.model)
    model = RegionGPTForConditionalGeneration.from_pretrained(job.model, dtype=torch.float32, trust_remote_code=False)
    model.to(surroundings.device)
    corpus = load_corpus(job.images_url, job.annotations_url, job.limit)
    validation = None
    if job.val_images_url and job.val_annotations_url:
        validation = load_corpus(job.val_images_url, job.val_annotations_url, job.val_limit)
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
        _add_lora(model, stage)
    if checkpoint is not None and first_step:
        load_weights(model, checkpoint)
    groups = _parameter_groups(model, stage)
    optimizer = torch.optim.AdamW(groups, weight_decay=stage.weight_decay, betas=(0.9, 0.98))
    if checkpoint is not None and first_step:
        optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location=surroundings.device, weights_only=True))
    sampled = cap_per_category(corpus, stage.per_category, job.seed + number)
    dataset = BatchDataset(sampled, processor, stage, job.seed + 1000 * number, surroundings.rank, surroundings.world_size)
    num_steps = max(1, len(dataset) // stage.accumulate)
    dataset.first_batch = first_step * stage.accumulate
    loader = DataLoader(
        dataset, batch_size=None, collate_fn=keep_samples, num_workers=job.num_loader_workers, prefetch_factor=4 if job.num_loader_workers else None
    )
    step_module = TrainingStep(model, processor, stage, list(corpus.names.values()))
    wrapped = surroundings.wrap(step_module)
    trained = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    meter = _Meter()
    batches: Iterator[list[Sample]] = iter(loader)
    model.train()
    for step in range(first_step, num_steps):
        share = learning_rate_share(step, num_steps, stage.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        for _ in range(stage.accumulate):
            samples = next(batches, [])
            if not samples:
                continue  # every image of this batch was unusable
            result = wrapped(samples)
            (result.loss / stage.accumulate).backward()
            meter.add(float(result.loss.detach()), result.num_right, result.num_regions)
        torch.nn.utils.clip_grad_norm_(trained, stage.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        last = done == num_steps
        due_checkpoint = last or done % stage.checkpoint_every == 0
        due_validation = validation is not None and (last or (stage.validate_every is not None and done % stage.validate_every == 0))
        if due_checkpoint or due_validation or done % 20 == 0:
            accuracy = _validate(step_module, validation, surroundings) if due_validation and validation is not None else None
            progress = meter.progress(stage.name, done, num_steps, accuracy)
            # At the end of a stage the checkpoint points at the start of the next one: LoRA is merged, its optimizer is gone.
            if last and stage.lora is not None:
                _merge_lora(model)
            place = {"stage": number + 1, "step": 0} if last else {"stage": number, "step": done}
            write = _checkpoint_writer(model, None if last else optimizer, place) if due_checkpoint else None
            surroundings.report(progress, write)
            model.train()


def save_weights(model: RegionGPTForConditionalGeneration, path: Path) -> None:
    """Write all weights and statistics; of tied tensors the first."""
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or not value.numel():  # safetensors refuses shared memory
            seen.add(value.data_ptr())
            weights[name] = value.detach().contiguous().cpu()
    save_file(weights, path)


def load_weights(model: RegionGPTForConditionalGeneration, checkpoint: Path) -> None:
    """Load a checkpoint's weights. Raises InputError when they are not of this model."""
    weights = load_file(checkpoint / "weights.safetensors")
    result = model.load_state_dict(weights, strict=False)
    state = model.state_dict()
    loaded = {state[name].data_ptr() for name in weights if name in state}
    missing = [name for name in result.missing_keys if state[name].data_ptr() not in loaded]  # tied tensors are kept once
    if missing or result.unexpected_keys:
        odd = (missing + result.unexpected_keys)[0]
        raise InputError(f"{checkpoint}: not a checkpoint of this model; {odd} does not fit. Use another --out for another model.")


def _parameter_groups(model: RegionGPTForConditionalGeneration, stage: Stage) -> list[dict[str, object]]:
    """Freeze everything, then free what the stage names. The longest matching prefix decides a parameter's rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        prefixes = [prefix for prefix in stage.learning_rates if name == prefix or name.startswith(f"{prefix}.")]
        is_lora = ".lora_" in name
        frozen_base = stage.lora is not None and name.startswith("language_model.") and not is_lora
        parameter.requires_grad_(bool(prefixes) and not frozen_base)
        if parameter.requires_grad:
            groups.setdefault(stage.learning_rates[max(prefixes, key=len)], []).append(parameter)
    return [{"params": parameters, "lr": rate, "peak_lr": rate} for rate, parameters in groups.items()]


def _add_lora(model: RegionGPTForConditionalGeneration, stage: Stage) -> None:
    from peft import LoraConfig, get_peft_model

    assert stage.lora is not None
    config = LoraConfig(r=stage.lora.rank, lora_alpha=stage.lora.alpha, target_modules=stage.lora.targets, task_type="CAUSAL_LM")
    model.language_model = get_peft_model(model.language_model, config)


def _merge_lora(model: RegionGPTForConditionalGeneration) -> None:
    if hasattr(model.language_model, "merge_and_unload"):
        model.language_model = model.language_model.merge_and_unload()


def _checkpoint_writer(
    model: RegionGPTForConditionalGeneration, optimizer: torch.optim.Optimizer | None, place: dict[str, int]
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(model, folder / "weights.safetensors")
        if optimizer is not None:
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        (folder / "trainer.json").write_text(json.dumps(place))

    return write


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
        total += sum(len(sample.names) for sample in pending)
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
                decoded.text.lower() == name.lower()
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


class _Meter:
    """Running means since the last progress line."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.losses: list[float] = []
        self.right = self.total = 0
        self.since = time.monotonic()

    def add(self, loss: float, right: int, total: int) -> None:
        self.losses.append(loss)
        self.right += right
        self.total += total

    def progress(self, stage: str, step: int, num_steps: int, val_accuracy: float | None) -> Progress:
        elapsed = max(time.monotonic() - self.since, 1e-9)
        line = Progress(
            stage=stage,
            step=step,
            num_steps=num_steps,
            loss=sum(self.losses) / max(len(self.losses), 1),
            train_accuracy=self.right / max(self.total, 1),
            regions_per_s=self.total / elapsed,
            val_accuracy=val_accuracy,
        )
        self.reset()
        return line


def progress_text(progress: Progress) -> str:
    """Return one line for a log."""
    validated = "" if progress.val_accuracy is None else f"  val {100 * progress.val_accuracy:.1f} %"
    return (
        f"{progress.stage} {progress.step}/{progress.num_steps}  loss {progress.loss:.3f}  "
        f"train {100 * progress.train_accuracy:.1f} %{validated}  {progress.regions_per_s:.0f} regions/s"
    )


class LocalSurroundings:
    """One process, checkpoints in a local folder (none: nothing is kept). Used without Ray."""

    rank = 0
    world_size = 1

    def __init__(self, folder: Path | None, device: torch.device, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.device = device
        self.say = say

    def wrap(self, step: TrainingStep) -> nn.Module:
        return step

    def restore(self) -> Path | None:
        done = sorted(self.folder.glob("checkpoint-*/trainer.json")) if self.folder else []
        return done[-1].parent if done else None

    def report(self, progress: Progress, write_checkpoint: Callable[[Path], None] | None) -> None:
        self.say(progress_text(progress))
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "progress.jsonl").open("a") as log:
            log.write(json.dumps(asdict(progress)) + "\n")
        if write_checkpoint is not None:
            name = f"checkpoint-{len(sorted(self.folder.glob('checkpoint-*'))):06d}"
            writing = self.folder / f".{name}"
            write_checkpoint(writing)
            writing.rename(self.folder / name)


def write_model(model: RegionGPTForConditionalGeneration, processor: RegionGPTProcessor, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model folder that `--model` takes."""
    save(model.to(dtype), processor, folder)
