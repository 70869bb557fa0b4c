"""Rows of labels.json made by moving the values of a line: the bytes that the records give, or none; nothing forged gets through."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlabel.errors import RunError
from rlabel.records import (
    Caption,
    Evidence,
    Expression,
    JsonObject,
    JsonValue,
    LikelyCategory,
    Outcome,
    Pair,
    Place,
    QueryFailure,
    Referral,
    Relation,
    ShardResult,
)
from rlabel.run import merge_lines
from rlabel.run.canonical import canonical_bytes
from rlabel.run.coco import abstention_to_line, caption_to_annotation, label_to_annotation
from rlabel.run.merge_lines import abstention_row, caption_row, label_row
from rlabel.run.records_io import Footer, close_body, line_to_outcome, outcome_to_line
from run_factories import (
    abstention,
    begin_run,
    box_polygon,
    box_rle,
    committed_run,
    everything,
    failure,
    image_row,
    label,
    region,
    shard_result,
)  # fmt: skip

FILES = ("labels.json", "abstained.jsonl", "failures.jsonl", "labels.bbox.json", "labels.segm.json")
# Of the files that `of_every_kind` came to before rows were made of lines: merged through the records, one and all.
BEFORE = {
    "labels.json": "8c0c82e66668a4a079fc556e6b5a53d9333af0debb9b2164ef2ab09334d3203b",
    "abstained.jsonl": "a26b0ad3c7573f376de7bf10c760e027f12e719cb62fa023b795d98ba75f2a6a",
    "failures.jsonl": "d05b59ec06757f0a15dfcec671f0890d993f5017289dd576e12b57259a7e4684",
    "labels.bbox.json": "337e2e2b00280795bf31a2ceb7823c7c522a581158f0fc6edee289b8cd0c4fdf",
    "labels.segm.json": "dd25e58b5eaaaf4c049b2a01029457c54571a4f3b241b69f539de3551acc4821",
}
COUNTS = {"size": [48, 64], "counts": [101, 5, 48 * 64 - 106]}
EXTRAS: list[JsonObject] = [
    {},
    {"predicted_iou": 0.5, "crop": [1, 2.5, {"b": None, "a": "\u00fc"}], "a": 1e-07, "zz": 1e20, "Z": True},
    {"attributes": {"occluded": True, "text": "theirs", "label": "x", "agreement": 1, "zz": "\u2028"}, "\u00e9": "\\"},
    {"caption": "c", "label": "l", "id": 5, "bbox": "none", "region_id": "other", "attributes": {}},
    {"attributes": "no object", "big": 10**30, "nothing": [], "quote": '"}'},
]
TEXTS = [
    "a cat",
    "",
    '"quoted" \\ \b\f\n\r\t \x00\x1f\x7f',
    "\u0642\u0637\u0629 \U0001f408 \u2028",
    '},"text":"',
    "\\ud800",
]


def odd_labels() -> list[Outcome]:
    """Labels, captions and abstentions that differ in all that decides a row."""
    outcomes: list[Outcome] = []
    shapes: list[JsonValue] = [
        None,
        [],
        box_polygon(4, 6, 20, 10),
        [[0.5, 1e-05, 9, 0, 9, 9], [1, 2, 3, 4, 5, 6]],
        box_rle(1, 2, 3, 4),
        COUNTS,
    ]  # type: ignore[list-item]
    candidates = tuple(LikelyCategory(category_id=one, logprob=-0.3 * one) for one in (2, 1, 7))
    evidences = [
        Evidence(),
        Evidence(num_tokens=3, mean_logprob=-0.25, min_logprob=-1000.0, agreement=0.75, candidates=candidates[:1]),
        Evidence(num_tokens=1, mean_logprob=-1e-06, min_logprob=-1e-06, candidates=candidates),
    ]
    for number in range(60):
        dice = random.Random(number)
        shape = shapes[number % 6]
        of = region(
            f"{number} \u00fc",
            None if number % 3 else number + 1,
            region_id=dice.choice([None, number, f'"{number}"', -5, 10**25]),
            segmentation=dice.choice([shape, box_rle(1, 2, 3, 4)]),
            box_xywh=dice.choice([None, (4.0, 6, 20.0, 10.5)]),
            is_crowd=number % 7 == 0,
            extra=EXTRAS[number % 5],
            problem=dice.choice([None, 'the id "9" is used twice']),
        )
        made = label(of, dice.choice([1, "one", "\u00fc"]), segmentation=shape, text=TEXTS[number % 6])
        made = replace(
            made,
            evidence=dice.choice(evidences),
            raw_score=dice.choice([None, 0.125]),
            box_xywh=dice.choice([made.box_xywh, (0.1, 1e-05, 1e16, 3.0)]),
            area_px=dice.choice([12.0, 0.1 + 0.2, 1e22]),
            score=dice.choice([0.0, 1e-06, 0.5, 1.0]),
        )
        outcomes.append(made)
        abstained = abstention(replace(of, key=f"a{number}"), made.image_id, text=TEXTS[number % 6])
        outcomes.append(replace(abstained, evidence=made.evidence, area_px=made.area_px, box_xywh=made.box_xywh))
        outcomes.append(
            Caption(
                region=replace(of, key=f"c{number}"), image_id=made.image_id, text=TEXTS[number % 6], score=made.score,
                box_xywh=made.box_xywh, area_px=made.area_px, segmentation=shape,
            )
        )  # fmt: skip
    return outcomes


def of_every_kind() -> list[ShardResult]:
    """Shards with every kind of record, image rows that share an id, and texts that have no UTF-8."""
    surrogate = label(region("s", None, extra={"x": "\ud800 \u00fc"}), text="\ud83d cat")
    place = Place(key="1", region_id=1, box_xywh=(1.0, 2.0, 3.0, 4.0), area_px=12.0)
    pair = Pair(key="row 1", image_id=1, subject="1", object="2")
    expression = Expression(key="row 2", image_id=1, expression_id=5, text="the cat", candidates=("1", "2"))
    asked: list[Outcome] = [
        Relation(pair=pair, image_id=1, predicate="on", score=0.5, subject=place, object=place),
        Referral(expression=expression, image_id=1, chosen=place, score=0.25, candidates=()),
        QueryFailure(query=replace(pair, key="row 3"), image_id=[1], kind="query", reason="unknown id"),
    ]
    others: list[Outcome] = [surrogate, abstention(region("t"), text="\udc00"), failure(region("f", 900), "\ud800")]
    images = (
        image_row(1),
        image_row("one", note="\u00fc \U0001f408"),
        image_row("\u00fc", file_name="\ud800.jpg"),
        image_row(1),
    )
    return [
        *(shard_result(index) for index in range(3)),
        everything(3),
        ShardResult(index=4, images=images, outcomes=tuple(odd_labels())),
        ShardResult(index=5, images=(image_row(2),), outcomes=(*asked, *others)),
        ShardResult(index=6, images=(), outcomes=()),
    ]


def moved(line: str) -> bytes | None:
    """The row of a line, whatever it is of."""
    names = {"1": '"1.jpg"'}
    try:
        made = label_row(line, 77, "abc") or caption_row(line, 77, "abc")
        row = made[0] if made else abstention_row(line, lambda image_id: names.get(image_id, "null"))
    except ValueError:
        return None
    return None if row is None else row.encode()


def by_record(line: str) -> bytes:
    outcome = line_to_outcome(line)
    if isinstance(outcome, Caption):
        return canonical_bytes(caption_to_annotation(outcome, outcome.region.annotation_id or 77, "abc"))
    if not hasattr(outcome, "category_id"):
        return canonical_bytes(abstention_to_line(outcome, "1.jpg" if outcome.image_id == 1 else None))  # type: ignore[arg-type]
    return canonical_bytes(label_to_annotation(outcome, outcome.region.annotation_id or 77, "abc"))  # type: ignore[union-attr, arg-type]


def test_all_files_are_byte_for_byte_what_they_were(tmp_path: Path) -> None:
    committed_run(tmp_path, of_every_kind()).merge(results_files=True)
    assert {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in FILES} == BEFORE


def test_rows_are_the_bytes_that_the_records_give() -> None:
    lines = [outcome_to_line(outcome).decode() for outcome in odd_labels()]
    got = [moved(line) for line in lines]
    assert [row for row in got if row is not None] == [
        by_record(line) for line, row in zip(lines, got, strict=True) if row is not None
    ]
    # Numbers of 26 digits as ids, and keys of the input without a place in JSON, are left to the records; hardly more.
    left = [line for line, row in zip(lines, got, strict=True) if row is None]
    assert all("10000000000000000000000000" in line for line in left) and len(left) < len(lines) / 3


def test_a_label_without_an_id_takes_the_next_one() -> None:
    for own, expected in ((None, (77, False)), (5, (5, True))):
        made = label_row(outcome_to_line(label(region("a", own))).decode(), 77, "abc")
        assert made is not None and (json.loads(made[0])["id"], made[1]) == expected


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_line_with_something_else_in_it_is_left_to_the_records_or_means_the_same(data: st.DataObject) -> None:
    line = data.draw(st.sampled_from(LINES))
    start = data.draw(st.integers(0, len(line) - 1))
    stop = min(len(line), start + data.draw(st.integers(0, 6)))
    put = data.draw(st.sampled_from(PUTS))
    forged = line[:start] + put + line[stop:]
    row = moved(forged)
    if row is not None:
        assert json.loads(row) == json.loads(by_record(forged))


PUTS = [
    "", "0", "-", ".", "e", "1e999", "NaN", '"', "\\", "\\ud800", ",", "[", "]", "{}", "}", "null", "\x01", '"x":1,', "01",
]  # fmt: skip
LINES = [outcome_to_line(outcome).decode() for outcome in odd_labels()[:18]]


def test_image_rows_are_verbatim_and_what_is_no_row_raises() -> None:
    assert merge_lines.image_row(b'{"kind":"image","row":{"b":1.50,"a":{"x":"}}"}}}') == b'{"b":1.50,"a":{"x":"}}"}}'
    assert merge_lines.image_row(b'{"kind":"image","row":{"id":1},"x":{}}') == b'{"id":1}'
    for line in (
        b'{"kind":"image","row":{"id":NaN}}',
        b'{"kind":"image","row":{"id":1}',
        b'{"kind":"image","rows":{}}',
    ):
        with pytest.raises((ValueError, KeyError)):
            merge_lines.image_row(line)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"kind":"label"', '"kind":"lable"'),
        ('"area":200.0', '"area":NaN'),
        ('"area":200.0', '"area":200.'),
        ('"margin":0.25,', ""),
        ('"margin":0.25,', '"margin":0.25,"more":1,'),
        ('"bbox":[4.0,6.0,20.0,10.0],"category_id"', '"bbox":[4.0,6.0,20.0],"category_id"'),
        ('"extra":{}', '"extra":{"a":[}'),
        ('"extra":{}', '"extra":{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
        ('"text":"a cat"', '"text":"a \\x cat"'),
        ('{"kind":"image","row":{"file_name"', '{"kind":"image","rows":{"file_name"'),
        ('{"kind":"image","row":{"file_name"', '{"kind":"image","row":{file_name"'),
    ],
)  # fmt: skip
def test_a_forged_shard_with_the_right_hash_is_refused_and_named(tmp_path: Path, old: str, new: str) -> None:
    run = committed_run(tmp_path, [ShardResult(index=0, images=(image_row(1),), outcomes=(label(region("a")),))])
    body, footer = run.read_body(0)
    assert old in body.decode()
    path = tmp_path / "shards" / "000000.jsonl"
    path.write_bytes(close_body(body.decode().replace(old, new, 1).encode(), footer))
    with pytest.raises(RunError, match=r"000000.jsonl: damaged: a record cannot be read .*rlabel repair"):
        run.merge()
    assert not (tmp_path / "labels.json").exists() and not list(tmp_path.glob(".rlabel*"))


def test_a_shard_that_counts_what_it_does_not_hold_is_refused(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 1)
    footer = Footer(shard=0, fingerprint="", rows=0, sha256="", images=0, labels=2, abstentions=0)
    run.commit_body(outcome_to_line(label(region("a"))) + b"\n", footer)
    with pytest.raises(RunError, match=re.escape("its footer counts 0 images and 2 regions")):
        run.merge()


def test_images_that_change_between_the_two_looks_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = committed_run(tmp_path, [shard_result(0)])
    honest = run.read_ends(0)
    monkeypatch.setattr(type(run), "read_ends", lambda *_: (honest[0].replace(b"jpg", b"png"), honest[1]))
    with pytest.raises(RunError, match="changed while the run was merged"):
        run.merge()


def test_image_lines_longer_than_one_read_are_read_whole(tmp_path: Path) -> None:
    images = tuple(image_row(number, note="\u00fc" * 9_000) for number in range(9))
    run = committed_run(tmp_path, [ShardResult(index=0, images=images, outcomes=(failure(region("a")),))])
    body, _ = run.read_body(0)
    assert run.read_ends(0)[0] == b"".join(line + b"\n" for line in body.split(b"\n")[:9])
