"""Which stores are refused before a run begins, what killed writers leave behind, and disks that are full for a while."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from label_factories import Setup, outputs, rlabel_here, save_model
from rlabel.errors import StorageError
from rlabel.storage import Store
from rlabel.storage.remote import RemoteBackend

REPOSITORY = Path(__file__).resolve().parent.parent


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Refused at the start


def test_a_folder_that_can_commit_is_left_as_it_was(tmp_path: Path) -> None:
    Store.open(tmp_path).check_can_commit()
    Store.open(tmp_path / "not" / "there").check_can_commit()
    assert list(tmp_path.iterdir()) == []
    url = f"memory://{tmp_path.name}"
    Store.open(url).check_can_commit()
    assert not MemoryFileSystem().exists(f"/{tmp_path.name}")


def test_a_disk_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(source: object, target: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(StorageError, match="no hard links.*Choose an --out on a local disk"):
        Store.open(tmp_path / "run").check_can_commit()
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_a_commit_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(StorageError, match="no hard links"):
        Store.open(tmp_path).put_if_absent("x", b"1")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(StorageError, match="/run.*cannot write it"):
        Store.open(tmp_path / "run").check_can_commit()


def test_kinds_of_storage_that_cannot_commit_are_refused_without_asking_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a", "1")
    for url in (
        "https://example.invalid/run",
        f"zip://run::{tmp_path}/x.zip",
        f"simplecache::memory://{tmp_path.name}",
    ):
        with pytest.raises(StorageError, match="only if it is absent.*Choose an --out"):
            Store.open(url).check_can_commit()


def test_a_store_that_takes_the_condition_and_replaces_all_the_same_is_refused(tmp_path: Path) -> None:
    class Forgetful(MemoryFileSystem):
        cachable = False

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
            super().pipe_file(path, value)

    store = Store("test", RemoteBackend(Forgetful(), f"/{tmp_path.name}", 5.0), False)
    with pytest.raises(StorageError, match="replaced a file that was to be written only if absent"):
        store.check_can_commit()
    assert not MemoryFileSystem().exists(f"/{tmp_path.name}")


# What killed writers leave


def test_leftovers_of_a_killed_writer_go_when_they_are_old_enough(tmp_path: Path) -> None:
    script = (
        "import os, sys; from rlabel.storage import Store\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), 9)\n"
        "Store.open(sys.argv[1]).put_if_absent('shards/000000.jsonl', b'x' * 5000)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, timeout=120)
    assert done.returncode == -9
    (left,) = (tmp_path / "shards").iterdir()
    store = Store.open(tmp_path)
    store.put("shards/000001.jsonl", b"whole")
    assert store.list("shards") == ["000001.jsonl"]
    assert store.remove_leftovers("shards", older_than_s=3600) == 0
    assert left.exists()
    os.utime(left, (time.time() - 7200,) * 2)
    assert store.remove_leftovers("shards", older_than_s=3600) == 1
    assert files(tmp_path) == ["shards/000001.jsonl"]
    assert store.remove_leftovers("nowhere") == 0


def test_what_a_living_writer_is_at_is_no_leftover(tmp_path: Path) -> None:
    store, other = Store.open(tmp_path), Store.open(tmp_path)

    def chunks() -> Iterator[bytes]:
        yield b"one "
        for path in tmp_path.iterdir():
            os.utime(path, (0, 0))
        assert other.remove_leftovers() == 0
        yield b"two"

    store.put_stream("labels.json", chunks())
    assert store.read("labels.json") == b"one two"
    assert files(tmp_path) == ["labels.json"]


def removing_before(call: str, times: int) -> Callable[..., None]:
    """Return os.link or os.replace as it is where somebody removes the temporary file before it, so many times."""
    real, left = getattr(os, call), [times]

    def done(source: Path, target: Path) -> None:
        if left[0] > 0:
            left[0] -= 1
            Path(source).unlink()
        real(source, target)

    return done


def test_a_commit_whose_temporary_vanished_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path)
    monkeypatch.setattr(os, "link", removing_before("link", 3))
    monkeypatch.setattr(os, "replace", removing_before("replace", 3))
    assert store.put_if_absent("a", b"1")
    store.put("b", b"2")
    assert (store.read("a"), store.read("b"), files(tmp_path)) == (b"1", b"2", ["a", "b"])


def test_a_commit_whose_temporary_vanished_sees_who_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(source: Path, target: Path) -> None:
        Path(source).unlink()
        Path(target).write_bytes(b"of another")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    assert not Store.open(tmp_path).put_if_absent("a", b"1")
    assert files(tmp_path) == ["a"]


def test_a_temporary_that_vanishes_each_time_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path)
    monkeypatch.setattr(os, "link", removing_before("link", 10**6))
    monkeypatch.setattr(os, "replace", removing_before("replace", 10**6))
    for write in (store.put_if_absent, store.put):
        with pytest.raises(StorageError, match="/a: cannot write it .*was removed"):
            write("a", b"1")
    with pytest.raises(StorageError, match="/a: cannot write it .*was removed"):
        store.put_stream("a", [b"1"])
    assert files(tmp_path) == []


# Full disks


@contextmanager
def no_space_after(num_writes: int, error: int = errno.ENOSPC) -> Iterator[None]:
    """Let this process's synced writes fail as on a full disk, after the first ones."""
    sync, left = os.fsync, [num_writes]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(error, os.strerror(error))
        sync(descriptor)

    with mock.patch("os.fsync", full):
        yield


@pytest.mark.parametrize(("error", "word"), [(errno.ENOSPC, "disk full"), (errno.EDQUOT, "quota")])
def test_every_write_to_a_full_disk_says_so_and_leaves_the_old_file(tmp_path: Path, error: int, word: str) -> None:
    store = Store.open(tmp_path)
    store.put("labels.json", b"old")
    message = f"{tmp_path}/.*: cannot write it: .*{word}.*Free some space and run the same command again"
    with no_space_after(0, error):
        for write in (
            lambda: store.put("labels.json", b"new"),
            lambda: store.put_stream("labels.json", [b"n", b"ew"]),
            lambda: store.put_if_absent("shards/0", b"new"),
        ):
            with pytest.raises(StorageError, match=message):
                write()
        with pytest.raises(StorageError, match=word):
            store.check_can_commit()
    assert (files(tmp_path), store.read("labels.json")) == (["labels.json"], b"old")


def test_a_tiny_full_filesystem_holds_whole_objects_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.name != "posix" or os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small filesystem needs root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        store, written = Store.open(disk), 0
        with pytest.raises(StorageError, match="Free some space"):
            for index in range(100):
                written += store.put_if_absent(f"{index:06d}", b"x" * 7000)
        sizes = [path.stat().st_size for path in disk.iterdir()]
        assert sizes == [7000] * written
        assert written >= 4
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_temporary_folder_is_told_from_a_full_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, **_: object) -> None:
            self.name = "/small/.rlabel-tmp-x"

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", Full)
    with pytest.raises(StorageError, match=f"^/small/.rlabel-tmp-x: disk full .*memory://.*{tmp_path.name}.*TMPDIR"):
        Store.open(f"memory://{tmp_path.name}").put_stream("labels.json", [b"x"])


def test_a_run_on_a_disk_that_is_full_now_and_then_ends_with_the_bytes_of_another(tmp_path: Path) -> None:
    setup = Setup(tmp_path, save_model(tmp_path / "model"), 3)
    out, stops = tmp_path / "run", 0
    while True:
        with no_space_after(6):
            done = rlabel_here("label", setup.arguments(out, no_ray=True))
        if done.returncode == 0:
            break
        stops += 1
        assert done.returncode == 1
        assert "disk full" in done.stderr
        assert "run the same command again" in done.stderr
        assert not [name for name in files(out) if ".rlabel-tmp-" in name]
        assert stops < 20
    assert stops >= 2
    assert rlabel_here("label", setup.arguments(tmp_path / "other", no_ray=True)).returncode == 0
    assert outputs(out) == outputs(tmp_path / "other")


def test_a_store_that_cannot_hold_a_run_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    setup = Setup(tmp_path, save_model(tmp_path / "model"), 1)
    done = rlabel_here("label", setup.arguments("https://example.invalid/run", no_ray=True))
    assert done.returncode == 1
    assert "https://example.invalid/run: this kind of storage cannot write a file only if it is absent" in done.stderr
