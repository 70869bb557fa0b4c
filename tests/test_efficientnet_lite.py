"""The Lite towers: their published sizes, and that folding batch norms away changes nothing but the work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import model_factories as factory
from rlabel.regiongpt.configuration import EfficientNetLiteConfig
from rlabel.regiongpt.efficientnet_lite import EfficientNetLiteModel, fold
from rlabel.regiongpt.parts import LITE_TOWERS


def used_tower() -> EfficientNetLiteModel:
    """Return a small tower whose batch norms are those of some training, not fresh ones."""
    torch.manual_seed(0)
    tower = EfficientNetLiteModel(factory.lite_config()).eval()
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                assert tensor is not None
                tensor.uniform_(low, high)
    return tower


def test_folded_tower_computes_the_same_maps_and_has_no_batch_norm_left() -> None:
    tower = used_tower()
    folded = fold(tower)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    pixels = torch.randn(2, 3, 75, 64)
    with torch.no_grad():
        left, right = (made(pixels).hidden_states for made in (tower, folded))
    for plain_BCHW, folded_BCHW in zip(left, right, strict=True):
        assert torch.allclose(plain_BCHW, folded_BCHW, atol=1e-5)


def test_folded_tower_is_saved_and_read_as_such(tmp_path: Path) -> None:
    folded = fold(used_tower())
    folded.save_pretrained(tmp_path)
    again = EfficientNetLiteModel.from_pretrained(tmp_path)
    assert again.config.folded
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in folded.state_dict().items())


# Parameters in millions without the classifier (1280 x 1000 + 1000) as published with the Lite variants: 4.7, 5.4, 6.1 with it.
@pytest.mark.parametrize(
    ("name", "millions"), [("efficientnet-lite0", 4.65), ("efficientnet-lite1", 5.42), ("efficientnet-lite2", 6.09)]
)
def test_scaled_towers_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    tower = EfficientNetLiteModel(EfficientNetLiteConfig.scaled(*LITE_TOWERS[name]))
    classifier = 1280 * 1000 + 1000
    assert (sum(p.numel() for p in tower.parameters()) + classifier) / 1e6 == pytest.approx(millions, abs=0.01)
