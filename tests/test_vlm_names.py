"""Names of a vocabulary for answers of plain models: judged by transformers' own forward over prompt and answer, and by its own constrained generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlabel.errors import InputError
from rlabel.vlm.decoding import stop_ids
from rlabel.vlm.describer import PlainDescriber
from rlabel.vlm.inputs import Look, PlainProcessor
from rlabel.vlm.naming import AnswerTokens, NameOptions
from vlm_factories import MAKERS, kept_models, plan, regions
from vlm_judges import forced, forward_logprob

PICTURE, MASKS = regions()
NAMES = ("cat", "cart", "do", "dog")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return kept_models(tmp_path_factory.mktemp)


def describer(models: Any, kind: str, way: str = "box", share: Any = "auto", **options: Any) -> PlainDescriber:
    model, processor = models(kind)
    shown = PlainProcessor(processor, plan(model.config.model_type, region_as=way))
    names = NameOptions(**{"names": NAMES, **options})
    return PlainDescriber(model, shown, max_new_tokens=4, share=share, names=names)


def answer_ids(made: PlainDescriber) -> AnswerTokens:
    return AnswerTokens(made.processor, stop_ids(made.model, made.processor.tokenizer))


def constrained_generate(model: Any, look: Look, row: dict[str, torch.Tensor], answers: list[list[int]]) -> list[int]:
    """Return the answer of `generate` that is kept to some answers by its own prefix_allowed_tokens_fn."""
    begun = 1 if model.config.is_encoder_decoder else row["input_ids"].shape[1]
    first = forced(model)

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        said = ids.tolist()[begun:]
        ways = [[*first, *answer] for answer in answers]
        return sorted({way[len(said)] for way in ways if way[: len(said)] == said and len(way) > len(said)}) or [2]

    longest = max(len(answer) for answer in answers) + len(first) + 1
    out = model.generate(
        **look.picture, **row, do_sample=False, num_beams=1, max_new_tokens=longest, prefix_allowed_tokens_fn=allowed
    )
    said = out[0].tolist()[begun + len(first) :]
    return next(answer for answer in answers if said[: len(answer)] == answer)


CASES = [*((kind, "box") for kind in MAKERS), ("llava", "crop"), ("qwen3_vl", "marks"), ("florence2", "crop")]


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "way"), CASES)
def test_names_have_the_probabilities_of_a_forward_over_prompt_and_answer(models: Any, kind: str, way: str) -> None:
    made = describer(models, kind, way, hybrid=True)
    inputs = made.processor.prepare(PICTURE, MASKS[:2])
    answers = made.describe([inputs])[0]
    ids_of = answer_ids(made)
    prompts = [(look, row) for look in inputs.looks for row in look.rows]
    for answer, (look, row) in zip(answers, prompts, strict=True):
        wanted = {name: sum(forward_logprob(made.model, look, row, ids_of(name))) for name in NAMES}
        got = {one.name: one.logprob for one in answer.likely_names}
        assert got == pytest.approx(wanted, abs=1e-4)
        assert [one.name for one in answer.likely_names] == sorted(wanted, key=lambda name: -wanted[name])
    assert len({answer.likely_names for answer in answers}) == len(answers)
    free = PlainDescriber(made.model, made.processor, max_new_tokens=4).describe([inputs])[0]
    assert [answer.text for answer in answers] == [answer.text for answer in free]


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "way"), CASES[: len(MAKERS)])
def test_a_constrained_answer_is_that_of_generate_inside_the_same_names(models: Any, kind: str, way: str) -> None:
    made = describer(models, kind, way)
    inputs = made.processor.prepare(PICTURE, MASKS[:3])
    answers = made.describe([inputs])[0]
    ids_of = answer_ids(made)
    prompts = [(look, row) for look in inputs.looks for row in look.rows]
    for answer, (look, row) in zip(answers, prompts, strict=True):
        ids = constrained_generate(made.model, look, row, [ids_of(name) for name in NAMES])
        assert ids == ids_of(answer.text) and answer.text in NAMES
        assert answer.token_logprobs == pytest.approx(forward_logprob(made.model, look, row, ids), abs=1e-4)
        assert answer.share is not None and 0 < answer.share[0] <= answer.share[1] <= 1


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3"])
def test_sharing_and_batches_change_no_name(models: Any, kind: str) -> None:
    inputs = describer(models, kind).processor.prepare(PICTURE, MASKS[:4])
    for options in ({"hybrid": True}, {"search": "exact"}):
        wanted = describer(models, kind, **options).describe([inputs])[0]
        alone = describer(models, kind, share="none", **options).describe([inputs])[0]
        small = describer(models, kind, **options)
        small.max_batch_tokens = 1
        for got in (alone, small.describe([inputs])[0]):
            assert [answer.text for answer in got] == [answer.text for answer in wanted]
            for one, other in zip(got, wanted, strict=True):
                assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=2e-4)
                likely = {name.name: name.logprob for name in other.likely_names}
                assert {name.name: name.logprob for name in one.likely_names} == pytest.approx(likely, abs=2e-4)


def test_an_exact_search_takes_the_likeliest_name_and_a_beam_only_some(models: Any) -> None:
    names = tuple(f"{first}{second}{third}" for first in "abcd" for second in "efg" for third in "hijk")
    inputs = describer(models, "llava").processor.prepare(PICTURE, MASKS[:3])
    every = describer(models, "llava", hybrid=True, names=names, num_candidates=48).describe([inputs])[0]
    exact = describer(models, "llava", names=names, search="exact").describe([inputs])[0]
    assert [answer.text for answer in exact] == [answer.likely_names[0].name for answer in every]
    few = describer(models, "llava", hybrid=True, names=names, num_candidates=3, search="exact").describe([inputs])[0]
    for answer, other in zip(few, every, strict=True):
        assert [one.name for one in answer.likely_names] == [one.name for one in other.likely_names[:3]]
    for beam in describer(models, "llava", hybrid=True, names=names, num_candidates=3).describe([inputs])[0]:
        assert 0 < len(beam.likely_names) <= 3 and {one.name for one in beam.likely_names} < set(names)


def test_names_near_the_text_are_scored_too_and_means_may_rank(models: Any) -> None:
    names = (*(f"{first}{second}" for first in "abcdefgh" for second in "ijklm"), "a far longer name")
    asked: list[str] = []

    def near(texts: Any) -> list[list[str]]:
        asked.extend(texts)
        return [["a far longer name", "nobody's name", "a far longer name"] for _ in texts]

    options = {"hybrid": True, "names": names, "num_candidates": 1}
    made = describer(models, "qwen2_vl", near=near, rank_by="per_token", **options)
    inputs = made.processor.prepare(PICTURE, MASKS[:2])
    ids_of, look = answer_ids(made), inputs.looks[0]
    answers = made.describe([inputs])[0]
    for row, answer in enumerate(answers):
        found = {one.name: one for one in answer.likely_names}
        assert len(found) == 2 and "a far longer name" in found
        with torch.inference_mode():
            wanted = [sum(forward_logprob(made.model, look, look.rows[row], ids_of(name))) for name in found]
        assert [one.logprob for one in found.values()] == pytest.approx(wanted, abs=1e-4)
        for one in found.values():
            assert one.rank == pytest.approx(one.logprob / len(ids_of(one.name)))
        assert answer.likely_names[0].rank >= answer.likely_names[1].rank
    assert asked == [answer.text for answer in answers]


def test_an_answer_begins_and_ends_as_the_chat_template_writes_it(models: Any) -> None:
    model, processor = models("qwen2_vl")
    before = processor.chat_template
    shown = PlainProcessor(processor, plan("qwen2_vl"))
    closing = before.replace(
        "\n{% endfor %}", "{% if message['role'] == 'assistant' %}<|vision_end|>{% endif %}\n{% endfor %}"
    )
    assert closing != before
    end = processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")
    plain = [processor.tokenizer(text, add_special_tokens=False).input_ids for text in ("cat", " cat")]
    try:
        assert AnswerTokens(shown, [2, end])("cat") == [*plain[0], 2]  # nothing closes a turn: the tokenizer's own end
        processor.chat_template = closing
        assert AnswerTokens(shown, [2, end])("cat") == [*plain[0], end]
        processor.chat_template = closing.replace("[{{ message['role'] }}] ", "[{{ message['role'] }}]").replace(
            "{{ part['text'] }}", " {{ part['text'] }}").replace("[assistant] ", "[assistant]")  # fmt: skip
        assert AnswerTokens(shown, [2, end])("cat") == [*plain[1], end]
        assert AnswerTokens(shown, [2])("</s>")[:-1] != [2]  # a name is text, whatever it says
    finally:
        processor.chat_template = before
    with pytest.raises(InputError, match="names no token that ends an answer"):
        AnswerTokens(shown, [])


def test_a_model_whose_cache_cannot_be_trusted_is_refused_before_it_names_anything(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = models("llava")
    forward = type(model).forward

    def forgets(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            kwargs.get("past_key_values") is not None
            and kwargs["input_ids"].shape[1] > 1
            and "pixel_values" not in kwargs
        ):
            kwargs["past_key_values"] = None
            kwargs["attention_mask"] = None
        return forward(self, *args, **kwargs)

    forgets.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(model), "forward", forgets)
    with pytest.raises(
        InputError, match="--decoding hybrid: not with models of type 'llava': probabilities.*--decoding free"
    ):
        describer(models, "llava", "crop", hybrid=True)
