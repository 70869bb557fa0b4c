"""Greedy answers of a plain model: in float32 the texts that transformers' own `generate` gives for each region alone, however they are computed.

- behind a shared prompt: the tokens in which all regions of a picture agree, the picture's among them, go through the language model once; their keys
  and values are copied for each region, and only what differs is computed anew (`rows`);
- with a shared picture: the vision tower sees the picture once, then `generate` answers all prompts of it, which are equally long;
- plainly: `generate`, pictures of equal shape together.

Legend: R regions, S tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rlabel.vlm.inputs import Look, to_device
from rlabel.vlm.rows import PlainRows, positions_of

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


def grown(rows: PlainRows, logits_RV: Tensor, stops: Sequence[int], max_new_tokens: int) -> list[Said]:
    """Return the answers behind R rows, which are used up. logits_RV: of their first tokens."""
    device, num_rows = logits_RV.device, len(logits_RV)
    stops_on_device = torch.tensor(list(stops), device=device)
    region_R = torch.arange(num_rows)
    done_R = torch.zeros(num_rows, dtype=torch.bool)
    ids: list[list[int]] = [[] for _ in range(num_rows)]
    logprobs: list[list[float]] = [[] for _ in range(num_rows)]
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
            rows.keep(kept_R)
            region_R, done_R, token_R = region_R[kept_R], done_R[kept_R], token_R[kept_R.to(device)]
        logits_RV = rows.feed(token_R[:, None])
    return [Said(ids=tuple(own), logprobs=tuple(values)) for own, values in zip(ids, logprobs, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What `generate` is given for R prompts of equal length. next_R: positions behind them for families with M-RoPE, else None."""

    inputs: dict[str, Any]
    num_rows: int
    num_tokens: int
    next_R: Tensor | None
    leads: tuple[int, ...]


def given_rows(model: Any, look: Look, rows: Sequence[int]) -> Given:
    """Return some prompts of one picture, of equal length, for `generate`; the vision tower sees it once, here, where there are several."""
    prompts = [look.rows[i] for i in rows]
    together = {name: torch.cat([row[name] for row in prompts]) for name in prompts[0]}
    picture = to_device(look.picture, model.device, model.dtype)
    if len(prompts) > 1:
        picture = _seen(model, picture, len(prompts))
    inputs = {**to_device(together, model.device, model.dtype), **picture}
    return _given(model, inputs, [(look, row) for row in prompts])


def given_looks(model: Any, looks: Sequence[Look]) -> Given:
    """Return the single prompts of pictures whose tensors are of equal shape, for `generate`."""
    rows = {name: torch.cat([look.rows[0][name] for look in looks]) for name in looks[0].rows[0]}
    pictures = {name: torch.cat([look.picture[name] for look in looks]) for name in looks[0].picture}
    inputs = {**to_device(rows, model.device, model.dtype), **to_device(pictures, model.device, model.dtype)}
    return _given(model, inputs, [(look, look.rows[0]) for look in looks])


def _given(model: Any, inputs: dict[str, Any], prompts: Sequence[tuple[Look, dict[str, Tensor]]]) -> Given:
    next_R: Tensor | None = None
    leads: tuple[int, ...] = ()
    if hasattr(model.base_model, "get_rope_index"):
        positions = [positions_of(model, look, row) for look, row in prompts]
        next_R = torch.stack([own.amax() + 1 for own in positions]).to(model.device)
        leads = tuple(positions[0].shape[:-2])
    num_rows, num_tokens = inputs["input_ids"].shape
    return Given(inputs=inputs, num_rows=num_rows, num_tokens=num_tokens, next_R=next_R, leads=leads)


def shape_of(look: Look) -> tuple[Any, ...]:
    """Return what two pictures with one prompt each must agree in to go through the model together."""
    tensors = {**look.picture, **look.rows[0]}
    return tuple((name, tuple(value.shape), value.dtype) for name, value in sorted(tensors.items()))


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


def answers_of(model: Any, given: Given, stops: Sequence[int], max_new_tokens: int) -> list[Said]:
    """Return what `generate` says, greedily. A repository's own sampling settings and penalties are left out: they are for chats, not for scores."""
    recorder = _Recorder()
    generate(model, given, stops, max_new_tokens, logits_processor=LogitsProcessorList([recorder]))
    tokens_RM = torch.stack(recorder.tokens, 1).tolist()
    logprobs_RM = torch.stack(recorder.logprobs, 1).tolist()
    said = []
    for tokens, values in zip(tokens_RM, logprobs_RM, strict=True):
        end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
        said.append(Said(ids=tuple(tokens[:end]), logprobs=tuple(values[:end])))
    return said


def rows_of(model: Any, given: Given, stops: Sequence[int], max_tokens: int) -> tuple[PlainRows, Tensor]:
    """Return rows behind whole prompts as `generate` computes them, and logits_RV of their first tokens.

    A token that the family's answers are made to begin with (BART's) counts as part of the prompt.
    """
    out = generate(model, given, stops, 1, return_dict_in_generate=True, output_logits=True)
    seen = given.num_tokens
    if model.config.is_encoder_decoder:
        seen = out.sequences.shape[1] - 1
    mask_RT = torch.ones(given.num_rows, seen, dtype=torch.long, device=out.sequences.device)
    if not model.config.is_encoder_decoder and "attention_mask" in given.inputs:
        mask_RT = given.inputs["attention_mask"]
    rows = PlainRows(
        model,
        out.past_key_values,
        mask_RT,
        given.next_R,
        leads=given.leads,
        num_encoded=given.num_tokens if model.config.is_encoder_decoder else 0,
        max_tokens=max_tokens,
    )
    forced = getattr(model.generation_config, "forced_bos_token_id", None)
    if forced is not None:
        return rows, rows.feed(torch.full((given.num_rows, 1), forced, device=mask_RT.device))
    return rows, out.logits[0].float()


_OF_CONFIG = ("min_new_tokens", "return_dict_in_generate", "output_logits")


def generate(model: Any, given: Given, stops: Sequence[int], max_new_tokens: int, **more: Any) -> Any:
    """Return what transformers' own `generate` gives, greedily and without a repository's own settings. more: of `generate`, or what it is to return."""
    pad = model.generation_config.pad_token_id
    own = {name: more.pop(name) for name in _OF_CONFIG if name in more}
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(stops),
        pad_token_id=stops[0] if pad is None and stops else pad,
        **own,
    )
    return model.generate(**given.inputs, generation_config=config, **more)
