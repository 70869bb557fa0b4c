"""Free questions: which regions a text means, and that a conversation with a growing cache says what one computed anew says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from label_factories import Outcome, rlabel_here, save_model
from rlabel.errors import InputError
from rlabel.labeling.conversation import Conversation
from rlabel.prompts.questions import Question, parse_question, without_marks
from rlabel.prompts.templates import Turn
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs

import model_factories as factory  # isort: skip

NEW_TOKENS = 6
QUESTIONS = (
    "Name the object in <region2>.",
    "Which of <region1> and <region3> is larger? Not <region1>?",
    "And now?",
    "Say <region3> again.",
)


# ---- questions


def test_mentions_are_counted_from_one_and_keep_their_order() -> None:
    question = parse_question("Which of <region3> and <region1> is larger than <region3>?", 3)
    assert question == Question(text="Which of <region> and <region> is larger than <region>?", mentions=(2, 0, 2))


def test_a_bare_region_means_the_only_one() -> None:
    assert parse_question(" What is <region>? ", 1) == Question(text="What is <region>?", mentions=(0,))
    with pytest.raises(InputError, match="could be any of 2 regions"):
        parse_question("What is <region>?", 2)


@pytest.mark.parametrize("text", ["<region0>", "<region4>", "<region99999999999999999999>", "", "  ", "<image> what?"])
def test_wrong_questions_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_question(text, 3)


@given(st.text(), st.integers(1, 5))
def test_no_text_gets_past_with_a_mention_too_many(text: str, num_regions: int) -> None:
    try:
        question = parse_question(text, num_regions)
    except InputError:
        return
    assert question.text.count("<region>") == len(question.mentions)
    assert all(0 <= index < num_regions for index in question.mentions)


def test_answers_come_back_as_plain_words() -> None:
    assert without_marks("a <region2> b <image><region>") == "a  b "


# ---- conversations


Made = tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor, RegionInputs]


def made(text: str, template: bool) -> Made:
    model = factory.model("lite", text, tokens_per_region=2, zoom_feature_layers=[-4, -1])
    processor = factory.processor(model, zoom="all")
    processor.tokenizer.chat_template = factory.CHAT_TEMPLATE if template else None
    return model, processor, factory.random_inputs(processor, (3,), seed=2)[0]


def anew(made_of: Made, ids: list[int], mentioned: list[int]) -> list[int]:
    """Return the token ids that transformers' own generate gives to a whole conversation at once."""
    model, processor, inputs = made_of
    fresh = Conversation(model, processor, inputs)
    embeddings = model.embed_prompt(torch.tensor([ids]), fresh._image_1TD, fresh._regions_RKD[mentioned])
    with torch.no_grad():
        new = model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(processor.stop_ids),
            pad_token_id=0,
        )
    return new[0].tolist()


@pytest.mark.parametrize("text", ["llama", "gpt_neox"])
@pytest.mark.parametrize("template", [False, True])
def test_each_turn_says_what_the_whole_conversation_computed_anew_says(text: str, template: bool) -> None:
    model, processor, inputs = made(text, template)
    conversation = Conversation(model, processor, inputs, NEW_TOKENS)
    turns: list[Turn] = []
    ids: list[int] = []
    for asked in QUESTIONS:
        question = parse_question(asked, 3)
        turns.append(Turn(question=question.text, mentions=question.mentions))
        ids += processor.turn_ids(turns)
        new = anew((model, processor, inputs), ids, [index for turn in turns for index in turn.mentions])
        said = [token for token in new if token not in processor.stop_ids]
        expected = processor.decode_answer(said)
        assert conversation.ask(asked).text == expected
        turns[-1] = turns[-1].answered(without_marks(expected))
        ids += said
    assert conversation.turns == turns


@pytest.mark.parametrize("template", [False, True])
def test_nothing_that_was_said_is_computed_twice(template: bool) -> None:
    model, processor, inputs = made("llama", template)
    conversation = Conversation(model, processor, inputs, NEW_TOKENS)
    for asked in QUESTIONS:
        conversation.ask(asked)
    assert conversation.num_computed == len(conversation._ids) == conversation._cache.get_seq_length()


def test_a_template_that_rewrites_what_was_said_only_cuts_the_cache_back() -> None:
    """As templates do that drop the thoughts of earlier answers."""
    model, processor, inputs = made("llama", True)
    forgetful = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[user] {{ m['content'] }}\n{% endif %}{% endfor %}"
    processor.tokenizer.chat_template = forgetful
    conversation = Conversation(model, processor, inputs, NEW_TOKENS)
    turns: list[Turn] = []
    for asked in QUESTIONS[:2]:
        question = parse_question(asked, 3)
        turns.append(Turn(question=question.text, mentions=question.mentions))
        mentioned = [index for turn in turns for index in turn.mentions]
        new = anew((model, processor, inputs), processor.conversation_ids(turns), mentioned)
        expected = processor.decode_answer([token for token in new if token not in processor.stop_ids])
        assert conversation.ask(asked).text == expected
        turns[-1] = turns[-1].answered(without_marks(expected))


def test_a_refused_question_leaves_the_conversation_as_it_was() -> None:
    model, processor, inputs = made("llama", False)
    conversation = Conversation(model, processor, inputs, NEW_TOKENS)
    first = conversation.ask(QUESTIONS[0])
    with pytest.raises(InputError, match="region9"):
        conversation.ask("What is <region9>?")
    with pytest.raises(InputError, match="Begin a new one"):
        conversation.ask("word " * 20_000)
    again = Conversation(model, processor, inputs, NEW_TOKENS)
    assert again.ask(QUESTIONS[0]) == first
    assert again.ask(QUESTIONS[1]) == conversation.ask(QUESTIONS[1])


# ---- the command


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask")
    save_model(folder / "model")
    Image.fromarray(factory.picture(40, 60)).save(folder / "photo.png")
    mask = np.zeros((40, 60), np.uint8)
    mask[5:20, 30:50] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def ask(folder: Path, *more: str) -> Outcome:
    return rlabel_here("ask", [str(folder / "photo.png"), "--model", str(folder / "model"), *more])


def test_command_answers_each_question_in_turn(setup: Path) -> None:
    regions = ["--region", "2,3,20,20", "--region", str(setup / "mask.png")]
    result = ask(setup, *regions, "--json", "Name <region1>.", "Which of <region1> and <region2>?")
    assert result.returncode == 0, result.stderr
    turns = json.loads(result.stdout)["turns"]
    assert [turn["question"] for turn in turns] == ["Name <region1>.", "Which of <region1> and <region2>?"]
    assert all(0 <= turn["score"] <= 1 for turn in turns)
    plain = ask(setup, *regions, "Name <region1>.")
    assert plain.stdout.splitlines()[0] == "> Name <region1>."


@pytest.mark.parametrize(
    ("region", "code", "told"),
    [
        ("1,2,3", 2, "neither"),
        ("nan,0,5,5", 2, "neither"),
        ("missing.png", 2, "neither"),
        ("100,100,5,5", 1, "--region 100,100,5,5"),
    ],
)
def test_command_refuses_what_is_no_region(setup: Path, region: str, code: int, told: str) -> None:
    result = ask(setup, "--region", region, "Name <region1>.")
    assert (result.returncode, result.stdout) == (code, "")
    assert told in result.stderr and "Traceback" not in result.stderr


def test_command_refuses_a_mask_of_another_size_and_a_region_too_many(setup: Path) -> None:
    Image.fromarray(np.full((10, 10), 255, np.uint8)).save(setup / "small.png")
    result = ask(setup, "--region", str(setup / "small.png"), "Name <region1>.")
    assert result.returncode == 1 and "60 x 40" in result.stderr
    result = ask(setup, "--region", "1,1,9,9", "Name <region2>.")
    assert result.returncode == 1 and "<region2> names a region that is not there" in result.stderr
