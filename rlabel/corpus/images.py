"""Opens one picture as upright RGB pixels, or says why it cannot. Knows nothing of corpora, masks or formats (`decoding`)."""

from __future__ import annotations

import errno
import os

import numpy as np

from rlabel.corpus.decoding import IN_PROCESS, BadImage, Decoder, Drafts
from rlabel.corpus.limits import Limits
from rlabel.corpus.picture import LargePicture, PixelsHWC, Sight, is_large
from rlabel.errors import StorageError
from rlabel.storage import PathRefused, Store

__all__ = ["BadImage", "PixelsHWC", "open_image", "open_picture"]

# What the system says of one name, and not of the whole store.
_ABOUT_ONE_FILE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)


def open_image(store: Store, file_name: str, limits: Limits, decoder: Decoder = IN_PROCESS) -> PixelsHWC:
    """Return the picture upright (EXIF orientation applied). pixels_HWC: uint8 (H, W, 3), RGB, 0 to 255, writable.

    Grey, palette, 16-bit (scaled, not cut), CMYK and transparent pictures (laid on white) come out as RGB; of an
    animation the first frame. Size is checked by the header before anything is decoded.

    Raises BadImage for anything wrong with this one file. A StorageError (no connection, say) passes through: it says
    nothing about the picture, and trying again may help.
    """
    picture = open_picture(store, file_name, limits, decoder=decoder)
    return picture.pixels_HWC if isinstance(picture, LargePicture) else picture


def open_picture(
    store: Store, file_name: str, limits: Limits, sight: Sight | None = None, decoder: Decoder = IN_PROCESS
) -> PixelsHWC | LargePicture:
    """Return the picture as `open_image` does, or where it is a large one, as a LargePicture that is decoded for a sight.

    sight: what will be asked of it; None decodes it in full. It decides what is read now, not what comes out later.
    decoder: where it is decoded, which changes nothing of it.

    Raises BadImage for anything wrong with this one file; StorageError passes through.
    """
    data = _read_bytes(store, file_name, limits)
    try:
        decoded = decoder.decode(data, limits)
        if isinstance(decoded, Drafts):
            large = LargePicture(*decoded, lambda scale: decoder.decode_at(data, scale, limits), has_drafts=True)
        elif not isinstance(decoded, np.ndarray):
            large = LargePicture.of_image(decoded)
        elif is_large(*decoded.shape[:2]):
            large = LargePicture.of_pixels(decoded)
        else:
            return decoded
        if sight is None:
            large.level(1)
        else:
            large.see(sight)
        return large
    except MemoryError as error:
        raise BadImage("there is not enough memory to decode it. Scale it down") from error


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
