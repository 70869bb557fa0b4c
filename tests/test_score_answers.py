"""Questions about several regions, and the probability of given answers: judged by transformers' own forward and generate over whole prompts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from rlabel.errors import InputError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.prompts.instructions import CAPTION, CLASSIFY
from rlabel.prompts.tasks import pair_turn
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs

import model_factories as factory  # isort: skip

PAIR = pair_turn("Seen from <region2>, is <region1> left?", 0, 1, None).question
TEXTS = ("cat", "a fire hydrant", "", "umbrella and teapot, both of them", "<region>")


@cache
def made(text: str = "llama") -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]:
    model = factory.model("lite", text, tokens_per_region=2, zoom_feature_layers=[-4, -1])
    return model, factory.processor(model, zoom="all")


def engine(text: str = "llama", **options: object) -> Engine:
    return Engine(*made(text), EngineOptions(max_new_tokens=5, **options))  # type: ignore[arg-type]


def plain_embeddings(
    made_of: tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor],
    item: RegionInputs,
    regions: list[int],
    ids: list[int],
) -> torch.Tensor:
    """Return the embeddings of one whole prompt about some regions of one picture, put together without the engine."""
    model, processor = made_of
    assert item.zoom_crops_Z4SS is not None
    pixels, masks = processor.image_processor.finish_zoom(item.zoom_crops_Z4SS[regions])
    maps, image = model.encode_images(item.pixels_3SS[None])
    count = len(regions)
    encoded = model.encode_regions(
        maps, item.region_masks_RGG[regions], torch.zeros(count, dtype=torch.long), pixels, masks, torch.arange(count)
    )
    return model.embed_prompt(torch.tensor([ids]), image, encoded)


@pytest.mark.parametrize("text", ["llama", "gpt_neox"])
def test_scores_are_the_log_probabilities_of_one_plain_forward_over_prompt_and_text(text: str) -> None:
    model, processor = made(text)
    inputs = factory.random_inputs(processor, (2, 0, 3), seed=1)
    texts = [[TEXTS, TEXTS[:1]], [], [[], TEXTS[3:4], TEXTS[1:3]]]
    scores = engine(text).score_answers(inputs, texts, CAPTION[0])
    assert [[len(own) for own in image] for image in scores] == [[5, 1], [], [0, 1, 2]]
    prompt = processor.prompt(CAPTION[0])
    start = len(prompt.prefix_ids) + len(prompt.suffix_ids)
    for image, item in enumerate(inputs):
        for region, own in enumerate(texts[image]):
            for place, said in enumerate(own):
                ids = processor.answer_ids(said)
                whole = [*prompt.prefix_ids, *prompt.suffix_ids, *ids]
                with torch.no_grad():
                    embeddings = plain_embeddings((model, processor), item, [region], whole)
                    logits = model.language_model(inputs_embeds=embeddings).logits[0, start - 1 : -1]
                expected = float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())
                assert scores[image][region][place] == pytest.approx(expected, abs=2e-4)


def test_texts_scored_beside_others_or_alone_have_the_same_probability() -> None:
    inputs = factory.random_inputs(made()[1], (2, 1), seed=2)
    texts = [[TEXTS, TEXTS[2:]], [TEXTS[::-1]]]
    together = engine().score_answers(inputs, texts)
    alone = engine(max_texts=1).score_answers(inputs, texts)
    for one, other in zip(sum(together, []), sum(alone, []), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_nothing_to_score_gives_nothing() -> None:
    inputs = factory.random_inputs(made()[1], (2, 0), seed=3)
    assert engine().score_answers(inputs, [[[], []], []]) == [[[], []], []]
    assert engine().score_answers([], []) == []


def test_texts_that_do_not_fit_the_language_model_are_refused() -> None:
    inputs = factory.random_inputs(made()[1], (1,), seed=3)
    with pytest.raises(InputError, match="more than the 512 that this language model takes"):
        engine().score_answers(inputs, [[["cat " * 600]]])


def test_greedy_answers_of_the_embedded_labeler_are_as_probable_as_decoding_said() -> None:
    from rlabel.regiongpt.assembly import load_processor
    from rlabel.regiongpt.quantization import Precision, load_model
    from rlabel.run.job import embedded_model_folder

    folder = str(embedded_model_folder())
    processor = load_processor(folder)
    model = load_model(folder, Precision(dtype="float32"), "cpu")
    embedded = Engine(model, processor, EngineOptions(question=CLASSIFY[0]))
    sample = sorted((Path(__file__).parent.parent / "examples/things-sample/val/images").iterdir())[0]
    pixels = factory.np.asarray(Image.open(sample).convert("RGB"))
    height, width = pixels.shape[:2]
    boxes = [
        factory.box_mask(height, width, x, y, width / 2, height / 2) for x in (0, width / 2) for y in (0, height / 2)
    ]
    inputs = [processor.image_processor.prepare(pixels, boxes)]
    answers = embedded.answer(inputs)[0]
    scores = embedded.score_answers(inputs, [[[answer.text] for answer in answers]])[0]
    checked = 0
    for answer, (score,) in zip(answers, scores, strict=True):
        if processor.answer_ids(answer.text) == [*answer.token_ids, processor.tokenizer.eos_token_id]:
            assert score == pytest.approx(sum(answer.token_logprobs), abs=1e-3)
            checked += 1
    assert checked >= 2


# ---- questions about several regions


def test_answers_about_two_regions_are_those_of_one_plain_generate_a_pair() -> None:
    model, processor = made()
    inputs = factory.random_inputs(processor, (3, 0, 2, 1), seed=4)
    mentions = [[(0, 1), (1, 0), (2, 2)], [], [(1, 0)], []]
    answers = engine(question=PAIR).answer(inputs, mentions)
    assert [len(image) for image in answers] == [3, 0, 1, 0]
    prompt = processor.prompt(PAIR)
    ids = [*prompt.prefix_ids, *prompt.suffix_ids]
    said: set[float] = set()
    for item, rows, answered in zip(inputs, mentions, answers, strict=True):
        for row, answer in zip(rows, answered, strict=True):
            embeddings = plain_embeddings((model, processor), item, list(row), ids)
            new = model.language_model.generate(
                inputs_embeds=embeddings,
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=5,
                do_sample=False,
                eos_token_id=list(processor.stop_ids),
                pad_token_id=0,
            )[0].tolist()
            assert list(answer.token_ids) == [token for token in new if token not in processor.stop_ids]
            with torch.no_grad():
                last = model.language_model(inputs_embeds=embeddings).logits[0, -1].log_softmax(-1)
            assert answer.token_logprobs[0] == pytest.approx(float(last[new[0]]), abs=1e-4)
            said.add(round(answer.token_logprobs[0], 3))
    assert len(said) == 4  # who is who makes a difference


def test_a_question_that_names_another_number_of_regions_is_refused() -> None:
    inputs = factory.random_inputs(made()[1], (2,), seed=5)
    with pytest.raises(InputError, match="names 2 regions, expected 1"):
        engine(question=PAIR).answer(inputs)
    with pytest.raises(InputError, match="names 1 regions, expected 2"):
        engine().answer(inputs, [[(0, 1)]])
