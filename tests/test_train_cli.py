"""`rlabel train` and `jobs.train_then_label`: what they refuse and how, what they write, how they go on; all in this process, without Ray."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from rlabel.cli import train as cli
from rlabel.cli.main import main
from rlabel.cli.options import Stopped
from rlabel.training.loop import LocalSurroundings
from rlabel.training.progress import Progress
from rlabel.training.recipe import Recipe, shipped_recipes
from train_factories import (
    CATEGORIES,
    Files,
    edit,
    labeled_corpus,
    largest_difference,
    recipe,
    stage,
    tiny_folder,
    weights,
)

COURSE = recipe(stage("align", epochs=2, checkpoint_every=2), stage("instruct", checkpoint_every=1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def _in_one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the lines that a slow machine adds; with the SIGTERM handler of before at the end."""
    monkeypatch.setattr("rlabel.training.loop._HEARTBEAT_S", math.inf)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def written(path: Path, of: Recipe) -> Path:
    path.write_text(json.dumps(of.model_dump(mode="json")))
    return path


@dataclass
class Call:
    """A call of `rlabel train` that works; tests change one thing of it."""

    folder: Path
    files: Files
    model: Path

    def run(self, *more: str, **changed: str | None) -> Result:
        options: dict[str, str | None] = {
            "images": str(self.files.images),
            "annotations": str(self.files.annotations),
            "model": str(self.model),
            "recipe": str(self.folder / "r.yaml"),
            "out": str(self.out),
            **changed,
        }
        flags = [
            part
            for name, value in options.items()
            if value is not None
            for part in (f"--{name.replace('_', '-')}", value)
        ]
        return CliRunner().invoke(main, ["train", *flags, "--no-ray", "--num-loader-workers", "0", *more])

    @property
    def out(self) -> Path:
        return self.folder / "out"


@pytest.fixture()
def call(tmp_path: Path, model: Path) -> Call:
    written(tmp_path / "r.yaml", COURSE)
    return Call(tmp_path, labeled_corpus(tmp_path, num_images=4), model)


# ---- refusals


def unknown_category(call: Call) -> None:
    edit(call.files, lambda content: content["annotations"][0].update(category_id=99))


def foreign_file(call: Call) -> None:
    call.out.mkdir()
    (call.out / "holiday.jpg").touch()


def foreign_record(text: str) -> Callable[[Call], None]:
    def put(call: Call) -> None:
        call.out.mkdir()
        (call.out / "training.json").write_text(text)

    return put


def nothing(call: Call) -> None:
    return


REFUSALS: list[tuple[Callable[[Call], None], dict[str, str | None], tuple[str, ...], int, str]] = [
    (nothing, {"annotations": "none.json"}, (), 1, "--annotations none.json: no such file"),
    (nothing, {"annotations": None}, (), 2, "--annotations: missing"),
    (unknown_category, {}, (), 1, "annotation 1: expected a category_id"),
    (lambda call: call.files.annotations.write_text("{"), {}, (), 1, "instances.json"),
    (nothing, {"images": "nowhere"}, (), 1, "nowhere: no such folder"),
    (
        nothing,
        {"recipe": "none.yaml"},
        (),
        1,
        "fine-tune, fine-tune-lora, fine-tune-qlora, mini, mini-masks, paper-align",
    ),
    (nothing, {"recipe": "maxi"}, (), 1, "fine-tune, fine-tune-lora, fine-tune-qlora, mini, mini-masks, paper-align"),
    (lambda call: (call.folder / "r.yaml").write_text("name: x\nstages: 3"), {}, (), 1, "stages"),
    (
        lambda call: written(call.folder / "r.yaml", recipe(stage(learning_rates={"conector": 1}))),
        {},
        (),
        1,
        "got 'conector'",
    ),
    (nothing, {"val_images": "x"}, (), 2, "--val-images and --val-annotations: expected both or neither"),
    (nothing, {"val_annotations": "x"}, (), 2, "--val-images and --val-annotations: expected both or neither"),
    (nothing, {"split": "train"}, (), 2, "only RefCOCO's references have splits"),
    (nothing, {"format": "lvis"}, (), 1, "or read this one as coco"),
    (nothing, {"val_images": "x", "val_annotations": "none.json"}, (), 1, "none.json: there is no such file"),
    (nothing, {"model": "./nowhere"}, (), 1, "--model ./nowhere: no such folder"),
    (nothing, {"seed": "-1"}, (), 2, "--seed"),
    (nothing, {"epochs": "0"}, (), 2, "--epochs"),
    (nothing, {"num_workers": "2"}, (), 2, "--no-ray trains in this process alone"),
    (nothing, {"parallel": "fsdp"}, (), 2, "--parallel fsdp: shards a model over Ray's workers"),
    (nothing, {"parallel": "none"}, (), 2, "--parallel"),
    (nothing, {"out": "memory://x"}, ("--tensorboard",), 2, "--tensorboard: event files are appended to"),
    (
        lambda call: written(call.folder / "r.yaml", recipe(stage(validate_every=1, patience=1))),
        {},
        (),
        1,
        "stage align, patience: expected something to validate on",
    ),
    (
        lambda call: written(
            call.folder / "r.yaml",
            recipe(stage("instruct", learning_rates={"language_model": 1}, lora={"targets": ["q"]})),
        ),
        {},
        (),
        1,
        "stage instruct, lora.targets: expected ends of names",
    ),
    (nothing, {"storage": "memory://x"}, (), 2, "--storage memory://x: --no-ray keeps its checkpoints on a local disk"),
    (foreign_file, {}, (), 2, "got other files (holiday.jpg"),
    (foreign_record("[]"), {}, (), 2, "got other files (training.json"),
    (foreign_record("{"), {}, (), 2, "got other files (training.json"),
    (foreign_record("{}"), {}, (), 2, "was begun with other settings"),
    (nothing, {}, ("--tea",), 2, "No such option"),
]


@pytest.mark.parametrize(("change", "changed", "more", "code", "told"), REFUSALS)
def test_what_cannot_be_trained_is_refused_in_one_message_before_anything_is_written(
    call: Call,
    change: Callable[[Call], None],
    changed: dict[str, str | None],
    more: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    change(call)
    before = {path: path.read_bytes() for path in call.folder.rglob("*") if path.is_file()}
    result = call.run(*more, **changed)
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert (
        len([line for line in result.stderr.splitlines() if line.startswith("rlabel: ") and "images," not in line]) <= 1
    )
    if "storage" not in changed:  # that one is found out when the folder is claimed already
        assert {path: path.read_bytes() for path in call.folder.rglob("*") if path.is_file()} == before


def test_mended_corpus_goes_into_the_folder_that_the_bad_one_named(call: Call) -> None:
    good = call.files.annotations.read_text()
    unknown_category(call)
    assert call.run().exit_code == 1
    call.files.annotations.write_text(good)
    assert call.run().exit_code == 0


def test_relative_out_is_refused_in_a_ray_job(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.chdir(call.folder)
    result = call.run(out="out")
    assert result.exit_code == 2
    assert "thrown away" in result.stderr
    assert not call.out.exists()


# ---- dry run


def test_dry_run_prints_the_plan_and_writes_nothing(call: Call) -> None:
    result = call.run("--dry-run")
    assert result.exit_code == 0, result.output
    lines = {
        line.split()[0]: line.split(maxsplit=1)[1]
        for line in result.stdout.splitlines()
        if not line.startswith("stage")
    }
    assert (lines["images"], lines["regions"], lines["categories"]) == ("4", "8", str(len(CATEGORIES)))
    stages = [line.split(maxsplit=1)[1] for line in result.stdout.splitlines() if line.startswith("stage")]
    # 4 images in batches of 2: 2 steps an epoch
    assert stages[0] == "align: align, 8 regions, 4 steps, trains connector, zoom_connector"
    assert stages[1] == "instruct: instruct, 8 regions, 2 steps, trains connector, zoom_connector, language_model"
    assert not call.out.exists()


def test_epochs_replace_those_of_every_stage(call: Call) -> None:
    result = call.run("--dry-run", epochs="5")
    assert [line.split(", ")[2] for line in result.stdout.splitlines() if line.startswith("stage")] == [
        "10 steps",
        "10 steps",
    ]


@pytest.mark.parametrize("shipped", shipped_recipes())
def test_shipped_recipes_fit_a_model(call: Call, shipped: str) -> None:
    assert call.run("--dry-run", recipe=shipped).exit_code == 0


# ---- training


def test_trained_folder_is_a_model_and_the_same_command_again_says_that_it_is_done(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(call.folder)
    changed = {
        "images": "images",
        "annotations": "instances.json",
        "recipe": "r.yaml",
        "out": "out",
        "model": str(call.model),
    }
    result = call.run(**changed)
    assert result.exit_code == 0, result.output
    told = result.stderr.splitlines()
    assert told[0] == "rlabel: 4 images, 8 regions, 4 categories"
    assert [line.split("  ")[0] for line in told[1:-1]] == [
        "rlabel: align 2/4", "rlabel: align 4/4", "rlabel: instruct 1/2", "rlabel: instruct 2/2",
    ]  # fmt: skip
    assert told[-1] == "rlabel: wrote out; label with: rlabel label --model out ..."
    assert result.stdout == ""
    assert largest_difference(weights(call.model), weights(call.out)) > 0
    assert [json.loads(line)["step"] for line in (call.out / "progress.jsonl").read_text().splitlines()] == [2, 4, 1, 2]

    again = call.run(**changed)
    assert (again.exit_code, again.stderr) == (0, "rlabel: out holds the finished model of exactly these settings.\n")
    for named, other in (
        ("seed", {"seed": "7"}),
        ("save_dtype", {"save_dtype": "bfloat16"}),
        ("recipe, epochs", {"epochs": "3"}),
        ("limit", {"limit": "3"}),
    ):
        refused = call.run(**{**changed, **other})
        assert refused.exit_code == 2
        assert set(named.split(", ")) == set(refused.stderr.split("other settings (")[1].split(")")[0].split(", "))
    tiny_folder(call.folder / "second", seed=1)
    refused = call.run(**{**changed, "model": "second"})
    assert "other settings (model_sha256)" in refused.stderr


def test_stopped_training_goes_on_with_the_same_command_to_the_same_weights(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call.run(out=str(call.folder / "undisturbed")).exit_code == 0
    report = LocalSurroundings.report
    seen: list[Progress] = []

    def stopping(self: LocalSurroundings, progress: Progress, write: Any) -> None:
        report(self, progress, write)
        seen.append(progress)
        if len(seen) in (1, 3):
            raise Stopped

    monkeypatch.setattr(LocalSurroundings, "report", stopping)
    storage = str(call.folder / "elsewhere")
    for _ in range(2):
        result = call.run(storage=storage)
        assert result.exit_code == 130
        assert (
            result.stderr.splitlines()[-1]
            == "rlabel: stopped; what is done stays. Run the same command again to go on."
        )
        assert not (call.out / "config.json").exists()
    result = call.run(storage=storage)
    assert result.exit_code == 0, result.output
    assert [(line.stage, line.step) for line in seen] == [("align", 2), ("align", 4), ("instruct", 1), ("instruct", 2)]
    assert largest_difference(weights(call.out), weights(call.folder / "undisturbed")) == 0
    assert not (call.out / "checkpoints").exists()
    assert len(list((call.folder / "elsewhere").glob("rlabel-*/checkpoint-*"))) == 2


def test_trainings_with_other_settings_share_a_storage_folder_without_meeting(call: Call) -> None:
    storage = str(call.folder / "shared")
    for seed in ("0", "1"):
        assert call.run(storage=storage, seed=seed, out=str(call.folder / f"apart{seed}")).exit_code == 0
    alone = call.run(seed="1", out=str(call.folder / "alone"))
    assert alone.exit_code == 0
    assert largest_difference(weights(call.folder / "apart1"), weights(call.folder / "alone")) == 0


def test_weights_are_saved_in_the_precision_that_was_asked_for(call: Call) -> None:
    assert call.run(save_dtype="bfloat16").exit_code == 0
    assert {value.dtype for value in weights(call.out).values() if value.is_floating_point()} == {torch.bfloat16}


def test_validation_accuracy_is_told_at_the_end_of_each_stage(call: Call) -> None:
    result = call.run(val_images=str(call.files.images), val_annotations=str(call.files.annotations))
    assert result.exit_code == 0, result.output
    assert [" val " in line for line in result.stderr.splitlines() if "regions/s" in line] == [False, True, False, True]


def test_curves_lie_beside_the_model_and_event_files_where_they_are_asked_for(call: Call) -> None:
    assert call.run().exit_code == 0
    assert (call.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (call.out / "tensorboard").exists()
    assert call.run("--tensorboard", out=str(call.folder / "told")).exit_code == 0
    assert len(list((call.folder / "told" / "tensorboard").iterdir())) == 2  # of two stages
    assert largest_difference(weights(call.out), weights(call.folder / "told")) == 0


# ---- jobs


def test_job_is_the_command() -> None:
    import jobs.train

    assert jobs.train.train is cli.train


@pytest.fixture()
def whole_job(call: Call) -> dict[str, str]:
    names = [category["name"] for category in CATEGORIES]
    (call.folder / "names.txt").write_text("\n".join(map(str, names)))
    content = json.loads(call.files.annotations.read_text())
    first = {image["id"] for image in content["images"][:2]}
    proposals = {
        "images": content["images"][:2],
        "annotations": [
            {key: one[key] for key in ("id", "image_id", "bbox")}
            for one in content["annotations"]
            if one["image_id"] in first
        ],
    }
    (call.folder / "proposals.json").write_text(json.dumps(proposals))
    return {
        "train-images": str(call.files.images), "annotations": str(call.files.annotations), "tuned": str(call.folder / "tuned"),
        "recipe": str(call.folder / "r.yaml"), "model": str(call.model), "images": str(call.files.images),
        "regions": str(call.folder / "proposals.json"), "vocabulary": str(call.folder / "names.txt"), "out": str(call.folder / "run"),
    }  # fmt: skip


def run_job(options: dict[str, str]) -> Result:
    from jobs.train_then_label import train_then_label

    return CliRunner().invoke(
        train_then_label, [part for name, value in options.items() for part in (f"--{name}", value)] + ["--no-ray"]
    )


def test_train_then_label_fine_tunes_and_labels_with_the_result(call: Call, whole_job: dict[str, str]) -> None:
    result = run_job(whole_job)
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["regions"] == last["labels"] + last["abstentions"] + last["failures"] == 4
    assert last["failures"] == 0
    labels = json.loads((call.folder / "run" / "labels.json").read_text())
    assert [image["id"] for image in labels["images"]] == [1, 2]
    assert largest_difference(weights(call.folder / "tuned"), weights(call.model)) > 0
    manifest = json.loads((call.folder / "run" / "manifest.json").read_text())
    from rlabel.regiongpt.quantization import model_fingerprint

    assert model_fingerprint(call.folder / "tuned") in json.dumps(manifest)
    assert run_job(whole_job).exit_code == 0  # both halves say that they are done


@pytest.mark.parametrize(
    ("option", "told"), [("regions", "none.json"), ("vocabulary", "none.json"), ("images", "none.json")]
)
def test_train_then_label_refuses_what_it_cannot_label_before_it_trains(
    call: Call, whole_job: dict[str, str], option: str, told: str
) -> None:
    result = run_job({**whole_job, option: str(call.folder / "none.json")})
    assert result.exit_code in (1, 2)
    assert told in result.stderr
    assert not (call.folder / "tuned").exists()
