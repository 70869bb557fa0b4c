"""One question in several wordings: the answer is the one that all wordings together find likeliest."""

from __future__ import annotations

import pytest
import torch

import model_factories
from rlabel.config import LabelSettings
from rlabel.errors import InputError, UsageError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.labeling.ensemble import EnsembleDescriber
from rlabel.prompts.instructions import CLASSIFY
from rlabel.run.questions import name_questions

QUESTIONS = CLASSIFY[:3]


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = model_factories.model()
    return Engine(model, model_factories.processor(model), EngineOptions(max_new_tokens=4))


def test_the_answer_has_the_highest_mean_log_probability_of_all_that_were_given(engine: Engine) -> None:
    inputs = model_factories.random_inputs(engine.processor, [3, 0, 2])
    got = EnsembleDescriber(engine, QUESTIONS).describe(inputs)
    assert [len(answers) for answers in got] == [3, 0, 2]
    one_by_one = [
        Engine(engine.model, engine.processor, EngineOptions(question=question, max_new_tokens=4)).answer(inputs)
        for question in QUESTIONS
    ]
    for i, answers in enumerate(got):
        for r, answer in enumerate(answers):
            given = list(dict.fromkeys(said[i][r].text for said in one_by_one))
            texts = [[given if (j, s) == (i, r) else [] for s in range(len(got[j]))] for j in range(len(inputs))]
            means = torch.tensor([engine.score_answers(inputs, texts, question)[i][r] for question in QUESTIONS]).mean(
                0
            )
            assert answer.text == given[int(means.argmax())]
            assert answer.token_logprobs == pytest.approx((float(means.max()),), abs=1e-4)


def test_one_wording_gives_what_it_gives_alone(engine: Engine) -> None:
    inputs = model_factories.random_inputs(engine.processor, [2])
    alone = engine.answer(inputs)[0]
    got = EnsembleDescriber(engine, [engine.options.question]).describe(inputs)[0]
    assert [answer.text for answer in got] == [answer.text for answer in alone]


def test_no_region_at_all_gives_no_answer(engine: Engine) -> None:
    inputs = model_factories.random_inputs(engine.processor, [1])
    empty = [model_factories.random_inputs(engine.processor, [0])[0]]
    assert EnsembleDescriber(engine, QUESTIONS).describe(empty) == [[]]
    assert len(EnsembleDescriber(engine, QUESTIONS).describe(inputs)[0]) == 1


def test_a_question_about_two_regions_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="names 2 regions"):
        EnsembleDescriber(engine, ["<region> or <region>?"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"question": "What is <region>?"}, "--num-questions 2"),
        ({"mode": "multi_turn"}, "--num-questions 2"),
        ({"task": "caption", "vocabulary": None}, "it is of --task classify"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changed: dict[str, str | None], message: str) -> None:
    given = {"images": "i", "regions": "r", "vocabulary": "v", "out": "o", "num_questions": 2, **changed}
    with pytest.raises(UsageError, match=message):
        LabelSettings.model_validate(given).check()


def test_conversations_are_not_kept_inside_the_vocabulary() -> None:
    given = {
        "images": "i",
        "regions": "r",
        "vocabulary": "v",
        "out": "o",
        "decoding": "constrained",
        "mode": "one_turn",
    }
    with pytest.raises(UsageError, match="--decoding constrained"):
        LabelSettings.model_validate(given).check()


def test_the_wordings_name_the_vocabulary_where_the_settings_do() -> None:
    given = {
        "images": "i",
        "regions": "r",
        "vocabulary": "v",
        "out": "o",
        "num_questions": 2,
        "vocabulary_name": "LVIS",
    }
    texts = name_questions(LabelSettings.model_validate(given))
    assert texts == [f"{question} Use the names of LVIS." for question in CLASSIFY[:2]]


def test_settings_allow_as_many_wordings_as_there_are() -> None:
    (most,) = [bound.le for bound in LabelSettings.model_fields["num_questions"].metadata if hasattr(bound, "le")]
    assert most == len(CLASSIFY)
