"""`rlabel convert`: files of each layout, made here by hand, become the COCO file that hand arithmetic says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from format_factories import areas, make_pictures, picture_bytes, read, ring, rle_of, tar_of
from rlabel.corpus.coco import read_labeled
from rlabel.errors import InputError, UsageError
from rlabel.formats.convert import convert
from run_factories import HEIGHT, WIDTH, box_rle

VOC = """<annotation><folder>f</folder><filename>a.jpg</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>cat</name><difficult>1</difficult><bndbox><xmin>5</xmin><ymin>7</ymin><xmax>24</xmax><ymax>16</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>64</xmax><ymax>48</ymax></bndbox></object></annotation>"""

CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task><labels>
<label><name>dog</name><attributes/></label><label><name>cat</name></label></labels></task></meta>
<image id="0" name="a.jpg" width="64" height="48">
<box label="cat" occluded="0" xtl="4.0" ytl="6.0" xbr="24.0" ybr="16.0" z_order="0"><attribute name="score">0.5</attribute></box>
<polygon label="dog" points="10,10;20,10;20,20;10,20"/>
<mask label="cat" rle="1, 2, 3" left="5" top="7" width="3" height="2"/>
<polyline label="cat" points="1,1;2,2"/>
<mask label="cat" rle="1, 2, 99" left="5" top="7" width="3" height="2"/></image></annotations>"""


def words(result: Any) -> str:
    return "\n".join(result.lines)


def test_yolo_boxes_and_polygons_become_pixels(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images/train", "a.jpg", "b.jpg")
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text(
        "1 0.5 0.5 0.25 0.5\n0 0.25 0.25 0.5 0.25 0.5 0.5 0.25 0.5\n7 1 1 1 1\n0 x 1 1 1\n"
    )
    (tmp_path / "data.yaml").write_text("train: images/train\nnames:\n  0: dog\n  1: cat\n")
    result = convert(str(tmp_path), str(tmp_path / "out.json"))
    assert (result.format, result.why) == ("yolo", "it has data.yaml")
    document = read(tmp_path / "out.json")
    assert [row["file_name"] for row in document["images"]] == ["train/a.jpg", "train/b.jpg"]
    assert document["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    box, polygon = document["annotations"]
    assert (box["bbox"], box["category_id"], box["area"]) == ([24, 12, 16, 24], 2, 384)
    assert (polygon["segmentation"], polygon["bbox"], polygon["area"]) == (
        [[16, 12, 32, 12, 32, 24, 16, 24]],
        [16, 12, 16, 12],
        192,
    )
    assert (
        "2 lines left out" not in words(result)
        and "a.txt, line 3" in words(result)
        and "a.txt, line 4" in words(result)
    )


def test_yolo_takes_the_upright_sides_of_a_turned_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(picture_bytes(exif=exif))
    (tmp_path / "a.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    convert(str(tmp_path), str(tmp_path / "out.json"))
    assert read(tmp_path / "out.json")["annotations"][0]["bbox"] == [0, 0, HEIGHT, WIDTH]


def test_voc_counts_pixels_from_one_and_takes_the_objects_masks(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(VOC)
    make_pictures(tmp_path / "JPEGImages", "a.jpg")
    result = convert(str(tmp_path), str(tmp_path / "boxes.json"))
    assert (result.format, result.notes) == ("voc", [])
    cat, dog = read(tmp_path / "boxes.json")["annotations"]
    assert (cat["bbox"], cat["attributes"], dog["bbox"]) == ([4, 6, 20, 10], {"difficult": True}, [0, 0, 64, 48])
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    ids[6:16, 4:14], ids[20:30, 20:25], ids[40:, :] = 1, 2, 255
    (tmp_path / "SegmentationObject").mkdir()
    picture = Image.fromarray(ids)
    picture.putpalette([value % 256 for value in range(768)])
    picture.save(tmp_path / "SegmentationObject/a.png")
    convert(str(tmp_path), str(tmp_path / "masks.json"))
    assert areas(tmp_path / "masks.json") == [("cat", 100), ("dog", 50)]


def test_cvat_boxes_polygons_and_masks(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(CVAT)
    result = convert(str(tmp_path), str(tmp_path / "out.json"))
    document = read(tmp_path / "out.json")
    assert [row["name"] for row in document["categories"]] == ["dog", "cat"], "in the order of the task's labels"
    box, polygon, mask = document["annotations"]
    assert (box["bbox"], box["attributes"]) == ([4, 6, 20, 10], {"score": "0.5"})
    assert polygon["area"] == 100
    assert (mask["bbox"], mask["area"]) == ([6, 7, 2, 1], 2), "1 outside, 2 inside in the first of two rows of three"
    assert "polyline" in words(result) and "longer than their window" in words(result)


@pytest.mark.parametrize(
    "text", ["<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>&b;</annotations>", "<annotations><image>", "<a>\x00</a>"]
)
def test_xml_with_entities_or_broken_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(InputError, match=r"annotations\.xml"):
        convert(str(tmp_path / "annotations.xml"), str(tmp_path / "out.json"), format="cvat")
    assert not (tmp_path / "out.json").exists()


def label_studio(*results: Any, **task: Any) -> str:
    frame = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    rows = [{**frame, **result} for result in results]
    return json.dumps([{"data": {"image": "/data/upload/3/0a1b2c3d-a.jpg"}, "annotations": [{"result": rows}], **task}])


def test_label_studio_rectangles_polygons_and_brushes(tmp_path: Path) -> None:
    # 4 x 64 x 48 values of 8 bits; lengths of 3, 4, 8 and 16 bits: one run of 255 over the first row, one of 0 over the rest.
    bits = (
        f"{4 * 3072:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
        + "110"
        + f"{255:08b}{255:08b}"
        + "111"
        + f"{4 * 3008 - 1:016b}{0:08b}"
    )
    bits += "0" * (-len(bits) % 8)
    brush = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    path = tmp_path / "export.json"
    path.write_text(
        label_studio(
            {
                "type": "rectanglelabels",
                "value": {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["cat"]},
            },
            {
                "type": "rectanglelabels",
                "value": {"x": 50, "y": 0, "width": 25, "height": 50, "rotation": 90, "rectanglelabels": ["cat"]},
            },
            {
                "type": "polygonlabels",
                "value": {"points": [[0, 0], [50, 0], [50, 50], [0, 50]], "polygonlabels": ["dog"]},
            },
            {"type": "brushlabels", "value": {"format": "rle", "rle": brush, "brushlabels": ["sky"]}},
            {"type": "brushlabels", "value": {"format": "rle", "rle": brush[:5], "brushlabels": ["sky"]}},
            {"type": "choices", "value": {"choices": ["good"]}},
            {"type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["cat"]}},
        )
    )
    make_pictures(tmp_path / "photos", "a.jpg")
    result = convert(str(path), str(tmp_path / "out.json"), images=str(tmp_path / "photos"))
    assert result.format == "labelstudio"
    assert read(tmp_path / "out.json")["images"][0]["file_name"] == "a.jpg", "without the upload's prefix"
    rows = read(tmp_path / "out.json")["annotations"]
    assert rows[0]["bbox"] == [16, 24, 32, 12]
    assert rows[1]["bbox"] == [8, 0, 24, 16], "turned clockwise around its upper left corner"
    assert areas(tmp_path / "out.json") == [("cat", 384), ("cat", 384), ("dog", 768), ("sky", 64)]
    assert "cut off" in words(result) and "keypointlabels" in words(result) and "choices" not in words(result)


@pytest.mark.parametrize("kind", ["grey", "sixteen", "rgb", "palette", "files"])
def test_mask_pictures_of_every_coding(tmp_path: Path, kind: str) -> None:
    make_pictures(tmp_path / "images", "a.jpg", "b.jpg")
    (tmp_path / "masks").mkdir()
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    ids[ring().astype(bool)], ids[0:2, 0:3], ids[40:42, 0:5] = 300 if kind == "sixteen" else 200, 7, 7
    if kind == "rgb":
        coded = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        coded[ids == 200], coded[ids == 7] = (0, 0, 9), (7, 1, 0)
        Image.fromarray(coded).save(tmp_path / "masks/a.png")
    elif kind == "sixteen":
        Image.fromarray(ids).save(tmp_path / "masks/a_mask.png")
    elif kind == "files":
        (tmp_path / "masks/a").mkdir()
        for name, value in (("1.png", 7), ("2.png", 200)):
            Image.fromarray(np.where(ids == value, 255, 0).astype(np.uint8)).save(tmp_path / f"masks/a/{name}")
    else:
        picture = Image.fromarray(ids.astype(np.uint8))
        if kind == "palette":
            picture.putpalette([0] * 768)
        picture.save(tmp_path / "masks/a.png")
    result = convert(str(tmp_path), str(tmp_path / "out.json"))
    assert result.format == "masks"
    assert areas(tmp_path / "out.json") == [(None, 16), (None, 400)], "by rising id; pieces of one id are one region"
    assert read(tmp_path / "out.json")["images"][1]["file_name"] == "b.jpg", "a picture without a mask stays"
    assert "1 pictures without a mask" in words(result)


def test_a_photograph_or_jpeg_as_mask_costs_its_picture_alone(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "masks").mkdir()
    noise = np.random.default_rng(0).integers(0, 60000, (200, 200), dtype=np.uint16)
    Image.fromarray(noise).save(tmp_path / "masks/a.png")
    (tmp_path / "masks/b.png").write_bytes(picture_bytes(kind="JPEG"))
    Image.fromarray(np.ones((HEIGHT, WIDTH), dtype=np.uint8)).save(tmp_path / "masks/c.png")
    result = convert(str(tmp_path), str(tmp_path / "out.json"))
    assert areas(tmp_path / "out.json") == [(None, 3072)]
    assert "size is not that of the picture" in words(result) and "got JPEG" in words(result)


def test_sa1b_files(tmp_path: Path) -> None:
    make_pictures(tmp_path, "sa_1.jpg")
    rows = [
        {
            "id": 9,
            "segmentation": rle_of(ring()),
            "bbox": [10, 10, 29, 19],
            "area": 400,
            "predicted_iou": 0.9,
            "crop_box": [0, 0, 1, 1],
        },
        {"id": 10, "segmentation": None, "bbox": None},
    ]
    image = {"image_id": 1, "width": WIDTH, "height": HEIGHT, "file_name": "sa_1.jpg"}
    (tmp_path / "sa_1.json").write_text(json.dumps({"image": image, "annotations": rows}))
    (tmp_path / "sa_2.json").write_text("{")
    result = convert(str(tmp_path), str(tmp_path / "out" / "regions.json"))
    assert result.format == "sa1b"
    (row,) = read(tmp_path / "out/regions.json")["annotations"]
    assert (row["area"], row["attributes"]) == (400, {"predicted_iou": 0.9, "source_id": 9})
    assert "sa_2.json" in words(result) and "neither a segmentation nor a box" in words(result)


def hugging_face(path: Path, objects: Any, features: Any = None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"image_id": [7], "image": [{"bytes": picture_bytes(), "path": "../../etc/a b.png"}], "objects": [objects]}
    )
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path.parent


@pytest.mark.parametrize("is_columns", [True, False])
def test_hugging_face_tables(tmp_path: Path, is_columns: bool) -> None:
    boxes, ids = [[4.0, 6.0, 20.0, 10.0], [1.0, 2.0, 3.0, 4.0]], [1, 0]
    objects = (
        {"bbox": boxes, "category": ids}
        if is_columns
        else [{"bbox": b, "category": c} for b, c in zip(boxes, ids, strict=True)]
    )
    label = {"names": ["dog", "cat"], "_type": "ClassLabel"}
    features = {
        "objects": {"category": {"feature": label, "_type": "Sequence"}} if is_columns else [{"category": label}]
    }
    source = hugging_face(tmp_path / "set/data/train-0.parquet", objects, features)
    result = convert(str(source), str(tmp_path / "out.json"), images=str(tmp_path / "photos"))
    assert result.format == "huggingface"
    assert areas(tmp_path / "out.json") == [("cat", 200), ("dog", 12)]
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a_b.jpg"], "inside, named after what it is"
    assert (tmp_path / "photos/a_b.jpg").read_bytes() == picture_bytes()


def test_boxes_that_are_two_corners_are_noticed(tmp_path: Path) -> None:
    source = hugging_face(tmp_path / "set/a.parquet", {"bbox": [[40.0, 30.0, 60.0, 40.0]], "category": ["cat"]})
    result = convert(str(source), str(tmp_path / "out.json"), images=str(tmp_path / "one"))
    assert "--boxes xyxy" in words(result)
    convert(str(source), str(tmp_path / "out.json"), images=str(tmp_path / "two"), boxes="xyxy")
    assert areas(tmp_path / "out.json") == [("cat", 200)]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_webdataset_archives(tmp_path: Path, mode: str) -> None:
    shape = {
        "annotations": [
            {"segmentation": box_rle(1, 1, 5, 5), "category": "cat"},
            {"bbox": [0, 0, 4, 4], "label": "dog"},
        ]
    }
    columns = {"bbox": [[0, 0, 2, 2]], "category": ["bird"]}
    path = tmp_path / ("a.tar" if mode == "w" else "a.tar.gz")
    members = {
        "x/000.jpg": picture_bytes(), "x/000.json": json.dumps(shape).encode(), "x/000.cls": b"1",
        "../../evil.jpg": picture_bytes(1), "../../evil.json": json.dumps(columns).encode(),
        "alone.json": b"{}", "broken.jpg": b"no picture", "broken.json": b"{}",
    }  # fmt: skip
    tar_of(path, members, mode)
    result = convert(str(path), str(tmp_path / "out.json"), images=str(tmp_path / "photos"))
    assert result.format == "webdataset"
    assert areas(tmp_path / "out.json") == [("cat", 25), ("dog", 16), ("bird", 4)]
    assert sorted(item.name for item in (tmp_path / "photos").iterdir()) == ["000.jpg", "evil.jpg"]
    assert not (tmp_path.parent / "evil.jpg").exists()
    assert "have no picture" in words(result) and "cannot be opened" in words(result)


def test_an_archive_that_is_cut_off_or_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "a.tar", {"a.jpg": picture_bytes(), "b.jpg": picture_bytes()}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1000])
    header = bytearray(whole[:512])
    header[124:136], header[156:157] = b"77777777777\0", b"x"  # an extended header of 8 GiB
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "bomb.tar").write_bytes(bytes(header) + whole)
    for name in ("cut.tar", "bomb.tar"):
        with pytest.raises(InputError, match=name):
            convert(str(tmp_path / name), str(tmp_path / "out.json"), images=str(tmp_path / name.replace(".", "_")))


@pytest.mark.parametrize("format", ["coco", "lvis"])
def test_coco_and_lvis_are_copied_and_lose_their_labels_on_request(tmp_path: Path, format: str) -> None:
    more = {"neg_category_ids": [2], "not_exhaustive_category_ids": []} if format == "lvis" else {"file_name": "a.jpg"}
    image = {"id": 1, "coco_url": "http://x/train2017/a.jpg", "width": 64, "height": 48, **more}
    row = {"id": 5, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "caption": "a cat", "iscrowd": 0}
    document = {
        "licenses": [],
        "annotations": [row],
        "images": [image],
        "categories": [{"id": 2, "name": "cat"}],
        "note": {"a": 1},
    }
    (tmp_path / "in.json").write_text(json.dumps(document))
    result = convert(str(tmp_path / "in.json"), str(tmp_path / "same.json"))
    assert result.format == format
    named = {**image, "file_name": "train2017/a.jpg" if format == "lvis" else "a.jpg"}
    assert read(tmp_path / "same.json") == {**document, "images": [named]}
    convert(str(tmp_path / "in.json"), str(tmp_path / "free.json"), class_free=True)
    free = read(tmp_path / "free.json")
    assert (
        free["annotations"] == [{"id": 5, "image_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0}]
        and "categories" not in free
    )


def test_known_labels_are_there_for_training_and_gone_when_class_free(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(CVAT)
    convert(str(tmp_path), str(tmp_path / "known.json"))
    with read_labeled(tmp_path / "known.json") as labeled:
        assert [row.category_id for row in labeled.regions()] == [2, 1, 2]
    convert(str(tmp_path), str(tmp_path / "free.json"), class_free=True)
    text = (tmp_path / "free.json").read_text()
    assert (
        "cat" not in text.replace("category", "").replace("categories", "")
        and read(tmp_path / "free.json")["categories"] == []
    )


def test_what_nobody_knows_gets_a_message_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04....")
    (tmp_path / "results.json").write_text('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    make_pictures(tmp_path / "photos", "a.jpg")
    (tmp_path / "many").mkdir()
    (tmp_path / "many/instances.json").write_text('{"images": [], "annotations": []}')
    cases = {
        "a.zip": "unpacked first.*--from", "results.json": "COCO results.*--from", "photos": "pictures alone.*layout, masks.*--from",
        "many": "name that file instead", "nothing": "no such file",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(InputError, match=f"(?s){message}"):
            convert(str(tmp_path / name), str(tmp_path / "out.json"))
    with pytest.raises(UsageError, match="--images"):
        convert(
            str(hugging_face(tmp_path / "set/a.parquet", {"bbox": [[0.0, 0.0, 1.0, 1.0]]})), str(tmp_path / "out.json")
        )


def test_a_wrong_guess_is_named_in_the_error(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images", "a.jpg")
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    with pytest.raises(
        InputError, match=r"(?s)none of its 1 pictures has a text file.*since it has data\.yaml.*--from"
    ):
        convert(str(tmp_path), str(tmp_path / "out.json"))
    assert not (tmp_path / "out.json").exists()


def test_yaml_that_names_itself_into_any_size_is_refused(tmp_path: Path) -> None:
    make_pictures(tmp_path / "images", "a.jpg")
    rows = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    (tmp_path / "data.yaml").write_text(f"l0: &l0 [x]\n{rows}names: *l11\n")
    with pytest.raises(InputError, match="not YAML that can be read"):
        convert(str(tmp_path), str(tmp_path / "out.json"))


def test_a_file_of_ever_new_faults_makes_no_endless_notes(tmp_path: Path) -> None:
    shapes = [{"type": f"kind{number}", "value": {"x": 1}} for number in range(1000)]
    (tmp_path / "export.json").write_text(label_studio(*shapes))
    result = convert(str(tmp_path / "export.json"), str(tmp_path / "out.json"))
    assert len(result.notes) < 400 and sum(row["count"] for row in result.notes) == 1000  # type: ignore[misc]


def test_lists_nested_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"images": [' + "[" * 600 + "]" * 600 + '], "annotations": []}')
    with pytest.raises(InputError, match="nested too deeply"):
        convert(str(tmp_path / "in.json"), str(tmp_path / "out.json"), format="coco")
    assert not (tmp_path / "out.json").exists()
