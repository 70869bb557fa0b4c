"""A small labeled corpus of coloured boxes, tiny models saved as folders, short recipes, and places for the training loop to run in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import model_factories
from factories import coco_file
from rlabel.regiongpt.assembly import save
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor
from rlabel.training.dataset import BatchDataset, Sample
from rlabel.training.freezing import parameter_groups
from rlabel.training.loop import TrainJob, train
from rlabel.training.objectives import TrainingStep
from rlabel.training.parts import load_corpus
from rlabel.training.progress import Progress
from rlabel.training.recipe import Recipe, Stage

# One colour a category, so that a tiny model can tell them apart.
COLOURS = {"cat": (220, 40, 40), "dog": (40, 200, 60), "teapot": (50, 70, 230), "fire hydrant": (230, 220, 40)}
CATEGORIES = [{"id": i + 1, "name": name} for i, name in enumerate(COLOURS)]
PLACES = ([6, 6, 22, 20], [36, 8, 20, 24], [10, 36, 24, 20], [38, 38, 20, 18])
PARTS = ("vision_tower", "refinement", "connector", "zoom_connector", "language_model")


@dataclass(frozen=True)
class Files:
    """A labeled corpus on the disk."""

    images: Path
    annotations: Path

    def job(self, model: Path, recipe: Recipe, **more: Any) -> TrainJob:
        fields = {
            "model": str(model),
            "images_url": str(self.images),
            "annotations_url": str(self.annotations),
            "recipe": recipe,
        }
        return TrainJob(**{**fields, "num_loader_workers": 0, **more})


def labeled_corpus(folder: Path, num_images: int = 4, regions_per_image: int = 2, size: int = 64) -> Files:
    """Write pictures of coloured boxes on noise. Region j of image i is of category (i + j) modulo 4."""
    names = list(COLOURS)
    random = np.random.default_rng(7)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(num_images):
        pixels = random.integers(90, 150, (size, size, 3), dtype=np.uint8)
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": size, "height": size})
        for j in range(regions_per_image):
            x, y, w, h = PLACES[j]
            kind = (i + j) % len(names)
            pixels[y : y + h, x : x + w] = COLOURS[names[kind]]
            annotations.append(row(len(annotations) + 1, i + 1, kind + 1, PLACES[j]))
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    return Files(
        folder / "images", coco_file(folder / "instances.json", images, annotations, {"categories": CATEGORIES})
    )


def row(region_id: int, image_id: int, category_id: object, box: Sequence[int], **more: Any) -> dict[str, Any]:
    """Return an annotation whose mask is an ellipse-like polygon in the box: a mask that its box is not."""
    x, y, w, h = box
    polygon = [x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]
    return {
        "id": region_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "segmentation": [polygon],
        "iscrowd": 0,
        **more,
    }


def edit(files: Files, change: Callable[[dict[str, Any]], None]) -> Files:
    """Change the content of the annotation file in place."""
    content = json.loads(files.annotations.read_text())
    change(content)
    files.annotations.write_text(json.dumps(content))
    return files


def tiny(
    zoom: str = "all", seed: int = 0, text: str = "llama", **more: Any
) -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]:
    """Return a RegionGPT of some 60,000 parameters and its processor."""
    made = model_factories.model(text=text, seed=seed, zoom_feature_layers=[] if zoom == "off" else [-4, -1], **more)
    return made, model_factories.processor(made, zoom=zoom)


def tiny_folder(folder: Path, **more: Any) -> Path:
    model, processor = tiny(**more)
    save(model, processor, folder)
    return folder


def stage(objective: str = "align", **more: Any) -> Stage:
    parts: tuple[str, ...] = ("connector", "zoom_connector")
    if objective == "instruct":
        parts = (*parts, "language_model")
    if objective == "spell":
        parts = ("language_model",)
        more = {"steps": 2, "names_per_batch": 20, **more}
    fields = {
        "name": objective,
        "objective": objective,
        "images_per_batch": 2,
        "learning_rates": dict.fromkeys(parts, 1e-3),
        "warmup": 0.0,
    }
    return Stage.model_validate({**fields, **more})


def recipe(*stages: Stage) -> Recipe:
    return Recipe(name="test", stages=list(stages))


def samples_of(
    folder: Path, processor: RegionGPTProcessor, num_images: int = 2, regions: int = 3, **more: Any
) -> list[Sample]:
    """Return prepared pictures with their conversations; every objective takes them."""
    files = labeled_corpus(folder, num_images, regions)
    corpus = load_corpus(str(files.images), str(files.annotations))
    made = stage("instruct", images_per_batch=num_images, **more)
    return BatchDataset(corpus, processor, made, 3, 0, 1)[0]


def training_step(made: tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor], of: Stage) -> TrainingStep:
    """Return a step whose model is frozen and freed as the loop does it."""
    parameter_groups(made[0], of)
    return TrainingStep(*made, of, list(COLOURS)).train()


def rates(*parts: str) -> dict[str, float]:
    return dict.fromkeys(parts, 1e-3)


class Tap:
    """Keeps the logits of the language model's last pass, with their gradient."""

    def __init__(self, model: RegionGPTForConditionalGeneration) -> None:
        self.logits = torch.empty(0)
        self.num_rows = 0
        model.language_model.register_forward_hook(self.keep)

    def keep(self, _module: object, _inputs: object, output: Any) -> None:
        self.logits = output.logits
        if self.logits.requires_grad:
            self.logits.retain_grad()
        self.num_rows += len(output.logits)


class Killed(Exception):
    """The process died here."""


class Place:
    """Surroundings that keep checkpoints in a folder and die at a report, if told to. steps: (stage, step) of every report."""

    rank = 0
    world_size = 1
    device = torch.device("cpu")
    sharded = False

    def __init__(self, folder: Path, die_at_report: int | None = None) -> None:
        self.folder = folder
        self.die_at_report = die_at_report
        self.progress: list[Progress] = []
        self.notes: list[str] = []

    @property
    def steps(self) -> list[tuple[str, int]]:
        return [(line.stage, line.step) for line in self.progress]

    def wrap(self, step: TrainingStep) -> nn.Module:
        return step

    def restore(self) -> Path | None:
        done = sorted(self.folder.glob("c*"))
        return done[-1] if done else None

    def report(self, progress: Progress, write_checkpoint: Callable[[Path], None] | None) -> None:
        if progress.note:
            self.notes.append(progress.note)
            return
        self.progress.append(progress)
        if write_checkpoint is not None:
            write_checkpoint(self.folder / f"c{len(list(self.folder.glob('c*'))):03d}")
        if len(self.progress) == self.die_at_report:
            raise Killed


def place(folder: Path, die_at_report: int | None = None) -> Place:
    folder.mkdir(exist_ok=True)
    return Place(folder, die_at_report)


def weights(model: nn.Module | Path) -> dict[str, Tensor]:
    """Return copies of all weights and statistics of a model, or of a saved model folder."""
    if isinstance(model, Path):
        return load_file(model / "model.safetensors")
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()
    }


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


def trained(job: Any, folder: Path) -> dict[str, torch.Tensor]:
    return weights(train(job, place(folder))[0])
