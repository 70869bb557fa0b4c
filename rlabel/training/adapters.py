"""LoRA on the language model, over its own weights or over a 4-bit copy of them (QLoRA), and the way back to plain weights.

QLoRA trains against nf4 weights, but what is written is never quantized: the layers' own weights wait in the host's memory, every checkpoint holds them,
and the adapter is merged into them when the stage ends. nf4 weights could not serve for that: they are rounded, and bitsandbytes 0.50 repacks them in
place at the first forward pass on some CPUs.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlabel.errors import InputError
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.training.recipe import Stage


@dataclass(frozen=True, slots=True)
class Originals:
    """The linear layers whose place 4-bit ones have taken, by their full name; empty without QLoRA. On the CPU, float32."""

    layers: dict[str, nn.Linear] = field(default_factory=dict)

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the model's state as if nothing were quantized."""
        quantized = tuple(f"{name}." for name in self.layers)
        state = {
            name: value for name, value in model.state_dict().items() if not quantized or not name.startswith(quantized)
        }
        for name, layer in self.layers.items():
            state |= {f"{name}.{own}": value for own, value in layer.state_dict().items()}
        return state


def add_lora(model: RegionGPTForConditionalGeneration, stage: Stage) -> None:
    """Put fresh LoRA layers around the language model's linear layers, drawn by torch's seed; none where the stage has no lora.

    Raises InputError where the stage's targets are not there.
    """
    if stage.lora is None:
        return
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=stage.lora.rank, lora_alpha=stage.lora.alpha, target_modules=stage.lora.targets, task_type="CAUSAL_LM"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft 0.21 asks transformers 5.23 for a name that is on its way out
            model.language_model = get_peft_model(model.language_model, config)
    except ValueError as error:  # the check by names, before training, is coarser than peft's own
        raise InputError(
            f"recipe, stage {stage.name}, lora.targets: {' '.join(str(error).split())[:300]} Write all-linear."
        ) from error


def quantize_base(model: RegionGPTForConditionalGeneration, stage: Stage) -> Originals:
    """Put nf4 copies in the place of the layers under LoRA where the stage's lora asks for it; return the layers that were there.

    The copies are quantized when they come to their device. Arithmetic is bfloat16 or float32, as the stage's.
    """
    originals = Originals()
    if stage.lora is None or stage.lora.base != "nf4":
        return originals
    # On import a CPU with bf16 instructions is told of an optional kernel that is not installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from bitsandbytes.nn import Linear4bit, Params4bit
    from peft.tuners.lora import LoraLayer

    compute_dtype = torch.bfloat16 if stage.dtype == "bfloat16" else torch.float32
    for name, module in list(model.named_modules()):
        if not isinstance(module, LoraLayer) or not isinstance(module.base_layer, nn.Linear):
            continue
        original = module.base_layer.cpu()
        copy = Linear4bit(
            original.in_features,
            original.out_features,
            bias=original.bias is not None,
            compute_dtype=compute_dtype,
            quant_type="nf4",
            device="meta",
        )
        copy.weight = Params4bit(original.weight.detach().clone(), requires_grad=False, quant_type="nf4", module=copy)
        if original.bias is not None:
            copy.bias = nn.Parameter(original.bias.detach().clone(), requires_grad=False)
        # Or the first validation would repack the weights in place, for a forward pass that knows no gradients.
        copy.support_avx512bf16_for_cpu = False
        originals.layers[f"{name}.base_layer"] = original
        module.base_layer = copy
    return originals


def merge_lora(model: RegionGPTForConditionalGeneration, originals: Originals) -> None:
    """Add what LoRA learned to the layers' own weights and take it off; nothing where there is none. After QLoRA the model is on the CPU."""
    for name, layer in originals.layers.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer)
    if originals.layers:
        model.to("cpu")  # type: ignore[arg-type]  # unquantized it need not fit the device
    if hasattr(model.language_model, "merge_and_unload"):
        model.language_model = model.language_model.merge_and_unload()


def set_gradient_checkpointing(model: RegionGPTForConditionalGeneration, stage: Stage | None) -> None:
    """Let the layers of the language model compute their activations anew in the backward pass where the stage asks for it; undo it where none does.

    Raises InputError for a language model that cannot.
    """
    language_model = model.language_model
    if stage is not None and stage.gradient_checkpointing:
        try:
            # The other kind asks that a layer's input has a gradient, which it has not where all before it is frozen.
            language_model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise InputError(
                f"recipe, stage {stage.name}, gradient_checkpointing: the language model ({model.config.text_config.model_type}) "
                "does not support it. Take it out."
            ) from error
    elif language_model.is_activation_checkpointing:
        language_model.activation_checkpointing_disable()
