"""What a Store promises, on a local disk and on an object store played by fsspec's memory filesystem."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from rlabel.errors import StorageError, UsageError
from rlabel.storage import MissingFile, PathRefused, Store, open_url, read_url, split_url
from rlabel.storage.remote import RemoteBackend

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield Store.open(tmp_path / "run")
        return
    url = f"memory://{tmp_path.name}"
    yield Store.open(url)
    if MemoryFileSystem().exists(f"/{tmp_path.name}"):
        MemoryFileSystem().rm(f"/{tmp_path.name}", recursive=True)


class ObjectStore(MemoryFileSystem):
    """A remote store whose next write goes wrong as told; other writes work. Remembers how often it was asked."""

    cachable = False

    def __init__(self, trouble: str = "", times: int = 1) -> None:
        super().__init__()
        self.trouble, self.times, self.num_writes = trouble, times, 0

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.num_writes += 1
        go_wrong = self.times > 0
        self.times -= 1
        if go_wrong and self.trouble == "reply lost":
            super().pipe_file(path, value, mode=mode)
            raise TimeoutError("no reply")
        if go_wrong and self.trouble == "beaten":
            super().pipe_file(path, b"of another writer")
        if go_wrong and self.trouble == "busy":
            raise OSError("503 slow down")
        if go_wrong and self.trouble == "denied":
            raise PermissionError("403")
        if go_wrong and self.trouble == "driver bug":
            raise RuntimeError("botocore says no")
        super().pipe_file(path, value, mode=mode)


def remote(filesystem: MemoryFileSystem, tmp_path: Path, patience_s: float = 60.0) -> Store:
    return Store("test", RemoteBackend(filesystem, f"/{tmp_path.name}", patience_s), True)


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name.startswith(".")]


def test_what_was_put_is_read_back_and_listed(store: Store) -> None:
    store.put("a/b.txt", b"one")
    store.put("a/b.txt", b"two")
    store.put_stream("a/c.txt", [b"x", b"", b"y"])
    assert (store.read("a/b.txt"), store.read("./a//c.txt")) == (b"two", b"xy")
    assert (store.list(), store.list("a"), store.list("nowhere")) == (["a"], ["b.txt", "c.txt"], [])
    with store.open_read("a/c.txt") as stream:
        assert stream.read(1) == b"x"


def test_put_if_absent_keeps_the_first_object(store: Store) -> None:
    assert store.put_if_absent("shards/0", b"first")
    assert not store.put_if_absent("shards/0", b"second")
    assert store.read("shards/0") == b"first"


def test_a_missing_file_is_told_from_other_trouble(store: Store) -> None:
    assert not store.exists("nothing")
    for read in (store.read, store.open_read):
        with pytest.raises(MissingFile, match="nothing: there is no such file"):
            read("nothing")


def test_delete_is_fine_with_what_is_not_there(store: Store) -> None:
    store.put("x", b"")
    store.delete("x")
    store.delete("x")
    assert not store.exists("x")


def test_a_store_pickles_by_its_url(store: Store) -> None:
    store.put("x", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert (again.url, again.read("x"), again.join("x")) == (store.url, b"1", store.join("x"))


def test_a_relative_local_url_means_the_same_folder_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(Store.open("run"))
    monkeypatch.chdir("/")
    assert pickle.loads(data).local_path("x") == tmp_path / "run" / "x"


def test_only_a_store_of_this_process_says_so(tmp_path: Path) -> None:
    assert Store.open("memory://x").is_process_private
    assert Store.open("dir::memory://x").is_process_private
    assert not Store.open(tmp_path).is_process_private


@pytest.mark.parametrize("url", ["nosuchthing://bucket/x", "", "a\0b"])
def test_a_url_that_nobody_can_open_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        Store.open(url)


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "a/..",
        "..",
        "/etc/passwd",
        "\\\\host\\x",
        "..\\x",
        "C:/x",
        "a\0b",
        "s3://b/x",
        "x::y",
        "",
        ".",
    ],
)
def test_a_path_that_could_lead_out_is_refused(store: Store, path: str) -> None:
    for call in (store.read, store.open_read, store.exists, store.delete):
        with pytest.raises(PathRefused):
            call(path)
    with pytest.raises(PathRefused):
        store.put(path, b"")


@given(parts=st.lists(st.sampled_from(["..", ".", "", "a", "b.jpg", "\\", "c:", "~"]), max_size=6))
def test_no_accepted_path_leaves_the_root(parts: list[str]) -> None:
    store = Store.open("/nonexistent/root")
    try:
        accepted = store.local_path("/".join(parts))
    except PathRefused:
        return
    assert accepted is not None
    assert os.path.normpath(accepted) == str(accepted)
    assert str(accepted).startswith("/nonexistent/root")


def test_file_names_of_every_script_are_accepted(store: Store) -> None:
    for name in ("фото 写真 été ☂.jpg", "12:30 [a]*?.png", "..a", "a..b/c", "~"):
        store.put(name, name.encode())
        assert store.read(name) == name.encode()


def test_a_link_inside_the_root_is_followed_and_one_that_leaves_it_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "images"
    (root / "real").mkdir(parents=True)
    (root / "real" / "a.jpg").write_bytes(b"ok")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "inside").symlink_to(root / "real")
    (root / "outside.jpg").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    store = Store.open(root)
    assert store.read("inside/a.jpg") == b"ok"
    for path in ("outside.jpg", "up/secret"):
        with pytest.raises(PathRefused, match="symbolic link that leads out"):
            store.read(path)
    with pytest.raises(PathRefused):
        store.put("up/new", b"")


def test_a_root_that_is_itself_a_link_is_the_users_choice(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    Store.open(tmp_path / "run").put("x", b"1")
    assert (tmp_path / "disk" / "x").read_bytes() == b"1"


def test_a_pipe_is_refused_instead_of_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PathRefused, match="not a regular file"):
        Store.open(tmp_path).read("pipe.jpg")


def test_new_files_get_the_users_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    store = Store.open(tmp_path)
    store.put("a", b"")
    store.put_if_absent("b", b"")
    assert {(tmp_path / name).stat().st_mode for name in "ab"} == {(tmp_path / "plain").stat().st_mode}


def test_a_file_named_by_the_user_is_read_through_any_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.json").write_bytes(b"{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "x.json")
    assert read_url(tmp_path / "link.json") == b"{}"
    Store.open(f"memory://{tmp_path.name}").put("y.json", b"[]")
    assert split_url(f"memory://{tmp_path.name}/y.json")[1] == "y.json"
    with open_url(f"memory://{tmp_path.name}/y.json") as stream:
        assert stream.read() == b"[]"
    with pytest.raises(MissingFile):
        read_url(tmp_path / "nothing.json")


# Writes that go wrong


def failing_chunks() -> Iterator[bytes]:
    yield b"x" * 100_000
    raise ZeroDivisionError


def test_an_error_while_streaming_passes_through_and_leaves_the_old_object(store: Store, tmp_path: Path) -> None:
    store.put("labels.json", b"old")
    with pytest.raises(ZeroDivisionError):
        store.put_stream("labels.json", failing_chunks())
    assert store.read("labels.json") == b"old"
    assert not temporaries(tmp_path)


def test_a_full_disk_leaves_nothing_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_tries = 0

    def full(descriptor: int) -> None:
        nonlocal num_tries
        num_tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store = Store.open(tmp_path)
    for write in (store.put_if_absent, store.put):
        with pytest.raises(StorageError, match="Free some space"):
            write("shards/000000.jsonl", b"x" * 5000)
    assert num_tries == 2, "a full disk does not pass by itself, so it is not tried again"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_write_that_the_kernel_cuts_off_leaves_no_short_file(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from rlabel.storage import Store; from rlabel.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "store = Store.open(sys.argv[1]); store.put_if_absent('small', b'x' * 9_000)\n"
        "for write in (store.put, store.put_if_absent):\n"
        "    try: write('large', b'x' * 11_000)\n"
        "    except StorageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.count("cannot write it") == 2, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_an_own_link_whose_reply_was_lost_counts_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_link = os.link

    def link_twice(source: Path, target: Path) -> None:
        real_link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link_twice)
    assert Store.open(tmp_path).put_if_absent("x", b"1")


def test_an_unwritable_place_is_a_storage_error_naming_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/x: cannot write it"):
        Store.open(tmp_path).put("file/x", b"")


def test_a_lost_reply_to_ones_own_write_counts_as_written(tmp_path: Path) -> None:
    filesystem = ObjectStore("reply lost")
    assert remote(filesystem, tmp_path).put_if_absent("x", b"mine")


def test_another_writers_object_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    store = remote(ObjectStore("beaten"), tmp_path)
    assert not store.put_if_absent("x", b"mine")
    assert store.read("x") == b"of another writer"


def test_trouble_that_passes_is_waited_for_as_long_as_told(tmp_path: Path) -> None:
    assert remote(ObjectStore("busy", times=5), tmp_path).put_if_absent("x", b"1")
    filesystem, start = ObjectStore("busy", times=10**6), time.monotonic()
    with pytest.raises(StorageError, match=f"{tmp_path.name}/y: cannot write it .503 slow down.*connection"):
        remote(filesystem, tmp_path, patience_s=0.3).put("y", b"1")
    assert filesystem.num_writes >= 2
    assert time.monotonic() - start < 20


def test_what_may_be_a_wrong_setting_is_tried_three_times(tmp_path: Path) -> None:
    remote(ObjectStore("driver bug", times=2), tmp_path).put("x", b"2")
    filesystem = ObjectStore("driver bug", times=9)
    with pytest.raises(StorageError, match="RuntimeError: botocore says no"):
        remote(filesystem, tmp_path).put("y", b"1")
    assert filesystem.num_writes == 3


def test_trouble_that_stays_is_not_tried_again(tmp_path: Path) -> None:
    filesystem = ObjectStore("denied", times=9)
    with pytest.raises(StorageError, match="permissions"):
        remote(filesystem, tmp_path).put("y", b"1")
    assert filesystem.num_writes == 1


def test_a_driver_that_cannot_create_exclusively_is_refused(tmp_path: Path) -> None:
    class Sloppy(MemoryFileSystem):
        cachable = False

        def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
            super().pipe_file(path, value)

    with pytest.raises(StorageError, match="only if it is absent"):
        remote(Sloppy(), tmp_path).put_if_absent("x", b"1")
    with pytest.raises(StorageError, match="only if it is absent"):
        Store.open("https://example.invalid/folder").put_if_absent("x", b"1")


def test_listings_are_fresh_after_another_process_wrote(tmp_path: Path) -> None:
    class Caching(MemoryFileSystem):
        """Keeps listings, as drivers of object stores do, until it is told to forget them."""

        cachable = False
        kept: dict[str, Any] = {}

        def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
            return self.kept.setdefault(f"{path} {detail}", super().ls(path, detail=detail))

        def invalidate_cache(self, path: str | None = None) -> None:
            self.kept.clear()

    store, other = remote(Caching(), tmp_path), remote(MemoryFileSystem(), tmp_path)
    other.put("a", b"")
    assert store.list() == ["a"]
    other.put("b", b"")
    assert store.list() == ["a", "b"]


def _write_all(root: str, writer: int, num_names: int, barrier: Any, wins: Any) -> None:
    store = Store.open(root)
    for name in range(num_names):
        barrier.wait(timeout=30)
        if store.put_if_absent(f"shards/{name}", bytes([writer]) * 50_000):
            wins.put((name, writer))


def test_of_several_processes_writing_one_name_exactly_one_wins_whole(tmp_path: Path) -> None:
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    num_writers, num_names = 3, 15
    wins, barrier = context.Queue(), context.Barrier(num_writers)
    workers = [
        context.Process(target=_write_all, args=(str(tmp_path), writer, num_names, barrier, wins))
        for writer in range(num_writers)
    ]
    for worker in workers:
        worker.start()
    winners = dict(wins.get(timeout=60) for _ in range(num_names))
    for worker in workers:
        worker.join(timeout=60)
    assert wins.empty()
    assert [worker.exitcode for worker in workers] == [0] * num_writers
    store = Store.open(tmp_path)
    assert {name: store.read(f"shards/{name}") for name in range(num_names)} == {
        name: bytes([writer]) * 50_000 for name, writer in winners.items()
    }
    assert not temporaries(tmp_path)
