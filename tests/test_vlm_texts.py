"""The bar of plain models: their texts and log-probabilities are those of transformers' own `generate`, one region at a time, however they are shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from rlabel.vlm.describer import PlainDescriber
from rlabel.vlm.families import family_of
from rlabel.vlm.inputs import PlainInputs, PlainProcessor
from rlabel.vlm.rows import shared_length
from vlm_factories import MAKERS, kept_models, plan, regions
from vlm_judges import NEW_TOKENS, agree

PICTURE, MASKS = regions()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return kept_models(tmp_path_factory.mktemp)


def describer(models: Any, kind: str, way: str, **options: Any) -> PlainDescriber:
    model, processor = models(kind)
    shown = PlainProcessor(processor, plan(model.config.model_type, region_as=way))
    return PlainDescriber(model, shown, **{"max_new_tokens": NEW_TOKENS, **options})


@pytest.mark.parametrize("kind", MAKERS)
def test_boxes_behind_what_they_share_give_the_texts_of_plain_generate(models: Any, kind: str) -> None:
    made = describer(models, kind, "box")
    model, masks = made.model, MASKS[:4]
    inputs = made.processor.prepare(PICTURE, masks)
    assert [len(look.rows) for look in inputs.looks] == [len(masks)]
    seen = count_pictures(model)
    got = made.describe([inputs])[0]
    assert seen() == 1
    agree(model, made, inputs, got)


@pytest.mark.parametrize("kind", MAKERS)
def test_crops_that_go_together_give_the_texts_of_plain_generate(models: Any, kind: str) -> None:
    made = describer(models, kind, "crop")
    inputs = [made.processor.prepare(PICTURE, MASKS[:2]), made.processor.prepare(PICTURE, MASKS[2:3])]
    got = made.describe(inputs)
    assert [len(rows) for rows in got] == [2, 1]
    together = PlainInputs(looks=tuple(look for item in inputs for look in item.looks))
    agree(made.model, made, together, [answer for rows in got for answer in rows])


def test_marks_share_their_picture_and_outlines_do_not(models: Any) -> None:
    for way, looks in (("marks", [4]), ("outline", [1, 1, 1, 1])):
        made = describer(models, "qwen3_vl", way)
        inputs = made.processor.prepare(PICTURE, MASKS[:4])
        assert [len(look.rows) for look in inputs.looks] == looks
        agree(made.model, made, inputs, made.describe([inputs])[0])


@pytest.mark.parametrize(("kind", "way"), [("qwen2_5_vl", "box"), ("gemma3", "marks")])
def test_prompts_of_other_lengths_and_smaller_groups_change_nothing(models: Any, kind: str, way: str) -> None:
    made = describer(models, kind, way)
    inputs = made.processor.prepare(PICTURE, MASKS if way == "box" else MASKS + MASKS[:4])
    assert (
        len({row["input_ids"].shape[1] for row in inputs.looks[0].rows}) > 1
    )  # Gemma 3 looks back over a window, which padding would fill
    wanted = made.describe([inputs])[0]
    agree(made.model, made, inputs, wanted)
    for options in ({"max_batch_tokens": 1}, {"max_batch_tokens": 400}, {"share": "none"}):
        got = describer(models, kind, way, **options).describe([inputs])[0]
        assert [answer.token_ids for answer in got] == [answer.token_ids for answer in wanted]


def test_a_picture_is_prepared_once_for_all_its_boxes(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = describer(models, "qwen3_vl", "box")
    images = type(made.processor.processor.image_processor)
    whole, calls = images.preprocess, []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(images, "preprocess", counted)
    assert made.processor.prepare(PICTURE, MASKS).num_regions == len(MASKS) and len(calls) == 1


def test_a_template_with_the_question_before_the_picture_shares_nothing(models: Any) -> None:
    model, processor = models("llava")
    before = processor.chat_template
    processor.chat_template = "{{ messages[0]['content'][1]['text'] }}<image> It is"
    try:
        made = describer(models, "llava", "box")
        inputs = made.processor.prepare(PICTURE, MASKS[:3])
        seen = count_pictures(model)
        got = made.describe([inputs])[0]
        assert seen() == 3
        agree(model, made, inputs, got)
    finally:
        processor.chat_template = before


def test_rows_that_end_early_leave_the_others_as_they_are(models: Any) -> None:
    model, _ = models("qwen2_vl")
    made = describer(models, "qwen2_vl", "box")
    inputs = made.processor.prepare(PICTURE, MASKS)
    free = made.describe([inputs])[0]
    # The second token of the first answer ends answers from now on.
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [2, free[0].token_ids[1]]
    try:
        stopping = describer(models, "qwen2_vl", "box")
        got = stopping.describe([inputs])[0]
        assert len(got[0].token_ids) < NEW_TOKENS and len(got[0].token_logprobs) == len(got[0].token_ids) + 1
        assert {len(answer.token_ids) for answer in got} != {len(got[0].token_ids)}
        agree(model, stopping, inputs, got)
    finally:
        model.generation_config.eos_token_id = before


def test_penalties_of_a_repository_change_no_answer(models: Any) -> None:
    model, _ = models("llava")
    made = describer(models, "llava", "crop", max_new_tokens=12)
    inputs = made.processor.prepare(PICTURE, MASKS[:2])
    wanted = made.describe([inputs])
    before = model.generation_config
    model.generation_config = GenerationConfig(
        **{**before.to_dict(), "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "do_sample": True}
    )
    try:
        assert made.describe([inputs]) == wanted
        assert any(
            len(set(answer.token_ids)) < len(answer.token_ids) for answer in wanted[0]
        )  # there is what could be penalised
    finally:
        model.generation_config = before


def test_memory_that_does_not_suffice_halves_the_work(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = describer(models, "llava", "crop")
    inputs = made.processor.prepare(PICTURE, MASKS)
    wanted = made.describe([inputs])[0]
    model, sizes = made.model, []
    whole = type(model).generate

    def short(self: Any, **inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, **inputs)

    monkeypatch.setattr(type(model), "generate", short)
    got = made.describe([inputs])[0]
    assert sizes[0] == len(MASKS) and sizes[-1] <= 2 and sum(size for size in sizes if size <= 2) == len(MASKS)
    assert [answer.token_ids for answer in got] == [answer.token_ids for answer in wanted]


def test_an_unknown_family_is_asked_about_one_picture_at_a_time(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = models("llava")
    shown = PlainProcessor(processor, plan("new_vlm"))
    assert shown.family is family_of("new_vlm") and shown.plain.region_as == "crop"
    made = PlainDescriber(model, shown, max_new_tokens=NEW_TOKENS)
    sizes: list[int] = []
    whole = type(model).generate

    def counted(self: Any, **inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return whole(self, **inputs)

    monkeypatch.setattr(type(model), "generate", counted)
    inputs = shown.prepare(PICTURE, MASKS[:3])
    got = made.describe([inputs])[0]
    assert sizes == [1, 1, 1]
    agree(model, made, inputs, got)


def test_what_prompts_share_ends_before_they_differ() -> None:
    rows = [{"input_ids": torch.tensor([ids])} for ids in ([5, 6, 7, 8], [5, 6, 9], [5, 6, 7])]
    assert shared_length(rows) == 2
    assert shared_length(rows[:1]) == 3  # one token is left to ask with
    assert shared_length([rows[0], rows[2]]) == 2


def count_pictures(model: Any) -> Any:
    """Return a function that tells how many times the vision tower ran since."""
    names = ("visual", "vision_tower", "vision_model")
    tower = next(part for name in names for part in [getattr(model.base_model, name, None)] if part is not None)
    calls: list[int] = []
    handle = tower.register_forward_hook(lambda *_: calls.append(1))

    def told() -> int:
        handle.remove()
        return len(calls)

    return told
