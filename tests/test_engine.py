from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

from rlabel.labeling.engine import Decoded, Engine, EngineOptions
from rlabel.prompts.instructions import CLASSIFY
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs

import model_factories as factory  # isort: skip

COUNTS = (5, 1, 0, 17, 2, 9, 12, 0, 3, 6, 8)  # 63 regions
NEW_TOKENS = 7


@cache
def made(text: str, zoom: str) -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]:
    fields = {} if zoom == "off" else {"zoom_feature_layers": [-4, -1]}
    model = factory.model("lite", text, tokens_per_region=2, **fields)
    return model, factory.processor(model, zoom=zoom, zoom_below_px=30.0)


def engine(text: str = "llama", zoom: str = "small", **options: object) -> Engine:
    return Engine(*made(text, zoom), EngineOptions(max_new_tokens=NEW_TOKENS, **options))  # type: ignore[arg-type]


def generate_one(
    model: RegionGPTForConditionalGeneration, processor: RegionGPTProcessor, item: RegionInputs, region: int
) -> list[int]:
    """Return the new token ids that transformers' own greedy generate gives for one region of one image."""
    prompt = processor.prompt(CLASSIFY[0])
    zoom = {}
    if item.zoom_crops_Z4SS is not None and item.zoom_region_index_Z is not None:
        places = (item.zoom_region_index_Z == region).nonzero()[:, 0]
        if len(places):
            pixels, masks = processor.image_processor.finish_zoom(item.zoom_crops_Z4SS[places])
            zoom = {"zoom_pixels": pixels, "zoom_masks": masks, "zoom_region_index": torch.tensor([0])}
    new = model.generate(
        torch.tensor([[*prompt.prefix_ids, *prompt.suffix_ids]]),
        pixel_values=item.pixels_3SS[None],
        region_masks=item.region_masks_RGG[region : region + 1],
        **zoom,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=list(processor.stop_ids),
        pad_token_id=0,
    )
    return [int(token) for token in new[0]]


def texts(answers: Sequence[Sequence[Decoded]]) -> list[list[str]]:
    return [[answer.text for answer in image] for image in answers]


def assert_alike(first: Sequence[Sequence[Decoded]], second: Sequence[Sequence[Decoded]]) -> None:
    assert texts(first) == texts(second)
    for one, other in zip(sum(first, []), sum(second, []), strict=True):  # type: ignore[arg-type]
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-5)


@pytest.mark.parametrize("text", ["llama", "gpt_neox"])
@pytest.mark.parametrize("zoom", ["off", "small"])
def test_texts_are_those_of_one_plain_generate_a_region(text: str, zoom: str) -> None:
    model, processor = made(text, zoom)
    inputs = factory.random_inputs(processor, COUNTS, seed=1)
    zoomed = [item.zoom_crops_Z4SS for item in inputs if item.zoom_crops_Z4SS is not None]
    assert bool(zoomed) == (zoom != "off") and sum(map(len, zoomed)) < sum(COUNTS)
    answers = engine(text, zoom).answer(inputs)
    assert [len(image) for image in answers] == list(COUNTS)
    expected = []
    for item in inputs:
        rows = []
        for region in range(len(item.region_masks_RGG)):
            ids = generate_one(model, processor, item, region)
            kept = ids[: next((i for i, token in enumerate(ids) if token in processor.stop_ids), len(ids))]
            rows.append(str(processor.tokenizer.decode(kept, skip_special_tokens=True)).strip())
        expected.append(rows)
    assert texts(answers) == expected
    assert len({answer for image in expected for answer in image}) > 10  # else it would prove little


@pytest.mark.parametrize("sharing", ["none", "expanded"])
def test_how_the_prefix_is_shared_changes_nothing(sharing: str) -> None:
    inputs = factory.random_inputs(made("llama", "small")[1], COUNTS, seed=2)
    packed = engine(prefix_sharing="packed").answer(inputs)
    assert_alike(packed, engine(prefix_sharing=sharing).answer(inputs))


def test_a_language_model_with_an_attention_of_its_own_is_answered_by_copies() -> None:
    model = factory.model("lite", "gpt_neox_japanese")
    processor = factory.processor(model)
    inputs = factory.random_inputs(processor, [3, 2], seed=2)
    answers = [
        Engine(model, processor, EngineOptions(max_new_tokens=4, prefix_sharing=sharing)).answer(inputs)  # type: ignore[arg-type]
        for sharing in ("auto", "none")
    ]
    assert_alike(*answers)


@pytest.mark.parametrize("text", ["llama", "qwen2", "gpt_neox"])
def test_batch_mates_change_nothing(text: str) -> None:
    inputs = factory.random_inputs(made(text, "small")[1], COUNTS, seed=3)
    together = engine(text).answer(inputs)
    assert_alike(together, [engine(text).answer([item])[0] for item in inputs])
    order = [7, 3, 0, 9, 5, 1, 10, 2, 8, 6, 4]
    shuffled = engine(text).answer([inputs[i] for i in order])
    assert_alike([together[i] for i in order], shuffled)


def test_the_other_regions_of_an_image_change_nothing() -> None:
    item = factory.random_inputs(made("llama", "off")[1], [6], seed=4)[0]
    together = engine(zoom="off").answer([item])[0]
    alone = [
        engine(zoom="off").answer([replace(item, region_masks_RGG=item.region_masks_RGG[i : i + 1])])[0][0]
        for i in range(6)
    ]
    assert_alike([together], [alone])


def test_images_without_regions_give_no_answers() -> None:
    processor = made("llama", "small")[1]
    assert engine().answer([]) == []
    assert engine().answer(factory.random_inputs(processor, [0, 0])) == [[], []]
    assert [len(image) for image in engine().answer(factory.random_inputs(processor, [0, 2, 0]))] == [0, 2, 0]


@pytest.mark.parametrize("text", ["llama", "gpt_neox"])
def test_log_probabilities_are_those_of_one_full_forward_over_prompt_and_answer(text: str) -> None:
    model, processor = made(text, "off")
    item = factory.random_inputs(processor, [8], seed=5)[0]
    prompt = processor.prompt(CLASSIFY[0])
    start = len(prompt.prefix_ids) + len(prompt.suffix_ids)
    lengths = set()
    for region, answer in enumerate(engine(text, "off").answer([item])[0]):
        ids = generate_one(model, processor, item, region)
        lengths.add(len(ids))
        with torch.no_grad():
            logits_TV = model(
                input_ids=torch.tensor([[*prompt.prefix_ids, *prompt.suffix_ids, *ids]]),
                pixel_values=item.pixels_3SS[None],
                region_masks=item.region_masks_RGG[region : region + 1],
            ).logits[0, start - 1 : -1]
        expected = logits_TV.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
        assert answer.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert lengths


def test_an_answer_ends_before_its_stop_token_whose_probability_is_kept() -> None:
    model, processor = made("llama", "off")
    item = factory.random_inputs(processor, [1], seed=6)[0]
    free = generate_one(model, processor, item, 0)
    stopping = engine(zoom="off")
    stop = free[3]
    assert stop not in free[:3] and not set(free[:4]) & set(processor.stop_ids)
    stopping._stops, stopping.stop_ids = frozenset([stop]), torch.tensor([stop])
    answer = stopping.answer([item])[0][0]
    assert answer.text == str(processor.tokenizer.decode(free[:3])).strip()
    assert len(answer.token_logprobs) == 4
    assert answer.token_logprobs == engine(zoom="off").answer([item])[0][0].token_logprobs[:4]


def test_a_stopped_region_stays_as_it_is_while_others_go_on() -> None:
    model, processor = made("llama", "off")
    inputs = factory.random_inputs(processor, [6], seed=7)
    ids = [generate_one(model, processor, inputs[0], region) for region in range(6)]
    stop = next(token for token in ids[0][:3] if any(token not in row for row in ids))
    stopping = engine(zoom="off")
    stopping._stops, stopping.stop_ids = frozenset([stop]), torch.tensor([stop])
    answers = stopping.answer(inputs)[0]
    wanted = [row.index(stop) + 1 if stop in row else NEW_TOKENS for row in ids]
    assert len(set(wanted)) > 1
    assert [len(answer.token_logprobs) for answer in answers] == wanted
