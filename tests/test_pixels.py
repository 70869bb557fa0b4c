from __future__ import annotations

import numpy as np
import pytest
import torch

from rlabel.regiongpt.pixels import View, resize_square, zoom_crop
from rlabel.regiongpt.processing import RegionGPTImageProcessor

import model_factories as factory  # isort: skip


def random_picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    ys, xs = np.mgrid[:height, :width]
    return np.asarray((ys - y) ** 2 + (xs - x) ** 2 <= radius**2)


def test_a_window_of_the_crops_own_size_is_the_pictures_pixels_and_the_masks() -> None:
    picture_HWC = random_picture(48, 64)
    mask_HW = disc(48, 64, 21.5, 19.5, 10)  # box 10..29 across, 12..31 down: 20 px
    region = factory.mask_of(mask_HW)
    assert region.box_xywh == (10, 12, 20, 20)
    crop = zoom_crop(picture_HWC, region, 32, context=0.3)  # window: 20 * 1.6 = 32 px around (20, 22)
    assert crop.shape == (32, 32, 4) and crop.dtype == np.uint8
    np.testing.assert_array_equal(crop[..., :3], picture_HWC[6:38, 4:36])
    np.testing.assert_array_equal(crop[..., 3], mask_HW[6:38, 4:36] * 255)


@pytest.mark.parametrize("side", [6, 20, 90])
def test_colours_outside_the_mask_survive_any_scaling(side: int) -> None:
    picture_HWC = np.empty((200, 200, 3), np.uint8)
    picture_HWC[:] = (10, 200, 90)
    mask_HW = np.zeros((200, 200), np.bool_)
    mask_HW[50 : 50 + side : 2, 50 : 50 + side] = True
    crop = zoom_crop(picture_HWC, factory.mask_of(mask_HW), 32, context=0.2)
    assert (crop[..., 3] < 255).any()
    np.testing.assert_array_equal(crop[..., :3], np.broadcast_to(np.uint8([10, 200, 90]), (32, 32, 3)))


@pytest.mark.parametrize("corner", [(0, 0), (0, 44), (28, 0), (28, 44)])
def test_what_lies_outside_the_picture_is_grey_and_outside_the_mask(corner: tuple[int, int]) -> None:
    y, x = corner
    picture_HWC = np.full((48, 64, 3), 250, np.uint8)
    region = factory.box_mask(48, 64, x, y, 20, 20)
    crop = zoom_crop(picture_HWC, region, 32, context=0.3)  # 6 px more on every side
    inside = np.zeros((32, 32), np.bool_)
    inside[max(0, 6 - y) : 32 - max(0, y + 26 - 48), max(0, 6 - x) : 32 - max(0, x + 26 - 64)] = True
    assert inside.sum() == 26 * 26
    assert (crop[inside][:, :3] == 250).all()
    assert (crop[~inside] == (127, 127, 127, 0)).all()
    assert (crop[6:26, 6:26, 3] == 255).all() and crop[..., 3].sum() == 20 * 20 * 255


def test_scaling_down_averages_and_does_not_sample() -> None:
    checker = ((np.indices((300, 300)).sum(0) % 2) * 255).astype(np.uint8)
    picture_HWC = np.repeat(checker[..., None], 3, 2)
    crop = zoom_crop(picture_HWC, factory.box_mask(300, 300, 20, 20, 250, 250), 24, context=0.0)
    assert np.abs(crop[..., :3].astype(int) - 127).max() <= 4  # points would be 0 or 255


def test_scaling_up_keeps_places() -> None:
    picture_HWC = np.zeros((40, 40, 3), np.uint8)
    picture_HWC[:, 20:] = 200  # the window's middle: the box spans 12 to 28
    crop = zoom_crop(picture_HWC, factory.box_mask(40, 40, 12, 12, 16, 16), 64, context=0.0)
    assert (crop[:, :30, 0] == 0).all() and (crop[:, 34:, 0] == 200).all()
    assert (crop[4:-4, 4:-4, 3] == 255).all() and (crop[0, :, 3] < 255).all()  # the mask's own edge is soft


def test_a_small_region_gets_a_window_of_at_least_16_pixels() -> None:
    mask_HW = np.zeros((40, 40), np.bool_)
    mask_HW[20, 20] = True
    crop = zoom_crop(random_picture(40, 40), factory.mask_of(mask_HW), 32, context=0.1)
    assert crop[..., 3].sum() / 255 == pytest.approx(4, abs=0.1)  # one pixel of 16, at twice the size


@pytest.mark.parametrize(
    "view", [View(angle_deg=25), View(angle_deg=-25, mirrored=True, stretch=1.15), View(scale=1.3, stretch=0.87)]
)
def test_a_turned_window_keeps_its_middle(view: View) -> None:
    picture_HWC = np.zeros((120, 160, 3), np.uint8)
    picture_HWC[58:63, 78:83] = 255  # around (80.5, 60.5)
    region = factory.mask_of(disc(120, 160, 60, 80, 30))
    crop = zoom_crop(picture_HWC, region, 64, 0.1, view).astype(float)
    ys, xs = np.mgrid[:64, :64] + 0.5
    for channel in (0, 3):
        weight = crop[..., channel]
        assert (ys * weight).sum() / weight.sum() == pytest.approx(32, abs=0.6)
        assert (xs * weight).sum() / weight.sum() == pytest.approx(32, abs=0.6)


def test_a_quarter_turn_and_a_mirror_image_are_those_of_the_plain_crop() -> None:
    region = factory.box_mask(48, 64, 10, 12, 20, 20)
    plain = zoom_crop(random_picture(48, 64), region, 32, 0.3).astype(int)
    mirrored = zoom_crop(random_picture(48, 64), region, 32, 0.3, View(mirrored=True)).astype(int)
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    turned = zoom_crop(random_picture(48, 64), region, 32, 0.3, View(angle_deg=90)).astype(int)
    assert min(np.abs(turned - np.rot90(plain, k)).max() for k in (1, 3)) <= 1


def test_a_shifted_window_looks_to_the_right_and_down() -> None:
    picture_HWC = random_picture(48, 64)
    region = factory.box_mask(48, 64, 10, 12, 20, 20)
    crop = zoom_crop(picture_HWC, region, 32, 0.3, View(shift_x=0.125, shift_y=-0.0625))  # 4 px right, 2 px up
    np.testing.assert_array_equal(crop[..., :3], picture_HWC[4:36, 8:40])


def test_a_region_too_thin_to_be_seen_at_the_crops_size_is_the_whole_crop() -> None:
    mask_HW = np.zeros((1000, 1000), np.bool_)
    mask_HW[0, 0] = mask_HW[999, 999] = True
    crop = zoom_crop(random_picture(1000, 1000), factory.mask_of(mask_HW), 32, context=0.1)
    assert (crop[..., 3] == 255).all()


def test_the_whole_picture_is_squeezed_with_averaging_and_never_cut() -> None:
    picture_HWC = np.zeros((60, 120, 3), np.uint8)
    picture_HWC[:, 60:] = 255
    small = resize_square(picture_HWC, 30)
    assert small.shape == (30, 30, 3)
    assert (small[:, :14] == 0).all() and (small[:, 16:] == 255).all()
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize_square(stripes, 16)[:, 2:-2].astype(int) - 127).max() <= 8


def test_the_outside_is_faded_to_the_mean_colour_and_the_inside_stays() -> None:
    images = RegionGPTImageProcessor(image_mean=(0.5, 0.4, 0.3), image_std=(0.25, 0.25, 0.5), zoom_keep=0.2)
    crops = (
        torch.tensor([255, 102, 0, 255] * 1 + [255, 102, 0, 0] * 1, dtype=torch.uint8)
        .view(1, 2, 4)
        .permute(0, 2, 1)[..., None]
    )
    pixels, masks = images.finish_zoom(crops)
    # (255/255 - 0.5) / 0.25 = 2; (102/255 - 0.4) / 0.25 = 0; (0 - 0.3) / 0.5 = -0.6
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([2.0, 0.0, -0.6]), atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels[0, :, 1, 0], torch.tensor([0.4, 0.0, -0.12]), atol=1e-6, rtol=0)
    assert masks.flatten().tolist() == [1, 0]
    assert torch.equal(images.finish_zoom(crops, keep=1.0)[0], images.normalise(crops[:, :3]))


def test_crops_are_finished_on_the_device_they_are_on() -> None:
    pixels, masks = RegionGPTImageProcessor().finish_zoom(torch.zeros(2, 4, 8, 8, dtype=torch.uint8, device="meta"))
    assert pixels.device.type == masks.device.type == "meta"
