"""Which parameters a stage trains, and how fast."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from rlabel.errors import InputError
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.training.recipe import Stage, is_part


def parameter_groups(model: RegionGPTForConditionalGeneration, stage: Stage) -> list[dict[str, object]]:
    """Freeze everything, then free what the stage names; return groups for an optimizer. The longest matching prefix decides a parameter's rate.

    Raises InputError for a name that no parameter has, and where nothing is left to train.
    """
    named = [(plain_name(name), parameter) for name, parameter in model.named_parameters()]
    stage.check_names([name for name, _ in named])
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        prefixes = [prefix for prefix in stage.learning_rates if is_part(name, prefix)]
        is_lora = ".lora_" in name
        frozen_base = stage.lora is not None and name.startswith("language_model.") and not is_lora
        frozen = frozen_base or any(fnmatchcase(name, pattern) for pattern in stage.frozen)
        parameter.requires_grad_(bool(prefixes) and not frozen)
        if parameter.requires_grad:
            groups.setdefault(stage.learning_rates[max(prefixes, key=len)], []).append(parameter)
    if not groups:
        raise InputError(
            f"recipe, stage {stage.name}, frozen: expected something left to train, got patterns ({', '.join(stage.frozen)}) that "
            f"freeze all that learning_rates names ({', '.join(stage.learning_rates)}). Take a pattern out."
        )
    return [{"params": parameters, "lr": rate, "peak_lr": rate} for rate, parameters in groups.items()]


def plain_name(name: str) -> str:
    """Return a parameter's name as it is without peft's wrapping."""
    return name.replace("language_model.base_model.model.", "language_model.", 1)
