"""Object stores and all other fsspec filesystems. Only a write made as one request is whole or absent there."""

from __future__ import annotations

import contextlib
import errno
import inspect
import io
import posixpath
import tempfile
import uuid
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.config import conf
from fsspec.core import url_to_fs
from fsspec.implementations.memory import MemoryFileSystem

from rlabel.errors import StorageError
from rlabel.storage.local import TEMPORARY_PREFIX
from rlabel.storage.trouble import FULL, DriverTrouble, StoreDown, driver, retrying, trouble

_CREATES_EXCLUSIVELY = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})
_S3 = ("s3", "s3a")
# Seconds without a byte after which a request is given up, and attempts of one request inside an operation of many (pages
# of a list, parts of an upload). All further patience is that of `retrying`: three layers of it would add up to an hour.
_S3_CONFIG = {"connect_timeout": 10, "read_timeout": 20, "retries": {"mode": "standard", "total_max_attempts": 3}}
_READ_BLOCK_BYTES = 8 * 2**20
# A store that cannot be reached at the start of a run is more likely a wrong URL than bad luck.
_PROBE_PATIENCE_S = 30.0
_T = TypeVar("_T")


class RemoteBackend:
    """A folder of an fsspec filesystem. patience_s: how long an operation is tried again."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, root: str, patience_s: float) -> None:
        self.filesystem: Any = filesystem  # fsspec ships no types
        self.root = root.rstrip("/")
        self.patience_s = patience_s

    def describe(self, path: str) -> str:
        return str(self.filesystem.unstrip_protocol(self.inside(path)))

    def inside(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def put_if_absent(self, path: str, data: bytes) -> bool:
        self._check_kind(path)
        target = self.inside(path)
        try:
            _written(lambda: self.filesystem.pipe_file(target, data, mode="create"))
            return True
        except OSError:
            # "Exists" may be one's own write whose reply was lost, and so may a timeout: what is there decides.
            there = self._read_or_none(path)
            if there is None:
                raise
            return there == data

    def _read_or_none(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def put(self, path: str, data: bytes) -> None:
        _written(lambda: self.filesystem.pipe_file(self.inside(path), data))

    def put_stream(self, path: str, chunks: Iterable[bytes]) -> None:
        # Never `with filesystem.open(target, "wb")`: an exception inside commits what was written so far.
        with tempfile.NamedTemporaryFile(prefix=TEMPORARY_PREFIX) as spool:
            for chunk in chunks:
                self._spooled(path, spool.name, lambda chunk=chunk: spool.write(chunk))  # type: ignore[misc]
            self._spooled(path, spool.name, spool.flush)
            retry = retrying(self.patience_s, self.describe(path))
            retry(_written, lambda: self.filesystem.put_file(spool.name, self.inside(path)))

    def _spooled(self, path: str, spool: str, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise StoreDown(
                f"{spool}: disk full ({error}): {self.describe(path)} is put together there before it is sent. Free some space, "
                "or set TMPDIR to a folder that has it, and run the same command again: what is committed stays."
            ) from error

    def read(self, path: str) -> bytes:
        self.filesystem.invalidate_cache()  # a listing may be older than the file
        return cast(bytes, driver(lambda: self.filesystem.cat_file(self.inside(path))))

    def read_start(self, path: str, num_bytes: int) -> bytes:
        self.filesystem.invalidate_cache()
        target = self.inside(path)
        try:
            return cast(bytes, driver(lambda: self.filesystem.cat_file(target, start=0, end=num_bytes)))
        except FileNotFoundError:
            raise
        except OSError:  # S3 refuses to give the first byte of what has none
            if driver(lambda: self.filesystem.info(target))["size"]:
                raise
            return b""

    def open_read(self, path: str) -> BinaryIO:
        def open_stream() -> Any:
            self.filesystem.invalidate_cache()
            return driver(lambda: self.filesystem.open(self.inside(path), "rb", block_size=_READ_BLOCK_BYTES))

        return cast(BinaryIO, io.BufferedReader(_PatientReader(open_stream, self.describe(path), self.patience_s)))

    def exists(self, path: str) -> bool:
        self.filesystem.invalidate_cache()
        return bool(driver(lambda: self.filesystem.exists(self.inside(path))))

    def list(self, folder: str) -> list[str]:
        self.filesystem.invalidate_cache()
        target = self.inside(folder)
        try:
            found = driver(lambda: self.filesystem.ls(target, detail=False))
        except FileNotFoundError:
            return []
        # An object store may list the folder's own marker object; its name is empty or the folder's own.
        own = target.strip("/")
        return [posixpath.basename(name.rstrip("/")) for name in found if name.strip("/") != own]

    def delete(self, path: str) -> None:
        try:
            driver(lambda: self.filesystem.rm_file(self.inside(path)))
        except OSError:
            if self.exists(path):
                raise

    def remove_leftovers(self, folder: str, older_than_s: float) -> int:
        return 0  # one request writes an object: it is whole, or it is not there

    def check_can_commit(self) -> None:
        """Write an object of a name of its own twice and remove it: servers there are that take the condition and forget it."""
        self._check_kind("")
        probe = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        retry = retrying(min(self.patience_s, _PROBE_PATIENCE_S), self.describe(""))
        try:
            is_kept = retry(self.put_if_absent, probe, b"1") and not retry(self.put_if_absent, probe, b"2")
            with contextlib.suppress(OSError):  # a byte stays, under a name that listings hide
                retry(driver, lambda: self.filesystem.rm_file(self.inside(probe)))
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise StorageError(self._cannot_commit("", f"its server refuses conditional writes ({error})")) from error
        if not is_kept:
            raise StorageError(
                self._cannot_commit("", "its server replaced a file that was to be written only if absent")
            )

    def _check_kind(self, path: str) -> None:
        if not creates_exclusively(self.filesystem):
            raise StorageError(
                self._cannot_commit(path, "this kind of storage cannot write a file only if it is absent")
            )

    def _cannot_commit(self, path: str, reason: str) -> str:
        return (
            f"{self.describe(path)}: {reason}, so results could be lost or doubled. "
            "Choose an --out on a local disk or in S3, GCS or Azure storage."
        )


class _PatientReader(io.RawIOBase):
    """A file of a store whose reads are tried again, each for as long as other operations. Its errors are StorageErrors.

    Of a stream that cannot go back what was lost is lost: there the first error counts.
    """

    def __init__(self, open_stream: Callable[[], Any], where: str, patience_s: float) -> None:
        self._open, self._where, self._patience_s = open_stream, where, patience_s
        self._stream = open_stream()
        self._can_go_back = bool(self._stream.seekable())
        self._has_given = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._can_go_back

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self._read(_READ_BLOCK_BYTES), b""))

    def _read(self, num_bytes: int) -> bytes:
        try:
            if not self._can_go_back:
                return cast(bytes, driver(lambda: self._stream.read(num_bytes)))
            at = self._stream.tell()
            data = retrying(self._patience_s, self._where)(driver, lambda: self._read_at(at, num_bytes))
            self._has_given = True
            return data
        except OSError as error:
            raise trouble(error, self._where, "read", is_local=False) from error

    def _read_at(self, at: int, num_bytes: int) -> bytes:
        try:
            self._stream.seek(at)
            return cast(bytes, self._stream.read(num_bytes))
        except OSError as error:
            if type(error).__name__ != "FileExpired":  # s3fs: another object is there since it was opened
                raise
            if self._has_given:
                raise StorageError(
                    f"{self._where}: it was replaced while it was read. Run the same command again when nobody writes it."
                ) from error
            self._stream = self._open()
            raise

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of a URL and the path in it; of S3 one whose requests end in time, unless fsspec's own settings
    (its config files, or FSSPEC_S3 in the environment) say otherwise. Raises ImportError and ValueError as fsspec does.
    """
    protocols = {part.partition("://")[0] for part in url.split("::")}
    own: dict[str, Any] = {}
    for name in _S3:
        given = conf.get(name, {}).get("config_kwargs")
        own |= given if isinstance(given, dict) else {}
    options = {
        # Nothing is remembered of a listing: other processes write too.
        name: {"config_kwargs": {**_S3_CONFIG, **own}, "use_listings_cache": False}
        for name in _S3
        if name in protocols
    }
    filesystem, root = url_to_fs(url, **options)
    if not protocols.isdisjoint(_S3):
        filesystem.retries = 1  # s3fs's own, around the client's; the instance is ours, by its options
    return filesystem, root


def is_process_private(filesystem: object) -> bool:
    """Return whether only this process sees the files, also behind a wrapping filesystem such as `dir::memory://`."""
    if isinstance(filesystem, MemoryFileSystem):
        return True
    inner = getattr(filesystem, "fs", None)
    return inner is not None and inner is not filesystem and is_process_private(inner)


def creates_exclusively(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Return whether pipe_file(mode="create") of this driver is one request that fails when the name is taken.

    Known drivers only, and of those only versions that take the mode: HTTP's takes it and overwrites all the same,
    older ones swallow it in `**kwargs`, and fsspec's generic fallback streams, which can leave a short object.
    """
    protocols = filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
    if _CREATES_EXCLUSIVELY.isdisjoint(protocols):
        return False
    methods = (getattr(type(filesystem), name, None) for name in ("_pipe_file", "pipe_file"))
    own = (method for method in methods if method not in (None, fsspec.AbstractFileSystem.pipe_file))
    return any("mode" in inspect.signature(method).parameters for method in own)


def _written(write: Callable[[], _T]) -> _T:
    """Call a driver's write. "Not found" is no answer to one: it may be an upload in parts whose last reply was lost, to be sent anew."""
    try:
        return driver(write)
    except FileNotFoundError as error:
        raise DriverTrouble(f"{error or type(error).__name__}") from error
