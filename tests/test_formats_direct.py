"""`label` and `validate` on layouts that are not COCO: converted once beside the run, the same at every start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from format_factories import make_pictures, make_yolo, picture_bytes, tar_of
from label_factories import Outcome, rlabel_here, save_model
from rlabel.errors import InputError, UsageError
from rlabel.formats.convert import convert
from rlabel.formats.taken import recognise, take_regions, taken_before

LINES = "0 0.5 0.5 0.25 0.25\n1 0.25 0.25 0.2 0.2\n"
OTHER = "0 0.5 0.5 0.5 0.25\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("direct") / "model")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with yolo/ (two pictures, three boxes of two classes) and names.txt."""
    make_yolo(tmp_path / "yolo", LINES, OTHER)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def label(model: Path, *arguments: str) -> Outcome:
    few = ["--no-ray", "--model", str(model), "--max-new-tokens", "3", "--vocabulary", "names.txt"]
    return rlabel_here("label", [*few, *arguments])


YOLO = ("--images", "yolo/images", "--regions", "yolo", "--out")


def test_a_yolo_folder_is_labeled_and_goes_on_until_it_is_changed(home: Path, model: Path) -> None:
    direct = label(model, *YOLO, "run")
    assert direct.returncode == 0, direct.stderr
    assert json.loads(direct.stdout)["regions"] == 3 and "since it has data.yaml; name another with" in direct.stderr
    assert "3 regions have a category, which is left out" in direct.stderr
    assert rlabel_here("convert", ["yolo", "--out", "own.json", "--class-free"]).returncode == 0
    assert (home / "run-regions/regions.json").read_bytes() == (home / "own.json").read_bytes()
    first = (home / "run/labels.json").read_bytes()
    written = (home / "run-regions/regions.json").stat().st_mtime_ns
    again = label(model, *YOLO, "run")
    assert again.returncode == 0 and "was converted before" in again.stderr
    assert (home / "run-regions/regions.json").stat().st_mtime_ns == written
    # Only touched: converted anew, to the same bytes, so that the run goes on.
    os.utime(home / "yolo/labels/a.txt", ns=(1, 1))
    touched = label(model, *YOLO, "run")
    assert touched.returncode == 0 and "is read as YOLO" in touched.stderr
    assert (home / "run/labels.json").read_bytes() == first
    (home / "yolo/labels/a.txt").write_text(OTHER)
    changed = label(model, *YOLO, "run")
    assert changed.returncode == 2 and "corpus" in changed.stderr


def test_a_dry_run_converts_into_nowhere(home: Path, model: Path) -> None:
    before = sorted(home.rglob("*"))
    planned = label(model, *YOLO, "run", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout.splitlines()[-1])["regions"] == 3 and sorted(home.rglob("*")) == before


def test_a_wrong_guess_or_none_names_the_option_of_label(home: Path, model: Path) -> None:
    (home / "yolo/labels/a.txt").unlink()
    (home / "yolo/labels/b.txt").unlink()
    wrong = label(model, *YOLO, "run")
    assert wrong.returncode == 1 and "since it has data.yaml" in wrong.stderr and "--regions-format" in wrong.stderr
    make_pictures(home / "photos", "a.jpg")
    none = label(model, "--images", "photos", "--regions", "photos", "--out", "run", "--dry-run")
    assert none.returncode == 1 and "pictures alone" in none.stderr and "--regions-format" in none.stderr
    assert "--from" not in wrong.stderr + none.stderr and not (home / "run").exists()


def test_a_tar_writes_its_pictures_where_images_says_also_after_a_stop(home: Path) -> None:
    document = json.dumps({"annotations": [{"bbox": [4, 6, 20, 10]}]}).encode()
    tar_of(
        home / "set.tar", {"x.jpg": picture_bytes(), "x.json": document, "y.jpg": picture_bytes(), "y.json": document}
    )
    source = recognise("set.tar")
    assert source.holds_pictures
    with pytest.raises(UsageError, match="holds its pictures itself"):
        take_regions(source, "into", None)
    (home / "kept").mkdir()
    (home / "kept/mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="new or empty"):
        take_regions(source, "into", "kept")
    assert not (home / "into/converted.json").exists(), "the folder is nowhere called ours"
    (home / "kept/mine.txt").unlink()
    taken = take_regions(source, "into", "kept")
    assert sorted(os.listdir("kept")) == ["x.jpg", "y.jpg"] and "its pictures are written into kept" in taken.lines
    first = Path(taken.file).read_bytes()
    # As a stop in the midst of the conversion leaves it: a picture cut off, one missing, no regions.
    state = json.loads((home / "into/converted.json").read_text())
    (home / "into/converted.json").write_text(json.dumps({**state, "state": "begun"}))
    Path(taken.file).unlink()
    (home / "kept/x.jpg").write_bytes(b"cut")
    (home / "kept/y.jpg").unlink()
    assert taken_before(source, "into", "kept") is None
    assert Path(take_regions(source, "into", "kept").file).read_bytes() == first
    assert (home / "kept/x.jpg").read_bytes() == (home / "kept/y.jpg").read_bytes() == picture_bytes()
    assert taken_before(source, "into", "kept") is not None and taken_before(source, "into", "other") is None
    with pytest.raises(UsageError, match="new or empty"):
        take_regions(source, "second", "kept")


def test_what_a_tar_holds_is_not_measured_before_it_is_out(home: Path, model: Path) -> None:
    document = json.dumps({"annotations": [{"bbox": [4, 6, 20, 10]}]}).encode()
    tar_of(home / "set.tar", {"x.jpg": picture_bytes(), "x.json": document})
    measured = label(model, "--images", "kept", "--regions", "set.tar", "--out", "run", "--dry-run", "--measure", "1")
    assert measured.returncode == 2 and "rlabel convert" in measured.stderr and not (home / "kept").exists()


@pytest.mark.parametrize("text", ['{"images": [', "{}", '{"images": [], "annotations": []}'])
def test_what_may_be_coco_is_left_to_its_own_reader(home: Path, text: str) -> None:
    (home / "some.json").write_text(text)
    assert recognise("some.json").format is None and recognise("gone.json").format is None
    assert take_regions(recognise("some.json"), "into", None).file == "some.json" and not (home / "into").exists()


def test_a_folder_of_somebody_else_beside_the_run_is_left_alone(home: Path, model: Path) -> None:
    (home / "run-regions").mkdir()
    (home / "run-regions/regions.json").write_text("{}")
    refused = label(model, *YOLO, "run")
    assert refused.returncode == 2 and "expected nothing there" in refused.stderr
    (home / "run-regions/manifest.json").write_text("{}")
    assert "holds regions that --propose found" in label(model, *YOLO, "run").stderr
    assert (home / "run-regions/regions.json").read_text() == "{}"


def test_validate_reads_other_layouts_and_finds_what_is_wrong_with_them(home: Path) -> None:
    good = rlabel_here("validate", ["--images", "yolo/images", "--regions", "yolo"])
    assert (good.returncode, good.stdout) == (0, "") and "read as YOLO" in good.stderr
    (home / "yolo/labels/b.txt").write_text("0 0.5 0.5 0.5 0.25\n0 2.5 2.5 0.1 0.1\n7 0.5 0.5 0.1 0.1\n")
    bad = rlabel_here("validate", ["--images", "yolo/images", "--regions", "yolo"])
    assert bad.returncode == 1 and "outside the picture" in bad.stdout and "not in the list of names" in bad.stdout
    document = json.dumps({"annotations": [{"bbox": [4, 6, 20, 10]}]}).encode()
    tar_of(home / "set.tar", {"x.jpg": picture_bytes(), "x.json": document})
    for pixels in ("--pixels", "--no-pixels"):
        held = rlabel_here("validate", ["--regions", "set.tar", pixels])
        assert (held.returncode, held.stdout) == (0, ""), held.stderr
    missing = rlabel_here("validate", ["--regions", "yolo/labels"])
    assert missing.returncode in (1, 2) and "rlabel:" in missing.stderr


def test_masks_of_cityscapes_names_are_found(home: Path) -> None:
    for folder in ("leftImg8bit/val/bonn", "gtFine/val/bonn"):
        (home / "city" / folder).mkdir(parents=True)
    ids = np.zeros((12, 16), np.int32)
    ids[2:5, 3:9], ids[6:9, 3:9] = 26001, 7
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(home / "city/leftImg8bit/val/bonn/bonn_0_1_leftImg8bit.png")
    Image.fromarray(ids.astype(np.uint16)).save(home / "city/gtFine/val/bonn/bonn_0_1_gtFine_instanceIds.png")
    Image.fromarray(ids.astype(np.uint8)).save(home / "city/gtFine/val/bonn/bonn_0_1_gtFine_labelIds.png")
    assert rlabel_here("convert", ["city", "--out", "city.json"]).returncode == 0
    rows = json.loads((home / "city.json").read_text())["annotations"]
    assert [(row["attributes"]["mask_value"], row["bbox"]) for row in rows] == [
        (7, [3, 6, 6, 3]),
        (26001, [3, 2, 6, 3]),
    ]


def test_a_layout_named_wrongly_is_told_with_the_source_and_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "yolo" / "labels").mkdir(parents=True)
    (tmp_path / "yolo" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(InputError, match=r"yolo, read as .*: found no picture to write\. Name another layout"):
        convert(str(tmp_path / "yolo"), str(tmp_path / "regions.json"), format="voc")
