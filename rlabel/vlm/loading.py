"""Finds, checks and loads a plain vision-language model with its processor. Only safetensors are read, and no code of a model repository is run."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlabel.errors import InputError
from rlabel.regiongpt.configuration import RegionGPTConfig
from rlabel.regiongpt.quantization import Precision, check_layers_fit, quantized_layers

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILMS = "video_processor"
_LONGEST_CONFIG = 1 << 24
_MOST_LAYERS = 4096
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def find_model(
    path_or_id: str | Path,
    *,
    weights: bool = True,
    flag: str = "--model",
    check: Callable[[dict[str, Any], str], None] | None = None,
) -> Path:
    """Return the local folder of a model given as a folder or a hub id, its config.json read and found to be of a kind that rlabel can use.

    weights: False downloads, and asks for, no weights. A RegionGPT is found too: see `model_type_of`.
    flag: that named it, for messages. check: of its config.json, instead of `check_sees_pictures`; raises InputError.

    Raises InputError when there is no such folder or hub model, it sees no pictures, or its weights are missing or pickled.
    """
    folder = Path(path_or_id).expanduser()
    given = f"{flag} {path_or_id}"
    if not folder.exists():
        folder = _download(str(path_or_id), given, weights=weights, check=check)
    if not folder.is_dir():
        raise InputError(f"{given}: expected a model folder, got a file. Name the folder it lies in.")
    config = read_config(folder, given)
    if check is not None:
        check(config, given)
    elif config.get("model_type") != RegionGPTConfig.model_type:
        check_sees_pictures(config, given)
        if config.get("quantization_config"):
            raise InputError(
                f"{given}: it was saved quantized. Name the unquantized folder; --quantization quantizes it on load."
            )
    if weights and not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        got = f"only {pickled[0]}, which is never opened since it may run code" if pickled else "no weights at all"
        raise InputError(
            f"{given}: expected *.safetensors, got {got}. Save the model as safetensors (save_pretrained of transformers does), or download it again."
        )
    return folder


def model_type_of(folder: Path) -> str:
    """Return the model_type of a folder's config.json. Raises InputError where there is none."""
    kind = read_config(folder, f"--model {folder}").get("model_type")
    return str(kind)


def is_regiongpt(model_type: str) -> bool:
    return model_type == RegionGPTConfig.model_type


def read_config(folder: Path, given: str) -> dict[str, Any]:
    """Return config.json. Raises InputError where it is missing, no JSON object, or names no model_type."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > _LONGEST_CONFIG:
            raise InputError(f"{path}: expected a configuration of some kilobytes, got {path.stat().st_size} bytes.")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{given}: expected a model folder, got one without config.json. Check the path.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected JSON, got: {first_line(error)}. Copy or download the folder again."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(
            f"{path}: expected an object with a `model_type`, got none. Copy or download the folder again."
        )
    return config


def check_sees_pictures(config: dict[str, Any], given: str) -> None:
    """Raise InputError for a model that cannot answer questions about pictures, with what it is instead."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    kind = config["model_type"]
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            f"{given}: model_type {kind!r} is a language model that sees no pictures. Give a vision-language model, or make a RegionGPT "
            "of it with `rlabel assemble`."
        )
    if kind in CONFIG_MAPPING_NAMES:
        raise InputError(
            f"{given}: model_type {kind!r} answers no questions about pictures. Give an image-text-to-text model, or a RegionGPT."
        )
    import transformers

    code = (
        " Its repository brings its own code, which rlabel does not run. Look for a conversion in transformers' own format."
        if config.get("auto_map")
        else ""
    )
    raise InputError(
        f"{given}: transformers {transformers.__version__} does not know model_type {kind!r}.{code or ' Install a newer transformers, or give another model.'}"
    )


def load_processor(folder: Path) -> Any:
    """Return the processor of a model: its tokenizer and PIL's image processor, so that pixels are the same with and without torchvision.

    Raises InputError when its files are missing or damaged.
    """
    given = f"--model {folder}"
    try:
        return _processor_class(folder).from_pretrained(
            str(folder), backend="pil", trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers, tokenizers and json each have their own kinds
        if isinstance(error, MemoryError | InputError):
            raise
        raise InputError(
            f"{given}: expected the files of a processor (processor_config.json or preprocessor_config.json, tokenizer.json), got "
            f"{type(error).__name__}: {first_line(error)}. Copy or download the folder again."
        ) from error


def _processor_class(folder: Path) -> Any:
    """Return the class of a model's processor without what it needs for films: transformers' own asks for torchvision there."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = None
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        try:
            name = json.loads((folder / file).read_text(encoding="utf-8")).get("processor_class")
        except (OSError, ValueError, AttributeError):
            continue
        if name:
            break
    kind = model_type_of(folder)
    found = getattr(transformers, str(name or PROCESSOR_MAPPING_NAMES.get(kind)), None)
    if not (isinstance(found, type) and issubclass(found, transformers.ProcessorMixin)):
        raise InputError(
            f"--model {folder}: expected a processor that transformers knows, got {name!r} for model_type {kind!r}. Give another model."
        )

    class OfPictures(found):  # type: ignore[valid-type, misc]
        # transformers 5.23 loads each part that is named here, and cannot check one that is None.
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in super().get_attributes() if part != _FILMS]

        @classmethod
        def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
            rest = {name: value for name, value in processor_dict.items() if name != _FILMS}
            # The parts are given by place, and some constructors insist on the third.
            needs_none = list(signature(cls.__init__).parameters)[1:][len(args) : len(args) + 1] == [_FILMS]
            return super().from_args_and_dict([*args, None] if needs_none else args, rest, **kwargs)

    OfPictures.__name__ = found.__name__
    return OfPictures


def load_model(folder: Path, precision: Precision, device: str | torch.device) -> Any:
    """Return a model ready to answer, in eval mode, on the device, the linear layers of its language model quantized where asked.

    Raises InputError when its weights are not whole, it cannot be quantized, or the attention is not there.
    """
    from transformers import AutoModelForImageTextToText

    given = f"--model {folder}"
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options: dict[str, Any] = {}
    if precision.attention != "auto":
        options["attn_implementation"] = precision.attention
    try:
        if precision.quantization != "none":
            options["quantization_config"] = _bitsandbytes_config(folder, precision)
            options["device_map"] = {"": str(device)}
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder),
            dtype=_DTYPES[precision.dtype],
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # safetensors, transformers, accelerate and bitsandbytes each have their own kinds
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise InputError(
            f"{given}: expected whole safetensors that fit its config.json, got {type(error).__name__}: {first_line(error)}. "
            "Copy or download the folder again, or try without --quantization and --attention."
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise InputError(
            f"{given}: its safetensors lack {len(missing)} of the weights that config.json asks for, {missing[0]} first. "
            "Copy or download the folder again."
        )
    if precision.quantization == "none":
        model = model.to(device)
    elif not quantized_layers(model):
        raise InputError(
            f"--quantization {precision.quantization}: this model has no linear layer that bitsandbytes can quantize. Use --quantization none."
        )
    check_layers_fit(model, precision)
    return model.eval()


def outline(folder: Path) -> nn.Module:
    """Return the model of a folder's config.json without weights, on the meta device: names and shapes only.

    Raises InputError for a configuration that transformers cannot make a model of.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        check_depth(read_config(folder, f"--model {folder}"), folder)
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model: nn.Module = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # whatever a model's own code makes of a configuration
        raise InputError(
            f"{folder / 'config.json'}: transformers cannot make a model of it: {first_line(error)}. Download it again."
        ) from error
    return model


def check_depth(config: object, folder: Path) -> None:
    """Raise InputError for more layers than any model has: each is made, even where none has weights yet."""
    if isinstance(config, dict):
        for name, value in config.items():
            if "layers" in name or "depth" in name:
                numbers = value if isinstance(value, list) else [value]
                if any(isinstance(number, int) and number > _MOST_LAYERS for number in numbers):
                    raise InputError(
                        f"{folder / 'config.json'}, {name}: expected at most {_MOST_LAYERS}, got {str(value)[:40]}. Download it again."
                    )
            check_depth(value, folder)


def language_part(model: Any) -> str:
    """Return the name of the module that holds the layers of the language model."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    names = {module: name for name, module in model.named_modules()}
    if decoder is None or names.get(decoder, "") == "":
        raise InputError(f"{type(model).__name__}: rlabel does not find its language model. Use --quantization none.")
    return str(names[decoder])


def quantizable_layers(model: Any) -> list[str]:
    """Return the linear layers that --quantization may quantize: those of the language model, without the head."""
    part, head = language_part(model), model.get_output_embeddings()
    # Of an encoder and a decoder, both are the language model.
    part = part.removesuffix(".decoder") if model.config.is_encoder_decoder else part
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and name.startswith(f"{part}.")
    ]


def _bitsandbytes_config(folder: Path, precision: Precision) -> Any:
    from transformers import BitsAndBytesConfig

    model = outline(folder)
    quantized = set(quantizable_layers(model))
    skipped = [
        re.escape(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in quantized
    ]
    if precision.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=_DTYPES[precision.compute_dtype or precision.dtype],
        bnb_4bit_use_double_quant=precision.double_quantization,
        llm_int8_skip_modules=skipped,
    )


def _download(
    path_or_id: str, given: str, *, weights: bool, check: Callable[[dict[str, Any], str], None] | None
) -> Path:
    if not _HUB_ID.fullmatch(path_or_id):
        raise InputError(f"{given}: no such folder. Check the path.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        # The configuration alone first: a wrong model is found before its weights come.
        config = read_config(Path(snapshot_download(path_or_id, allow_patterns=["config.json"])), given)
        if check is not None:
            check(config, given)
        elif config["model_type"] != RegionGPTConfig.model_type:
            check_sees_pictures(config, given)
        wanted = [*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES
        return Path(snapshot_download(path_or_id, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except InputError:
        raise
    except GatedRepoError as error:
        raise InputError(
            f"{given}: the repository is gated. Accept its conditions on its page, then log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{given}: no such folder, and the hub has no public model of that name. "
            "Check the name; for a private one log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except Exception as error:  # the hub's further kinds, those of the HTTP library beneath it, OSError, ValueError
        raise InputError(
            f"{given}: no such folder, and no hub model of that name in the cache or within reach: {first_line(error)}. "
            "Check the name, or download it where there is a network and give the folder."
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, shortened; without a full stop."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (line if len(line) <= 300 else f"{line[:300]} ...").rstrip(".")
