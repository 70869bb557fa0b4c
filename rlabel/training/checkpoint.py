"""What a checkpoint holds: weights, the optimizer's state, the place in the recipe and the best of its stage. Tensors only; nothing pickled is ever run.

A checkpoint is always whole and unquantized, whether the model is sharded over workers, quantized for QLoRA, or neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlabel.errors import InputError
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration

_WEIGHTS, _BEST, _OPTIMIZER, _PLACE = "weights.safetensors", "best.safetensors", "optimizer.pt", "trainer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlace:
    """How far a training is: steps of a stage that are done; 0 of the next stage where one has ended.

    best_accuracy, best_step: the best validation of this stage so far. num_stale: validations since the last that was better than all before it.
    """

    stage: int = 0
    step: int = 0
    best_accuracy: float | None = None
    best_step: int = 0
    num_stale: int = 0


def read_place(checkpoint: Path | None) -> RunPlace:
    """Return where a checkpoint is; the beginning for None."""
    return RunPlace(**json.loads((checkpoint / _PLACE).read_text())) if checkpoint else RunPlace()


def weight_names(folder: str | Path) -> list[str]:
    """Return the names of a model folder's weights, from the headers of its safetensors alone."""
    names: list[str] = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            names += file.keys()
    return names


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a model's state: weights and statistics; of tied tensors the first."""
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        if value.data_ptr() not in seen or not value.numel():  # safetensors refuses shared memory
            seen.add(value.data_ptr())
            weights[name] = value.detach().contiguous().cpu()
    save_file(weights, path)


def load_weights(model: RegionGPTForConditionalGeneration, checkpoint: Path) -> None:
    """Load a checkpoint's weights. Raises InputError when they are not of this model."""
    load_state(model, load_file(checkpoint / _WEIGHTS), str(checkpoint))


def load_state(model: RegionGPTForConditionalGeneration, weights: Mapping[str, Tensor], where: str) -> None:
    """Load a whole state, tied tensors once. Raises InputError, naming `where`, when it is not of this model."""
    result = model.load_state_dict(weights, strict=False)
    state = model.state_dict()
    loaded = {state[name].data_ptr() for name in weights if name in state}
    missing = [
        name for name in result.missing_keys if state[name].data_ptr() not in loaded
    ]  # tied tensors are kept once
    if missing or result.unexpected_keys:
        odd = (missing + result.unexpected_keys)[0]
        raise InputError(
            f"{where}: not a checkpoint of this model; {odd} does not fit. Use another --out for another model."
        )


def load_best(checkpoint: Path) -> dict[str, Tensor] | None:
    """Return the trained weights as they were at the stage's best validation; None where that was this very step, or none."""
    path = checkpoint / _BEST
    return load_file(path) if path.exists() else None


def load_optimizer(checkpoint: Path) -> dict[str, Any]:
    """Return the state of the stage's optimizer, on the CPU."""
    return torch.load(checkpoint / _OPTIMIZER, map_location="cpu", weights_only=True)


def checkpoint_writer(
    state: Callable[[], Mapping[str, Tensor]],
    optimizer: Callable[[], Mapping[str, Any]] | None,
    best: Mapping[str, Tensor] | None,
    place: RunPlace,
) -> Callable[[Path], None]:
    """Return a function that writes a checkpoint into a folder; weights and the optimizer's state are asked for when it is called."""

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(state(), folder / _WEIGHTS)
        if best is not None:
            save_weights(best, folder / _BEST)
        if optimizer is not None:
            torch.save(optimizer(), folder / _OPTIMIZER)
        (folder / _PLACE).write_text(json.dumps(asdict(place)))

    return write
