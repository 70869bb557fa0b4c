"""Readers of COCO, LVIS and V3Det, and how a layout is told; `test_dataset_readers_language` has the other two."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from dataset_factories import (
    coco_rows,
    lvis_rows,
    refcoco_folder,
    v3det_rows,
    visual_genome_folder,
    visual_genome_rows,
    write_json,
)
from rlabel.corpus.labeled import Federated, LabeledImage, LabeledSource
from rlabel.corpus.open import FORMATS, open_labeled
from rlabel.errors import InputError, UsageError


def read(source: LabeledSource) -> list[LabeledImage]:
    with source:
        return list(source.images())


def by_pycocotools(path: Path) -> dict[int, list[tuple[int, int, list[float]]]]:
    """Return id, category and box of each image's annotations, as pycocotools reads them."""
    with redirect_stdout(StringIO()):
        coco = COCO(str(path))
    return {
        image_id: [
            (row["id"], row["category_id"], row["bbox"]) for row in coco.loadAnns(coco.getAnnIds(imgIds=image_id))
        ]
        for image_id in coco.getImgIds()
    }


@pytest.mark.parametrize(("name", "rows"), [("coco", coco_rows), ("lvis", lvis_rows), ("v3det", v3det_rows)])
def test_images_regions_and_categories_are_those_that_pycocotools_reads(tmp_path, name, rows):
    path = write_json(tmp_path / "a.json", rows())
    with open_labeled(name, path) as source:
        images = list(source.images())
        assert source.format == name and source.guess is None
        assert (source.problems, source.num_skipped) == ([], 0)
        with redirect_stdout(StringIO()):
            assert {id_: one.name for id_, one in source.categories.items()} == {
                row["id"]: row["name"] for row in COCO(str(path)).cats.values()
            }
    found = {
        image.record.row["id"]: [
            (label.region.region_id, label.category_id, list(label.region.box_xywh or ())) for label in image.labels
        ]
        for image in images
    }
    assert found == by_pycocotools(path)
    assert all(image.record.regions == tuple(label.region for label in image.labels) for image in images)
    assert [image.record.row for image in images] == rows()["images"]


def test_coco_captions_come_with_their_regions(tmp_path):
    images = read(open_labeled("coco", write_json(tmp_path / "a.json", coco_rows())))
    assert [(label.region.key, label.caption) for label in images[0].labels] == [("82445", None), ("5", "a table")]
    assert all(not label.expressions and not label.names for image in images for label in image.labels)
    assert all(image.federated is None and image.relations == () for image in images)


def test_lvis_keeps_what_is_federated(tmp_path):
    with open_labeled("lvis", write_json(tmp_path / "a.json", lvis_rows())) as source:
        images = list(source.images())
        can = source.categories[1]
    assert [image.record.file_name for image in images] == ["train2017/000000391895.jpg", "val2017/000000522418.jpg"]
    assert images[0].federated == Federated(negative_ids=(3, 1), not_exhaustive_ids=())
    assert images[1].federated == Federated(negative_ids=(), not_exhaustive_ids=(1,))
    assert (can.name, can.synonyms, can.frequency) == ("aerosol_can", ("aerosol_can", "spray_can"), "c")
    assert can.definition == "the meaning of aerosol_can"
    assert can.extra == {"synset": "aerosol.n.02", "image_count": 64, "instance_count": 109}


def test_lvis_0_5_finds_its_pictures_in_2017s_folders(tmp_path):
    rows = lvis_rows()
    rows["images"][0]["file_name"] = "COCO_train2014_000000391895.jpg"
    images = read(open_labeled("lvis", write_json(tmp_path / "a.json", rows)))
    assert images[0].record.file_name == "train2017/000000391895.jpg"


def test_v3det_has_a_name_for_several_senses(tmp_path):
    with open_labeled("v3det", write_json(tmp_path / "a.json", v3det_rows())) as source:
        images = list(source.images())
        assert [(id_, one.name, one.definition) for id_, one in source.categories.items()] == [
            (1, "mouse", "any of numerous small rodents"),
            (13204, "mouse", "a hand-operated device"),
        ]
        assert source.categories[1].extra["novel"] is False and source.categories[1].extra["name_zh"] == "老鼠"
    assert images[0].record.file_name == "images/n02330245/1_2_3.jpg"
    assert [label.region.segmentation for image in images for label in image.labels] == [None, None, None]


def test_images_may_be_read_again_and_only_the_first_few(tmp_path):
    with open_labeled("v3det", write_json(tmp_path / "a.json", v3det_rows())) as source:
        assert list(source.images()) == list(source.images())
        assert [image.record.row["id"] for image in source.images(limit=1)] == [1]
        assert list(source.images(limit=0)) == []


def test_an_image_without_regions_still_comes_for_its_negatives(tmp_path):
    rows = lvis_rows()
    rows["annotations"].pop()
    images = read(open_labeled("lvis", write_json(tmp_path / "a.json", rows)))
    assert [len(image.labels) for image in images] == [1, 0] and images[1].federated is not None


# What is wrong with single rows.


def test_bad_rows_are_left_out_and_counted(tmp_path):
    rows = v3det_rows()
    good = rows["annotations"][0]
    rows["annotations"] += [
        {**good, "id": 11, "bbox": [math.nan, 1, 2, 3]},
        {**good, "id": 12, "bbox": [1, 1, 0, 5]},
        {**good, "id": 13, "bbox": [1, 1, 5, -5]},
        {**good, "id": 14, "category_id": None},
        {**good, "id": 15, "category_id": 1.5},
        {**good, "id": 16, "image_id": 99},
        17,
        {**good, "id": 18, "bbox": [1, 1, math.inf, 5]},
    ]
    with open_labeled("v3det", write_json(tmp_path / "a.json", rows)) as source:
        assert [label.region.key for image in source.images() for label in image.labels] == ["1", "2", "3"]
        found = {problem.where: problem.what for problem in source.problems}
        assert source.num_skipped == 8 and len(found) == 8
    assert "not four finite numbers" in found["annotations, region 11"]
    assert "no positive width" in found["annotations, region 12"]
    assert "category_id" in found["annotations, region 14"]
    assert "99" in found["annotations row 9 (id 16)"]


def test_the_list_of_problems_ends_and_the_count_does_not(tmp_path):
    rows = v3det_rows()
    rows["annotations"] += [{**rows["annotations"][0], "id": 100 + i, "bbox": [1, 1, 0, 0]} for i in range(1500)]
    with open_labeled("v3det", write_json(tmp_path / "a.json", rows)) as source:
        assert source.num_skipped == 1500 and len(source.problems) == 1001 and "500" in source.problems[-1].what


def test_a_mask_is_enough_and_a_crowd_is_kept_as_such(tmp_path):
    rows = coco_rows()
    rows["annotations"][0]["bbox"] = [math.nan] * 4
    rows["annotations"][1]["iscrowd"] = 1
    with open_labeled("coco", write_json(tmp_path / "a.json", rows)) as source:
        labels = [label for image in source.images() for label in image.labels]
        assert source.problems == []
    assert [(label.region.key, label.region.is_crowd) for label in labels] == [
        ("82445", False),
        ("5", False),
        ("119568", True),
    ]


def test_images_that_share_an_id_give_no_region(tmp_path):
    rows = coco_rows()
    rows["images"].append({**rows["images"][0], "file_name": "other.jpg"})
    with open_labeled("coco", write_json(tmp_path / "a.json", rows)) as source:
        assert [len(image.labels) for image in source.images()] == [0, 1]
        assert source.num_skipped == 2 and "other.jpg" in source.problems[0].what


# What stops before any training step.


@pytest.mark.parametrize(
    ("name", "rows", "change", "words"),
    [
        ("coco", coco_rows, lambda rows: rows["annotations"][1].update(category_id=9), ["annotation 119568", "got 9", "drop the annotation"]),
        ("lvis", lvis_rows, lambda rows: rows["annotations"][1].update(category_id=9), ["annotation 2", "got 9"]),
        ("lvis", lvis_rows, lambda rows: rows["images"][1].update(neg_category_ids=[7]), ["images, id 522418", "neg_category_ids", "got 7"]),
        ("lvis", lvis_rows, lambda rows: rows["images"][1].update(neg_category_ids=None), ["images, id 522418", "neg_category_ids", "None"]),
        ("lvis", lvis_rows, lambda rows: rows["images"][1].pop("neg_category_ids"), ["images, id 522418", "neg_category_ids", "as coco"]),
        ("lvis", lvis_rows, lambda rows: rows["images"][0].pop("not_exhaustive_category_ids"), ["391895", "not_exhaustive_category_ids"]),
        ("lvis", lvis_rows, lambda rows: rows["categories"][2].pop("frequency"), ["category 3 ('applesauce')", "frequency", "as coco"]),
        ("lvis", coco_rows, lambda rows: None, ["images, id 397133", "neg_category_ids", "as coco"]),
        ("v3det", coco_rows, lambda rows: None, ["category 44 ('bottle')", "cat_info", "as coco"]),
        ("v3det", v3det_rows, lambda rows: rows.pop("categories"), ["categories", "cat_info"]),
        ("coco", coco_rows, lambda rows: rows.pop("categories"), ["annotation 82445", "got 44"]),
        ("coco", coco_rows, lambda rows: rows["categories"][1].update(id=44), ["categories row 2", "'bottle'", "Renumber"]),
        ("coco", coco_rows, lambda rows: rows["categories"][1].update(name=" "), ["categories row 2", "a text as name"]),
        ("coco", coco_rows, lambda rows: rows["categories"].append(5), ["categories row 3", "got 5"]),
        ("coco", coco_rows, lambda rows: rows["annotations"].clear(), ["at least one usable region", "none of 0"]),
        ("coco", coco_rows, lambda rows: [row.update(iscrowd=1) for row in rows["annotations"]], ["at least one usable region", "3 are crowds"]),
        ("v3det", v3det_rows, lambda rows: [row.update(bbox=[1, 1, 0, 0]) for row in rows["annotations"]], ["usable region", "region 1", "width"]),
        ("coco", coco_rows, lambda rows: [row.pop("file_name") for row in rows["images"]], ["usable region", "images, id 397133", "file_name"]),
    ],
)  # fmt: skip
def test_wrong_data_is_one_error_that_names_file_record_and_remedy(tmp_path, name, rows, change, words):
    content = rows()
    change(content)
    path = write_json(tmp_path / "wrong.json", content)
    with pytest.raises(InputError) as caught:
        open_labeled(name, path)
    for word in ["wrong.json", *words]:
        assert word in str(caught.value)


def held_files(folder: Path) -> list[str]:
    """Return what lies in a folder, and what lies there without a name because this process has it open."""
    proc = Path("/proc/self/fd")
    links = [os.readlink(link) for link in proc.iterdir() if link.is_symlink()] if proc.exists() else []
    return [link for link in links if link.startswith(str(folder))] + [path.name for path in folder.iterdir()]


def test_the_temporary_file_is_gone_after_closing_and_after_every_error(tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    empty = write_json(tmp_path / "a.json", coco_rows() | {"annotations": []})
    for name in ("coco", "lvis", "v3det"):
        with pytest.raises(InputError):
            open_labeled(name, empty, spool_dir=str(spool))
        assert held_files(spool) == []
    lacking = {name: rows for name, rows in visual_genome_rows().items() if name != "image_data.json"}
    with pytest.raises(InputError):
        open_labeled("visual_genome", visual_genome_folder(tmp_path / "vg", lacking), spool_dir=str(spool))
    with pytest.raises(InputError):
        open_labeled("refcoco", refcoco_folder(tmp_path / "refcoco"), "testB", spool_dir=str(spool))
    assert held_files(spool) == []
    for name, path in all_layouts(tmp_path / "good").items():
        with open_labeled(name, path, "val" if name == "refcoco" else None, spool_dir=str(spool)) as source:
            assert next(source.images()).labels
            assert held_files(spool) != []
        assert held_files(spool) == []


# Which layout it is.


def all_layouts(folder: Path) -> dict[str, Path]:
    return {
        "coco": write_json(folder / "coco.json", coco_rows()),
        "lvis": write_json(folder / "lvis.json", lvis_rows()),
        "v3det": write_json(folder / "v3det.json", v3det_rows()),
        "visual_genome": visual_genome_folder(folder / "vg"),
        "refcoco": refcoco_folder(folder / "refcoco") / "refs(unc).p",
    }


@pytest.mark.parametrize("name", FORMATS)
def test_auto_tells_the_layout_and_says_why(tmp_path, name):
    path = all_layouts(tmp_path)[name]
    split = "train" if name == "refcoco" else None
    with open_labeled("auto", path, split) as source, open_labeled(name, path, split) as told:
        assert source.format == name and source.guess is not None and path.name in source.guess
        assert list(source.images()) == list(told.images()) and told.guess is None


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_another_layout_than_told_is_an_error_that_says_what_it_looks_like(tmp_path, name):
    layouts = all_layouts(tmp_path)
    words = {"visual_genome": "a folder of Visual Genome's files", "refcoco": "a pickle"}
    for other, path in layouts.items():
        if (name if name in words else "coco") != (other if other in words else "coco"):
            with pytest.raises(InputError, match=words.get(other, "a COCO file, or one of its kin")) as caught:
                open_labeled(name, path, "train" if name == "refcoco" else None)
            assert path.name in str(caught.value) and "Read it with the format" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04....", "zip archive, which must be unpacked"),
        (b"name,box\n", "no JSON"),
        (b"[]", "an empty JSON list"),
        (b"[1]", "a JSON list"),
        (b'[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}]', "COCO results"),
        (b'[{"x": 1}]', "a JSON list of objects with the keys 'x'"),
        (b'{"type": "FeatureCollection", "features": []}', "the keys 'type', 'features'"),
        (b"{}", "a JSON object with no keys"),
        (json.dumps(visual_genome_rows()["image_data.json"]).encode(), "image_data.json"),
    ],
)
def test_a_file_of_no_layout_says_what_it_looks_like(tmp_path, content, words):
    (tmp_path / "odd.json").write_bytes(content)
    for name in ("auto", "coco", "visual_genome"):
        with pytest.raises(InputError) as caught:
            open_labeled(name, tmp_path / "odd.json")
        assert words in str(caught.value) and "odd.json" in str(caught.value)


def test_a_missing_or_broken_file_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_labeled("auto", tmp_path / "missing.json")
    with pytest.raises(InputError, match="a folder with nothing in it"):
        (tmp_path / "empty").mkdir()
        open_labeled("auto", tmp_path / "empty")
    (tmp_path / "cut.json").write_text(json.dumps(coco_rows())[:-40])
    with pytest.raises(InputError, match="cut.json, line 1"):
        open_labeled("auto", tmp_path / "cut.json")


def test_a_wrong_call_is_a_usage_error(tmp_path):
    path = write_json(tmp_path / "a.json", coco_rows())
    with pytest.raises(UsageError, match="expected one of auto, coco, lvis"):
        open_labeled("yolo", path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="only read from RefCOCO"):
        open_labeled("coco", path, "train")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_times_the_dataset_takes_no_more_memory(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from rlabel.corpus.open import open_labeled
        with open_labeled("auto", sys.argv[1]) as source:
            num_regions = sum(len(image.labels) for image in source.images())
        print(num_regions, open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
        """
    )
    peaks = []
    for num_images in (4000, 40_000):
        rows = v3det_rows()
        image, region = rows["images"][0], rows["annotations"][0]
        rows["images"] = [{**image, "id": i} for i in range(num_images)]
        rows["annotations"] = [{**region, "id": i + 1, "image_id": i % num_images} for i in range(4 * num_images)]
        path = write_json(tmp_path / "a.json", rows)
        run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
        num_regions, peak_kib = map(int, run.stdout.split())
        assert num_regions == 4 * num_images
        peaks.append(peak_kib)
    # As objects, 160,000 rows take some 200 MB; SQLite's page cache may grow to its 32 MiB.
    assert peaks[1] - peaks[0] < 40 * 1024
