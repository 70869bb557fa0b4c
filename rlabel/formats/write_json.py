"""COCO's relatives in JSON: results files, LVIS, and the folder that FiftyOne imports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from rlabel.corpus.masks import RegionMask
from rlabel.formats.shapes import flat, safe_stem
from rlabel.formats.shown import ShownLabel, ShownPicture
from rlabel.formats.writing import Export, Files, buffered, json_list
from rlabel.records import JsonObject, JsonValue
from rlabel.run.canonical import canonical_bytes
from rlabel.run.coco import corners

# LVIS paper, section 3: rare up to 10 images, common up to 100, else frequent.
_RARE, _COMMON = 10, 100


def write_results(export: Export) -> list[str]:
    """Write bbox.json and, where there are masks, segm.json: detections that pycocotools' loadRes reads.

    One geometry a file: with both, loadRes takes the box's area for the mask's. Crowds are left out, for a detection is one
    object; what has no score is no detection either.
    """

    def rows(with_masks: bool) -> Iterator[JsonObject]:
        for picture in export.labels.pictures():
            for label in picture.labels:
                if label.is_crowd or label.score is None:
                    if not with_masks:
                        why = (
                            "since they are crowds"
                            if label.is_crowd
                            else "since a detection needs a score and they have none"
                        )
                        export.notes.say(f"labels left out, {why}")
                    continue
                row: JsonObject = {
                    "image_id": picture.image_id,
                    "category_id": label.category.category_id,
                    "score": label.score,
                }
                if not with_masks:
                    yield {**row, "bbox": list(label.box_xywh)}
                    continue
                rle = export.shapes.rle(picture, label)
                if rle is not None:
                    yield {**row, "segmentation": rle}

    export.out.put_stream("bbox.json", buffered(json_list(rows(False))))
    if not export.with_masks:
        return ["bbox.json"]
    export.out.put_stream("segm.json", buffered(json_list(rows(True))))
    return ["bbox.json", "segm.json"]


def write_lvis(export: Export) -> list[str]:
    """Write lvis.json: COCO with the fields that lvis-api and detectron2 demand, every shape as polygons.

    A run says nothing of what it was not asked about, so no category is certainly absent (neg_category_ids is what the input
    had), and each that it found may have more objects (not_exhaustive_category_ids). Frequencies are counted in this file.
    """
    images, instances = Counter[int](), Counter[int]()
    for picture in export.labels.pictures():
        images.update({label.category.category_id for label in picture.labels if not label.is_crowd})
        instances.update(label.category.category_id for label in picture.labels if not label.is_crowd)
    ids = sorted(export.labels.categories)
    if ids != list(range(1, len(ids) + 1)):
        export.notes.say(
            "categories whose ids are not 1 to N: lvis-api reads them, detectron2's LVIS loader does not",
            None,
            len(ids),
        )

    def category_rows() -> Iterator[JsonObject]:
        for category in export.labels.categories.values():
            num = images[category.category_id]
            yield {
                "synset": category.name,
                "synonyms": [category.name],
                "def": "",
                **category.row,
                "frequency": "r" if num <= _RARE else "c" if num <= _COMMON else "f",
                "image_count": num,
                "instance_count": instances[category.category_id],
            }

    def image_rows() -> Iterator[JsonObject]:
        for picture in export.labels.pictures():
            found: list[JsonValue] = list(
                sorted({label.category.category_id for label in picture.labels if not label.is_crowd})
            )
            row: JsonObject = {"neg_category_ids": [], "not_exhaustive_category_ids": found, **picture.row}
            row.setdefault("coco_url", picture.file_name or "")
            if picture.width_px is not None:
                row |= {"width": picture.width_px, "height": picture.height_px}
            yield row

    def annotation_rows() -> Iterator[JsonObject]:
        number = 0
        for picture in export.labels.pictures():
            for label in picture.labels:
                if label.is_crowd:
                    export.notes.say("labels left out, since they are crowds, which LVIS has not")
                    continue
                mask = export.shapes.mask(picture, label)
                if mask is None:
                    continue
                number += 1
                yield {
                    "id": label.annotation_id if type(label.annotation_id) is int else number,
                    "image_id": picture.image_id,
                    "category_id": label.category.category_id,
                    "bbox": list(label.box_xywh),
                    "area": mask.area_px,
                    "segmentation": _parts(export, label, mask),
                    **({} if label.score is None else {"score": label.score}),
                }

    export.out.put_stream("lvis.json", buffered(_document(export, image_rows, annotation_rows, category_rows)))
    return ["lvis.json"]


def write_fiftyone(export: Export) -> list[str]:
    """Write labels.json, and the pictures below data/ where their folder is given: FiftyOne's COCODetectionDataset.

    FiftyOne takes score for confidence and each attribute for one of its own (fiftyone/utils/coco.py).
    """

    def image_rows() -> Iterator[JsonObject]:
        used: set[str] = set()
        with Files(export.out) as files:
            yield from with_pictures(files, used)

    def with_pictures(files: Files, used: set[str]) -> Iterator[JsonObject]:
        for picture in export.labels.pictures():
            # Named after its picture, ending and all, so that a.jpg and a.png both stay.
            if (
                export.images is not None
                and picture.file_name is not None
                and safe_stem(_whole_name(picture), used, export.notes)
            ):
                files.copy_picture(export, picture, "data")
            yield {
                **picture.row,
                **({} if picture.file_name is None else {"file_name": picture.file_name}),
                **({} if picture.width_px is None else {"width": picture.width_px, "height": picture.height_px}),
            }

    def annotation_rows() -> Iterator[JsonObject]:
        number = 0
        for picture in export.labels.pictures():
            for label in picture.labels:
                number += 1
                shape = None if export.boxes_only else label.segmentation
                yield {
                    "id": label.annotation_id if type(label.annotation_id) is int else number,
                    "image_id": picture.image_id,
                    "category_id": label.category.category_id,
                    "bbox": list(label.box_xywh),
                    "area": label.area_px if label.area_px is not None else label.box_xywh[2] * label.box_xywh[3],
                    "iscrowd": int(label.is_crowd),
                    "segmentation": shape or corners(label.box_xywh),
                    "attributes": label.attributes,
                    **({} if label.score is None else {"score": label.score}),
                }

    rows = (category.row for category in export.labels.categories.values())
    export.out.put_stream("labels.json", buffered(_document(export, image_rows, annotation_rows, lambda: rows)))
    if export.images is None:
        export.notes.say(
            "pictures not copied: give --images, or FiftyOne their folder as data_path", None, export.labels.num_images
        )
        return ["labels.json"]
    return ["labels.json", "data/"]


def _document(
    export: Export,
    images: Callable[[], Iterator[JsonObject]],
    annotations: Callable[[], Iterator[JsonObject]],
    categories: Callable[[], Iterator[JsonObject]],
) -> Iterator[bytes]:
    yield b'{"info":' + canonical_bytes(export.labels.info)
    for name, rows in (("categories", categories), ("images", images), ("annotations", annotations)):
        yield b",\n" + canonical_bytes(name) + b":"
        yield from json_list(rows())
    yield b"}\n"


def _parts(export: Export, label: ShownLabel, mask: RegionMask) -> JsonValue:
    if label.segmentation is None or export.boxes_only:
        return corners(label.box_xywh)
    return [flat(loop) for loop in export.shapes.polygons(label, mask)]


def _whole_name(picture: ShownPicture) -> ShownPicture:
    """Return the picture under a name whose ending `safe_stem` does not take off."""
    from dataclasses import replace

    return replace(picture, file_name=f"{picture.file_name}.file")
