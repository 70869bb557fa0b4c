"""A picture folder with masks beside it: one PNG of ids a picture, or a folder of PNGs, one a region."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlabel.corpus.limits import Limits
from rlabel.errors import InputError, UsageError
from rlabel.formats.folders import PictureFolder
from rlabel.formats.found import FoundPicture, FoundRegion, Notes
from rlabel.formats.id_maps import masks_of_ids, read_ids
from rlabel.records import JsonObject

MASK_FOLDERS = ("masks", "mask", "SegmentationObject", "instances", "gtFine")
PICTURE_FOLDERS = ("images", "image", "JPEGImages", "photos", "img", "leftImg8bit")
_ENDS_OF_STEM = (
    "", "_mask", "_masks", "-mask", "_instance", "_instanceIds", "_instances", "_seg", "_panoptic",
    "_gtFine_instanceIds", "_gtCoarse_instanceIds",
)  # fmt: skip
# Cityscapes names a picture aachen_000000_000019_leftImg8bit.png and its mask aachen_000000_000019_gtFine_instanceIds.png.
_CITYSCAPES_PICTURE = "_leftImg8bit"
_MASK_FILES = (".png", ".tif", ".tiff", ".bmp")


class MaskLayout:
    """masks/STEM.png (each value but 0 a region) or masks/STEM/*.png (each file a region) for images/STEM.jpg.

    source: the folder that holds masks/ and images/, or the masks' own folder with `images` named. Pictures without a
    mask come out without regions.
    """

    names: tuple[str, ...] = ()

    def __init__(self, source: Path, images: str | None) -> None:
        self.notes = Notes()
        self.limits = Limits()
        self.masks = next((source / name for name in MASK_FOLDERS if (source / name).is_dir()), source)
        found = next((source / name for name in PICTURE_FOLDERS if (source / name).is_dir()), None)
        if images is None and (found is None or self.masks == source):
            raise UsageError(
                f"{source}: masks need their pictures. Name the folder of the pictures with --images, or give a folder that "
                "holds masks/ and images/."
            )
        self.folder = PictureFolder.of(images if images is not None else str(found))

    def pictures(self) -> Iterator[FoundPicture]:
        used: set[Path] = set()
        for stem, path in sorted(self.folder.by_path.items(), key=lambda item: item[1]):
            size = self.folder.size(path)
            if size is None:
                self.notes.say("pictures left out, since they cannot be opened", path)
                continue
            regions: list[FoundRegion] = []
            mask = self._mask_path(stem)
            if mask is None:
                self.notes.say("pictures without a mask, written without regions", path)
            else:
                used.add(mask)
                try:
                    regions = list(self._regions(mask, size))
                except InputError as error:
                    self.notes.say("masks left out, since they cannot be read", str(error))
            yield FoundPicture(file_name=path, width_px=size[0], height_px=size[1], regions=tuple(regions))
        for entry in sorted(self.masks.iterdir()):
            if entry.suffix.lower() in _MASK_FILES and entry not in used:
                self.notes.say("masks left out, since no picture has their name", entry.name)

    def _mask_path(self, stem: str) -> Path | None:
        bases = (stem, stem.rpartition("/")[2])
        for base in dict.fromkeys(name.removesuffix(_CITYSCAPES_PICTURE) for name in bases):
            folder = self.masks / base
            if folder.is_dir():
                return folder
            for end in _ENDS_OF_STEM:
                for suffix in _MASK_FILES:
                    path = self.masks / f"{base}{end}{suffix}"
                    if path.is_file() and path != self.folder.root / self.folder.by_path.get(stem, ""):
                        return path
        return None

    def _regions(self, mask: Path, size: tuple[int, int]) -> Iterator[FoundRegion]:
        if mask.is_dir():
            files = sorted(path for path in mask.iterdir() if path.suffix.lower() in _MASK_FILES and path.is_file())
            if len(files) > self.limits.max_regions_per_image:
                raise InputError(
                    f"{mask}: {len(files)} masks, the limit is {self.limits.max_regions_per_image} a picture."
                )
            for path in files:
                yield from self._of_file(path, size, is_one=True)
        else:
            yield from self._of_file(mask, size, is_one=False)

    def _of_file(self, path: Path, size: tuple[int, int], *, is_one: bool) -> Iterator[FoundRegion]:
        ids = read_ids(path, self.limits)
        if (ids.shape[1], ids.shape[0]) != size:
            self.notes.say("masks left out, since their size is not that of the picture", path.name)
            return
        if is_one:
            ids = (ids > 0).astype(ids.dtype)
        found = masks_of_ids(ids, most=self.limits.max_regions_per_image, where=str(path))
        if not found:
            self.notes.say("masks without a pixel", path.name)
        if not is_one and list(found) == [255]:
            self.notes.say(
                "masks with one value alone: all that they show is one region, also where it lies apart", path.name
            )
        for value, rle in found.items():
            own: JsonObject = {"mask": path.name} if is_one else {"mask_value": value}
            yield FoundRegion(segmentation=rle, attributes=own)
