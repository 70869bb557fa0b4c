"""Label Studio: tasks with predictions, and the labeling interface that shows them.

Label Studio's documentation, "Import pre-annotated data": positions in percent, a score for each result and one for the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote

import numpy as np

from rlabel.corpus.masks import RegionMask
from rlabel.formats.brush import mask_to_brush
from rlabel.formats.outlines import Loop
from rlabel.formats.shapes import whole_numbers
from rlabel.formats.shown import ShownLabel, ShownPicture
from rlabel.formats.writing import Export, buffered, json_list, made_once, xml_text
from rlabel.records import JsonObject, JsonValue

_TAGS = (("rectanglelabels", "RectangleLabels"), ("polygonlabels", "PolygonLabels"), ("brushlabels", "BrushLabels"))


def write_labelstudio(export: Export) -> list[str]:
    """Write tasks.json and labeling-config.xml: boxes, polygons, and brush strokes where a polygon would lose holes or pieces."""
    export.out.put_stream("tasks.json", buffered(json_list(_tasks(export))))
    export.out.put("labeling-config.xml", _interface(export).encode())
    if export.images is not None:
        export.notes.say(
            "pictures not copied: Label Studio reads them from a storage of its own", None, export.labels.num_images
        )
    return ["tasks.json", "labeling-config.xml"]


def _tasks(export: Export) -> Iterator[JsonObject]:
    for picture in export.labels.pictures():
        if picture.width_px is None or picture.height_px is None or picture.file_name is None:
            export.notes.say(
                "pictures left out, since their size or file name is nowhere stated", str(picture.image_id)[:40]
            )
            continue
        results = [result for label in picture.labels if (result := _result(export, picture, label)) is not None]
        scores = [label.score for label in picture.labels if label.score is not None]
        yield {
            "data": {"image": export.image_prefix + quote(picture.file_name)},
            "predictions": [
                {
                    "model_version": export.labels.made_by,
                    "score": round(float(np.mean(scores)), 6) if scores else 0.0,
                    "result": list(results),
                }
            ],
        }


def _result(export: Export, picture: ShownPicture, label: ShownLabel) -> JsonObject | None:
    mask = export.shapes.mask(picture, label)
    if mask is None:
        return None
    if label.is_crowd:
        export.notes.say("crowds written as single objects")
    kind, value = _value(export, label, mask)
    text = label.attributes.get("text")
    return {
        "id": str(label.annotation_id),
        "type": kind,
        "from_name": kind,
        "to_name": "image",
        "original_width": picture.width_px,
        "original_height": picture.height_px,
        "image_rotation": 0,
        "value": {**value, kind: [label.category.name]},
        **({} if label.score is None else {"score": label.score}),
        **({"meta": {"text": [text]}} if isinstance(text, str) and text else {}),
    }


def _value(export: Export, label: ShownLabel, mask: RegionMask) -> tuple[str, JsonObject]:
    width, height = mask.width_px, mask.height_px
    if label.segmentation is None or export.boxes_only:
        x, y, w, h = label.box_xywh
        sides = {"x": x / width, "y": y / height, "width": w / width, "height": h / height}
        return "rectanglelabels", {**{key: round(100 * side, 8) for key, side in sides.items()}, "rotation": 0}
    loop = export.shapes.plain_polygon(label, mask)
    if loop is not None:
        return "polygonlabels", {"points": _points(loop, width, height), "closed": True}
    return "brushlabels", {"format": "rle", "rle": list(mask_to_brush(mask.mask_HW))}


def _points(loop: Loop, width_px: int, height_px: int) -> list[JsonValue]:
    whole = whole_numbers(loop)
    if whole is None:
        return [[round(100 * x / width_px, 8), round(100 * y / height_px, 8)] for x, y in loop.tolist()]
    xs, ys = _whole_percents(whole[::2], width_px), _whole_percents(whole[1::2], height_px)
    return [[x, y] for x, y in zip(xs, ys, strict=True)]


def _whole_percents(places: list[int], side_px: int) -> list[float]:
    return made_once(places, _known_percents(side_px), lambda new: [round(100 * px / side_px, 8) for px in new])


@lru_cache(maxsize=256)
def _known_percents(side_px: int) -> dict[int, float]:
    return {}


def _interface(export: Export) -> str:
    lines = ["<View>", '  <Image name="image" value="$image" zoom="true"/>']
    for name, tag in _TAGS:
        lines.append(f'  <{tag} name="{name}" toName="image">')
        lines += [f'    <Label value="{xml_text(category.name)}"/>' for category in export.labels.categories.values()]
        lines.append(f"  </{tag}>")
    return "\n".join([*lines, "</View>", ""])
