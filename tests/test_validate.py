"""What `validate_corpus` says of a corpus, and the schema of its file."""

from __future__ import annotations

import pytest

from rlabel.corpus.validate import validate_corpus
from rlabel.errors import InputError
from rlabel.records import JsonValue
from rlabel.schema_files import validate as fits_schema

from factories import annotation, coco_file, image_row, save_picture  # isort: skip


def test_validate_names_each_row_and_what_follows(tmp_path):
    save_picture(tmp_path / "images" / "a.png")
    images = [image_row(), {"id": 2, "file_name": "missing.png", "width": "24", "height": 16}]
    rows = [
        annotation(1, category_id=4),
        annotation(2, category_id=5),
        annotation(3, bbox=[100, 100, 5, 5]),
        annotation(4, 2, segmentation=[]),
    ]
    path = coco_file(tmp_path / "c.json", images, rows, {"categories": [{"id": 4, "name": "cat"}]})
    found = {
        (problem.severity, problem.where): problem.what for problem in validate_corpus(tmp_path / "images", path, True)
    }
    assert set(found) == {
        ("warning", "images row 2 (id 2)"),
        ("warning", "annotations row 2 (id 2)"),
        ("error", "annotations, region 3"),
        ("error", "images, id 2"),
    }
    assert "width" in found["warning", "images row 2 (id 2)"] and "5" in found["warning", "annotations row 2 (id 2)"]
    assert "outside" in found["error", "annotations, region 3"] and "no such file" in found["error", "images, id 2"]
    without = {problem.where: problem.severity for problem in validate_corpus(tmp_path / "nowhere", path, False)}
    assert without["annotations, region 3"] == "error" and without["images, id 2"] == "warning"


def test_validate_finds_nothing_wrong_with_a_good_corpus(tmp_path):
    save_picture(tmp_path / "images" / "a.png")
    path = coco_file(tmp_path / "c.json", [image_row()], [annotation()])
    assert list(validate_corpus(tmp_path / "images", path, True)) == []


RLE: JsonValue = {"size": [2, 2], "counts": [0, 4]}


def test_the_schema_takes_a_corpus_with_all_its_forms():
    rows: list[JsonValue] = [annotation(), annotation("b", segmentation=RLE), {"image_id": 1, "segmentation": []}]
    fits_schema({"images": [image_row(), {"id": 2, "coco_url": "x"}], "annotations": rows}, "corpus", "here")


@pytest.mark.parametrize(
    ("corpus", "match"),
    [
        ({"images": [image_row()]}, "annotations"),
        ({"images": [image_row()], "annotations": [annotation(bbox=[1, 2, 3])]}, "bbox"),
        ({"images": [{"id": 1}], "annotations": []}, "images"),
    ],
)
def test_the_schema_refuses_what_is_no_corpus(corpus, match):
    with pytest.raises(InputError, match=match):
        fits_schema(corpus, "corpus", "here")
