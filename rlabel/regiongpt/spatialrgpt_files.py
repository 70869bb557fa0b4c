"""Reads the folder of a SpatialRGPT checkpoint: its configs, and names and shapes of its tensors before any of them is loaded.

Sub-folders as its save_pretrained lays them out (llava/model/llava_arch.py): llm/, vision_tower/, mm_projector/, region_extractor/.
Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from rlabel.errors import InputError

PARTS = ("llm", "vision_tower", "mm_projector", "region_extractor")
_PICKLES = ("pytorch_model*.bin", "*.pth")
# What float32 holds exactly.
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_CONFIG_BYTES = 16_000_000
_ANEW = "Copy or download the folder again."


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in a file: its shape, and a way to read it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that is open and not read.

    config: the top-level config.json. part_configs: those of the parts' folders. tensors: by "part/name". folders: by part, None where there is none.
    """

    config: dict[str, Any]
    part_configs: dict[str, dict[str, Any]]
    tensors: dict[str, StoredTensor]
    folders: dict[str, Path | None]


def open_checkpoint(root: Path, listed: tuple[str, ...]) -> Checkpoint:
    """Return the checkpoint's configs and the tensors of the `listed` parts, none of them read yet.

    Raises InputError when the folder is missing, of another kind, damaged or quantized.
    """
    config = _top_config(root)
    folders = {part: _part_folder(root, config, part) for part in PARTS}
    part_configs, tensors = {}, {}
    for part in PARTS:
        folder = folders[part]
        if folder is None:
            continue
        own = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        in_config = config.get(f"{part}_cfg")
        for where, found in ((folder / "config.json", own), (root / "config.json", in_config)):
            if isinstance(found, dict) and found.get("quantization_config"):
                raise _quantized(f"{where}, {part}")
        _check_shards(folder)
        part_configs[part] = own
    for part in listed:
        folder = folders[part]
        if folder is None:
            raise InputError(
                f"{root}: expected a folder {part}/ as SpatialRGPT saves it, got none: this looks like a VILA or LLaVA checkpoint without regions. "
                "Name a SpatialRGPT checkpoint, or build a fresh model by `rlabel assemble`."
            )
        tensors.update({f"{part}/{name}": tensor for name, tensor in _stored_tensors(folder).items()})
    return Checkpoint(
        config=config,
        part_configs=part_configs,
        tensors=tensors,
        folders=folders,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file of sane size; InputError otherwise."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError(f"a JSON {type(document).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object of settings, got: {error}. {_ANEW}") from error
    return document


def part_config(flag: str, path_or_id: str) -> PretrainedConfig:
    """Return the config of a tower or language model; InputError where it cannot be read or is of a quantized model."""
    try:
        config = AutoConfig.from_pretrained(path_or_id, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{flag} {path_or_id}: expected a model folder with config.json, or a hub id that is in the cache or can be reached; "
            f"got: {str(error).splitlines()[0]}. Check the path, or name another by {flag}."
        ) from error
    if getattr(config, "quantization_config", None):
        raise InputError(
            f"{flag} {path_or_id}: expected weights of 16 or 32 bits, got a quantized model. Take the checkpoint from before it was quantized."
        )
    return config


def lacking_weights(flag: str, path_or_id: str, build: Callable[[], nn.Module]) -> list[str]:
    """Return the tensors that a local part lacks: transformers would fill them with random numbers and only warn.

    build: makes the part; called without memory for its weights.
    Raises InputError where a tensor has another shape than its config says.
    """
    folder = Path(path_or_id)
    stored = (
        {_bare(name): tensor.shape for name, tensor in _safetensors(folder, check_floats=False).items()}
        if folder.is_dir()
        else {}
    )
    if not stored:
        return []  # a hub id, or no safetensors: the loader says so
    with torch.device("meta"):
        part = build()
    lacking = []
    # Parameters, not the state dict: tied ones are counted once.
    for name, parameter in part.named_parameters():
        shape = stored.get(_bare(name))
        if shape is None:
            lacking.append(f"{folder.name}/{name}")
        elif shape != tuple(parameter.shape):
            raise InputError(
                f"{flag} {path_or_id}, {name}: expected {tuple(parameter.shape)} by its config.json, got {shape}. Copy or download the folder again."
            )
    return lacking


def _bare(name: str) -> str:
    """Return a tensor's name without the wrapper's, which transformers has renamed over the years."""
    return name.removeprefix("vision_model.").removeprefix("model.")


def other_weight_files(root: Path, checkpoint: Checkpoint) -> list[str]:
    """Return the names of weight files beside the four folders, one level deep."""
    found = []
    for pattern in ("*.safetensors", "*.bin", "*.pth", "*.pt"):
        found += [path for depth in ("", "*/") for path in root.glob(depth + pattern)]
    used = {folder.resolve() for folder in checkpoint.folders.values() if folder is not None}
    return sorted(path.relative_to(root).as_posix() for path in found if path.parent.resolve() not in used)


def _top_config(root: Path) -> dict[str, Any]:
    expected = f"{root}: expected the folder of a SpatialRGPT checkpoint (config.json beside {', '.join(f'{part}/' for part in PARTS)})"
    if not root.is_dir():
        raise InputError(f"{expected}, got {'a file' if root.exists() else 'no such folder'}. Check the path.")
    if (root / "adapter_config.json").exists() or (root / "non_lora_trainables.bin").exists():
        raise InputError(f"{expected}, got a LoRA adapter. Merge it into its base first, with SpatialRGPT's own code.")
    if not (root / "config.json").is_file():
        names = sorted(path.name for path in root.iterdir())
        holds = (
            f"a folder with {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "an empty folder"
        )
        raise InputError(f"{expected}, got {holds}. Check the path, or download the folder again.")
    config = read_json(root / "config.json")
    kind = config.get("model_type")
    if kind == "regiongpt":
        raise InputError(f"{expected}, got a model folder of rlabel. It needs no import: rlabel label --model {root}")
    if not any(f"{part}_cfg" in config for part in PARTS):
        if (root.resolve().parent / "region_extractor").is_dir():
            raise InputError(f"{expected}, got one part of it. Name the folder above: {root.resolve().parent}")
        raise InputError(
            f"{expected}, got what looks like a {kind or 'nameless'} model in transformers' own form. "
            "A language model or a vision tower goes into `rlabel assemble`."
        )
    if config.get("quantization_config"):
        raise _quantized(f"{root / 'config.json'}")
    return config


def _part_folder(root: Path, config: dict[str, Any], part: str) -> Path | None:
    """Return the folder of a part, None where there is none. A config may name one by a relative path; it must stay inside."""
    named = config.get(f"{part}_cfg")
    if not isinstance(named, str):
        return root / part if (root / part).is_dir() else None
    inside = Path(named)
    if inside.is_absolute() or "\0" in named or not (root / inside).resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"{root / 'config.json'}, {part}_cfg: expected settings, or a folder inside this one, got {named!r}, which leads out of it. "
            f"Put the part into {root / part} and its name here."
        )
    folder = root / inside
    return folder if named and folder.is_dir() else None


def _check_shards(folder: Path) -> None:
    for index in sorted(folder.glob("*.index.json")):
        shards = read_json(index).get("weight_map")
        for shard in set(shards.values()) if isinstance(shards, dict) else {None}:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise InputError(f"{index}, weight_map: expected names of files beside it, got {shard!r}. {_ANEW}")


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    tensors = _safetensors(folder, check_floats=True) or _pickled(folder)
    if not tensors:
        raise InputError(f"{folder}: expected model.safetensors (or pytorch_model.bin), got no weights. {_ANEW}")
    return tensors


def _safetensors(folder: Path, check_floats: bool) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    header = file.get_slice(name)
                    if check_floats and header.get_dtype() not in _FLOATS:
                        raise _quantized(f"{path}, {name} ({header.get_dtype()})")
                    _add(tensors, path, name, tuple(header.get_shape()), _reader(path, name))
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path}: expected whole safetensors, got: {str(error).splitlines()[0]}. {_ANEW}"
            ) from error
    return tensors


def _reader(path: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    return read


def _holder(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def _pickled(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of .bin or .pth files: tensors alone are unpickled, and mapped rather than read."""
    tensors: dict[str, StoredTensor] = {}
    for path in sorted(path for pattern in _PICKLES for path in folder.glob(pattern)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # pickle, zipfile and torch each have their own kinds
            raise InputError(
                f"{path}: expected a state dict of tensors alone, got {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'nothing'}. "
                "Save it again as safetensors."
            ) from error
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise InputError(
                f"{path}: expected a state dict of tensors alone, got other things. Save it again as safetensors."
            )
        for name, tensor in state.items():
            if tensor.dtype not in _FLOATS.values():
                raise _quantized(f"{path}, {name} ({tensor.dtype})")
            _add(tensors, path, str(name), tuple(tensor.shape), _holder(tensor))
    return tensors


def _add(
    tensors: dict[str, StoredTensor], path: Path, name: str, shape: tuple[int, ...], read: Callable[[], Tensor]
) -> None:
    if name in tensors:
        raise InputError(f"{path}, {name}: expected each tensor in one file of the folder, got it twice. {_ANEW}")
    tensors[name] = StoredTensor(shape=shape, read=read)


def _quantized(where: str) -> InputError:
    return InputError(
        f"{where}: expected weights of 16 or 32 bits, got quantized ones. Take the checkpoint from before it was quantized; "
        "rlabel quantizes while loading (rlabel label --quantization)."
    )
