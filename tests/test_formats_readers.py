"""Exports before the readers that will open them. Those that are not installed are skipped; `pip install lvis supervision ...` runs them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import faster_coco_eval
import hotcoco
import numpy as np
import pytest
from pycocotools.coco import COCO

from format_factories import make_pictures, make_run, masks_of
from rlabel.formats.brush import brush_to_mask
from rlabel.formats.export import TARGET_FORMATS, export

NUM_LABELS = 6


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run in every layout, with its pictures; boxes/ holds YOLO's boxes."""
    root = tmp_path_factory.mktemp("exports")
    run = make_run(root / "run")
    photos = make_pictures(root / "photos", "1.jpg", "5.jpg", "20.jpg")
    for to in TARGET_FORMATS:
        export(str(run), str(root / to), to=to, images=str(photos))
    export(str(run), str(root / "boxes"), to="yolo", images=str(photos), boxes_only=True)
    return root


def mask_pixels(out: Path) -> int:
    return int(sum(mask.area_px for rows in masks_of(out / "run/labels.json").values() for _, mask in rows))


def quietly(function: Any, *arguments: Any, **named: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments, **named)


@pytest.mark.parametrize("reader", [COCO, faster_coco_eval.COCO], ids=["pycocotools", "faster_coco_eval"])
def test_coco_readers_load_results_lvis_and_fiftyones_file(out: Path, reader: Any) -> None:
    for path in ("lvis/lvis.json", "fiftyone/labels.json"):
        truth = quietly(reader, str(out / path))
        assert sum(int(truth.annToMask(row).sum()) for row in truth.anns.values()) == mask_pixels(out)
    for kind in ("bbox", "segm"):
        assert len(quietly(truth.loadRes, str(out / f"coco-results/{kind}.json")).anns) == NUM_LABELS


def test_hotcoco_reads_yolo_voc_and_cvat(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out / "boxes/labels", tmp_path / "flat")
    shutil.copy(out / "boxes/data.yaml", tmp_path / "flat")
    boxes = hotcoco.COCO.from_yolo(str(tmp_path / "flat"), str(out / "boxes/images"))
    voc = hotcoco.COCO.from_voc(str(out / "voc"))
    for found in (boxes, voc):
        assert (len(found.imgs), len(found.anns), len(found.cats)) == (3, NUM_LABELS, 3)
        assert [4, 6, 20, 10] in [np.round(row["bbox"], 3).tolist() for row in found.dataset["annotations"]]
    polygons = hotcoco.COCO.from_cvat(str(out / "cvat/annotations.xml"))
    assert (len(polygons.imgs), len(polygons.anns)) == (3, 4), (
        "it knows no masks; the ring and the two pieces are masks"
    )
    assert len(quietly(hotcoco.COCO, str(out / "fiftyone/labels.json")).anns) == NUM_LABELS


def test_pandas_reads_both_tables(out: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table, text = pandas.read_parquet(out / "parquet/regions.parquet"), pandas.read_csv(out / "csv/regions.csv")
    assert table.shape == text.shape == (NUM_LABELS + 2, len(table.columns))
    assert table.groupby("category").score.mean()["cat"] == pytest.approx((0.9 + 0.4 + 0.1) / 3)


def test_lvis_api_reads_lvis(out: Path) -> None:
    lvis = pytest.importorskip("lvis")
    found = lvis.LVIS(str(out / "lvis/lvis.json"))
    assert sum(int(found.ann_to_mask(row).sum()) for row in found.anns.values()) == mask_pixels(out)
    assert {row["frequency"] for row in found.cats.values()} == {"r"}, "each in fewer than eleven pictures"


def test_datasets_loads_the_hugging_face_table(out: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = str(out / "huggingface/data/*.parquet")
    found = quietly(datasets.load_dataset, "parquet", data_files=files, cache_dir=str(tmp_path))["train"]
    assert found.features["objects"]["category"].feature.names == ["cat", "dog", "überraschungsei"]
    assert found[0]["image"].size == (64, 48) and found[0]["objects"]["bbox"][0] == [4, 6, 20, 10]


def test_supervision_reads_yolo_voc_and_coco(out: Path) -> None:
    import supervision as sv

    yolo = out / "yolo"
    found = sv.DetectionDataset.from_yolo(
        str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"), force_masks=True
    )
    assert sum(map(len, found.annotations.values())) == NUM_LABELS and found.classes == [
        "cat",
        "dog",
        "überraschungsei",
    ]
    voc = sv.DetectionDataset.from_pascal_voc(str(out / "voc/JPEGImages"), str(out / "voc/Annotations"))
    boxes = np.concatenate([rows.xyxy for rows in voc.annotations.values()]).tolist()
    assert len(boxes) == NUM_LABELS and [4, 6, 24, 16] in boxes
    coco = sv.DetectionDataset.from_coco(str(out / "fiftyone/data"), str(out / "fiftyone/labels.json"))
    assert sum(map(len, coco.annotations.values())) == NUM_LABELS


def test_datumaro_reads_cvat_and_voc(out: Path, tmp_path: Path) -> None:
    dm = pytest.importorskip("datumaro")
    shutil.copytree(out / "cvat", tmp_path / "cvat")
    shutil.copytree(out / "photos", tmp_path / "cvat/images")
    cvat = dm.Dataset.import_from(str(tmp_path / "cvat"), "cvat")
    assert sum(len(item.annotations) for item in cvat) == NUM_LABELS
    voc = dm.Dataset.import_from(str(out / "voc"), "voc")
    kinds = [type(one).__name__ for item in voc for one in item.annotations]
    assert kinds.count("Bbox") == NUM_LABELS and len(kinds) == 2 * NUM_LABELS


def test_labelformat_reads_yolo_voc_and_coco(out: Path) -> None:
    from labelformat import formats

    names = "cat,dog,überraschungsei"
    found = {
        "boxes": formats.YOLOv8ObjectDetectionInput(input_file=out / "boxes/data.yaml", input_split="train"),
        "masks": formats.YOLOv8InstanceSegmentationInput(input_file=out / "yolo/data.yaml", input_split="train"),
        "voc": formats.PascalVOCObjectDetectionInput(input_folder=out / "voc/Annotations", category_names=names),
        "coco": formats.COCOObjectDetectionInput(input_file=out / "fiftyone/labels.json"),
    }
    for kind, source in found.items():
        assert sum(len(label.objects) for label in source.get_labels()) == NUM_LABELS, kind


def test_globox_reads_voc_cvat_and_coco(out: Path) -> None:
    import globox

    kinds = globox.AnnotationSet
    for found in (
        kinds.from_pascal_voc(out / "voc/Annotations"),
        kinds.from_coco(out / "fiftyone/labels.json"),
        kinds.from_coco(out / "fiftyone/labels.json").from_results(out / "coco-results/bbox.json"),
    ):
        assert sum(len(one.boxes) for one in found) == NUM_LABELS


def test_label_studios_own_converter_decodes_the_brush_strokes(out: Path) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    tasks = json.loads((out / "labelstudio/tasks.json").read_text())
    results = [row for task in tasks for row in task["predictions"][0]["result"] if row["type"] == "brushlabels"]
    decoded = [brush.decode_rle(row["value"]["rle"]).reshape(48, 64, 4)[:, :, 3] for row in results]
    assert [int((mask > 0).sum()) for mask in decoded] == [400, 200]
    theirs = brush.encode_rle(np.repeat(decoded[0].ravel(), 4))
    assert (brush_to_mask(theirs, 48, 64) == (decoded[0] > 0)).all(), "and ours decodes theirs"
