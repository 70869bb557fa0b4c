"""Questions of the tasks and conversations made of what is known: as many templates as the paper, true answers, drawn by the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlabel.prompts import instructions
from rlabel.prompts.questions import parse_question
from rlabel.prompts.tasks import TASKS, RegionFacts, RelationFact, draw_turns, from_vocabulary, pair_turn, places
from rlabel.prompts.templates import Turn, numbered_choices

ALWAYS = dict.fromkeys(TASKS, 1.0)
# Left, above and small; right, below and large; inside the second.
CUP = RegionFacts(box_xywh=(0, 0, 10, 10), area_px=80, name="cup", caption="A blue cup.")
TABLE = RegionFacts(box_xywh=(50, 60, 40, 30), area_px=1000, name="table", caption="a wooden table")
PLATE = RegionFacts(box_xywh=(55, 65, 12, 8), area_px=70, name="plate")


def drawn(
    regions: list[RegionFacts], seed: int = 0, relations: tuple[RelationFact, ...] = (), **mix: float
) -> list[Turn]:
    return draw_turns(regions, relations, mix or ALWAYS, np.random.default_rng(seed))  # type: ignore[arg-type]


# RegionGPT's supplementary: 43 brief, 10 detailed, 10 of relations, 15 of categories, 15 referring.
@pytest.mark.parametrize(
    ("name", "at_least"), [("CAPTION", 43), ("DESCRIBE", 10), ("RELATE", 10), ("CLASSIFY", 15), ("REFER", 15)]
)
def test_there_are_as_many_templates_as_in_the_paper_and_no_two_alike(name: str, at_least: int) -> None:
    texts = getattr(instructions, name)
    assert len({text.lower() for text in texts}) == len(texts) >= at_least


@pytest.mark.parametrize("name", ["CLASSIFY", "CAPTION", "DESCRIBE"])
def test_questions_about_one_region_name_it_once(name: str) -> None:
    assert all(parse_question(text, 1).mentions == (0,) for text in getattr(instructions, name))


@pytest.mark.parametrize("name", ["RELATE", "HORIZONTAL", "VERTICAL", "SIZE", "OVERLAP"])
def test_questions_about_two_regions_name_both(name: str) -> None:
    assert all(sorted(parse_question(text, 2).mentions) == [0, 1] for text in getattr(instructions, name))


def test_questions_of_reference_take_an_expression_and_choices() -> None:
    assert all(text.count("{expression}") == text.count("{choices}") == 1 for text in instructions.REFER)


def test_a_vocabulary_is_named_behind_every_other_question_for_names_and_behind_no_other() -> None:
    suffix = " " + instructions.FROM_VOCABULARY.replace("{vocabulary}", "LVIS")
    turns = draw_turns([CUP, TABLE] * 40, (), ALWAYS, np.random.default_rng(0), vocabulary="LVIS")  # type: ignore[arg-type]
    of_names = [turn for turn in turns if turn.question.removesuffix(suffix) in instructions.CLASSIFY]
    assert len(of_names) == 80
    named = [turn for turn in turns if turn.question.endswith(suffix)]
    assert 20 <= sum(turn in named for turn in of_names) <= 60
    assert all(turn in of_names or ": cup" in str(turn.answer) for turn in named)
    assert from_vocabulary("What is <region>?", None) == "What is <region>?"
    assert from_vocabulary("What is <region>?", "LVIS") == f"What is <region>?{suffix}"


def test_every_region_is_named_and_captioned_where_both_are_known() -> None:
    turns = drawn([CUP, PLATE], classify=1.0, caption=1.0)
    assert [(turn.mentions, turn.answer) for turn in turns] == [((0,), "cup"), ((0,), "A blue cup."), ((1,), "plate")]
    assert turns[0].question in instructions.CLASSIFY and turns[1].question in instructions.CAPTION


def test_pair_questions_keep_who_is_who_whichever_is_named_first() -> None:
    assert pair_turn("Is <region1> left of <region2>?", 4, 2, "left") == Turn(
        question="Is <region> left of <region>?", mentions=(4, 2), answer="left"
    )
    assert pair_turn("Seen from <region2>, is <region1> left?", 4, 2, "left").mentions == (2, 4)


def test_places_are_what_the_boxes_say() -> None:
    def said(one: RegionFacts, other: RegionFacts) -> set[str]:
        return {answer for _, answer in places(one, other)}

    assert said(CUP, TABLE) == {"left", "above", "smaller", "no"}
    assert said(TABLE, CUP) == {"right", "below", "larger", "no"}
    assert {"smaller", "yes"} <= said(PLATE, TABLE)
    # A region against itself: nothing but that it overlaps is clear.
    assert said(CUP, CUP) == {"yes"}


@given(st.integers(0, 2**31))
def test_places_of_a_pair_are_opposite_when_it_is_turned_around(seed: int) -> None:
    random = np.random.default_rng(seed)
    one, other = (
        RegionFacts(box_xywh=tuple(random.integers(1, 60, 4).tolist()), area_px=float(random.integers(1, 900)))
        for _ in range(2)
    )
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above", "larger": "smaller",
                "smaller": "larger", "yes": "yes", "no": "no"}  # fmt: skip
    assert [opposite[answer] for _, answer in places(one, other)] == [answer for _, answer in places(other, one)]


def test_stated_relations_are_asked_from_subject_to_object() -> None:
    turns = drawn([CUP, TABLE], relations=(RelationFact(subject=0, predicate="standing on", object=1),), relate=1.0)
    assert [turn.answer for turn in turns] == ["standing on"]
    template = next(text for text in instructions.RELATE if pair_turn(text, 0, 1, None).question == turns[0].question)
    assert turns[0].mentions == pair_turn(template, 0, 1, None).mentions


@given(st.integers(0, 2**31))
def test_the_number_that_reference_answers_is_the_place_of_the_region(seed: int) -> None:
    for turn in drawn([CUP, TABLE, PLATE], seed, refer=1.0):
        assert turn.answer is not None
        meant = turn.mentions[int(turn.answer) - 1]
        assert meant in (0, 1)  # the plate has no words of its own
        assert ("A blue cup" if meant == 0 else "a wooden table") in turn.question
        assert numbered_choices(len(turn.mentions)) in turn.question
        assert len(set(turn.mentions)) == len(turn.mentions)


def test_nothing_is_referred_to_where_another_region_would_be_as_right() -> None:
    assert drawn([CUP, CUP], refer=1.0) == []
    assert drawn([CUP], refer=1.0) == []


def test_a_share_of_the_regions_is_asked() -> None:
    asked = sum(len(drawn([CUP] * 10, seed, classify=0.3)) for seed in range(100))
    assert 240 <= asked <= 360  # 300 of 1000 expected, 4 deviations of 14.5


def test_the_seed_decides() -> None:
    regions = [CUP, TABLE, PLATE]
    assert drawn(regions, 5) == drawn(regions, 5)
    assert drawn(regions, 5) != drawn(regions, 6)


def test_labeling_s_own_question_can_be_preferred() -> None:
    turns = draw_turns([CUP] * 20, (), {"classify": 1.0}, np.random.default_rng(0), plain_first=1.0)
    assert {turn.question for turn in turns} == {instructions.CLASSIFY[0]}
