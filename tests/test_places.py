"""Place tokens: edges and area of masks by hand, and that the model is told them behind what a region shows."""

from __future__ import annotations

import pytest
import torch

import model_factories
from rlabel.regiongpt.places import PlaceConnector, place_of_masks


def test_edges_and_area_of_a_mask_of_whole_cells() -> None:
    mask_RGG = torch.zeros(1, 8, 8)
    mask_RGG[0, 2:4, 1:7] = 1
    assert place_of_masks(mask_RGG).tolist() == [[1 / 8, 2 / 8, 7 / 8, 4 / 8, 12 / 64]]


def test_edges_between_cells_are_told_by_the_share_of_the_outer_cells() -> None:
    mask_RGG = torch.zeros(1, 8, 8)
    mask_RGG[0, 2:5, 3:6] = 1
    mask_RGG[0, :, 2] = 0.25 * mask_RGG[0, :, 3]
    mask_RGG[0, 5] = 0.5 * mask_RGG[0, 4]
    left, top, right, bottom, _ = place_of_masks(mask_RGG)[0].tolist()
    assert (left, top, right, bottom) == pytest.approx((2.75 / 8, 2 / 8, 6 / 8, 5.5 / 8))


def test_a_region_within_one_cell_has_the_width_of_its_share() -> None:
    mask_RGG = torch.zeros(2, 4, 4)
    mask_RGG[0, 1, 2] = 0.5
    left, top, right, bottom, area = place_of_masks(mask_RGG)[0].tolist()
    assert (left, right) == pytest.approx((2.25 / 4, 2.75 / 4))
    assert (top, bottom) == pytest.approx((1.25 / 4, 1.75 / 4))
    assert area == pytest.approx(0.5 / 16)
    assert place_of_masks(mask_RGG)[1].tolist() == [0.0] * 5


@torch.no_grad()
def test_places_differ_by_more_than_rounding_where_boxes_do() -> None:
    torch.manual_seed(0)
    connector = PlaceConnector(32)
    connector.scale_output(0.02)
    boxes_R5 = torch.tensor([[0.1, 0.1, 0.3, 0.4, 0.05], [0.12, 0.1, 0.3, 0.4, 0.05], [0.6, 0.1, 0.8, 0.4, 0.05]])
    near, far = (connector(boxes_R5)[0] - connector(boxes_R5)[1:]).norm(dim=-1).tolist()
    assert 0.0005 < near < far
    assert 0.005 < float(connector(torch.rand(200, 5)).square().mean().sqrt()) < 0.04


def test_nothing_periodic_is_told_of_a_place() -> None:
    """Equal steps to the right are equal steps in what the first layer gives: so which of two lies left is a matter of one difference."""
    connector = PlaceConnector(16)
    shifts_S1 = torch.linspace(0, 0.6, 7)[:, None]
    boxes_S5 = torch.tensor([[0.1, 0.2, 0.3, 0.6, 0.08]]) + shifts_S1 * torch.tensor([[1.0, 0, 1, 0, 0]])
    first_SD: list[torch.Tensor] = []
    connector[0].register_forward_hook(lambda _, __, output: first_SD.append(output.detach()))
    connector(boxes_S5)
    steps_SD = first_SD[0].diff(dim=0)
    assert torch.allclose(steps_SD, steps_SD[:1].expand_as(steps_SD), atol=1e-5)
    assert float(steps_SD.abs().max()) > 0.01


def test_places_of_empty_and_tiny_regions_are_finite() -> None:
    boxes_R5 = torch.tensor([[0.0] * 5, [0.5, 0.5, 0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0]])
    assert torch.isfinite(PlaceConnector(16)(boxes_R5)).all()


def test_a_model_with_place_tokens_tells_the_place_last_and_asks_the_prompt_for_it() -> None:
    model = model_factories.model(place_token=True)
    processor = model_factories.processor(model)
    maps_BCGG, _ = model.encode_images(torch.randn(1, 3, 64, 64))
    side = maps_BCGG.shape[-1]
    masks_RGG = torch.zeros(2, side, side)
    masks_RGG[0, : side // 2] = masks_RGG[1, side // 2 :] = 1
    tokens_RKD = model.encode_regions(maps_BCGG, masks_RGG, torch.zeros(2, dtype=torch.long))
    assert tokens_RKD.shape == (2, 2, model_factories.WIDTH)
    assert model.place_connector is not None
    assert torch.equal(tokens_RKD[:, 1], model.place_connector(place_of_masks(masks_RGG)))
    prompt = processor.prompt("Name <region>.")
    assert prompt.suffix_ids.count(processor.region_token_id) == model.config.prompt_tokens_per_region == 2
