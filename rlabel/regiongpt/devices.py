"""Which device a process computes on."""

from __future__ import annotations

import torch

from rlabel.errors import UsageError


def usable_device(asked: str) -> str:
    """Return the device that --device asks for, by torch's name; auto is the GPU that this process sees, else the CPU.

    Raises UsageError for a GPU that is not here, or what is no device.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    num_gpus = torch.cuda.device_count()
    gpus = ["cuda", *(f"cuda:{number}" for number in range(num_gpus))] if num_gpus else []
    if asked in ("cpu", *gpus):
        return asked
    raise UsageError(
        f"--device {asked}: expected cpu, or a GPU that torch {torch.__version__} sees here, got none of that name; it sees {num_gpus}. "
        "Leave --device out, or give another."
    )
