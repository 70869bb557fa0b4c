"""What `rlabel doctor` says of a model, without loading a weight: what it can do, how much memory it takes, and what this machine lacks for it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlabel.errors import InputError
from rlabel.records import JsonObject
from rlabel.regiongpt.auto import register
from rlabel.regiongpt.configuration import RegionGPTConfig
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.vlm.families import UNKNOWN, Family, family_of
from rlabel.vlm.loading import (
    find_model,
    is_regiongpt,
    load_processor,
    model_type_of,
    outline,
)
from rlabel.vlm.quantizing import language_part, quantizable_layers
from rlabel.vlm.showing import box_text

# Bytes a number. nf4: 4 bits, and 8 for each block of 64 with 32 for each 256 blocks (QLoRA, section 3: 0.127 bits a parameter).
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_QUANTIZED_BYTES = {"int8": 1.0, "nf4": (4 + 8 / 64 + 32 / (64 * 256)) / 8}
# A box of 100 x 50 pixels in a picture of 640 x 480, which no family would resize.
_EXAMPLE = ((200.0, 120.0, 300.0, 170.0), (640.0, 480.0), (640, 480))
_ALL_DECODINGS = ["free", "constrained", "hybrid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """parameters: by part; those tied to others count once. quantizable: how many of them --quantization takes.

    cache_bytes: that one token of one region takes in the language model's cache, in bfloat16; 0 where it cannot be told.
    """

    parameters: dict[str, int]
    quantizable: int
    cache_bytes: int

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    def weight_bytes(self, precision: str) -> int:
        """Return the bytes of the weights at a dtype, or quantized with the rest in bfloat16."""
        if precision in _BYTES:
            return round(self.total * _BYTES[precision])
        rest = (self.total - self.quantizable) * _BYTES["bfloat16"]
        return round(self.quantizable * _QUANTIZED_BYTES[precision] + rest)


def examine(model: str, family: str | None = None, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Return what can be said of a model given as a folder or hub id: one JSON object, see README. family: taken for its own.

    trust_remote_code: the code of its repository is run, with the user's rights.

    Raises InputError for what cannot be used at all, UsageError for an unknown family name.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()  # what it has to say of a configuration is for those who load it
    is_here = Path(model).expanduser().exists()
    folder = find_model(model, weights=is_here, trust_remote_code=trust_remote_code)
    kind = model_type_of(folder)
    facts: dict[str, Any] = {"model": model, "model_type": kind}
    if is_regiongpt(kind):
        facts |= _of_regiongpt()
        register()
        with torch.device("meta"):
            shape: nn.Module = RegionGPTForConditionalGeneration(RegionGPTConfig.from_pretrained(str(folder)))
    else:
        facts |= _of_plain(kind, family_of(kind, family))
        shape = outline(folder, trust_remote_code=trust_remote_code)
    numbers = count(shape)
    processor = None
    if not is_regiongpt(kind):
        processor = partial(load_processor, folder, trust_remote_code=trust_remote_code)
    precisions = [*_BYTES, *(_QUANTIZED_BYTES if numbers.quantizable else ())]
    weights = {name: numbers.weight_bytes(name) for name in precisions}
    on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    facts |= {
        "parameters": {**numbers.parameters, "total": numbers.total},
        "quantizable_parameters": numbers.quantizable,
        "weight_bytes": weights,
        "cache_bytes_a_token": numbers.cache_bytes,
        "bytes_on_disk": on_disk or None,
        "machine": _machine(folder, weights, processor=processor, is_here=on_disk > 0),
    }
    return facts


def _of_regiongpt() -> dict[str, Any]:
    return {
        "family": "regiongpt",
        "region_as": {"default": "mask", "ways": ["mask"]},
        "coordinates": None,
        "box_example": None,
        "coordinates_source": "masks are pooled from the feature map",
        "shared_by_regions": "prompt",
        "tasks": ["classify", "caption", "describe", "relate", "refer"],
        "decodings": list(_ALL_DECODINGS),
        "notes": [],
    }


def _of_plain(kind: str, family: Family) -> dict[str, Any]:
    example = None
    if family.coordinates is not None:
        box, picture_px, resized_px = _EXAMPLE
        example = box_text(family.box, family.coordinates, box, picture_px, resized_px)
    notes = []
    if family.coordinates is None:
        notes.append(
            f"Nobody has told rlabel how models of type {kind!r} write boxes: crops and marks work. "
            "Name a family that it follows with --family to show boxes."
        )
    if family.name == UNKNOWN:
        notes.append("Nobody has tried this type: it is asked about one picture at a time.")
    if family.sharing == "nothing":
        notes.append(
            "--decoding constrained and hybrid are tried when it is loaded, and refused where its cache does not allow them."
        )
    if family.tasks is not None:
        notes.append("It answers its own task prompts only: --question is refused.")
    return {
        "family": family.name,
        "region_as": {"default": family.default, "ways": list(family.ways)},
        "coordinates": family.coordinates,
        "box_example": example,
        "coordinates_source": family.source or None,
        "shared_by_regions": family.sharing,
        "tasks": ["classify", "caption", "describe"],
        "decodings": list(_ALL_DECODINGS),
        "notes": notes,
    }


def count(shape: nn.Module) -> Numbers:
    """Return the numbers of a model on the meta device."""
    if isinstance(shape, RegionGPTForConditionalGeneration):
        part, head = "language_model", shape.language_model.get_output_embeddings()
        names = [
            name
            for name, module in shape.named_modules()
            if isinstance(module, nn.Linear) and module is not head and name.startswith(f"{part}.")
        ]
    else:
        try:
            names, part = quantizable_layers(shape), language_part(shape)
        except InputError:  # --quantization will say so too
            names, part = [], ""
    parameters = {"vision and projection": 0, "language model": 0}
    head_weight = getattr(getattr(shape, "get_output_embeddings", lambda: None)(), "weight", None)
    for name, parameter in shape.named_parameters():  # those that are tied come once
        of_language = (part and name.startswith(part.removesuffix(".decoder"))) or parameter is head_weight
        parameters["language model" if of_language else "vision and projection"] += parameter.numel()
    quantized: list[Any] = [shape.get_submodule(name) for name in names]
    quantizable = sum(layer.weight.numel() for layer in quantized)
    return Numbers(parameters=parameters, quantizable=quantizable, cache_bytes=_cache_bytes(shape))


def _cache_bytes(shape: Any) -> int:
    text = shape.config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    width, layers = getattr(text, "hidden_size", None), getattr(text, "num_hidden_layers", None)
    if not (isinstance(heads, int) and isinstance(width, int) and isinstance(layers, int)):
        return 0
    per_head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    return 2 * layers * heads * int(per_head) * 2


def _machine(
    folder: Path, weights: dict[str, int], *, processor: Callable[[], object] | None, is_here: bool
) -> list[JsonObject]:
    """Return what the model needs of this machine, each as {name, ok, says}; ok None where it is not needed. processor: loads a plain model's."""
    checks: list[JsonObject] = []

    def say(name: str, ok: bool | None, says: str) -> None:
        checks.append({"name": name, "ok": ok, "says": says})

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        memory, place = int(device.total_memory), device.name
        say("GPU", True, f"{device.name}, {_gigabytes(memory)}")
    else:
        memory, place = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine's memory"
        say("GPU", False, f"torch {torch.__version__} sees none: it will run on the CPU, slowly")
    # A fifth is left for pictures, prompts and what they make.
    fitting = [name for name, size in weights.items() if size < 0.8 * memory]
    says = f"at {', '.join(fitting)}" if fitting else f"at none: it takes {_gigabytes(min(weights.values()))} at least"
    say(
        "memory",
        bool(fitting),
        f"{_gigabytes(memory)} ({place}), enough {says}" if fitting else f"{_gigabytes(memory)} ({place}), {says}",
    )
    bits = _version("bitsandbytes")
    say(
        "bitsandbytes",
        bits is not None,
        f"{bits}: --quantization int8 and nf4" if bits else "not installed: no --quantization",
    )
    flash = _version("flash_attn")
    says = f"{flash}: --attention flash_attention_2" if flash else "not installed: --attention sdpa does"
    say("flash attention", flash is not None or None, says)
    if processor is not None:
        torchvision, problem = _version("torchvision"), None
        try:
            processor()
        except InputError as error:
            problem = str(error)
        if problem is not None and "torchvision" in problem:
            say("torchvision", False, "not installed, and this model's processor needs it")
        else:
            says = f"{torchvision or 'not installed'}, and not used: pictures are prepared by Pillow, alike everywhere"
            say("torchvision", None, says)
        say("processor", problem is None, problem or "its tokenizer and image processor can be loaded")
    if not is_here:
        free = shutil.disk_usage(folder).free
        need = weights["bfloat16"]
        says = f"{_gigabytes(free)} free for about {_gigabytes(need)} of weights that are still to be downloaded"
        say("disk", free > need, says)
    return checks


def _version(module: str) -> str | None:
    """Return the version of an installed package, without importing it."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return version(module)
    except PackageNotFoundError:
        return "of an unknown version"


def _gigabytes(size: float) -> str:
    if size < 1e9:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def examination_text(facts: dict[str, Any]) -> str:
    """Return the facts for people, some lines."""
    ways = facts["region_as"]
    shown = [f"{way} (default)" if way == ways["default"] else way for way in ways["ways"]]
    lines = [
        ("model", f"{facts['model']}, model_type {facts['model_type']}"),
        ("family", str(facts["family"])),
        ("regions as", ", ".join(shown)),
    ]
    if facts["box_example"] is not None:
        lines.append(("boxes", f"{facts['box_example']}  ({facts['coordinates_source']})"))
    lines += [
        ("shared", {"prompt": "prompt and picture, once an image", "picture": "the picture, once an image"}.get(str(facts["shared_by_regions"]), "nothing")),
        ("tasks", ", ".join(facts["tasks"])),
        ("decodings", ", ".join(facts["decodings"])),
        ("parameters", ", ".join(f"{name} {number / 1e6:.2f} M" for name, number in facts["parameters"].items())),
        ("weights", ", ".join(f"{name} {_gigabytes(size)}" for name, size in facts["weight_bytes"].items())),
        ("cache", f"{facts['cache_bytes_a_token']} bytes a token and region, in bfloat16"),
    ]  # fmt: skip
    text = [f"{name:12s}{value}" for name, value in lines]
    marks = {True: "ok", False: "missing", None: "-"}
    text += [f"{check['name']:16s}{marks[check['ok']]:8s}{check['says']}" for check in facts["machine"]]
    return "\n".join([*text, *facts["notes"]])
