"""From the bytes of one file to an upright RGB picture, or the reason why not. Opens no file and knows no store.

This is all that runs on bytes of strangers before they are an array, so that `isolation` can run it in a process of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from rlabel.corpus.limits import Limits
from rlabel.corpus.picture import PixelsHWC, is_large

# By content, whatever the name says. Left out on purpose: formats that run other programs (EPS) or that hold no
# picture.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# EXIF 2.32, tag 0x0112: how the stored picture is turned to stand upright.
_EXIF_ORIENTATION = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Those that exchange width and height.
_LYING = frozenset(
    {Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270}
)
# Below this side no smaller scale could be wanted, and Pillow's arithmetic of them ends.
_LEAST_DRAFTED_PX = 64
# Of deep pictures: so many values at a time become floats of 8 bytes.
_VALUES_AT_ONCE = 1 << 22


class BadImage(Exception):
    """This picture cannot be used; the message is the cause, in words for a person, without the file's name."""


class Drafts(NamedTuple):
    """A large JPEG, not decoded yet, since it can be at smaller scales. Its upright size."""

    height_px: int
    width_px: int


class Decoder(Protocol):
    """What decodes: this process, or another one on its behalf. Both raise BadImage, and nothing else, for bad bytes."""

    def decode(self, data: bytes, limits: Limits) -> PixelsHWC | Image.Image | Drafts: ...

    def decode_at(self, data: bytes, scale: int, limits: Limits) -> Image.Image: ...


class InProcess:
    """Decodes here and now: a decoder that crashes takes this process with it."""

    def decode(self, data: bytes, limits: Limits) -> PixelsHWC | Image.Image | Drafts:
        """Return the picture upright in RGB, uint8 (H, W, 3) or, of a large one, Pillow's; of a large JPEG what its header says.

        Grey, palette, 16-bit (scaled, not cut), CMYK and transparent pictures (laid on white) come out as RGB; of an
        animation the first frame. Size is checked by the header before anything is decoded.
        """
        with _opened(data, limits) as picture:
            if picture.width < 1 or picture.height < 1:
                raise BadImage("the picture has no pixels")
            if picture.width * picture.height > limits.max_pixels:
                raise BadImage(
                    f"its header says {picture.width} x {picture.height} pixels, more than the limit of "
                    f"{limits.max_pixels}; not decoded. Scale it down, or raise max_pixels"
                )
            if is_large(picture.height, picture.width) and _has_drafts(picture):
                width, height = picture.size
                return Drafts(width, height) if _turn(picture) in _LYING else Drafts(height, width)
            picture.load()
            upright = _rgb(_upright(picture))
            return upright if is_large(upright.height, upright.width) else np.array(upright)

    def decode_at(self, data: bytes, scale: int, limits: Limits) -> Image.Image:
        """Return a JPEG that `decode` gave as Drafts, upright, RGB, at 1 / scale (1, 2, 4 or 8), sides rounded up."""
        with _opened(data, limits) as picture:
            expected = tuple(-(-side // scale) for side in picture.size)
            if scale > 1:
                picture.draft(None, (picture.width // scale, picture.height // scale))
            picture.load()
            if picture.size != expected:
                raise BadImage(f"it was decoded to {picture.size} pixels, expected {expected} (width, height)")
            return _rgb(_upright(picture))


IN_PROCESS = InProcess()


@contextmanager
def _opened(data: bytes, limits: Limits) -> Iterator[Image.Image]:
    """Open a picture; whatever a decoder raises comes out as BadImage."""
    try:
        with Image.open(io.BytesIO(data), formats=readable_formats()) as picture:
            yield picture
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(
            f"its header says more pixels than the limit of {limits.max_pixels}; not decoded "
            f"({str(error).partition(',')[0]})"
        ) from error
    except UnidentifiedImageError as error:
        raise BadImage("the file is not a picture in a format that can be read") from error
    except MemoryError:
        raise  # it says as much of this process as of the picture: whoever runs it decides
    except Exception as error:  # decoders raise anything from OSError to struct.error on damaged bytes
        raise BadImage(f"the picture is damaged or cut off: {str(error)[:300] or type(error).__name__}") from error


@lru_cache(maxsize=1)
def readable_formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow has; naming another would make every picture fail."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _has_drafts(picture: Image.Image) -> bool:
    """Return whether a decoder can give the picture at smaller scales: JPEG's."""
    return isinstance(picture, JpegImageFile) and min(picture.size) >= _LEAST_DRAFTED_PX


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """Return what turns a picture as stored upright; None where nothing is to be done."""
    try:
        orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the picture: take it as stored
        orientation = 1
    return _TO_UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _upright(picture: Image.Image) -> Image.Image:
    turn = _turn(picture)
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image.Image) -> Image.Image:
    """Return the picture in RGB: itself where it is. Transparent ones are laid on white, deep ones scaled to 8 bits."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = Image.fromarray(_high_depth_to_grey(picture))
        return Image.merge("RGB", (grey, grey, grey))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, layer)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _high_depth_to_grey(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """Return grey_HW uint8 of a picture with more than 8 bits. Pillow's own convert would cut at 255: all white.

    16-bit integers are scaled by their whole range (65535 to 255); 32-bit integers beyond that and floats have no known
    range, so by their own least and largest value.
    """
    values_HW = np.asarray(picture)
    if values_HW.dtype.kind == "f" and not np.isfinite(values_HW).all():
        raise BadImage("the picture holds values that are not finite numbers")
    low, high = float(values_HW.min()), float(values_HW.max())
    if picture.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    grey_HW = np.empty(values_HW.shape, dtype=np.uint8)
    # Some rows at a time: as floats of 8 bytes the whole of a large picture would take gigabytes.
    step = max(1, _VALUES_AT_ONCE // values_HW.shape[1])
    for top in range(0, values_HW.shape[0], step):
        rows_HW = values_HW[top : top + step].astype(np.float64)
        grey_HW[top : top + step] = np.rint((rows_HW - low) * (255.0 / max(high - low, 1e-12)))
    return grey_HW
