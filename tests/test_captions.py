"""Captions against human ones: CIDEr-D by hand and by its authors' code, names in captions, Osprey's measures, and the template to beat."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st

from rlabel.cli.main import main
from rlabel.errors import InputError
from rlabel.evaluation.captions import (
    holds_name,
    osprey_scores,
    read_caption_truth,
    read_captions,
    score_captions,
    scores_to_text,
    template_captions,
)
from rlabel.evaluation.cider import cider_d, words
from rlabel.evaluation.reading import NamedCategory
from rlabel.vocabulary.embedding import Rows


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR, where it is installed, takes 10 s to start; test_caption_metrics.py has it."""
    monkeypatch.setattr("rlabel.evaluation.caption_metrics.shutil.which", lambda name: None)


class Letters:
    """Embeds texts by how often each letter comes in them; the cosine of texts without a common letter is 0."""

    def embed(self, texts: Sequence[str]) -> Rows:
        rows = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


# CIDEr-D


def test_cider_of_a_caption_that_is_its_reference_is_as_high_as_its_words_allow() -> None:
    # Two words: both cosines of 1- and 2-grams are 1, there are no 3- and 4-grams: 10 * (1 + 1) / 4.
    references = [["red cat"], ["blue dog"], ["one two three four five"]]
    assert cider_d([texts[0] for texts in references], references) == pytest.approx([5.0, 5.0, 10.0])


def test_cider_by_hand() -> None:
    # Items: "a cat" | "a dog"; candidate "a cat cat" of item 1. Of 2 items, "a" is in both: weight 0; "cat", "a cat" in one: weight log 2.
    # 1-grams: candidate cat: 2 L, clipped to L; reference cat: L. min * ref / norms = L * L / (2 L * L) = 1/2.
    # 2-grams: candidate "a cat": L, "cat cat": in no reference, weight L; reference "a cat": L. L * L / (sqrt(2) L * L) = 1 / sqrt(2).
    # 3- and 4-grams of the reference: none. Lengths 3 and 2: exp(-1 / 72).
    wanted = 10 * (1 / 2 + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    scores = cider_d(["a cat cat", "a dog"], [["a cat"], ["a dog"]])
    assert scores[0] == pytest.approx(wanted)
    # "a dog": 1-grams: "a" weighs 0, "dog" alone counts: 1; 2-grams 1.
    assert scores[1] == pytest.approx(5.0)


def test_cider_of_several_references_is_their_mean() -> None:
    # "red" against "red" 10 / 4 and against "blue" 0.
    assert cider_d(["red", "x"], [["red", "blue"], ["green"]])[0] == pytest.approx(10 / 4 / 2)


def test_nothing_said_and_a_single_item_score_0() -> None:
    assert cider_d(["", "dog"], [["cat"], ["dog"]]) == pytest.approx([0.0, 2.5])
    assert cider_d(["cat"], [["cat"]]) == [0.0]
    assert cider_d([], []) == []


def test_words_are_lower_case_without_punctuation_but_keep_hyphens_and_apostrophes_inside() -> None:
    assert words("A T-shirt, it's RED!  ('x')") == ["a", "t-shirt", "it's", "red", "x"]


TEXTS = st.lists(st.sampled_from(["a", "cat", "dog", "red", "on"]), max_size=7).map(" ".join)
CORPORA = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=2, max_size=5)


@given(CORPORA)
def test_cider_is_that_of_the_authors_code(corpus: list[tuple[str, list[str]]]) -> None:
    published = pytest.importorskip("pycocoevalcap.cider.cider")
    assume(any(text for _, refs in corpus for text in refs))  # theirs takes no corpus without a word
    scorer = published.Cider()
    wanted = scorer.compute_score(
        {i: refs for i, (_, refs) in enumerate(corpus)}, {i: [said] for i, (said, _) in enumerate(corpus)}
    )
    assert cider_d([said for said, _ in corpus], [refs for _, refs in corpus]) == pytest.approx(list(wanted[1]))


@given(CORPORA)
def test_cider_lies_between_0_and_10_and_does_not_hang_on_the_order_of_items(
    corpus: list[tuple[str, list[str]]],
) -> None:
    scores = cider_d([said for said, _ in corpus], [refs for _, refs in corpus])
    turned = cider_d([said for said, _ in corpus[::-1]], [refs for _, refs in corpus[::-1]])
    assert all(0 <= score <= 10 + 1e-9 for score in scores)
    assert turned[::-1] == pytest.approx(scores)


# Names in captions


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("A sleeping teddy bear.", True),
        ("two Teddy-Bears", True),
        ("a plush bear", True),  # a synonym
        ("a bear", False),
        ("a teddy and a bear", False),
        ("bear teddy", False),
        ("teddy bearing fruit", False),
        ("", False),
    ],
)
def test_a_name_counts_as_whole_words_in_any_number_and_spelling(text: str, holds: bool) -> None:
    category = NamedCategory(category_id=1, name="teddy bear", synonyms=("plush bear",))
    assert holds_name(text, category) is holds


# Osprey's measures


def test_osprey_scores_by_hand() -> None:
    # After a colon only what follows; full stops and commas become blanks. Words: {big, cat} and {cat, on, mat}: 1 of 4.
    similarity, iou = osprey_scores([" It is: big, Cat.", "dog"], ["cat_on:mat", "dog"], Letters())
    assert iou == pytest.approx((1 / 4 + 1) / 2)
    # "big  Cat": b i g c a t once each; "cat on mat": c a2 t2 o n m. Dot 1 + 2 + 2, lengths sqrt 6 and sqrt (1+4+4+1+1+1).
    assert similarity == pytest.approx((5 / math.sqrt(6 * 12) + 1) / 2)


def test_no_answer_is_worth_nothing() -> None:
    assert osprey_scores(["", " . "], ["cat", "dog"], Letters()) == (0.0, 0.0)


# Files


def truth_file(folder: Path) -> str:
    rows: list[dict[str, Any]] = [
        {"id": 1, "image_id": 7, "category_id": 3, "caption": "A red cat.", "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 4, "caption": "elephants", "iscrowd": 0},
        {"id": 3, "image_id": 8, "category_id": 3, "caption": "cat", "iscrowd": 1},
        {"id": 4, "image_id": 8, "category_id": 3, "caption": " ", "iscrowd": 0},
        {"id": 5, "image_id": 8, "category_id": 3, "iscrowd": 0},
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "elephant"}]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": [], "annotations": rows, "categories": categories}))
    return str(path)


def captions_run(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "captions.json").write_text(json.dumps({"images": [], "annotations": rows}))
    return str(folder)


def test_captioned_regions_that_are_no_crowd_are_judged(tmp_path: Path) -> None:
    truth = read_caption_truth(truth_file(tmp_path))
    assert [(region.image_id, region.region_id, region.caption, region.category.name) for region in truth] == [
        ("7", "1", "A red cat.", "cat"),
        ("7", "2", "elephants", "elephant"),
    ]


def test_a_region_without_a_caption_scores_0(tmp_path: Path) -> None:
    truth = read_caption_truth(truth_file(tmp_path))
    run = captions_run(
        tmp_path / "run", [{"id": 9, "image_id": 7, "region_id": 2, "caption": "An elephant", "score": 0.5}]
    )
    scores = score_captions(read_captions(run), truth, Letters())
    assert (scores.num_regions, scores.num_captioned, scores.holds_name, scores.num_distinct) == (2, 1, 0.5, 1)
    assert scores.iou == 0.0  # "An elephant" against "elephants": no word in common
    assert scores.name_iou == pytest.approx((0 + 1 / 2) / 2)
    assert scores.mean_words == 1.0
    # The best captions: 3 words have cosines for n up to 3, 1 word for n = 1: 10 * (3 + 1) / 4 / 2.
    perfect = {("7", "1"): "a red cat", ("7", "2"): "Elephants!"}
    assert score_captions(perfect, truth, Letters()).cider_d == pytest.approx(5.0)


def test_captions_of_other_files_and_truths_without_captions_are_refused(tmp_path: Path) -> None:
    run = captions_run(tmp_path / "run", [{"id": 9, "image_id": 7, "category_id": 2}])
    with pytest.raises(InputError, match="expected a caption"):
        read_captions(run)
    empty = tmp_path / "proposals.json"
    empty.write_text(
        json.dumps({"images": [], "annotations": [{"id": 1, "image_id": 1, "category_id": 3}], "categories": []})
    )
    with pytest.raises(InputError, match="human captions"):
        read_caption_truth(str(empty))


def test_the_template_says_what_a_run_labeled(tmp_path: Path) -> None:
    rows = [
        {"id": i, "image_id": 7, "category_id": c, "score": 1.0, "attributes": {"region_id": i, "text": "x"}}
        for i, c in ((1, 3), (2, 4))
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "elephant"}]
    (tmp_path / "labels.json").write_text(json.dumps({"images": [], "annotations": rows, "categories": categories}))
    assert template_captions(str(tmp_path)) == {("7", "1"): "A cat.", ("7", "2"): "An elephant."}
    assert template_captions(str(tmp_path), "{name}") == {("7", "1"): "cat", ("7", "2"): "elephant"}


def test_the_command_prints_scores_as_json(tmp_path: Path) -> None:
    run = captions_run(tmp_path / "run", [{"id": 1, "image_id": 7, "region_id": 1, "caption": "a cat"}])
    arguments = ["--truth", truth_file(tmp_path), "--json"]
    result = CliRunner().invoke(main, ["evaluate-captions", run, *arguments])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert (scores["holds_name"], scores["num_regions"], scores["num_captioned"]) == (0.5, 2, 1)
    missing = CliRunner().invoke(main, ["evaluate-captions", str(tmp_path / "no"), *arguments])
    assert missing.exit_code == 1 and "no such file" in missing.output


def test_scores_stand_beside_each_other_in_a_table(tmp_path: Path) -> None:
    truth = read_caption_truth(truth_file(tmp_path))
    text = scores_to_text({"template": score_captions({("7", "2"): "An elephant."}, truth, Letters())})
    header, rule, line = text.splitlines()[:3]
    assert header.count("|") == rule.count("|") == line.count("|")
    assert line.startswith("| template | 2 | 1 |") and "| 50.0 % |" in line
