"""Answers as models give them when they ramble, refuse, list, or write strange characters."""

from __future__ import annotations

import pytest

from rlabel.records import Snap
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, make_vocabulary

PETS = make_vocabulary(
    "pets",
    [
        Category(category_id=1, name="dog"),
        Category(category_id=2, name="cat"),
        Category(category_id=3, name="fire engine"),
        Category(category_id=4, name="airplane"),
        Category(category_id=5, name="couch"),
    ],
)


def snap_one(text: str) -> Snap:
    return Snapper(PETS, None).snap([text])[0]


@pytest.mark.parametrize(
    "text",
    [
        "dog\ncat",
        "- dog\n- cat\n",
        "A dog. A cat.",
        "dog; cat",
        "a dog, a cat, and a fire engine",
        "two dogs and three cats",
        "The image shows a dog and a cat.",
        "either a dog or a cat",
        "It might be a dog or a cat",
        "not only a dog but also a cat",
        "dog + cat",
    ],
)
def test_list_of_several_things_abstains_and_names_them(text: str) -> None:
    snap = snap_one(text)
    assert (snap.category_id, snap.decided_by, snap.similarity, snap.margin) == (None, None, 1.0, 0.0)
    assert snap.reason is not None
    assert "'dog' and 'cat'" in snap.reason


@pytest.mark.parametrize(
    ("text", "category_id"),
    [
        ("dog\ndog\n", 1),
        ("A dog. A hound.", 1),
        ("A dog. It lies on a couch.", 1),
        ("dog\nThe dog lies beside a cat.", 1),
        ("a dog and another dog", 1),
        ("a dog but no cat", 1),
        ("no cat; dog", 1),
        ("not a cat but a dog", 1),
        ("not only old, a dog", 1),
    ],
)
def test_one_thing_said_at_length_is_that_thing(text: str, category_id: int) -> None:
    assert snap_one(text).category_id == category_id


@pytest.mark.parametrize(
    "text",
    [
        "no object",
        "There is no object in this region.",
        "Nothing is visible.",
        "None of the above",
        "I'm not sure what this is.",
        "The object cannot be identified.",
        "no dogs or cats",
        "N/A",
        "n/a.",
        "null",
        "NA",
    ],
)
def test_answer_that_says_nothing_abstains_as_a_denial(text: str) -> None:
    snap = snap_one(text)
    assert snap.category_id is None
    assert snap.reason is not None
    assert "denies or does not know" in snap.reason


def test_whole_answer_that_usually_means_nothing_may_be_a_name() -> None:
    sodium = make_vocabulary("v", [Category(category_id=1, name="Na"), Category(category_id=2, name="null")])
    assert [snap.category_id for snap in Snapper(sodium, None).snap(["na", "NULL"])] == [1, 2]


@pytest.mark.parametrize(
    ("text", "category_id"),
    [
        ("\u200fdog\u200e", 1),
        ("\u202edog\u202c", 1),
        ("\U0001f436 dog \U0001f436", 1),
        ("do\u200bg", 1),
        ("d\u200do\u200dg", 1),
        ("\ufb01re engine", 3),
        ("\uff24\uff2f\uff27", 1),
        ("\U0001d41d\U0001d428\U0001d420", 1),
        ("\u24d3\u24de\u24d6", 1),
        ("air\u00adplane", 4),
        ("dog\x00", 1),
        ("\ufeffdog", 1),
        ("fire\u2011engine", 3),
        ("fire\u00a0engine", 3),
    ],
)
def test_invisible_and_look_alike_forms_of_letters_are_the_letters(text: str, category_id: int) -> None:
    assert snap_one(text).category_id == category_id


@pytest.mark.parametrize(
    "text", ["\u0441\u0430t", "d\u0301og", "\u2460", "\U0001f436", "dog\u2460", "\u0643\u0644\u0628"]
)
def test_other_letters_are_not_taken_for_plain_ones(text: str) -> None:
    assert snap_one(text).category_id is None


@pytest.mark.parametrize("filler", ["very ", "a ", "\u0643\u0644\u0628 ", "\U0001f436 ", ", ", "not ", "(", "\n", "x"])
def test_ten_thousand_characters_before_a_name_end_in_time_and_without_a_guess(filler: str) -> None:
    text = filler * (10_000 // len(filler)) + " dog"
    snap = snap_one(text)
    assert (snap.category_id is None) == (snap.reason is not None)
    assert snap.reason is None or len(snap.reason) < 300
