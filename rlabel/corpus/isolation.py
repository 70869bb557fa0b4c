"""Decodes pictures in processes of their own, so that one that crashes, hangs or fills its decoder costs that picture alone.

The pixels are those of `decoding.InProcess`, which is what runs there. A decoder process knows no path, store or credential: bytes
go in by its stdin and pixels come out by its stdout. It is bounded in memory and in seconds of CPU, by the system rather than
by itself; it is no sandbox (see SECURITY.md).

Wire: a request is (scale, 0 for `decode`; limits; number of bytes), then the bytes; a reply is (kind, height, width, number of bytes),
then the bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict
from queue import Empty, SimpleQueue
from typing import IO, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from rlabel.corpus.decoding import IN_PROCESS, BadImage, Drafts, readable_formats
from rlabel.corpus.limits import Limits
from rlabel.corpus.picture import PixelsHWC
from rlabel.errors import RunError

_REQUEST = struct.Struct("<BIQ")
_REPLY = struct.Struct("<BQQQ")
_READY, _PIXELS, _DRAFTS, _BAD, _NO_MEMORY = range(5)
_LONGEST_MESSAGE = 4096
_PIPE_BYTES = 1 << 20  # Linux: pixels then need a sixteenth of the turns
# Of CPU, so that a busy machine blames no picture. The largest picture that limits allow takes a few.
_DECODE_S = 30
_OWN_BYTES = 1 << 30
_BYTES_A_PIXEL = 32  # five copies with an alpha channel, and a decoder's own
_ATTEMPTS = 3
# All that a decoder needs of the environment: how to find its libraries.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL")
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rlabel.corpus.isolation import serve; serve()"
Bytes = npt.NDArray[np.uint8]


class _Died(Exception):
    """The decoder process ended, or gave up, before it had answered. The message says how."""


class _Reply(NamedTuple):
    kind: int
    height_px: int
    width_px: int
    content: Bytes


class IsolatedDecoders:
    """A `Decoder` that any number of threads may use: each call goes to an idle process, or to a new one."""

    def __init__(self) -> None:
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._idle.put(_Process())  # starts while the caller does other things

    def check(self) -> None:
        """Wait until a decoder process is ready. Raises RunError where none can run."""
        process = self._idle.get()
        try:
            process.wait_until_ready()
        except _Died as death:
            raise RunError(
                f"a process that decodes pictures cannot be started ({death}). Pass --no-isolate-decoders where the command has "
                "it, and a picture that crashes its decoder ends the whole run."
            ) from death
        self._idle.put(process)

    def decode(self, data: bytes, limits: Limits) -> PixelsHWC | Drafts:
        """Return what `InProcess.decode` returns, as an array. Raises BadImage, also for bytes that end each process that tries them."""
        reply = self._asked(data, 0, limits)
        if reply.kind == _DRAFTS:
            return Drafts(reply.height_px, reply.width_px)
        return reply.content.reshape(reply.height_px, reply.width_px, 3)

    def decode_at(self, data: bytes, scale: int, limits: Limits) -> Image.Image:
        """Return what `InProcess.decode_at` returns. Raises BadImage as `decode` does."""
        reply = self._asked(data, scale, limits)
        return Image.frombuffer("RGB", (reply.width_px, reply.height_px), reply.content, "raw", "RGB", 0, 1)

    def _asked(self, data: bytes, scale: int, limits: Limits) -> _Reply:
        death = None
        for _ in range(_ATTEMPTS):
            process = self._taken() if death is None else _Process()
            try:
                reply = process.ask(data, scale, limits)
            except _Died as error:
                death = error
                continue
            self._idle.put(process)
            if reply.kind == _BAD:
                raise BadImage(reply.content.tobytes().decode("utf-8", "replace"))
            return reply
        raise BadImage(f"its decoder did not survive it in {_ATTEMPTS} attempts: {death}") from death

    def _taken(self) -> _Process:
        with contextlib.suppress(Empty):
            return self._idle.get_nowait()
        return _Process()


_shared: dict[int, IsolatedDecoders] = {}


def shared_decoders() -> IsolatedDecoders:
    """Return the decoders of this process, made when first asked for; a fork of it (a loader's worker, say) gets its own.

    For all that reads pictures one after the other; what labels has decoders of its own. Raises RunError where none can run.
    """
    pid = os.getpid()
    if pid not in _shared:
        # Those of a process that this one was forked from stay where they are: to let go of them would end them.
        _shared[pid] = IsolatedDecoders()
    return _shared[pid]


class _Process:
    """One decoder process. Whoever holds this talks to it alone."""

    def __init__(self) -> None:
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, json.dumps([os.path.abspath(path) for path in sys.path if path])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={
                    **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
                },
            )
        except OSError as error:
            raise RunError(
                f"{sys.executable}: a process that decodes pictures cannot be started ({error}). Free some memory or processes, or "
                "pass --no-isolate-decoders where the command has it."
            ) from error
        assert self._child.stdin is not None and self._child.stdout is not None
        self._to, self._from = self._child.stdin, self._child.stdout
        _widen(self._from.fileno())
        _widen(self._to.fileno())
        self._is_ready = False
        self._end = weakref.finalize(self, _ended, self._child, os.getpid())

    def wait_until_ready(self) -> None:
        if not self._is_ready:
            self._answer(self._receive, 0)
            self._is_ready = True

    def ask(self, data: bytes, scale: int, limits: Limits) -> _Reply:
        """Return the reply to one request, checked: what it says is no more trusted than the picture. Raises _Died."""
        self.wait_until_ready()

        def exchange() -> _Reply:
            bounds = json.dumps(asdict(limits)).encode("ascii")
            self._to.write(_REQUEST.pack(scale, len(bounds), len(data)) + bounds)
            self._to.write(data)
            self._to.flush()
            return self._receive(limits.max_pixels)

        reply = self._answer(exchange)
        if reply.kind == _NO_MEMORY:  # it may be full of what earlier pictures left: let a fresh one try
            self._end()
            raise _Died("it takes more memory than a picture of the largest allowed size needs")
        return reply

    def _answer(self, get: Callable[..., _Reply], *arguments: int) -> _Reply:
        try:
            return get(*arguments)
        except (OSError, EOFError, ValueError) as error:
            self._end()
            raise _Died(_how_it_ended(self._child.returncode, error)) from error
        except BaseException:  # an interrupt in the middle: what comes next would be the rest of this reply
            self._end()
            raise

    def _receive(self, max_pixels: int) -> _Reply:
        kind, height, width, num_bytes = _REPLY.unpack(_read(self._from, _REPLY.size).data)
        size_px = height * width
        expected = {_PIXELS: 3 * size_px, _DRAFTS: 0, _READY: 0, _NO_MEMORY: 0}.get(
            kind, min(num_bytes, _LONGEST_MESSAGE)
        )
        if (
            kind > _NO_MEMORY
            or num_bytes != expected
            or size_px > max_pixels
            or (kind in (_PIXELS, _DRAFTS)) != bool(size_px)
        ):
            raise ValueError("it answered something else than pixels")
        return _Reply(kind, height, width, _read(self._from, num_bytes))


def serve() -> None:
    """Answer requests until stdin ends: what a decoder process does."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get among the replies
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the caller ends this one by its stdin
    readable_formats()
    bounded = 0
    _reply(replies, _READY, 0, 0, b"")
    while header := requests.read(_REQUEST.size):
        scale, num_bounds, num_bytes = _REQUEST.unpack(header)
        limits = Limits(**json.loads(requests.read(num_bounds)))
        if bounded < limits.max_pixels:
            bounded = limits.max_pixels
            _bound_memory(_OWN_BYTES + 2 * limits.max_file_bytes + _BYTES_A_PIXEL * bounded)
        try:
            data = requests.read(num_bytes)
            with _bounded_time():
                found = IN_PROCESS.decode_at(data, scale, limits) if scale else IN_PROCESS.decode(data, limits)
                pixels = None if isinstance(found, Drafts) else np.asarray(found)
        except BadImage as error:
            _reply(replies, _BAD, 0, 0, str(error).encode("utf-8", "replace")[:_LONGEST_MESSAGE])
        except MemoryError:
            _reply(replies, _NO_MEMORY, 0, 0, b"")
        else:
            if isinstance(found, Drafts):
                _reply(replies, _DRAFTS, found.height_px, found.width_px, b"")
            elif pixels is not None:
                _reply(replies, _PIXELS, pixels.shape[0], pixels.shape[1], pixels.data.cast("B"))
            del data, found, pixels  # the next request may need the memory


def _reply(stream: BinaryIO, kind: int, height_px: int, width_px: int, content: bytes | memoryview) -> None:
    stream.write(_REPLY.pack(kind, height_px, width_px, len(content)))
    stream.write(content)
    stream.flush()


def _read(stream: IO[bytes], num_bytes: int) -> Bytes:
    """Return exactly so many bytes, uint8 (num_bytes,). Raises EOFError."""
    content = np.empty(num_bytes, dtype=np.uint8)  # a bytearray would be filled with zeros first
    view = content.data
    at = 0
    while at < num_bytes:
        more = stream.readinto(view[at:])  # type: ignore[attr-defined]  # of pipes as of files
        if not more:
            raise EOFError
        at += more
    return content


@contextlib.contextmanager
def _bounded_time() -> Iterator[None]:
    """Let the system end this process after so much CPU: no code of ours runs while a decoder spins."""
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, _DECODE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _bound_memory(num_bytes: int) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows, and systems that bound no addresses
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes if hard < 0 else min(num_bytes, hard), hard))


def _widen(pipe: int) -> None:
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _ended(child: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the process that talks to it
        return
    child.kill()
    for stream in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):  # what was not sent yet cannot be now
            if stream is not None:
                stream.close()
    child.wait()


def _how_it_ended(returncode: int, error: Exception) -> str:
    if isinstance(error, ValueError):
        return str(error)
    if -returncode == getattr(signal, "SIGPROF", None):
        return f"it took more than {_DECODE_S} s of CPU"
    if returncode < 0:
        return f"the process was ended by {signal.Signals(-returncode).name}"
    return f"the process ended with exit code {returncode}"
