"""Recipes: what is trained, on what, how long. YAML in, checked records out.

A recipe is a list of stages run one after the other. `align` pulls region tokens to the mean input embedding of their name's tokens without a language
model pass; `instruct` trains conversations, with loss on the answers only.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlabel.errors import InputError

Objective = Literal["align", "instruct"]
Dtype = Literal["float32", "bfloat16"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(_Strict):
    """LoRA on the language model's linear layers (through peft); merged into the weights when training ends."""

    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0)
    targets: list[str] | Literal["all-linear"] = "all-linear"


class Augment(_Strict):
    """Changes of training regions. Probabilities are a region's; 0 switches a change off."""

    geometry: float = Field(0.0, ge=0, le=1, description="turned up to 25 degrees, scaled 0.8 to 1.3, stretched, shifted")
    mirror: float = Field(0.0, ge=0, le=0.5)
    colour: float = Field(0.0, ge=0, le=1, description="brightness, contrast, saturation, hue")
    grey: float = Field(0.0, ge=0, le=1)
    blur: float = Field(0.0, ge=0, le=1, description="shrunk to a half or a quarter and back, as small regions are")
    outline: float = Field(0.0, ge=0, le=1, description="edges on white, as line drawings are")
    cutout: float = Field(0.0, ge=0, le=1, description="a rectangle is hidden, as an occluder would")
    box: float = Field(0.0, ge=0, le=1, description="the mask is replaced by its box")
    keep: tuple[float, float] | None = Field(None, description="range of how much of the outside stays visible; none: the processor's own")


class Stage(_Strict):
    """One stage. learning_rates names what is trained (prefixes of parameter names) and how fast; everything else stays frozen."""

    name: str
    objective: Objective
    epochs: float = Field(1.0, gt=0)
    images_per_batch: int = Field(8, ge=1)
    accumulate: int = Field(1, ge=1)
    learning_rates: dict[str, float]
    lora: Lora | None = None
    warmup: float = Field(0.03, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    dtype: Dtype = "float32"
    per_category: int | None = Field(None, ge=1, description="at most this many regions of each category; images left without one are dropped")
    max_regions_per_image: int = Field(32, ge=1)
    augment: Augment = Augment()
    batch_norm: Literal["frozen", "trained"] = "frozen"
    tower_through_image: bool = Field(True, description="gradients reach the tower through the whole image too, not only through zoomed crops")
    temperature: float = Field(0.05, gt=0, description="align: divides cosines before the softmax over names")
    align_weight: float = Field(0.0, ge=0, description="instruct: weight of the align loss that is added")
    checkpoint_every: int = Field(200, ge=1, description="optimizer steps")
    validate_every: int | None = Field(None, ge=1, description="optimizer steps; none: at the end of the stage")


class Recipe(_Strict):
    name: str
    stages: list[Stage] = Field(min_length=1)


def load_recipe(name_or_file: str) -> Recipe:
    """Return a shipped recipe by name, or one from a YAML file.

    Raises InputError naming the field that is wrong.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise InputError(f"--recipe {name_or_file}: no such file. Shipped recipes: {', '.join(shipped_recipes())}.")
        text = path.read_text(encoding="utf-8")
    else:
        file = resources.files("rlabel").joinpath(f"recipes/{name_or_file}.yaml")
        if "/" in name_or_file or not file.is_file():
            raise InputError(f"--recipe {name_or_file}: neither a file nor a shipped recipe. Shipped: {', '.join(shipped_recipes())}.")
        text = file.read_text(encoding="utf-8")
    try:
        return Recipe.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise InputError(f"--recipe {name_or_file}: {_first_problem(error)}. See rlabel/recipes/mini.yaml for an example.") from error


def shipped_recipes() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(_names())


def _names() -> Iterator[str]:
    for entry in resources.files("rlabel").joinpath("recipes").iterdir():
        if entry.name.endswith(".yaml"):
            yield entry.name.removesuffix(".yaml")


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']} (got {first.get('input')!r:.80})"
    return str(error).replace("\n", " ")
