"""Where a region lies: a token of its own beside what the region shows. Mask pooling forgets the place, so questions of place need it told.

Legend: R regions, G x G cells of the mask, P numbers of a place, D width of the language model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Edges and middles; then the logarithms of width, height and the root of the area, none told apart below _SMALLEST of the side.
_NUMBERS = 9
_SMALLEST = 1e-2
# Brings regions of all sizes and places to a mean near 0 and a spread near 1.
_PLACE_SPREAD, _SIZE_SPREAD, _SIZE_MIDDLE = 3.4, 0.9, 1.5


def place_of_masks(masks_RGG: Tensor) -> Tensor:
    """Return boxes_R5: left, top, right, bottom and area of each mask in shares of the picture, 0 to 1; zeros for an empty mask.

    masks_RGG: the covered share of each cell. How far the outermost cells are covered tells the edges between cells.
    """
    masks_RGG = masks_RGG.float()
    left, right = _extent(masks_RGG.amax(1))
    top, bottom = _extent(masks_RGG.amax(2))
    return torch.stack([left, top, right, bottom, masks_RGG.mean((1, 2))], 1)


def _extent(cover_RG: Tensor) -> tuple[Tensor, Tensor]:
    """Return (low_R, high_R) of where the cover is above 0, in shares of the side."""
    side = cover_RG.shape[1]
    inside_RG = cover_RG > 1e-6
    first_R = inside_RG.int().argmax(1)
    last_R = side - 1 - inside_RG.flip(1).int().argmax(1)

    def cover(index_R: Tensor) -> Tensor:
        return cover_RG.gather(1, index_R[:, None])[:, 0].clamp(0, 1)

    low_R = (first_R + 1 - cover(first_R)) / side
    high_R = (last_R + cover(last_R)) / side
    # A region within one cell: its cover is its width, somewhere in that cell.
    thin_R = first_R == last_R
    middle_R = (first_R + 0.5) / side
    half_R = cover(first_R) / (2 * side)
    low_R = torch.where(thin_R, middle_R - half_R, low_R)
    high_R = torch.where(thin_R, middle_R + half_R, high_R)
    empty_R = ~inside_RG.any(1)
    return low_R.masked_fill(empty_R, 0.0), high_R.masked_fill(empty_R, 0.0)


class PlaceConnector(nn.Sequential):
    """boxes_R5 of `place_of_masks` to language-model embeddings (R, D): nine numbers of about unit spread, linear, GELU, linear.

    Nothing periodic is told beside the numbers. With sines and cosines of them, as positions are often told, the language model learned sizes but not
    what is left of what: even two waves a number kept it at chance (DECISIONS 39).
    """

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(_NUMBERS, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, input: Tensor) -> Tensor:
        left, top, right, bottom, area = input.float().unbind(1)
        places_R6 = torch.stack([left, top, right, bottom, (left + right) / 2, (top + bottom) / 2], 1)
        sizes_R3 = torch.stack([right - left, bottom - top, area.clamp_min(0).sqrt()], 1)
        numbers_RP = torch.cat(
            [_PLACE_SPREAD * (places_R6 - 0.5), _SIZE_SPREAD * sizes_R3.clamp_min(_SMALLEST).log() + _SIZE_MIDDLE], 1
        )
        first = self[0]
        assert isinstance(first, nn.Linear)
        return super().forward(numbers_RP.to(first.weight.dtype))

    @torch.no_grad()
    def scale_output(self, rms: float) -> None:
        """Draw the last layer anew so that outputs start with about this root mean square."""
        last = self[2]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=rms / (0.5 * math.sqrt(last.in_features)))
        nn.init.zeros_(last.bias)
