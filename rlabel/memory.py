"""How glibc's malloc keeps freed memory: given back at once, or reused and given back now and then. Other C libraries are left as they are."""

from __future__ import annotations

import contextlib
import ctypes
import time

# Of malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8
# The heap grows by so much at a time; what is never touched costs nothing.
_PAD_BYTES = 256 << 20


def return_freed_memory() -> bool:
    """Make large freed blocks go back to the system; return whether the C library took it.

    Batches of ever other sizes leave holes in the heap: the process of the embedded labeler grew by half over 10,000 regions. Where a GPU computes, what
    is mapped anew is little.
    """
    # Setting the threshold also stops glibc from raising it by itself; each arena keeps holes of its own.
    return _mallopt((_MMAP_THRESHOLD, 1 << 20), (_ARENA_MAX, 2))


def reuse_freed_memory(*, in_new_threads: bool = False) -> bool:
    """Make large freed blocks stay with the process, for the next of their size; return whether the C library took it.

    A forward pass or a training step frees and asks for the same blocks over and over. By default glibc maps each large one anew, and where the system's
    first touch of a page is slow that costs more than the arithmetic. The process keeps its peak; call it before torch allocates much.
    in_new_threads: threads that are started later share the heap, instead of each keeping one.
    """
    # No block has a mapping of its own any more, and the heap never shrinks.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _PAD_BYTES))
    return _mallopt(*settings, *([(_ARENA_MAX, 1)] if in_new_threads else []))


def reuse_freed_memory_environment() -> dict[str, str]:
    """Return the environment variable that does the same for a process from its start, so that it holds in threads too, which have heaps of their own."""
    wanted = {"arena_max": 1, "mmap_max": 0, "trim_threshold": (1 << 64) - 1, "top_pad": _PAD_BYTES}
    return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in wanted.items())}


def give_idle_memory_back() -> None:
    """Give the free pages of the heap back to the system, once. Batches of ever other sizes leave holes that reuse alone would let grow for hours."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class MemoryKeeper:
    """Gives idle memory back, but not more often than each `every_s`: what was given back must be touched anew."""

    def __init__(self, every_s: float = 60.0) -> None:
        self.every_s = every_s
        self._last = time.monotonic()

    def tidy(self) -> None:
        now = time.monotonic()
        if now - self._last >= self.every_s:
            self._last = now
            give_idle_memory_back()


def _mallopt(*settings: tuple[int, int]) -> bool:
    try:
        libc = ctypes.CDLL("libc.so.6")
        return all([libc.mallopt(parameter, value) == 1 for parameter, value in settings])
    except (OSError, AttributeError):
        return False
