"""Hostile corpus files and pictures, made from a number: the same number gives the same bytes."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

# Pictures of 9 x 8 pixels that are there.
NAMES = ("a.png", "b.jpg", "sub/c.png")
# Where a value of a row may become one of these.
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**300, -0.0, 0.5, -1e300, float("nan"), float("inf"), 1e-320,
    "", " ", "1", "-1", "1e9", "NaN", "\0", "a\0b.png", "..", "../outside.png", "../../etc/passwd", "/etc/passwd", "C:\\windows\\win.ini",
    "\\\\host\\share", "file:///etc/passwd", "http://127.0.0.1:9/a.png", "memory://a", "a::b", "out.png", "pipe.png", "folder.png",
    "\ud800", "\u202egnp.a", "\u001b[2J", "ａ.png", "a" * 5000, "=1+1", "<script>", "a.png\n", [], {}, [[]], [{}], [None] * 9,
    [1e9, -1e9, 1e9, 1e9, -1e9, 5], [0, 0, 1e300, 1e300, -1e300, 3], [[0, 0, 9, 9, float("nan"), 3]], [[0, 0, 5, 0, 5, 5]] * 50, [0, 0, 0, 0],
    [1, 1, -5, -5], [True, False, 3, 4], ["1", "2", "3", "4"], {"size": [8, 9], "counts": [72]}, {"size": [8, 9], "counts": [10**18, 1]},
    {"size": [8, 9], "counts": [-1, 73]}, {"size": [8, 9], "counts": ""}, {"size": [8, 9], "counts": "0" * 3000},
    {"size": [8, 9], "counts": "ooooooooooooooo"}, {"size": [8, 9], "counts": "~"}, {"size": [0, 0], "counts": []},
    {"size": [10**9, 10**9], "counts": [10**18]}, {"size": [True, 9], "counts": [9]}, {"size": [8.0, 9.0], "counts": [72]},
    {"size": [9, 8], "counts": [5, 5, 62]}, {"size": None, "counts": None}, {"counts": {}},
)  # fmt: skip
_TOKENS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"\\ud83d", b"null", b"NaN", b"-Infinity", b"1e999", b"-", b"0" * 500,
    b"9" * 5000, b"[" * 2000, b'{"a":' * 1500, b"\xff\xfe", b"\x00", b"\xef\xbb\xbf", b'"images":[', b'"annotations":[', b"\r\n", b" " * 3000,
)  # fmt: skip


def corpus_file(seed: int, names: tuple[str, ...]) -> bytes:
    """Return a COCO file of a few rows, hostile by its values, its bytes or both. names: pictures of 9 x 8 pixels."""
    rng = random.Random(seed)
    images: list[Any] = [
        {"id": i + 1, "file_name": rng.choice(names), "width": 9, "height": 8} for i in range(rng.randint(0, 4))
    ]
    annotations: list[Any] = [
        {
            "id": i + 1,
            "image_id": rng.randint(1, max(1, len(images))),
            "bbox": [rng.randint(-2, 8), rng.randint(-2, 8), rng.randint(0, 9), rng.randint(0, 9)],
            "segmentation": rng.choice((None, [[1, 1, 7, 1, 7, 6]], {"size": [8, 9], "counts": [10, 5, 57]})),
            "iscrowd": rng.randint(0, 1),
        }
        for i in range(rng.randint(0, 8))
    ]
    document: dict[str, Any] = {
        "info": {"year": 1},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}],
    }
    for _ in range(rng.randint(0, 6)):
        rows = rng.choice((images, annotations))
        if not rows:
            continue
        place = rng.randrange(len(rows))
        if isinstance(rows[place], dict) and rng.random() < 0.95:
            keys = [*rows[place], "extra", "coco_url"]
            rows[place] = {**rows[place], rng.choice(keys): rng.choice(_ODD)}
        else:
            rows[place] = rng.choice(_ODD)
    if rng.random() < 0.1:
        document[rng.choice(list(document))] = rng.choice(_ODD)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    return mutated(text, rng, _TOKENS) if rng.random() < 0.5 else text


def mutated(data: bytes, rng: random.Random, tokens: tuple[bytes, ...]) -> bytes:
    """Return the bytes with some of them flipped, cut, doubled, moved or replaced."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 2, 4, 30, 300))
        kind = rng.randrange(6)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[at : at + length]
        elif kind == 2:
            content[at:at] = content[at : at + length] * rng.choice((1, 1, 5))
        elif kind == 3:
            content[at:at] = rng.choice(tokens)
        elif kind == 4:
            content[at : at + length] = rng.randbytes(len(content[at : at + length]))
        elif at:
            del content[at:]
    return bytes(content)


def picture(seed: int) -> bytes:
    """Return a picture file of some format, damaged."""
    rng = random.Random(seed)
    data = rng.choice(_pictures())
    # Most of what decides anything is at the start: half of the damage is done there.
    if rng.random() < 0.5:
        head = min(len(data), 256)
        return mutated(data[:head], rng, _NUMBERS) + data[head:]
    return mutated(data, rng, _NUMBERS)


_NUMBERS = (
    b"\xff\xff",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x00\x01\x00\x00",
    b"\xff\xd8",
    b"\xff\xd9",
)


@lru_cache(maxsize=1)
def _pictures() -> tuple[bytes, ...]:
    """Return sound pictures: every format that is read, in the modes that it has."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    rgb, grey, rgba = Image.fromarray(noise[:, :, :3]), Image.fromarray(noise[:, :, 0]), Image.fromarray(noise)
    deep = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    floats = Image.fromarray(noise[:, :, 0].astype(np.float32))
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.transpose(Image.Transpose.ROTATE_180)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[bytes] = []

    def save(image: Image.Image, form: str, **options: Any) -> None:
        stream = io.BytesIO()
        image.save(stream, form, **options)
        made.append(stream.getvalue())

    forms: tuple[Callable[[], None], ...] = (
        lambda: save(rgb, "JPEG", exif=exif),
        lambda: save(rgb, "JPEG", progressive=True),
        lambda: save(grey, "JPEG", icc_profile=b"x" * 300),
        lambda: save(rgb.convert("CMYK"), "JPEG"),
        lambda: save(rgba, "PNG", exif=exif),
        lambda: save(rgb.quantize(16), "PNG", transparency=3),
        lambda: save(deep, "PNG"),
        lambda: save(grey.convert("1"), "PNG"),
        lambda: save(rgb, "PNG", **frames),
        lambda: save(rgb, "WEBP"),
        lambda: save(rgba, "WEBP", lossless=True, exif=exif),
        lambda: save(rgb, "WEBP", **frames),
        lambda: save(rgb.quantize(32), "GIF"),
        lambda: save(rgb, "GIF", **frames),
        lambda: save(rgb, "BMP"),
        lambda: save(rgb.quantize(16), "BMP"),
        lambda: save(rgb, "TIFF"),
        lambda: save(rgb, "TIFF", compression="tiff_lzw"),
        lambda: save(rgb, "TIFF", compression="jpeg"),
        lambda: save(grey.convert("1"), "TIFF", compression="group4"),
        lambda: save(deep, "TIFF", compression="tiff_adobe_deflate"),
        lambda: save(floats, "TIFF"),
        lambda: save(rgb, "PPM"),
        lambda: save(grey, "PPM"),
        lambda: save(rgb, "JPEG2000"),
        lambda: save(rgb, "AVIF"),
    )
    for form in forms:
        try:
            form()
        except (KeyError, OSError, ValueError):  # a build of Pillow without that library
            continue
    return tuple(made)
