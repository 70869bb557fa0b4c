"""The bundled sample corpus is what its README says: complete, consistent, small, and free to travel."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

SAMPLE = Path(__file__).parent.parent / "examples" / "things-sample"
NUM_SCENES = {"train": 80, "val": 30}


def load(relative: str) -> Any:
    return json.loads((SAMPLE / relative).read_text(encoding="utf-8"))


def sample_files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


def test_the_sample_stays_below_8_megabytes() -> None:
    assert sum((SAMPLE / name).stat().st_size for name in sample_files(SAMPLE)) <= 8_000_000


def test_the_licences_travel_with_the_pictures() -> None:
    text = (SAMPLE / "LICENSES.md").read_text(encoding="utf-8")
    assert "CC-BY" in text and "GNU General Public License" in text
    assert "LICENSES.md" in (SAMPLE / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_picture_is_there_with_the_size_its_row_states_and_no_other_file(split: str) -> None:
    images = load(f"{split}/instances.json")["images"]
    assert len(images) == NUM_SCENES[split]
    assert {path.name for path in (SAMPLE / split / "images").iterdir()} == {image["file_name"] for image in images}
    for image in images:
        with Image.open(SAMPLE / split / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_finds_the_stated_area_in_every_rle_mask(split: str, capsys: pytest.CaptureFixture[str]) -> None:
    coco = COCO(str(SAMPLE / split / "instances.json"))
    capsys.readouterr()
    annotations = coco.loadAnns(coco.getAnnIds())
    rle = [a for a in annotations if isinstance(a["segmentation"], dict)]
    assert 0 < len(rle) < len(annotations)
    for annotation in rle:
        assert mask_utils.area(coco.annToRLE(annotation)) == annotation["area"], annotation["id"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_have_unique_positive_ids_and_belong_to_listed_images_and_categories(split: str) -> None:
    instances = load(f"{split}/instances.json")
    ids = [annotation["id"] for annotation in instances["annotations"]]
    assert len(set(ids)) == len(ids) and min(ids) > 0
    assert {a["image_id"] for a in instances["annotations"]} == {image["id"] for image in instances["images"]}
    assert {a["category_id"] for a in instances["annotations"]} <= {c["id"] for c in instances["categories"]}


@pytest.mark.parametrize("split", ["train", "val"])
def test_both_splits_list_all_250_categories_of_the_vocabulary(split: str) -> None:
    vocabulary = {(category["id"], category["name"]) for category in load("vocabulary.json")["categories"]}
    assert len(vocabulary) == 250
    assert {(c["id"], c["name"]) for c in load(f"{split}/instances.json")["categories"]} == vocabulary


def test_proposals_are_the_truth_without_what_names_an_object() -> None:
    truth, proposals = load("val/instances.json"), load("val/proposals.json")
    assert proposals["images"] == truth["images"] and "categories" not in proposals
    hidden = {"category_id", "caption"}
    assert proposals["annotations"] == [
        {key: value for key, value in annotation.items() if key not in hidden} for annotation in truth["annotations"]
    ]


def test_every_category_of_val_is_shown_in_train_at_least_twice() -> None:
    shown = [a["category_id"] for a in load("train/instances.json")["annotations"] if not a["iscrowd"]]
    for annotation in load("val/instances.json")["annotations"]:
        assert shown.count(annotation["category_id"]) >= 2


def test_train_and_val_share_no_picture() -> None:
    names = [{image["file_name"] for image in load(f"{split}/instances.json")["images"]} for split in NUM_SCENES]
    assert names[0].isdisjoint(names[1])


def test_provenance_speaks_of_exactly_the_regions_of_val() -> None:
    provenance = load("val/provenance.json")["annotations"]
    assert set(provenance) == {str(a["id"]) for a in load("val/instances.json")["annotations"]}
    assert {type(row["seen_in_train"]) for row in provenance.values()} == {bool}
    assert {row["seen_in_train"] for row in provenance.values()} == {True, False}


def test_the_script_makes_the_same_sample_from_the_whole_corpora_again(tmp_path: Path) -> None:
    corpora = os.environ.get("RLABEL_CORPUS")
    if not corpora:
        pytest.skip("RLABEL_CORPUS names no folder with the whole things corpora")
    subprocess.run([sys.executable, SAMPLE / "make_sample.py", corpora, tmp_path], check=True)
    names = sample_files(SAMPLE) - {"README.md", "make_sample.py"}
    assert sample_files(tmp_path) == names
    assert filecmp.cmpfiles(SAMPLE, tmp_path, names, shallow=False)[1:] == ([], [])
