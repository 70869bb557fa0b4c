"""What all tests share: an environment that reaches for nothing outside, and one local Ray for those that need it.

Loads neither torch nor Ray by itself. Helpers in this folder are imported by their plain names (`factories`).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from train_factories import Files

# Read by libraries when they are imported, and inherited by every process that a test starts.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_V2_ENABLED="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A token in the home directory would turn authentication on, and a head that runs here would be joined.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.pop("RAY_ADDRESS", None)

# A loaded machine is no failure: pytest-timeout is the only clock.
settings.register_profile("rlabel", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("rlabel")


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Where torch is loaded, let it sum in one order: other numbers of threads give other last digits."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[ModuleType]:
    """Give the `ray` module, connected to a private Ray of 4 logical CPUs and 2 logical GPUs; 5 s once a session."""
    import ray

    # Ray keeps its session folders for ever, and the socket paths in them must stay below 107 bytes.
    folder = tempfile.mkdtemp(prefix="rl-", dir="/tmp" if os.path.isdir("/tmp") else None)
    try:
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=2,
            include_dashboard=False,
            object_store_memory=100 * 1024 * 1024,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny fresh model, for tests of training; others have their own."""
    from train_factories import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Four labeled pictures, for tests of training."""
    from train_factories import labeled_corpus

    return labeled_corpus(tmp_path_factory.mktemp("corpus"), num_images=4)
