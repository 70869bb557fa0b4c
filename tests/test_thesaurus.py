"""WordNet's files, and what they add to the similarity of a text to a category."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlabel.errors import InputError
from rlabel.vocabulary.blending import KIND_OF, SAME_SENSE, Blender, blend
from rlabel.vocabulary.thesaurus import Thesaurus, load_thesaurus
from rlabel.vocabulary.vocabulary import Category, make_vocabulary

# In the layout of wndb(5WN): lemma pos senses pointers marks... senses tagged offsets; offset file pos words... pointers... | gloss
INDEX = """\
  1 a licence
animal n 1 1 ~ 1 0 00000100
antelope n 1 1 @ 1 0 00000200
gnu n 1 1 @ 1 0 00000300
wildebeest n 1 1 @ 1 0 00000300
crane n 2 1 @ 2 0 00000400 00000500
hot_dog n 1 1 @ 1 0 00000600
derrick n 1 1 @ 1 0 00000500
"""
DATA = """\
  1 a licence
00000100 03 n 01 animal 0 000 | a living thing
00000200 05 n 01 antelope 0 001 @ 00000100 n 0000 | graceful | with horns
00000300 05 n 02 gnu 0 wildebeest 0 002 @ 00000200 n 0000 + 00000900 v 0101 | large
00000400 05 n 01 crane 0 001 @ 00000100 n 0000 | a bird
00000500 06 n 02 crane 0 derrick 0 000 | a machine
00000600 13 n 01 hot_dog 0 001 @i 00000700 n 0000 | food
"""


def thesaurus(folder: Path, index: str = INDEX, data: str = DATA) -> Thesaurus:
    (folder / "index.noun").write_text(index)
    (folder / "data.noun").write_text(data)
    return load_thesaurus(str(folder))


def names(*all_names: str) -> list[Category]:
    return [Category(category_id=place + 1, name=name) for place, name in enumerate(all_names)]


def test_senses_are_found_whatever_the_form_of_the_noun(tmp_path: Path) -> None:
    known = thesaurus(tmp_path)
    assert known.senses("A Wildebeest.") == known.senses("gnus") == (300,)
    assert known.senses("hot dogs") == known.senses("hot-dog") == (600,)
    assert known.senses("crane") == (400, 500)
    assert known.senses("zonk") == known.senses("") == known.senses("\U0001f600") == ()


def test_kinds_are_followed_upwards_with_their_steps(tmp_path: Path) -> None:
    known = thesaurus(tmp_path)
    assert known.above(300, 6) == {300: 0, 200: 1, 100: 2}
    assert known.above(300, 1) == {300: 0, 200: 1}
    assert known.above(600, 6) == {600: 0, 700: 1}


def test_circle_of_kinds_ends() -> None:
    assert Thesaurus({}, {1: (2,), 2: (1, 3)}).above(1, 50) == {1: 0, 2: 1, 3: 2}


def test_same_sense_counts_most_then_kinds_by_their_steps(tmp_path: Path) -> None:
    blender = Blender(make_vocabulary("v", names("gnu", "antelope", "animal", "hot dog")), thesaurus(tmp_path))
    assert blender.bonuses("wildebeest") == pytest.approx({0: SAME_SENSE, 1: KIND_OF, 2: KIND_OF * 0.8})
    assert blender.bonuses("animal") == {2: SAME_SENSE}  # an animal is not a gnu
    assert blender.bonuses("zonk") == {}


def test_rarer_sense_counts_less_on_either_side(tmp_path: Path) -> None:
    blender = Blender(make_vocabulary("v", names("animal", "derrick")), thesaurus(tmp_path))
    assert blender.bonuses("crane") == pytest.approx({0: KIND_OF, 1: SAME_SENSE * 0.85})
    blender = Blender(make_vocabulary("v", names("crane")), thesaurus(tmp_path))
    assert blender.bonuses("derrick") == pytest.approx({0: SAME_SENSE * 0.85})


def test_synonyms_of_a_category_count_as_its_name(tmp_path: Path) -> None:
    category = Category(category_id=1, name="bearded thing", synonyms=("gnu",))
    assert Blender(make_vocabulary("v", [category]), thesaurus(tmp_path)).bonuses("wildebeest") == {0: SAME_SENSE}


def test_blending_reorders_the_nearest_and_brings_in_what_was_far() -> None:
    cosine_of = {3: 0.8, 5: 0.7, 9: 0.1}
    nearest = [(3, 0.8), (5, 0.7)]
    assert blend(nearest, {9: 0.5, 5: 0.5}, cosine_of.__getitem__) == [(5, 1.2), (3, 0.8)]
    assert blend(nearest, {}, cosine_of.__getitem__) == nearest
    assert blend(nearest, {9: 0.75}, cosine_of.__getitem__) == [(9, 0.85), (3, 0.8)]
    assert blend(nearest[:1], {9: 0.5}, cosine_of.__getitem__) == [(3, 0.8)]


@pytest.mark.parametrize(
    ("index", "data", "expected"),
    [
        ("cat n x\n", DATA, "index.noun, line 1: expected an entry"),
        ("cat\n", DATA, "index.noun, line 1"),
        (INDEX, "00000100 03 n zz cat\n", "data.noun, line 1"),
        (INDEX, "00000100 03 n 01 cat 0 001\nhello", "data.noun, line"),
        ("", "", "got none"),
        ("<html>\n", DATA, "index.noun, line 1"),
    ],
)
def test_other_files_are_refused_with_their_line(tmp_path: Path, index: str, data: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        thesaurus(tmp_path, index, data)


def test_missing_folder_is_refused_with_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Name the folder that holds index.noun and data.noun"):
        load_thesaurus(str(tmp_path / "none"))
