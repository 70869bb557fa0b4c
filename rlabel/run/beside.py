"""A second process beside the one that asks: for the lines of shards, since Python runs one thread at a time, and for what imports much.

The work is a pure function of its argument, so what comes out is the same with and without that process, and where it dies in
the middle: then the asking process does the rest itself. The process is started by name, not forked (torch may have threads by
then) and not through `multiprocessing` (which would import the caller's script once more). Knows nothing of shards.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Any, Generic, TypeVar

from rlabel.storage import Store

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Below it the start of a process, most of a second of computing, costs more than it saves.
LEAST_REGIONS = 100_000
# At the process: one in work and one behind it. Done or in work in all: what is held in memory.
_AHEAD, _WINDOW = 2, 8
_LENGTH = struct.Struct("<Q")
# Of a pipe, where the system lets it be set: with less the two wait for each other.
_PIPE_BYTES = 1 << 20
_Key = TypeVar("_Key")
_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class _Gone(Exception):
    """The process has ended: killed, or out of memory."""


class Beside:
    """Use it as a context: the process ends with it. num_regions: of the work at hand, by which it is decided whether one is worth it.

    stores: what the work reads and writes; there is no process where one of them lives in this one.
    """

    def __init__(self, num_regions: int, *stores: Store) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._sent: object = None
        # Two threads may ask; answers come in the order of what was asked.
        self._asking = Lock()
        is_shared = not any(store.is_process_private for store in stores)
        if num_regions >= LEAST_REGIONS and _num_cores() > 1 and is_shared:
            self._child = _started()
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="beside")

    @property
    def is_there(self) -> bool:
        """Return whether there is, or was, a process."""
        return self._child is not None

    def __enter__(self) -> Beside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.kill()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        if self._child is not None:
            _end(self._child)

    def map(
        self, function: Callable[[_Argument], _Result], items: Iterable[tuple[_Key, _Argument]]
    ) -> Iterator[tuple[_Key, _Result]]:
        """Yield each item's key and what the function makes of its argument, in order. An error of the function is raised at its place.

        function: picklable and pure, of a module of rlabel.
        """
        waiting: deque[tuple[_Key, _Argument, Future[_Result]]] = deque()
        for key, argument in items:
            waiting.append((key, argument, self._begun(function, argument, waiting)))
            while waiting and (waiting[0][2].done() or len(waiting) >= _WINDOW):
                yield self._ended(function, *waiting.popleft())
        while waiting:
            yield self._ended(function, *waiting.popleft())

    def chain(
        self, function: Callable[[Sequence[_Argument]], Iterator[_Result]], items: Sequence[_Argument], at_once: int
    ) -> Iterator[_Result]:
        """Yield what the function yields for the items, in order; where there is no process, as it comes.

        function: as of `map`. With a process it is called for so many items at once, and all of their results are held.
        """
        if not self.is_there:
            yield from function(items)
            return
        lots = ((None, items[start : start + at_once]) for start in range(0, len(items), at_once))
        for _, results in self.map(_Listed(function), lots):
            yield from results

    def _begun(
        self, function: Callable[[Any], Any], argument: Any, waiting: Iterable[tuple[Any, Any, Future[Any]]]
    ) -> Future[Any]:
        if self._thread is not None and sum(not future.done() for _, _, future in waiting) < _AHEAD:
            with self._asking:
                is_sent = self._send(function, argument)
                return self._thread.submit(self._answer if is_sent else _gone)
        future: Future[Any] = Future()
        try:
            future.set_result(function(argument))
        except Exception as error:
            future.set_exception(error)
        return future

    def _ended(self, function: Callable[[Any], Any], key: Any, argument: Any, future: Future[Any]) -> tuple[Any, Any]:
        try:
            return key, future.result()
        except _Gone:
            return key, function(argument)

    def _send(self, function: Callable[[Any], Any], argument: Any) -> bool:
        """Have the process begin it; False where it is gone. While it waits for more room, the other thread takes answers."""
        assert self._child is not None and self._child.stdin is not None
        try:
            if function is not self._sent:
                _send(self._child.stdin, (True, function))
                self._sent = function
            _send(self._child.stdin, (False, argument))
        except (OSError, ValueError):
            return False
        return True

    def _answer(self) -> Any:
        """Return the next answer. Raises what the function raised, and _Gone."""
        assert self._child is not None
        return _answer(self._child)


@dataclass(frozen=True, slots=True)
class _Listed(Generic[_Argument, _Result]):
    """Calls a function that yields, and lists what it yields."""

    function: Callable[[Sequence[_Argument]], Iterator[_Result]]

    def __call__(self, items: Sequence[_Argument]) -> list[_Result]:
        return list(self.function(items))


@contextmanager
def apart(function: Callable[[_Argument], _Result], argument: _Argument) -> Iterator[Callable[[], _Result]]:
    """Begin one piece of work in a process that ends with this context, so that what it imports stays out of the asking one. Gives what waits for its result.

    Errors are raised where it is waited for. function: picklable and pure, of a module of rlabel.
    """
    child = _started()

    def result() -> _Result:
        try:
            answer: _Result = _answer(child)
            return answer
        except _Gone:
            return function(argument)

    try:
        assert child.stdin is not None
        with suppress(OSError):  # it is gone already, which is found where its answer is
            _send(child.stdin, (True, function))
            _send(child.stdin, (False, argument))
        yield result
    finally:
        _end(child)


def _gone() -> Any:
    raise _Gone


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _started() -> subprocess.Popen[bytes]:
    # From a bare checkout rlabel is found through the working directory, which another process need not share.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        [sys.executable, "-m", "rlabel.run.beside"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with suppress(OSError):  # a user's pipes may hold only so much together
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return child


def _answer(child: subprocess.Popen[bytes]) -> Any:
    """Return the answer to what was sent to a process. Raises what the function raised there, and _Gone."""
    assert child.stdout is not None
    try:
        went_well, value = _received(child.stdout)
    except (OSError, EOFError, ValueError) as error:
        raise _Gone from error
    if not went_well:
        raise value
    return value


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with suppress(OSError):  # what was not sent yet cannot be any more
            pipe.close()
    child.wait()


def _send(pipe: IO[bytes], value: object) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _received(pipe: IO[bytes]) -> Any:
    """Return what the other end of our own pipe sent. Raises EOFError where it is closed."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def main() -> None:
    """Do what stdin asks for until it is closed: that is how it learns that the asking process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the asking one decides what becomes of it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints, prints elsewhere
    function: Callable[[Any], Any] = repr
    while True:
        try:
            is_function, value = _received(sys.stdin.buffer)
        except EOFError:
            return
        if is_function:
            function = value
            continue
        try:
            reply = (True, function(value))
        except Exception as error:
            reply = (False, _as_sent(error))
        try:
            _send(answers, reply)
        except BrokenPipeError:
            return


def _as_sent(error: Exception) -> Exception:
    """Return the error, or one of its words where it cannot be pickled and read again."""
    try:
        return pickle.loads(pickle.dumps(error)) if isinstance(error, Exception) else error
    except Exception:
        return ValueError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
