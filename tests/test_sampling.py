"""How often images come: caps of several datasets, weights, balance, and epochs that are the same for everybody."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlabel.corpus.labeled import LabeledImage, LabeledRegion, Relation
from rlabel.errors import InputError
from rlabel.records import ImageRecord, Region
from rlabel.training.corpus import Part, TrainCorpus, pack, union
from rlabel.training.sampling import balance_factors, cap_per_category, check_stage, epoch_order, for_stage
from train_factories import stage

NAMES = {1: "cat", 2: "dog", 3: "teapot"}


def part(name: str, images: Sequence[Sequence[int | None]], **more: Any) -> Part:
    """Return a dataset in which image i has regions of the given categories; None: a region of which only a caption is known."""
    made = []
    for i, ids in enumerate(images):
        regions = tuple(Region(key=f"{name} {i} {j}", region_id=None, annotation_id=None) for j in range(len(ids)))
        labels = tuple(
            LabeledRegion(region=region, category_id=id_, caption=None if id_ else "something")
            for region, id_ in zip(regions, ids, strict=True)
        )
        record = ImageRecord(row={}, file_name=f"{i}", width_px=1, height_px=1, regions=regions)
        pairs = zip(regions, regions[1:], strict=False)
        relations = tuple(Relation(subject_key=a.key, predicate="by", object_key=b.key) for a, b in pairs)
        made.append(LabeledImage(record=record, labels=labels, relations=relations))
    return replace(pack(made, NAMES, name=name, where=f"{name}.json"), **more)


def singles(*counts: int) -> list[list[int]]:
    """Return images with one region each: so many of category 1, so many of category 2, ..."""
    return [[id_] for id_, count in enumerate(counts, start=1) for _ in range(count)]


def counted(corpus: TrainCorpus) -> Counter[tuple[str, int | None]]:
    labels = (label for image in corpus.images for label in image.labels)
    return Counter((label.region.key.split()[0], label.category_id) for label in labels)


def drawn(corpus: TrainCorpus, epoch: int = 0, seed: int = 4) -> Counter[str]:
    """Return how often an epoch draws images by their first region's dataset and category."""
    order, _ = epoch_order(corpus, seed, epoch)
    labels = [corpus.images[int(i)].labels[0] for i in order]
    return Counter(f"{label.region.key.split()[0]} {label.category_id}" for label in labels)


# ---- caps


def test_a_datasets_own_cap_wins_over_the_stages_and_all_means_none() -> None:
    corpus = union(
        [
            part("a", [[1, 1, 2], [1]]),
            part("b", [[1, 1, 1]], per_category=2),
            part("c", [[1, 2, 2], [2, 2]], per_category="all"),
        ]
    )
    capped = counted(cap_per_category(corpus, 1, 0))
    assert capped == {("a", 1): 1, ("a", 2): 1, ("b", 1): 2, ("c", 1): 1, ("c", 2): 4}
    assert counted(cap_per_category(corpus, None, 0)) == {**counted(corpus), ("b", 1): 2}


def test_regions_without_a_category_are_not_capped() -> None:
    corpus = union([part("a", [[None, 1, None], [1, None]])])
    assert counted(cap_per_category(corpus, 1, 0)) == {("a", None): 3, ("a", 1): 1}


def test_a_relation_goes_with_either_of_its_regions() -> None:
    corpus = cap_per_category(union([part("a", [[1, 1, 2, 3], [2, 3]])]), 1, 0)
    for image in corpus.images:
        keys = [label.region.key for label in image.labels]
        places = [int(key.split()[2]) for key in keys]
        neighbours = [(a, b) for a, b in zip(keys, keys[1:], strict=False) if int(b[-1]) - int(a[-1]) == 1]
        assert [(one.subject_key, one.object_key) for one in image.relations] == neighbours
        assert places == sorted(places)


def test_capping_one_dataset_chooses_the_same_whatever_comes_after_it() -> None:
    alone, second = part("a", [[1, 1, 1, 1, 2]] * 6), part("b", [[1, 2]])
    both = cap_per_category(union([alone, second]), 3, 8)
    keys = [label.region.key for image in both.images for label in image.labels]
    single = cap_per_category(union([alone]), 3, 8)
    assert [key for key in keys if key.startswith("a")] == [
        label.region.key for image in single.images for label in image.labels
    ]


# ---- union


def test_the_same_name_in_two_datasets_is_one_name() -> None:
    other = pack(part("b", [[5, 6]]).images, {5: "teapot", 6: "kettle"}, name="b")
    corpus = union([part("a", [[1, 3]]), other])
    assert corpus.all_names == ["cat", "dog", "teapot", "kettle"]
    assert [corpus.all_names[i] for i in corpus.name_index] == ["cat", "teapot", "teapot", "kettle"]
    assert [corpus.part_of(i).name for i in range(2)] == ["a", "b"]


# ---- epochs


@given(
    st.lists(st.floats(0.01, 7), min_size=1, max_size=30),
    st.integers(0, 2**31 - 1),
    st.integers(0, 50),
)
def test_an_image_comes_as_often_as_asked_rounded_up_or_down(repeats: list[float], seed: int, epoch: int) -> None:
    corpus = replace(union([part("a", [[1]] * len(repeats))]), repeats=np.array(repeats))
    order, again = epoch_order(corpus, seed, epoch)
    size = max(1, round(sum(repeats)))
    assert corpus.epoch_size == len(order) == size
    counts = np.bincount(order, minlength=len(repeats))
    for count, wanted in zip(counts, np.array(repeats) * size / sum(repeats), strict=True):
        assert math.floor(wanted - 1e-6) <= count <= math.ceil(wanted + 1e-6)
    seen: Counter[int] = Counter()
    for image, before in zip(order.tolist(), again.tolist(), strict=True):
        assert seen[image] == before
        seen[image] += 1
    assert [array.tolist() for array in epoch_order(corpus, seed, epoch)] == [order.tolist(), again.tolist()]


def test_what_is_left_of_a_whole_number_comes_by_the_epochs_luck() -> None:
    corpus = replace(union([part("a", [[1]] * 4)]), repeats=np.array([0.25, 0.5, 0.5, 1.75]))
    counts = np.zeros(4)
    for epoch in range(2000):
        counts += np.bincount(epoch_order(corpus, 0, epoch)[0], minlength=4)
    # Four standard deviations of a fair draw: 4 * sqrt(0.25 / 2000) = 0.045.
    assert np.abs(counts / 2000 - [0.25, 0.5, 0.5, 1.75]).max() < 0.045


def test_epochs_and_seeds_have_orders_of_their_own_and_without_weights_each_image_once() -> None:
    corpus = union([part("a", [[1]] * 20)])
    orders = {tuple(epoch_order(corpus, seed, epoch)[0]) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(20)) for order in orders)


# ---- weights


def test_weights_say_how_often_an_image_of_a_dataset_comes() -> None:
    parts = [part("a", singles(10), weight=0.5), part("b", singles(4), weight=3), part("c", singles(6), weight=0)]
    sampled = for_stage(union(parts), stage(), 0)
    assert drawn(sampled) == {"a 1": 5, "b 1": 12}
    assert sampled.num_regions == 14
    assert len({tuple(sorted(epoch_order(sampled, 0, epoch)[0])) for epoch in range(4)}) > 1


def test_a_stages_weights_win_over_the_mixtures() -> None:
    parts = [part("a", singles(10), weight=0.5), part("b", singles(4), weight=3)]
    sampled = for_stage(union(parts), stage(weights={"a": 1, "b": 0}), 0)
    assert drawn(sampled) == {"a 1": 10}
    assert sampled.repeats is None


@pytest.mark.parametrize(
    ("of_stage", "told"),
    [
        ({"weights": {"z": 1}}, r"stage align, weights: expected names of the datasets \(a, b\), got 'z'"),
        (
            {"weights": {"a": 0, "b": 0}},
            r"stage align, weights: expected one above 0, got 0 for every dataset \(a, b\)",
        ),
        (
            {"objective": "instruct", "tasks": {"relate": 1, "caption": 1}},
            r"^b.json: .*the tasks of recipe, stage instruct \(relate, caption\), got nothing; there is something for "
            r"classify, classify_all\.",
        ),
    ],
)
def test_a_stage_that_cannot_draw_is_refused(of_stage: dict[str, Any], told: str) -> None:
    corpus = union([part("a", [[1, 2]]), part("b", [[1]])])
    with pytest.raises(InputError, match=told):
        check_stage(corpus, stage(of_stage.pop("objective", "align"), **of_stage))


def test_tasks_of_a_dataset_that_it_cannot_give_are_refused_by_its_name() -> None:
    corpus = union([part("a", [[1, 2]]), part("b", [[1]], tasks={"place": 1.0})])
    with pytest.raises(InputError, match="^b.json: .*tasks of dataset b .place., got nothing"):
        check_stage(corpus, stage("instruct"))
    check_stage(corpus, stage("align"))
    check_stage(corpus, stage("instruct", weights={"b": 0}))


# ---- balance


def test_at_balance_1_categories_come_equally_often_and_at_0_images_do() -> None:
    corpus = union([part("a", singles(89, 10, 1))])
    even = drawn(for_stage(corpus, stage(balance=1.0), 0))
    assert sorted(even.values()) == [33, 33, 34]
    assert drawn(for_stage(corpus, stage(balance=0.0), 0)) == {"a 1": 89, "a 2": 10, "a 3": 1}


def test_balance_of_a_half_is_lvis_repeat_factor() -> None:
    corpus = union([part("a", singles(100, 25))])
    factors = balance_factors(corpus, np.ones(125), 0.5)
    # sqrt(t / f) with t = 100: 1 for the frequent category, 2 for the other; scaled so that their mean is 1.
    assert factors[100] / factors[0] == pytest.approx(2)
    assert factors.sum() == pytest.approx(125)
    # By hand: 100 images at 1 and 25 at 2 make 150 draws, of which the rarer has a third.
    assert abs(drawn(for_stage(corpus, stage(balance=0.5), 0))["a 2"] - 125 / 3) < 1


def test_an_images_rarest_category_decides_and_each_counts_once_an_image() -> None:
    corpus = union([part("a", [[1, 1, 1], [1], [1, 2], [1]])])
    factors = balance_factors(corpus, np.ones(4), 1.0)
    # Category 1 is in 4 images, category 2 in 1.
    assert factors.tolist() == pytest.approx([1 * 4 / 7, 1 * 4 / 7, 4 * 4 / 7, 1 * 4 / 7])


def test_balance_goes_by_what_the_cap_leaves_and_by_names_over_all_datasets() -> None:
    corpus = union([part("a", singles(30, 2), per_category=3), part("b", singles(1), weight=1)])
    sampled = for_stage(corpus, stage(balance=1.0), 0)
    assert sampled.repeats is not None
    # After the cap: 4 images of cat (one in b), 2 of dog. Draws of a: 3 at 1/4 to 2 at 1/2, so 3/7 to 4/7 of 5.
    assert sampled.repeats.tolist() == pytest.approx([5 / 7] * 3 + [10 / 7] * 2 + [1.0])


def test_images_without_a_name_come_as_often_as_the_others_on_average() -> None:
    corpus = union([part("a", [[1], [1], [2], [None], [None]])])
    factors = balance_factors(corpus, np.ones(5), 1.0)
    assert factors.tolist() == pytest.approx([0.75, 0.75, 1.5, 1.0, 1.0])
    unnamed = union([part("a", [[None]] * 3)])
    assert for_stage(unnamed, stage(balance=1.0), 0).repeats is None


def test_an_epoch_is_as_long_with_balance_as_without() -> None:
    random = np.random.default_rng(0)
    images = [[int(id_) for id_ in random.choice([1, 2, 3], 2, p=[0.8, 0.15, 0.05])] for _ in range(50)]
    for balance in (0.0, 0.3, 1.0):
        corpus = for_stage(union([part("a", images), part("b", images, weight=0.5)]), stage(balance=balance), 0)
        order, _ = epoch_order(corpus, 0, 0)
        of_a = sum(corpus.part_of(int(i)).name == "a" for i in order)
        assert len(order) == 75 and abs(of_a - 50) <= 1
