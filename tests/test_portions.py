"""The tower takes pictures in portions: bounded in number, the same maps, and all at once where something is learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlabel.labeling.encoding import to_device_batch
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.regiongpt import portions
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration

import model_factories as factory  # isort: skip


def portions_of(num_pictures: int) -> list[int]:
    """Return how many pictures were asked for at a time; each must come back in its place, for every layer."""
    asked: list[int] = []

    def maps_of(pixels: Tensor) -> dict[int, Tensor]:
        asked.append(len(pixels))
        return {-1: pixels * 2, 3: pixels[:, :1] + 1}

    pixels = torch.arange(num_pictures * 3.0).view(num_pictures, 3, 1, 1)
    maps = portions.in_portions(maps_of, pixels)
    assert torch.equal(maps[-1], pixels * 2) and torch.equal(maps[3], pixels[:, :1] + 1)
    return asked


def test_no_portion_is_larger_than_32_pictures_nor_much_smaller_than_another() -> None:
    assert [portions_of(number) for number in (0, 1, 32)] == [[0], [1], [32]]
    assert portions_of(33) == [17, 16]
    assert portions_of(100) == [25, 25, 25, 25]
    assert max(portions_of(513)) == 31 and min(portions_of(513)) == 30


def seen_by(made: RegionGPTForConditionalGeneration) -> list[int]:
    """Return a list that fills with how many pictures the tower takes in each call."""
    taken: list[int] = []
    stem = made.vision_tower.stem
    assert isinstance(stem, nn.Module)
    stem.register_forward_pre_hook(lambda module, arguments: taken.append(len(arguments[0])))
    return taken


@pytest.mark.parametrize("pooling", ["grid", "attention"])
def test_regions_are_encoded_the_same_whatever_the_portions(monkeypatch: pytest.MonkeyPatch, pooling: str) -> None:
    made = factory.model(zoom_feature_layers=[-4, -1], region_pooling=pooling)
    made_by = factory.processor(made, zoom="all")
    inputs = factory.random_inputs(made_by, [9, 1, 13] * 3)
    engine = Engine(made, made_by, EngineOptions(max_new_tokens=4))
    taken = seen_by(made)
    with torch.inference_mode():
        encoded = engine.encode(inputs)
    assert sorted(taken) == [9, 23, 23, 23]  # nine pictures, and 69 crops of which no 32 would be few
    answers = engine.answer(inputs)
    monkeypatch.setattr(portions, "_AT_ONCE", {"cpu": 1000})
    taken.clear()
    with torch.inference_mode():
        at_once = engine.encode(inputs)
    assert sorted(taken) == [9, 69]
    torch.testing.assert_close(encoded.regions_RKD, at_once.regions_RKD, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded.image_tokens_BTD, at_once.image_tokens_BTD, rtol=0, atol=1e-5)
    texts = [[answer.text for answer in own] for own in answers]
    assert texts == [[answer.text for answer in own] for own in engine.answer(inputs)]


def test_what_is_learned_from_goes_through_the_tower_at_once() -> None:
    """Statistics of a batch, and gradients, are of all of it."""
    made = factory.model(zoom_feature_layers=[-4, -1])
    taken = seen_by(made)
    pixels, masks = torch.randn(40, 3, 32, 32), torch.ones(40, 32, 32)
    made.encode_zooms(pixels, masks).sum().backward()
    made.train()
    with torch.no_grad():
        made.encode_zooms(pixels, masks)
    assert taken == [40, 40]
    made.eval()
    with torch.no_grad():
        made.encode_zooms(pixels, masks)
    assert taken[2:] == [20, 20]


def test_crops_are_finished_in_portions_to_the_same_bytes() -> None:
    made = factory.model(zoom_feature_layers=[-4, -1])
    made_by = factory.processor(made, zoom="all", image_mean=(0.4, 0.5, 0.6), zoom_keep=0.3)
    inputs = factory.random_inputs(made_by, [40, 0, 30])
    crops = [item.zoom_crops_Z4SS for item in inputs if item.zoom_crops_Z4SS is not None]
    pixels, masks = made_by.image_processor.finish_zoom(torch.cat(crops))
    batch = to_device_batch(inputs, made_by, torch.device("cpu"))
    assert batch.zoom_pixels_Z3SS is not None and batch.zoom_masks_ZSS is not None
    assert torch.equal(batch.zoom_pixels_Z3SS, pixels) and torch.equal(batch.zoom_masks_ZSS, masks)
    assert batch.zoom_pixels_Z3SS.stride() == pixels.stride()  # the order in memory that the tower computes in
    faded = torch.linspace(0, 1, 70)[:, None, None, None]
    pixels, _ = made_by.image_processor.finish_zoom(torch.cat(crops), faded)
    batch = to_device_batch(inputs, made_by, torch.device("cpu"), faded)
    assert batch.zoom_pixels_Z3SS is not None and torch.equal(batch.zoom_pixels_Z3SS, pixels)
