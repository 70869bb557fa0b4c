"""What the language model is shown while it learns to speak: region tokens made up around names, and real ones of pictures that were encoded once.

Legend: N names, R regions, M region tokens of the bank, D width, T image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from rlabel.prompts.tasks import RegionFacts

# Share of the first and the second other name that a made-up token is drawn towards, and how far aside of all of them it lies, at most (a cosine of 0.4
# to its name). Region tokens of unseen pictures lie at 0.2 to 0.5 to the nearest name; going as far (4.0) did not make the labeler better.
_TOWARDS = (0.9, 0.5)
_ASIDE = 2.2


# Sides of made-up boxes, in shares of the picture's: as unequal as regions are.
_SIDES = (0.03, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPicture:
    """image_1TD: its image tokens. regions_RD: what its regions show, the mean of the k tokens of a region. boxes_R5: where they lie (`place_of_masks`).

    facts: what is known of them, boxes and areas as in boxes_R5; each has a name.
    """

    image_1TD: Tensor
    regions_RD: Tensor
    boxes_R5: Tensor
    facts: tuple[RegionFacts, ...]


@dataclass(slots=True)
class Bank:
    """Encoded pictures, and the directions in which their region tokens miss their names: made-up tokens shall miss in the same way."""

    pictures: list[EncodedPicture] = field(default_factory=list)
    captions: dict[str, list[str]] = field(default_factory=dict)
    tokens_MD: Tensor | None = None
    own_M: Tensor | None = None

    def finish(self, name_index: dict[str, int]) -> None:
        """Gather the region tokens of all pictures, once they are in. name_index: place of each name among the embeddings."""
        known = [fact for picture in self.pictures for fact in picture.facts]
        for fact in known:
            if fact.name and fact.caption:
                self.captions.setdefault(fact.name, []).append(fact.caption)
        own = [name_index[fact.name] for fact in known if fact.name]
        if own:
            self.tokens_MD = F.normalize(torch.cat([picture.regions_RD for picture in self.pictures]), dim=-1)
            self.own_M = torch.tensor(own, device=self.tokens_MD.device)

    def draw(self) -> EncodedPicture | None:
        return self.pictures[int(torch.randint(len(self.pictures), ()))] if self.pictures else None

    def draw_caption(self, name: str) -> str | None:
        """Return the caption of some region of that name; None where there is none."""
        captions = self.captions.get(name)
        return captions[int(torch.randint(len(captions), ()))] if captions else None

    def draw_misses(self, count: int, names_ND: Tensor) -> Tensor | None:
        """Return misses_RD: unit directions in which some real tokens miss their names, as the names are now; None without pictures."""
        if self.tokens_MD is None or self.own_M is None:
            return None
        drawn_R = torch.randint(len(self.tokens_MD), (count,), device=self.tokens_MD.device)
        tokens_RD, unit_RD = self.tokens_MD[drawn_R], F.normalize(names_ND[self.own_M[drawn_R]], dim=-1)
        return F.normalize(tokens_RD - (tokens_RD * unit_RD).sum(-1, keepdim=True) * unit_RD, dim=-1)


def make_up(
    index_R: Tensor, names_ND: Tensor, misses_RD: Tensor | None, hardness: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return (tokens_RD, nearest_R): tokens around the names of index_R, drawn towards other names and aside; the name that each is nearest to by cosine.

    misses_RD: where half of the tokens are drawn aside to. hardness: share of the full distance from a name, 0 to 1.
    The nearest name is what is to be said: between two names the language model then learns the very decision that alignment prepared.
    """
    unit_ND = F.normalize(names_ND, dim=-1)
    num, device = len(index_R), names_ND.device
    others_R2 = torch.randint(len(names_ND), (num, 2), device=device)
    towards_R21 = torch.rand(num, 2, 1, device=device) * hardness * torch.tensor(_TOWARDS, device=device)[:, None]
    aside_RD = F.normalize(torch.randn(num, names_ND.shape[1], device=device), dim=-1)
    if misses_RD is not None:
        aside_RD = torch.where(torch.rand(num, 1, device=device) < 0.5, aside_RD, misses_RD)
    turned_RD = unit_ND[index_R] + (towards_R21 * unit_ND[others_R2]).sum(1)
    turned_RD = F.normalize(turned_RD + hardness * _ASIDE * torch.rand(num, 1, device=device) * aside_RD, dim=-1)
    nearest_R = (turned_RD @ unit_ND.T).argmax(-1)
    length_R1 = names_ND[nearest_R].norm(dim=-1, keepdim=True)
    return turned_RD * length_R1 * (0.6 + 0.8 * torch.rand(num, 1, device=device)), nearest_R


def make_up_boxes(count: int, device: torch.device) -> Tensor:
    """Return boxes_R5 as `place_of_masks` gives them, of regions of all sizes and places."""
    low, high = (math.log(side) for side in _SIDES)
    side_R2 = torch.exp(low + (high - low) * torch.rand(count, 1, device=device)) * (
        0.6 + 0.8 * torch.rand(count, 2, device=device)
    )
    side_R2 = side_R2.clamp(max=1.0)
    corner_R2 = (1 - side_R2) * torch.rand(count, 2, device=device)
    filled_R1 = 0.4 + 0.6 * torch.rand(count, 1, device=device)
    return torch.cat([corner_R2, corner_R2 + side_R2, side_R2.prod(1, keepdim=True) * filled_R1], 1)


def place_facts(fact: RegionFacts, box_5: Sequence[float]) -> RegionFacts:
    """Return the facts with the box and the area as they are told to the language model, in shares of the picture."""
    left, top, right, bottom, area = box_5
    return replace(fact, box_xywh=(left, top, right - left, bottom - top), area_px=area)


def disturb(tokens_RD: Tensor, names_ND: Tensor) -> Tensor:
    """Return real region tokens turned a little towards another name and aside, and scaled."""
    num, device = len(tokens_RD), tokens_RD.device
    other_RD = F.normalize(names_ND[torch.randint(len(names_ND), (num,), device=device)], dim=-1)
    aside_RD = F.normalize(torch.randn_like(tokens_RD), dim=-1)
    towards_R1, aside_R1 = torch.rand(num, 1, device=device) * 0.3, torch.rand(num, 1, device=device)
    turned_RD = F.normalize(F.normalize(tokens_RD, dim=-1) + towards_R1 * other_RD + aside_R1 * aside_RD, dim=-1)
    return turned_RD * tokens_RD.norm(dim=-1, keepdim=True) * (0.6 + 0.8 * torch.rand(num, 1, device=device))
