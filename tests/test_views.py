"""Views: mirrored is its own inverse and moves masks with pixels; boxes are those that numpy finds; the mean keeps length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import model_factories
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.labeling.views import averaged, seen_as
from rlabel.regiongpt.processing import RegionInputs


def inputs():
    model = model_factories.model(zoom_feature_layers=[-4])
    return model_factories.random_inputs(model_factories.processor(model, zoom="all"), [3])[0]


def test_a_mirrored_view_moves_picture_masks_and_crops_together() -> None:
    plain = inputs()
    seen = seen_as(plain, "flip")
    assert np.array_equal(seen.pixels_3SS, np.asarray(plain.pixels_3SS)[:, :, ::-1])
    assert np.array_equal(seen.region_masks_RGG, np.asarray(plain.region_masks_RGG)[:, :, ::-1])
    assert np.array_equal(seen.zoom_crops_Z4SS, np.asarray(plain.zoom_crops_Z4SS)[..., ::-1])
    again = seen_as(seen, "flip")
    assert torch.equal(again.pixels_3SS, plain.pixels_3SS) and torch.equal(again.zoom_crops_Z4SS, plain.zoom_crops_Z4SS)


def test_a_boxed_view_fills_the_box_of_each_mask_and_leaves_colours_alone() -> None:
    plain = inputs()
    crop_4SS = plain.zoom_crops_Z4SS[0]
    crop_4SS[3] = 0
    crop_4SS[3, 4, 6:20] = crop_4SS[3, 4:15, 9] = 255
    seen = seen_as(plain, "box")
    expected = np.zeros(crop_4SS[3].shape, np.uint8)
    expected[4:15, 6:20] = 255
    assert np.array_equal(seen.zoom_crops_Z4SS[0, 3], expected)
    assert torch.equal(seen.zoom_crops_Z4SS[:, :3], plain.zoom_crops_Z4SS[:, :3])
    assert (seen.region_masks_RGG >= plain.region_masks_RGG).all()


def test_an_empty_mask_stays_empty() -> None:
    plain = inputs()
    plain.zoom_crops_Z4SS[0, 3] = 0
    assert not seen_as(plain, "box").zoom_crops_Z4SS[0, 3].any()


def test_the_mean_of_views_points_between_them_and_keeps_the_length_of_the_first() -> None:
    first, second = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert torch.allclose(averaged([first, second]), torch.tensor([[3.0, 3.0]]) / 2**0.5)
    assert torch.allclose(averaged([first]), first)


@pytest.mark.parametrize("zoom", ["all", "off"])
def test_the_engine_answers_from_the_mean_of_the_views(zoom: str) -> None:
    model = model_factories.model(zoom_feature_layers=[-4] if zoom == "all" else None, place_token=True)
    processor = model_factories.processor(model, zoom=zoom)
    given = model_factories.random_inputs(processor, [2, 1])
    seen = [[seen_as(one, view) for one in given] for view in ("flip", "box")]

    def tokens(engine: Engine, inputs: list[RegionInputs]) -> Tensor:
        return engine.encode(inputs).regions_RKD

    plain = Engine(model, processor, EngineOptions())
    both = Engine(model, processor, EngineOptions(views="both"))
    with torch.inference_mode():
        looks = [tokens(plain, inputs)[:, :1] for inputs in (given, *seen)]
        got_RKD = tokens(both, given)
        assert torch.allclose(got_RKD[:, :1], averaged(looks), atol=1e-6)
        # Where a region lies is told as it is, not as a view shows it.
        assert torch.equal(got_RKD[:, 1:], tokens(plain, given)[:, 1:])
    assert len(both.answer(given)[0]) == 2
