"""Starts or joins Ray for one command, and leaves nothing behind."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rlabel.errors import RunError

_PREFIX = "rl-"
_LOCK = "in-use"
# Between making a folder and locking it a driver needs milliseconds; Ray's processes outlive a killed driver by up to half a minute.
_STALE_AFTER_S = 120.0
_STARTS = 3


def import_ray() -> Any:
    """Return the `ray` module, imported with the environment that it is to see; connects to nothing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray

    return ray


@contextmanager
def ray_session(address: str | None, num_cpus: int | None = None) -> Iterator[Any]:
    """Give the connected `ray` module; a private local Ray unless an address (or RAY_ADDRESS) is given, shut down at the end.

    num_cpus: logical CPUs of a private Ray, at least those the machine has.
    Raises RunError when the cluster cannot be reached.
    """
    ray = import_ray()
    if ray.is_initialized():  # the caller's own session: used, not ended
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    folder: Path | None = None
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_level": "ERROR"}
    if address:
        options["address"] = address
    else:
        folder, lock = _private_folder()
        # Where ray.init is interrupted, its own exit hooks end its processes, and this one, registered before, comes after them.
        atexit.register(_remove, folder)
        options |= {
            "address": "local",
            "num_cpus": max(num_cpus or 1, os.cpu_count() or 1),
            "include_dashboard": False,
            "object_store_memory": 256 * 1024 * 1024,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(folder),
        }
    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        try:
            _begin(ray, options, attempts=1 if address else _STARTS)
        except SystemExit as error:  # SIGTERM: Ray has put its own handler in the place of the command's
            raise KeyboardInterrupt from error
        except Exception as error:
            where = address or "a local Ray"
            raise RunError(
                f"Ray at {where}: cannot be reached ({' '.join(str(error).split())[:300]}). Check --address, or use --no-ray."
            ) from error
        finally:
            _handle_sigterm(at_sigterm)
        yield ray
    finally:
        ray.shutdown()
        _handle_sigterm(at_sigterm)  # Ray's end takes the handler from the process, though Python still names it
        if folder is not None:
            _remove(folder)
            lock.close()


def _begin(ray: Any, options: dict[str, Any], attempts: int) -> None:
    """Call ray.init. A private Ray is tried again: Ray gives its own processes 30 s to start, which a machine with much to do may exceed."""
    for left in reversed(range(attempts)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
            print("rlabel: Ray's processes did not start in its 30 s; once more", file=sys.stderr, flush=True)
            ray.shutdown()


def _handle_sigterm(handler: Any) -> None:
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _private_folder() -> tuple[Path, IO[bytes]]:
    """Return a new folder for Ray's session, and the lock that says that it is in use until this process ends.

    Ray keeps its session folders for ever, and socket paths in them must stay short. Those of killed drivers are removed here.
    """
    root = Path("/tmp") if os.path.isdir("/tmp") else Path(tempfile.gettempdir())
    for lock_path in root.glob(f"{_PREFIX}*/{_LOCK}"):
        _remove_if_stale(lock_path)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    lock = (folder / _LOCK).open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)  # not inherited by Ray's processes: Python opens files so
    return folder, lock


def _remove_if_stale(lock_path: Path) -> None:
    """Remove the session folder of a driver that is dead: nobody holds its lock, whatever container it ran in."""
    try:
        with lock_path.open("rb") as lock:
            if time.time() - os.fstat(lock.fileno()).st_mtime < _STALE_AFTER_S:
                return
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock_path.parent)
    except OSError:
        return  # in use, another user's, or gone by now


def _remove(folder: Path) -> None:
    """Remove a session folder; Ray's last processes may still be writing into it for a moment."""
    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.2)
