"""Pictures through a vision tower in portions: what a tower holds in between weighs far more than the pictures and their maps.

Legend: B pictures or crops, C channels, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# So many at once, by kind of device. On CPUs 16 to 32 take no longer a picture than 128.
_AT_ONCE = {"cpu": 32}
_AT_ONCE_ELSEWHERE = 128

Maps = dict[int, Tensor]


def in_portions(maps_of: Callable[[Tensor], Maps], pixels_BCSS: Tensor) -> Maps:
    """Return what `maps_of` gives of all pictures, {layer: (B, ...)}, asked for a portion of them at a time.

    Portions are of about equal size, by the number of pictures alone: a last one of very few might be computed another way and differ in its last
    digits.
    """
    most = _AT_ONCE.get(pixels_BCSS.device.type, _AT_ONCE_ELSEWHERE)
    if len(pixels_BCSS) <= most:
        return maps_of(pixels_BCSS)
    found = [maps_of(portion) for portion in pixels_BCSS.tensor_split(-(-len(pixels_BCSS) // most))]
    return {layer: torch.cat([maps[layer] for maps in found]) for layer in found[0]}
