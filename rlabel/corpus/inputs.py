"""Prepares one image for a model: its upright pixels and a checked mask, or a failure, for each region.

The same code prepares for training and for labeling. It never raises for what is wrong with an image or a region.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from rlabel.corpus.decoding import IN_PROCESS, Decoder
from rlabel.corpus.images import BadImage, open_picture
from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import BadRegion, RegionMask, rasterise
from rlabel.corpus.picture import LargePicture, PixelsHWC, Sight
from rlabel.records import Failure, ImageRecord, JsonValue, Pair, Query, QueryFailure, Region
from rlabel.spans import span
from rlabel.storage import Store

_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedRegion:
    """A region with its mask in the upright picture."""

    region: Region
    mask: RegionMask


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedImage:
    """An image ready to be encoded. Every region of the record is in one of `regions` and `failures`, in file order.

    picture: uint8 (H, W, 3), RGB, upright, or what a large one can be seen by; None where no region is left to label,
    which also spares opening the file.
    """

    record: ImageRecord
    picture: PixelsHWC | LargePicture | None
    regions: tuple[PreparedRegion, ...]
    failures: tuple[Failure, ...]

    @property
    def pixels_HWC(self) -> PixelsHWC | None:
        """All pixels: uint8 (H, W, 3); of a large picture a new array at each use."""
        return self.picture.pixels_HWC if isinstance(self.picture, LargePicture) else self.picture


def prepare_image(
    store: Store,
    record: ImageRecord,
    limits: Limits,
    *,
    include_crowds: bool = True,
    sight: Sight | None = None,
    decoder: Decoder = IN_PROCESS,
) -> PreparedImage:
    """Return an image's pixels and masks, with a failure for each region that cannot be labeled.

    include_crowds: False makes a failure of each crowd region (iscrowd 1).
    sight: what the model will see of the picture, so that no more of a large one is decoded; it changes nothing else.
    decoder: where the picture is decoded, which changes nothing of it.

    Raises StorageError when the store itself cannot be read now; trying again may help.
    """
    problems = [
        _problem_before_opening(region, index, limits, include_crowds) for index, region in enumerate(record.regions)
    ]
    picture: PixelsHWC | LargePicture | None = None
    image_problem = None
    if None in problems:
        try:
            with span("read and decode"):
                picture = _open(store, record, limits, sight, decoder)
        except BadImage as error:
            image_problem = str(error)
    regions: list[PreparedRegion] = []
    failures: list[Failure] = []
    for region, problem in zip(record.regions, problems, strict=True):
        if problem is None and picture is None:
            reason = f"{_name(record)}: {image_problem}."
            failures.append(Failure(region=region, image_id=record.row.get("id"), kind="image", reason=reason))
            continue
        if problem is None and picture is not None:
            height, width = _size(picture)
            try:
                with span("masks"):
                    mask = rasterise(region.segmentation, region.box_xywh, height, width, limits)
                regions.append(PreparedRegion(region=region, mask=mask))
                continue
            except BadRegion as error:
                problem = str(error)
        failures.append(region_failure(region, record.row.get("id"), _name(record), str(problem)))
    return PreparedImage(
        record=record, picture=picture if regions else None, regions=tuple(regions), failures=tuple(failures)
    )


def stray_failure(region: Region) -> Failure:
    """Return the failure that a region of no image ends as."""
    return region_failure(region, None, "no image", region.problem or "no image row has it")


def query_failure(query: Query, image_name: str = "no image") -> QueryFailure:
    """Return the failure that a pair or expression ends as whose own row cannot be used."""
    what = "pair" if isinstance(query, Pair) else "expression"
    reason = f"{image_name}, {what} {query.key}: {query.problem or 'no image row has its image_id'}."
    return QueryFailure(query=query, image_id=query.image_id, kind="query", reason=reason)


def region_failure(region: Region, image_id: JsonValue, image_name: str, cause: str) -> Failure:
    """Return a failure of kind "region" whose reason names the image file, the region and the cause."""
    return Failure(
        region=region, image_id=image_id, kind="region", reason=f"{image_name}, region {region.key}: {cause}."
    )


def _problem_before_opening(region: Region, index: int, limits: Limits, include_crowds: bool) -> str | None:
    if region.problem is not None:
        return region.problem
    if index >= limits.max_regions_per_image:
        return f"the image has more regions than the limit of {limits.max_regions_per_image}"
    if region.is_crowd and not include_crowds:
        return "a crowd (iscrowd 1), and crowds are skipped by this run's settings"
    if region.segmentation is None and region.box_xywh is None:
        bbox = "an unusable bbox" if "bbox" in region.extra else "no bbox"
        return f"the row has no segmentation and {bbox}; a region needs one of the two"
    return None


def _open(
    store: Store, record: ImageRecord, limits: Limits, sight: Sight | None, decoder: Decoder
) -> PixelsHWC | LargePicture:
    """Return the picture if it has the size that its row states. Raises BadImage."""
    if record.file_name is None:
        raise BadImage("the image row has no usable file_name")
    try:
        picture = open_picture(store, record.file_name, limits, sight, decoder)
    except BadImage:
        # The end of a coco_url is a guess at where the file lies: in a folder of the split, or directly in the root.
        if record.row.get("file_name") == record.file_name or "/" not in record.file_name:
            raise
        picture = open_picture(store, posixpath.basename(record.file_name), limits, sight, decoder)
    height, width = _size(picture)
    stated = (record.width_px or width, record.height_px or height)
    if stated != (width, height):
        turned = (
            " (the row may describe the picture before its EXIF orientation is applied)"
            if stated == (height, width)
            else ""
        )
        raise BadImage(
            f"the upright picture is {width} x {height} pixels (width x height), its row says {stated[0]} x {stated[1]}"
            f"{turned}, so masks and boxes would be misplaced; correct the row, or leave its width and height out"
        )
    return picture


def _size(picture: PixelsHWC | LargePicture) -> tuple[int, int]:
    """Return height and width."""
    if isinstance(picture, LargePicture):
        return picture.height_px, picture.width_px
    return picture.shape[0], picture.shape[1]


def _name(record: ImageRecord) -> str:
    """Return what to call an image in a message; names in hostile files may be very long."""
    name = record.file_name if record.file_name is not None else f"image id {record.row.get('id')}"
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
