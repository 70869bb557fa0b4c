"""Opens one picture as upright RGB pixels, or says why it cannot. Knows nothing of corpora or masks."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from rlabel.corpus.limits import Limits
from rlabel.corpus.picture import LargePicture, PixelsHWC, Sight, is_large
from rlabel.errors import StorageError
from rlabel.storage import PathRefused, Store

__all__ = ["BadImage", "PixelsHWC", "open_image", "open_picture"]

# By content, whatever the name says. Left out on purpose: formats that run other programs (EPS) or that hold no
# picture.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# What the system says of one name, and not of the whole store.
_ABOUT_ONE_FILE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)
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
# Below this side no smaller scale could be wanted, and Pillow's arithmetic of them ends.
_LEAST_DRAFTED_PX = 64
# Those that exchange width and height.
_LYING = frozenset(
    {Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270}
)


class BadImage(Exception):
    """This picture cannot be used; the message is the cause, in words for a person, without the file's name."""


def open_image(store: Store, file_name: str, limits: Limits) -> PixelsHWC:
    """Return the picture upright (EXIF orientation applied). pixels_HWC: uint8 (H, W, 3), RGB, 0 to 255, writable.

    Grey, palette, 16-bit (scaled, not cut), CMYK and transparent pictures (laid on white) come out as RGB; of an
    animation the first frame. Size is checked by the header before anything is decoded.

    Raises BadImage for anything wrong with this one file. A StorageError (no connection, say) passes through: it says
    nothing about the picture, and trying again may help.
    """
    picture = open_picture(store, file_name, limits)
    return picture.pixels_HWC if isinstance(picture, LargePicture) else picture


def open_picture(store: Store, file_name: str, limits: Limits, sight: Sight | None = None) -> PixelsHWC | LargePicture:
    """Return the picture as `open_image` does, or where it is a large one, as a LargePicture that is decoded for a sight.

    sight: what will be asked of it; None decodes it in full. It decides what is read now, not what comes out later.

    Raises BadImage for anything wrong with this one file; StorageError passes through.
    """
    data = _read_bytes(store, file_name, limits)
    with _as_bad_image(limits), Image.open(io.BytesIO(data), formats=_readable_formats()) as picture:
        if picture.width < 1 or picture.height < 1:
            raise BadImage("the picture has no pixels")
        if picture.width * picture.height > limits.max_pixels:
            raise BadImage(
                f"its header says {picture.width} x {picture.height} pixels, more than the limit of "
                f"{limits.max_pixels}; not decoded. Scale it down, or raise max_pixels"
            )
        if not is_large(picture.height, picture.width):
            picture.load()
            return np.array(_rgb(_upright(picture)))
        large = _drafted(picture, data, limits)
        if large is None:
            picture.load()
            large = LargePicture.of_image(_rgb(_upright(picture)))
        if sight is None:
            large.level(1)
        else:
            large.see(sight)
        return large


def _drafted(picture: Image.Image, data: bytes, limits: Limits) -> LargePicture | None:
    """Return the picture, not decoded yet, if its decoder can do so at smaller scales: JPEG."""
    if not isinstance(picture, JpegImageFile) or min(picture.size) < _LEAST_DRAFTED_PX:
        return None
    width, height = picture.size
    if _turn(picture) in _LYING:
        width, height = height, width
    return LargePicture(height, width, lambda scale: _decoded(data, scale, limits), has_drafts=True)


def _decoded(data: bytes, scale: int, limits: Limits) -> Image.Image:
    """Return a JPEG upright, RGB, at 1 / scale (1, 2, 4 or 8), sides rounded up. Raises BadImage."""
    with _as_bad_image(limits), Image.open(io.BytesIO(data), formats=_readable_formats()) as picture:
        expected = tuple(-(-side // scale) for side in picture.size)
        if scale > 1:
            picture.draft(None, (picture.width // scale, picture.height // scale))
        picture.load()
        if picture.size != expected:
            raise BadImage(f"it was decoded to {picture.size} pixels, expected {expected} (width, height)")
        return _rgb(_upright(picture))


@contextmanager
def _as_bad_image(limits: Limits) -> Iterator[None]:
    """Turn whatever a decoder raises into BadImage."""
    try:
        yield
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(
            f"its header says more pixels than the limit of {limits.max_pixels}; not decoded "
            f"({str(error).partition(',')[0]})"
        ) from error
    except UnidentifiedImageError as error:
        raise BadImage("the file is not a picture in a format that can be read") from error
    except Exception as error:  # decoders raise anything from OSError to struct.error on damaged bytes
        raise BadImage(f"the picture is damaged or cut off: {error or type(error).__name__}") from error


@lru_cache(maxsize=1)
def _readable_formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow has; naming another would make every picture fail."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _read_bytes(store: Store, file_name: str, limits: Limits) -> bytes:
    try:
        with store.open_read(file_name) as stream:
            data = stream.read(limits.max_file_bytes + 1)
    except FileNotFoundError as error:
        raise BadImage("there is no such file in the image folder") from error
    except PathRefused as error:
        raise BadImage(
            "its path does not stay inside the image folder (absolute, '..', a protocol, a link that leads out), or "
            "it is not a regular file; file names must be relative to the image folder"
        ) from error
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _ABOUT_ONE_FILE:
            raise BadImage(f"the file cannot be read: {os.strerror(cause.errno)}") from error
        raise
    except UnicodeError as error:
        raise BadImage("its file name cannot be encoded for this file system") from error
    if not data:
        raise BadImage("the file is empty (0 bytes)")
    if len(data) > limits.max_file_bytes:
        raise BadImage(f"the file is larger than the limit of {limits.max_file_bytes} bytes")
    return data


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
    values_HW = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values_HW).all():
        raise BadImage("the picture holds values that are not finite numbers")
    low, high = float(values_HW.min()), float(values_HW.max())
    if picture.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled_HW = (values_HW - low) * (255.0 / max(high - low, 1e-12))
    return np.rint(scaled_HW).astype(np.uint8)
