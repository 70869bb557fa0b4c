"""Where the seconds go: named spans of time, kept by thread. Off until a recorder is started, and then a span costs a dictionary look-up.

Knows nothing of what is measured. Lanes are threads; two spans of one thread never cross, an inner one is taken out of the outer one's seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

# Kept one by one for the trace, 100 bytes each; behind that only their sums grow.
MAX_KEPT = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """start_s: seconds of the system's clock since 1970, so that processes can be laid beside each other. lane: the thread's name."""

    name: str
    lane: str
    start_s: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one process did. own_s: by name, summed over threads, without the seconds of spans inside. wall_s: since the recorder was started or cleared.

    dropped: spans that are in the sums alone.
    """

    wall_s: float
    own_s: dict[str, float]
    counts: dict[str, int]
    spans: tuple[Span, ...]
    dropped: int = 0


@dataclass(slots=True)
class _Recorder:
    """synchronize: called at both ends of spans of the device, so that its work counts where it was asked for."""

    synchronize: Callable[[], None] | None
    num_kept: int = MAX_KEPT
    started: float = field(default_factory=time.perf_counter)
    own_s: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    dropped: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, start: float, end: float, inner_s: float) -> None:
        with self.lock:
            self.own_s[name] = self.own_s.get(name, 0.0) + end - start - inner_s
            self.counts[name] = self.counts.get(name, 0) + 1
            if len(self.spans) >= self.num_kept:
                self.dropped += 1
                return
            lane, since_1970 = threading.current_thread().name, time.time() - time.perf_counter()
            self.spans.append(Span(name=name, lane=lane, start_s=since_1970 + start, duration_s=end - start))


_recorder: _Recorder | None = None
_open = threading.local()
_OFF = nullcontext()


def start_recording(synchronize: Callable[[], None] | None = None, num_kept: int = MAX_KEPT) -> None:
    """Record spans of this process from now on; what was recorded before is forgotten.

    synchronize: waits until the device has done its work. num_kept: so many are kept one by one; all are in the sums.
    """
    global _recorder
    _recorder = _Recorder(synchronize, min(num_kept, MAX_KEPT))


def stop_recording() -> None:
    global _recorder
    _recorder = None


def recorded() -> Profile | None:
    """Return what was recorded since the start; None while nothing records. Spans that are still open are not in it."""
    recorder = _recorder
    if recorder is None:
        return None
    with recorder.lock:
        return Profile(
            wall_s=time.perf_counter() - recorder.started,
            own_s=dict(recorder.own_s),
            counts=dict(recorder.counts),
            spans=tuple(recorder.spans),
            dropped=recorder.dropped,
        )


def own_seconds() -> dict[str, float] | None:
    """Return the seconds of each name so far, as `Profile.own_s`; None while nothing records. Cheap, unlike `recorded`."""
    recorder = _recorder
    if recorder is None:
        return None
    with recorder.lock:
        return dict(recorder.own_s)


def span(name: str, *, device: bool = False) -> AbstractContextManager[None]:
    """Measure what runs inside as `name`. device: it gives work to the accelerator, which is waited for at both ends while recording."""
    recorder = _recorder
    return _OFF if recorder is None else _measured(recorder, name, device)


@contextmanager
def _measured(recorder: _Recorder, name: str, device: bool) -> Iterator[None]:
    wait = recorder.synchronize if device else None
    if wait is not None:
        wait()
    outer_inner_s = getattr(_open, "inner_s", 0.0)
    _open.inner_s = 0.0
    start = time.perf_counter()
    try:
        yield
        if wait is not None:
            wait()
    finally:
        end = time.perf_counter()
        recorder.add(name, start, end, _open.inner_s)
        _open.inner_s = outer_inner_s + end - start
