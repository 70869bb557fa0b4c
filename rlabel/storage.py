"""One folder of files at any fsspec URL, written atomically. The only room that knows a filesystem.

Promises of a `Store`, on a local disk and on an object store alike:
- a name either holds a whole object or does not exist; a failed or killed write leaves nothing under that name;
- `put_if_absent` never replaces what is there, whoever wrote it, also with several processes writing at once;
- a path never leads out of the folder, whatever a corpus file says;
- listings are fresh: another process's writes are seen.

It knows nothing of shards, images or COCO.
"""

from __future__ import annotations

import errno
import inspect
import os
import posixpath
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from rlabel.errors import RlabelError, StorageError, UsageError

_TEMPORARY_PREFIX = ".rlabel-tmp-"
_NEVER_PASSES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}
    | {errno.ELOOP, errno.EPERM, errno.EACCES, errno.EXDEV, errno.EINVAL, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}
)
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EINVAL})
_CREATES_EXCLUSIVELY = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})
_T = TypeVar("_T")


class MissingFile(StorageError, FileNotFoundError):
    """The file is not there. Caught where absence means something; else it ends the command like any StorageError."""


class PathRefused(StorageError):
    """The path would leave the store's folder, or cannot name a file in it. For an image, that is one bad item."""


class Store:
    """A folder at a URL. Every `path` is relative to it and "/"-separated; pickles by its URL.

    Every method raises StorageError (MissingFile where a file to be read is not there, PathRefused for a path that
    would leave the folder). Errors that can pass are tried three times before that.
    """

    def __init__(self, url: str, backend: _LocalBackend | _RemoteBackend, is_process_private: bool) -> None:
        self.url = url
        self.is_process_private = is_process_private
        self._backend = backend

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Store:
        """Return the store at a local path or fsspec URL. Nothing is created or read until it is used.

        Raises UsageError when the URL's kind of filesystem is unknown or its driver is not installed.
        """
        text = os.fspath(url)
        if not text or "\0" in text:
            raise UsageError(f"storage URL: expected a folder or a URL such as s3://bucket/folder, got {text!r}")
        try:
            filesystem, root = url_to_fs(text)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"{text}: this kind of storage cannot be opened ({error}). Install its fsspec driver "
                "(s3fs, gcsfs, adlfs, ...) or give another URL."
            ) from error
        if isinstance(filesystem, LocalFileSystem):
            local = _LocalBackend(Path(os.path.realpath(root)))
            return cls(str(local.root), local, False)
        return cls(text, _RemoteBackend(filesystem, root), _is_process_private(filesystem))

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return (Store.open, (self.url,))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write a whole object unless one is there. True if these bytes are now there by this call, else False.

        On an object store the reply to one's own write may be lost, so an object found there with the same bytes
        counts as this call's: True. Locally the answer is exact: of several writers exactly one gets True.
        """
        return self._call("write", path, lambda checked: self._backend.put_if_absent(checked, data))

    def put(self, path: str, data: bytes) -> None:
        """Write or replace a whole object at once: a reader sees the old bytes or the new ones."""
        self._call("write", path, lambda checked: self._backend.put(checked, data))

    def put_stream(self, path: str, chunks: Iterable[bytes]) -> None:
        """Like `put`, from chunks, in flat memory. An error raised by `chunks` passes through; nothing is written."""
        self._call("write", path, lambda checked: self._backend.put_stream(checked, chunks), attempts=1)

    def read(self, path: str) -> bytes:
        """Return all bytes of an object. Raises MissingFile."""

        def read_all(checked: str) -> bytes:
            with self._backend.open_read(checked) as stream:
                return stream.read()

        return self._call("read", path, read_all)

    def open_read(self, path: str) -> BinaryIO:
        """Return an object opened for reading, to be closed by the caller. Raises MissingFile."""
        return self._call("read", path, self._backend.open_read)

    def exists(self, path: str) -> bool:
        """Return whether something is there now, also when another process wrote it."""
        return self._call("look at", path, self._backend.exists)

    def list(self, folder: str = "") -> list[str]:
        """Return the sorted names of the files and folders directly in a folder, fresh; [] if it is not there."""
        names = self._call("list", folder, self._backend.list, may_be_root=True)
        return sorted(name for name in names if not name.startswith(_TEMPORARY_PREFIX))

    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is fine."""
        self._call("delete", path, self._backend.delete)

    def local_path(self, path: str) -> Path | None:
        """Return where the path lies on this machine's disk, or None for a store that is elsewhere."""
        checked = _checked_path(path, self.url, may_be_root=True)
        return self._backend.inside(checked) if isinstance(self._backend, _LocalBackend) else None

    def join(self, path: str) -> str:
        """Return the full path or URL, for messages."""
        return self._backend.describe(path)

    def _call(
        self, verb: str, path: str, function: Callable[[str], _T], attempts: int = 3, may_be_root: bool = False
    ) -> _T:
        checked = _checked_path(path, self.url, may_be_root)
        try:
            return _retrying(attempts)(function, checked)
        except RlabelError:
            raise
        except FileNotFoundError as error:
            raise MissingFile(f"{self.join(checked)}: there is no such file. Check the path.") from error
        except OSError as error:
            raise StorageError(f"{self.join(checked)}: cannot {verb} it ({error}). {_remedy(error)}") from error


def split_url(url: str | os.PathLike[str]) -> tuple[Store, str]:
    """Return the store of a file's folder and the file's name in it, for a file that the user named by path or URL.

    A local symbolic link is followed first: the user named it, so it may lead anywhere.
    """
    text = os.fspath(url)
    parent = Store.open(text)
    if isinstance(parent._backend, _LocalBackend):
        return Store.open(parent._backend.root.parent), parent._backend.root.name
    folder, _, name = text.rpartition("/")
    return Store.open(folder), name


def read_url(url: str | os.PathLike[str]) -> bytes:
    """Return all bytes of one file that the user named by path or URL. Raises MissingFile, StorageError, UsageError."""
    store, name = split_url(url)
    return store.read(name)


def open_url(url: str | os.PathLike[str]) -> BinaryIO:
    """Return one file that the user named by path or URL, opened for reading. Raises as `read_url`."""
    store, name = split_url(url)
    return store.open_read(name)


class _LocalBackend:
    """A folder of this machine, or one mounted on it."""

    def __init__(self, root: Path) -> None:
        self.root = root  # already resolved: a root that is itself a symbolic link is the user's choice

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
        if target.exists():
            return False
        temporary = _written_temporary(target, [data])
        try:
            # A link fails if the name is taken, and it shows the object only when it is whole: both at once.
            os.link(temporary, target)
            return True
        except FileExistsError:
            # NFS may repeat a request whose reply was lost and then meet its own link: the same inode is ours.
            return os.path.samestat(os.stat(temporary), os.stat(target))
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise StorageError(
                f"{target}: this filesystem has no hard links ({error}), so a file cannot be committed exactly once "
                "on it. Choose an --out on a local disk, on NFS or in an object store."
            ) from error
        finally:
            _remove_quietly(temporary)

    def put(self, path: str, data: bytes) -> None:
        self.put_stream(path, [data])

    def put_stream(self, path: str, chunks: Iterable[bytes]) -> None:
        target = self.inside(path)
        temporary = _written_temporary(target, chunks)
        try:
            os.replace(temporary, target)
        except BaseException:
            _remove_quietly(temporary)
            raise

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
        self.inside(path).unlink(missing_ok=True)


class _RemoteBackend:
    """An object store, or any other fsspec filesystem. Only a write made as one request is whole or absent there."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, root: str) -> None:
        self.filesystem: Any = filesystem  # fsspec ships no types
        self.root = root.rstrip("/")

    def describe(self, path: str) -> str:
        return str(self.filesystem.unstrip_protocol(self.inside(path)))

    def inside(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def put_if_absent(self, path: str, data: bytes) -> bool:
        target = self.inside(path)
        if not _creates_exclusively(self.filesystem):
            raise StorageError(
                f"{self.describe(path)}: this kind of storage cannot write a file only if it is absent, so results "
                "could be lost or doubled. Choose an --out on a local disk or in S3, GCS or Azure storage."
            )
        try:
            _driver(lambda: self.filesystem.pipe_file(target, data, mode="create"))
            return True
        except OSError:
            # "Exists" may be one's own write whose reply was lost, and so may a timeout: what is there decides.
            there = self._read_or_none(target)
            if there is None:
                raise
            return there == data

    def _read_or_none(self, target: str) -> bytes | None:
        self.filesystem.invalidate_cache()
        try:
            return cast(bytes, _driver(lambda: self.filesystem.cat_file(target)))
        except FileNotFoundError:
            return None

    def put(self, path: str, data: bytes) -> None:
        _driver(lambda: self.filesystem.pipe_file(self.inside(path), data))

    def put_stream(self, path: str, chunks: Iterable[bytes]) -> None:
        # Never `with filesystem.open(target, "wb")`: an exception inside commits what was written so far.
        with tempfile.NamedTemporaryFile(prefix=_TEMPORARY_PREFIX) as spool:
            for chunk in chunks:
                spool.write(chunk)
            spool.flush()
            _retrying(3)(_driver, lambda: self.filesystem.put_file(spool.name, self.inside(path)))

    def open_read(self, path: str) -> BinaryIO:
        return cast(BinaryIO, _driver(lambda: self.filesystem.open(self.inside(path), "rb")))

    def exists(self, path: str) -> bool:
        self.filesystem.invalidate_cache()
        return bool(_driver(lambda: self.filesystem.exists(self.inside(path))))

    def list(self, folder: str) -> list[str]:
        self.filesystem.invalidate_cache()
        target = self.inside(folder)
        try:
            found = _driver(lambda: self.filesystem.ls(target, detail=False))
        except FileNotFoundError:
            return []
        # An object store may list the folder's own marker object; its name is empty or the folder's own.
        own = target.strip("/")
        return [posixpath.basename(name.rstrip("/")) for name in found if name.strip("/") != own]

    def delete(self, path: str) -> None:
        try:
            _driver(lambda: self.filesystem.rm_file(self.inside(path)))
        except OSError:
            if self.exists(path):
                raise


def _checked_path(path: str, url: str, may_be_root: bool = False) -> str:
    """Return the path without empty and "." parts. Raises PathRefused for one that could name anything outside."""
    reason = None
    if "\0" in path:
        reason = "it holds a NUL character"
    elif path.startswith(("/", "\\")) or (len(path) > 1 and path[1] == ":" and path[0].isalpha()):
        reason = "it is absolute"
    elif "://" in path or "::" in path:
        reason = "it names a protocol"
    elif ".." in path.replace("\\", "/").split("/"):
        reason = 'it holds ".."'
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if reason is None and not parts and not may_be_root:
        reason = "it is empty"
    if reason is not None:
        raise PathRefused(f"path {path[:200]!r} in {url}: refused, since {reason}. Use a path relative to that folder.")
    return "/".join(parts)


def _written_temporary(target: Path, chunks: Iterable[bytes]) -> Path:
    """Return a whole, synced file beside the target; on any failure nothing stays.

    The folder itself is not synced: after a power cut a name may be missing, which a resumed run makes again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{_TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        _remove_quietly(temporary)
        raise
    return temporary


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the first error is the one to report; listings hide temporary names


def _driver(function: Callable[[], _T]) -> _T:
    """Call a filesystem driver; errors of its own kind (botocore's, aiohttp's) come out as OSError."""
    try:
        return function()
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _retrying(attempts: int) -> Retrying:
    return Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        retry=retry_if_exception(_may_pass),
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, FileExistsError | FileNotFoundError | PermissionError):
        return False
    return isinstance(error, OSError) and error.errno not in _NEVER_PASSES


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space and run the same command again: what is committed stays."
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return "Check the permissions, or choose another folder."
    return "Check the path and the connection, then run the same command again: what is committed stays."


def _is_process_private(filesystem: object) -> bool:
    """Return whether only this process sees the files, also behind a wrapping filesystem such as `dir::memory://`."""
    if isinstance(filesystem, MemoryFileSystem):
        return True
    inner = getattr(filesystem, "fs", None)
    return inner is not None and inner is not filesystem and _is_process_private(inner)


def _creates_exclusively(filesystem: fsspec.AbstractFileSystem) -> bool:
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
