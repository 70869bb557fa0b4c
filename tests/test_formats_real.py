"""Folders as the tools of the world really write them, made here small: labelme, COCO panoptic, Roboflow, Ultralytics, darknet."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from format_factories import make_pictures, read
from rlabel.formats.convert import Converted, convert
from run_factories import HEIGHT, WIDTH


def converted(source: Path, images: Path | None = None) -> tuple[Converted, Any]:
    """What a conversion without any option says and writes."""
    out = source.parent / "converted.json"
    done = convert(str(source), str(out), images=None if images is None else str(images))
    return done, read(out)


def area(row: Any) -> int:
    shape = row["segmentation"]
    parts = coco_mask.frPyObjects(shape, HEIGHT, WIDTH) if isinstance(shape, list) else [shape]
    return int(coco_mask.area(coco_mask.merge(parts)))


def png(pixels: Any) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    return base64.b64encode(data.getvalue()).decode()


def labelme(path: Path, *shapes: Any, **more: Any) -> Path:
    """As labelme 5 saves a file; imagePath with the backslash that Windows writes."""
    document = {
        "version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": "..\\images\\a.jpg", "imageData": None,
        "imageHeight": HEIGHT, "imageWidth": WIDTH,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**document, **more}))
    return path


def shape(kind: str, points: Any, label: str = "cat", group: int | None = None, **more: Any) -> Any:
    return {
        "label": label,
        "points": points,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        **more,
    }


def test_labelme_shapes_enclose_what_labelme_draws(tmp_path: Path) -> None:
    make_pictures(tmp_path / "set/images", "a.jpg")
    window = np.zeros((4, 5), dtype=bool)
    window[1:3, 2:5] = True
    shapes = [
        shape("polygon", [[10, 10], [20, 10], [20, 20], [10, 20]]),
        shape("rectangle", [[30, 20], [24, 12]], "dog"),
        shape("circle", [[40, 24], [40, 34]]),
        shape("mask", [[6, 7], [10, 10]], mask=png(window)),
        shape("polygon", [[0, 0], [4, 0], [4, 4], [0, 4]], "pair", 3),
        shape("polygon", [[50, 0], [54, 0], [54, 4], [50, 4]], "pair", 3),
        shape("line", [[0, 0], [9, 9]]),
        shape("polygon", [[0, 0], ["x", 9]]),
        shape("mask", [[6, 7], [10, 10]], mask="no base64"),
    ]
    labelme(tmp_path / "set/json/a.json", *shapes)
    done, document = converted(tmp_path / "set/json", tmp_path / "set")
    assert done.format == "labelme" and document["images"][0]["file_name"] == "images/a.jpg"
    names = {row["id"]: row["name"] for row in document["categories"]}
    rows = [(names[row["category_id"]], row["bbox"], area(row)) for row in document["annotations"]]
    assert rows[:2] == [("cat", [10, 10, 10, 10], 100), ("dog", [24, 12, 6, 8], 48)]
    assert rows[2][1] == [30, 14, 20, 20] and rows[2][2] == pytest.approx(np.pi * 100, rel=0.02)
    assert rows[3:] == [("cat", [8, 8, 3, 2], 6), ("pair", [0, 0, 54, 4], 32)]
    said = "\n".join(done.lines)
    assert "kind line" in said and "not pairs of numbers" in said and "no PNG" in said


def test_a_labelme_mask_that_reaches_out_of_its_picture_keeps_what_is_inside(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images", "a.jpg")
    whole = np.ones((6, 6), dtype=np.uint8)
    path = labelme(
        tmp_path / "json/a.json",
        shape("mask", [[-2, -3], [3, 2]], mask=png(whole)),
        shape("mask", [[900, 900], [905, 905]], mask=png(whole)),
        shape("mask", [[0, 0], [99, 99]], mask=png(np.ones((100, 100), np.uint8))),
    )
    done, document = converted(path, tmp_path)
    assert [(row["bbox"], area(row)) for row in document["annotations"]] == [([0, 0, 4, 3], 12)]
    assert "cover no pixel" in "\n".join(done.lines) and "at most their picture's size" in "\n".join(done.lines)


def panoptic(folder: Path) -> Path:
    """As COCO's own: panoptic_val.json, and panoptic_val/ with PNGs whose colours are ids; annotations before images."""
    make_pictures(folder / "val", "a.jpg", "b.jpg", "c.jpg")
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    ids[2:6, 3:9], ids[10:40, 20:60], ids[44:46, 0:2] = 7, 70_000, 9
    pixels = np.stack((ids % 256, ids // 256 % 256, ids // 65536), axis=2).astype(np.uint8)
    (folder / "panoptic_val").mkdir()
    Image.fromarray(pixels).save(folder / "panoptic_val/a.png")
    segments = [
        {"id": 7, "category_id": 1, "area": 24, "bbox": [3, 2, 6, 4], "iscrowd": 1},
        {"id": 70_000, "category_id": 200, "area": 1200, "bbox": [20, 10, 40, 30], "iscrowd": 0},
        {"id": 8, "category_id": 1, "area": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0},
    ]
    document = {
        "info": {}, "annotations": [
            {"segments_info": segments, "file_name": "a.png", "image_id": 1},
            {"segments_info": segments, "file_name": "../../b.png", "image_id": 2},
            {"segments_info": segments, "file_name": "a.png", "image_id": 99},
        ],
        "images": [{"id": number, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT} for number, name in enumerate("abc", start=1)],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 200, "name": "sky", "isthing": 0}],
    }  # fmt: skip
    (folder / "panoptic_val.json").write_text(json.dumps(document))
    # With the images in front, as COCO has them.
    order = ("info", "images", "annotations", "categories")
    (folder / "ordered.json").write_text(json.dumps({key: document[key] for key in order}))
    (folder / "ordered").symlink_to(folder / "panoptic_val")
    return folder


@pytest.mark.parametrize("name", ["panoptic_val.json", "ordered.json"])
def test_panoptic_segments_are_the_pixels_of_their_colour(tmp_path: Path, name: str) -> None:
    home = panoptic(tmp_path / "coco")
    done = convert(str(home / name), str(tmp_path / "out.json"), format="panoptic", images=str(home / "val"))
    if name == "ordered.json":
        assert convert(str(home / name), str(tmp_path / "again.json"), images=str(home / "val")).format == "panoptic"
        assert (tmp_path / "again.json").read_bytes() == (tmp_path / "out.json").read_bytes()
    document = read(tmp_path / "out.json")
    names = {row["id"]: row["name"] for row in document["categories"]}
    found = [
        (names[row["category_id"]], row["bbox"], area(row), row["iscrowd"], row["attributes"]["is_thing"])
        for row in document["annotations"]
    ]
    assert found == [("cat", [3, 2, 6, 4], 24, 1, True), ("sky", [20, 10, 40, 30], 1200, 0, False)]
    assert [row["file_name"] for row in document["images"]] == ["a.jpg", "b.jpg", "c.jpg"]
    counts = {row["what"]: row["count"] for row in done.notes}
    assert sorted(counts.values()) == [1, 1, 1, 1, 1], (
        counts
    )  # stray colour, segment without a pixel, ../../b.png, image 99, c.jpg


BOX = "1 0.5 0.5 0.25 0.25\n"
TREES = {
    "ultralytics": ("images/{}/{}.jpg", "labels/{}/{}.txt", "data.yaml", "path: ../datasets/x\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n"),
    "roboflow": ("{}/images/{}.jpg", "{}/labels/{}.txt", "data.yaml", "train: ../train/images\nnc: 2\nnames: ['cat', 'dog']\n"),
    "darknet": ("obj_{}_data/{}.jpg", "obj_{}_data/{}.txt", "obj.names", "cat\ndog\n"),
}  # fmt: skip


@pytest.mark.parametrize("tool", TREES)
def test_yolo_of_every_tool_is_recognised_with_its_splits(tmp_path: Path, tool: str) -> None:
    root = tmp_path / "set"
    picture, text, listing, names = TREES[tool]
    for split, stem in (("train", "a"), ("valid", "b")):
        make_pictures(root, picture.format(split, stem))
        (root / text.format(split, stem)).parent.mkdir(parents=True, exist_ok=True)
        (root / text.format(split, stem)).write_text(BOX)
    (root / listing).write_text(names)
    done, document = converted(root)
    assert done.format == "yolo" and done.written.num_images == done.written.num_known == 2
    assert done.pictures is not None
    for row in document["images"]:
        assert (Path(done.pictures) / row["file_name"]).is_file()
    assert {row["category_id"] for row in document["annotations"]} == {2} and document["categories"][1]["name"] == "dog"
    assert {tuple(row["bbox"]) for row in document["annotations"]} == {(24, 18, 16, 12)}


def test_voc_as_roboflow_writes_it_has_its_pictures_beside_the_xml(tmp_path: Path) -> None:
    xml = (
        "<annotation><folder></folder><filename>{0}.jpg</filename><path>{0}.jpg</path><source><database>roboflow.com</database></source>"
        "<size><width>64</width><height>48</height><depth>3</depth></size><segmented>0</segmented><object><name>cat</name>"
        "<pose>Unspecified</pose><truncated>1</truncated><difficult>0</difficult><occluded>0</occluded>"
        "<bndbox><xmin>5</xmin><xmax>24</xmax><ymin>7</ymin><ymax>16</ymax></bndbox></object></annotation>"
    )
    for split, stem in (("train", "a"), ("valid", "b")):
        make_pictures(tmp_path / "set", f"{split}/{stem}.jpg")
        (tmp_path / f"set/{split}/{stem}.xml").write_text(xml.format(stem))
    done, document = converted(tmp_path / "set")
    assert done.format == "voc" and done.pictures == str(tmp_path / "set") and done.notes == []
    assert [row["file_name"] for row in document["images"]] == ["train/a.jpg", "valid/b.jpg"]
    assert {tuple(row["bbox"]) for row in document["annotations"]} == {(4, 6, 20, 10)}
    assert document["annotations"][0]["attributes"] == {"truncated": True}
