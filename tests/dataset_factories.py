"""Small files of the exact layouts that LVIS, V3Det, Visual Genome and RefCOCO are published in, key by key."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def coco_rows() -> Row:
    """Two images, three annotations; COCO's keys, one of them with a caption as human-labeled corpora have it."""
    square = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]
    base: Row = {"iscrowd": 0, "segmentation": square, "area": 400.0}
    return {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"url": "http://example.org", "id": 1, "name": "Attribution License"}],
        "images": [
            {"license": 1, "file_name": "000000397133.jpg", "height": 427, "width": 640, "id": 397133},
            {"license": 1, "file_name": "000000037777.jpg", "height": 230, "width": 352, "id": 37777},
        ],
        "annotations": [
            {**base, "image_id": 397133, "bbox": [10.0, 10.0, 20.0, 20.0], "category_id": 44, "id": 82445},
            {**base, "image_id": 37777, "bbox": [10.0, 10.0, 20.0, 20.0], "category_id": 67, "id": 119568},
            {**base, "image_id": 397133, "bbox": [10, 10, 20, 20], "category_id": 67, "id": 5, "caption": "a table"},
        ],
        "categories": [
            {"supercategory": "kitchen", "id": 44, "name": "bottle"},
            {"supercategory": "furniture", "id": 67, "name": "dining table"},
        ],
    }


def lvis_rows() -> Row:
    """LVIS v1: no file_name, no iscrowd; annotations before images, as in the published file."""
    shared: Row = {"height": 480, "width": 640, "license": 1, "date_captured": "2013-11-14 17:02:52"}
    return {
        "info": {"description": "LVIS v1", "version": "v1.0"},
        "annotations": [
            {"area": 400.0, "id": 1, "segmentation": [[1.0, 1.0, 21.0, 1.0, 21.0, 21.0, 1.0, 21.0]], "image_id": 391895}
            | {"bbox": [1.0, 1.0, 20.0, 20.0], "category_id": 2},
            {"area": 25.0, "id": 2, "segmentation": [[5.0, 5.0, 10.0, 5.0, 10.0, 10.0, 5.0, 10.0]], "image_id": 522418}
            | {"bbox": [5.0, 5.0, 5.0, 5.0], "category_id": 1},
        ],
        "images": [
            {"id": 391895, "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg", **shared}
            | {"neg_category_ids": [3, 1], "not_exhaustive_category_ids": []},
            {"id": 522418, "coco_url": "http://images.cocodataset.org/val2017/000000522418.jpg", **shared}
            | {"neg_category_ids": [], "not_exhaustive_category_ids": [1]},
        ],
        "licenses": [{"id": 1, "name": "Attribution License", "url": "http://example.org"}],
        "categories": [
            lvis_category(1, "aerosol_can", "aerosol.n.02", ["aerosol_can", "spray_can"], "c"),
            lvis_category(2, "air_conditioner", "air_conditioner.n.01", ["air_conditioner"], "f"),
            lvis_category(3, "applesauce", "applesauce.n.01", ["applesauce"], "r"),
        ],
    }


def lvis_category(category_id: int, name: str, synset: str, synonyms: list[str], frequency: str) -> Row:
    return {
        "frequency": frequency,
        "synset": synset,
        "image_count": 64,
        "id": category_id,
        "synonyms": synonyms,
        "def": f"the meaning of {name}",
        "name": name,
        "instance_count": 109,
    }


def v3det_rows() -> Row:
    """V3Det v1: boxes only, file names with their folder, two senses of one name."""
    described: Row = {"cat_info_gpt": ["A mouse is small."], "novel": False}
    return {
        "images": [
            {"file_name": "images/n02330245/1_2_3.jpg", "height": 768, "width": 1024, "id": 1},
            {"file_name": "images/n03793489/4_5_6.jpg", "height": 600, "width": 800, "id": 2},
        ],
        "categories": [
            {"name": "mouse", "name_zh": "老鼠", "cat_info": ["any of numerous small rodents"], "id": 1, **described},
            {"name": "mouse", "name_zh": "鼠标", "cat_info": ["a hand-operated device"], "id": 13204, **described},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [100, 50, 200, 120], "area": 24000, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 13204, "bbox": [0, 0, 40.5, 30], "area": 1215, "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 13204, "bbox": [5, 6, 7, 8], "area": 56, "iscrowd": 0},
        ],
    }


def visual_genome_rows() -> dict[str, list[Row]]:
    """Visual Genome 1.2/1.4: two images; relationships name one object that objects.json merged and one that it lacks."""
    url = "https://cs.stanford.edu/people/rak248"
    clock: Row = {"synsets": ["clock.n.01"], "h": 339, "object_id": 1058498, "w": 79, "y": 91, "x": 421}
    street: Row = {"synsets": ["street.n.01"], "h": 262, "w": 714, "y": 328, "x": 77}
    return {
        "image_data.json": [
            {
                "width": 800,
                "url": f"{url}/VG_100K_2/1.jpg",
                "height": 600,
                "image_id": 1,
                "coco_id": None,
                "flickr_id": None,
            },
            {"width": 640, "url": f"{url}/VG_100K/2.jpg", "height": 480, "image_id": 2, "coco_id": 7, "flickr_id": 8},
        ],
        "region_descriptions.json": [
            {
                "regions": [
                    vg_description(1382, 1, "the clock is green in colour", 421, 57, 82, 139),
                    vg_description(1383, 1, "shade is along the street ", 194, 372, 362, 52),
                ],
                "id": 1,
            },
            {"regions": [vg_description(4091, 2, "road with a yellow line", 0, 345, 364, 134)], "id": 2},
        ],
        "objects.json": [
            {
                "image_id": 1,
                "objects": [
                    {**clock, "merged_object_ids": [], "names": ["clock"]},
                    {**street, "object_id": 1058508, "merged_object_ids": [5046], "names": ["street", "road"]},
                ],
                "image_url": f"{url}/VG_100K_2/1.jpg",
            },
            {"image_id": 2, "objects": [], "image_url": f"{url}/VG_100K/2.jpg"},
        ],
        "relationships.json": [
            {
                "relationships": [
                    {
                        "predicate": "ON",
                        "object": {**street, "name": "street", "object_id": 5046},
                        "relationship_id": 15927,
                        "synsets": ["along.r.01"],
                        "subject": {"name": "shade", "h": 192, "synsets": ["shade.n.01"], "object_id": 5045}
                        | {"w": 274, "y": 338, "x": 119},
                    },
                    {
                        "predicate": "next to",
                        "object": {**clock, "name": "clock"},
                        "relationship_id": 15928,
                        "synsets": ["next.r.01"],
                        "subject": {**street, "name": "street", "object_id": 5046},
                    },
                ],
                "image_id": 1,
            },
            {"relationships": [], "image_id": 2},
        ],
    }


def vg_description(region_id: int, image_id: int, phrase: str, x: float, y: float, width: float, height: float) -> Row:
    return {
        "region_id": region_id,
        "width": width,
        "height": height,
        "image_id": image_id,
        "phrase": phrase,
        "y": y,
        "x": x,
    }


def visual_genome_folder(folder: Path, files: dict[str, list[Row]] | None = None) -> Path:
    for name, rows in (files if files is not None else visual_genome_rows()).items():
        write_json(folder / name, rows)
    return folder


def refcoco_refs() -> list[Row]:
    """Four references to regions of `refcoco_instances`, in three splits."""
    return [
        reference(0, 1719310, 581857, "train", ["THE LADY WITH THE BLUE SHIRT", "lady  w back to us"]),
        reference(1, 489046, 581857, "train", ["Boy"], category_id=1),
        reference(2, 1719310, 581857, "testA", ["woman"]),
        reference(3, 3007, 98304, "val", ["dog on left"], category_id=18),
    ]


def reference(ref_id: int, ann_id: object, image_id: int, split: str, raws: list[str], category_id: int = 1) -> Row:
    sentences = [
        {"tokens": raw.lower().split(), "raw": raw, "sent_id": 10 * ref_id + i, "sent": " ".join(raw.lower().split())}
        for i, raw in enumerate(raws)
    ]
    return {
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": sentences,
        "category_id": category_id,
    }


def refcoco_instances() -> Row:
    base: Row = {"iscrowd": 0, "area": 197.29}
    triangle = [[267.5, 229.7, 265.6, 216.8, 284.4, 224.9]]
    return {
        "info": {"description": "This is stable 1.0 version of the 2014 MS COCO dataset."},
        "images": [
            image_2014(98304, 640, 424),
            image_2014(581857, 427, 640),
            image_2014(131074, 640, 428),
        ],
        "licenses": [{"url": "http://example.org", "id": 1, "name": "Attribution License"}],
        "annotations": [
            {**base, "segmentation": triangle, "image_id": 98304, "bbox": [263.87, 216.88, 21.13, 15.17], "category_id": 18, "id": 3007},
            {**base, "segmentation": triangle, "image_id": 581857, "bbox": [103.93, 299.99, 134.22, 177.42], "category_id": 1, "id": 1719310},
            {**base, "segmentation": triangle, "image_id": 581857, "bbox": [1.0, 2.0, 30.0, 40.0], "category_id": 1, "id": 489046},
            {**base, "segmentation": triangle, "image_id": 581857, "bbox": [5.0, 6.0, 30.0, 40.0], "category_id": 18, "id": 77},
            {**base, "segmentation": triangle, "image_id": 131074, "bbox": [5.0, 6.0, 30.0, 40.0], "category_id": 18, "id": 78},
        ],
        "categories": [
            {"supercategory": "person", "id": 1, "name": "person"},
            {"supercategory": "animal", "id": 18, "name": "dog"},
        ],
    }  # fmt: skip


def image_2014(image_id: int, width: int, height: int) -> Row:
    name = f"COCO_train2014_{image_id:012d}.jpg"
    return {"license": 1, "file_name": name, "height": height, "width": width, "id": image_id, "flickr_url": "http://x"}


def refcoco_folder(folder: Path, refs: object = None, instances: Row | None = None, protocol: int = 0) -> Path:
    """Write refs(unc).p and instances.json. protocol: 0 is what Python 2 wrote for the published files."""
    write_json(folder / "instances.json", instances if instances is not None else refcoco_instances())
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refcoco_refs() if refs is None else refs, protocol))
    return folder
