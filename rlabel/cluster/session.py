"""Starts or joins Ray for one command, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlabel.errors import RunError


@contextmanager
def ray_session(address: str | None, num_cpus: int | None = None) -> Iterator[Any]:
    """Give the connected `ray` module; a private local Ray unless an address (or RAY_ADDRESS) is given, shut down at the end.

    num_cpus: logical CPUs of a private Ray, at least those the machine has.
    Raises RunError when the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray

    if ray.is_initialized():  # the caller's own session: used, not ended
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    folder: str | None = None
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_level": "ERROR"}
    if address:
        options["address"] = address
    else:
        # Ray keeps its session folders for ever, and socket paths in them must stay short.
        folder = tempfile.mkdtemp(prefix="rl-", dir="/tmp" if os.path.isdir("/tmp") else None)
        options |= {
            "address": "local",
            "num_cpus": max(num_cpus or 1, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": 256 * 1024 * 1024,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": folder,
        }
    try:
        try:
            ray.init(**options)
        except Exception as error:
            where = address or "a local Ray"
            raise RunError(f"Ray at {where}: cannot be reached ({' '.join(str(error).split())[:300]}). Check --address, or use --no-ray.") from error
        yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
