"""Parents of categories, and the label an undecided answer falls back to."""

from __future__ import annotations

import pytest

from rlabel.errors import InputError
from rlabel.records import JsonValue, Snap
from rlabel.vocabulary.hierarchy import Hierarchy, fall_back
from rlabel.vocabulary.lexicon import Lexicon
from rlabel.vocabulary.vocabulary import Category, Vocabulary, make_vocabulary


def category(category_id: int, name: str, parent: JsonValue = None, supercategory: str | None = None) -> Category:
    extra = {} if parent is None else {"parent": parent}
    return Category(category_id=category_id, name=name, supercategory=supercategory, extra=extra)


def animals() -> Vocabulary:
    return make_vocabulary(
        "animals",
        [
            category(1, "Animal"),
            category(2, "dog", supercategory="animals"),
            category(3, "cat", parent="animal"),
            category(4, "poodle", parent=2),
            category(5, "beagle", parent="2"),
            category(6, "car", supercategory="vehicle"),
            category(7, "truck", supercategory="vehicle"),
            category(8, "loop", supercategory="Loop"),
        ],
    )


def undecided(similarity: float = 0.8) -> Snap:
    return Snap(
        category_id=None, nearest_name="poodle", similarity=similarity, margin=0.01, decided_by=None, reason="too close"
    )


def test_parents_come_from_ids_names_and_supercategories_that_are_categories() -> None:
    hierarchy = Hierarchy(make_vocabulary("v", [*animals().categories, category(9, "lorry", supercategory="TRUCK")]))
    assert hierarchy.ancestors(4) == (2,)  # "animals" is not the name "Animal"
    assert hierarchy.ancestors(3) == (1,)
    assert hierarchy.ancestors(5) == (2,)
    assert hierarchy.ancestors(9) == (7,)
    assert hierarchy.ancestors(6) == ()  # no category is called vehicle
    assert hierarchy.ancestors(8) == ()  # its supercategory repeats its name


def test_common_ancestor_is_the_nearest_and_may_be_one_of_them() -> None:
    rows = [
        category(1, "thing"),
        category(2, "dog", 1),
        category(3, "poodle", 2),
        category(4, "beagle", 2),
        category(5, "car", 1),
    ]
    hierarchy = Hierarchy(make_vocabulary("v", rows))
    assert hierarchy.common([3, 4]) == 2
    assert hierarchy.common([2, 3]) == 2
    assert hierarchy.common([3, 4, 5]) == 1
    assert hierarchy.common([]) is None


@pytest.mark.parametrize("parent", ["beast", 77, "77", True, 2.5, ["dog"], {}, -1])
def test_unknown_parent_is_refused_with_its_place(parent: JsonValue) -> None:
    with pytest.raises(InputError, match=r"v.json, categories\[1\] \('dog'\): expected `parent`.*none has"):
        Hierarchy(make_vocabulary("v", [category(1, "cat"), category(2, "dog", parent)]), "v.json")


def test_parent_that_several_categories_are_called_is_refused() -> None:
    rows = [
        category(1, "crane", supercategory="bird"),
        category(2, "crane", supercategory="machine"),
        category(3, "x", "crane"),
    ]
    with pytest.raises(InputError, match="2 categories have"):
        Hierarchy(make_vocabulary("v", rows))


@pytest.mark.parametrize("parents", [(1, None, None), (2, 1, None), (2, 3, 1)])
def test_cycle_is_refused_and_shown(parents: tuple[int | None, ...]) -> None:
    rows = [category(place + 1, name, parent) for place, (name, parent) in enumerate(zip("abc", parents, strict=True))]
    with pytest.raises(InputError, match="their own ancestors: 'a' -> .*'a'"):
        Hierarchy(make_vocabulary("v", rows))


def test_tie_of_siblings_is_labeled_with_their_parent() -> None:
    nearest = [(4, 0.8), (5, 0.79), (6, 0.5)]
    snap = fall_back(undecided(), nearest, Hierarchy(animals()), 0.02, 0.6)
    assert (snap.category_id, snap.nearest_name, snap.decided_by, snap.reason) == (2, "dog", "parent", None)
    assert (snap.similarity, snap.margin) == (0.8, 0.01)


@pytest.mark.parametrize(
    ("nearest", "why"),
    [
        ([(4, 0.8), (6, 0.79), (5, 0.5)], "a poodle and a car share nothing"),
        ([(6, 0.8), (7, 0.79), (5, 0.5)], "their group is no category"),
        ([(4, 0.8), (5, 0.79), (6, 0.785), (7, 0.1)], "three tie, and one is no dog"),
        ([(4, 0.8), (5, 0.79)], "more may tie than were looked at"),
        ([(4, 0.8), (5, 0.78), (6, 0.1)], "a lead of exactly the margin is no tie"),
        ([], "the embedding was not asked"),
    ],
)
def test_other_ties_stay_abstentions(nearest: list[tuple[int, float]], why: str) -> None:
    assert fall_back(undecided(), nearest, Hierarchy(animals()), 0.02, 0.6) == undecided(), why


def test_answer_below_the_threshold_and_a_denial_stay_abstentions() -> None:
    hierarchy = Hierarchy(animals())
    nearest = [(4, 0.5), (5, 0.49), (6, 0.1)]
    assert fall_back(undecided(0.5), nearest, hierarchy, 0.02, 0.6).category_id is None
    assert fall_back(undecided(1.0), [(4, 0.8), (5, 0.79), (6, 0.1)], hierarchy, 0.02, 0.6).category_id is None
    not_a_number = [(4, float("nan")), (5, float("nan"))]
    assert fall_back(undecided(), not_a_number, hierarchy, 0.02, 0.6).category_id is None


def test_tie_of_all_categories_may_fall_back() -> None:
    rows = [category(1, "dog"), category(2, "poodle", 1), category(3, "beagle", 1)]
    nearest = [(2, 0.8), (3, 0.795), (1, 0.79)]
    assert fall_back(undecided(), nearest, Hierarchy(make_vocabulary("v", rows)), 0.02, 0.6).category_id == 1


def test_label_is_left_as_it_is() -> None:
    label = Snap(category_id=4, nearest_name="poodle", similarity=0.8, margin=0.1, decided_by="embedding")
    assert fall_back(label, [(4, 0.8), (5, 0.79), (6, 0.1)], Hierarchy(animals()), 0.5, 0.6) is label


def test_words_that_fit_alike_name_their_choices_and_fall_back_to_the_parent() -> None:
    vocabulary = animals()
    finding = Lexicon(vocabulary).find("a poodle and a beagle")
    assert finding is not None and finding.decided_by is None
    ids = [vocabulary.categories[index].category_id for index in finding.choices]
    assert sorted(ids) == [4, 5]
    assert fall_back(undecided(1.0), [], Hierarchy(vocabulary), 0.02, 0.6, ids).category_id == 2
    denial = Lexicon(vocabulary).find("neither a poodle nor a beagle")
    assert denial is not None and denial.choices == ()
