"""Which layers of a plain model --quantization takes: the linear ones of its language model, whatever they are called."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from rlabel.errors import InputError
from rlabel.regiongpt.quantization import Precision

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def bitsandbytes_config(model: Any, precision: Precision) -> Any:
    """Return what transformers is to quantize by on loading. model: without weights."""
    from transformers import BitsAndBytesConfig

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
        bnb_4bit_compute_dtype=DTYPES[precision.compute_dtype or precision.dtype],
        bnb_4bit_use_double_quant=precision.double_quantization,
        llm_int8_skip_modules=skipped,
    )
