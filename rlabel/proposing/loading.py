"""Loads a proposer's model with transformers: its own classes, safetensors alone, no code of a repository."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from rlabel.errors import InputError
from rlabel.proposing.models import CLASSES, ProposerPlan
from rlabel.proposing.settings import ProposeSettings
from rlabel.regiongpt.devices import usable_device
from rlabel.vlm.loading import first_line

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(plan: ProposerPlan, settings: ProposeSettings) -> tuple[Any, torch.device]:
    """Return the plan's model in eval mode on the device, and the device.

    Raises UsageError for a device that is not here, InputError when its files are damaged, or weights are missing.
    """
    # Another number of threads sums in another order: it is a setting, so that every worker gives the same bytes.
    torch.set_num_threads(settings.cpus_per_actor)
    transformers.utils.logging.disable_progress_bar()
    device = usable_device(settings.device)
    given = f"--proposer {plan.folder}"
    try:
        model, info = getattr(transformers, CLASSES[plan.kind]).from_pretrained(
            plan.folder,
            dtype=_DTYPES[settings.dtype],
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers, safetensors and json each have their own kinds
        if isinstance(error, MemoryError):
            raise
        raise InputError(
            f"{given}: expected a {plan.kind} that transformers loads, got {type(error).__name__}: {first_line(error)}. "
            "Copy or download the folder again."
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"{given}: expected the weights of a {plan.kind}, got none for {missing[0]}{f' and {len(missing) - 1} more' * (len(missing) > 1)}. "
            "Copy or download the folder again."
        )
    return model.eval().to(device), torch.device(device)
