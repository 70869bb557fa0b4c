"""Regions that join while others still grow: the answers are those of the engine alone, and what fails is asked apart."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import model_factories as factory
from factories import HEIGHT, WIDTH, image_record, region
from rlabel.labeling.continuous import ContinuousBatch
from rlabel.labeling.describer import RegionGPTDescriber
from rlabel.labeling.engine import Decoded, Engine, EngineOptions
from rlabel.labeling.labeler import Labeler
from rlabel.records import Caption, Failure, Outcome, Shard
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs
from rlabel.storage import Store

COUNTS = (5, 1, 11, 2, 9, 12, 3, 6, 8, 1, 1, 14)
NEW_TOKENS = 12


@cache
def made(text: str) -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]:
    model = factory.model("lite", text)
    return model, factory.processor(model)


def engine(text: str = "llama", **options: object) -> Engine:
    """Return an engine that takes a tenth of all tokens for the end of an answer, so that lengths differ."""
    own = Engine(*made(text), EngineOptions(max_new_tokens=NEW_TOKENS, **options))  # type: ignore[arg-type]
    size = own.model.config.text_config.vocab_size
    stops = torch.randperm(size, generator=torch.Generator().manual_seed(5))[: size // 10]
    own._stops, own.stop_ids = frozenset(stops.tolist()), stops
    return own


def inputs(text: str = "llama") -> list[RegionInputs]:
    return factory.random_inputs(made(text)[1], COUNTS, seed=3)


class Watched(ContinuousBatch[int]):
    """Keeps, step by step, how many rows and cohorts there were and how many images' prefixes."""

    def __init__(self, own: Engine, most_regions: int) -> None:
        super().__init__(own, most_regions)
        self.steps: list[tuple[int, int, int]] = []

    def _step(self) -> None:
        growing = [cohort.growing for cohort in self._cohorts]
        prefixes = sum(one.rows.num_prefixes for one in growing)
        self.steps.append((len(growing), sum(one.num_rows for one in growing), prefixes))
        super()._step()


def answered(batch: ContinuousBatch[int], given: list[RegionInputs]) -> dict[int, list[Decoded]]:
    """Let images join as a labeler does: as many at once as fit."""
    group: list[int] = []
    for number in range(len(given)):
        if group and not batch.fits([given[i] for i in [*group, number]]):
            batch.add(group, [given[i] for i in group])
            group = []
        group.append(number)
    batch.add(group, [given[i] for i in group])
    batch.finish()
    return dict(batch.take())


@pytest.mark.parametrize(("text", "most"), [("llama", 16), ("llama", 24), ("gpt_neox", 20)])
def test_answers_are_those_of_the_engine_alone_whoever_joins_meanwhile(text: str, most: int) -> None:
    own = engine(text)
    expected = own.answer(inputs(text))
    lengths = {len(answer.token_logprobs) for answers in expected for answer in answers}
    assert {1, NEW_TOKENS} < lengths
    batch = Watched(own, most)
    got = answered(batch, inputs(text))
    assert sorted(got) == list(range(len(COUNTS)))
    for number, answers in enumerate(expected):
        assert [answer.text for answer in got[number]] == [answer.text for answer in answers]
        assert [answer.token_ids for answer in got[number]] == [answer.token_ids for answer in answers]
        for one, other in zip(got[number], answers, strict=True):
            assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-5)
    assert max(cohorts for cohorts, _, _ in batch.steps) > 1
    assert max(rows for _, rows, _ in batch.steps) <= most
    apart = 0  # steps, if every group had to end before the next began
    start = 0
    while start < len(COUNTS):
        end = max(i for i in range(start + 1, len(COUNTS) + 1) if sum(COUNTS[start:i]) <= most)
        apart += max(len(answer.token_logprobs) for answers in expected[start:end] for answer in answers) - 1
        start = end
    assert len(batch.steps) < apart
    assert batch.take() == []


def test_what_grows_is_within_the_budget_of_tokens_and_an_image_beyond_it_is_parted() -> None:
    prompt = engine().prompt
    a_region = len(prompt.suffix_ids) + NEW_TOKENS
    budget = 2 * len(prompt.prefix_ids) + 8 * a_region
    own = engine(max_batch_tokens=budget)
    batch = Watched(own, 1000)
    got = answered(batch, inputs())
    expected = engine().answer(inputs())
    assert [[answer.text for answer in got[i]] for i in range(len(COUNTS))] == [
        [answer.text for answer in answers] for answers in expected
    ]
    assert batch.steps and all(
        prefixes * len(prompt.prefix_ids) + rows * a_region <= budget for _, rows, prefixes in batch.steps
    )


def test_models_whose_rows_hold_their_prefixes_answer_call_by_call() -> None:
    own = engine()
    own._tried, own._sharing = True, "expanded"
    batch = Watched(own, 16)
    got = answered(batch, inputs())
    assert not batch.steps
    for number, answers in enumerate(own.answer(inputs())):
        assert [answer.token_ids for answer in got[number]] == [answer.token_ids for answer in answers]


def test_only_free_text_behind_shared_prefixes_is_joined() -> None:
    assert RegionGPTDescriber(engine()).continuous(9) is not None
    assert RegionGPTDescriber(engine(prefix_sharing="packed")).continuous(9) is not None
    assert RegionGPTDescriber(engine(prefix_sharing="expanded")).continuous(9) is None
    assert RegionGPTDescriber(engine(names=("cat", "dog"))).continuous(9) is None


def captioned(describer: RegionGPTDescriber, folder: Path, most: int) -> list[Outcome]:
    """Return what becomes of eight pictures with four regions each; regions are named by picture and number."""
    folder.mkdir(exist_ok=True)
    boxes = [(2.0, 3.0, 6.0, 4.0), (0.0, 0.0, 5.0, 5.0), (8.0, 2.0, 7.0, 9.0), (1.0, 1.0, 12.0, 10.0)]
    records = []
    for place in range(8):
        noise = np.random.default_rng(place).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{place}.png")
        regions = [region(f"{place}{n}", box_xywh=box) for n, box in enumerate(boxes)]
        records.append(image_record(*regions, id=place, file_name=f"{place}.png"))
    shard = Shard(index=0, content_sha256="0" * 64, images=tuple(records))
    return list(Labeler(describer, None, max_regions_per_batch=most).label(shard, Store.open(folder)).outcomes)


def said(outcomes: list[Outcome]) -> dict[str, str]:
    return {
        outcome.region.key: outcome.text if isinstance(outcome, Caption) else getattr(outcome, "kind", "")
        for outcome in outcomes
    }


def test_a_labeler_lets_pictures_join_and_says_what_it_says_without(tmp_path: Path) -> None:
    apart = RegionGPTDescriber(engine())
    apart.continuous = lambda most: None  # type: ignore[method-assign, assignment]
    expected = said(captioned(apart, tmp_path, 12))
    assert len(expected) == 32 and len(set(expected.values())) > 8
    assert said(captioned(RegionGPTDescriber(engine()), tmp_path, 12)) == expected


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("shape mismatch")])
def test_a_step_that_fails_once_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = said(captioned(RegionGPTDescriber(engine()), tmp_path, 12))
    step, calls = ContinuousBatch._step, []

    def failing(batch: ContinuousBatch[object]) -> None:
        calls.append(len(batch._cohorts))
        if len(calls) == 4:
            raise error
        step(batch)

    monkeypatch.setattr(ContinuousBatch, "_step", failing)
    assert said(captioned(RegionGPTDescriber(engine()), tmp_path, 12)) == expected
    assert len(calls) > 4  # the rest went on together


def test_a_picture_that_the_model_cannot_do_is_told_and_costs_no_other(tmp_path: Path) -> None:
    expected = said(captioned(RegionGPTDescriber(engine()), tmp_path, 12))
    own = engine()
    encode, seen = own.encode, []

    def picky(given: list[RegionInputs]) -> object:
        seen.append(given)
        bad = [item for item in given if torch.equal(item.pixels_3SS, third)]
        if bad:
            raise RuntimeError("cannot do this one")
        return encode(given)

    firsts: list[torch.Tensor] = []
    describer = RegionGPTDescriber(engine())
    prepare = describer.prepare
    describer.prepare = lambda *given: (firsts.append(prepare(*given).pixels_3SS), prepare(*given))[1]  # type: ignore[method-assign]
    captioned(describer, tmp_path, 12)
    third = firsts[2]
    own.encode = picky  # type: ignore[method-assign, assignment]
    outcomes = captioned(RegionGPTDescriber(own), tmp_path, 12)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure) and outcome.kind == "model"]
    assert [failure.region.key for failure in failures] == ["20", "21", "22", "23"]
    assert all("cannot do this one" in failure.reason for failure in failures)
    got = said(outcomes)
    assert {key: text for key, text in got.items() if key[0] != "2"} == {
        key: text for key, text in expected.items() if key[0] != "2"
    }


def test_a_broken_gpu_ends_the_call(tmp_path: Path) -> None:
    own = engine()

    def broken(given: list[RegionInputs]) -> object:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    own.encode = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(torch.AcceleratorError):
        captioned(RegionGPTDescriber(own), tmp_path, 12)
