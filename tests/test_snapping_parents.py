"""Snapping with parents to fall back to, with a thesaurus, and at its threshold."""

from __future__ import annotations

import pytest

from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.thesaurus import Thesaurus
from rlabel.vocabulary.vocabulary import Category, make_vocabulary
from test_snapping import FakeEmbedder

ANIMALS = make_vocabulary(
    "animals",
    [
        Category(category_id=1, name="dog"),
        Category(category_id=2, name="poodle", supercategory="dog"),
        Category(category_id=3, name="beagle", supercategory="dog"),
        Category(category_id=4, name="gnu"),
        Category(category_id=5, name="truck"),
    ],
)
TIED = {"poodle": ("whelp", 0.9), "beagle": ("whelp", 0.9)}


@pytest.mark.parametrize("text", ["whelp", "a poodle or a beagle", "a poodle and a dog"])
def test_answer_sure_of_the_parent_only_gets_the_parent_where_that_is_asked_for(text: str) -> None:
    snap = Snapper(ANIMALS, FakeEmbedder(near=TIED), fallback="parent").snap([text])[0]
    assert (snap.category_id, snap.nearest_name, snap.decided_by, snap.reason) == (1, "dog", "parent", None)
    assert Snapper(ANIMALS, FakeEmbedder(near=TIED)).snap([text])[0].category_id is None


@pytest.mark.parametrize("text", ["a poodle and a truck", "not a poodle", "neither a poodle nor a beagle", "zonk", ""])
def test_other_abstentions_stay_where_parents_are_asked_for(text: str) -> None:
    embedder = FakeEmbedder(near=TIED)
    snap = Snapper(ANIMALS, embedder, fallback="parent").snap([text])[0]
    assert snap == Snapper(ANIMALS, embedder).snap([text])[0]
    assert snap.category_id is None


def test_thesaurus_lifts_the_category_that_means_the_same() -> None:
    thesaurus = Thesaurus({"gnu": (7,), "wildebeest": (7,)}, {})
    embedder = FakeEmbedder(near={"wildebeest": ("truck", 0.45), "wildebeest thing": ("truck", 0.7)})
    assert Snapper(ANIMALS, embedder, threshold=0.3).snap(["wildebeest"])[0].category_id == 5
    snap = Snapper(ANIMALS, embedder, threshold=0.3, thesaurus=thesaurus).snap(["A wildebeest.", "wildebeest thing"])
    assert [one.category_id for one in snap] == [4, 5]
    assert snap[0].decided_by == "embedding"
    assert snap[0].similarity <= 1.0


def test_lifted_similarity_ends_at_one() -> None:
    thesaurus = Thesaurus({"gnu": (7,), "wildebeest": (7,)}, {})
    embedder = FakeEmbedder(near={"wildebeest": ("gnu", 0.9)})
    snap = Snapper(ANIMALS, embedder, thesaurus=thesaurus).snap(["wildebeest"])[0]
    assert (snap.category_id, snap.similarity) == (4, 1.0)
    assert snap.margin > 1.0


def test_head_that_the_thesaurus_lifts_too_is_no_other_category_than_itself() -> None:
    thesaurus = Thesaurus({"gnu": (7,), "hairy_gnu": (7,)}, {})
    embedder = FakeEmbedder(near={"hairy gnu": ("gnu", 0.3)})
    snap = Snapper(ANIMALS, embedder, threshold=-1.0, margin=0.0, thesaurus=thesaurus).snap(["a hairy gnu"])[0]
    assert (snap.category_id, snap.decided_by, snap.similarity, snap.margin) == (4, "phrase", 1.0, 1.0)


def test_cosine_that_is_the_threshold_is_enough() -> None:
    embedder = FakeEmbedder(near={"zonk": ("gnu", 0.5)})
    at = Snapper(ANIMALS, embedder, threshold=0.5, margin=0.0).snap(["zonk"])[0]
    assert (at.category_id, at.similarity, at.decided_by) == (4, 0.5, "embedding")
    above = Snapper(ANIMALS, embedder, threshold=0.500001, margin=0.0).snap(["zonk"])[0]
    assert (above.category_id, above.nearest_name) == (None, "gnu")
