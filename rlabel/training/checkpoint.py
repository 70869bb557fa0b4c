"""What a checkpoint holds: weights, the optimizer's state, and the place in the recipe. Tensors only; nothing pickled is ever run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlabel.errors import InputError
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration


def weight_names(folder: str | Path) -> list[str]:
    """Return the names of a model folder's weights, from the headers of its safetensors alone."""
    names: list[str] = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            names += file.keys()
    return names


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
    missing = [
        name for name in result.missing_keys if state[name].data_ptr() not in loaded
    ]  # tied tensors are kept once
    if missing or result.unexpected_keys:
        odd = (missing + result.unexpected_keys)[0]
        raise InputError(
            f"{checkpoint}: not a checkpoint of this model; {odd} does not fit. Use another --out for another model."
        )


def checkpoint_writer(
    model: RegionGPTForConditionalGeneration, optimizer: torch.optim.Optimizer | None, place: dict[str, int]
) -> Callable[[Path], None]:
    """Return a function that writes weights, the optimizer's state and the place in the recipe into a folder, as they are when it is called."""

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(model, folder / "weights.safetensors")
        if optimizer is not None:
            torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        (folder / "trainer.json").write_text(json.dumps(place))

    return write
