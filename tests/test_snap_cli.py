"""`rlabel snap`: what it writes, what it refuses, what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from label_factories import Outcome as Ended
from label_factories import rlabel_here
from rlabel.cli import snap
from rlabel.config import LabelSettings
from rlabel.errors import InputError
from rlabel.run.directory import RunDirectory
from rlabel.run.job import embedder_name, plan_job
from rlabel.run.lease import driving
from rlabel.run.worker import WorkerSpec, _snapper
from run_factories import begin_run, committed_run, shard_result
from snap_factories import BEASTS, AxisEmbedder, files_of, results_of


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Return a function that calls `rlabel` with an embedder of three axes."""
    monkeypatch.setattr("rlabel.cli.snap._embedder", lambda *_: AxisEmbedder("feline", "cat", "thing"))
    names = [{"id": one.category_id, "name": one.name, "synonyms": list(one.synonyms)} for one in BEASTS.categories]
    (tmp_path / "beasts.json").write_text(json.dumps({"name": "beasts", "categories": names}))
    (tmp_path / "dogs.txt").write_text("dog\n")

    def call(command: str, *arguments: str) -> Ended:
        return rlabel_here(command, [argument.replace("{}", str(tmp_path)) for argument in arguments])

    return call


def test_the_command_writes_runs_that_status_counts(invoke, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    committed_run(tmp_path / "old", [shard_result(index) for index in range(3)])
    before = files_of(tmp_path / "old")
    command = ("snap", "{}/old", "--vocabulary", "{}/beasts.json", "--also", "{}/dogs.txt", "--out", "{}/new")
    done = invoke(*command)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["state"] == "done"
    assert document["labels"] + document["abstentions"] + document["failures"] == document["regions"] == 24
    (also,) = document["also"]
    assert also["file"] == str(tmp_path / "new/also/dogs/labels.json") and Path(also["file"]).is_file()
    status = invoke("status", "{}/new", "--json")
    assert json.loads(status.stdout)["labels"] == document["labels"] > 0
    assert files_of(tmp_path / "old") == before
    after = results_of(tmp_path / "new")
    assert invoke(*command).returncode == 0
    assert results_of(tmp_path / "new") == after


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--out", "{}/old/new"), 2, "apart from the run"),
        (("--out", "{}/new", "--threshold", "2"), 2, "snapping threshold"),
        (("--out", "{}/new", "--margin", "nan"), 2, "snapping margin"),
        (("--out", "{}/new", "--also", "{}/gone.json"), 1, "gone.json"),
        (("--out", "{}"), 2, "apart from the run"),
        (("--out", "{}/new", "--embedder", "{}/gone"), 1, "no such folder"),
        (("--out", "{}/full"), 2, "expected an empty folder"),
    ],
)
def test_a_wrong_call_ends_before_anything_is_written(  # type: ignore[no-untyped-def]
    invoke, tmp_path: Path, more: tuple[str, ...], code: int, words: str
) -> None:
    committed_run(tmp_path / "old", [shard_result(0)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    before = files_of(tmp_path)
    done = invoke("snap", "{}/old", "--vocabulary", "{}/beasts.json", *more)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and done.stdout == "" and "Traceback" not in done.stderr
    assert files_of(tmp_path) == before


def test_a_partial_run_says_what_is_missing(invoke, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    begin_run(tmp_path / "old", 2).commit(shard_result(1))
    command = ("snap", "{}/old", "--vocabulary", "{}/beasts.json", "--out", "{}/new")
    refused = invoke(*command)
    assert refused.returncode == 1 and "--partial" in refused.stderr
    done = invoke(*command, "--partial")
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["state"] == "stopped"
    assert "1 of 2 shards are not there yet" in done.stderr


def test_an_embedder_in_another_dtype_is_another_run(invoke, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    committed_run(tmp_path / "old", [shard_result(0)])
    command = ("snap", "{}/old", "--vocabulary", "{}/beasts.json", "--out", "{}/new")
    assert invoke(*command, "--embedder-dtype", "bfloat16").returncode == 0
    manifest = json.loads((tmp_path / "new/manifest.json").read_bytes())
    assert manifest["settings"]["embedder"] == "all-MiniLM-L6-v2 (bundled), bfloat16"
    refused = invoke(*command)
    assert refused.returncode == 2 and "settings.embedder" in refused.stderr
    assert invoke(*command, "--embedder-dtype", "bfloat16").returncode == 0
    wrong = invoke(*command, "--embedder-dtype", "float16")
    assert wrong.returncode == 2 and "float16" in wrong.stderr


def test_the_embedder_is_made_in_the_dtype_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("rlabel.vocabulary.embedding.MiniLmEmbedder", lambda model, **more: made.append((model, more)))
    snap._embedder("a folder", 3, "bfloat16")
    settings = LabelSettings(images="", regions="", out="", embedder="a folder", embedder_dtype="bfloat16")
    _snapper(WorkerSpec(settings=settings, model="", question="", vocabulary=BEASTS, run=None))
    assert made == [("a folder", {"threads": 3, "dtype": "bfloat16"}), ("a folder", {"dtype": "bfloat16"})]


def test_a_labeling_run_has_the_dtype_in_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = []

    def remembered(*arguments: str) -> str:
        named.append(embedder_name(*arguments))  # type: ignore[arg-type]
        raise InputError("seen")

    monkeypatch.setattr("rlabel.run.job.embedder_name", remembered)
    (tmp_path / "names.txt").write_text("cat")
    own = {"images": str(tmp_path), "regions": "", "out": "", "vocabulary": str(tmp_path / "names.txt")}
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(InputError, match="seen"):
            plan_job(LabelSettings(**own, embedder_dtype=dtype))  # type: ignore[arg-type]
    assert named == ["all-MiniLM-L6-v2 (bundled)", "all-MiniLM-L6-v2 (bundled), bfloat16"]
    assert embedder_name("some/id", "bfloat16") == "some/id, bfloat16"
    assert embedder_name(str(tmp_path), "bfloat16") == f"{embedder_name(str(tmp_path))}, bfloat16"


def test_a_driver_counts_as_dead_after_the_time_that_was_asked_for(  # type: ignore[no-untyped-def]
    invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed_run(tmp_path / "old", [shard_result(0)])
    expiries = []

    def remembered(run: RunDirectory, expiry_s: float):  # type: ignore[no-untyped-def]
        expiries.append(expiry_s)
        return driving(run, expiry_s)

    monkeypatch.setattr("rlabel.run.lease.driving", remembered)
    command = ("snap", "{}/old", "--vocabulary", "{}/beasts.json", "--also", "{}/dogs.txt", "--out", "{}/new")
    assert invoke(*command, "--driver-expiry-s", "7.5").returncode == 0
    assert expiries == [7.5, 7.5]
    wrong = invoke(*command, "--driver-expiry-s", "0.5")
    assert wrong.returncode == 2 and "driver-expiry-s" in wrong.stderr
