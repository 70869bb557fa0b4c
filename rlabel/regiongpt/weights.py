"""What any model folder is checked for before and behind its loading: whole safetensors, nothing pickled, no weight left to chance.

Knows nothing of what the model is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlabel.errors import InputError

INDEX = "model.safetensors.index.json"
_LONGEST_INDEX = 1 << 26
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
# Weights of something that is laid over a model, not a model's.
_ADAPTERS = ("adapter_model.safetensors",)


def check_safetensors(folder: Path, given: str) -> None:
    """Raise InputError for a folder without safetensors, or with some of those missing that its index names. given: the flag, for messages."""
    if not any(path.name not in _ADAPTERS for path in folder.glob("*.safetensors")):
        check_no_adapter(folder, given)
        raise InputError(
            f"{given}: expected *.safetensors, got {_instead(folder)}. Save the model as safetensors (save_pretrained of transformers does), "
            "or download it again."
        )
    missing = sorted(name for name in _indexed(folder) if not (folder / name).is_file())
    if missing:
        raise InputError(
            f"{given}: {INDEX} names {len(missing)} files that are not there, {missing[0]} first: half a download or copy. Finish it, "
            "or download the folder again."
        )


def check_no_adapter(folder: Path, given: str) -> None:
    """Raise InputError for an adapter (LoRA), which is no model without the one that it was trained on."""
    path = folder / "adapter_config.json"
    if not path.is_file() or path.stat().st_size > _LONGEST_INDEX:
        return
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    base = str(base or "its base model")[:200]
    raise InputError(
        f"{given}: expected a model, got an adapter (LoRA) of {base}. Merge the two into a folder first: `PeftModel.from_pretrained(base, adapter)` "
        "of peft, `.merge_and_unload().save_pretrained(folder)`, and the base's processor with `.save_pretrained(folder)`; then give that folder."
    )


def check_not_quantized(config: Mapping[str, Any], given: str) -> None:
    """Raise InputError for a config.json of weights that were saved quantized (AWQ, GPTQ, bitsandbytes, ...)."""
    saved = config.get("quantization_config")
    if saved:
        how = saved.get("quant_method") if isinstance(saved, dict) else None
        by = f" ({how})" if isinstance(how, str) else ""
        raise InputError(
            f"{given}: expected unquantized weights, but it was saved quantized{by}. Name the repository or folder that it was made from; "
            "--quantization int8 or nf4 quantizes it on load."
        )


def check_loaded(report: Mapping[str, Any], given: str, remedy: str = "Copy or download the folder again.") -> None:
    """Raise InputError where weights were missing or of another shape: transformers would only warn, and fill them with random numbers.

    report: what `from_pretrained(..., output_loading_info=True)` gives beside the model.
    """
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise InputError(
            f"{given}: its safetensors lack {len(missing)} of the weights that config.json asks for, {missing[0]} first. {remedy}"
        )


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, shortened; without a full stop."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # transformers lists all the model types it knows, 11,000 characters, in one line.
    return (line if len(line) <= 300 else f"{line[:300]} ...").rstrip(".")


def _instead(folder: Path) -> str:
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf:
        return f"only {gguf[0]} (GGUF, llama.cpp's format; look for the repository it was made from)"
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    return f"only {pickled[0]}, which is never opened since it may run code" if pickled else "no weights at all"


def _indexed(folder: Path) -> set[str]:
    """Return the names of the files that an index says hold the weights; none where there is no index that says so."""
    path = folder / INDEX
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST_INDEX:
            return set()
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        return {name for name in names if isinstance(name, str) and Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()  # whoever loads it says what is wrong with it
