"""What transformers itself makes of the prompts of a plain model: the judge of rlabel's texts and probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlabel.labeling.engine import Decoded
from rlabel.vlm.decoding import stop_ids
from rlabel.vlm.describer import PlainDescriber
from rlabel.vlm.inputs import Look, PlainInputs

NEW_TOKENS = 5


def plain_generate(model: Any, look: Look, stops: tuple[int, ...]) -> list[Decoded]:
    """Return what `generate` says about each prompt of a look, pixels and all, asked alone."""
    said = []
    for row in look.rows:
        out = model.generate(
            **look.picture, **row, do_sample=False, num_beams=1, max_new_tokens=NEW_TOKENS, output_logits=True,
            return_dict_in_generate=True, eos_token_id=list(stops),
        )  # fmt: skip
        ids = out.sequences[0].tolist()[-len(out.logits) :]
        logprobs = [float(step[0].float().log_softmax(-1)[token]) for step, token in zip(out.logits, ids, strict=True)]
        said.append(Decoded(text="", token_logprobs=tuple(logprobs), token_ids=tuple(i for i in ids if i not in stops)))
    return said


def agree(model: Any, made: PlainDescriber, inputs: PlainInputs, got: list[Decoded]) -> None:
    wanted = [
        one for look in inputs.looks for one in plain_generate(model, look, stop_ids(model, made.processor.tokenizer))
    ]
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in wanted]
    for answer, other in zip(got, wanted, strict=True):
        assert len(answer.token_logprobs) == len(other.token_logprobs)
        # A forced token (BART's end at the longest length) is certain for generate; its logits are not.
        count = len(answer.token_logprobs) - model.config.is_encoder_decoder
        assert answer.token_logprobs[:count] == pytest.approx(other.token_logprobs[:count], abs=2e-4)
    # Regions that all look alike to a model would prove nothing.
    assert len({answer.token_logprobs for answer in wanted}) == len(wanted)


def forward_logprob(model: Any, look: Look, row: dict[str, torch.Tensor], ids: list[int]) -> list[float]:
    """Return the log-probability of each token of an answer by one forward over the whole prompt, pixels and all, and the answer."""
    answer_1M = torch.tensor([ids])
    if model.config.is_encoder_decoder:
        text = model.config.text_config
        begun = torch.tensor([[text.decoder_start_token_id, *forced(model)]])
        decoded = torch.cat([begun, answer_1M], 1)
        logits = model(**look.picture, **row, decoder_input_ids=decoded).logits
    else:
        # PaliGemma looks ahead at what is marked 0; for the others 0 is text.
        fill = {"attention_mask": 1, "token_type_ids": int(model.config.model_type == "paligemma")}
        whole = {
            name: torch.cat([value, torch.full_like(answer_1M, fill.get(name, 0))], 1) for name, value in row.items()
        }
        whole["input_ids"] = torch.cat([row["input_ids"], answer_1M], 1)
        logits = model(**look.picture, **whole).logits
    logprobs = logits[0, -len(ids) - 1 : -1].float().log_softmax(-1)
    return logprobs.gather(1, answer_1M.T)[:, 0].tolist()  # type: ignore[no-any-return]


def forced(model: Any) -> list[int]:
    token = model.generation_config.forced_bos_token_id
    return [] if token is None else [token]
