"""One driver at a time for a run directory: who may write, how the next one learns that it is dead, and how a late one learns that it was replaced.

    RUN/driver-000001.json   put-if-absent: who drives the run; the one with the highest number does
    RUN/driver-000001.beat   replaced every few seconds by a thread of that driver

Asks nothing of a store but put-if-absent, put, read, list and delete, and compares no clocks of two machines: whoever wants the run watches the
beat itself. A driver of the same machine whose process is gone is replaced at once. Both files go when a driver ends.

Labels do not hang on this: a shard is committed once whoever writes it, and all write the same bytes. A lease spares doing all work twice, and
keeps two drivers from telling of the same run.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rlabel.errors import RunError, StorageError, UsageError
from rlabel.run.directory import RunDirectory
from rlabel.storage import MissingFile, Store

DEFAULT_EXPIRY_S = 60.0
# Nobody waits longer for a sign of life, whatever a file says.
_MAX_EXPIRY_S = 3600.0
_BEATS_PER_EXPIRY = 12
_MAX_BYTES = 16 * 1024
_NAME = re.compile(r"driver-([0-9]{6,12})\.(json|beat)")
_LAST_NUMBER = 10**12 - 1
_RELEASE_S = 8.0
# A name that is listed and not there is looked for again, for so long; each such look is so long after the one before.
_LISTED_S, _LOOK_AGAIN_S = 10.0, 0.1


class RunInUse(UsageError):
    """Another driver is alive and labels this run."""


class LeaseLost(RunError):
    """This driver was silent for so long that another one drives the run now. What it committed stays; it has nothing more to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """Who drives a run: the content of RUN/driver-NNNNNN.json.

    token: drawn anew for each driver. since: UTC, ISO 8601, for people alone. expiry_s: silent for so long, it counts as dead.
    process_started: clock ticks after the machine's start (proc_pid_stat(5), field 22). What a system does not tell is None.
    """

    token: str
    host: str
    pid: int
    since: str
    expiry_s: float
    process_started: int | None = None
    boot_id: str | None = None
    pid_namespace: str | None = None

    @property
    def in_words(self) -> str:
        return f"{self.host}, pid {self.pid}, since {self.since}"

    @property
    def beat_s(self) -> float:
        """Return the seconds from one beat to the next."""
        return self.expiry_s / _BEATS_PER_EXPIRY


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The newest claim in a run directory. driver: None where the file is no claim that this rlabel can read."""

    number: int
    data: bytes
    driver: Driver | None

    @property
    def in_words(self) -> str:
        return _claim_name(self.number) if self.driver is None else self.driver.in_words

    @property
    def expiry_s(self) -> float:
        return DEFAULT_EXPIRY_S if self.driver is None else self.driver.expiry_s


class Lease:
    """A run held by this process, with a thread that says so. `on_beat` is called by that thread, now and then."""

    def __init__(self, store: Store, number: int, driver: Driver) -> None:
        self.store, self.number, self.driver = store, number, driver
        self.on_beat: Callable[[], None] = lambda: None
        self._data = _claim_bytes(driver)
        self._lost: str | None = None
        self._num_beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="lease", daemon=True)

    def start(self) -> None:
        """Beat from now on. Raises LeaseLost when another driver was faster."""
        self.check()
        self._put_beat()
        for name, number in _names(self.store):  # of drivers before this one
            if number < self.number:
                self.store.delete(name)
        self._thread.start()

    def is_lost(self) -> bool:
        """Return whether another driver has taken the run over, by a fresh look. Raises StorageError."""
        if self._lost is None:
            claim = newest_claim(self.store)
            if claim is None or claim.number < self.number:
                claim = _claim(self.store, self.number)  # a listing may be of some moments ago, as on NFS
            if claim is None or (claim.number, claim.data) != (self.number, self._data):
                now = (
                    "the run has been finished or ended by another driver since"
                    if claim is None
                    else f"now {claim.in_words} drives it"
                )
                self._lost = (
                    f"{self.store.join('')}: this driver ({self.driver.in_words}) gave no sign of life for {self.driver.expiry_s:g} s or longer, "
                    f"so it was taken for dead: {now}. This one stops; what it committed stays, and nothing is to be done."
                )
        return self._lost is not None

    def check(self) -> None:
        """Raise LeaseLost if another driver has taken the run over. Raises StorageError."""
        if self.is_lost():
            raise LeaseLost(self._lost)

    def raise_if_known_lost(self) -> None:
        """Raise LeaseLost if the thread has found out already: costs nothing."""
        if self._lost is not None:
            raise LeaseLost(self._lost)

    def release(self) -> None:
        """End the beat and take the files away, if the run is still this driver's. Never raises: what is left counts as dead by itself."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_RELEASE_S)
        try:
            is_lost = self.is_lost()
            # A driver that was stopped in the middle of a beat ends it when it goes on, maybe after the end of the run.
            if not is_lost or read_beat(self.store, self.number).startswith(self.driver.token.encode()):
                self.store.delete(_beat_name(self.number))
            if not is_lost:
                self.store.delete(_claim_name(self.number))
        except StorageError as error:
            _say(f"{_claim_name(self.number)} could not be removed: {error}")

    def _put_beat(self) -> None:
        # As long as the one before: a reader that knew the old length reads the whole new one.
        self.store.put(_beat_name(self.number), f"{self.driver.token} {self._num_beats:012d}\n".encode())
        self._num_beats += 1

    def _beat_on(self) -> None:
        was_silent = False
        while not self._ended.wait(self.driver.beat_s):
            try:
                if self.is_lost():
                    return
                self._put_beat()
                was_silent = False
            except StorageError as error:
                if not was_silent:
                    _say(f"no sign of life could be written: {error}")
                was_silent = True
            try:
                self.on_beat()
            except Exception as error:  # a heartbeat line is not worth a run
                _say(f"status not told: {error}")


def take(store: Store, expiry_s: float = DEFAULT_EXPIRY_S) -> Lease:
    """Return the lease of a run, once nobody else is alive who holds it; its thread is running.

    Waits, where another driver's files are there, until that one gives a sign of life (some seconds) or was silent for its `expiry_s`.

    Raises RunInUse when it is alive, RunError for a claim that no rlabel wrote and no other can follow, StorageError.
    """
    driver = this_driver(expiry_s)
    data = _claim_bytes(driver)
    watched: tuple[int, bytes, bytes] | None = None
    watched_since = 0.0
    while True:
        looked = time.monotonic()  # before reading: what is unchanged then was so until now at least
        claim = newest_claim(store)
        if claim is not None:
            if claim.driver is not None and is_gone(claim.driver):
                _say(f"{store.join('')}: its earlier driver ({claim.in_words}) is gone; this one goes on.")
            else:
                there = (claim.number, claim.data, read_beat(store, claim.number))
                if watched is None:
                    watched, watched_since = there, time.monotonic()
                    _say(
                        f"{store.join('')}: another driver holds it ({claim.in_words}); "
                        f"looking for a sign of life, {claim.expiry_s:g} s at most."
                    )
                elif there != watched:
                    raise RunInUse(_refusal(store, claim))
                if looked - watched_since < claim.expiry_s:
                    time.sleep(min(1.0, claim.expiry_s / _BEATS_PER_EXPIRY / 2))
                    continue
                _say(
                    f"{store.join('')}: no sign of life from {claim.in_words} for {claim.expiry_s:g} s; this one takes over."
                )
        number = 1 if claim is None else claim.number + 1
        if number > _LAST_NUMBER:
            raise RunError(
                f"{store.join(_claim_name(_LAST_NUMBER))}: expected a driver's number that another can follow, got the last one there "
                "is, which no rlabel wrote. Delete the file, and run the same command again."
            )
        if store.put_if_absent(_claim_name(number), data):
            lease = Lease(store, number, driver)
            try:
                lease.start()
                return lease
            except LeaseLost:
                continue
        time.sleep(_LOOK_AGAIN_S)  # another one was faster, and a listing may take its time to show it


@contextmanager
def held(store: Store, expiry_s: float = DEFAULT_EXPIRY_S) -> Iterator[Lease]:
    """Hold a run's lease. Raises as `take`."""
    lease = take(store, expiry_s)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def driving(run: RunDirectory, expiry_s: float = DEFAULT_EXPIRY_S) -> Iterator[Lease | None]:
    """Hold a run's lease; None where it needs none: every shard is there and nobody is at it. Raises as `take`."""
    if len(run.committed()) == run.num_shards and newest_claim(run.store) is None:
        yield None
        return
    with held(run.store, expiry_s) as lease:
        yield lease


def newest_claim(store: Store) -> Claim | None:
    """Return the claim with the highest number, or None if there is none. Raises StorageError."""
    began = time.monotonic()
    while True:
        numbers = [number for name, number in _names(store) if name.endswith(".json")]
        if not numbers:
            return None
        number = max(numbers)
        claim = _claim(store, number)
        if claim is not None:
            return claim
        # Its driver ended between the listing and this; or the listing is an old one, or the name a link to nothing.
        if time.monotonic() - began > _LISTED_S:
            return Claim(number=number, data=b"", driver=None)
        time.sleep(_LOOK_AGAIN_S)


def _claim(store: Store, number: int) -> Claim | None:
    """Return the claim of a number, None if there is none, whatever a listing says."""
    try:
        data = store.read_start(_claim_name(number), _MAX_BYTES)
    except MissingFile:
        return None
    return Claim(number=number, data=data, driver=_driver_or_none(data))


def read_beat(store: Store, number: int) -> bytes:
    """Return what a driver's last beat wrote, b"" if there is none. Raises StorageError."""
    try:
        # By one request: a stream's would be of two states where its driver beats in between.
        return store.read_start(_beat_name(number), _MAX_BYTES)
    except MissingFile:
        return b""


def is_beating(store: Store, claim: Claim) -> bool:
    """Return whether a driver beats, after watching for at most two of its beats."""
    first, end = read_beat(store, claim.number), time.monotonic() + 2.5 * claim.expiry_s / _BEATS_PER_EXPIRY
    while time.monotonic() < end:
        time.sleep(min(0.5, claim.expiry_s / _BEATS_PER_EXPIRY / 2))
        if read_beat(store, claim.number) != first:
            return True
    return False


def is_gone(driver: Driver) -> bool:
    """Return whether a driver's process has ended for certain: it ran on this machine, where processes can be looked at."""
    known = (driver.process_started, driver.boot_id, driver.pid_namespace)
    if None in known or (driver.host, *known[1:]) != (socket.gethostname(), _boot_id(), _pid_namespace()):
        return False
    started = _process_started(driver.pid)
    if started is not None:
        return started != driver.process_started
    try:
        os.kill(driver.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _is_ended(driver.pid)


def this_driver(expiry_s: float) -> Driver:
    """Return this process as a driver."""
    return Driver(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        expiry_s=expiry_s,
        process_started=_process_started(os.getpid()),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
    )


def _refusal(store: Store, claim: Claim) -> str:
    how_to_stop = "" if claim.driver is None else f"stop it (kill {claim.driver.pid} on {claim.driver.host}), "
    return (
        f"{store.join('')}: another driver is at this run: {claim.in_words}. It is alive, so this one stops; nothing was touched. "
        f"Wait for it (rlabel status {store.url}), {how_to_stop}or give another --out. "
        f"If it dies, the same command takes the run over, {claim.expiry_s:g} s after its last sign of life at most."
    )


def _claim_name(number: int) -> str:
    return f"driver-{number:06d}.json"


def _beat_name(number: int) -> str:
    return f"driver-{number:06d}.beat"


def _names(store: Store) -> list[tuple[str, int]]:
    """Return the names of all drivers' files with their numbers, from a fresh listing."""
    found = [(name, int(match[1])) for name in store.list() if (match := _NAME.fullmatch(name))]
    return [(name, number) for name, number in found if name in (_claim_name(number), _beat_name(number))]


def _claim_bytes(driver: Driver) -> bytes:
    return (json.dumps(asdict(driver), indent=1, sort_keys=True) + "\n").encode("ascii")


def _driver_or_none(data: bytes) -> Driver | None:
    """Return the driver that a claim names. Whatever is no claim gives None: its writer is watched as any other."""
    try:
        driver = Driver(**json.loads(data))
        numbers = (
            driver.pid > 0,
            0 < driver.expiry_s <= _MAX_EXPIRY_S,
            driver.process_started is None or driver.process_started >= 0,
        )
        texts = (driver.token, driver.host, driver.since, driver.boot_id or "", driver.pid_namespace or "")
    except (ValueError, TypeError, RecursionError):
        return None
    is_sound = isinstance(driver.pid, int) and all(numbers) and all(isinstance(text, str) for text in texts)
    # It is printed: no control characters of a terminal.
    return driver if is_sound and all(text.isprintable() and len(text) < 300 for text in texts) else None


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def _pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on; the second, a name, may hold anything. [] where there are none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _process_started(pid: int) -> int | None:
    """Return when a living process started, in clock ticks after the machine's start; None if it does not live or cannot be looked at."""
    fields = _stat_fields(pid)
    return int(fields[19]) if len(fields) > 19 and not _is_ended(pid) else None


def _is_ended(pid: int) -> bool:
    """Return whether a process has ended and only waits for its parent to ask how."""
    return _stat_fields(pid)[:1] in (["Z"], ["X"])


def _say(text: str) -> None:
    print(f"rlabel: {text}", file=sys.stderr, flush=True)
