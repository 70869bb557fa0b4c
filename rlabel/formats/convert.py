"""Any layout that we read into the COCO file that rlabel labels, trains on and evaluates against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlabel.errors import InputError, UsageError
from rlabel.formats.folders import PictureFolder, local_source
from rlabel.formats.found import Layout
from rlabel.formats.guess import SOURCE_FORMATS, TITLES, SourceFormat, guess_format, refusal
from rlabel.formats.kept_pictures import Keep
from rlabel.formats.read_coco import CocoCopy
from rlabel.formats.regions_file import Written, write_regions
from rlabel.formats.rows import Boxes
from rlabel.records import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a conversion did.

    format: the layout it was read as; why: what it was told by, None where it was named. notes: what was left out or is
    doubtful, each with count and examples; lines: the same for a person. pictures: the folder that the file names are
    relative to, None where it is not known.
    """

    format: SourceFormat
    why: str | None
    written: Written
    notes: list[JsonObject]
    lines: list[str]
    pictures: str | None = None


def convert(
    source: str,
    out: str,
    *,
    format: SourceFormat | Literal["auto"] = "auto",
    images: str | None = None,
    class_free: bool = False,
    boxes: Boxes = "xywh",
    keep: Keep = "new",
    option: str = "--from",
    why: str | None = None,
) -> Converted:
    """Write the regions of a file or folder of any layout as one COCO file, and return what was done.

    source: on this machine's disks. out: path or URL of the JSON to write. images: the folder of the pictures; for
    archives and tables, which hold them, a new folder to write them into. class_free: leave out what the layout calls the
    regions. boxes: how archives and tables mean four numbers. keep: see `KeptPictures`. option: what names the layout, for
    messages. why: what a format that is named was told by, where it was guessed before.

    Raises InputError, with file, place and remedy, for what cannot be read at all; UsageError for a wrong call. Single
    rows that cannot be used are in `notes`.
    """
    path = local_source(source)
    if format != "auto" and format not in SOURCE_FORMATS:
        raise UsageError(f"{option} {format}: expected one of auto, {', '.join(SOURCE_FORMATS)}.")
    if format == "auto":
        guess = guess_format(path)
        if guess.format is None:
            raise refusal(path, guess, option)
        format, why = guess.format, guess.why
    try:
        if format in ("coco", "lvis"):
            if path.is_dir():
                raise InputError(f"{source}: expected a JSON file, got a folder. Name the file in it.")
            return Converted(
                format=format, why=why, written=CocoCopy(path, class_free=class_free).write(out), notes=[], lines=[]
            )
        layout = _opened(format, path, images, boxes, keep)
        written = write_regions(
            layout,
            out,
            class_free=class_free,
            source=f"{source}, read as {TITLES[format]}",
            description=f"regions converted from {TITLES[format]}",
        )
    except RecursionError as error:
        raise InputError(f"{source}: lists or objects nested too deeply. Write the file anew.") from error
    except InputError as error:
        if why is None:
            raise
        raise InputError(
            f"{error}\nIt was read as {TITLES[format]}, since {why}. If it is something else, name it with {option}."
        ) from error
    folder: PictureFolder | None = getattr(layout, "folder", None)  # tables and archives have none of their own
    return Converted(
        format=format,
        why=why,
        written=written,
        notes=layout.notes.rows(),
        lines=layout.notes.lines(),
        pictures=images if folder is None else str(folder.root),
    )


def _opened(format: SourceFormat, path: Path, images: str | None, boxes: Boxes, keep: Keep) -> Layout:
    """Return the layout, opened by its reader, which is imported only now."""
    if format == "yolo":
        from rlabel.formats.read_yolo import YoloLayout

        return YoloLayout(path, images)
    if format == "voc":
        from rlabel.formats.read_voc import VocLayout

        return VocLayout(path, images)
    if format == "cvat":
        from rlabel.formats.read_cvat import CvatLayout

        return CvatLayout(path, images)
    if format == "labelstudio":
        from rlabel.formats.read_labelstudio import LabelStudioLayout

        return LabelStudioLayout(path, images)
    if format == "masks":
        from rlabel.formats.read_masks import MaskLayout

        return MaskLayout(path, images)
    if format == "sa1b":
        from rlabel.formats.read_sa1b import Sa1bLayout

        return Sa1bLayout(path, images)
    if format == "labelme":
        from rlabel.formats.read_labelme import LabelmeLayout

        return LabelmeLayout(path, images)
    if format == "panoptic":
        from rlabel.formats.read_panoptic import PanopticLayout

        return PanopticLayout(path, images)
    if format == "huggingface":
        from rlabel.formats.read_parquet import ParquetLayout

        return ParquetLayout(path, images, boxes, keep)
    from rlabel.formats.read_tar import TarLayout

    return TarLayout(path, images, boxes, keep)
