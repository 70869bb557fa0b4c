"""Trained weights drawn back towards those that training began with: what a tower knew of all the world's pictures is worth more than the last percent.

The straight way between both (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903): pictures like the training's lose next to nothing, others gain.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from rlabel.training.recipe import is_part


@torch.no_grad()
def draw_back(model: nn.Module, start: nn.Module, anchor: Mapping[str, float]) -> None:
    """Move the parameters that `anchor` names, the longest prefix counting, by its share of the way to where they are in `start`."""
    begun = dict(start.named_parameters())
    for name, parameter in model.named_parameters():
        prefixes = [prefix for prefix in anchor if is_part(name, prefix)]
        if prefixes and name in begun:
            share = anchor[max(prefixes, key=len)]
            parameter.lerp_(begun[name].to(parameter.device, parameter.dtype), share)
