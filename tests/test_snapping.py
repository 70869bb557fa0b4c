"""Snapping: which words decide, when the embedding may, and when nothing should."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlabel.errors import UsageError
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, load_vocabulary, make_vocabulary
from snap_factories import CountingEmbedder, FakeEmbedder, make_pets, snap_one


@pytest.mark.parametrize(
    ("text", "category_id", "step"),
    [
        ("cat", 3, "exact"),
        (" dog\n", 9, "exact"),
        ("jack-o'-lantern", 31, "exact"),
        ("kitten", 3, "synonym"),
        ("frankfurter", 12, "synonym"),
        ("glass", 29, "synonym"),
        ("bow", 26, "synonym"),
        ("shelf", 27, "synonym"),
        ("Cat", 3, "inflection"),
        ("a cat.", 3, "inflection"),
        ("The Hot-Dogs!", 12, "inflection"),
        ("hot_dog", 12, "inflection"),
        ("\u201cCAT\u201d", 3, "inflection"),
        ("\uff43\uff41\uff54", 3, "inflection"),
        ("cat \U0001f408\ufe0f", 3, "inflection"),
        ("aeroplanes", 20, "inflection"),
        ("donut", 24, "inflection"),
        ("a cherry", 25, "inflection"),
        ("tshirt", 28, "inflection"),
        ("tee shirt", 28, "inflection"),
        ("teddybears", 33, "inflection"),
        ("teddy bear", 33, "inflection"),
        ("Glasses", 30, "inflection"),
        ("drinking glasses", 29, "inflection"),
        ("jack o\u2019 lantern", 31, "inflection"),
        ("cabinet / shelf", 27, "inflection"),
    ],
)
def test_words_decide_by_the_closest_step(text: str, category_id: int, step: str) -> None:
    snap = snap_one(text)
    assert (snap.category_id, snap.decided_by) == (category_id, step)
    assert (snap.similarity, snap.margin, snap.reason) == (1.0, 1.0, None)


@pytest.mark.parametrize(
    ("text", "category_id"),
    [
        ("The object is a cat.", 3),
        ("This is a big red fire engine", 21),
        ("a picture of a dog", 9),
        ("A close-up of two hot dogs", 12),
        ("a pair of glasses", 30),
        ("a cup of tea", 32),
        ("a dog on a couch", 9),
        ("a dog is lying on the couch", 9),
        ("a cat wearing a t-shirt", 3),
        ("a dog with no cup", 9),
        ("In the image, there is a dog", 9),
        ("The thing on the couch is a cat", 3),
        ("a hound, that is a dog", 9),
        ("A truck. It carries a couch.", 22),
        ("It looks like a cat", 3),
        ("not a dog but a cat", 3),
        ("A cat, not a dog.", 3),
        ("This is not a dog. It is a cat.", 3),
        ("a kitten and a cat", 3),
        ("a black and white cat", 3),
        ("a sleeping cat", 3),
        ("cat\ncat\ncat", 3),
        ("a cup made of a blorp", 32),
        ("a couch covered in fur", 23),
        ("The object is a bow (weapon).", 26),
        ("the dog (a hot one, on a couch)", 9),
    ],
)
def test_sentence_is_about_its_head_noun(text: str, category_id: int) -> None:
    snap = snap_one(text)
    assert (snap.category_id, snap.decided_by) == (category_id, "phrase")


@pytest.mark.parametrize(
    "text", ["a dog and a cat", "dog or cat", "a cat, a dog", "dog/cat", "a cat & a dog on a couch"]
)
def test_two_things_of_equal_standing_abstain(text: str) -> None:
    snap = snap_one(text)
    assert snap.category_id is None
    assert snap.decided_by is None
    assert snap.nearest_name in ("cat", "dog")
    assert snap.margin == 0.0
    assert snap.reason is not None
    assert "several categories alike: " in snap.reason


@pytest.mark.parametrize(
    ("text", "nearest_name"),
    [
        ("not a dog", "dog"),
        ("It isn't a cat", "cat"),
        ("There is no truck here", "truck"),
        ("neither a dog nor a cat", "dog"),
        ("no object", None),
        ("nothing", None),
        ("Unknown.", None),
        ("I cannot tell", None),
        ("I don\u2019t know", None),
    ],
)
def test_denial_abstains_and_says_so(text: str, nearest_name: str | None) -> None:
    snap = snap_one(text)
    assert (snap.category_id, snap.decided_by, snap.nearest_name) == (None, None, nearest_name)
    assert snap.reason is not None
    assert "denies or does not know" in snap.reason


def test_denying_words_inside_a_known_name_are_no_denial() -> None:
    sign = Category(category_id=40, name="no entry sign")
    embedder = FakeEmbedder(near={"no entry": ("no entry sign", 0.9)})
    assert snap_one("a red no entry sign", sign).category_id == 40
    assert Snapper(make_pets(sign), embedder).snap(["no entry"])[0].category_id == 40


@pytest.mark.parametrize("text", ["dog house", "a dog shelter on wheels", "on a couch", "dogmatic", "scatter"])
def test_name_that_is_not_the_head_does_not_decide(text: str) -> None:
    assert snap_one(text).category_id is None


def test_synonym_of_two_categories_abstains_but_a_name_goes_before_a_synonym() -> None:
    bird = Category(category_id=40, name="crane bird", synonyms=("crane", "truck"))
    machine = Category(category_id=41, name="lifting machine", synonyms=("crane",))
    snap = snap_one("crane", bird, machine)
    assert snap.category_id is None
    assert snap.reason == "'crane' fits several categories alike: 'crane bird' and 'lifting machine'"
    assert snap_one("truck", bird, machine).category_id == 22


def test_of_equal_names_the_first_in_the_file_answers() -> None:
    bird = Category(category_id=41, name="crane", supercategory="bird")
    machine = Category(category_id=40, name="Crane", supercategory="machine")
    assert snap_one("cranes", bird, machine).category_id == 41
    embedder = FakeEmbedder(near={"cantilever": ("crane", 0.9)})
    snap = Snapper(make_pets(bird, machine), embedder).snap(["cantilever"])[0]
    assert (snap.category_id, snap.decided_by) == (41, "embedding")


def test_embedding_decides_above_the_threshold_with_cosine_and_margin() -> None:
    embedder = FakeEmbedder(near={"puppy": ("dog", 0.8)})
    snap = Snapper(make_pets(), embedder, threshold=0.79).snap(["A puppy."])[0]
    assert (snap.category_id, snap.decided_by, snap.nearest_name) == (9, "embedding", "dog")
    assert snap.similarity == pytest.approx(0.8, abs=2e-6)
    assert snap.similarity == round(snap.similarity, 6)
    assert snap.margin > 0.02


def test_embedding_abstains_below_the_threshold_and_keeps_the_nearest_name() -> None:
    embedder = FakeEmbedder(near={"puppy": ("dog", 0.8)})
    snap = Snapper(make_pets(), embedder, threshold=0.81).snap(["puppy"])[0]
    assert (snap.category_id, snap.decided_by, snap.nearest_name) == (None, None, "dog")
    assert snap.similarity == pytest.approx(0.8, abs=2e-6)
    assert snap.reason == "the nearest category, 'dog', is less similar than 0.81"


def test_embedding_abstains_where_two_categories_are_equally_near() -> None:
    embedder = FakeEmbedder(near={"cat": ("beast", 0.9), "dog": ("beast", 0.9)})
    snap = Snapper(make_pets(), embedder, margin=0.001).snap(["beast"])[0]
    assert snap.category_id is None
    assert snap.margin == pytest.approx(0.0, abs=2e-6)
    assert snap.reason is not None
    assert "leads the next by less than 0.001" in snap.reason


def test_definition_draws_its_category_nearer() -> None:
    def similarity(definition: str | None) -> float:
        vocabulary = make_vocabulary("v", [Category(category_id=1, name="puppet", definition=definition)])
        embedder = FakeEmbedder(near={"puppet: a doll on strings": ("marionette", 0.9)})
        return Snapper(vocabulary, embedder, threshold=-1.0).snap(["marionette"])[0].similarity

    assert similarity("a doll on strings") > similarity(None) + 0.2


def test_noun_phrase_means_the_narrower_category_where_the_embedding_is_clear() -> None:
    bin_ = Category(category_id=40, name="trash bin")
    clear = FakeEmbedder(near={"garbage truck": ("trash bin", 0.9)})
    snap = Snapper(make_pets(bin_), clear).snap(["A garbage truck."])[0]
    assert (snap.category_id, snap.decided_by) == (40, "embedding")
    unclear = FakeEmbedder(near={"garbage truck": ("truck", 0.9)})
    snap = Snapper(make_pets(bin_), unclear).snap(["A garbage truck."])[0]
    assert (snap.category_id, snap.decided_by) == (22, "phrase")


def test_vocabulary_of_one_category_has_a_margin_from_the_far_end() -> None:
    vocabulary = make_vocabulary("v", [Category(category_id=1, name="dog")])
    snap = Snapper(vocabulary, FakeEmbedder(near={"puppy": ("dog", 0.8)})).snap(["puppy"])[0]
    assert snap.margin == pytest.approx(1.8, abs=2e-6)


@pytest.mark.parametrize("broken", ["blorp", "couch"])
def test_similarity_that_is_not_a_number_abstains(broken: str) -> None:
    snap = Snapper(make_pets(), FakeEmbedder(broken=[broken])).snap(["blorp", "black truck"])
    assert snap[0].category_id is None
    assert (snap[0].similarity, snap[0].margin) == (0.0, 0.0)
    assert snap[0].reason is not None
    assert "not a number" in snap[0].reason
    assert snap[1].category_id == 22


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "empty"), (" \n\t", "empty"), ("\U0001f436\u2026?!", "no words"), ("\x00\ud800", "no words")],
)
def test_answer_without_words_abstains(text: str, reason: str) -> None:
    snap = Snapper(make_pets(), FakeEmbedder()).snap([text])[0]
    assert snap.category_id is None
    assert snap.reason is not None
    assert reason in snap.reason


@pytest.mark.parametrize(
    "text", ["x" * 10_000, "blorp " * 2_000, "\u0642\u0637\u0629 " * 2_500, "(" * 10_000 + "blorp"]
)
def test_endless_answer_reaches_the_embedder_cut(text: str) -> None:
    embedder = FakeEmbedder()
    assert Snapper(make_pets(), embedder).snap([text])[0].category_id is None
    assert max(map(len, embedder.asked), default=0) <= 200


def test_right_to_left_name_is_matched_by_words() -> None:
    cat = Category(category_id=40, name="\u062d\u064a\u0648\u0627\u0646", synonyms=("\u0642\u0637\u0629",))
    assert snap_one("\u0642\u0637\u0629.", cat).category_id == 40


def test_vowel_marks_tell_words_apart() -> None:
    first = Category(category_id=40, name="\u0915\u093f\u0924\u093e\u092c")
    second = Category(category_id=41, name="\u0915\u0941\u0924\u093e\u092c")
    assert snap_one("\u0915\u0941\u0924\u093e\u092c!", first, second).category_id == 41


def test_equal_texts_are_embedded_once_also_across_calls() -> None:
    embedder = FakeEmbedder()
    snapper = Snapper(make_pets(), embedder)
    snapper.snap(["blorp", "zonk", "blorp"])
    snapper.snap(["zonk", "blorp"])
    assert embedder.asked.count("blorp") == 1
    assert embedder.asked.count("zonk") == 1
    assert len(embedder.asked) == len(set(embedder.asked))


def test_vocabulary_is_not_embedded_while_words_decide() -> None:
    embedder = FakeEmbedder()
    Snapper(make_pets(), embedder).snap(["cat", "a dog", "a dog and a cat", "not a dog", ""])
    assert embedder.asked == []


@pytest.mark.parametrize(("threshold", "margin"), [(1.5, 0.0), (float("nan"), 0.0), (0.5, -0.1), (0.5, float("nan"))])
def test_impossible_thresholds_are_refused(threshold: float, margin: float) -> None:
    with pytest.raises(UsageError, match="The default is"):
        Snapper(make_pets(), None, threshold=threshold, margin=margin)


def test_texts_of_a_call_are_embedded_together() -> None:
    embedder = CountingEmbedder()
    Snapper(make_pets(), embedder).snap(["blorp", "cat", "zonk", "A zonk.", "a red dog", "blorp"])
    assert embedder.calls == [len(embedder.asked) - 3, 3]  # the vocabulary; blorp, zonk and the noun phrase
    assert embedder.asked[-3:] == ["blorp", "zonk", "red dog"]


COMMON_WORDS = "a an the dog cats hot not no and of on is , . couch fire engine red blorp truck but picture"
words = st.sampled_from(COMMON_WORDS.split())
answers = st.one_of(st.text(max_size=40), st.lists(words, max_size=10).map(" ".join))


@settings(max_examples=300, deadline=None)
@given(answers)
def test_any_answer_ends_as_a_category_or_a_reason(text: str) -> None:
    snap = Snapper(make_pets(), FakeEmbedder()).snap([text])[0]
    assert (snap.category_id is None) == (snap.decided_by is None) == (snap.reason is not None)
    assert -1.0 <= snap.similarity <= 1.0
    assert 0.0 <= snap.margin <= 2.0


@settings(max_examples=50, deadline=None)
@given(st.lists(answers, max_size=8))
def test_snap_of_a_text_does_not_depend_on_the_texts_beside_it(texts: list[str]) -> None:
    alone = [Snapper(make_pets(), FakeEmbedder()).snap([text])[0] for text in texts]
    assert Snapper(make_pets(), FakeEmbedder()).snap(texts) == alone
    assert Snapper(make_pets(), FakeEmbedder()).snap(texts[::-1]) == alone[::-1]


@pytest.mark.skipif("RLABEL_CORPUS" not in os.environ, reason="RLABEL_CORPUS is not set")
@pytest.mark.parametrize("name", ["coco-80", "lvis-1203", "objects365-v2", "imagenet-1k", "things-250"])
def test_every_name_of_a_real_vocabulary_snaps_to_its_own_category(name: str) -> None:
    url = f"{os.environ['RLABEL_CORPUS']}/vocab/{name}.json"
    vocabulary = load_vocabulary(url, keep_zero_ids=True)
    first_of: dict[str, int] = {}
    for category in vocabulary.categories:
        first_of.setdefault(category.name.lower(), category.category_id)
    names = [category.name for category in vocabulary.categories]
    snapper = Snapper(vocabulary, None)
    for text in ("{}", "a {}.", "The object is a {}."):
        snaps = snapper.snap([text.format(name) for name in names])
        wrong = [name for name, snap in zip(names, snaps, strict=True) if snap.category_id != first_of[name.lower()]]
        assert len(wrong) <= (0.01 if "object" in text else 0.0) * len(names), wrong
