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
    starts = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]))
    words: list[npt.NDArray[np.uint8]] = [
        _bits_of(4 * flat.size, 32),
        _bits_of(7, 5),
        *(_bits_of(bits - 1, 4) for bits in _LENGTH_BITS),
    ]
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        left = 4 * (stop - start)
        value = _bits_of(255 if flat[start] else 0, 8)
        while left:
            length = min(left, 1 << _LENGTH_BITS[-1])
            kind = next(index for index, bits in enumerate(_LENGTH_BITS) if length <= 1 << bits)
            words += [_bits_of(4 + kind, 3), _bits_of(length - 1, _LENGTH_BITS[kind]), value]
            left -= length
    packed: list[int] = np.packbits(np.concatenate(words)).tolist()
    return packed


def _bits_of(value: int, num_bits: int) -> npt.NDArray[np.uint8]:
    return np.array([(value >> shift) & 1 for shift in range(num_bits - 1, -1, -1)], dtype=np.uint8)


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
