"""Large pictures are seen at the scales that are needed: small ones to the byte as ever, large ones within stated bounds."""

from __future__ import annotations

import io
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlabel.corpus import picture as pictures
from rlabel.corpus.images import BadImage, open_image, open_picture
from rlabel.corpus.inputs import PreparedImage, prepare_image
from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import RegionMask, area_resample, rasterise
from rlabel.corpus.picture import LargePicture, Sight, scale_for
from rlabel.records import Region
from rlabel.regiongpt.pixels import View, zoom_crop
from rlabel.regiongpt.processing import RegionGPTImageProcessor, RegionInputs
from rlabel.storage import Store

from factories import image_record, region  # isort: skip

LIMITS = Limits()
# Just beyond what is taken as it is.
WIDTH, HEIGHT = 1800, 1200
SIZE = 48
# From 16 px to nearly all of the picture, in its middle and across its edges and corners: left, top, width, height.
BOXES = [
    (700, 500, 16, 12), (812, 431, 40, 44), (300, 600, 70, 90), (900, 300, 150, 120), (610, 305, 260, 301), (201, 99, 700, 640),
    (30, 20, 1740, 1150), (0, 0, 33, 30), (1745, 1133, 55, 67), (0, 900, 500, 300), (1500, 0, 300, 800), (0, 595, 1800, 3),
]  # fmt: skip


def scene(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a picture of soft colours with hard-edged discs on it and a little noise, as photographs have."""
    random = np.random.default_rng(5)
    small = Image.fromarray(random.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    ys, xs = np.mgrid[:height, :width]
    for _ in range(20):
        y, x, radius = random.uniform(0, height), random.uniform(0, width), random.uniform(10, 200)
        pixels[(ys - y) ** 2 + (xs - x) ** 2 < radius**2] = random.integers(0, 256, 3)
    return (pixels + random.integers(-6, 7, (height, width, 1))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold one scene as PNG and as JPEG, upright and turned by EXIF, and cut off in the middle."""
    made = tmp_path_factory.mktemp("large")
    image = Image.fromarray(scene())
    image.save(made / "a.png", compress_level=1)
    image.save(made / "a.jpg", quality=92)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(made / "a.jpg").transpose(Image.Transpose.ROTATE_90).save(made / "turned.jpg", quality=98, exif=exif)
    (made / "cut.jpg").write_bytes((made / "a.jpg").read_bytes()[:60_000])
    return made


def polygon(box: tuple[int, int, int, int]) -> list[float]:
    x, y, w, h = box
    return [x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]


def drawn(height: int = HEIGHT, width: int = WIDTH, scale: float = 1.0) -> list[RegionMask]:
    boxes = [tuple(scale * side for side in box) for box in BOXES]
    masks = [rasterise([polygon(box)], box, height, width, LIMITS) for box in boxes]  # type: ignore[arg-type, list-item]
    return [*masks, rasterise(None, boxes[4], height, width, LIMITS)]  # type: ignore[arg-type]


def images(zoom: str = "all", **more: object) -> RegionGPTImageProcessor:
    return RegionGPTImageProcessor(image_size_px=56, mask_side=14, zoom=zoom, zoom_size_px=SIZE, **more)  # type: ignore[arg-type]


def plain_crop(
    pixels_HWC: np.ndarray, mask: RegionMask, size_px: int, context: float, *, as_large: bool = False
) -> np.ndarray:
    """Return the crop as it has been made from the first version on: a window of all pixels, averaged, then sampled.

    as_large: of the window that a large picture shows, which begins at a whole pixel of its scale.
    """
    x, y, width, height = mask.box_xywh
    side = max(max(width, height, 1.0) * (1.0 + 2.0 * context), 16.0)
    middle_x, middle_y, reach = x + width / 2, y + height / 2, side / 2 + 2
    if as_large:  # begins half a cell aside at most, at a whole pixel or a whole number of cells after one
        scale = next(scale for scale in (8, 4, 2, 1) if side >= scale * size_px or scale == 1)
        step, moved = side / size_px / scale, []
        for middle in (middle_x, middle_y):
            begin = (middle - side / 2) / scale
            begin += (first := max(math.ceil(-begin / step - 0.5), 0)) * step  # the first cell that is shown
            start = math.floor(begin) + round((begin - math.floor(begin)) / step) * step if step < 1 else round(begin)
            assert abs(start - begin) <= max(step, 1) / 2
            moved.append((start - first * step) * scale + side / 2)
        middle_x, middle_y = moved
    left, top = max(int(middle_x - reach), 0), max(int(middle_y - reach), 0)
    window = np.s_[
        top : min(math.ceil(middle_y + reach), pixels_HWC.shape[0]),
        left : min(math.ceil(middle_x + reach), pixels_HWC.shape[1]),
    ]
    both = np.dstack([pixels_HWC[window], mask.mask_HW[window].astype(np.uint8) * 255])
    source = Image.frombytes("CMYK", both.shape[1::-1], np.ascontiguousarray(both).tobytes())
    step, shrink = side / size_px, [1.0, 1.0]
    if step > 1.0:
        small = (max(round(source.width / step), 1), max(round(source.height / step), 1))
        shrink = [source.width / small[0], source.height / small[1]]
        source = source.resize(small, Image.Resampling.BILINEAR)
    start_x, start_y = middle_x - left - step * (size_px / 2), middle_y - top - step * (size_px / 2)
    matrix = (step / shrink[0], 0.0, start_x / shrink[0], 0.0, step / shrink[1], start_y / shrink[1])
    how = Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    crop = np.array(source.transform((size_px, size_px), *how, fillcolor=(127, 127, 127, 0)))
    if not crop[..., 3].any():
        crop[..., 3] = 255
    return crop


def test_up_to_a_stated_size_every_pixel_is_as_ever(tmp_path: Path) -> None:
    height, width = 1024, 2048
    assert height * width == pictures.LARGE_PX == 2_097_152
    Image.fromarray(scene(height, width)).save(tmp_path / "a.jpg", quality=90)
    opened = open_picture(Store.open(tmp_path), "a.jpg", LIMITS, images().sight)
    decoded = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
    assert isinstance(opened, np.ndarray) and (opened == decoded).all()
    masks = drawn(height, width, 0.85)
    inputs = images().prepare(opened, masks)
    squeezed = Image.fromarray(decoded).resize((56, 56), Image.Resampling.BILINEAR)
    assert (images().denormalise(inputs.pixels_3SS).permute(1, 2, 0).numpy() == np.asarray(squeezed)).all()
    assert inputs.zoom_crops_Z4SS is not None
    for mask, crop, cells in zip(masks, inputs.zoom_crops_Z4SS, inputs.region_masks_RGG, strict=True):
        assert isinstance(mask.inside, np.ndarray)
        assert (crop.permute(1, 2, 0).numpy() == plain_crop(decoded, mask, SIZE, 0.1)).all()
        top, left, (h, w) = mask.top_px, mask.left_px, mask.inside.shape
        inside = np.zeros((height, width), np.bool_)
        inside[top : top + h, left : left + w] = mask.inside
        assert (cells.numpy() == area_resample(inside, 14, 14)).all()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_crops_of_a_large_picture_stay_close_to_those_from_all_its_pixels(folder: Path, name: str) -> None:
    store = Store.open(folder)
    large, pixels_HWC = open_picture(store, name, LIMITS), open_image(store, name, LIMITS)
    assert isinstance(large, LargePicture) and pixels_HWC.shape == (HEIGHT, WIDTH, 3)
    outside: list[float] = []
    for mask in drawn():
        crop, plain = zoom_crop(large, mask, SIZE, 0.1), plain_crop(pixels_HWC, mask, SIZE, 0.1, as_large=True)
        apart = np.abs(crop.astype(int) - plain)
        # The plain way blurs a second time, so that edges differ; places must not.
        # Shrunk 40 times, the scene's own patches are of a pixel's size.
        bound = 3 if max(mask.box_xywh[2:]) < 20 * SIZE else 6
        assert apart[..., :3].mean() < bound and apart[..., 3].mean() < 3, mask.box_xywh
        grey = (plain[..., :3] == 127).all(2) & (plain[..., 3] == 0)
        outside.append(grey.mean())
        assert (crop[grey] == (127, 127, 127, 0)).all()
        assert crop[..., 3].sum(dtype=int) == pytest.approx(plain[..., 3].sum(dtype=int), rel=0.02, abs=255)
    assert sum(share > 0.1 for share in outside) >= 4


@pytest.mark.parametrize(
    "view",
    [View(angle_deg=20, mirrored=True, stretch=1.1), View(scale=1.2, shift_x=0.1, shift_y=-0.1), View(angle_deg=90)],
)
def test_augmented_crops_of_a_large_picture_show_what_those_of_all_its_pixels_show(folder: Path, view: View) -> None:
    pixels_HWC = open_image(Store.open(folder), "a.png", LIMITS)
    large = LargePicture.of_pixels(pixels_HWC)
    for mask in drawn():
        apart = np.abs(
            zoom_crop(large, mask, SIZE, 0.1, view).astype(int) - zoom_crop(pixels_HWC, mask, SIZE, 0.1, view)
        )
        assert apart[..., :3].mean() < 2 and apart[..., 3].mean() < 3, mask.box_xywh


@pytest.mark.parametrize("side", [40, 56, 150, 310])
@pytest.mark.parametrize("details", [False, True])
def test_the_whole_of_a_large_picture_stays_close_to_all_its_pixels_squeezed(
    folder: Path, side: int, details: bool
) -> None:
    store, sight = Store.open(folder), Sight(whole_px=side, details=details)
    exact = Image.fromarray(open_image(store, "a.jpg", LIMITS)).resize((side, side), Image.Resampling.BILINEAR)
    seen = open_picture(store, "a.jpg", LIMITS, sight).see(sight)  # type: ignore[union-attr]
    apart = np.abs(seen.astype(int) - np.asarray(exact))
    assert apart.mean() < 1 and apart.max() <= 10
    if side == 310:
        assert not apart.any()  # halving it would leave less than two pixels for each one


def test_a_turned_large_picture_stands_upright_at_every_scale(folder: Path) -> None:
    store = Store.open(folder)
    for sight in (Sight(whole_px=56, details=False), Sight(whole_px=56, details=True)):
        turned, upright = (open_picture(store, name, LIMITS, sight) for name in ("turned.jpg", "a.jpg"))
        assert isinstance(turned, LargePicture) and isinstance(upright, LargePicture)
        assert (turned.width_px, turned.height_px) == (WIDTH, HEIGHT)
        assert np.abs(turned.see(sight).astype(int) - upright.see(sight)).mean() < 2  # a wrong turn is beyond 30
    assert np.abs(turned.pixels_HWC.astype(int) - upright.pixels_HWC).mean() < 3


def bytes_of(inputs: RegionInputs) -> list[bytes]:
    assert inputs.zoom_crops_Z4SS is not None
    return [
        inputs.pixels_3SS.numpy().tobytes(),
        inputs.region_masks_RGG.numpy().tobytes(),
        inputs.zoom_crops_Z4SS.numpy().tobytes(),
    ]


def prepared(folder: Path, name: str, regions: list[Region], sight: Sight | None = None) -> PreparedImage:
    record = image_record(*regions, file_name=name, width=WIDTH, height=HEIGHT)
    return prepare_image(Store.open(folder), record, LIMITS, sight=sight)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("zoom", ["off", "all"])
def test_pixels_hang_neither_on_the_other_regions_nor_on_what_was_decoded_first(
    folder: Path, name: str, zoom: str
) -> None:
    made, masks = images(zoom), drawn()
    opened = [
        open_picture(Store.open(folder), name, LIMITS, sight)
        for sight in (made.sight, None, Sight(whole_px=9, details=False))
    ]
    together = [made.prepare(one, masks) for one in opened]
    for inputs in together[1:]:
        assert (inputs.pixels_3SS == together[0].pixels_3SS).all()
        if zoom == "all":
            assert bytes_of(inputs) == bytes_of(together[0])
    for i in (len(masks) - 1, 6, 0):  # from another scale each
        alone = made.prepare(open_picture(Store.open(folder), name, LIMITS, made.sight), [masks[i]])
        assert (alone.pixels_3SS == together[0].pixels_3SS).all()
        assert (alone.region_masks_RGG[0] == together[0].region_masks_RGG[i]).all()
        if zoom == "all":
            assert (alone.zoom_crops_Z4SS[0] == together[0].zoom_crops_Z4SS[i]).all()  # type: ignore[index]


def test_an_array_that_is_large_gives_the_crops_of_its_file(folder: Path) -> None:
    opened = open_picture(Store.open(folder), "a.png", LIMITS, images().sight)
    assert isinstance(opened, LargePicture)
    assert bytes_of(images().prepare(opened.pixels_HWC, drawn())) == bytes_of(images().prepare(opened, drawn()))


def test_without_details_a_jpeg_is_never_decoded_in_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    load = Image.Image.resize

    def resize(self: Image.Image, *arguments: object, **more: object) -> Image.Image:
        sizes.append(self.size)
        return load(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", resize)
    monkeypatch.setattr(LargePicture, "level", lambda self, scale: pytest.fail("decoded in full"))
    image = prepared(folder, "a.jpg", [region("1", box_xywh=(5.0, 5.0, 90.0, 80.0))], images("off").sight)
    assert image.picture is not None and len(image.regions) == 1
    images("off").prepare(image.picture, [item.mask for item in image.regions])
    assert sizes == [(WIDTH // 8, HEIGHT // 8)]


@pytest.mark.parametrize("zoom", ["off", "all"])
def test_a_large_picture_that_is_cut_off_fails_as_an_image_whatever_is_seen_of_it(folder: Path, zoom: str) -> None:
    regions = [region("1", box_xywh=(5.0, 5.0, 90.0, 80.0)), region("2", box_xywh=(1.0, 2.0, 1500.0, 900.0))]
    image = prepared(folder, "cut.jpg", regions, images(zoom).sight)
    assert image.picture is None and not image.regions
    assert [failure.kind for failure in image.failures] == ["image", "image"]
    assert all("damaged or cut off" in failure.reason for failure in image.failures)


def test_a_large_picture_is_refused_by_its_header_whatever_is_seen_of_it(folder: Path) -> None:
    for sight in (None, images("off").sight, images().sight):
        with pytest.raises(BadImage, match="1800 x 1200 pixels, more than the limit of 2100000"):
            open_picture(Store.open(folder), "a.jpg", Limits(max_pixels=2_100_000), sight)


def test_large_pictures_of_other_kinds_come_out_as_small_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (90, 130), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.jpg", quality=95)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(np.dstack([grey, grey, grey, 255 - grey])).save(tmp_path / "clear.png")
    Image.fromarray(np.dstack([grey] * 4)).convert("CMYK").save(tmp_path / "ink.jpg", quality=95)
    store = Store.open(tmp_path)
    names = ["grey.jpg", "deep.png", "clear.png", "ink.jpg"]
    small = [open_image(store, name, LIMITS) for name in names]
    monkeypatch.setattr(pictures, "LARGE_PX", 1000)
    for name, pixels_HWC in zip(names, small, strict=True):
        large = open_picture(store, name, LIMITS, Sight(whole_px=16, details=False))
        assert isinstance(large, LargePicture)
        exact = np.asarray(Image.fromarray(pixels_HWC).resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(large.see(Sight(whole_px=16, details=False)) - exact).max() <= 6, name
        assert (large.pixels_HWC == pixels_HWC).all() and large.pixels_HWC.flags.writeable, name


def test_a_picture_that_is_all_but_a_line_is_cropped_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGE_PX", 1000)
    random = np.random.default_rng(0)
    for height, width in ((2, 900), (900, 3)):
        pixels_HWC = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = rasterise(None, (0.0, 0.0, float(width), float(height)), height, width, LIMITS)
        inputs = images().prepare(pixels_HWC, [mask])
        assert inputs.zoom_crops_Z4SS is not None and inputs.zoom_crops_Z4SS.shape == (1, 4, SIZE, SIZE)
        assert inputs.region_masks_RGG[0].min() == pytest.approx(1.0)


def test_crops_of_a_very_long_picture_take_memory_of_its_own_size() -> None:
    """Crops are squares: of these windows up to 180 times the picture's pixels lie outside."""
    pixels_HWC = np.full((130, 20_000, 3), 200, np.uint8)
    boxes = [(0.0, 0.0, 20_000.0, 130.0), (0.0, 3.0, 4000.0, 120.0), (15_000.0, 0.0, 5000.0, 9.0)]
    masks = [rasterise(None, box, 130, 20_000, LIMITS) for box in boxes]
    images().prepare(pixels_HWC, masks[:1])  # what is kept once, outside the count
    tracemalloc.start()
    try:
        inputs = images().prepare(pixels_HWC, masks)
        assert tracemalloc.get_traced_memory()[1] < 4 * pixels_HWC.nbytes
    finally:
        tracemalloc.stop()
    assert inputs.zoom_crops_Z4SS is not None
    shown = [int((crop[:3] == 200).all(0).sum()) for crop in inputs.zoom_crops_Z4SS]
    # Cells of 500, 100 and 125 px: thinner than one, the picture shows in none; else in those whose middle it holds, up to its ends.
    assert shown == [0, 2 * 44, 44]


def test_the_scale_leaves_so_many_pixels_as_are_asked_for() -> None:
    assert [scale_for(step, 2.0) for step in (0.3, 2, 3.99, 4, 7.9, 8, 15.9, 16, 500)] == [1, 1, 1, 2, 2, 4, 4, 8, 8]
    assert [scale_for(step, 1.0) for step in (1.99, 2, 4, 8)] == [1, 2, 4, 8]


def test_a_jpeg_with_thousands_of_columns_and_one_row_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGE_PX", 1000)
    stream = io.BytesIO()
    Image.fromarray(np.full((1, 4000, 3), 90, np.uint8)).save(stream, "JPEG")
    (tmp_path / "line.jpg").write_bytes(stream.getvalue())
    large = open_picture(Store.open(tmp_path), "line.jpg", LIMITS, Sight(whole_px=4, details=False))
    assert isinstance(large, LargePicture)
    assert np.abs(large.see(Sight(whole_px=4, details=False)).astype(int) - 90).max() <= 2
