"""Work in parts: by a budget of tokens, and by halves where memory does not suffice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import model_factories
from rlabel.labeling.budget import in_parts, is_out_of_memory
from rlabel.labeling.engine import Decoded, Engine, EngineOptions, each_region
from rlabel.labeling.ensemble import EnsembleDescriber
from rlabel.labeling.hybrid import HybridDescriber
from rlabel.prompts.instructions import CLASSIFY
from rlabel.regiongpt.processing import RegionInputs


def item(num_regions: int, name: float) -> RegionInputs:
    """Return inputs whose masks say which image and region they are of; every other region has a crop."""
    masks_RGG = torch.arange(num_regions)[:, None, None] + torch.full((1, 2, 2), name)
    zoomed = torch.arange(0, num_regions, 2)
    crops = torch.zeros(len(zoomed), 4, 1, 1) + zoomed[:, None, None, None]
    return RegionInputs(
        pixels_3SS=torch.zeros(3, 2, 2),
        region_masks_RGG=masks_RGG,
        zoom_crops_Z4SS=crops if len(zoomed) else None,
        zoom_region_index_Z=zoomed if len(zoomed) else None,
    )


def told(inputs: list[RegionInputs], asked: list[list[tuple[int, ...]]]) -> list[list[str]]:
    for one in inputs:
        if one.zoom_region_index_Z is not None and one.zoom_crops_Z4SS is not None:
            for crop, region in zip(one.zoom_crops_Z4SS, one.zoom_region_index_Z, strict=True):
                assert int(crop[0, 0, 0]) == int(one.region_masks_RGG[region, 0, 0]) % 100
    return [
        [" ".join(f"{one.region_masks_RGG[i, 0, 0]:.0f}" for i in mentions) for mentions in rows]
        for one, rows in zip(inputs, asked, strict=True)
    ]


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 60), st.integers(1, 30))
def test_answers_are_those_of_all_at_once_whatever_fits(counts: list[int], budget: int, most_in_memory: int) -> None:
    inputs = [item(count, 100.0 * i) for i, count in enumerate(counts)]
    asked = [[((i * 7) % count, i) for i in range(count)] for count in counts]
    sizes = []

    def answer(own: list[RegionInputs], rows: list[list[tuple[int, ...]]]) -> list[list[str]]:
        sizes.append((len(own), sum(map(len, rows))))
        if sum(map(len, rows)) > most_in_memory:
            raise torch.OutOfMemoryError("full")
        return told(own, rows)

    got = in_parts(
        inputs, asked, answer, lambda reason: reason, tokens_an_image=10, tokens_a_question=3, most_tokens=budget
    )
    assert got == told(inputs, asked)
    for images, questions in sizes:
        assert 10 * images + 3 * questions <= budget or questions == 1


def test_one_question_that_does_not_fit_is_told_and_the_others_are_answered() -> None:
    def answer(own: list[RegionInputs], rows: list[list[tuple[int, ...]]]) -> list[list[str]]:
        if any("103" in text for texts in told(own, rows) for text in texts):
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:100] err == 0. DefaultCPUAllocator: can't allocate memory"
            )
        return told(own, rows)

    inputs = [item(2, 0.0), item(5, 100.0)]
    got = in_parts(
        inputs,
        each_region(inputs),
        answer,
        lambda why: f"! {why}",
        tokens_an_image=1,
        tokens_a_question=1,
        most_tokens=99,
    )
    assert got[0] == ["0", "1"] and [*got[1][:3], got[1][4]] == ["100", "101", "102", "104"]
    assert got[1][3].startswith("! memory did not suffice") and "can't allocate" in got[1][3]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def answer(own: list[RegionInputs], rows: list[list[tuple[int, ...]]]) -> list[list[str]]:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        in_parts([item(2, 0.0)], [[(0,)]], answer, str, tokens_an_image=1, tokens_a_question=1, most_tokens=9)
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError("can't allocate memory"))


def test_what_torch_says_when_a_cpu_has_no_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def texts(answers: list[list[Decoded]]) -> list[list[str]]:
    return [[answer.text for answer in own] for own in answers]


@pytest.mark.parametrize("budget", [1, 150])
def test_a_small_budget_changes_no_answer(budget: int) -> None:
    model = model_factories.model("lite", zoom_feature_layers=[-4, -1])
    processor = model_factories.processor(model, zoom="small", zoom_below_px=30.0)
    inputs = model_factories.random_inputs(processor, [5, 0, 1, 3])
    whole = Engine(model, processor, EngineOptions(max_new_tokens=4))
    parts = Engine(model, processor, EngineOptions(max_new_tokens=4, max_batch_tokens=budget))
    assert texts(parts.answer(inputs)) == texts(whole.answer(inputs))
    names = ["cat", "dog", "fire hydrant"]
    for made in (
        lambda engine: HybridDescriber(engine, names, 2),
        lambda engine: EnsembleDescriber(engine, CLASSIFY[:2]),
    ):
        assert texts(made(parts).describe(inputs)) == texts(made(whole).describe(inputs))


def test_a_region_without_memory_is_a_problem_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_factories.model()
    engine = Engine(model, model_factories.processor(model), EngineOptions(max_new_tokens=3))
    inputs = model_factories.random_inputs(engine.processor, [3, 2])
    plain = engine.answer(inputs)
    decode = engine.decode

    def small(image_tokens_BTD: torch.Tensor, mentioned_NKD: torch.Tensor, *rest: object) -> list[Decoded]:
        if len(mentioned_NKD) > 1:
            raise torch.OutOfMemoryError("full")
        return decode(image_tokens_BTD, mentioned_NKD, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "decode", small)
    assert texts(engine.answer(inputs)) == texts(plain)

    def none(*_: object) -> list[Decoded]:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(engine, "decode", none)
    problems = [answer.problem for own in engine.answer(inputs) for answer in own]
    assert len(problems) == 5 and all(problem is not None and "memory" in problem for problem in problems)
