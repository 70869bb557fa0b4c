"""Whether a truth that was converted from another layout numbers its pictures and regions as the run does.

Such a layout has no ids: regions are numbered as they come, so those of another corpus have the same numbers. COCO's own ids need no such look.
"""

from __future__ import annotations

from rlabel.errors import InputError
from rlabel.evaluation.reading import LABELS, id_to_text, read_box, stream_rows
from rlabel.records import BoxXywh, JsonValue
from rlabel.storage import Store, split_url

# Two boxes of one object: a mask's own box may be a few pixels smaller than the box that its layout states, at the picture's edge much smaller.
_LEAST_IOU = 0.5


def check_numbered_alike(run_url: str, truth_url: str, said: str) -> None:
    """Raise InputError where the run has other pictures or other regions under the truth's numbers. said: what the user named, for the message.

    Pictures are told by their names without folders, all of them; regions by their boxes, most of those that the run labeled.
    """
    run, (truth, name) = Store.open(run_url), split_url(truth_url)
    ours, theirs = _file_names(run, LABELS), _file_names(truth, name)
    for image_id in ours.keys() & theirs.keys():
        if ours[image_id] != theirs[image_id]:
            raise _other(said, f"picture {image_id} is {theirs[image_id]} there and {ours[image_id]} in {run_url}")
    true_boxes = _boxes(truth, name, "id")
    apart: list[str] = []
    num_compared = 0
    for key, box_xywh in _boxes(run, LABELS, "region_id").items():
        if key in true_boxes:
            num_compared += 1
            if _iou(box_xywh, true_boxes[key]) < _LEAST_IOU:
                apart.append(key[1])
    if 2 * len(apart) > num_compared:
        raise _other(
            said, f"{len(apart)} of {num_compared} regions, such as {apart[0]}, lie elsewhere in {run_url} than there"
        )


def _other(said: str, how: str) -> InputError:
    return InputError(
        f"--truth {said}: expected the pictures and regions that were labeled, in their order, got others: {how}. Give the file that was labeled, "
        "with its categories; or the same --images as the run had."
    )


def _file_names(store: Store, name: str) -> dict[str, str]:
    """Return the pictures' file names, without folders, by image id."""
    names: dict[str, str] = {}
    for row in stream_rows(store, name, "images"):
        image_id, file_name = id_to_text(row.get("id")), row.get("file_name")
        if image_id is not None and isinstance(file_name, str):
            names[image_id] = file_name.replace("\\", "/").rpartition("/")[2]
    return names


def _boxes(store: Store, name: str, key: str) -> dict[tuple[str, str], BoxXywh]:
    """Return the boxes of annotations by image and region id. key: where a region's id is, in the row or in its attributes."""
    boxes: dict[tuple[str, str], BoxXywh] = {}
    for row in stream_rows(store, name, "annotations"):
        attributes = row.get("attributes")
        inner: JsonValue = attributes.get(key) if isinstance(attributes, dict) else None
        image_id, region_id = id_to_text(row.get("image_id")), id_to_text(inner if key == "region_id" else row.get(key))
        box_xywh = read_box(row.get("bbox"))
        if image_id is not None and region_id is not None and box_xywh is not None:
            boxes[image_id, region_id] = box_xywh
    return boxes


def _iou(one: BoxXywh, other: BoxXywh) -> float:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)
