"""What a user types wrongly ends with one message and its exit code, before anything is claimed or written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

import rlabel
from label_factories import Setup, rlabel_here, save_model
from rlabel.config import LabelSettings, TrainSettings, load_settings
from rlabel.errors import InputError, StorageError, UsageError
from rlabel.evaluation.captions import CaptionTruth, check_captioned
from rlabel.evaluation.reading import NamedCategory
from rlabel.evaluation.run_files import run_with_answers
from rlabel.regiongpt.devices import usable_device
from rlabel.run.directory import RunDirectory
from rlabel.settings_files import SettingsRecord
from rlabel.storage import Store
from run_factories import committed_run, manifest, shard_result

GIVEN = {"images": "i", "regions": "r.json", "vocabulary": "v.txt", "out": "o"}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("wrong")
    return Setup(folder, save_model(folder / "model"), 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_here_is_refused_before_the_run_is_claimed(setup: Setup, tmp_path: Path) -> None:
    wrong = rlabel_here("label", setup.arguments(tmp_path / "run", no_ray=True, device="cuda:1"))
    assert wrong.returncode == 2 and "--device cuda:1: expected cpu, or a GPU" in wrong.stderr
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="--device cuda: expected cpu"):
        rlabel.Labeler.from_pretrained(setup.model, vocabulary=["cat"], device="cuda")
    assert usable_device("auto") == usable_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        (LabelSettings, {"out": ""}, "--out: expected a value, got an empty text"),
        (LabelSettings, {"also_vocabulary": ("a.txt", "")}, "--also-vocabulary: expected a value, got an empty text"),
        (LabelSettings, {"threshold": 7}, "--threshold: expected at most 1.0, got 7"),
        (LabelSettings, {"threshold": float("nan")}, "--threshold: expected a finite number, got nan"),
        (LabelSettings, {"heartbeat_s": float("inf")}, "--heartbeat-s: expected a finite number, got inf"),
        (LabelSettings, {"gpus_per_actor": 1.5}, "--gpus-per-actor: expected a share of one GPU, a whole number"),
        (LabelSettings, {"device": "gpu"}, "--device: expected text that matches"),
        (LabelSettings, {"treshold": 0.5}, "--treshold: expected an option that --help lists"),
        (TrainSettings, {"epochs": float("inf")}, "--epochs: expected a finite number, got inf"),
    ],
)
def test_a_setting_that_cannot_be_is_told_with_what_was_expected(
    kind: type[SettingsRecord], wrong: dict[str, object], said: str
) -> None:
    given = GIVEN if kind is LabelSettings else {"images": "i", "annotations": "a.json", "out": "o"}
    with pytest.raises(UsageError) as refused:
        load_settings(kind, None, {**given, **wrong})
    assert str(refused.value).startswith(said) and "Give" in str(refused.value)


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_an_option_takes_no_number_that_is_none(number: str, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\n")
    calls = (
        ("snap", ["run", "--vocabulary", str(names), "--out", str(tmp_path / "new"), "--min-score", number]),
        ("status", ["run", "--every-s", number]),
        ("export", ["run", "--to", "csv", "--out", str(tmp_path / "new"), "--tolerance", number]),
        ("vocabulary", ["check", str(names), "--near", number]),
    )
    for command, arguments in calls:
        wrong = rlabel_here(command, arguments)
        assert wrong.returncode == 2 and f"Invalid value for '{arguments[-2]}'" in wrong.stderr
    assert not (tmp_path / "new").exists()


def test_a_run_of_another_task_is_told_as_what_it_is(tmp_path: Path) -> None:
    plain = manifest(2)
    captions = RunDirectory.create_or_resume(
        Store.open(tmp_path / "captions"), replace(plain, settings={**plain.settings, "task": "caption"})
    )
    for command in ("evaluate", "compare", "audit"):
        rest = [captions.store.url] if command == "compare" else ["--truth", str(truth_without_annotations(tmp_path))]
        wrong = rlabel_here(command, [captions.store.url, *rest])
        assert wrong.returncode == 1 and "got one of --task caption, whose are in captions.json" in wrong.stderr
    with pytest.raises(InputError, match="0 of its 2 shards are there"):
        run_with_answers(captions.store.url, "captions.json")
    with pytest.raises(UsageError, match='"caption" -> "classify"') as refused:
        RunDirectory.create_or_resume(captions.store, replace(plain, settings={"task": "classify", "views": "flip"}))
    assert "others, as runs of two tasks do" in str(refused.value) and "settings.views" not in str(refused.value)


def truth_without_annotations(folder: Path) -> Path:
    """Write a vocabulary in the place of a truth: categories alone."""
    path = folder / "truth.json"
    path.write_text(json.dumps({"categories": [{"id": 7, "name": "cat"}]}))
    return path


def test_a_truth_that_holds_no_region_of_the_run_is_refused(tmp_path: Path) -> None:
    run = committed_run(tmp_path / "run", [shard_result(0)])
    run.merge()
    wrong = rlabel_here("evaluate", [run.store.url, "--truth", str(truth_without_annotations(tmp_path))])
    assert wrong.returncode == 1 and "truth.json: expected annotations" in wrong.stderr and wrong.stdout == ""
    cat = NamedCategory(category_id=7, name="cat")
    truth = [CaptionTruth(image_id="1", region_id="5", caption="a cat", category=cat)]
    check_captioned({("1", "5"): "a dog"}, truth, "run", "truth.json")
    with pytest.raises(InputError, match=r"truth.json: expected regions of the run run, got none of its 1"):
        check_captioned({("2", "5"): "a dog"}, truth, "run", "truth.json")


def test_a_file_in_the_place_of_a_folder_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("cat")
    store = Store.open(tmp_path / "notes.txt")
    for wrong in (lambda: store.put("labels.json", b""), lambda: store.read("labels.json"), store.list):
        with pytest.raises(StorageError, match="there is a file where a folder is expected"):
            wrong()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="there is a folder where a file is expected"):
        Store.open(tmp_path).put("folder", b"")


def test_ask_wants_the_file_of_a_picture(tmp_path: Path) -> None:
    for image, got in ((str(tmp_path), "got a folder"), ("", "got an empty text")):
        wrong = rlabel_here("ask", [image, "--region", "1,2,3,4", "What is <region1>?"])
        assert wrong.returncode == 2 and got in wrong.stderr


def test_the_mean_of_the_embedded_labeler_with_itself_is_made_without_bars(tmp_path: Path) -> None:
    logging.enable_progress_bar()  # as in a process of its own
    made = rlabel_here("average", ["embedded", "embedded", "--out", str(tmp_path / "mean")])
    assert made.returncode == 0 and made.stderr == f"rlabel: wrote {tmp_path / 'mean'}, the mean of 2 models\n"


@pytest.mark.parametrize("wrong", [{"treshold": 0.5}, {"threshold": 7}, {"decoding": "x"}])
def test_the_api_names_a_wrong_option_as_the_command_does(setup: Setup, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wrong))}: expected"):
        rlabel.Labeler.from_pretrained(setup.model, vocabulary=["cat"], **wrong)
    with pytest.raises(InputError, match="expected a list of distinct, non-empty names"):
        rlabel.Labeler.from_pretrained(setup.model, vocabulary=5)  # type: ignore[arg-type]


def test_the_api_says_how_images_and_regions_are_given(setup: Setup) -> None:
    labeler = rlabel.Labeler.from_pretrained(setup.model, vocabulary=["cat"])
    photo = str(next((setup.corpus / "images").iterdir()))
    box = (1, 2, 5, 5)
    for images, regions in ((photo, [[box]]), ([photo], box), ([photo], [5])):
        with pytest.raises(UsageError, match=r"as in label\(\[photo\], \[\[box, box\]\]\)"):
            labeler.label(images, regions)  # type: ignore[arg-type]
    for region in (5, None, {"counts": "abc"}, {"size": [1, "x"], "counts": "abc"}):
        with pytest.raises(UsageError, match="image 0, region 0: expected a box"):
            labeler.label([photo], [[region]])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="image 0, region 0: expected a box"):
        labeler.label([photo], [box])
