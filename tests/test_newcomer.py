"""A stranger's first three commands on a folder of pictures with masks, and what they are told when they go wrong."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from label_factories import NAMES, rlabel_here, save_model

NUM_PICTURES, MASKS_EACH = 3, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("newcomer") / "model")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, with a blank in its path, that holds `my photos/` with images and masks, and names.txt."""
    folder = tmp_path / "a home"
    for name in ("images", "masks"):
        (folder / "my photos" / name).mkdir(parents=True)
    random = np.random.default_rng(3)
    for number in range(NUM_PICTURES):
        pixels = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"my photos/images/p{number}.jpg")
        ids = np.zeros((24, 32), np.uint8)
        ids[2:12, 3:15], ids[14:22, 18:30] = 1, 2
        Image.fromarray(ids).save(folder / f"my photos/masks/p{number}.png")
    (folder / "names.txt").write_text("\n".join(NAMES))
    monkeypatch.chdir(folder)
    return folder


def test_three_commands_from_pictures_to_a_page(home: Path, model: Path) -> None:
    converted = rlabel_here("convert", ["my photos/", "--out", "regions.json"])
    assert converted.returncode == 0, converted.stderr
    (line,) = [line for line in converted.stderr.splitlines() if line.startswith("rlabel: next: ")]
    program, command, *arguments = shlex.split(line.removeprefix("rlabel: next: "))
    assert (program, command) == ("rlabel", "label") and "categories" not in converted.stderr
    few = ["--no-ray", "--model", str(model), "--threshold", "-1", "--margin", "0", "--max-new-tokens", "4"]
    labeled = rlabel_here(command, [*arguments, *few])
    assert labeled.returncode == 0, labeled.stderr
    said = json.loads(labeled.stdout)
    assert (said["images"], said["regions"], said["failures"]) == (NUM_PICTURES, NUM_PICTURES * MASKS_EACH, 0)
    page = rlabel_here("report", ["run/", "--images", json.loads(converted.stdout)["pictures"]])
    assert page.returncode == 0 and "<html" in (home / "run/report.html").read_text() and "sheet.png" in page.stderr


def regions(home: Path) -> list[str]:
    assert rlabel_here("convert", ["my photos", "--out", "regions.json"]).returncode == 0
    return ["--regions", "regions.json", "--vocabulary", "names.txt", "--out", "run", "--no-ray"]


def test_the_folder_above_the_pictures_is_refused_with_the_right_one(home: Path, model: Path) -> None:
    arguments = [*regions(home), "--model", str(model), "--max-new-tokens", "4"]
    wrong = rlabel_here("label", ["--images", "my photos", *arguments])
    right = str(home / "my photos" / "images")
    assert wrong.returncode == 1 and "none of the first 3 pictures" in wrong.stderr
    assert wrong.stderr.rstrip().endswith(f"give --images {right}.") and not (home / "run").exists()
    (home / "elsewhere").mkdir()
    assert (
        "file names of --regions are relative to" in rlabel_here("label", ["--images", "elsewhere", *arguments]).stderr
    )
    # One picture is enough: what is missing then is a failure, not a wrong folder.
    (home / "my photos/images/p2.jpg").rename(home / "elsewhere/p2.jpg")
    some = rlabel_here("label", ["--images", "elsewhere", *arguments, "--max-failure-rate", "1"])
    assert some.returncode == 0 and json.loads(some.stdout)["failures"] == 2 * MASKS_EACH
    # A run that has begun goes on, wherever its pictures went.
    (home / "elsewhere/p2.jpg").unlink()
    assert rlabel_here("label", ["--images", "elsewhere", *arguments, "--max-failure-rate", "1"]).returncode == 0


def test_one_command_takes_the_folder_of_masks_itself(home: Path, model: Path) -> None:
    few = ["--no-ray", "--model", str(model), "--max-new-tokens", "4", "--vocabulary", "names.txt", "--dry-run"]
    for given in ("my photos", "my photos/masks"):
        layout = ["--regions-format", "masks"] if given.endswith("masks") else []
        said = rlabel_here("label", ["--images", "my photos/images", "--regions", given, *layout, "--out", "run", *few])
        assert said.returncode == 0, said.stderr
        assert json.loads(said.stdout.splitlines()[-1])["regions"] == NUM_PICTURES * MASKS_EACH


def test_a_page_without_its_pictures_says_so(home: Path, model: Path) -> None:
    done = rlabel_here(
        "label", ["--images", "my photos/images", *regions(home), "--model", str(model), "--max-new-tokens", "4"]
    )
    assert done.returncode == 0, done.stderr
    gone = rlabel_here("report", ["run", "--images", "my fotos"])
    assert gone.returncode == 1 and "--images my fotos: no such folder" in gone.stderr and gone.stdout == ""
    above = rlabel_here("report", ["run", "--images", "my photos"])
    assert above.returncode == 0 and "no picture of the run could be opened in my photos" in above.stderr
