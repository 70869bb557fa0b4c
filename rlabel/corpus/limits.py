"""How much one input item may cost: the bounds that are checked before anything is allocated for it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rlabel.errors import UsageError

# Pillow itself refuses twice its MAX_IMAGE_PIXELS (Image.py, _decompression_bomb_check); a larger cap could not be
# kept.
PILLOW_MAX_PIXELS = 178_956_970
# Rows of one image that are read as its own: an image is held in memory with all its regions.
MOST_REGIONS_READ = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on one image and its regions. An item beyond one becomes a failure that names the bound.

    max_pixels: width times height by the file's header, at most 178,956,970 (Pillow's own bound).
    max_file_bytes: size of an image file.
    max_regions_per_image: later regions of the same image become failures.
    max_polygon_points: points of all parts of one region's polygons together.
    max_polygon_outline_px: length of a region's outline after clipping; rasterising takes memory in proportion to it.
    """

    max_pixels: int = 100_000_000
    max_file_bytes: int = 256 * 1024 * 1024
    max_regions_per_image: int = 10_000
    max_polygon_points: int = 200_000
    max_polygon_outline_px: int = 4_000_000

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"limits: {name} must be a whole number of at least 1, got {value!r}")
        if self.max_pixels > PILLOW_MAX_PIXELS:
            raise UsageError(
                f"limits: max_pixels is {self.max_pixels}, but the image reader takes at most {PILLOW_MAX_PIXELS}. "
                "Scale larger pictures down, or cut them into tiles."
            )


# For what a run has labeled already: the limits that it had then are not to be judged again.
WIDEST = Limits(
    max_pixels=PILLOW_MAX_PIXELS,
    max_file_bytes=2**40,
    max_regions_per_image=2**40,
    max_polygon_points=2**40,
    max_polygon_outline_px=2**40,
)
