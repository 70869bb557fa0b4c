"""Pooling by attention: it begins as mask pooling, never looks outside the mask, and learns to look at different things."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import model_factories as factory
from rlabel.regiongpt.configuration import RegionGPTConfig
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.pooling import RegionQueries, pool, split_masks


def queries(looks: list[list[float]]) -> RegionQueries:
    """Return queries whose score of a cell is the dot product of its features with a row of looks."""
    made = RegionQueries(len(looks[0]), len(looks))
    with torch.no_grad():
        made.queries_KE.zero_()
        for k in range(len(looks)):
            made.queries_KE[k, k] = math.sqrt(made.queries_KE.shape[1])
        made.keys_EC[: len(looks)] = torch.tensor(looks)
    return made


def masks(*shares: list[list[float]]) -> Tensor:
    return torch.tensor(shares)


def test_a_fresh_model_pools_by_the_mask_alone() -> None:
    torch.manual_seed(0)
    maps_BCHW, masks_RHW = torch.randn(2, 5, 6, 6), torch.rand(3, 6, 6) * (torch.rand(3, 6, 6) > 0.5)
    index_R = torch.tensor([1, 0, 1])
    wanted_R1C = pool(maps_BCHW, split_masks(masks_RHW, 1), index_R)
    pooled_RKC = pool(maps_BCHW, RegionQueries(5, 4)(maps_BCHW, masks_RHW, index_R), index_R)
    torch.testing.assert_close(pooled_RKC, wanted_R1C.expand(-1, 4, -1))


def test_attention_by_hand() -> None:
    # Scores are the cells' own features: log 3 and 0. Shares 0.5 and 1: weights 0.5 * 3 and 1, that is 0.6 and 0.4; the last cell lies outside.
    map_1CHW = torch.tensor([[[[math.log(3.0), 0.0, 100.0]]]])
    weights_RKHW = queries([[1.0], [0.0]])(map_1CHW, masks([[0.5, 1.0, 0.0]]), torch.tensor([0]))
    assert weights_RKHW[0, 0, 0].tolist() == pytest.approx([0.6, 0.4, 0.0])
    assert weights_RKHW[0, 1, 0].tolist() == pytest.approx([1 / 3, 2 / 3, 0.0])
    pooled_RKC = pool(map_1CHW, weights_RKHW, torch.tensor([0]))
    assert pooled_RKC.flatten().tolist() == pytest.approx([0.6 * math.log(3.0), math.log(3.0) / 3])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 50.0))
def test_it_never_looks_outside_the_mask(seed: int, sharpness: float) -> None:
    random = torch.Generator().manual_seed(seed)
    maps_BCHW = torch.randn(2, 3, 5, 4, generator=random)
    masks_RHW = (torch.rand(4, 5, 4, generator=random) - 0.7).clamp_min(0.0)
    masks_RHW[0] = 0.0
    masks_RHW[1, 2, 1] = 1e-6  # an antialiased corner of a tiny mask is enough
    index_R = torch.tensor([0, 1, 1, 0])
    looks = queries((torch.randn(2, 3, generator=random) * sharpness).tolist())
    weights_RKHW = looks(maps_BCHW, masks_RHW, index_R).detach()
    assert not weights_RKHW[(masks_RHW == 0)[:, None].expand_as(weights_RKHW)].any()
    assert torch.isfinite(weights_RKHW).all() and (weights_RKHW >= 0).all()
    total_RK = weights_RKHW.sum((2, 3))
    torch.testing.assert_close(total_RK, masks_RHW.flatten(1).any(1).float()[:, None].expand(-1, 2))
    # What lies outside changes nothing.
    elsewhere_BCHW = torch.randn(2, 3, 5, 4, generator=random) * 1000
    inside_RHW = masks_RHW > 0
    for r in (1, 2, 3):
        changed = torch.where(inside_RHW[r], maps_BCHW[index_R[r]], elsewhere_BCHW[index_R[r]])[None]
        other_1KHW = looks(changed, masks_RHW[r : r + 1], torch.tensor([0]))
        torch.testing.assert_close(other_1KHW[0], weights_RKHW[r])


def test_a_mask_of_a_millionth_of_a_cell_gives_that_cell_and_a_hidden_crop_the_whole_map() -> None:
    map_1CHW = torch.tensor([[[[2.0, 4.0]], [[0.0, 6.0]]]])
    looks = queries([[30.0, -30.0]])
    tiny = pool(map_1CHW, looks(map_1CHW, masks([[0.0, 1e-6]]), None), None)
    assert tiny.flatten().tolist() == pytest.approx([4.0, 6.0])
    hidden = looks(map_1CHW, masks([[0.0, 0.0]]), None)
    assert pool(map_1CHW, hidden, None).flatten().tolist() == pytest.approx([3.0, 3.0])
    hidden.sum().backward()
    assert looks.keys_EC.grad is not None and torch.isfinite(looks.keys_EC.grad).all()


def test_tokens_of_a_fresh_model_learn_to_differ() -> None:
    torch.manual_seed(0)
    made = RegionQueries(4, 2)
    maps_BCHW, wanted_KC = torch.eye(4).view(1, 4, 2, 2) * 3, torch.eye(4)[:2] * 3
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    for _ in range(60):
        pooled_RKC = pool(maps_BCHW, made(maps_BCHW, torch.ones(1, 2, 2), None), None)
        loss = (pooled_RKC[0] - wanted_KC).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05  # both tokens at the mean of the cells: 1.6


# In the model


def model(**more: Any) -> RegionGPTForConditionalGeneration:
    return factory.model(zoom_feature_layers=[-4, -1], tokens_per_region=4, **more)


def region_tokens(made: RegionGPTForConditionalGeneration) -> Tensor:
    processor = factory.processor(made, zoom="all")
    (inputs,) = factory.random_inputs(processor, [3])
    assert inputs.zoom_crops_Z4SS is not None
    pixels, masks_ZSS = processor.image_processor.finish_zoom(inputs.zoom_crops_Z4SS)
    with torch.no_grad():
        maps_BCGG, _ = made.encode_images(inputs.pixels_3SS[None])
        index_R = torch.zeros(3, dtype=torch.long)
        return made.encode_regions(maps_BCGG, inputs.region_masks_RGG, index_R, pixels, masks_ZSS, torch.arange(3))


def test_a_fresh_model_with_attention_gives_every_token_what_one_token_would_be() -> None:
    attends = model(region_pooling="attention")
    one = factory.model(zoom_feature_layers=[-4, -1])
    missing = one.load_state_dict(attends.state_dict(), strict=False)
    assert not missing.missing_keys and {name.split(".")[0] for name in missing.unexpected_keys} == {
        "region_queries",
        "zoom_queries",
    }
    tokens_RKD = region_tokens(attends)
    torch.testing.assert_close(tokens_RKD, region_tokens(one).expand(-1, 4, -1), rtol=1e-4, atol=1e-5)


def test_off_has_no_weight_of_it() -> None:
    assert not [name for name in model().state_dict() if "queries" in name]
    assert RegionGPTConfig().region_pooling == "grid"
    with pytest.raises(ValueError, match="'grid' or 'attention'"):
        RegionGPTConfig(region_pooling="mean")  # type: ignore[arg-type]


def test_learned_queries_survive_saving(tmp_path: Path) -> None:
    made = model(region_pooling="attention")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "queries" in name:
                parameter.normal_()
    made.save_pretrained(tmp_path)
    again = RegionGPTForConditionalGeneration.from_pretrained(tmp_path).eval()
    tokens_RKD = region_tokens(made)
    assert float((tokens_RKD[:, 0] - tokens_RKD[:, 1]).abs().max()) > 1e-3
    assert torch.equal(region_tokens(factory.aligned(again)), tokens_RKD)
