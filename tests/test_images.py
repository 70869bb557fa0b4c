"""Opening pictures: what must come out as upright RGB, and what must be refused and why."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Transpose

from rlabel.corpus.images import BadImage, open_image
from rlabel.corpus.limits import Limits
from rlabel.errors import StorageError, UsageError
from rlabel.storage import Store

from factories import HEIGHT, WIDTH, pixels, save_picture  # isort: skip

LIMITS = Limits()
# How a camera stores an upright picture for each EXIF orientation: the inverse of the turn that EXIF 2.32 prescribes.
STORED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def opened(folder: Path, name: str, limits: Limits = LIMITS) -> np.ndarray:
    return open_image(Store.open(folder), name, limits)


def test_a_picture_comes_out_as_it_is(tmp_path):
    save_picture(tmp_path / "sub" / "фото ☂.png")
    found = opened(tmp_path, "sub/фото ☂.png")
    assert found.dtype == np.uint8 and found.flags.writeable and found.flags.c_contiguous
    assert (found == pixels()).all()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_turned_picture_comes_out_upright(tmp_path, orientation, suffix):
    turn = STORED[orientation]
    upright = Image.fromarray(pixels())
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    found = opened(tmp_path, f"a.{suffix}")
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(found.astype(int) - pixels()).mean() < 12  # a wrong turn is beyond 60


def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*garbage")
    assert (opened(tmp_path, "a.png") == pixels()).all()


def test_grey_and_palette_pictures_come_out_as_rgb(tmp_path):
    grey = Image.fromarray(pixels()[:, :, 0])
    grey.save(tmp_path / "l.png")
    assert (opened(tmp_path, "l.png") == np.repeat(pixels()[:, :, :1], 3, axis=2)).all()
    grey.convert("1").save(tmp_path / "1.png")
    assert set(np.unique(opened(tmp_path, "1.png"))) == {0, 255}
    Image.fromarray(pixels()).quantize(256).save(tmp_path / "p.png")
    assert np.abs(opened(tmp_path, "p.png").astype(int) - pixels()).mean() < 8


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_and_not_cut(tmp_path, value, expected):
    Image.fromarray(np.full((4, 5), value, dtype=np.uint16)).save(tmp_path / "a.png")
    assert (opened(tmp_path, "a.png") == expected).all()


def test_floats_are_scaled_by_their_own_range(tmp_path):
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert opened(tmp_path, "a.tif")[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[np.nan, 0.0]], dtype=np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(BadImage, match="not finite"):
        opened(tmp_path, "b.tif")


def test_transparent_pixels_are_laid_on_white(tmp_path):
    rgba = np.dstack([pixels(), np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)])
    rgba[:, :8, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    found = opened(tmp_path, "a.png")
    assert (found[:, :8] == 255).all() and (found[:, 8:] == pixels()[:, 8:]).all()
    Image.fromarray(rgba).quantize(16).save(tmp_path / "p.png")  # a palette with a transparent entry
    assert (opened(tmp_path, "p.png")[:, :8] == 255).all()


def test_cmyk_comes_out_as_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = opened(tmp_path, "a.jpg")[4, 4].tolist()
    assert red > 240 and green < 15 and blue < 15


def test_content_counts_and_not_the_name(tmp_path):
    save_picture(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert (opened(tmp_path, "a.jpg") == pixels()).all()


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert opened(tmp_path, "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_cut_off_anywhere_is_refused(tmp_path, suffix):
    noise = np.random.default_rng(5).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    for share in (0.02, 0.3, 0.7, 0.95):
        (tmp_path / "cut").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BadImage, match="damaged or cut off|not a picture"):
            opened(tmp_path, "cut")


def test_files_that_hold_no_picture_are_refused_with_the_cause(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    (tmp_path / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(BadImage, match="0 bytes"):
        opened(tmp_path, "empty.jpg")
    with pytest.raises(BadImage, match="not a picture"):
        opened(tmp_path, "text.jpg")
    with pytest.raises(BadImage, match="not a picture"):
        opened(tmp_path, "program.jpg")
    with pytest.raises(BadImage, match="no such file"):
        opened(tmp_path, "missing.jpg")
    with pytest.raises(BadImage):
        opened(tmp_path, "folder.jpg")
    with pytest.raises(BadImage):
        opened(tmp_path, "x" * 5000)


@pytest.mark.parametrize(
    "name",
    ["../out.png", "sub/../../out.png", "/etc/passwd", "file:///etc/passwd", "memory://a.png", "a\0.png", ".", ""],
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, name):
    save_picture(tmp_path / "out.png")
    (tmp_path / "images").mkdir()
    with pytest.raises(BadImage, match="stay inside"):
        opened(tmp_path / "images", name)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    save_picture(tmp_path / "out.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(BadImage, match="stay inside"):
        opened(tmp_path / "images", "a.png")


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (20_000, 6_000)])
def test_a_huge_picture_is_refused_by_its_header_alone(tmp_path, width, height):
    # There is nothing but a header: whatever tried to decode would say "damaged" instead.
    (tmp_path / "bomb.png").write_bytes(png_header(width, height) + b"\0\0\0\0IDAT")
    with pytest.raises(BadImage, match="its header says"):
        opened(tmp_path, "bomb.png")


def test_limits_on_pixels_and_bytes_are_kept(tmp_path):
    save_picture(tmp_path / "a.png")
    assert opened(tmp_path, "a.png", Limits(max_pixels=WIDTH * HEIGHT)).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(BadImage, match=rf"{WIDTH} x {HEIGHT} pixels, more than the limit of 383"):
        opened(tmp_path, "a.png", Limits(max_pixels=WIDTH * HEIGHT - 1))
    with pytest.raises(BadImage, match="larger than the limit of 20 bytes"):
        opened(tmp_path, "a.png", Limits(max_file_bytes=20))


def test_a_store_that_fails_is_not_blamed_on_the_picture():
    class Offline:
        def open_read(self, path: str) -> object:
            raise StorageError("s3://bucket/a.png: cannot read it (connection reset).")

    with pytest.raises(StorageError):
        open_image(Offline(), "a.png", LIMITS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", [{"max_pixels": 0}, {"max_pixels": 10**9}, {"max_file_bytes": -1}, {"max_pixels": True}]
)
def test_limits_that_cannot_be_kept_are_refused(bad):
    with pytest.raises(UsageError):
        Limits(**bad)
