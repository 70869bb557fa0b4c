"""Naming all regions of an image in one conversation: what is asked, how the answers are read, and that nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlabel.errors import InputError
from rlabel.labeling.conversation import Conversation
from rlabel.labeling.engine import Decoded, Engine, EngineOptions
from rlabel.labeling.modes import MultiTurnDescriber, OneTurnDescriber, split_answer, split_names
from rlabel.prompts.instructions import CLASSIFY, CLASSIFY_ALL
from rlabel.prompts.tasks import MAX_AT_ONCE, RegionFacts, draw_turns
from rlabel.prompts.templates import Turn, numbered_choices, numbered_names

import model_factories as factory  # isort: skip

NAMES = st.text("abcdefgh -'", min_size=1, max_size=12).filter(lambda name: name.strip(" -'") and name == name.strip())


def read(text: str, count: int) -> list[str | None]:
    return [None if span is None else text[span[0] : span[1]] for span in split_names(text, count)]


def made(**more: int) -> Engine:
    model = factory.model("lite", "llama", tokens_per_region=2, zoom_feature_layers=[-4, -1], text_fields=more)
    processor = factory.processor(model, zoom="all")
    return Engine(model, processor, EngineOptions(question=CLASSIFY[0], max_new_tokens=5))


def generated(engine: Engine, conversation: Conversation, ids: list[int], mentioned: list[int], most: int) -> list[int]:
    """Return what transformers' own generate says after the given tokens, without the tokens that end an answer."""
    model, processor = engine.model, engine.processor
    embeddings = model.embed_prompt(torch.tensor([ids]), conversation._image_1TD, conversation._regions_RKD[mentioned])
    new = model.language_model.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=list(processor.stop_ids),
        pad_token_id=0,
    )[0].tolist()
    return [token for token in new if token not in processor.stop_ids]


# ---- answers about all regions


@given(st.lists(NAMES, min_size=1, max_size=12))
def test_what_training_writes_labeling_reads(names: list[str]) -> None:
    assert read(numbered_names(names), len(names)) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1: cat 2: fire hydrant 3: dog", ["cat", "fire hydrant", "dog"]),
        ("1. cat, 2. fire hydrant, 3. dog.", ["cat", "fire hydrant", "dog."]),
        ("1) cat; 3) dog", ["cat", None, "dog"]),
        ("2: dog 1: cat", [None, "dog 1: cat", None]),  # numbers that fall are no longer numbers
        ("cat, fire hydrant, dog", ["cat", "fire hydrant", "dog"]),
        ("cat and dog", [None, None, None]),
        ("cat, dog", [None, None, None]),
        ("1: 2: dog 3:", [None, "dog", None]),
        ("1: cat 2: route 66 3: mark 4: x", ["cat", "route 66", "mark 4: x"]),
        ("", [None, None, None]),
    ],
)
def test_answers_about_three_regions_are_read_by_their_numbers(text: str, names: list[str | None]) -> None:
    assert read(text, 3) == names


@given(st.text(max_size=80), st.integers(1, 6))
def test_no_answer_breaks_the_reading(text: str, count: int) -> None:
    spans = split_names(text, count)
    assert len(spans) == count
    named = [span for span in spans if span is not None]
    assert named == sorted(named) and all(a[1] <= b[0] for a, b in zip(named, named[1:], strict=False))


def test_each_region_has_the_probabilities_of_its_own_tokens_and_the_last_the_end() -> None:
    processor = made().processor
    ids = processor.answer_ids("1: cat 2: fire hydrant")
    logprobs = tuple(-float(i) for i in range(len(ids)))
    answer = Decoded(text="1: cat 2: fire hydrant", token_logprobs=logprobs, token_ids=tuple(ids[:-1]))
    cat, hydrant, none = split_answer(answer, 3, processor)
    assert (cat.text, hydrant.text, none.text) == ("cat", "fire hydrant", "")
    for part, text in ((cat, "cat"), (hydrant, "fire hydrant")):
        assert processor.decode_answer(part.token_ids).endswith(text)
    first = ids.index(hydrant.token_ids[0])
    assert hydrant.token_logprobs == logprobs[first:] and set(cat.token_logprobs).isdisjoint(hydrant.token_logprobs)
    assert none.problem is not None and "number 3" in none.problem and cat.problem is None


def test_one_turn_says_of_each_region_what_one_plain_generate_about_all_says() -> None:
    engine = made()
    inputs = factory.random_inputs(engine.processor, (3, 0, MAX_AT_ONCE + 2), seed=3)
    answers = OneTurnDescriber(engine, CLASSIFY_ALL[0]).describe(inputs)
    assert [len(rows) for rows in answers] == [3, 0, MAX_AT_ONCE + 2]
    for item, rows in zip(inputs, answers, strict=True):
        for start in range(0, len(rows), MAX_AT_ONCE):
            count = min(MAX_AT_ONCE, len(rows) - start)
            question = CLASSIFY_ALL[0].replace("{choices}", numbered_choices(count))
            ids = engine.processor.conversation_ids([Turn(question=question)])
            mentioned = list(range(start, start + count))
            conversation = Conversation(engine.model, engine.processor, item)
            text = engine.processor.decode_answer(generated(engine, conversation, ids, mentioned, 5 * count))
            assert [row.text or None for row in rows[start : start + count]] == read(text, count)


# ---- turn after turn


def test_multi_turn_says_what_one_plain_generate_over_the_whole_conversation_says() -> None:
    engine = made()
    inputs = factory.random_inputs(engine.processor, (3, 0), seed=4)
    answers = MultiTurnDescriber(engine).describe(inputs)
    assert [len(rows) for rows in answers] == [3, 0]
    conversation = Conversation(engine.model, engine.processor, inputs[0])
    turns: list[Turn] = []
    ids: list[int] = []
    for region in range(3):
        turns.append(Turn(question=CLASSIFY[0], mentions=(region,)))
        ids += engine.processor.turn_ids(turns)
        new = generated(engine, conversation, ids, list(range(region + 1)), 5)
        assert list(answers[0][region].token_ids) == new
        turns[-1] = turns[-1].answered(engine.processor.decode_answer(new))
        ids += new


def test_a_conversation_that_no_longer_fits_is_followed_by_a_new_one() -> None:
    long = made()
    item = factory.random_inputs(long.processor, (4,), seed=5)[0]
    one_turn = len(long.processor.conversation_ids([Turn(question=CLASSIFY[0])])) + 5
    short = made(max_position_embeddings=one_turn)
    both = MultiTurnDescriber(short).describe([item])[0]
    # Where no turn fits behind another, each region is asked about alone.
    assert [row.token_ids for row in both] == [row.token_ids for row in short.answer([item])[0]]
    nothing = made(max_position_embeddings=one_turn - 1)
    with pytest.raises(InputError, match="are more than the"):
        MultiTurnDescriber(nothing).describe([item])


def test_a_fresh_conversation_about_the_same_regions_knows_nothing_of_the_old_one() -> None:
    engine = made()
    item = factory.random_inputs(engine.processor, (2,), seed=6)[0]
    first = Conversation(engine.model, engine.processor, item, 5)
    said = first.ask("Name <region1>.")
    again = first.fresh()
    assert again.ask("Name <region1>.") == said
    assert len(first.turns) == len(again.turns) == 1 and first.ask("And <region2>?") == again.ask("And <region2>?")


# ---- training turns


def test_all_named_regions_are_asked_for_at_once_and_the_unnamed_left_out() -> None:
    regions = [
        RegionFacts(box_xywh=(0, 0, 9, 9), area_px=9, name=None if i == 1 else f"name {i}")
        for i in range(MAX_AT_ONCE + 3)
    ]
    turns = draw_turns(regions, [], {"classify_all": 1.0}, np.random.default_rng(0))
    assert [len(turn.mentions) for turn in turns] == [MAX_AT_ONCE, 2]
    assert [i for turn in turns for i in turn.mentions] == [0, *range(2, MAX_AT_ONCE + 3)]
    for turn in turns:
        assert turn.question.count("<region>") == len(turn.mentions) and "{" not in turn.question
        assert read(str(turn.answer), len(turn.mentions)) == [f"name {i}" for i in turn.mentions]


def test_a_mixture_without_this_task_draws_as_it_always_did() -> None:
    region = RegionFacts(box_xywh=(0, 0, 9, 9), area_px=9, name="cat", caption="a cat")
    other = replace(region, name="dog")
    mix = {"classify": 0.5, "caption": 0.5}
    for seed in range(5):
        without = draw_turns([region, other], [], mix, np.random.default_rng(seed))  # type: ignore[arg-type]
        none = draw_turns([region, other], [], {**mix, "classify_all": 0.0}, np.random.default_rng(seed))  # type: ignore[arg-type]
        assert without == none


def test_questions_about_all_list_the_regions_once() -> None:
    assert len(set(CLASSIFY_ALL)) == len(CLASSIFY_ALL) >= 10
    assert all(text.count("{choices}") == 1 and "<region>" not in text for text in CLASSIFY_ALL)
