"""A folder of this machine, or one mounted on it: whole files by a temporary one and a hard link or a rename."""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rlabel.errors import StorageError
from rlabel.storage.trouble import PathRefused

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY_PREFIX = ".rlabel-tmp-"
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EINVAL})
# Each needs somebody who removes the file of a living writer within the moment between two calls.
_MAX_VANISHED = 5


class Vanished(OSError):
    """A temporary file was removed while its writer was at it."""


class LocalBackend:
    """A folder of this machine. root: already resolved; one that is itself a symbolic link is the user's choice."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def describe(self, path: str) -> str:
        return str(self.root / path)

    def inside(self, path: str) -> Path:
        """Return the path with its links followed, refusing one that ends outside the root."""
        resolved = Path(os.path.realpath(self.root / path))
        if resolved != self.root and self.root not in resolved.parents:
            raise PathRefused(
                f"{self.root / path}: a symbolic link that leads out of {self.root}, to {resolved}. "
                "Name the real folder, or copy the file into it."
            )
        return resolved

    def put_if_absent(self, path: str, data: bytes) -> bool:
        target = self.inside(path)
        for attempt in range(1, _MAX_VANISHED + 1):
            if target.exists():
                return False
            try:
                return _linked(target, data)
            except Vanished:  # taken for a leftover: look again who was there, and write it anew
                if attempt == _MAX_VANISHED:
                    raise
        raise AssertionError("unreachable")

    def put(self, path: str, data: bytes) -> None:
        for attempt in range(1, _MAX_VANISHED + 1):
            try:
                return self.put_stream(path, [data])
            except Vanished:
                if attempt == _MAX_VANISHED:
                    raise

    def put_stream(self, path: str, chunks: Iterable[bytes]) -> None:
        target = self.inside(path)
        with _written_temporary(target, chunks) as temporary:
            try:
                os.replace(temporary, target)
            except FileNotFoundError as error:
                raise Vanished(errno.EAGAIN, f"the half-written file {temporary.name} was removed") from error

    def read(self, path: str) -> bytes:
        with self.open_read(path) as stream:
            return stream.read()

    def read_start(self, path: str, num_bytes: int) -> bytes:
        with self.open_read(path) as stream:
            # No more than there is: a stream makes room for all that it is asked for.
            return stream.read(min(num_bytes, os.fstat(stream.fileno()).st_size + 1))

    def open_read(self, path: str) -> BinaryIO:
        target = self.inside(path)
        # Opening a pipe would wait for a writer forever, and a device may never end.
        if not stat.S_ISREG(os.stat(target).st_mode):
            raise PathRefused(f"{target}: not a regular file. Name a file.")
        return target.open("rb")

    def exists(self, path: str) -> bool:
        return self.inside(path).exists()

    def list(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.inside(folder))
        except FileNotFoundError:
            return []

    def delete(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        (self.inside(folder) / name).unlink(missing_ok=True)  # a link itself, not the file that it leads to

    def remove_leftovers(self, folder: str, older_than_s: float) -> int:
        num_removed = 0
        for name in self.list(folder):
            if not name.startswith(TEMPORARY_PREFIX):
                continue
            path = self.inside(folder) / name
            try:
                # A server's clock may be ahead of this one.
                is_old = older_than_s <= 0 or time.time() - path.lstat().st_mtime >= older_than_s
                if is_old and not _is_being_written(path):
                    path.unlink()
                    num_removed += 1
            except FileNotFoundError:  # its writer was still there
                continue
        return num_removed

    def check_can_commit(self) -> None:
        """Commit an empty file and remove it, in the folder or, where that is not there yet, in the one it will be made in."""
        folder = next(place for place in (self.root, *self.root.parents) if place.exists())
        probe = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        beside = LocalBackend(folder)
        try:
            beside.put_if_absent(probe, b"")
        finally:
            _remove_quietly(folder / probe)


def _linked(target: Path, data: bytes) -> bool:
    with _written_temporary(target, [data]) as temporary:
        try:
            # A link fails if the name is taken, and it shows the object only when it is whole: both at once.
            os.link(temporary, target)
            return True
        except FileExistsError:
            # NFS may repeat a request whose reply was lost and then meet its own link: the same inode is ours.
            try:
                return os.path.samestat(os.stat(temporary), os.stat(target))
            except FileNotFoundError as error:
                raise Vanished(errno.EAGAIN, f"{target.name} was there and is gone") from error
        except FileNotFoundError as error:
            raise Vanished(errno.EAGAIN, f"the half-written file {temporary.name} was removed") from error
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise StorageError(
                f"{target}: this filesystem has no hard links ({error}), so a file cannot be committed exactly once "
                "on it. Choose an --out on a local disk, on NFS or in an object store."
            ) from error


@contextmanager
def _written_temporary(target: Path, chunks: Iterable[bytes]) -> Iterator[Path]:
    """Give a whole, synced file beside the target; whatever happens, it is gone at the end.

    It is locked as long as its writer lives, so that it is not taken for a leftover. The folder itself is not synced:
    after a power cut a name may be missing, which a resumed run makes again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as stream:
            _lock(stream)
            for chunk in chunks:
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
            yield temporary
    finally:
        _remove_quietly(temporary)


def _lock(stream: BinaryIO) -> bool:
    """Return whether the file is now locked by this process, or cannot be locked at all; False: another one holds it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a filesystem without locks: age alone tells
        return True
    return True


def _is_being_written(path: Path) -> bool:
    """Return whether somebody holds the file, or it is none that can be looked at. Raises FileNotFoundError."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return True
    try:
        # As for writing, which locks on NFS ask for; nothing is written.
        with path.open("r+b") as stream:
            return not _lock(stream)
    except PermissionError:
        return True


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the first error is the one to report; listings hide temporary names
