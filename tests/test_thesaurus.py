"""WordNet's files, those that rlabel carries included, and what they add to the similarity of a text to a category."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import rlabel.vocabulary.thesaurus as module
from rlabel.cli.snap import snap
from rlabel.errors import InputError
from rlabel.vocabulary import wordnet_pack
from rlabel.vocabulary.blending import KIND_OF, SAME_SENSE, Blender, blend
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.thesaurus import PACKED, Thesaurus, load_thesaurus, thesaurus_digest, unpack
from rlabel.vocabulary.vocabulary import Category, make_vocabulary
from run_factories import committed_run, shard_result
from test_snapping import FakeEmbedder

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
    loaded = load_thesaurus(str(folder))
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def wordnet() -> Thesaurus:
    loaded = load_thesaurus("wordnet")
    assert loaded is not None
    return loaded


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


def test_sense_that_is_rare_on_both_sides_counts_for_nothing() -> None:
    known = Thesaurus({"doll": (1, 2), "chick": (3, 2), "girl": (2,)}, {})
    blender = Blender(make_vocabulary("v", names("chick")), known)
    assert blender.bonuses("doll") == {}
    assert blender.bonuses("girl") == pytest.approx({0: SAME_SENSE * 0.85})


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


PACKED_INDEX = INDEX.replace("a licence", "WordNet Copyright")
PACKED_DATA = DATA.replace("a licence", "WordNet Copyright").replace("@i 00000700", "@i 00000100")


def test_packed_nouns_say_what_the_folder_says(tmp_path: Path) -> None:
    folder = thesaurus(tmp_path, PACKED_INDEX, PACKED_DATA)
    content = wordnet_pack.pack(str(tmp_path))
    (tmp_path / "nouns.npz").write_bytes(content)
    packed = unpack(tmp_path / "nouns.npz")
    vocabulary = make_vocabulary("v", names("gnu", "antelope", "animal", "hot dog", "crane"))
    for text in ("wildebeest", "derrick", "crane", "hot-dogs", "animal", "zonk"):
        assert Blender(vocabulary, packed).bonuses(text) == Blender(vocabulary, folder).bonuses(text)
    assert Blender(vocabulary, packed).bonuses("wildebeest") != {}
    assert wordnet_pack.pack(str(tmp_path)) == content


def test_packing_writes_the_licence_beside_the_nouns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thesaurus(tmp_path, PACKED_INDEX, PACKED_DATA)
    monkeypatch.setattr(sys, "argv", ["wordnet_pack", str(tmp_path), str(tmp_path / "out")])
    wordnet_pack.main()
    assert (tmp_path / "out" / "LICENSE").read_text() == "WordNet Copyright\n"
    (tmp_path / "data.noun").write_text(PACKED_DATA.split("\n", 1)[1])
    with pytest.raises(SystemExit, match="expected WordNet's licence at its top"):
        wordnet_pack.main()
    (tmp_path / "data.noun").write_text(DATA)
    with pytest.raises(SystemExit, match="got none at byte 700"):
        wordnet_pack.main()


def test_nouns_that_rlabel_carries_are_wordnets_with_its_licence(wordnet: Thesaurus) -> None:
    assert wordnet.senses("wildebeest") == wordnet.senses("gnu") != ()
    assert wordnet.senses("aubergines")[0] in wordnet.senses("eggplant")
    (bird,) = {sense for sense in wordnet.senses("bird")[:1]}
    assert bird in wordnet.above(wordnet.senses("sparrow")[0], 6)
    assert "Princeton University" in (PACKED.parent / "LICENSE").read_text(encoding="utf-8")
    assert PACKED.stat().st_size < 2_000_000


def test_digest_is_that_of_the_files_that_are_read(tmp_path: Path) -> None:
    assert thesaurus_digest("none") is None
    assert thesaurus_digest("wordnet") == hashlib.sha256(PACKED.read_bytes()).hexdigest()
    thesaurus(tmp_path)
    before = thesaurus_digest(str(tmp_path))
    thesaurus(tmp_path, INDEX + "zonk n 1 1 @ 1 0 00000100\n")
    assert len({before, thesaurus_digest(str(tmp_path)), thesaurus_digest("wordnet")}) == 3


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04cut", None])
def test_damaged_nouns_are_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    file = tmp_path / "nouns.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match="Install rlabel again, or pass --thesaurus none"):
        unpack(file)
    if content is None:
        monkeypatch.setattr(module, "PACKED", file)
        with pytest.raises(InputError, match="Install rlabel again"):
            thesaurus_digest("wordnet")


BEASTS = make_vocabulary("beasts", names("gnu", "dog", "cat", "object", "eggplant", "\u0643\u0644\u0628"))
ODD_ANSWERS = {
    "": "the answer is empty",
    " \n\t": "the answer is empty",
    "?!...": "the answer has no words",
    "\U0001f436\U0001f436": "the answer has no words",
    "nothing": "denies",
    "no animal": "denies",
    "not a wildebeest": "denies",
    "There is no wildebeest.": "denies",
    "a dog and a cat": "fits several categories alike",
    "hound " * 1700: "less similar",
    "wildebeest\U0001f436" * 900: "less similar",
    "\u062d\u0635\u0627\u0646 wildebeest": "less similar",
    "wildebeest or aubergine": "less similar",
    "broken wildebeest": "less similar",
    "puppy": "not a number",
}


@pytest.mark.parametrize("text", ODD_ANSWERS, ids=lambda text: repr(text[:24]))
@pytest.mark.parametrize("fallback", ["abstain", "parent"])
def test_odd_answer_abstains_with_a_reason_where_a_thesaurus_is_at_hand(
    wordnet: Thesaurus, text: str, fallback: str
) -> None:
    embedder = FakeEmbedder(broken=["puppy"])
    snap = Snapper(BEASTS, embedder, thesaurus=wordnet, fallback=fallback).snap([text])[0]  # type: ignore[arg-type]
    assert (snap.category_id, snap.decided_by) == (None, None)
    assert snap.reason is not None
    assert ODD_ANSWERS[text] in snap.reason
    assert len(snap.reason) < 300


@pytest.mark.parametrize(
    ("text", "category_id"),
    [
        ("A wildebeest.", 1),
        ("WILDEBEESTS", 1),
        ("\u200fwildebeest\u200e", 1),
        ("aubergine \U0001f346", 5),
        ("\u0643\u0644\u0628", 6),
    ],
)
def test_word_that_means_a_name_is_that_name(wordnet: Thesaurus, text: str, category_id: int) -> None:
    near = {"wildebeest": ("gnu", 0.3), "wildebeests": ("gnu", 0.3), "aubergine": ("eggplant", 0.3)}
    assert Snapper(BEASTS, FakeEmbedder(near=near), thesaurus=wordnet).snap([text])[0].category_id == category_id
    if category_id != 6:
        assert Snapper(BEASTS, FakeEmbedder(near=near)).snap([text])[0].category_id is None


def test_run_goes_on_with_the_thesaurus_it_began_with_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed_run(tmp_path / "run", [shard_result(0)])
    (tmp_path / "v.txt").write_text("thing\n")
    (tmp_path / "wordnet").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlabel.cli.snap._embedder", lambda *_: FakeEmbedder())
    call = ["run", "--vocabulary", "v.txt", "--out", "out"]
    assert CliRunner().invoke(snap, call).exit_code == 0
    began = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert began["settings"]["thesaurus_sha256"] == thesaurus_digest("wordnet")
    refused = CliRunner().invoke(snap, [*call, "--thesaurus", "none"])
    assert refused.exit_code == 2
    assert "thesaurus_sha256" in refused.output
    assert CliRunner().invoke(snap, [*call, "--thesaurus", "wordnet"]).exit_code == 0
