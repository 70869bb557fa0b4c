"""A run's labels in other people's layouts, and what each of them cannot hold."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from rlabel.errors import InputError, UsageError
from rlabel.formats.shapes import Shapes
from rlabel.formats.shown import ShownLabels
from rlabel.formats.writing import Export
from rlabel.records import JsonObject
from rlabel.storage import Store

TargetFormat = Literal[
    "coco-results", "lvis", "yolo", "voc", "labelstudio", "cvat", "fiftyone", "huggingface", "parquet", "csv"
]
TARGET_FORMATS: tuple[TargetFormat, ...] = get_args(TargetFormat)
# Module and function of each writer, imported only when it is asked for.
_WRITERS: dict[TargetFormat, tuple[str, str]] = {
    "coco-results": ("write_json", "write_results"),
    "lvis": ("write_json", "write_lvis"),
    "yolo": ("write_yolo", "write_yolo"),
    "voc": ("write_xml", "write_voc"),
    "labelstudio": ("write_labelstudio", "write_labelstudio"),
    "cvat": ("write_xml", "write_cvat"),
    "fiftyone": ("write_json", "write_fiftyone"),
    "huggingface": ("write_tables", "write_huggingface"),
    "parquet": ("write_tables", "write_parquet"),
    "csv": ("write_tables", "write_csv"),
}
_HOLD_LEFT_OUT = ("parquet", "csv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote. files: below the folder. losses: what the layout does not hold, each with its count; lines: for a person."""

    files: list[str]
    num_images: int
    num_labels: int
    losses: list[JsonObject]
    lines: list[str]


def export(
    source: str,
    out: str,
    *,
    to: TargetFormat,
    images: str | None = None,
    boxes_only: bool = False,
    tolerance_px: float = 0.0,
    image_prefix: str = "/data/local-files/?d=",
) -> Exported:
    """Write a run's labels in another layout and return what was written and what was lost.

    source: a run directory, or a COCO file (paths or URLs). out: a new or empty folder. images: the pictures, to copy or to
    embed where the layout does. boxes_only: leave masks out. tolerance_px: how far polygons may leave a mask's edge; 0
    keeps masks exactly. image_prefix: what Label Studio finds the pictures under.

    Raises InputError for a file that cannot be read, UsageError for a wrong call, StorageError where it cannot be written.
    """
    if to not in TARGET_FORMATS:
        raise UsageError(f"--to {to}: expected one of {', '.join(TARGET_FORMATS)}.")
    store = Store.open(out)
    names = [name for name in store.list() if not name.startswith(".")]
    if names:
        raise UsageError(
            f"--out {out}: expected a new or empty folder, got {', '.join(names[:3])} in it. Give another name."
        )
    try:
        return _exported(source, store, to, images, boxes_only, tolerance_px, image_prefix)
    except RecursionError as error:
        raise InputError(f"{source}: lists or objects nested too deeply. Write the file anew.") from error


def _exported(
    source: str,
    store: Store,
    to: TargetFormat,
    images: str | None,
    boxes_only: bool,
    tolerance_px: float,
    image_prefix: str,
) -> Exported:
    with ShownLabels(source) as labels:
        notes = labels.notes
        shapes = Shapes(notes, tolerance_px)
        module, function = _WRITERS[to]
        writer: Callable[[Export], list[str]] = getattr(importlib.import_module(f"rlabel.formats.{module}"), function)
        files = writer(
            Export(
                labels=labels,
                out=store,
                shapes=shapes,
                images=None if images is None else Store.open(images),
                boxes_only=boxes_only,
                image_prefix=image_prefix,
                notes=notes,
            )
        )
        if boxes_only and labels.has_masks:
            notes.say("masks left out, as --boxes-only asks")
        if to not in _HOLD_LEFT_OUT:
            for left_out in labels.left_out():
                notes.say("abstentions left out" if left_out.status == "abstained" else "failures left out")
        losses, lines = notes.rows(), notes.lines()
        loss = shapes.loss()
        if loss is not None:
            losses.append(loss)
            lines.append(
                f"{loss['count']} {loss['what']}: IoU {loss['mean_iou']} on average, {loss['least_iou']} at least, over {loss['measured']} of them"
            )
        return Exported(
            files=files, num_images=labels.num_images, num_labels=labels.num_labels, losses=losses, lines=lines
        )
