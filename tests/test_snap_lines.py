"""One line of a shard under another snap: edited where that is enough, and as its record would be written."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlabel.records import Abstention, Caption, JsonValue, Label, Outcome, Snap
from rlabel.run.carried import NOTHING_CARRIED
from rlabel.run.records_io import line_to_outcome, outcome_to_line
from rlabel.run.snap_lines import NewSnap, _edited, snap_body, snapped, texts_of
from run_factories import abstention, box_polygon, box_rle, label, region
from snap_factories import LABELED, UNLABELED


def odd_outcomes(text: str) -> list[Outcome]:
    odd = region(
        "1",
        1,
        segmentation=box_rle(1, 2, 3, 4),
        extra={"score": 0.5, "x": {"a": 1, "score": 2, "snap": {"text": '},"text":"'}}},
    )
    plain = region("2", 2, segmentation=box_rle(1, 2, 3, 4))
    shape = box_rle(1, 2, 3, 4)
    return [
        label(odd, text=text, segmentation=shape),
        label(plain, text=text, segmentation=shape),
        label(plain, "an id", text=text, segmentation=[[0.5, 0, 9, 0, 9, 9]]),
        replace(label(plain, text=text), raw_score=0.25, score=0.125),
        replace(label(plain, text=text), text_score=1e-06, area_px=1e20),
        abstention(plain, text=text),
        abstention(odd, text=text),
        Caption(
            region=odd, image_id=1, text=text, score=0.75, box_xywh=(1.0, 2.0, 3.0, 4.0), area_px=12.0, segmentation=shape
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("snap", [LABELED, UNLABELED, replace(LABELED, decided_by="embedding", similarity=0.75)])
@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=30)
    | st.sampled_from(["\ud800 \u00fc", '},"text":"', ',"snap":{', "\\", "\u0642\u0637\u0629 \U0001f408\u200d\u2b1b"])
)
def test_an_edited_line_is_the_line_of_the_record_with_the_other_snap(snap: Snap, text: str) -> None:
    outcomes = odd_outcomes(text)
    lines = [outcome_to_line(outcome) for outcome in outcomes]
    body = b"".join(line + b"\n" for line in lines)
    assert list(texts_of(body)) == [text] * len(outcomes)
    new_body, num_labels, num_abstentions = snap_body(body, {text: NewSnap.of(snap)})
    sizes: dict[bytes, tuple[JsonValue, JsonValue]] = {b"1": (48, 64)}
    by_records = [snapped(line_to_outcome(line), snap, {}) for line in lines]
    by_records[5:7] = [snapped(outcome, snap, sizes) for outcome in outcomes[5:7]]
    assert new_body.split(b"\n")[:-1] == [outcome_to_line(outcome) for outcome in by_records]
    assert (num_labels, num_abstentions) == ((0, 8) if snap.category_id is None else (8, 0))


def test_ordinary_labels_and_abstentions_are_edited_not_parsed() -> None:
    outcomes = odd_outcomes("a cat")
    edited = [
        _edited(outcome_to_line(outcome), NewSnap.of(LABELED), NOTHING_CARRIED) is not None for outcome in outcomes
    ]
    assert edited == [False, True, True, True, True, True, True, False]
    assert _edited(outcome_to_line(outcomes[5]), NewSnap.of(UNLABELED), NOTHING_CARRIED) is not None
    polygons = abstention(region("3", 3, segmentation=box_polygon(1, 2, 3, 4)))
    assert _edited(outcome_to_line(polygons), NewSnap.of(LABELED), NOTHING_CARRIED) is None


def test_a_snapped_label_keeps_all_that_the_snap_does_not_decide() -> None:
    old = replace(label(region("1", 1), segmentation=[[0, 0, 9, 0, 9, 9]]), raw_score=0.25)
    new = snapped(old, replace(LABELED, decided_by="embedding", similarity=0.5), {})
    assert isinstance(new, Label)
    assert (new.category_id, new.score, new.raw_score) == (70, 0.375, None)  # 0.75 of the text, times 0.5
    assert new.evidence == replace(old.evidence, candidates=())
    assert replace(
        new, category_id=7, score=old.score, raw_score=0.25, snap=old.snap, evidence=old.evidence
    ) == old  # fmt: skip
    abstained = snapped(old, UNLABELED, {})
    assert isinstance(abstained, Abstention)
    assert (abstained.text, abstained.text_score, abstained.snap) == (old.text, old.text_score, UNLABELED)


@pytest.mark.parametrize(
    ("given_shape", "box", "size", "expected"),
    [
        (None, (1.0, 2.0, 3.0, 4.0), (48, 64), None),
        (box_polygon(4, 6, 20, 10), (4.0, 6.0, 20.0, 10.0), (48, 64), box_polygon(4, 6, 20, 10)),
        (box_polygon(4, 6, 20, 10), (4.0, 6.0, 20.0, 10.0), (None, None), box_polygon(4, 6, 20, 10)),
        # Mended polygons are drawn: pycocotools would take a part of four numbers for a box.
        ([*box_polygon(4, 6, 20, 10), [1, 2, 3, 4]], (4.0, 6.0, 20.0, 10.0), (48, 64), box_rle(4, 6, 20, 10)),  # type: ignore[misc]
        ([*box_polygon(4, 6, 20, 10), [1, 2, 3, 4]], (4.0, 6.0, 20.0, 10.0), (None, None), None),  # type: ignore[misc]
        (
            {"size": [48, 64], "counts": [48 * 2 + 3, 5, 48 * 62 - 8]},
            (2.0, 3.0, 1.0, 5.0),
            (48, 64),
            box_rle(2, 3, 1, 5),
        ),
        (box_rle(1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0), (None, None), box_rle(1, 2, 3, 4)),
        (box_rle(1, 2, 0, 0), (1.0, 2.0, 3.0, 4.0), (48, 64), None),
        ([[1, 2]], (1.0, 2.0, 3.0, 4.0), (48, 64), None),
        ("nonsense", (1.0, 2.0, 3.0, 4.0), (48, 64), None),
    ],
)
def test_an_abstention_that_becomes_a_label_gets_its_segmentation_as_the_labeler_writes_it(
    given_shape: JsonValue,
    box: tuple[float, float, float, float],
    size: tuple[JsonValue, JsonValue],
    expected: JsonValue,
) -> None:
    old = replace(abstention(region("1", 1, segmentation=given_shape)), box_xywh=box)
    new = snapped(old, LABELED, {b"1": size})
    assert isinstance(new, Label)
    assert new.segmentation == expected
