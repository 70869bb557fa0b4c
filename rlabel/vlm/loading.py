"""Finds, checks and loads a plain vision-language model with its processor. Only safetensors are read.

No code of a model repository is run unless the user says so (--trust-remote-code); then it runs with the user's rights.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlabel.errors import InputError
from rlabel.regiongpt.configuration import RegionGPTConfig
from rlabel.regiongpt.quantization import Precision, check_layers_fit, quantized_layers
from rlabel.regiongpt.weights import (
    check_loaded,
    check_no_adapter,
    check_not_quantized,
    check_safetensors,
)
from rlabel.regiongpt.weights import first_line as first_line
from rlabel.vlm.quantizing import DTYPES, bitsandbytes_config

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILMS = "video_processor"
_LONGEST_CONFIG = 1 << 24
_MOST_LAYERS = 4096
_NEEDS_TORCHVISION = (
    "{given}: {what} of transformers needs torchvision, which is not installed. Install the torchvision that goes with this torch "
    "(`pip install torchvision`)."
)
# What a repository's own code may be asked for, the best first.
_AUTO_MODELS = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")


def find_model(
    path_or_id: str | Path,
    *,
    weights: bool = True,
    flag: str = "--model",
    check: Callable[[dict[str, Any], str], None] | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Return the local folder of a model given as a folder or a hub id, its config.json read and found to be of a kind that rlabel can use.

    weights: False downloads, and asks for, no weights. A RegionGPT is found too: see `model_type_of`.
    flag: that named it, for messages. check: of its config.json, instead of `check_sees_pictures`; raises InputError.
    trust_remote_code: a model that brings its own code may be of a kind that transformers does not know.

    Raises InputError when there is no such folder or hub model, it sees no pictures, or its weights are missing, pickled, quantized or an adapter.
    """
    folder = Path(path_or_id).expanduser()
    given = f"{flag} {path_or_id}"

    def usable(config: dict[str, Any], given: str) -> None:
        if check is not None:
            check(config, given)
        elif config.get("model_type") != RegionGPTConfig.model_type:
            check_sees_pictures(config, given, trust_remote_code=trust_remote_code)
            check_not_quantized(config, given)

    if not folder.exists():
        wanted = [*_SMALL_FILES, *(["*.safetensors"] if weights else []), *(["*.py"] if trust_remote_code else [])]
        folder = _download(str(path_or_id), given, usable, wanted)
    if not folder.is_dir():
        if folder.suffix == ".gguf":
            raise InputError(
                f"{given}: expected a model folder, got a file in GGUF, llama.cpp's format. Give the folder or hub id of the model that it was "
                "made from, as safetensors."
            )
        raise InputError(f"{given}: expected a model folder, got a file. Name the folder it lies in.")
    usable(read_config(folder, given), given)
    if weights:
        check_safetensors(folder, given)
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
        check_no_adapter(folder, given)
        raise InputError(
            f"{given}: expected a model folder, got one without config.json{_what_instead(folder)}. Check the path."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected JSON, got: {first_line(error)}. Copy or download the folder again."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(
            f"{path}: expected an object with a `model_type`, got none. Copy or download the folder again."
        )
    return config


def _what_instead(folder: Path) -> str:
    """Return what a folder without config.json seems to hold."""
    for pattern, what in (
        ("*.gguf", "but with {} (GGUF, llama.cpp's format): give the model that it was made from"),
        ("params.json", "but with {}, a publisher's own format: look for the one of transformers"),
        ("model_index.json", "but with {}, which makes pictures instead of reading them: give another model"),
        ("*/config.json", "but with {}: name that folder"),
    ):
        found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))
        if found:
            return f", {what.format(found[0])}"
    return ""


def check_sees_pictures(config: dict[str, Any], given: str, *, trust_remote_code: bool = False) -> None:
    """Raise InputError for a model that cannot answer questions about pictures, with what it is instead.

    trust_remote_code: a model of a kind that transformers does not know passes where it brings code; only that code can say what it sees.
    """
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
    own = _own_code(config, given)
    if own and trust_remote_code:
        return
    import transformers

    what = f"{given}: transformers {transformers.__version__} does not know model_type {kind!r}"
    if own:
        raise InputError(
            f"{what}. Its repository brings its own code ({', '.join(own)}), which is not run unasked. Look for a conversion in transformers' own "
            "format; or read that code, and let it run with your rights on every node by --trust-remote-code."
        )
    saved = config.get("transformers_version")
    by = f" (it was saved by transformers {saved[:40]})" if isinstance(saved, str) else ""
    raise InputError(f"{what}{by}. Install a newer transformers, or give another model.")


def _own_code(config: dict[str, Any], given: str) -> list[str]:
    """Return the files of code that a config.json names, each once, in the order of the alphabet; none where it names none of a model.

    Raises InputError for code of another repository: it would neither be looked at nor be kept in a run's manifest.
    """
    named = config.get("auto_map")
    if not isinstance(named, dict) or not any(name in named for name in _AUTO_MODELS):
        return []
    classes = [str(name) for name in named.values()]
    foreign = next((name for name in classes if "--" in name), None)
    if foreign is not None:
        raise InputError(
            f"{given}: expected its code beside its weights, got a reference to another repository ({foreign[:200]}). Copy that code's files into the "
            "folder, and take what stands before `--` out of auto_map."
        )
    return sorted({f"{name.split('.')[0]}.py" for name in classes})


def _model_class(folder: Path, trust_remote_code: bool) -> Any:
    """Return the class of transformers that loads a folder's model."""
    import transformers

    named = read_config(folder, f"--model {folder}").get("auto_map") if trust_remote_code else None
    name = next((name for name in _AUTO_MODELS if isinstance(named, dict) and name in named), _AUTO_MODELS[0])
    return getattr(transformers, name)


def load_processor(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the processor of a model: its tokenizer and PIL's image processor, so that pixels are the same with and without torchvision.

    Raises InputError when its files are missing or damaged.
    """
    given = f"--model {folder}"
    try:
        return _processor_class(folder, trust_remote_code).from_pretrained(
            str(folder), backend="pil", trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # transformers, tokenizers and json each have their own kinds
        if isinstance(error, MemoryError | InputError):
            raise
        if "torchvision" in str(error) and importlib.util.find_spec("torchvision") is None:
            raise InputError(_NEEDS_TORCHVISION.format(given=given, what="its image processor")) from error
        raise InputError(
            f"{given}: expected the files of a processor (processor_config.json or preprocessor_config.json, tokenizer.json), got "
            f"{type(error).__name__}: {first_line(error)}. Copy or download the folder again."
        ) from error


def _processor_class(folder: Path, trust_remote_code: bool) -> Any:
    """Return the class of a model's processor without what it needs for films: transformers' own asks for torchvision there."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = None
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        try:
            fields = json.loads((folder / file).read_text(encoding="utf-8"))
            name = fields.get("processor_class")
            own = fields.get("auto_map") or {}
        except (OSError, ValueError, AttributeError):
            continue
        if trust_remote_code and "AutoProcessor" in own:
            return transformers.AutoProcessor
        if name:
            break
    kind = model_type_of(folder)
    found = getattr(transformers, str(name or PROCESSOR_MAPPING_NAMES.get(kind)), None)
    if "torchvision" in getattr(
        found, "_backends", ()
    ):  # what transformers puts in place of a class that it cannot load
        raise InputError(_NEEDS_TORCHVISION.format(given=f"--model {folder}", what=str(name or kind)))
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


def load_model(
    folder: Path, precision: Precision, device: str | torch.device, *, trust_remote_code: bool = False
) -> Any:
    """Return a model ready to answer, in eval mode, on the device, the linear layers of its language model quantized where asked.

    Raises InputError when its weights are not whole, it cannot be quantized, or the attention is not there.
    """
    given = f"--model {folder}"
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options: dict[str, Any] = {}
    if precision.attention != "auto":
        options["attn_implementation"] = precision.attention
    try:
        if precision.quantization != "none":
            options["quantization_config"] = bitsandbytes_config(
                outline(folder, trust_remote_code=trust_remote_code), precision
            )
            options["device_map"] = {"": str(device)}
        loaded: Any = _model_class(folder, trust_remote_code).from_pretrained(
            str(folder),
            dtype=DTYPES[precision.dtype],
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
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
    check_loaded(report, given)
    if precision.quantization == "none":
        model = model.to(device)
    elif not quantized_layers(model):
        raise InputError(
            f"--quantization {precision.quantization}: this model has no linear layer that bitsandbytes can quantize. Use --quantization none."
        )
    check_layers_fit(model, precision)
    return model.eval()


def outline(folder: Path, *, trust_remote_code: bool = False) -> nn.Module:
    """Return the model of a folder's config.json without weights, on the meta device: names and shapes only.

    Raises InputError for a configuration that transformers cannot make a model of.
    """
    from transformers import AutoConfig

    try:
        check_depth(read_config(folder, f"--model {folder}"), folder)
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
        with torch.device("meta"):
            auto = _model_class(folder, trust_remote_code)
            model: nn.Module = auto.from_config(config, trust_remote_code=trust_remote_code)
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


def _download(
    path_or_id: str, given: str, usable: Callable[[dict[str, Any], str], None], wanted: Sequence[str]
) -> Path:
    if not _HUB_ID.fullmatch(path_or_id):
        raise InputError(f"{given}: no such folder. Check the path.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        # The configuration alone first: a wrong model is found before its weights come.
        first = snapshot_download(path_or_id, allow_patterns=["config.json", "adapter_config.json"])
        usable(read_config(Path(first), given), given)
        return Path(snapshot_download(path_or_id, allow_patterns=list(wanted), ignore_patterns=["*/*"]))
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
