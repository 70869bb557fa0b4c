"""Copy-paste: nothing outside the laid masks changes, what they cover is taken from the masks below, and the seed decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng
from PIL import Image

from rlabel.corpus.images import PixelsHWC
from rlabel.corpus.masks import RegionMask
from rlabel.training.dataset import BatchDataset, Sample
from rlabel.training.parts import load_corpus
from rlabel.training.paste import Cut, is_worth_cutting, paste
from rlabel.training.recipe import Augment
from train_factories import COLOURS, edit, labeled_corpus, stage, tiny

RED, BLUE = (200, 10, 20), (5, 60, 250)
PASTED = Augment(paste=1.0)


def region(mask_HW: np.ndarray, source: str = "polygons") -> RegionMask:
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    crop = np.ascontiguousarray(mask_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    left, top = int(columns[0]), int(rows[0])
    return RegionMask(
        inside=crop,
        left_px=left,
        top_px=top,
        height_px=mask_HW.shape[0],
        width_px=mask_HW.shape[1],
        box_xywh=(float(left), float(top), float(crop.shape[1]), float(crop.shape[0])),
        area_px=float(crop.sum()),
        source=source,  # type: ignore[arg-type]
    )


def random_region(random: np.random.Generator, height: int, width: int) -> RegionMask:
    """Return a block with holes in it."""
    y, x = random.integers(height - 1), random.integers(width - 1)
    mask_HW = np.zeros((height, width), np.bool_)
    mask_HW[y : y + 1 + random.integers(height - y), x : x + 1 + random.integers(width - x)] = True
    holed_HW = mask_HW & (random.random((height, width)) < 0.9)
    return region(holed_HW if holed_HW.any() else mask_HW)


def one_colour(height: int, width: int, colour: tuple[int, int, int]) -> PixelsHWC:
    return np.full((height, width, 3), colour, np.uint8)


@given(st.integers(0, 2**31 - 1), st.integers(8, 60), st.integers(8, 60), st.integers(0, 4), st.integers(1, 3))
def test_pixels_and_masks_change_where_cuts_are_laid_and_nowhere_else(
    seed: int, height: int, width: int, num_regions: int, num_cuts: int
) -> None:
    random = default_rng(seed)
    before_HWC = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    masks = [random_region(random, height, width) for _ in range(num_regions)]
    colours = [(10, 20, 30 + i) for i in range(num_cuts)]
    cuts = [Cut(pixels_HWC=one_colour(20, 31, colour), mask=random_region(random, 20, 31)) for colour in colours]
    kept_HWC, kept_masks = before_HWC.copy(), [mask.mask_HW for mask in masks]
    result = paste(before_HWC, masks, cuts, default_rng(seed))

    covered_HW = np.zeros((height, width), np.bool_)
    for cut_mask, colour in zip(result.laid, colours, strict=True):
        if cut_mask is None:
            continue
        assert not (covered_HW & cut_mask.mask_HW).any()
        covered_HW |= cut_mask.mask_HW
        assert np.abs(result.pixels_HWC[cut_mask.mask_HW].astype(int) - colour).max() <= 2  # rounding
        assert max(cut_mask.crop_HW.shape) <= max(1, 0.6 * min(height, width) + 1)
    if None not in result.laid:
        assert (result.pixels_HWC[~covered_HW] == before_HWC[~covered_HW]).all()
        for mask, now in zip(kept_masks, result.masks, strict=True):
            if now is not None:
                assert (now.mask_HW == (mask & ~covered_HW)).all()
                assert now.area_px == now.mask_HW.sum() >= 0.5**num_cuts * mask.sum()
            else:
                assert (mask & ~covered_HW).sum() < 0.5 * mask.sum()
    for now in (*result.masks, *result.laid):
        if now is not None and now.source == "rle":
            assert now.crop_HW[[0, -1]].any(1).all() and now.crop_HW[:, [0, -1]].any(0).all()
            assert now.box_xywh == (now.left_px, now.top_px, now.crop_HW.shape[1], now.crop_HW.shape[0])
    assert (before_HWC == kept_HWC).all() and all(
        (one.mask_HW == was).all() for one, was in zip(masks, kept_masks, strict=True)
    )
    again = paste(before_HWC, masks, cuts, default_rng(seed))
    assert (again.pixels_HWC == result.pixels_HWC).all()


def test_a_region_is_cut_where_half_of_it_shows_and_dropped_below() -> None:
    # A cut as wide as it may be (0.6 of 100), wherever it lands, hides at most 60 x 60 of the picture.
    mask_HW = np.ones((40, 40), np.bool_)
    cut = Cut(pixels_HWC=one_colour(40, 40, RED), mask=region(mask_HW))
    seen = set()
    for seed in range(60):
        whole_HW = np.zeros((100, 100), np.bool_)
        whole_HW[:40, :40] = True
        result = paste(one_colour(100, 100, BLUE), [region(whole_HW)], [cut], default_rng(seed))
        assert result.laid[0] is not None
        hidden = (result.laid[0].mask_HW & whole_HW).sum() / 1600
        assert (result.masks[0] is None) == (hidden > 0.5)
        if result.masks[0] is not None:
            assert result.masks[0].area_px == 1600 - hidden * 1600
        seen.add("dropped" if hidden > 0.5 else "cut" if hidden else "whole")
    assert seen == {"dropped", "cut", "whole"}


def test_edges_of_a_cut_have_nothing_of_the_background_that_it_stood_on() -> None:
    mask_HW = np.zeros((50, 50), np.bool_)
    mask_HW[10:40, 10:40] = np.add.outer(np.arange(30), np.arange(30)) < 33
    pixels_HWC = one_colour(50, 50, (0, 255, 0))
    pixels_HWC[mask_HW] = RED
    for seed in range(20):
        result = paste(
            one_colour(70, 90, BLUE), [], [Cut(pixels_HWC=pixels_HWC, mask=region(mask_HW))], default_rng(seed)
        )
        inside_HW = result.laid[0].mask_HW  # type: ignore[union-attr]
        assert np.abs(result.pixels_HWC[inside_HW].astype(int) - RED).max() <= 2  # rounding
        assert (result.pixels_HWC[~inside_HW] == BLUE).all()


def test_boxes_and_tiny_masks_are_not_cut_out() -> None:
    mask_HW = np.zeros((40, 40), np.bool_)
    mask_HW[:20, :20] = True
    assert is_worth_cutting(region(mask_HW))
    assert not is_worth_cutting(region(mask_HW, "box"))
    mask_HW[:, 8:] = False
    assert not is_worth_cutting(region(mask_HW))


# ---- samples


def samples(tmp_path: Path, epochs: int = 6, augment: Augment = PASTED, **more: object) -> list[Sample]:
    """Return the samples of one picture, whose neighbour has other names, over some epochs."""
    files = labeled_corpus(tmp_path, num_images=3, regions_per_image=2, size=96)
    # One picture has cat and dog, the other teapot and fire hydrant; without the one between them.
    edit(
        files,
        lambda content: (
            content["images"].pop(1),
            content.update(annotations=[one for one in content["annotations"] if one["image_id"] != 2]),
        ),
    )
    corpus = load_corpus(str(files.images), str(files.annotations))
    _, processor = tiny()
    data = BatchDataset(corpus, processor, stage("instruct", tasks={"classify": 1.0}, **more), 5, 0, 1)
    made = [data.sample(0, epoch, augment) for epoch in range(epochs)]
    assert all(sample is not None for sample in made)
    return made  # type: ignore[return-value]


def test_pasted_regions_come_after_the_pictures_own_with_their_names(tmp_path: Path) -> None:
    for sample in samples(tmp_path):
        own = [name for name in sample.names if name in ("cat", "dog")]
        pasted = list(sample.names[len(own) :])
        assert pasted and set(pasted) <= {"teapot", "fire hydrant"}
        assert len(sample.inputs.region_masks_RGG) == len(sample.facts) == len(sample.names)
        answers = [turn.answer for turns in sample.conversations for turn in turns]
        assert answers == list(sample.names)
        assert [fact.name for fact in sample.facts] == list(sample.names)


def test_the_picture_and_the_crops_show_what_is_pasted(tmp_path: Path) -> None:
    processor = tiny()[1].image_processor
    seen = 0
    for sample in samples(tmp_path):
        plain = processor.denormalise(sample.inputs.pixels_3SS).float()
        for place, name in enumerate(sample.names):
            if name not in ("teapot", "fire hydrant"):
                continue
            colour = torch.tensor(COLOURS[name]).float()[:, None]
            crops = sample.inputs.zoom_crops_Z4SS
            assert crops is not None
            # The middle of a crop is the middle of its region, which has one colour.
            side = crops.shape[-1]
            middle = crops[place, :3, side // 2, side // 2].float()[:, None]
            assert (middle - colour).abs().max() < 60
            mask = sample.inputs.region_masks_RGG[place]
            grid = torch.nn.functional.interpolate(plain[None], size=mask.shape, mode="area")[0]
            if (inside := mask > 0.99).any():
                assert (grid[:, inside] - colour).abs().max() < 60
                seen += 1
    assert seen


def test_paste_of_0_changes_no_draw_and_epochs_differ(tmp_path: Path) -> None:
    plain = samples(tmp_path / "a", augment=Augment(geometry=1.0))
    without = samples(tmp_path / "b", augment=Augment(geometry=1.0, paste=0.0))
    assert [sample.seed for sample in plain] == [sample.seed for sample in without]
    pasted, again = samples(tmp_path / "c"), samples(tmp_path / "d")
    for left, right in zip(pasted, again, strict=True):
        assert left.names == right.names and torch.equal(left.inputs.pixels_3SS, right.inputs.pixels_3SS)
    assert len({sample.inputs.pixels_3SS.numpy().tobytes() for sample in pasted}) == len(pasted)


def test_a_picture_is_never_given_more_regions_than_a_stage_takes(tmp_path: Path) -> None:
    for sample in samples(tmp_path, max_regions_per_image=2):
        assert set(sample.names) <= {"cat", "dog"}
    for sample in samples(tmp_path / "three", max_regions_per_image=3):
        assert len(sample.names) <= 3


@pytest.mark.parametrize("spoilt", ["picture", "alone"])
def test_without_another_usable_picture_nothing_is_pasted(tmp_path: Path, spoilt: str) -> None:
    files = labeled_corpus(tmp_path, num_images=2 if spoilt == "picture" else 1)
    corpus = load_corpus(str(files.images), str(files.annotations))
    if spoilt == "picture":
        (files.images / "1.png").write_bytes(b"no picture")
    data = BatchDataset(corpus, tiny()[1], stage(), 5, 0, 1)
    sample = data.sample(0, 0, Augment(paste=1.0))
    assert sample is not None and sample.names == ("cat", "dog")
    assert Image.open(files.images / "0.png").size == (64, 64)
