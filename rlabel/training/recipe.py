"""Recipes: what is trained, on what, how long. YAML in, checked records out.

A recipe is a list of stages run one after the other. `align` pulls region tokens to the mean input embedding of their name's tokens without a language
model pass; `spell` teaches the language model to say the name nearest to a disturbed embedding, without a pass over pictures; `instruct` trains
conversations on pictures, with loss on the answers only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlabel.errors import InputError
from rlabel.prompts.tasks import Task
from rlabel.yaml_files import BadYaml, load_yaml

Objective = Literal["align", "spell", "instruct"]
Dtype = Literal["float32", "bfloat16"]
Share = Annotated[float, Field(ge=0, le=1)]
# Parts that only some models have.
OPTIONAL_PARTS = (
    "refinement",
    "region_connector",
    "zoom_connector",
    "place_connector",
    "region_queries",
    "zoom_queries",
)
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(_Strict):
    """LoRA on the language model's linear layers (through peft); merged into the weights when the stage ends."""

    rank: int = Field(8, ge=1, le=1024)
    alpha: int = Field(16, ge=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"
    base: Literal["none", "nf4"] = Field(
        "none",
        description="nf4: the layers under LoRA are held in 4 bits while the stage trains (QLoRA); what is written has their own weights with LoRA merged in",
    )


class Augment(_Strict):
    """Changes of training regions; mirror, colour, grey and blur are drawn for the whole picture too. Probabilities; 0 switches a change off."""

    geometry: float = Field(
        0.0, ge=0, le=1, description="turned up to 25 degrees, scaled 0.8 to 1.3, stretched, shifted"
    )
    mirror: float = Field(0.0, ge=0, le=0.5)
    colour: float = Field(0.0, ge=0, le=1, description="brightness, contrast, saturation, hue")
    grey: float = Field(0.0, ge=0, le=1)
    blur: float = Field(0.0, ge=0, le=1, description="shrunk to a half or a quarter and back, as small regions are")
    outline: float = Field(0.0, ge=0, le=1, description="edges on white, as line drawings are")
    cutout: float = Field(0.0, ge=0, le=1, description="a rectangle is hidden, as an occluder would")
    box: float = Field(
        0.0, ge=0, le=1, description="the mask is replaced by its box, every other time one a little off"
    )
    edge: float = Field(0.0, ge=0, le=1, description="the mask grows or shrinks by 1 to 20 % of its longer side")
    paste: float = Field(
        0.0, ge=0, le=1, description="regions cut from another training picture are laid onto this one"
    )
    keep: tuple[Share, Share] | None = Field(
        None, description="range of how much of the outside stays visible; none: the processor's own"
    )


class Stage(_Strict):
    """One stage. learning_rates names what is trained (prefixes of parameter names) and how fast; everything else stays frozen."""

    name: str
    objective: Objective
    epochs: float = Field(1.0, gt=0)
    images_per_batch: int = Field(8, ge=1)
    steps: int | None = Field(None, ge=1, description="spell: optimizer steps, since there is no corpus to go through")
    names_per_batch: int = Field(
        256, ge=1, description="spell: names said in a step, drawn evenly from the corpus's names"
    )
    accumulate: int = Field(1, ge=1, description="batches whose gradients are averaged before a step")
    learning_rates: dict[str, Rate] = Field(min_length=1)
    lora: Lora | None = None
    warmup: float = Field(0.03, ge=0, le=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    dtype: Dtype = Field("float32", description="of the arithmetic (autocast); weights and their updates stay float32")
    gradient_checkpointing: bool = Field(
        False,
        description="activations of the language model's layers are computed anew instead of kept: less memory, more time",
    )
    per_category: int | None = Field(
        None, ge=1, description="at most this many regions of each category; images left without one are dropped"
    )
    weights: dict[str, Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]] = Field(
        {},
        description="how often each image of a dataset comes in an epoch, by the dataset's name, instead of what the mixture says; 0 leaves it out",
    )
    balance: Share = Field(
        0.0, description="0: images come evenly; 1: images of rare categories come so often that categories come evenly"
    )
    max_regions_per_image: int = Field(32, ge=1)
    augment: Augment = Augment()
    batch_norm: Literal["frozen", "trained"] = "frozen"
    tower_through_image: bool = Field(
        True, description="gradients reach the tower through the whole image too, not only through zoomed crops"
    )
    pooled_share: Share = Field(
        1.0,
        description="align: share of the steps in which the mask-pooled parts of zoomed regions learn too, by a loss of their own; crops always do",
    )
    frozen: list[str] = Field(
        [], description="patterns (* and ?) of parameters that stay frozen though learning_rates names them"
    )
    anchor: dict[str, Share] = Field(
        {},
        description="parts (prefixes of parameter names) that the stage leaves drawn back to the weights that training began with, and by which share "
        "of the way; validation sees them before that",
    )
    decorrelate: bool = Field(
        False,
        description="align: draw region tokens to name embeddings that are first turned away from each other; the model keeps the map (its name_map)",
    )
    temperature: float = Field(0.05, gt=0, description="align: divides cosines before the softmax over names")
    tasks: dict[Task, Share] = Field(
        {"classify": 1.0},
        min_length=1,
        description="instruct: how often each task is asked of a region, a relation, a pair",
    )
    conversation: Literal["separate", "multi_turn"] = Field(
        "separate", description="instruct: a conversation for each question, or one for all questions about an image"
    )
    multi_turn_share: Share = Field(
        0.0, description="spell: share of the packed rows whose questions are all asked in one conversation"
    )
    align_weight: float = Field(0.0, ge=0, description="instruct: weight of the align loss that is added")
    checkpoint_every: int = Field(200, ge=1, description="optimizer steps")
    validate_every: int | None = Field(None, ge=1, description="optimizer steps; none: at the end of the stage")
    patience: int | None = Field(
        None,
        ge=1,
        description="the stage ends after so many validations in a row that were not better than the best before",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="weights that the stage leaves: of its best validation (of equals the latest), or of its last step",
    )

    @model_validator(mode="after")
    def _lora_is_trained(self) -> Stage:
        trains_language = any(name.split(".")[0] == "language_model" for name in self.learning_rates)
        if self.lora is not None and not (trains_language and self.objective == "instruct"):
            raise ValueError(
                "lora needs objective instruct and a learning rate of language_model, or it would stay untrained"
            )
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> Stage:
        parts = {name.split(".")[0] for name in self.learning_rates}
        if self.objective == "align" and parts == {"language_model"}:
            raise ValueError("align makes no language model pass; learning_rates must name another part")
        if self.objective == "spell" and "language_model" not in parts:
            raise ValueError("spell trains the language model alone; learning_rates must name it")
        return self

    @model_validator(mode="after")
    def _patience_has_something_to_wait_for(self) -> Stage:
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts validations; give validate_every too")
        return self

    @model_validator(mode="after")
    def _spell_has_steps(self) -> Stage:
        if (self.objective == "spell") != (self.steps is not None):
            raise ValueError("steps belongs to objective spell, which needs it; the others take epochs")
        return self

    def check_names(self, weight_names: Collection[str]) -> None:
        """Raise InputError unless every name of learning_rates and anchor is a prefix of a model's weights.

        Of learning_rates, OPTIONAL_PARTS may be missing, not all.
        """
        found = [prefix for prefix in self.learning_rates if any(is_part(name, prefix) for name in weight_names)]
        unknown = [
            prefix
            for prefix in self.learning_rates
            if prefix not in found and prefix.split(".")[0] not in OPTIONAL_PARTS
        ]
        if unknown or not found:
            parts = sorted({name.split(".")[0] for name in weight_names})
            raise InputError(
                f"recipe, stage {self.name}, learning_rates: expected names of this model's weights, got {(unknown or list(self.learning_rates))[0]!r}. "
                f"Its parts: {', '.join(parts)}."
            )
        for prefix in self.anchor:
            if not any(is_part(name, prefix) for name in weight_names):
                parts = sorted({name.split(".")[0] for name in weight_names})
                raise InputError(
                    f"recipe, stage {self.name}, anchor: expected names of this model's weights, got {prefix!r}. Its parts: {', '.join(parts)}."
                )
        if self.lora is not None and self.lora.targets != "all-linear":
            modules = {
                name.removesuffix(".weight").removesuffix(".base_layer")
                for name in weight_names
                if name.startswith("language_model.")
            }
            lost = [
                target for target in self.lora.targets if not any(f".{one}".endswith(f".{target}") for one in modules)
            ]
            if lost:
                raise InputError(
                    f"recipe, stage {self.name}, lora.targets: expected ends of names of the language model's layers, got {lost[0]!r}. "
                    "Write all-linear, or names like q_proj."
                )

    def check_validated(self, has_validation: bool) -> None:
        """Raise InputError for a stage that waits for validations where nothing is validated on."""
        if self.patience is not None and not has_validation:
            raise InputError(
                f"recipe, stage {self.name}, patience: expected something to validate on, got none. "
                "Give --val-images and --val-annotations, or take patience out."
            )

    def batches_per_epoch(self, num_images: int, world_size: int) -> int:
        """Return how many batches each worker makes of its part of the images; what does not fill one waits for the next epoch's order."""
        return max(1, num_images // (self.images_per_batch * world_size))

    def num_batches(self, num_images: int, world_size: int) -> int:
        """Return how many batches each worker makes in the whole stage."""
        if self.steps is not None:
            return self.steps * self.accumulate
        return max(1, round(self.batches_per_epoch(num_images, world_size) * self.epochs))

    def num_steps(self, num_images: int, world_size: int) -> int:
        """Return the optimizer steps of the stage."""
        return max(1, self.num_batches(num_images, world_size) // self.accumulate)


def is_part(name: str, prefix: str) -> bool:
    """Return whether a weight is the part that a recipe names, or within it."""
    return name == prefix or name.startswith(f"{prefix}.")


class Recipe(_Strict):
    name: str
    stages: list[Stage] = Field(min_length=1)

    def of_stages(self, names: str) -> Recipe:
        """Return the recipe with some of its stages alone, in its own order. names: separated by commas.

        Raises InputError for a name that no stage has.
        """
        wanted = [name.strip() for name in names.split(",")]
        known = [stage.name for stage in self.stages]
        if unknown := [name for name in wanted if name not in known]:
            raise InputError(
                f"--stages {names}: recipe {self.name} has no stage {unknown[0]!r}. Its stages: {', '.join(known)}."
            )
        return self.model_copy(update={"stages": [stage for stage in self.stages if stage.name in wanted]})


def load_recipe(name_or_file: str) -> Recipe:
    """Return a shipped recipe by name, or one from a YAML file.

    Raises InputError naming the field that is wrong.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise InputError(
                f"--recipe {name_or_file}: no such file. Shipped recipes: {', '.join(shipped_recipes())}."
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--recipe {name_or_file}: expected a readable YAML file, got: {error}. Check the path."
            ) from error
    else:
        file = resources.files("rlabel").joinpath(f"recipes/{name_or_file}.yaml")
        if "/" in name_or_file or not file.is_file():
            raise InputError(
                f"--recipe {name_or_file}: neither a file nor a shipped recipe. Shipped: {', '.join(shipped_recipes())}."
            )
        text = file.read_text(encoding="utf-8")
    try:
        return Recipe.model_validate(load_yaml(text))
    except (BadYaml, ValidationError) as error:
        raise InputError(
            f"--recipe {name_or_file}: {_first_problem(error)}. See rlabel/recipes/mini.yaml for an example."
        ) from error


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
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        return f"{where}: {first['msg']} (got {first.get('input')!r:.80})"
    return " ".join(str(error).split())
