"""Where names lie among the embeddings of the language model: what region tokens are drawn to, and what the model remembers of them.

Legend: N names, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rlabel.errors import InputError
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor

# What keeps directions that hardly any name takes from being blown up by the name map.
_MAP_RIDGE = 0.02
# Names are compared with remembered ones so many at a time; above this cosine they are the same.
_CHUNK, _SAME = 1024, 0.999

AnswerIds = Mapping[str, Sequence[int]]


def mean_embeddings(model: RegionGPTForConditionalGeneration, answer_ids: AnswerIds) -> Tensor:
    """Return means_ND: the mean input embedding of each name's tokens, without gradient. answer_ids: of each name, end token last."""
    table = model.get_input_embeddings()
    device = next(table.parameters()).device
    with torch.no_grad():
        rows = [table(torch.tensor(list(ids[:-1]), device=device)).mean(0) for ids in answer_ids.values()]
    return torch.stack(rows).float()


def name_embeddings(model: RegionGPTForConditionalGeneration, answer_ids: AnswerIds) -> Tensor:
    """Return names_ND: what region tokens are drawn to, without gradient: the mean input embeddings, turned by the model's name map if it has one."""
    means_ND = mean_embeddings(model, answer_ids)
    if not model.config.name_map:
        return means_ND
    turned_ND = F.normalize(means_ND, dim=-1) @ model.get_buffer("name_map").float()
    return F.normalize(turned_ND, dim=-1) * means_ND.norm(dim=-1, keepdim=True)


@torch.no_grad()
def learn_name_map(model: RegionGPTForConditionalGeneration, answer_ids: AnswerIds, stage_name: str) -> None:
    """Make the model's name map the one that turns these names away from each other, and each as little as that allows (Lowdin's orthogonalisation).

    Names that share tokens lie close together, and even unrelated ones do where there are about as many as dimensions. A memory of names then holds
    these alone: those of before lay elsewhere. Raises InputError for a model without a name map.
    """
    if not model.config.name_map:
        raise InputError(
            f"recipe, stage {stage_name}, decorrelate: expected a model that keeps a name map, got one without. "
            "Assemble it with --name-map, or leave decorrelate out."
        )
    unit_ND = F.normalize(mean_embeddings(model, answer_ids), dim=-1).double()
    values_D, vectors_DD = torch.linalg.eigh(unit_ND.T @ unit_ND)
    scale = values_D.mean()
    stretch_D = (values_D.clamp_min(0) / scale + _MAP_RIDGE).rsqrt()
    model.get_buffer("name_map").copy_(((vectors_DD * stretch_D) @ vectors_DD.T).float())
    if model.config.name_memory:
        memory_ND = model.get_buffer("name_memory")
        own_ND = F.normalize(name_embeddings(model, _unlike(answer_ids)), dim=-1)
        memory_ND.zero_()
        memory_ND[: len(own_ND)] = own_ND


@torch.no_grad()
def remember_names(
    model: RegionGPTForConditionalGeneration, processor: RegionGPTProcessor, names: Sequence[str]
) -> None:
    """Add to the model's memory, where it has one, the names that are not in it yet. The same model and names give the same memory."""
    if model.config.name_memory is None or not names:
        return
    answer_ids = _unlike({name: processor.answer_ids(name) for name in dict.fromkeys(names)})
    own_ND = F.normalize(name_embeddings(model, answer_ids), dim=-1)
    known_ND = model.get_buffer("name_memory").float() if model.config.name_memory else own_ND[:0]
    if len(known_ND):
        is_new_N = torch.cat([(part @ known_ND.T).amax(1) < _SAME for part in own_ND.split(_CHUNK)])
        own_ND = own_ND[is_new_N]
    model.set_name_memory(torch.cat([known_ND, own_ND]))


def _unlike(answer_ids: AnswerIds) -> AnswerIds:
    """Return the names without those that another one is made of the same tokens as: they have one embedding."""
    first: dict[tuple[int, ...], str] = {}
    for name, ids in answer_ids.items():
        first.setdefault(tuple(sorted(ids)), name)
    return {name: answer_ids[name] for name in first.values()}
