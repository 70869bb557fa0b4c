"""A large picture at the scales that are asked of it, so that nobody holds or resizes more of it than a model can see.

Below LARGE_PX a picture is an array of all its pixels, and everything is made from those. Above it,
- where details are wanted (zoomed crops), it is decoded once in full, and halved, quartered ... as needed;
- where only the whole is wanted, a JPEG is decoded at 1/2, 1/4 or 1/8 straight away (libjpeg's scaled inverse transform).

What comes out is decided by the picture and what is asked for, never by what was asked for before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

PixelsHWC = npt.NDArray[np.uint8]

# Full HD is still small.
LARGE_PX = 1 << 21
# Of the whole: at least so many pixels of the smaller scale to each one that is made of them.
_WHOLE_KEEPS = 2.0
LARGEST_SCALE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a model sees of a picture. whole_px: side of the square that all of it is squeezed to. details: crops as well."""

    whole_px: int
    details: bool


class LargePicture:
    """An upright picture of height_px x width_px pixels, RGB.

    open_at: returns it upright, RGB, decoded at 1 / scale (rounded up), scale being 1 or, if it has_drafts, 2, 4 or 8.
    """

    def __init__(
        self, height_px: int, width_px: int, open_at: Callable[[int], Image.Image], *, has_drafts: bool
    ) -> None:
        self.height_px = height_px
        self.width_px = width_px
        self._open_at = open_at
        self._has_drafts = has_drafts
        self._levels: dict[int, Image.Image] = {}
        self._wholes: dict[Sight, PixelsHWC] = {}

    @classmethod
    def of_pixels(cls, pixels_HWC: PixelsHWC) -> LargePicture:
        """Return the picture of an array: uint8 (H, W, 3), RGB, upright."""
        return cls.of_image(Image.fromarray(pixels_HWC))

    @classmethod
    def of_image(cls, image: Image.Image) -> LargePicture:
        """Return the picture of a decoded one: RGB, upright."""
        return cls(image.height, image.width, lambda scale: image, has_drafts=False)

    @property
    def pixels_HWC(self) -> PixelsHWC:
        """All pixels: uint8 (H, W, 3), RGB, 0 to 255, writable; a new array at each use."""
        return np.array(self.level(1))

    def level(self, scale: int) -> Image.Image:
        """Return the picture at 1 / scale, sides rounded up: each pixel the mean of scale x scale, halved step by step.

        scale: 1, 2, 4 or 8. Raises what decoding raises.
        """
        if scale not in self._levels:
            if scale == 1:
                self._levels[1] = self._open_at(1)
            else:
                self._levels[scale] = self.level(scale // 2).reduce(2)
        return self._levels[scale]

    def see(self, sight: Sight) -> PixelsHWC:
        """Return the whole picture squeezed: uint8 (whole_px, whole_px, 3), RGB. Decodes all that the sight will want.

        Never cut, so that every mask keeps its place. Raises what decoding raises.
        """
        if sight not in self._wholes:
            size = sight.whole_px
            scale = scale_for(min(self.height_px, self.width_px) / size, _WHOLE_KEEPS)
            drafts = self._has_drafts and not sight.details and scale > 1
            source = self._open_at(scale) if drafts else self.level(scale)
            # Sides are rounded up: the last column may stand for less than a whole one.
            box = (0.0, 0.0, self.width_px / scale, self.height_px / scale)
            self._wholes[sight] = np.asarray(source.resize((size, size), Image.Resampling.BILINEAR, box=box))
        return self._wholes[sight]


def scale_for(step: float, keeps: float) -> int:
    """Return the largest of 1, 2, 4, 8 that leaves at least `keeps` pixels for each one made; step: pixels it has in full."""
    scale = 1
    while scale < LARGEST_SCALE and step >= 2 * scale * keeps:
        scale *= 2
    return scale


def is_large(height_px: int, width_px: int) -> bool:
    """Return whether a picture is taken apart by scales; if not, it is one array, and all is as it was in full."""
    return height_px * width_px > LARGE_PX
