"""Whatever joins, however long answers are and whatever fails: each region is answered once, with what the engine alone says, and bounds are kept."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import model_factories as factory
import rlabel.labeling.labeler as labeler_module
from factories import HEIGHT, WIDTH, image_record, region
from rlabel.errors import StorageError
from rlabel.labeling.continuous import ContinuousBatch
from rlabel.labeling.describer import RegionGPTDescriber
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.labeling.growing import Growing
from rlabel.labeling.labeler import Labeler, _Joining
from rlabel.records import Caption, Failure, Shard
from rlabel.regiongpt.processing import RegionInputs
from rlabel.storage import Store

COUNTS = (3, 1, 7, 2, 4, 1, 9, 5)
NEW_TOKENS = 10
Said = tuple[list[int], list[float]]


@cache
def alone() -> tuple[Engine, list[RegionInputs], list[list[Said]]]:
    """Return an engine, images, and what it says of each region when asked image by image and never stopped."""
    model = factory.model("lite", "llama")
    engine = Engine(model, factory.processor(model), EngineOptions(max_new_tokens=NEW_TOKENS))
    stop_at(engine, [])
    inputs = factory.random_inputs(engine.processor, COUNTS, seed=11)
    answers = [engine.answer([item])[0] for item in inputs]
    return engine, inputs, [[(list(one.token_ids), list(one.token_logprobs)) for one in own] for own in answers]


def stop_at(engine: Engine, stops: Sequence[int]) -> None:
    engine._stops, engine.stop_ids = frozenset(stops), torch.tensor(sorted(stops), dtype=torch.long)


def cut(said: Said, stops: Sequence[int]) -> Said:
    """Return an answer up to its first stop token: its text without it, its probabilities with it."""
    ids, logprobs = said
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end], logprobs[: end + 1]


@dataclass(frozen=True)
class Piece:
    image: int
    inputs: RegionInputs


class Watched(ContinuousBatch[Any]):
    """Fails at some of its steps and notes what grows at each: rows, prefixes, regions that are held."""

    def __init__(self, engine: Engine, most: int, faults: dict[int, Exception]) -> None:
        super().__init__(engine, most)
        self.faults = faults
        self.steps: list[tuple[int, int, int, int]] = []

    def _step(self) -> None:
        growing = [cohort.growing for cohort in self._cohorts]
        held = sum(sum(cohort.counts) for cohort in self._cohorts)
        rows, prefixes = sum(one.num_rows for one in growing), sum(one.rows.num_prefixes for one in growing)
        self.steps.append((self._most_regions, rows, prefixes, held))
        if len(self.steps) in self.faults:
            raise self.faults[len(self.steps)]
        super()._step()


def joined(batch: Watched, pieces: Sequence[Piece]) -> tuple[list[tuple[Any, Any]], list[list[Piece]]]:
    """Let pieces join as a shard's do; return what was answered, and what was asked apart."""
    engine = alone()[0]
    apart: list[list[Piece]] = []

    def ask(own: Sequence[Any]) -> list[Any]:
        apart.append(list(own))
        return list(zip(own, engine.answer([piece.inputs for piece in own]), strict=True))

    joining = _Joining(batch, ask)
    told: list[tuple[Any, Any]] = []
    group: list[Any] = []
    for piece in pieces:
        if group and not joining.fits([*group, piece]):
            told += joining.answered(group)
            group = []
        group.append(piece)
    if group:
        told += joining.answered(group)
    return told + joining.rest(), apart


def error_of(is_full: bool) -> Exception:
    return torch.OutOfMemoryError("full") if is_full else RuntimeError("shapes do not fit")


images = st.lists(st.integers(0, len(COUNTS) - 1), max_size=14)
faults = st.dictionaries(st.integers(1, 30), st.booleans(), max_size=4)


@settings(max_examples=60, deadline=None)
@given(images, st.integers(1, 24), st.integers(0, 30), st.sampled_from([0.0, 0.1, 0.4]), st.integers(0, 9), faults)
def test_each_region_is_answered_once_with_the_engines_own_words(
    chosen: list[int], most: int, room: int, stop_share: float, seed: int, failing: dict[int, bool]
) -> None:
    engine, inputs, said = alone()
    prompt = engine.prompt
    a_region = len(prompt.suffix_ids) + NEW_TOKENS
    budget = len(prompt.prefix_ids) + room * a_region
    size = engine.model.config.text_config.vocab_size
    stops = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: int(stop_share * size)].tolist()
    stop_at(engine, stops)
    batch = Watched(engine, most, {step: error_of(is_full) for step, is_full in failing.items()})
    batch._most_tokens = budget
    pieces = [Piece(image, inputs[image]) for image in chosen]
    told, apart = joined(batch, pieces)
    assert sorted(id(piece) for piece, _ in told) == sorted(id(piece) for piece in pieces)
    for piece, answers in told:
        expected = [cut(one, stops) for one in said[piece.image]]
        assert [list(answer.token_ids) for answer in answers] == [ids for ids, _ in expected]
        for answer, (_, logprobs) in zip(answers, expected, strict=True):
            assert answer.token_logprobs == pytest.approx(logprobs, abs=1e-4)
    hits = [step for step in failing if step <= len(batch.steps)]
    assert all(len(own) == 1 for own in apart) and bool(apart) == bool(hits)
    halves = sum(failing[step] for step in hits)
    assert batch._most_regions == most >> halves
    for bound, rows, prefixes, held in batch.steps:
        assert rows <= bound and held <= 4 * bound
        assert prefixes * len(prompt.prefix_ids) + rows * a_region <= budget
    assert not batch._cohorts and not batch._waiting and batch.take() == []


def test_no_more_regions_are_held_than_four_times_those_that_may_grow() -> None:
    engine, inputs, said = alone()
    patient = Engine(engine.model, engine.processor, EngineOptions(max_new_tokens=40))
    # Of the nine regions of this image the first one's answer goes on when those of the others have ended.
    stop_at(patient, [ids[2] for ids, _ in said[6][1:]])
    batch = Watched(patient, 20, {})
    told, _ = joined(batch, [Piece(6, inputs[6]) for _ in range(12)])
    lengths = [[len(answer.token_logprobs) for answer in answers] for _, answers in told]
    assert all(first == 40 and max(others) == 3 for first, *others in lengths) and len(lengths) == 12
    assert max(held for *_, held in batch.steps) == 72 <= 4 * 20 < 9 * 9
    assert max(rows for _, rows, *_ in batch.steps) <= 20


def test_more_joins_once_half_of_the_room_is_free() -> None:
    engine, inputs, _ = alone()
    stop_at(engine, [])  # all answers are equally long
    batch = Watched(engine, 18, {})
    batch.add(["six"], [inputs[6]])
    assert not batch.steps, "nine more fit beside nine of eighteen"
    batch.add(["three"], [inputs[4]])
    assert len(batch.steps) == NEW_TOKENS - 1, "with four more, half is free when the first ones are done"
    assert [item for item, _ in batch.take()] == ["six", "three"]


def test_images_wait_for_those_beside_which_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, inputs, _ = alone()
    stop_at(engine, [])
    batch = Watched(engine, 10, {})
    monkeypatch.setattr("rlabel.labeling.continuous._FREE_SHARE", 0.0)
    monkeypatch.setattr(engine, "answer", lambda inputs: pytest.fail("asked beside those that grow"))
    batch.add(["nine"], [inputs[6]])
    assert not batch.fits([inputs[2]]) and not batch.steps
    batch.add(["seven"], [inputs[2]])
    assert len(batch.steps) == NEW_TOKENS - 1 and [item for item, _ in batch.take()] == ["nine"]
    batch.finish()
    assert [(item, len(answers)) for item, answers in batch.take()] == [("seven", 7)]


def test_what_was_answered_before_the_last_steps_fail_is_told_with_the_rest() -> None:
    engine, inputs, _ = alone()
    stop_at(engine, [])
    batch = Watched(engine, 26, {NEW_TOKENS: RuntimeError("shapes do not fit")})
    early, late = Piece(6, inputs[6]), Piece(4, inputs[4])
    apart: list[Any] = []
    joining = _Joining(batch, lambda own: [(piece, apart.append(piece) or []) for piece in own])  # type: ignore[func-returns-value]
    assert joining.answered([early]) == []  # type: ignore[list-item]
    batch._step()
    batch._step()
    assert joining.answered([late]) == []  # type: ignore[list-item]
    assert [(piece, len(answers)) for piece, answers in joining.rest()] == [(early, 9), (late, 0)]
    assert apart == [late]


def test_images_without_regions_have_no_answers() -> None:
    engine = alone()[0]
    empty = factory.random_inputs(engine.processor, (0, 0), seed=1)
    batch = ContinuousBatch[str](engine, 4)
    batch.add(["a", "b"], empty)
    batch.finish()
    assert batch.take() == [("a", []), ("b", [])]


def shard_of(folder: Path, num_images: int) -> Shard:
    records = []
    for place in range(num_images):
        noise = np.random.default_rng(place).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{place}.png")
        own = [region(f"{place}{n}", box_xywh=(1.0 + n, 2.0, 6.0, 5.0)) for n in range(3)]
        records.append(image_record(*own, id=place, file_name=f"{place}.png"))
    return Shard(index=0, content_sha256="0" * 64, images=tuple(records))


def test_a_shard_that_is_given_up_lets_go_of_what_grew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its picture store fails: it is tried again at once, while the error still holds the frames of the first try."""
    engine = alone()[0]
    stop_at(engine, [])
    growing: weakref.WeakSet[Growing[Any]] = weakref.WeakSet()
    alive: list[int] = []
    prepare, init, give_up = labeler_module.prepare_image, Growing.__init__, ContinuousBatch.give_up

    def failing(store: Store, record: Any, *rest: Any, **more: Any) -> Any:
        if record.file_name == "7.png":
            raise StorageError("no connection")
        return prepare(store, record, *rest, **more)

    def noting(self: Growing[Any], *rest: Any) -> None:
        init(self, *rest)
        growing.add(self)

    def counting(self: ContinuousBatch[Any]) -> list[Any]:
        alive.append(len(growing))
        return give_up(self)

    monkeypatch.setattr(labeler_module, "prepare_image", failing)
    monkeypatch.setattr(Growing, "__init__", noting)
    monkeypatch.setattr(ContinuousBatch, "give_up", counting)
    monkeypatch.setattr(
        "rlabel.labeling.continuous._FREE_SHARE", 0.0
    )  # so that some grow still when the picture is missed
    labeler = Labeler(RegionGPTDescriber(engine), None, max_regions_per_batch=10)
    with labeler.begin(shard_of(tmp_path, 8), Store.open(tmp_path)) as work:
        with pytest.raises(StorageError) as caught:
            work.answer()
        assert caught.value.__traceback__ is not None
        assert alive[0] > 0 and len(growing) == 0


def test_what_the_model_could_not_do_is_kept_as_words(tmp_path: Path) -> None:
    """An error kept would keep the frames, and with them the tensors, of what raised it, also of the error before it."""
    engine = alone()[0]
    held: list[weakref.ref[torch.Tensor]] = []
    waiting: list[bool] = []

    class Broken(RegionGPTDescriber):
        def continuous(self, most_regions: int) -> None:
            return None

        def describe(self, inputs: Sequence[RegionInputs]) -> Any:
            waiting.append(any(one() is not None for one in held))
            try:
                large = torch.zeros(9)
                held.append(weakref.ref(large))
                raise ValueError("first")
            except ValueError:
                raise RuntimeError("second") from None

    labeler = Labeler(Broken(engine), None, max_regions_per_batch=3)
    outcomes = labeler.label(shard_of(tmp_path, 4), Store.open(tmp_path)).outcomes
    assert all(isinstance(one, Failure) and "RuntimeError: second" in one.reason for one in outcomes)
    assert len(waiting) == 4 and not any(waiting)


@pytest.mark.parametrize("num_images", [1, 5])
def test_every_region_of_a_shard_is_answered_also_those_of_the_last_picture_alone(
    tmp_path: Path, num_images: int
) -> None:
    engine = alone()[0]
    stop_at(engine, [])
    labeler = Labeler(RegionGPTDescriber(engine), None, max_regions_per_batch=12)
    outcomes = labeler.label(shard_of(tmp_path, num_images), Store.open(tmp_path)).outcomes
    assert [outcome.region.key for outcome in outcomes] == [f"{i}{n}" for i in range(num_images) for n in range(3)]
    assert all(isinstance(outcome, Caption) for outcome in outcomes)
