"""The `Store` that the other rooms use: relative paths, checked; errors that say what to do; what can pass is tried again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from fsspec.compression import compr
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression

from rlabel.errors import RlabelError, UsageError
from rlabel.storage.local import TEMPORARY_PREFIX, LocalBackend
from rlabel.storage.remote import RemoteBackend, is_process_private, open_filesystem
from rlabel.storage.trouble import REMOTE_PATIENCE_S, PathRefused, retrying, trouble

_T = TypeVar("_T")


class Store:
    """A folder at a URL. Every `path` is relative to it and "/"-separated; pickles by its URL.

    Every method raises StorageError (MissingFile where a file to be read is not there, PathRefused for a path that
    would leave the folder). Errors that can pass are tried again before that: three times on a local disk, elsewhere
    for `trouble.REMOTE_PATIENCE_S` and the last attempt's own timeouts.
    """

    def __init__(self, url: str, backend: LocalBackend | RemoteBackend, is_process_private: bool) -> None:
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
            filesystem, root = open_filesystem(text)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"{text}: this kind of storage cannot be opened ({error}). Install its fsspec driver "
                "(s3fs, gcsfs, adlfs, ...) or give another URL."
            ) from error
        if isinstance(filesystem, LocalFileSystem):
            local = LocalBackend(Path(os.path.realpath(root)))
            return cls(str(local.root), local, False)
        return cls(text, RemoteBackend(filesystem, root, REMOTE_PATIENCE_S), is_process_private(filesystem))

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return (Store.open, (self.url,))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def check_can_commit(self) -> None:
        """Make sure that `put_if_absent` keeps its promise here, by a file that is written, met and removed: some milliseconds.

        Raises StorageError with the reason: a kind of storage or filesystem that cannot do it, a server that ignores
        the condition, a place that is full, not to be written to or not to be reached.
        """
        self._call("write", "", lambda _: self._backend.check_can_commit(), once=True, may_be_root=True)

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
        self._call("write", path, lambda checked: self._backend.put_stream(checked, chunks), once=True)

    def read(self, path: str) -> bytes:
        """Return all bytes of an object. Raises MissingFile."""
        return self._call("read", path, self._backend.read)

    def read_start(self, path: str, num_bytes: int) -> bytes:
        """Return the first bytes of an object, so many at most, as they were at one moment. Raises MissingFile.

        For files whose length is nobody's promise: to see whether one is too long, ask for a byte more.
        """
        return self._call("read", path, lambda checked: self._backend.read_start(checked, num_bytes))

    def open_read(self, path: str) -> BinaryIO:
        """Return an object opened for reading, to be closed by the caller. Raises MissingFile.

        Where it is not on a local disk its reads are tried again too, and raise StorageError.
        """
        return self._call("read", path, self._backend.open_read)

    def exists(self, path: str) -> bool:
        """Return whether something is there now, also when another process wrote it."""
        return self._call("look at", path, self._backend.exists)

    def list(self, folder: str = "") -> list[str]:
        """Return the sorted names of the files and folders directly in a folder, fresh; [] if it is not there."""
        names = self._call("list", folder, self._backend.list, may_be_root=True)
        return sorted(name for name in names if not name.startswith(TEMPORARY_PREFIX))

    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is fine."""
        self._call("delete", path, self._backend.delete)

    def remove_leftovers(self, folder: str = "", older_than_s: float = 0.0) -> int:
        """Remove what killed writers left half-written in a folder, if it was last written so many seconds ago; return how many.

        A file whose writer is alive is locked and stays. Where a filesystem has no locks it may go: `put_if_absent` and
        `put` then write it anew, and `put_stream` says that it could not be written.
        """
        return self._call(
            "tidy", folder, lambda checked: self._backend.remove_leftovers(checked, older_than_s), may_be_root=True
        )

    def local_path(self, path: str) -> Path | None:
        """Return where the path lies on this machine's disk, or None for a store that is elsewhere."""
        checked = _checked_path(path, self.url, may_be_root=True)
        return self._backend.inside(checked) if isinstance(self._backend, LocalBackend) else None

    def join(self, path: str) -> str:
        """Return the full path or URL, for messages."""
        return self._backend.describe(path)

    def _call(
        self, verb: str, path: str, function: Callable[[str], _T], once: bool = False, may_be_root: bool = False
    ) -> _T:
        checked = _checked_path(path, self.url, may_be_root)
        patience_s = None if isinstance(self._backend, LocalBackend) else self._backend.patience_s
        try:
            if once:
                return function(checked)
            return retrying(patience_s, self.join(checked))(function, checked)
        except RlabelError:
            raise
        except OSError as error:
            raise trouble(error, self.join(checked), verb, is_local=patience_s is None) from error


def split_url(url: str | os.PathLike[str]) -> tuple[Store, str]:
    """Return the store of a file's folder and the file's name in it, for a file that the user named by path or URL.

    A local symbolic link is followed first: the user named it, so it may lead anywhere.
    """
    text = os.fspath(url)
    parent = Store.open(text)
    place = parent.local_path("")
    if place is not None:
        return Store.open(place.parent), place.name
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


def unpacked(stream: BinaryIO, name: str) -> BinaryIO:
    """Return what is in a file that is compressed by its name (.gz, .bz2, .xz, .zip, ...), another file itself. Closing is left to the caller."""
    compression = infer_compression(name)
    return stream if compression is None else cast(BinaryIO, compr[compression](stream, mode="rb"))


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
