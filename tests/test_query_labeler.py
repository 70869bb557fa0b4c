"""Pairs and expressions in the labeler: each ends as one outcome, whatever rows, pictures, batches or the model do."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import image_record, region, save_picture
from rlabel.errors import StorageError
from rlabel.labeling.askers import Asked, Chosen, LikelihoodChooser, choose, read_number
from rlabel.labeling.engine import Decoded, Engine, EngineOptions
from rlabel.labeling.queries import QueryLabeler
from rlabel.prompts.instructions import CAPTION, CLASSIFY
from rlabel.records import Expression, ImageRecord, Pair, QueryFailure, Referral, Region, Relation, Shard
from rlabel.run.attempts import failed_shard
from rlabel.run.records_io import check_complete, result_from_bytes, result_to_bytes
from rlabel.schema_files import validate
from rlabel.storage import Store

import model_factories as factory  # isort: skip

BOX = (2.0, 3.0, 6.0, 4.0)
LIKELY = (-0.25, -0.25)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("pictures")
    save_picture(folder / "a.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return Store.open(folder)


def boxed(key: str) -> Region:
    return region(key, box_xywh=BOX)


def pair(key: str, subject: str, object: str, problem: str | None = None) -> Pair:
    return Pair(key=key, image_id=1, subject=subject, object=object, problem=problem)


def expression(key: str, text: str, *candidates: str, problem: str | None = None) -> Expression:
    return Expression(key=key, image_id=1, expression_id=7, text=text, candidates=candidates, problem=problem)


def picture(queries: Sequence[Any], *regions: Region, file_name: str = "a.png", image_id: int = 1) -> ImageRecord:
    return replace(image_record(*regions, id=image_id, file_name=file_name), queries=tuple(queries))


def shard_of(*images: ImageRecord, strays: tuple[Any, ...] = ()) -> Shard:
    return Shard(index=2, content_sha256="0" * 64, images=images, stray_queries=strays)


class FakeAsker:
    """Answers a pair with "SUBJECT on OBJECT" and chooses the last candidate; raises for the region "9" and for the text "raise".

    calls: the number of queries and of regions of every call.
    """

    def __init__(self, predicate: str | None = None) -> None:
        self.predicate = predicate
        self.calls: list[tuple[int, int]] = []

    def prepare(self, image: Any, regions: Sequence[Any]) -> list[str]:
        return [item.region.key for item in regions]

    def ask(self, inputs: Sequence[list[str]], asked: Sequence[Sequence[Asked]]) -> list[list[Decoded | Chosen]]:
        self.calls.append((sum(map(len, asked)), sum(map(len, inputs))))
        return [[self._one(keys, item) for item in items] for keys, items in zip(inputs, asked, strict=True)]

    def _one(self, keys: list[str], item: Asked) -> Decoded | Chosen:
        named = [keys[i] for i in item.mentions]
        if "9" in named or item.text == "raise":
            raise RuntimeError("the tensors did not fit")
        if item.text == "nothing":
            return Chosen(place=None, text="hm", problem="no number in 'hm'")
        if item.text:
            share = round(1 / len(named), 6)
            return Chosen(place=len(named) - 1, score=share, scores=(share,) * len(named))
        text = f"{named[0]} on {named[1]}" if self.predicate is None else self.predicate
        return Decoded(text=text, token_logprobs=LIKELY)


# ---- the labeler


def test_a_pair_becomes_subject_predicate_object_with_their_boxes(pictures: Store) -> None:
    record = picture([pair("row 1", "2", "1"), pair("row 2", "1", "3")], boxed("1"), boxed("2"), boxed("3"))
    shard = shard_of(record)
    result = QueryLabeler(FakeAsker()).label(shard, pictures)
    check_complete(shard, result)
    first, second = result.outcomes
    assert isinstance(first, Relation) and isinstance(second, Relation)
    assert (first.predicate, first.subject.region_id, first.object.key) == ("2 on 1", 2, "1")
    assert second.predicate == "1 on 3" and first.subject.box_xywh == BOX and first.subject.area_px == 24.0
    assert first.score == pytest.approx(math.exp(-0.5), abs=1e-6)


def test_an_expression_becomes_the_chosen_region_with_the_shares_of_all(pictures: Store) -> None:
    record = picture([expression("row 1", "the cat", "3", "1")], boxed("1"), boxed("2"), boxed("3"))
    (outcome,) = QueryLabeler(FakeAsker()).label(shard_of(record), pictures).outcomes
    assert isinstance(outcome, Referral)
    assert outcome.chosen.key == "1" and outcome.score == 0.5
    assert [(item.key, item.score) for item in outcome.candidates] == [("3", 0.5), ("1", 0.5)]


def test_what_cannot_be_asked_or_answered_is_a_failure_that_names_its_row(pictures: Store) -> None:
    bad = region("4")  # no mask, no box
    record = picture(
        [
            pair("row 1", "1", "4"),
            pair("row 2", "1", "9"),
            pair("row 3", "", "", problem="subject: no region of the image has the id 99"),
            pair("row 4", "1", "2"),
            expression("row 5", "the cat", "4"),
            expression("row 6", "the cat", "4", "1"),
            expression("row 7", "nothing", "1", "2"),
            expression("row 8", "raise", "1", "2"),
        ],
        *(boxed(key) for key in "1239"),
        bad,
    )
    stray = pair("row 9", "", "", problem="its image_id 5 is in no image row")
    shard = shard_of(
        record, picture([pair("row 10", "1", "2")], boxed("1"), boxed("2"), file_name="cut.png"), strays=(stray,)
    )
    result = QueryLabeler(FakeAsker()).label(shard, pictures)
    check_complete(shard, result)
    by_key = {outcome.key: outcome for outcome in result.outcomes}
    failed = {key: outcome.kind for key, outcome in by_key.items() if isinstance(outcome, QueryFailure)}
    assert failed == {
        "row 1": "region", "row 2": "model", "row 3": "query", "row 5": "region", "row 7": "answer", "row 8": "model", "row 9": "query",
        "row 10": "image",
    }  # fmt: skip
    assert isinstance(by_key["row 4"], Relation)
    six = by_key["row 6"]
    assert isinstance(six, Referral) and [item.key for item in six.candidates] == ["1"]
    reasons = {key: outcome.reason for key, outcome in by_key.items() if isinstance(outcome, QueryFailure)}
    assert reasons["row 1"].startswith("a.png, pair row 1: a.png, region 4: the row has no segmentation")
    assert reasons["row 3"] == "a.png, pair row 3: subject: no region of the image has the id 99."
    assert reasons["row 9"] == "no image, pair row 9: its image_id 5 is in no image row."
    assert reasons["row 8"] == "a.png, expression row 8: the model failed (RuntimeError: the tensors did not fit)."
    for outcome in result.outcomes:
        assert isinstance(outcome, QueryFailure | Relation | Referral)


@pytest.mark.parametrize(("text", "kind"), [("", "answer"), (" .", "answer"), ("on", None)])
def test_a_predicate_without_words_is_a_failure_never_an_empty_relation(
    pictures: Store, text: str, kind: str | None
) -> None:
    record = picture([pair("row 1", "1", "2")], boxed("1"), boxed("2"))
    (outcome,) = QueryLabeler(FakeAsker(text)).label(shard_of(record), pictures).outcomes
    assert (outcome.kind if isinstance(outcome, QueryFailure) else None) == kind


KINDS = st.lists(st.sampled_from(["good", "good", "raises", "row"]), max_size=6)
IMAGES = st.lists(st.tuples(st.sampled_from(["a.png", "a.png", "cut.png"]), KINDS, st.booleans()), max_size=5)


@settings(max_examples=40)
@given(plan=IMAGES, num_strays=st.integers(0, 2), size=st.integers(2, 5))
def test_every_query_has_one_outcome_in_order_and_no_batch_is_too_large(
    pictures: Store, plan: list[tuple[str, list[str], bool]], num_strays: int, size: int
) -> None:
    images, expected = [], {}
    for number, (file_name, kinds, are_pairs) in enumerate(plan):
        queries: list[Pair | Expression] = []
        for place, kind in enumerate(kinds):
            key = f"{number}/{place}"
            problem = "bad" if kind == "row" else None
            other = "9" if kind == "raises" else str(place % 3 + 2)
            queries.append(
                pair(key, "1", other, problem) if are_pairs else expression(key, "x", "1", other, problem=problem)
            )
            expected[key] = kind == "good" and file_name == "a.png"
        images.append(picture(queries, *(boxed(key) for key in "12349"), file_name=file_name, image_id=number))
    strays = tuple(pair(f"stray {i}", "", "", "no image") for i in range(num_strays))
    shard = shard_of(*images, strays=strays)
    asker = FakeAsker()
    result = QueryLabeler(asker, max_regions_per_batch=size).label(shard, pictures)
    check_complete(shard, result)
    assert all(queries <= size and regions <= size for queries, regions in asker.calls)
    good = {outcome.key: not isinstance(outcome, QueryFailure) for outcome in result.outcomes}
    assert good == {**expected, **{stray.key: False for stray in strays}}
    data = result_to_bytes(result, "f" * 64)
    assert result_from_bytes(data, 2, "f" * 64) == result
    assert (
        result_to_bytes(QueryLabeler(FakeAsker(), max_regions_per_batch=size).label(shard, pictures), "f" * 64) == data
    )


def test_a_store_that_cannot_be_read_now_ends_the_call_since_another_try_may_help(
    monkeypatch: pytest.MonkeyPatch, pictures: Store
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise StorageError("s3: no connection")

    monkeypatch.setattr("rlabel.labeling.queries.prepare_image", unreachable)
    record = picture([pair("row 1", "1", "2")], boxed("1"), boxed("2"))
    with pytest.raises(StorageError, match="no connection"):
        QueryLabeler(FakeAsker()).label(shard_of(record), pictures)


def test_lines_of_a_shard_are_as_their_schema_says_and_come_back_equal(pictures: Store) -> None:
    record = picture(
        [pair("row 1", "1", "2"), expression("row 2", "ü", "1", "2"), pair("row 3", "1", "9")],
        *(boxed(key) for key in "129"),
    )
    shard = shard_of(record, strays=(expression("row 4", "", problem="no words"),))
    for result in (QueryLabeler(FakeAsker()).label(shard, pictures), failed_shard(shard, "it died", 3)):
        check_complete(shard, result)
        data = result_to_bytes(result, "f" * 64)
        for line in data.splitlines():
            validate(json.loads(line), "shard-record", "line")
        assert result_from_bytes(data, 2, "f" * 64) == result


# ---- choosing


def test_shares_are_the_softmax_of_log_probabilities_by_hand() -> None:
    chosen = choose([math.log(1.0), math.log(3.0), math.log(4.0)])
    assert chosen.place == 2 and chosen.scores == (0.125, 0.375, 0.5) and chosen.score == 0.5
    assert choose([-5000.0, -5000.0]).scores == (0.5, 0.5) and choose([-1.0, -1.0]).place == 0
    assert choose([-1.0, math.nan]).place is None
    assert choose([-3.0]) == Chosen(place=0, score=1.0, scores=(1.0,))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("2", 1),
        ("Number 3.", 2),
        ("the 2nd: 2", 1),
        ("4", None),
        ("0", None),
        ("1 or 2", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_one_number_of_an_answer_is_the_choice(text: str, place: int | None) -> None:
    chosen = read_number(Decoded(text=text, token_logprobs=LIKELY), 3)
    assert chosen.place == place and (chosen.problem is None) == (place is not None)


def test_the_likeliest_candidate_is_chosen_under_one_question_and_under_the_mean_of_two() -> None:
    model = factory.model("lite", "llama")
    processor = factory.processor(model)
    engine = Engine(model, processor, EngineOptions())
    inputs = factory.random_inputs(processor, (3, 2), seed=8)
    asked = [
        [Asked(mentions=(2, 0), text="cat"), Asked(mentions=(0, 1, 2), text="cat"), Asked(mentions=(1,), text="dog")],
        [Asked(mentions=(1, 0), text="dog")],
    ]

    def probabilities(question: str, image: int, region: int, text: str) -> float:
        texts: list[list[list[str]]] = [[[] for _ in range(3)], [[] for _ in range(2)]]
        texts[image][region] = [text]
        return math.exp(engine.score_answers(inputs, texts, question)[image][region][0])

    for questions in ((CAPTION[0],), (CAPTION[0], CLASSIFY[0])):
        answers = LikelihoodChooser(engine, questions).ask(inputs, asked)
        assert [len(rows) for rows in answers] == [3, 1]
        for image, items in enumerate(asked):
            for item, chosen in zip(items, answers[image], strict=True):
                weights = [sum(probabilities(q, image, r, item.text) for q in questions) for r in item.mentions]
                expected = [weight / sum(weights) for weight in weights]
                assert chosen.scores == pytest.approx(expected, rel=1e-3, abs=2e-6)
                assert chosen.place == max(range(len(expected)), key=lambda i: expected[i])
