"""Label Studio's brush RLE: the bytes of an RGBA picture, packed by thi.ng's rle-pack, whose alpha is the mask.

Format: github.com/thi-ng/umbrella, packages/rle-pack: 32 bits the number of values, 5 the bits of a value - 1, four times 4 bits
the bits of a length - 1; then, until all values are there, 1 bit (run or single values), 2 bits (which length), length - 1, and one
value or as many as the length says. Label Studio reads back value 255 of every channel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlabel.corpus.rle import MaskHW
from rlabel.records import JsonValue

_LENGTH_BITS = (3, 4, 8, 16)


class BadBrush(ValueError):
    """The bytes are no mask of the size that they should have; the message says why."""


def brush_to_mask(rle: JsonValue, height_px: int, width_px: int) -> MaskHW:
    """Return the mask of packed bytes (a list of 0 to 255): bool (height_px, width_px), True where alpha is not 0.

    Raises BadBrush. The caller has checked the size.
    """
    if not isinstance(rle, list) or not all(type(value) is int and 0 <= value < 256 for value in rle):
        raise BadBrush("its rle is not a list of bytes")
    if len(rle) > 8 * height_px * width_px + 64:
        raise BadBrush("its rle is longer than the picture allows")
    bits = _Bits(bytes(value for value in rle if isinstance(value, int)))
    num_values = bits.take(32)
    if num_values != 4 * height_px * width_px:
        raise BadBrush(
            f"it holds {num_values} values, and the picture {width_px} x {height_px} has {4 * height_px * width_px}"
        )
    value_bits = bits.take(5) + 1
    length_bits = [bits.take(4) + 1 for _ in range(4)]
    alpha = np.zeros(height_px * width_px, dtype=np.bool_)
    at = 0
    while at < num_values:
        is_run = bits.take(1)
        after = min(at + 1 + bits.take(length_bits[bits.take(2)]), num_values)
        if is_run:
            # Alpha is every fourth value, from the fourth on.
            if bits.take(value_bits):
                alpha[at // 4 : after // 4] = True
            at = after
        else:
            for index in range(at, after):
                if bits.take(value_bits) and index % 4 == 3:
                    alpha[index // 4] = True
            at = after
    return alpha.reshape(height_px, width_px)


def mask_to_brush(mask_HW: MaskHW) -> list[int]:
    """Return a mask, bool (H, W), as packed bytes: 255 in all four channels inside, 0 outside."""
    flat = mask_HW.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    lengths, values = 4 * np.diff(starts), np.where(flat[starts[:-1]], 255, 0)
    # Runs beyond the longest length are cut into several of it and a rest of at least 1.
    longest = 1 << _LENGTH_BITS[-1]
    num_whole = (lengths - 1) // longest
    pieces = np.full(int(num_whole.sum()) + lengths.size, longest)
    pieces[np.cumsum(num_whole + 1) - 1] = lengths - num_whole * longest
    kinds = np.searchsorted([1 << bits for bits in _LENGTH_BITS], pieces)
    length_bits = np.array(_LENGTH_BITS)[kinds]
    words = ((4 + kinds) << (length_bits + 8)) | ((pieces - 1) << 8) | np.repeat(values, num_whole + 1)
    head = [4 * flat.size, 7, *(bits - 1 for bits in _LENGTH_BITS)]
    bits = np.concatenate((_bits_of(head, [32, 5, 4, 4, 4, 4]), _bits_of(words, 3 + length_bits + 8)))
    packed: list[int] = np.packbits(bits).tolist()
    return packed


def _bits_of(words: npt.ArrayLike, num_bits: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return the lowest bits of some words below 2^32, so many of each, one after the other, the highest first. uint8, 0 or 1."""
    bits_N32 = np.unpackbits(np.asarray(words, dtype=">u4").view(np.uint8)).reshape(-1, 32)
    return bits_N32[np.arange(32) >= 32 - np.asarray(num_bits)[:, None]]


class _Bits:
    """Bits of some bytes, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.end = data, 0, 8 * len(data)

    def take(self, num_bits: int) -> int:
        stop = self.at + num_bits
        if stop > self.end:
            raise BadBrush("its rle is cut off")
        first, after = self.at // 8, (stop + 7) // 8
        word = int.from_bytes(self.data[first:after], "big") >> (8 * after - stop)
        self.at = stop
        return word & ((1 << num_bits) - 1)
