"""Which pairs and expressions a run asks about: rows of files, found regions, chosen neighbours, laid upon shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from factories import image_record, region
from rlabel.errors import InputError
from rlabel.records import Expression, ImageRecord, Pair, Region, Shard
from rlabel.run.pairing import nearest_pairs
from rlabel.run.query_rows import NearestPairs, QueryFile, QueryKind, with_queries

BOX = (2.0, 3.0, 6.0, 4.0)


def at(key: str, x: float, y: float = 0.0, **more: object) -> Region:
    return region(key, box_xywh=(x - 1, y - 1, 2.0, 2.0), **more)


def record(*regions: Region, image_id: int = 1) -> ImageRecord:
    return image_record(*regions, id=image_id)


def opened(folder: Path, rows: Any, kind: QueryKind = "pair", **more: bool) -> QueryFile:
    path = folder / f"{kind}s.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return QueryFile(str(path), kind, **{"include_crowds": True, **more})


# ---- rows of files


def test_rows_name_regions_by_id_and_stay_in_their_order(tmp_path: Path) -> None:
    image = record(at("5", 0), at("7", 1), region("12", region_id="x12", box_xywh=BOX))
    rows = [
        {"image_id": 1, "subject": 7, "object": 5},
        {"image_id": 2},
        {"image_id": 1.0, "subject": "x12", "object": "7"},
    ]
    assert opened(tmp_path, rows).of_image(image) == (
        Pair(key="row 1", image_id=1, subject="7", object="5"),
        Pair(key="row 3", image_id=1.0, subject="12", object="7"),
    )


WRONG_PAIRS = [
    ({"subject": 5, "object": 99}, "object: no region of the image has the id 99"),
    ({"subject": 5}, "object: expected a region's id, got null"),
    ({"subject": True, "object": 5}, "subject: expected a region's id, got true"),
    ({"subject": [5], "object": 5}, "subject: expected a region's id"),
    ({"subject": 5, "object": "5"}, "a relation needs two"),
    ({"subject": 3, "object": 5}, "2 regions have the id 3 (3, 3#2)"),
]


@pytest.mark.parametrize(("row", "words"), WRONG_PAIRS)
def test_a_pair_that_cannot_be_asked_says_why(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    twins = (at("3", 0), Region(key="3#2", region_id=3, annotation_id=None, box_xywh=BOX))
    (found,) = opened(tmp_path, [{"image_id": 1, **row}]).of_image(record(at("5", 0), *twins))
    assert found.problem is not None and words in found.problem


def test_regions_with_one_id_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    twins = (Region(key="3", region_id=3, annotation_id=None), Region(key="3#2", region_id=3, annotation_id=None))
    (found,) = opened(tmp_path, [{"image_id": 1, "subject": "3#2", "object": 5}]).of_image(record(at("5", 0), *twins))
    assert found == Pair(key="row 1", image_id=1, subject="3#2", object="5")


def test_expressions_choose_among_all_regions_or_those_they_list(tmp_path: Path) -> None:
    image = record(at("1", 0), at("2", 0, is_crowd=True), region("3", problem="an orphan"), at("4", 9))
    rows = [
        {"image_id": 1, "expression": " the cat "},
        {"image_id": 1, "expression": "the cat", "id": "q", "region_ids": [4, "1", 4]},
    ]
    first, second = opened(tmp_path, rows, "expression").of_image(image)
    assert isinstance(first, Expression) and isinstance(second, Expression)
    assert (first.text, first.candidates, first.expression_id) == ("the cat", ("1", "2", "4"), None)
    assert (second.candidates, second.expression_id, second.problem) == (("4", "1"), "q", None)
    (without,) = opened(tmp_path, rows[:1], "expression", include_crowds=False).of_image(image)
    assert isinstance(without, Expression) and without.candidates == ("1", "4")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"expression": "  "}, "expected an expression in words"),
        ({"expression": 3}, "expected an expression in words, got 3"),
        ({"expression": "x" * 3000}, "longer than 2000"),
        ({"expression": "cat", "region_ids": []}, "at least one id, got []"),
        ({"expression": "cat", "region_ids": [5, 6]}, "region_ids: no region of the image has the id 6"),
    ],
)
def test_an_expression_that_cannot_be_asked_says_why(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    (found,) = opened(tmp_path, [{"image_id": 1, **row}], "expression").of_image(record(at("5", 0)))
    assert found.problem is not None and words in found.problem
    assert (
        not opened(tmp_path, [{"image_id": 1, "expression": "cat"}], "expression")
        .of_image(record(at("5", 0)))[0]
        .problem
    )


def test_rows_of_no_image_are_strays_with_their_row(tmp_path: Path) -> None:
    rows = [
        {"image_id": 9, "subject": 1, "object": 2},
        "what",
        {"image_id": 1, "subject": 1, "object": 2},
        {"subject": 1},
    ]
    queries = opened(tmp_path, rows)
    assert len(queries.of_image(record(at("1", 0), at("2", 0)))) == 1
    assert [(query.key, query.problem) for query in queries.strays()] == [
        ("row 1", "its image_id 9 is in no image row"),
        ("row 2", "the row is not a JSON object"),
        ("row 4", "the row has no usable image_id"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [("[]", "expected at least one pair"), ('{"a": 1}', "expected a JSON list"), ("[1", "line 1")],
)
def test_a_file_that_is_no_list_of_rows_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(InputError, match="--pairs .*p.json") as caught:
        QueryFile(str(path), "pair", include_crowds=True)
    assert words in str(caught.value)
    with pytest.raises(InputError, match="there is no such file"):
        QueryFile(str(tmp_path / "gone.json"), "pair", include_crowds=True)


def test_the_digest_is_that_of_the_rows_not_of_their_spelling(tmp_path: Path) -> None:
    row = {"image_id": 1, "subject": 1, "object": 2}
    first = opened(tmp_path, [row]).sha256
    assert opened(tmp_path, [dict(reversed(row.items()))]).sha256 == first
    assert opened(tmp_path, [{**row, "object": 3}]).sha256 != first


# ---- upon shards


def test_shards_carry_their_queries_the_same_at_every_call_and_strays_come_last(tmp_path: Path) -> None:
    images = [record(at("1", 0), at("2", 3), image_id=1), record(at("3", 0), image_id=2)]
    plain = [Shard(index=i, content_sha256=str(i) * 64, images=(image,)) for i, image in enumerate(images)]
    plain.append(Shard(index=2, content_sha256="2" * 64, images=(), stray_regions=(region("9"),)))
    rows = [{"image_id": 1, "subject": 1, "object": 2}] + [{"image_id": 8}] * 3
    queries = opened(tmp_path, rows)
    shards = list(with_queries(plain, queries, 2, with_strays=True))
    assert [shard.index for shard in shards] == [0, 1, 2, 3]
    assert [shard.keys for shard in shards] == [["row 1"], [], ["row 2", "row 3"], ["row 4"]]
    assert list(with_queries(plain, queries, 2, with_strays=True)) == shards
    assert len(list(with_queries(plain, queries, 2, with_strays=False))) == 2
    other = list(with_queries(plain, opened(tmp_path, [{**rows[0], "object": 1}]), 2, with_strays=False))
    assert other[0].content_sha256 != shards[0].content_sha256 and other[1].content_sha256 == shards[1].content_sha256


def test_chosen_pairs_leave_out_what_cannot_be_asked_about() -> None:
    image = record(at("1", 0), region("2", problem="twins"), at("3", 5, is_crowd=True), at("4", 9))
    chosen = NearestPairs(20, include_crowds=False).of_image(image)
    assert [(pair.subject, pair.object, pair.key) for pair in chosen if isinstance(pair, Pair)] == [
        ("1", "4", '["1", "4"]')
    ]
    assert len(NearestPairs(20, include_crowds=True).of_image(image)) == 3
    assert NearestPairs(20, include_crowds=True).of_image(record(at("1", 0))) == ()


# ---- nearest neighbours


def test_each_region_comes_with_its_nearest_then_with_its_second() -> None:
    # On a line at 0, 1, 3, 7.
    regions = [at("1", 0), at("2", 1), at("3", 3), at("4", 7)]
    assert nearest_pairs(regions, 20) == [(0, 1), (2, 1), (3, 2), (0, 2), (3, 1), (0, 3)]
    assert nearest_pairs(regions, 2) == [(0, 1), (2, 1)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12), st.integers(1, 30))
def test_no_pair_is_there_twice_and_every_region_that_may_comes_in(places: list[tuple[int, int]], most: int) -> None:
    regions = [at(str(i), x, y) for i, (x, y) in enumerate(places)]
    pairs = nearest_pairs(regions, most)
    count = len(regions)
    assert len(pairs) == min(most, count * (count - 1) // 2) == len({frozenset(pair) for pair in pairs})
    assert all(one != other for one, other in pairs) and pairs == nearest_pairs(regions, most)
    if most >= count > 1:
        assert {i for pair in pairs for i in pair} == set(range(count))
        distance = [
            min(abs(complex(*places[i]) - complex(*places[j])) for j in range(count) if j != i) for i in range(count)
        ]
        for i in range(count):
            own = min(abs(complex(*places[a]) - complex(*places[b])) for a, b in pairs if i in (a, b))
            assert own == pytest.approx(distance[i])


def test_a_region_without_a_box_stands_where_its_segmentation_is() -> None:
    mask = np.zeros((40, 60), np.uint8, order="F")
    mask[10:20, 50:55] = 1
    encoded = coco.encode(mask)
    rle = {"size": [40, 60], "counts": encoded["counts"].decode()}
    regions = [
        region("1", segmentation=rle),
        region("2", segmentation=[[0, 0, 4, 0, 4, 4], [8, 8, 9, 9, 8, 9]]),
        at("3", 51, 14),
        region("4", segmentation=[["x", 1]]),
        region("5", box_xywh=(0.0, 0.0, 0.0, 5.0)),
    ]
    assert nearest_pairs(regions, 1) == [(0, 2)]
    assert {i for pair in nearest_pairs(regions, 20) for i in pair} == {0, 1, 2}


@given(st.lists(st.booleans(), min_size=12, max_size=12))
def test_boxes_of_runs_are_those_of_pycocotools(bits: list[bool]) -> None:
    from rlabel.run.pairing import _rle_box

    mask = np.asfortranarray(np.array(bits, np.uint8).reshape(3, 4))
    encoded = coco.encode(mask)
    box = _rle_box({"size": [3, 4], "counts": encoded["counts"].decode()})
    assert (box is None) == (not any(bits))
    if box is not None:
        assert list(box) == coco.toBbox(encoded).tolist()
