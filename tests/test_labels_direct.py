"""`train` and `evaluate` on labels that are not COCO: converted once with their categories, told, refused where there are none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from dataset_factories import refcoco_folder
from format_factories import make_pictures, make_yolo, picture_bytes, tar_of
from label_factories import Outcome, rlabel_here
from rlabel.config import DatasetFormat
from rlabel.corpus.open import FORMATS
from rlabel.formats.guess import SOURCE_FORMATS
from rlabel.formats.named import keep_named
from rlabel.formats.regions_file import Written
from rlabel.storage import Store
from test_train_formats import made
from train_factories import labeled_corpus, recipe, stage, tiny_folder

OUTSIDE = "0 0.5 0.5 0.5 0.25\n"
IN_A = "0 0.5 0.5 0.25 0.25\n1 0.25 0.25 0.25 0.25\n"
# The same by hand: pictures are 64 x 48.
BOXES = {1: [24, 18, 16, 12], 2: [8, 6, 16, 12], 3: [16, 18, 32, 12]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with yolo/ (two pictures, three boxes of cat and dog) and r.yaml, a recipe of one short stage."""
    make_yolo(tmp_path / "yolo", IN_A, OUTSIDE)
    (tmp_path / "r.yaml").write_text(json.dumps(recipe(stage("align", epochs=1)).model_dump(mode="json")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(model: Path) -> Iterator[Any]:
    def call(*arguments: str) -> Outcome:
        few = ["--no-ray", "--num-loader-workers", "0", "--model", str(model), "--recipe", "r.yaml", "--out", "out"]
        return rlabel_here("train", [*few, *arguments])

    yield call


YOLO = ("--images", "yolo/images", "--annotations", "yolo")


def labelme(folder: Path, **labels: str) -> None:
    """One JSON a picture: a rectangle of 20 x 10, called as given; two of them where the name has a comma."""
    for name, called in labels.items():
        shapes = [
            {"label": one, "shape_type": "rectangle", "points": [[4, 6 + 12 * i], [24, 16 + 12 * i]]}
            for i, one in enumerate(called.split(","))
        ]
        document = {"imagePath": f"{name}.jpg", "imageWidth": 64, "imageHeight": 48, "shapes": shapes}
        make_pictures(folder, f"{name}.jpg")
        (folder / f"{name}.json").write_text(json.dumps(document))


# ---- train


def test_a_yolo_folder_is_trained_on_and_converted_only_when_it_changed(home: Path, train: Any) -> None:
    first = train(*YOLO, "--format", "auto")
    assert first.returncode == 0, first.stderr
    assert "since it has data.yaml; name another with --format" in first.stderr
    assert "2 images, 3 regions, 2 categories" in first.stderr
    assert rlabel_here("convert", ["yolo", "--out", "own.json"]).returncode == 0
    converted = home / "out-annotations/regions.json"
    assert converted.read_bytes() == (home / "own.json").read_bytes()
    written = converted.stat().st_mtime_ns
    again = train(*YOLO, "--format", "auto")
    assert again.returncode == 0 and "annotations: yolo was converted before" in again.stderr
    assert "holds the finished model" in again.stderr and converted.stat().st_mtime_ns == written
    os.utime(home / "yolo/labels/a.txt", ns=(1, 1))
    touched = train(*YOLO, "--format", "auto")
    assert "is read as YOLO" in touched.stderr and "holds the finished model" in touched.stderr
    (home / "yolo/labels/a.txt").write_text(OUTSIDE)
    changed = train(*YOLO, "--format", "auto")
    assert changed.returncode == 2 and "other settings (annotations_sha256)" in changed.stderr


def test_where_coco_is_asked_for_the_error_names_the_format_of_what_is_there(home: Path, train: Any) -> None:
    (home / "panoptic.json").write_text('{"images": [], "annotations": [{"image_id": 1, "segments_info": []}]}')
    refcoco_folder(home / "refs")
    before = sorted(home.rglob("*"))
    for source, format in (("yolo", "yolo"), ("panoptic.json", "panoptic"), ("refs", "refcoco")):
        wrong = train("--images", "yolo/images", "--annotations", source)
        assert wrong.returncode == 1 and f"--annotations {source}: expected COCO JSON" in wrong.stderr
        assert f"Read it with --format {format}." in wrong.stderr
    unknown = train("--images", "yolo/images", "--annotations", "yolo/images", "--format", "auto")
    assert unknown.returncode == 1 and "Name it with --format, one of" in unknown.stderr
    assert sorted(home.rglob("*")) == before


def test_a_dry_run_of_training_converts_into_nowhere(home: Path, train: Any) -> None:
    before = sorted(home.rglob("*"))
    planned = train(*YOLO, "--format", "yolo", "--dry-run")
    assert planned.returncode == 0 and "regions     3\n" in planned.stdout, planned.stderr
    document = json.dumps({"annotations": [{"bbox": [4, 6, 20, 10], "category": "cat"}]}).encode()
    tar_of(home / "set.tar", {"x.jpg": picture_bytes(), "x.json": document})
    held = train("--images", "kept", "--annotations", "set.tar", "--format", "auto", "--dry-run")
    assert held.returncode == 2 and "rlabel convert" in held.stderr and "--annotations" in held.stderr
    assert sorted(path for path in home.rglob("*") if path.name != "set.tar") == before


def test_a_tar_is_trained_on_with_the_pictures_that_it_holds(home: Path, train: Any) -> None:
    document = json.dumps({"annotations": [{"bbox": [4, 6, 24, 36], "category": "cat"}]}).encode()
    tar_of(home / "set.tar", {"x.jpg": picture_bytes(), "x.json": document})
    done = train("--images", "kept", "--annotations", "set.tar", "--format", "auto", "--boxes", "xyxy")
    assert done.returncode == 0 and os.listdir("kept") == ["x.jpg"], done.stderr
    assert json.loads((home / "out-annotations/regions.json").read_text())["annotations"][0]["bbox"] == [4, 6, 20, 30]


def test_labels_without_any_category_are_refused_with_the_next_step(home: Path, train: Any) -> None:
    document = json.dumps({"annotations": [{"bbox": [4, 6, 20, 10]}]}).encode()
    tar_of(home / "bare.tar", {"x.jpg": picture_bytes(), "x.json": document})
    make_pictures(home / "plain/masks", "a.png")
    for source, images, format in (("bare.tar", "kept", "auto"), ("plain", "yolo/images", "masks")):
        bare = train("--images", images, "--annotations", source, "--format", format)
        assert bare.returncode == 1 and f"{source}: expected regions with categories" in bare.stderr, bare.stderr
        assert f"rlabel label --regions {source}" in bare.stderr and not (home / "out").exists()
        truth = rlabel_here("evaluate", ["run", "--truth", source])
        assert truth.returncode == 1 and "--truth" in truth.stderr and "regions with categories" in truth.stderr


def test_regions_without_a_name_are_left_out_and_the_others_keep_their_ids(home: Path, train: Any) -> None:
    labelme(home / "me", a=" ,cat", b="dog,dog")
    done = train("--images", "me", "--annotations", "me", "--format", "labelme")
    assert done.returncode == 0 and "1 regions have no category and are left out" in done.stderr, done.stderr
    assert "out-annotations/regions.json: 2 images, 3 regions" in done.stderr
    assert rlabel_here("convert", ["me", "--out", "own.json"]).returncode == 0
    whole = json.loads((home / "own.json").read_text())
    whole["annotations"] = whole["annotations"][1:]
    assert json.loads((home / "out-annotations/regions.json").read_text()) == whole
    assert [row["id"] for row in whole["annotations"]] == [2, 3, 4]


def test_a_file_without_unnamed_regions_is_not_written_again(tmp_path: Path) -> None:
    written = Written(num_images=1, num_regions=2, num_known=2, num_categories=1)
    assert keep_named(Store.open(str(tmp_path)), "gone.json", written) == written


def test_validation_has_a_layout_of_its_own_when_it_is_guessed(home: Path, train: Any) -> None:
    # Read as COCO, as the converted labels are, the references would be no file.
    images, refs, split = made("refcoco", home / "refs")
    validated = ("--val-images", str(images), "--val-annotations", str(refs), "--val-split", str(split))
    done = train(*YOLO, *validated, "--format", "auto")
    assert done.returncode == 0, done.stderr
    files = labeled_corpus(home / "coco", num_images=2)
    turned = train("--images", str(files.images), "--annotations", str(files.annotations), "--format", "auto",
                   "--val-images", "yolo/images", "--val-annotations", "yolo", "--out", "other")  # fmt: skip
    assert turned.returncode == 0 and "rlabel: val-annotations: yolo is read as YOLO" in turned.stderr, turned.stderr
    assert (home / "other-val-annotations/regions.json").exists() and not (home / "other-annotations").exists()
    parted = train(*YOLO, "--format", "auto", "--split", "train", "--dry-run")
    assert parted.returncode == 2 and "only RefCOCO's references have splits" in parted.stderr


def test_a_mixture_takes_any_layout_for_each_dataset(home: Path, train: Any) -> None:
    files = labeled_corpus(home / "coco", num_images=2)
    (home / "mix").mkdir()
    sets: list[dict[str, str]] = [
        {"name": "own", "images": str(files.images), "annotations": str(files.annotations)},
        {"name": "boxes", "images": "../yolo/images", "annotations": "../yolo", "format": "yolo"},
    ]
    (home / "mix/m.yaml").write_text(yaml.safe_dump({"datasets": sets}))
    done = train("--mixture", "mix/m.yaml")
    assert done.returncode == 0 and "4 images, 7 regions" in done.stderr, done.stderr
    assert (home / "out-annotations/1/regions.json").exists()
    again = train("--mixture", "mix/m.yaml")
    assert "was converted before" in again.stderr and "holds the finished model" in again.stderr
    del sets[1]["format"]
    (home / "mix/m.yaml").write_text(yaml.safe_dump({"datasets": sets}))
    wrong = train("--mixture", "mix/m.yaml", "--dry-run")
    assert wrong.returncode == 1 and "dataset boxes: annotations" in wrong.stderr
    assert "Read it with format: yolo." in wrong.stderr


def test_train_lists_every_layout() -> None:
    assert set(get_args(DatasetFormat)) == {"auto", *FORMATS, *SOURCE_FORMATS}


# ---- evaluate


def run_of(folder: Path, names: dict[int, str], said: dict[int, int]) -> None:
    """A run that labeled the three boxes; said: the category of each region, 1 cat and 2 dog."""
    rows = [
        {"id": key, "image_id": 1 if key < 3 else 2, "category_id": category, "bbox": BOXES[key], "area": 100, "iscrowd": 0,
         "score": 0.5, "attributes": {"region_id": key, "decided_by": "exact"}}
        for key, category in said.items()
    ]  # fmt: skip
    images = [{"id": key, "file_name": name} for key, name in names.items()]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    folder.mkdir()
    (folder / "labels.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))


def test_a_run_is_evaluated_against_the_folder_that_was_labeled(home: Path) -> None:
    run_of(home / "run", {1: "a.jpg", 2: "sub/b.jpg"}, {1: 1, 2: 1, 3: 1})
    before = sorted(home.rglob("*"))
    direct = rlabel_here("evaluate", ["run", "--truth", "yolo", "--json"])
    assert direct.returncode == 0 and "truth: yolo is read as YOLO" in direct.stderr, direct.stderr
    assert "name another with --truth-format" in direct.stderr and sorted(home.rglob("*")) == before
    assert json.loads(direct.stdout)["top1"] == 2 / 3
    assert rlabel_here("convert", ["yolo", "--out", "own.json"]).returncode == 0
    assert rlabel_here("evaluate", ["run", "--truth", "own.json", "--json"]).stdout == direct.stdout
    wrong = rlabel_here("evaluate", ["run", "--truth", "yolo", "--truth-format", "coco"])
    assert wrong.returncode == 1 and "Read it with --truth-format yolo." in wrong.stderr


def test_a_truth_whose_numbers_mean_other_pictures_or_regions_is_refused(home: Path) -> None:
    run_of(home / "run", {1: "a.jpg", 2: "c.jpg"}, {1: 1, 2: 1, 3: 1})
    other = rlabel_here("evaluate", ["run", "--truth", "yolo"])
    assert other.returncode == 1 and "picture 2 is b.jpg there and c.jpg in run" in other.stderr
    run_of(home / "run2", {1: "a.jpg", 2: "b.jpg"}, {1: 1, 2: 1, 3: 1})
    (home / "run3").mkdir()
    (home / "run3/labels.json").write_text(
        (home / "run2/labels.json").read_text().replace('"image_id": ', '"image_id": 9')
    )
    gone = rlabel_here("evaluate", ["run3", "--truth", "yolo"])
    assert gone.returncode == 1 and gone.stderr.splitlines()[-1].startswith(
        "rlabel: yolo: no region of it is in the run"
    )
    (home / "yolo/labels/a.txt").write_text("".join(reversed(IN_A.splitlines(True))))
    turned = rlabel_here("evaluate", ["run2", "--truth", "yolo"])
    assert turned.returncode == 1 and "2 of 3 regions, such as 1, lie elsewhere" in turned.stderr


def test_a_truth_in_a_tar_leaves_its_pictures_there(home: Path) -> None:
    document = {"annotations": [{"bbox": BOXES[1], "category": "cat"}, {"bbox": BOXES[2], "category": "dog"}]}
    tar_of(home / "set.tar", {"a.jpg": picture_bytes(), "a.json": json.dumps(document).encode()})
    run_of(home / "run", {1: "a.jpg"}, {1: 1, 2: 2})
    before = sorted(home.rglob("*"))
    done = rlabel_here("evaluate", ["run", "--truth", "set.tar", "--json"])
    assert done.returncode == 0 and json.loads(done.stdout)["top1"] == 1.0, done.stderr
    assert sorted(home.rglob("*")) == before
