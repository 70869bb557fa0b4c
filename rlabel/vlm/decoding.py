"""Greedy answers of a plain model: in float32 the texts that transformers' own `generate` gives for each region alone, however they are computed.

- behind a shared prompt: the tokens in which all regions of a picture agree, the picture's among them, go through the language model once; their keys
  and values are copied for each region, and only what differs is computed anew;
- with a shared picture: the vision tower sees the picture once, then `generate` answers all prompts of it, which are equally long;
- plainly: `generate`, pictures of equal shape together.

Legend: R regions, P tokens that they share, S further tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rlabel.vlm.inputs import Look, to_device

Row = dict[str, Tensor]
# A step of fewer rows pays for the copying that it takes once this share of them is done.
_DONE_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a model said of one region: token ids, the end token included, and their natural log-probabilities."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


def stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer: those of the model's generation settings and the tokenizer's."""
    given = model.generation_config.eos_token_id
    ids = set(given if isinstance(given, list) else [given]) | {tokenizer.eos_token_id}
    return tuple(sorted(token for token in ids if token is not None))


def shared_length(rows: Sequence[Row]) -> int:
    """Return how many first tokens all prompts share, at least one token short of the shortest."""
    prompts = [row["input_ids"][0] for row in rows]
    shortest = min(len(ids) for ids in prompts)
    first_S = prompts[0][:shortest]
    differs_S = torch.zeros(shortest, dtype=torch.bool)
    for ids in prompts[1:]:
        differs_S |= ids[:shortest] != first_S
    differing = differs_S.nonzero()
    return min(int(differing[0]) if len(differing) else shortest, shortest - 1)


@torch.inference_mode()
def answers_behind_prefix(
    model: Any, look: Look, stops: Sequence[int], max_new_tokens: int, max_tokens: int
) -> list[Said] | None:
    """Return the answers to all prompts of a picture, what they share computed once; None where they do not share the whole picture.

    max_tokens: of prompts and answers held at once.
    """
    shared = shared_length(look.rows)
    if not _holds_the_picture(model, look.rows[0]["input_ids"][0, shared:]):
        return None
    positions = [_positions(model, look, row) for row in look.rows]
    first = {name: value[:, :shared] for name, value in look.rows[0].items()}
    out = model(
        **to_device(look.picture, model.device, model.dtype),
        **to_device(first, model.device, model.dtype),
        position_ids=positions[0][..., :shared].to(model.device),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = out.past_key_values
    suffixes = [row["input_ids"][0, shared:] for row in look.rows]
    # A window is counted in cells of the cache, so padding would push what is seen out of it.
    padded = not any(cache.is_sliding)
    said: list[Said | None] = [None] * len(suffixes)
    for group in _groups(suffixes, shared, max_new_tokens, max_tokens, padded=padded):
        own = copy.deepcopy(cache)
        own.batch_repeat_interleave(len(group))
        answers = _go_on(
            model, own, shared, [suffixes[i] for i in group], [positions[i][..., shared:] for i in group],
            stops, max_new_tokens,
        )  # fmt: skip
        for i, answer in zip(group, answers, strict=True):
            said[i] = answer
    assert all(answer is not None for answer in said)
    return [answer for answer in said if answer is not None]


def _holds_the_picture(model: Any, rest_S: Tensor) -> bool:
    """Return whether no token of the picture lies in the rest of a prompt, behind what is shared."""
    config = model.config
    tokens = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
    known = [token for token in tokens if isinstance(token, int)]
    return bool(known) and not torch.isin(rest_S, torch.tensor(known)).any()


def _positions(model: Any, look: Look, row: Row) -> Tensor:
    """Return the positions of a whole prompt: (1, S), or (3, 1, S) for families with time, height and width (M-RoPE)."""
    ids = row["input_ids"]
    rope = getattr(model.base_model, "get_rope_index", None)
    if rope is None:
        return torch.arange(ids.shape[1])[None]
    grids = {name: value for name, value in look.picture.items() if name.endswith("grid_thw")}
    positions_31S: Tensor = rope(ids, mm_token_type_ids=row["mm_token_type_ids"], **grids)[0]
    return positions_31S


def _groups(
    suffixes: Sequence[Tensor], shared: int, max_new_tokens: int, max_tokens: int, *, padded: bool
) -> list[list[int]]:
    """Return which prompts go on together: so many that the budget is kept, and of one length where they may not be padded."""
    order = list(range(len(suffixes)))
    if not padded:
        order.sort(key=lambda i: (len(suffixes[i]), i))
    groups: list[list[int]] = []
    longest = 0
    for i in order:
        length = len(suffixes[i])
        longest = max(longest, length)
        fits = groups and (len(groups[-1]) + 1) * (shared + longest + max_new_tokens) <= max_tokens
        if groups and fits and (padded or length == len(suffixes[groups[-1][0]])):
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = length
    return groups


def _go_on(
    model: Any,
    cache: Any,
    shared: int,
    suffixes: Sequence[Tensor],
    positions: Sequence[Tensor],
    stops: Sequence[int],
    max_new_tokens: int,
) -> list[Said]:
    """Return the answers behind R suffixes of a shared prompt, whose cache has R rows and is used up."""
    device, longest = model.device, max(len(suffix) for suffix in suffixes)
    num_rows = len(suffixes)
    ids_RS = torch.zeros(num_rows, longest, dtype=torch.long)
    mask_RT = torch.ones(num_rows, shared + longest, dtype=torch.long)
    # Padding stands between what is shared and what is not; nothing looks at it, and its own positions mean nothing.
    places = positions[0].new_zeros((*positions[0].shape[:-2], num_rows, longest))
    for i, (suffix, own) in enumerate(zip(suffixes, positions, strict=True)):
        pad = longest - len(suffix)
        ids_RS[i, pad:] = suffix
        mask_RT[i, shared : shared + pad] = 0
        places[..., i, pad:] = own[..., 0, :]
    # The first new token stands behind the farthest one of the whole prompt. Text follows the picture, so that is the last one.
    next_R = places.reshape(-1, num_rows, longest).amax((0, 2)) + 1
    places, mask_RT, next_R = places.to(device), mask_RT.to(device), next_R.to(device)
    stops_on_device = torch.tensor(list(stops), device=device)
    logits_RV = _forward(model, ids_RS.to(device), mask_RT, places, cache)
    region_R = torch.arange(num_rows)
    done_R = torch.zeros(num_rows, dtype=torch.bool)
    ids: list[list[int]] = [[] for _ in suffixes]
    logprobs: list[list[float]] = [[] for _ in suffixes]
    for number in range(max_new_tokens):
        # Picked from the raw logits, as generate does.
        token_R = logits_RV.argmax(-1)
        logprob_R = logits_RV.gather(1, token_R[:, None])[:, 0] - logits_RV.logsumexp(-1)
        is_last_R = torch.isin(token_R, stops_on_device).cpu()
        for place, (region, token, logprob) in enumerate(
            zip(region_R.tolist(), token_R.tolist(), logprob_R.tolist(), strict=True)
        ):
            if not done_R[place]:
                ids[region].append(token)
                logprobs[region].append(logprob)
        done_R = done_R | is_last_R
        if bool(done_R.all()) or number == max_new_tokens - 1:
            break
        if int(done_R.sum()) >= _DONE_SHARE * len(done_R):
            kept_R = (~done_R).nonzero()[:, 0]
            on_device = kept_R.to(device)
            cache.batch_select_indices(on_device)
            region_R, done_R, token_R = region_R[kept_R], done_R[kept_R], token_R[on_device]
            mask_RT, next_R = mask_RT[on_device], next_R[on_device]
        mask_RT = torch.cat([mask_RT, mask_RT.new_ones(len(mask_RT), 1)], 1)
        places = next_R[:, None].expand(*positions[0].shape[:-2], -1, 1)
        logits_RV = _forward(model, token_R[:, None], mask_RT, places, cache)
        next_R = next_R + 1
    return [Said(ids=tuple(own), logprobs=tuple(values)) for own, values in zip(ids, logprobs, strict=True)]


def _forward(model: Any, ids_RS: Tensor, mask_RT: Tensor, places: Tensor, cache: Any) -> Tensor:
    """Return float32 logits_RV of the tokens that follow; the cache grows."""
    out = model(
        input_ids=ids_RS,
        attention_mask=mask_RT,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits_RV: Tensor = out.logits[:, -1].float()
    return logits_RV


@torch.inference_mode()
def answers_by_generate(
    model: Any, look: Look, stops: Sequence[int], max_new_tokens: int, rows: Sequence[int]
) -> list[Said]:
    """Return the answers to some prompts of one picture, of equal length, the vision tower seeing it once where there are several."""
    prompts = [look.rows[i] for i in rows]
    given = {name: torch.cat([row[name] for row in prompts]) for name in prompts[0]}
    picture = to_device(look.picture, model.device, model.dtype)
    if len(prompts) > 1:
        picture = _seen(model, picture, len(prompts))
    return _generated(model, {**to_device(given, model.device, model.dtype), **picture}, stops, max_new_tokens)


def _seen(model: Any, picture: dict[str, Any], num_rows: int) -> dict[str, Any]:
    """Return what `generate` takes in place of pixels: what the vision tower made of one picture, for each of R prompts."""
    features = getattr(model, "get_image_features", None)
    if features is None:  # Kosmos-2 has it on the model without a head alone
        seen = model.vision_model(pixel_values=picture["pixel_values"])
        image_1TD = torch.nn.functional.normalize(model.vision_model.model.post_layernorm(seen[0]), dim=-1)
        embeds_1TD, _ = model.image_to_text_projection(image_1TD)
        return {"image_embeds": embeds_1TD.repeat(num_rows, 1, 1), "pixel_values": None}
    out = features(pixel_values=picture["pixel_values"])
    out.pooler_output = out.pooler_output.expand(num_rows, -1, -1)
    return {"mm_encoder_outputs": {"image": out}}


@torch.inference_mode()
def answers_together(model: Any, looks: Sequence[Look], stops: Sequence[int], max_new_tokens: int) -> list[Said]:
    """Return the answers to the single prompts of pictures whose tensors are of equal shape."""
    rows = {name: torch.cat([look.rows[0][name] for look in looks]) for name in looks[0].rows[0]}
    pictures = {name: torch.cat([look.picture[name] for look in looks]) for name in looks[0].picture}
    return _generated(
        model, {**to_device(rows, model.device, model.dtype), **to_device(pictures, model.device, model.dtype)},
        stops, max_new_tokens,
    )  # fmt: skip


def shape_of(look: Look) -> tuple[Any, ...]:
    """Return what two pictures with one prompt each must agree in to go through the model together."""
    tensors = {**look.picture, **look.rows[0]}
    return tuple((name, tuple(value.shape), value.dtype) for name, value in sorted(tensors.items()))


class _Recorder(LogitsProcessor):
    """Keeps what `generate` picks and how probable it was, not the logits of a whole vocabulary at every step. Changes nothing."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token_R = scores.argmax(-1)
        self.tokens.append(token_R)
        self.logprobs.append(scores.gather(1, token_R[:, None])[:, 0].float() - scores.float().logsumexp(-1))
        return scores


def _generated(model: Any, inputs: dict[str, Any], stops: Sequence[int], max_new_tokens: int) -> list[Said]:
    """Return what `generate` says, greedily. A repository's own sampling settings and penalties are left out: they are for chats, not for scores."""
    recorder = _Recorder()
    pad = model.generation_config.pad_token_id
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(stops),
        pad_token_id=stops[0] if pad is None and stops else pad,
        return_dict_in_generate=False,
    )
    model.generate(**inputs, generation_config=config, logits_processor=LogitsProcessorList([recorder]))
    tokens_RM = torch.stack(recorder.tokens, 1).tolist()
    logprobs_RM = torch.stack(recorder.logprobs, 1).tolist()
    said = []
    for tokens, values in zip(tokens_RM, logprobs_RM, strict=True):
        end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
        said.append(Said(ids=tuple(tokens[:end]), logprobs=tuple(values[:end])))
    return said
