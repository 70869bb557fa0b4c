"""Loads a saved RegionGPT for labeling: its folder found and checked, its language model quantized by bitsandbytes on the way in, if asked.

Only safetensors are read and no code of a model repository is run. Building and saving models is `assembly`'s affair.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rlabel.errors import InputError
from rlabel.regiongpt.auto import register
from rlabel.regiongpt.configuration import RegionGPTConfig
from rlabel.regiongpt.modeling import NEVER_QUANTIZED, RegionGPTForConditionalGeneration
from rlabel.regiongpt.sizes import check_outline, check_sizes
from rlabel.regiongpt.weights import check_loaded, check_not_quantized, check_safetensors, first_line

log = logging.getLogger(__name__)

Quantization = Literal["none", "int8", "nf4"]
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The files of a model folder that decide what it answers. generation_config.json is not one: the engine is greedy and stops by the tokenizer.
_DECIDING_FILES = (
    "config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.*", "merges.txt", "*.model", "added_tokens.json",
    "special_tokens_map.json", "chat_template*", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip
_DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What a state dict holds besides parameters: statistics and counters.
_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked", "position_ids", "inv_freq")
_MADE_BY = "a folder made by `rlabel train` or `rlabel assemble`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How a model's numbers are kept.

    dtype: of every weight that is not quantized, and of the arithmetic around them.
    compute_dtype: in which nf4 layers multiply (on CPUs with bf16 instructions bitsandbytes takes bfloat16 regardless); None: as dtype.
    int8 layers always multiply in int8 with float16 outliers. double_quantization: nf4's scales are quantized too.
    attention: of the language model, by transformers' names; auto: what transformers takes. compile, compile_mode: see `compile_layers`.
    """

    quantization: Quantization = "none"
    double_quantization: bool = True
    dtype: Dtype = "float32"
    compute_dtype: Dtype | None = None
    attention: Attention = "auto"
    compile: bool = False
    compile_mode: CompileMode = "default"


def load_model(
    path_or_id: str | Path, precision: Precision = Precision(), device: str | torch.device = "cpu"
) -> RegionGPTForConditionalGeneration:
    """Return a model ready to label, in eval mode, on the device, its linear layers of the language model quantized where asked.

    Raises InputError when the folder is missing, holds no RegionGPT or no whole safetensors, or cannot be quantized; or where the attention or a compiler
    is not there.
    """
    register()
    folder = resolve_model(path_or_id)
    options: dict[str, Any] = {}
    # bitsandbytes 0.50: int8 says "inputs will be cast" once a layer and call, thousands of lines a minute; and on import a CPU with
    # bf16 instructions is told of an optional kernel that is not installed.
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            check_outline(
                RegionGPTForConditionalGeneration(RegionGPTConfig.from_pretrained(str(folder))),
                folder,
                f"--model {path_or_id}",
            )
        if precision.quantization != "none":
            options = {"quantization_config": _bitsandbytes_config(folder, precision), "device_map": {"": str(device)}}
        loaded: Any = RegionGPTForConditionalGeneration.from_pretrained(
            str(folder),
            dtype=_DTYPES[precision.dtype],
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # safetensors, transformers, accelerate and bitsandbytes each have their own kinds
        if isinstance(error, torch.OutOfMemoryError | MemoryError | InputError):
            raise
        raise InputError(
            f"--model {path_or_id}: expected whole safetensors that fit its config.json, got {type(error).__name__}: {first_line(error)}. "
            "Copy or download the folder again, or make it anew."
        ) from error
    model, report = loaded
    check_loaded(report, f"--model {path_or_id}", "Copy or download the folder again, or make it anew.")
    if precision.quantization == "none":
        model = model.to(device)
    # Convolutions on CPUs are an order of magnitude faster so; on GPUs they are not slower.
    model.vision_tower.to(memory_format=torch.channels_last)
    check_quantized(model, precision)
    _set_attention(model, precision)
    model.eval()
    if precision.compile:
        compile_layers(model, precision.compile_mode)
    return model


def quantized_layers(model: nn.Module) -> list[str]:
    """Return the full names of the layers that bitsandbytes holds in 8 or 4 bits, in the model's order."""
    if "bitsandbytes" not in sys.modules:  # nothing can be quantized then, and importing it takes seconds and warns
        return []
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return [name for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)]


def check_quantized(model: RegionGPTForConditionalGeneration, precision: Precision) -> None:
    """Check that what was quantized is what may be: layers of the language model, never its head.

    Raises InputError when a forbidden layer was quantized, or none was though it was asked for.
    """
    layers = quantized_layers(model)
    forbidden = [name for name in layers if name.split(".")[0] != "language_model" or name in _heads(model)]
    if forbidden:
        raise InputError(
            f"--quantization {precision.quantization}: {', '.join(forbidden[:3])} must stay unquantized, and bitsandbytes quantized it. "
            "This combination of versions is not supported; use --quantization none."
        )
    if precision.quantization != "none" and not layers:
        raise InputError(
            f"--quantization {precision.quantization}: the language model ({model.config.text_config.model_type}) has no linear layer that "
            "bitsandbytes can quantize. Use --quantization none."
        )
    check_layers_fit(model, precision)
    if precision.quantization == "none" and layers:
        raise InputError(f"--quantization none: {layers[0]} is quantized. Load the unquantized folder.")


def check_layers_fit(model: Any, precision: Precision) -> None:
    """Raise InputError where the quantized layers of a model cannot multiply on the device that they are on."""
    if model.device.type != "cpu":
        return
    modules = [(name, model.get_submodule(name)) for name in quantized_layers(model)]
    # bitsandbytes 0.50.2 repacks nf4 weights for such CPUs in blocks of 32 x 64, and fails at the first forward where they do not fit.
    unfit = [
        f"{name} ({module.in_features} to {module.out_features})" for name, module in modules
        if getattr(module, "support_avx512bf16_for_cpu", False) and (module.in_features % 64 or module.out_features % 32)
    ]  # fmt: skip
    if unfit:
        raise InputError(
            f"--quantization {precision.quantization}: on this CPU nf4 layers take multiples of 64 numbers and give multiples of 32, got {unfit[0]}. "
            "Use --quantization int8 or none, or a GPU."
        )


def _set_attention(model: RegionGPTForConditionalGeneration, precision: Precision) -> None:
    name = precision.attention
    if name == "auto":
        return
    if name == "flash_attention_2" and (model.device.type == "cpu" or precision.dtype == "float32"):
        raise InputError(
            f"--attention {name}: it takes float16 or bfloat16 on a GPU, got {precision.dtype} on {model.device.type}. Use --attention sdpa, or leave it out."
        )
    try:
        model.language_model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"--attention {name}: not available for this language model here: {first_line(error)}. Use --attention sdpa, or leave it out."
        ) from error


def compile_layers(model: RegionGPTForConditionalGeneration, mode: CompileMode = "default") -> None:
    """Let torch.compile fuse what surrounds the attention of the language model's layers: norms and the feed-forward part. Greedy texts stay, bits may not.

    The attention itself is left as it is, since the rows that share a prefix change from batch to batch. Compiled once for all layers and all lengths,
    which takes up to a minute; it happens here, not in the first batch. mode: torch's; with "reduce-overhead" torch records CUDA graphs of the parts and
    replays them, a graph for each number of tokens that it meets; on CPUs there are none, and the mode is as "default".

    Raises InputError where it cannot be compiled: no C++ compiler (CPU) or no Triton (GPU).
    """
    layers = getattr(model.language_model.base_model, "layers", None)
    if layers is None:
        raise InputError(
            f"--compile: the language model ({model.config.text_config.model_type}) has no list of layers that rlabel knows. Leave it out."
        )
    embed = model.get_input_embeddings()
    device: torch.device = embed.weight.device  # type: ignore[assignment]
    if mode == "reduce-overhead" and device.type != "cuda":
        log.warning("--compile-mode %s: CUDA graphs are of GPUs; on this %s it is as default", mode, device.type)
    for layer in layers:
        for part in layer.children():
            if not type(part).__name__.endswith("Attention"):
                part.compile(dynamic=True, mode=mode)
    try:
        with torch.inference_mode():
            for length in (3, 5):
                ids = torch.zeros(1, length, dtype=torch.long, device=device)
                model.language_model(inputs_embeds=embed(ids), logits_to_keep=1)
    except Exception as error:  # torch's compiler has dozens of kinds
        raise InputError(
            f"--compile: torch.compile does not work here: {type(error).__name__}: {first_line(error)}. "
            "Install a C++ compiler (g++; on a GPU Triton), or leave it out."
        ) from error


def resolve_model(path_or_id: str | Path) -> Path:
    """Return the local folder of a RegionGPT given as a folder or a hub id; a hub model is downloaded, without anything pickled.

    Raises InputError when there is no such folder or hub model, or it is no RegionGPT in safetensors.
    """
    folder = Path(path_or_id).expanduser()
    if not folder.exists():
        folder = _download(str(path_or_id))
    if not folder.is_dir():
        raise InputError(f"--model {path_or_id}: expected {_MADE_BY}, got a file. Name the folder it lies in.")
    _check_config(folder, str(path_or_id))
    check_safetensors(folder, f"--model {path_or_id}")
    check_sizes(folder, f"--model {path_or_id}")
    return folder


def model_fingerprint(folder: str | Path, *, with_code: bool = False) -> str:
    """Return the hex SHA-256 over names and contents of the files that decide what the model answers: config, weights, tokenizer, processor.

    with_code: Python files too, where they are run.

    Raises InputError when the folder holds none or one cannot be read.
    """
    root = Path(folder)
    digest = hashlib.sha256()
    deciding = (*_DECIDING_FILES, "*.py") if with_code else _DECIDING_FILES
    try:
        paths = sorted(
            path
            for path in root.iterdir()
            if path.is_file() and any(fnmatch(path.name, pattern) for pattern in deciding)
        )
        if not paths:
            raise InputError(
                f"--model {folder}: expected {_MADE_BY}, got a folder without model files. Check the path."
            )
        for path in paths:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name}\0{content}\n".encode())
    except OSError as error:
        raise InputError(
            f"--model {folder}: cannot be read ({error.strerror or error}). Check the path and its permissions."
        ) from error
    return digest.hexdigest()


def count_parameters(folder: str | Path) -> dict[str, int]:
    """Return {part: number of parameters} (vision_tower, language_model, ...) read from the headers of the safetensors alone.

    A head tied to the word embeddings is stored once and so counts once.

    Raises InputError when a file is no whole safetensors.
    """
    from safetensors import SafetensorError, safe_open

    counts: dict[str, int] = {}
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        raise InputError(f"--model {folder}: expected model.safetensors, got none. Name {_MADE_BY}.")
    for path in paths:
        try:
            with safe_open(str(path), framework="pt") as file:
                names = file.keys()
                for name in names:
                    if not name.endswith(_NO_PARAMETERS):
                        part = name.split(".")[0]
                        counts[part] = counts.get(part, 0) + _product(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path}: expected whole safetensors, got: {first_line(error)}. Copy or download the folder again."
            ) from error
    return counts


def _product(shape: list[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _bitsandbytes_config(folder: Path, precision: Precision) -> Any:
    from transformers import BitsAndBytesConfig

    config = RegionGPTConfig.from_pretrained(str(folder))
    with torch.device("meta"):  # shapes and names only: which layer is the head differs from model to model
        outline = RegionGPTForConditionalGeneration(config)
    # transformers matches a name as a regular expression from the start of the full name, so each must be the full prefix.
    skipped = [*NEVER_QUANTIZED, *(re.escape(name) for name in _heads(outline))]
    if precision.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",  # transformers' own defaults are fp4 and float32
        bnb_4bit_compute_dtype=_DTYPES[precision.compute_dtype or precision.dtype],
        bnb_4bit_use_double_quant=precision.double_quantization,
        llm_int8_skip_modules=skipped,
    )


def _heads(model: RegionGPTForConditionalGeneration) -> list[str]:
    """Return the full names of the module that gives the logits: lm_head in most language models, embed_out in GPT-NeoX."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head]


def _check_config(folder: Path, given: str) -> None:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"--model {given}: expected {_MADE_BY}, got a folder without config.json. Check the path."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected JSON, got: {first_line(error)}. Copy or download the folder again."
        ) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != RegionGPTConfig.model_type:
        raise InputError(
            f"--model {given}: expected {_MADE_BY} (model_type {RegionGPTConfig.model_type!r} in config.json), got {kind!r}. "
            "Make a RegionGPT of it with `rlabel assemble`."
        )
    check_not_quantized(config, f"--model {given}")


def _download(path_or_id: str) -> Path:
    if not _HUB_ID.fullmatch(path_or_id):
        raise InputError(f"--model {path_or_id}: no such folder. Check the path.")
    from huggingface_hub import snapshot_download

    try:
        # The configuration alone first: a wrong model is found before its weights come.
        _check_config(Path(snapshot_download(path_or_id, allow_patterns=["config.json"])), path_or_id)
        return Path(snapshot_download(path_or_id, allow_patterns=_DOWNLOADED, ignore_patterns=["*/*"]))
    except InputError:
        raise
    except Exception as error:  # the hub's own kinds, those of the HTTP library beneath it, OSError, ValueError
        raise InputError(
            f"--model {path_or_id}: no such folder, and no hub model of that name in the cache or within reach: {first_line(error)}. "
            "Check the name, or download it where there is a network and give the folder."
        ) from error
