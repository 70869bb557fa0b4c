"""The plan: every image and every region in exactly one shard, and always the same shards."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlabel.corpus.coco import read_corpus
from rlabel.corpus.rows import region_content
from rlabel.corpus.sharding import content_sha256, plan_contents, plan_shards
from rlabel.errors import UsageError

from factories import annotation, coco_file, image_row  # isort: skip


@given(
    regions_of=st.lists(st.integers(0, 6), max_size=12),
    num_strays=st.integers(0, 7),
    images_per_shard=st.integers(1, 5),
    max_regions_per_shard=st.integers(1, 8),
)
@settings(deadline=None, max_examples=50)
def test_shards_part_the_corpus_in_order(regions_of, num_strays, images_per_shard, max_regions_per_shard):
    images = [image_row(number) for number in range(len(regions_of))]
    image_ids = [number for number, count in enumerate(regions_of) for _ in range(count)] + [-1] * num_strays
    rows = [annotation(1000 + index, image_id) for index, image_id in enumerate(image_ids)]
    with (
        tempfile.TemporaryDirectory() as folder,
        read_corpus(coco_file(Path(folder) / "c.json", images, rows)) as corpus,
    ):
        shards = list(plan_shards(corpus, images_per_shard, max_regions_per_shard))
        assert list(plan_shards(corpus, images_per_shard, max_regions_per_shard)) == shards
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert [image.row["id"] for shard in shards for image in shard.images] == list(range(len(images)))
    keys = [region.key for shard in shards for image in shard.images for region in image.regions]
    strays = [region.key for shard in shards for region in shard.stray_regions]
    assert keys + strays == [str(1000 + index) for index in range(len(rows))]
    assert sum(shard.num_regions for shard in shards) == len(rows)
    for shard in shards:
        assert shard.num_regions <= max_regions_per_shard or len(shard.images) == 1
        assert len(shard.images) <= images_per_shard
        assert bool(shard.images) != bool(shard.stray_regions)
    is_stray = [bool(shard.stray_regions) for shard in shards]
    assert is_stray == sorted(is_stray)


def test_shards_are_as_full_as_the_bounds_allow(tmp_path):
    images = [image_row(number) for number in range(5)]
    rows = [annotation(index, image_id) for index, image_id in enumerate([0, 0, 1, 2, 2, 2, 3], start=1)]
    with read_corpus(coco_file(tmp_path / "c.json", images, rows)) as corpus:
        plan = [[image.row["id"] for image in shard.images] for shard in plan_shards(corpus, 3, 3)]
        assert plan == [[0, 1], [2], [3, 4]]
        assert [len(shard.images) for shard in plan_shards(corpus, 2, 100)] == [2, 2, 1]


def test_a_limit_plans_the_first_images_and_no_strays(tmp_path):
    images = [image_row(number) for number in range(5)]
    with read_corpus(coco_file(tmp_path / "c.json", images, [annotation(1, 0), annotation(2, 99)])) as corpus:
        plan = [[image.row["id"] for image in shard.images] for shard in plan_shards(corpus, 2, 10, limit=3)]
        assert plan == [[0, 1], [2]]
        assert sum(shard.num_regions for shard in plan_shards(corpus, 2, 10)) == 2


def test_the_content_hash_sees_content_and_nothing_else(tmp_path):
    rows = [annotation(1), annotation(2)]
    one = coco_file(tmp_path / "a.json", [image_row()], rows)
    other = tmp_path / "b.json"
    swapped = [{key: row[key] for key in reversed(row)} for row in rows]
    other.write_text(json.dumps({"annotations": swapped, "images": [image_row()]}, indent=1))

    def plan(path: Path) -> list:
        with read_corpus(path) as corpus:
            return list(plan_shards(corpus, 10, 10))

    (shard,) = plan(one)
    assert plan(other)[0].content_sha256 == shard.content_sha256
    (image,) = shard.images
    first, second = image.regions
    for regions in (
        (second, first),
        (first,),
        (replace(first, box_xywh=(2, 3, 6, 4.5)), second),
        (replace(first, is_crowd=True), second),
    ):
        assert content_sha256((replace(image, regions=regions),), ()) != shard.content_sha256
    assert content_sha256((replace(image, row={**image.row, "x": 1}),), ()) != shard.content_sha256
    assert content_sha256((), image.regions) != content_sha256((replace(image, regions=()),), image.regions)


ODD = [
    {}, {"area": 1e20}, {"area": "1"}, {"bbox": None}, {"bbox": [1, 2]}, {"bbox": [1, 2.5, 3e-07, 4]}, {"iscrowd": 1}, {"iscrowd": True},
    {"iscrowd": 2}, {"segmentation": None}, {"segmentation": []}, {"segmentation": [[1, 2.5, 3, 4, 5, 6], [0, 0, 1, 1, 1, 0]]},
    {"segmentation": {"size": [4, 5], "counts": '0\\"\u00e9'}}, {"segmentation": {"size": [4, 5], "counts": [1, 2]}}, {"segmentation": {}},
    {"segmentation": [], "zz": 1}, {"segmentation": "x"}, {"extra": {"a": 1}}, {"id": 0}, {"id": "7"}, {"id": 2**70}, {"id": -1}, {"id": None},
    {"id": 5.0}, {"id": True}, {"image_id": "one"}, {"image_id": 99}, {"image_id": 1.0}, {"category_id": 3, "caption": "c", "score": 1},
]  # fmt: skip


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(ODD), st.sampled_from(ODD), st.integers(1, 9), st.integers(1, 4)), max_size=14
    ),
    image_ids=st.lists(st.sampled_from([1, 2, 3, 4, "one", "\u00e9"]), max_size=6),
    limit=st.none() | st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_a_plan_without_its_shards_says_of_them_what_they_say(rows, image_ids, limit):
    annotations = [{**annotation(identity, image_id), **one, **other} for one, other, identity, image_id in rows]
    with (
        tempfile.TemporaryDirectory() as folder,
        read_corpus(coco_file(Path(folder) / "c.json", [image_row(one) for one in image_ids], annotations)) as corpus,
    ):
        shards = [(one.content_sha256, one.num_images, one.num_regions) for one in plan_shards(corpus, 2, 3, limit)]
        assert list(plan_contents(corpus, 2, 3, limit)) == shards


@pytest.mark.parametrize("bounds", [(0, 1, None), (1, 0, None), (1, 1, -1)])
def test_bounds_below_one_are_refused_at_the_call(tmp_path, bounds):
    with read_corpus(coco_file(tmp_path / "c.json", [], [])) as corpus:
        for plan in (plan_shards, plan_contents):
            with pytest.raises(UsageError, match="at least"):
                plan(corpus, *bounds)
        assert list(plan_shards(corpus, 1, 1)) == []


def test_a_region_in_the_place_of_an_image_is_another_content(tmp_path):
    rows = [annotation(7, 1)]
    with read_corpus(coco_file(tmp_path / "c.json", [image_row(1), image_row(2)], rows)) as corpus:
        (shard,) = plan_shards(corpus, 2, 10)
    first, second = shard.images
    twin = replace(second, row=json.loads(region_content(first.regions[0])))
    assert content_sha256((first,), ()) != content_sha256((replace(first, regions=()), twin), ())
    assert content_sha256((first,), ()) != content_sha256((replace(first, regions=()),), first.regions)
