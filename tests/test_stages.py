"""Shards that overlap in one labeler: prepared before, snapped behind, and one at a time at the model; the answers are those of one after the other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from factories import image_record, region, save_picture
from label_factories import FakeDescriber
from rlabel.errors import StorageError
from rlabel.labeling.labeler import Labeler
from rlabel.records import Abstention, Label, Shard
from rlabel.storage import Store
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, Vocabulary

WAIT_S = 20
VOCABULARY = Vocabulary(name="one", categories=(Category(category_id=3, name="cat"),), sha256="0" * 64)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder: Path = tmp_path_factory.mktemp("pictures")
    save_picture(folder / "a.png")
    return Store.open(folder)


def shard(index: int, *counts: int) -> Shard:
    """A shard of images with so many boxes each; keys are three digits: shard (from 1), image, region."""
    images = tuple(
        image_record(
            *(region(f"{index + 1}{place}{n}", box_xywh=(2.0, 3.0, 6.0, 4.0)) for n in range(count)),
            id=place,
            file_name="a.png",
        )
        for place, count in enumerate(counts)
    )
    return Shard(index=index, content_sha256="0" * 64, images=images)


def test_the_next_shard_is_prepared_while_the_model_answers_this_one(pictures: Store) -> None:
    prepared, seen = threading.Event(), []

    class Waits(FakeDescriber):
        def prepare(self, image, regions):
            if regions[0].region.key.startswith("2"):
                prepared.set()
            return super().prepare(image, regions)

        def describe(self, inputs):
            seen.append(prepared.wait(WAIT_S))
            return super().describe(inputs)

    labeler = Labeler(Waits(), Snapper(VOCABULARY, None))
    with labeler.begin(shard(0, 1), pictures) as first, labeler.begin(shard(1, 1), pictures) as second:
        first.answer()
        second.answer()
        assert [len(work.result().outcomes) for work in (first, second)] == [1, 1]
    assert seen == [True, True]


def test_a_batch_is_snapped_while_the_model_answers_the_next_shard(pictures: Store) -> None:
    at_the_second, seen = threading.Event(), []

    class Tells(FakeDescriber):
        def describe(self, inputs):
            if len(self.calls) == 1:
                at_the_second.set()
            return super().describe(inputs)

    class Waits(Snapper):
        def snap(self, texts):
            seen.append(at_the_second.wait(WAIT_S))
            return super().snap(texts)

    labeler = Labeler(Tells(), Waits(VOCABULARY, None))
    with labeler.begin(shard(0, 1), pictures) as first, labeler.begin(shard(1, 1), pictures) as second:
        first.answer()  # which does not wait for its snapping
        second.answer()
        assert isinstance(first.result().outcomes[0], Label)
    assert seen[0]


def test_shards_of_two_threads_meet_the_model_one_at_a_time_and_give_what_one_thread_gives(pictures: Store) -> None:
    shards = [shard(index, 3, 1, 5, 0, 2) for index in range(8)]
    inside: list[str] = []

    class Alone(FakeDescriber):
        def describe(self, inputs):
            inside.append("in")
            assert len(inside) == 1, "two batches at the model at once"
            answers = super().describe(inputs)
            inside.clear()
            return answers

    says = {f"{index + 1}21": "zzyzx" for index in range(8)}
    describer = Alone(says)
    labeler = Labeler(describer, Snapper(VOCABULARY, None), max_regions_per_batch=4, num_prepare=3)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda one: labeler.label(one, pictures), shards))
    one_by_one = Labeler(FakeDescriber(says), Snapper(VOCABULARY, None), max_regions_per_batch=4)
    assert together == [one_by_one.label(one, pictures) for one in shards]
    assert sum(isinstance(outcome, Abstention) for result in together for outcome in result.outcomes) == 8
    # A shard's batches are not mixed with another's.
    order = [keys[0][0] for keys in describer.calls]
    assert len(order) == 8 * 3 and all(len(set(order[start : start + 3])) == 1 for start in range(0, 24, 3))


def test_a_shard_that_cannot_be_read_leaves_the_model_to_the_others(monkeypatch, pictures: Store) -> None:
    import rlabel.labeling.labeler as module

    real = module.prepare_image

    def prepare(store, record, *args, **more):
        if record.regions[0].key.startswith("1"):
            raise StorageError("s3: no connection")
        return real(store, record, *args, **more)

    monkeypatch.setattr(module, "prepare_image", prepare)
    labeler = Labeler(FakeDescriber(), Snapper(VOCABULARY, None))
    with labeler.begin(shard(0, 1, 1), pictures) as first, labeler.begin(shard(1, 2), pictures) as second:
        with pytest.raises(StorageError):
            first.answer()
        second.answer()
        assert len(second.result().outcomes) == 2


def test_an_image_with_more_regions_than_a_batch_comes_in_parts_and_in_order(pictures: Store) -> None:
    describer = FakeDescriber()
    result = Labeler(describer, Snapper(VOCABULARY, None), max_regions_per_batch=2).label(shard(0, 5, 1), pictures)
    assert [outcome.region.key for outcome in result.outcomes] == [f"10{n}" for n in range(5)] + ["110"]
    assert describer.calls == [["100", "101"], ["102", "103"], ["104", "110"]]
