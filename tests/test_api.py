"""The Python API: the same results as the command's, whatever form pictures and regions come in."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import rlabel
from label_factories import ROOT, Setup, rlabel_here, save_model
from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import rasterise
from rlabel.errors import InputError, UsageError
from rlabel.records import JsonObject

OPTIONS = {"threshold": -1, "margin": 0, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("api")
    return Setup(folder, save_model(folder / "model"), 4)


@pytest.fixture(scope="module")
def labeler(setup: Setup) -> rlabel.Labeler:
    return rlabel.Labeler.from_pretrained(setup.model, vocabulary=setup.vocabulary, **OPTIONS)


@pytest.fixture(scope="module")
def run(setup: Setup) -> Path:
    out = setup.folder / "run"
    done = rlabel_here("label", setup.arguments(out, no_ray=True, images_per_shard=16))
    assert done.returncode == 0, done.stderr
    return out


def given(setup: Setup) -> tuple[list[Path], list[list[JsonObject]]]:
    corpus = json.loads((setup.corpus / "regions.json").read_text())
    regions: list[list[JsonObject]] = [[] for _ in corpus["images"]]
    for row in corpus["annotations"]:
        regions[row["image_id"] - 1].append(row)
    return [setup.corpus / "images" / row["file_name"] for row in corpus["images"]], regions


def _as_pycocotools(mask_HW: Any) -> Any:
    return coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))


def said(results: list[list[rlabel.RegionResult]] | list[rlabel.RegionResult]) -> list[Any]:
    flat = [one for item in results for one in (item if isinstance(item, list) else [item])]
    return [
        (one.outcome, one.category_id, one.category, one.score, one.text, one.text_score, one.box_xywh) for one in flat
    ]


def test_results_are_those_of_the_command(setup: Setup, labeler: rlabel.Labeler, run: Path) -> None:
    images, regions = given(setup)
    read = list(rlabel.read_labels(run))
    document = json.loads((run / "labels.json").read_text())
    assert said(labeler.label(images, regions)) == said(read)
    names = {row["id"]: row["name"] for row in document["categories"]}
    of_file = [(row["id"], names[row["category_id"]], row["score"]) for row in document["annotations"]]
    assert [(one.region_id, one.category, one.score) for one in read if one.outcome == "label"] == of_file and of_file
    assert [one.file_name for one in read[:3]] == ["0001.png", "0001.png", "0002.png"]


def test_pictures_and_regions_come_in_any_form(setup: Setup, labeler: rlabel.Labeler) -> None:
    images, regions = given(setup)
    pixels = [np.asarray(Image.open(path)) for path in images]
    masks = [
        [rasterise(row.get("segmentation"), row.get("bbox"), 16, 24, Limits()).mask_HW for row in own]
        for own in regions
    ]
    plain = [[row["bbox"] if "bbox" in row else row["segmentation"] for row in own] for own in regions]
    expected = said(labeler.label(images, regions))
    assert said(labeler.label(pixels, plain)) == expected  # type: ignore[arg-type]
    assert said(labeler.label([Image.fromarray(one) for one in pixels], plain)) == expected  # type: ignore[arg-type]
    # A mask gives what its outline gave; its box is that of its pixels.
    by_mask = labeler.label(images, masks)
    assert [one[:6] for one in said(by_mask)] == [one[:6] for one in expected]
    encoded = [[_as_pycocotools(mask) for mask in own] for own in masks]
    assert said(labeler.label(images, encoded)) == said(by_mask)


def test_other_names_for_one_call_are_what_snap_gives(
    setup: Setup, labeler: rlabel.Labeler, run: Path, tmp_path: Path
) -> None:
    names = ["red panda", "lamp"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    arguments = [str(run), "--vocabulary", str(tmp_path / "names.txt"), "--out", str(tmp_path / "out")]
    assert rlabel_here("snap", arguments).returncode == 0
    images, regions = given(setup)
    results = labeler.label(images, regions, vocabulary=names)
    assert said(results) == said(list(rlabel.read_labels(tmp_path / "out")))
    assert {one.category for own in results for one in own} <= {*names, None}
    without = rlabel.Labeler.from_pretrained(setup.model, **OPTIONS)
    assert {one.outcome for own in without.label(images[:1], regions[:1]) for one in own} == {"caption"}
    assert said(without.label(images, regions, vocabulary=names)) == said(results)


def test_one_bad_picture_or_region_is_a_failure(setup: Setup, labeler: rlabel.Labeler, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    good = given(setup)[0][0]
    images = [tmp_path / "cut.png", tmp_path / "nowhere.png", good, good]
    results = labeler.label(images, [[(1, 1, 5, 5)], [(1, 1, 5, 5)], [(50, 50, 5, 5), (1, 1, 5, 5)], []])
    kinds = [[one.outcome for one in own] for own in results]
    assert kinds == [["failure"], ["failure"], ["failure", "label"], []]
    assert all(one.reason for own in results for one in own if one.outcome == "failure")
    assert (results[2][1].image_id, results[2][1].region_id) == (2, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda own: own.label(["a.png"], []), "1 images and 0 lists"),
        (lambda own: own.label([np.zeros((4, 4), np.uint8)], [[]]), "expected a uint8 array"),
        (lambda own: own.label([3], [[]]), "expected a path, a PIL picture or an array, got int"),
        (lambda own: own.label(["a.png"], [["box"]]), "image 0, region 0: expected a box"),
        (lambda own: own.label(["a.png"], [[(1, 2, 3)]]), "image 0, region 0: expected a box"),
        (lambda own: rlabel.Labeler.from_pretrained(task="refer"), "Use `rlabel label`"),
        (lambda own: rlabel.Labeler.from_pretrained(num_actors=2), "option num_actors"),
        (lambda own: rlabel.Labeler.from_pretrained(decoding="constrained"), "give a vocabulary"),
        (lambda own: rlabel.read_labels("/nowhere/run"), "no manifest.json"),
    ],
)
def test_wrong_calls_say_what_is_wrong(labeler: rlabel.Labeler, call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(labeler)


def test_names_that_are_no_vocabulary_are_refused(labeler: rlabel.Labeler) -> None:
    for names in ([], ["cat", "cat"], ["cat", ""], ["cat", 3]):
        with pytest.raises(InputError, match="distinct"):
            labeler.label([], [], vocabulary=names)  # type: ignore[arg-type]


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "api.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and all("image" in line for line in lines[:6]) and lines[6].startswith("text ")


def test_the_temporary_folder_goes_with_the_labeler(setup: Setup) -> None:
    own = rlabel.Labeler.from_pretrained(setup.model, task="caption", max_new_tokens=2)
    folder = own._folder
    assert folder.is_dir()
    del own
    assert not folder.exists()
