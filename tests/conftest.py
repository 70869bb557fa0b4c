"""What all tests share: an environment that reaches for nothing outside, and one local Ray for those that need it.

Loads neither torch nor Ray by itself. Helpers in this folder are imported by their plain names (`factories`).
"""

from __future__ import annotations

import os
import shutil
import signal
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

# The files that take longest, the longest first. Two processes that begin with them end together; by itself pytest-xdist
# begins with the files of the most tests, and then one waits at the end for the other's last long one.
_LONGEST_FIRST = (
    "test_train_ray", "test_resume", "test_label_tasks", "test_label_cli", "test_pool", "test_training_sharded", "test_embedding",
    "test_training_loop", "test_train_cli", "test_training_best", "test_training_resume", "test_training_adapters",
)  # fmt: skip
for _name in _LONGEST_FIRST:
    assert (Path(__file__).parent / f"{_name}.py").is_file(), f"{_name}.py is named here and not there any more"

# A loaded machine is no failure: pytest-timeout is the only clock.
settings.register_profile("rlabel", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("rlabel")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the files that take longest to the front; `make test` has pytest-xdist keep this order."""
    places = {name: place for place, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Where torch is loaded, let it sum in one order: other numbers of threads give other last digits."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """A shell that starts tests in the background leaves them with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
