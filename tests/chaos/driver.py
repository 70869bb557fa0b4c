"""`python -m tests.chaos.driver WORKER --images ...`: `rlabel label` whose labeler is one of this bench's. WATCH=FILE also writes what the driver holds."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

WATCH = "RLABEL_CHAOS_WATCH"
_EVERY_S = 1.0


def main() -> None:
    import rlabel.run.worker as module
    from rlabel.cli.main import main as command
    from tests.chaos import workers

    classes = {
        "counting": workers.CountingWorker,
        "trivial": workers.SlowTrivialWorker,
        "fast": workers.UnmarkedTrivialWorker,
    }
    # `rlabel label` takes the class from its module when it comes to label.
    module.LabelWorker = classes[sys.argv[1]]  # type: ignore[misc]
    if os.environ.get(WATCH):
        threading.Thread(target=_watch, args=(Path(os.environ[WATCH]),), daemon=True).start()
    command(["label", *sys.argv[2:]])


def _watch(path: Path) -> None:
    """Write a line a second: the process's memory, and how much of Ray's object store is in use, in bytes."""
    began = time.monotonic()
    with path.open("w", buffering=1) as file:
        while True:
            held = {"rss": _resident_bytes(), "object_store": _object_store_bytes()}
            file.write(json.dumps({"s": round(time.monotonic() - began, 1), **held}) + "\n")
            time.sleep(_EVERY_S)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _object_store_bytes() -> int | None:
    ray: Any = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return None
    try:
        total, free = (
            found.get("object_store_memory", 0) for found in (ray.cluster_resources(), ray.available_resources())
        )
        return int(total - free)
    except Exception:  # Ray is going down
        return None


if __name__ == "__main__":
    main()
