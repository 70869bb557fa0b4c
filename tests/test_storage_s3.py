"""A Store on a real S3 client and server (s3fs, moto on loopback), also through a network that refuses, loses and stalls."""

from __future__ import annotations

import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

from label_factories import Setup, outputs, rlabel_here, save_model
from rlabel.errors import StorageError
from rlabel.storage import MissingFile, Store, open_url, read_url
from rlabel.storage.remote import RemoteBackend
from s3_factories import BUCKET, Faults, FaultyProxy, reachable, s3_server

Network = Callable[..., FaultyProxy]


@pytest.fixture(scope="module")
def proxy_of_all() -> Iterator[FaultyProxy]:
    with s3_server() as address:
        proxy = FaultyProxy(*address)
        yield proxy
        proxy.close()


@pytest.fixture
def network(proxy_of_all: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Give a function that puts a network with faults before the server, for all that follows; config: of the client."""
    monkeypatch.setattr("rlabel.storage.trouble._MAX_WAIT_S", 0.2)
    with ExitStack() as stack:

        def begin(faults: Faults | None = None, **config: object) -> FaultyProxy:
            proxy_of_all.reset(faults)
            # One attempt a request, so that it is rlabel's patience that is tested; the same client for all tests.
            stack.enter_context(reachable(proxy_of_all.url, **{"retries": {"total_max_attempts": 1}, **config}))
            return proxy_of_all

        yield begin


def a_folder(tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}"


def impatient(url: str, patience_s: float = 1.0) -> Store:
    store = Store.open(url)
    assert isinstance(store._backend, RemoteBackend)
    store._backend.patience_s = patience_s
    return store


def test_all_that_a_store_promises_holds_on_s3(network: Network, tmp_path: Path) -> None:
    network()
    store = Store.open(a_folder(tmp_path))
    assert (store.list(), store.exists("a"), store.is_process_private, store.local_path("a")) == (
        [],
        False,
        False,
        None,
    )
    assert store.put_if_absent("shards/0", b"first")
    assert not store.put_if_absent("shards/0", b"second")
    store.put("shards/1", b"old")
    store.put("shards/1", b"new and longer")
    store.put_stream("фото ☂.jpg", [b"x" * 1000, b"", b"y"])
    again = pickle.loads(pickle.dumps(store))
    assert (again.read("shards/0"), again.read("shards/1")) == (b"first", b"new and longer")
    assert (again.list(), again.list("shards"), again.list("nowhere")) == (["shards", "фото ☂.jpg"], ["0", "1"], [])
    with again.open_read("фото ☂.jpg") as stream:
        assert stream.seek(0, 2) == 1001
        assert (stream.seek(999), stream.read(), stream.read(1)) == (999, b"xy", b"")
    for read in (store.read, store.open_read):
        with pytest.raises(MissingFile, match=f"s3://{BUCKET}/.*nothing: there is no such file"):
            read("nothing")
    store.delete("shards/0")
    store.delete("shards/0")
    assert not store.exists("shards/0")
    assert read_url(store.join("shards/1")) == b"new and longer"


def test_what_another_client_writes_is_seen_at_once(network: Network, tmp_path: Path) -> None:
    network()
    store, other = Store.open(a_folder(tmp_path)), Store.open(f"s3a://{BUCKET}/{tmp_path.name}")
    other.put("beat", b"1")
    assert store.list() == ["beat"]
    with store.open_read("beat") as stream:
        assert stream.read() == b"1"
    other.put("beat", b"longer")
    other.put("second", b"")
    assert store.list() == ["beat", "second"]
    with store.open_read("beat") as stream:
        assert stream.read() == b"longer"
    with open_url(store.join("second")) as stream:
        assert stream.read() == b""


def test_of_several_writers_of_one_name_all_but_one_are_told(network: Network, tmp_path: Path) -> None:
    network()
    won: list[int] = []

    def write(writer: int) -> None:
        if Store.open(a_folder(tmp_path)).put_if_absent("x", bytes([writer]) * 1000):
            won.append(writer)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(won) == 1
    assert Store.open(a_folder(tmp_path)).read("x") == bytes(won) * 1000


def test_a_file_replaced_between_opening_and_reading_is_read_as_it_is_now(network: Network, tmp_path: Path) -> None:
    network()
    store = impatient(a_folder(tmp_path), 20.0)
    store.put("beat", b"0000")
    with store.open_read("beat") as stream:
        store.put("beat", b"0001")
        assert stream.read() == b"0001"


@pytest.mark.parametrize("faults", [Faults(refused=0.3, lost=0.1, seed=1), Faults(lost=0.4, seed=2)])
def test_writes_and_reads_come_through_a_bad_network(network: Network, tmp_path: Path, faults: Faults) -> None:
    proxy = network(faults)
    store = Store.open(a_folder(tmp_path))
    for number in range(6):
        assert store.put_if_absent(f"{number:02d}", b"%d" % number), "a lost reply to one's own write counts as written"
        assert not store.put_if_absent(f"{number:02d}", b"other")
        store.put("status", b"%d" % number)
    store.put_stream("labels.json", [b"0123456789"] * 1000)
    assert store.list() == [*(f"{number:02d}" for number in range(6)), "labels.json", "status"]
    assert [store.read(f"{number:02d}") for number in range(6)] == [b"%d" % number for number in range(6)]
    with store.open_read("labels.json") as stream:
        assert stream.read() == b"0123456789" * 1000
    store.delete("status")
    assert not store.exists("status")
    assert proxy.num_faults > 5


def test_an_upload_in_parts_whose_last_reply_is_lost_is_sent_anew(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs.core

    proxy = network(retries={"total_max_attempts": 3})
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, chunksize=None: 5 * 2**20)
    store = Store.open(a_folder(tmp_path))
    lost = iter(["passed", "lost"])  # POST begins the upload, and POST ends it

    def draw(method: str, path: str) -> str:
        return next(lost, "passed") if method == "POST" else "passed"

    proxy.draw = draw  # type: ignore[method-assign]
    store.put_stream("labels.json", [b"x" * 2**20] * 11)
    assert next(lost, None) is None, "the reply that was to be lost was never asked for"
    assert len(store.read("labels.json")) == 11 * 2**20


def test_a_stalled_request_ends_and_is_tried_again(network: Network, tmp_path: Path) -> None:
    proxy = network(Faults(stalled=1.0, stall_s=30.0), read_timeout=0.3)
    store, start = impatient(a_folder(tmp_path), 0.5), time.monotonic()
    with pytest.raises(StorageError, match=f"s3://{BUCKET}/.*/x: cannot read it .*[Tt]imeout.*connection"):
        store.read("x")
    assert time.monotonic() - start < 15, "the client's own read_timeout counts"
    proxy.faults = replace(proxy.faults, stalled=0.5, stall_s=1.0)
    store = impatient(a_folder(tmp_path), 60.0)
    assert store.put_if_absent("x", b"1")
    assert store.read("x") == b"1"


def test_a_dead_server_is_given_up_in_time_with_its_url(network: Network, tmp_path: Path) -> None:
    network()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    start = time.monotonic()
    with reachable(nobody, retries={"total_max_attempts": 1}):
        for call in (lambda store: store.put("x", b""), lambda store: store.list(), Store.check_can_commit):
            with pytest.raises(
                StorageError, match=f"s3://{BUCKET}/.*Check the URL, the credentials and the connection"
            ):
                call(impatient(a_folder(tmp_path), 0.3))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "InvalidRequest"), (404, "NoSuchBucket")])
def test_what_does_not_pass_is_not_tried_for_long(network: Network, tmp_path: Path, status: int, code: str) -> None:
    proxy = network()
    answer_with(proxy, status, code)
    with pytest.raises(StorageError, match="cannot write it"):
        Store.open(a_folder(tmp_path)).put("x", b"1")
    assert proxy.counts["refused"] == (3 if status == 404 else 1)


def test_bytes_damaged_on_their_way_are_sent_again(network: Network, tmp_path: Path) -> None:
    proxy = network()
    answer_with(proxy, 400, "BadDigest", times=2)
    store = Store.open(a_folder(tmp_path))
    store.put("x", b"1")
    assert (store.read("x"), proxy.counts["refused"]) == (b"1", 2)


def answer_with(proxy: FaultyProxy, status: int, code: str, times: int = 10**6) -> None:
    """Let a proxy answer its next PUTs with an error of S3."""
    left = [times]

    def draw(method: str, path: str) -> str:
        if method != "PUT" or not left[0]:
            return "passed"
        left[0] -= 1
        proxy.counts["refused"] += 1
        return f"{status} {code}"

    proxy.draw = draw  # type: ignore[method-assign]


# Stores that cannot hold a run


def test_s3_can_commit_and_keeps_nothing_of_the_question(network: Network, tmp_path: Path) -> None:
    network(Faults(lost=0.2, refused=0.2, seed=3))
    store = Store.open(a_folder(tmp_path))
    store.check_can_commit()
    network()
    filesystem = store._backend.filesystem
    filesystem.invalidate_cache()
    assert not filesystem.exists(f"{BUCKET}/{tmp_path.name}")


def test_a_server_that_forgets_the_condition_is_refused(network: Network, tmp_path: Path) -> None:
    proxy = network()
    proxy.dropped_headers = frozenset({"if-none-match"})
    with pytest.raises(StorageError, match=f"s3://{BUCKET}/.*replaced a file that was to be written only if absent"):
        Store.open(a_folder(tmp_path)).check_can_commit()


def test_a_server_without_conditional_writes_is_refused(network: Network, tmp_path: Path) -> None:
    answer_with(network(), 501, "NotImplemented")
    with pytest.raises(StorageError, match="refuses conditional writes"):
        Store.open(a_folder(tmp_path)).check_can_commit()


# Whole runs


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("label")
    return Setup(folder, save_model(folder / "model"), 4)


@pytest.fixture(scope="module")
def expected(setup: Setup) -> dict[str, bytes]:
    """The files of a run on this machine's disk."""
    local = rlabel_here("label", setup.arguments(setup.folder / "local", no_ray=True))
    assert local.returncode == 0, local.stderr
    return outputs(setup.folder / "local")


def uploaded(setup: Setup, folder: str) -> dict[str, str]:
    """Copy a corpus to a store; return the options that name it there."""
    store = Store.open(folder)
    for path in [setup.corpus / "regions.json", *(setup.corpus / "images").iterdir(), setup.vocabulary]:
        inside = path.relative_to(setup.corpus) if setup.corpus in path.parents else Path("names.json")
        store.put(str(inside), path.read_bytes())
    return {"images": f"{folder}/images", "regions": f"{folder}/regions.json", "vocabulary": f"{folder}/names.json"}


def on_s3(folder: str, names: list[str]) -> dict[str, bytes]:
    store = Store.open(folder)
    return {name: store.read(name) for name in names}


def test_a_run_from_s3_to_s3_gives_the_bytes_of_a_local_one_also_through_faults(
    network: Network, setup: Setup, expected: dict[str, bytes], tmp_path: Path
) -> None:
    network()
    corpus = uploaded(setup, f"{a_folder(tmp_path)}/corpus")
    proxy = network(
        Faults(refused=0.15, lost=0.1, stalled=0.02, stall_s=0.5, seed=4), retries={"total_max_attempts": 1}
    )
    out = f"{a_folder(tmp_path)}/run"
    done = rlabel_here("label", setup.arguments(out, no_ray=True, **corpus))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["file"] == f"{out}/labels.json"
    assert on_s3(out, list(expected)) == expected
    assert proxy.counts["refused"] > 5
    assert proxy.counts["lost"] > 1
    again = rlabel_here("label", setup.arguments(out, no_ray=True, **corpus))
    assert (again.returncode, "are there already" in again.stderr) == (0, True)
    assert on_s3(out, list(expected)) == expected


def test_a_run_whose_server_goes_away_stops_and_goes_on_later(
    network: Network, setup: Setup, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlabel.storage.store.REMOTE_PATIENCE_S", 0.3)
    proxy = network()
    out, num_shards = f"{a_folder(tmp_path)}/run", 0

    def draw(method: str, path: str) -> str:
        nonlocal num_shards
        num_shards += method == "PUT" and "/shards/" in path
        return "refused" if num_shards > 2 else "passed"

    proxy.draw = draw  # type: ignore[method-assign]
    stopped = rlabel_here("label", setup.arguments(out, no_ray=True, driver_expiry_s=1))
    assert stopped.returncode == 1
    assert f"rlabel: {out}" in stopped.stderr
    assert "what is committed stays" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    network()
    assert len(Store.open(out).list("shards")) == 2
    done = rlabel_here("label", setup.arguments(out, no_ray=True, driver_expiry_s=1))
    assert done.returncode == 0, done.stderr
    assert on_s3(out, list(expected)) == expected


def test_a_store_of_pictures_that_goes_away_is_no_failure_of_the_pictures(
    network: Network,
    setup: Setup,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlabel.storage.store.REMOTE_PATIENCE_S", 0.3)
    proxy = network()
    images = uploaded(setup, f"{a_folder(tmp_path)}/corpus")["images"]
    proxy.draw = lambda method, path: "refused" if "0003.png" in path else "passed"  # type: ignore[method-assign]
    out = tmp_path / "run"
    stopped = rlabel_here("label", setup.arguments(out, no_ray=True, images=images))
    assert stopped.returncode == 1
    assert f"{images}/0003.png: cannot read it" in stopped.stderr
    proxy.draw = lambda method, path: "passed"  # type: ignore[method-assign]
    done = rlabel_here("label", setup.arguments(out, no_ray=True, images=images))
    assert done.returncode == 0, done.stderr
    assert outputs(out) == expected
