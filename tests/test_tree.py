"""V3Det's category tree: its parents, for `--fallback parent`, and trees that are none."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlabel.cli.vocabulary import vocabulary as command
from rlabel.errors import InputError
from rlabel.vocabulary import tree as module
from rlabel.vocabulary.check import check_vocabulary
from rlabel.vocabulary.hierarchy import MAX_LEVELS, Hierarchy
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.tree import load_with_tree
from rlabel.vocabulary.vocabulary import Category, make_vocabulary
from test_snapping import FakeEmbedder

# As V3Det's annotation files write categories, and as its category_tree.json maps them to nodes.
CATEGORIES = [
    {"id": 1, "name": "dog", "cat_info": "a domestic animal", "cat_info_gpt": "...", "novel": False},
    {"id": 2, "name": "poodle", "cat_info": "a curly dog", "cat_info_gpt": "...", "novel": True},
    {"id": 3, "name": "beagle", "cat_info": "a small hound", "cat_info_gpt": "...", "novel": False},
    {"id": 4, "name": "truck", "cat_info": "a vehicle", "cat_info_gpt": "...", "novel": False},
    {"id": 5, "name": "compass (drawing tool)", "cat_info": "it draws circles", "cat_info_gpt": "...", "novel": False},
]
TREE: dict[str, Any] = {
    "id2name": {
        "n00001740": "entity",
        "n02084071": "dog",
        "n02087122": "hunting dog",
        "n02113335": "poodle",
        "n02088364": "beagle",
        "n04490091": "truck",
        "Q12345": "compass",
    },
    "id2name_zh": {"n02084071": "\u72d7"},
    "id2desc": {"n02084071": "a member of the genus Canis"},
    "id2desc_zh": {},
    "id2synonym_list": {"n02084071": ["dog", "domestic dog"]},
    "father2child": {
        "n00001740": ["n02084071", "n04490091", "Q12345"],
        "n02084071": ["n02087122", "n02113335"],
        "n02087122": ["n02088364"],
    },
    "child2father": {
        "n02084071": ["n00001740"],
        "n02087122": ["n02084071"],
        "n02113335": ["n02084071"],
        "n02088364": ["n02087122"],
        "n04490091": ["n00001740"],
        "Q12345": ["n00001740"],
    },
    "ancestor2descendant": {"n02084071": ["n02087122", "n02113335", "n02088364"]},
    "descendant2ancestor": {"n02088364": ["n02087122", "n02084071", "n00001740"]},
    "categoryid2treeid": {"1": "n02084071", "2": "n02113335", "3": "n02088364", "4": "n04490091", "5": "Q12345"},
}


def write(folder: Path, tree: object = TREE, rows: object = CATEGORIES) -> tuple[str, str]:
    names, file = folder / "v3det_2023_v1_val.json", folder / "v3det_2023_v1_category_tree.json"
    names.write_text(json.dumps({"images": [], "categories": rows, "annotations": []}), encoding="utf-8")
    file.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")
    return str(names), str(file)


def changed(**sections: object) -> dict[str, Any]:
    return {**TREE, **sections}


def parents(vocabulary: Any) -> dict[int, tuple[int, ...]]:
    hierarchy = Hierarchy(vocabulary)
    return {one.category_id: hierarchy.ancestors(one.category_id) for one in vocabulary.categories}


def test_parent_is_the_nearest_category_above_whatever_lies_between(tmp_path: Path) -> None:
    vocabulary = load_with_tree(*write(tmp_path))
    assert parents(vocabulary) == {1: (), 2: (1,), 3: (1,), 4: (), 5: ()}
    assert vocabulary.notes == ("the tree gives 2 of 5 categories a parent",)
    assert vocabulary.categories[1].extra["novel"] is True


@pytest.mark.parametrize("names", [None, {node: [name] for node, name in TREE["id2name"].items()}])
def test_tree_may_be_told_by_children_alone_and_names_may_be_lists(tmp_path: Path, names: object) -> None:
    tree = changed(id2name=names or {})
    del tree["child2father"]
    assert parents(load_with_tree(*write(tmp_path, tree)))[3] == (1,)


def test_of_two_fathers_the_nearer_category_counts_then_the_first(tmp_path: Path) -> None:
    rows = [*CATEGORIES, {"id": 6, "name": "hunting dog"}]
    ids = {**TREE["categoryid2treeid"], "6": "n02087122"}
    both = {**TREE["child2father"], "n02088364": ["n02113335", "n02087122"]}
    tree = changed(categoryid2treeid=ids, child2father=both)
    assert parents(load_with_tree(*write(tmp_path, tree, rows)))[3] == (2, 1)
    both["n02088364"] = ["n00001740", "n02087122"]
    assert parents(load_with_tree(*write(tmp_path, tree, rows)))[3] == (6, 1)


def test_part_of_a_vocabulary_takes_what_the_tree_knows_of_it(tmp_path: Path) -> None:
    rows = [CATEGORIES[0], CATEGORIES[2], {"id": 99, "name": "unicorn", "parent": "dog"}]
    vocabulary = load_with_tree(*write(tmp_path, rows=rows))
    assert parents(vocabulary) == {1: (), 3: (1,), 99: (1,)}
    assert "does not know 1" in vocabulary.notes[0]
    assert load_with_tree(write(tmp_path, rows=rows)[0], None).notes == ()


def test_answer_sure_of_the_parent_only_gets_it(tmp_path: Path) -> None:
    vocabulary = load_with_tree(*write(tmp_path))
    snap = Snapper(vocabulary, FakeEmbedder(), fallback="parent").snap(["a poodle or a beagle"])[0]
    assert (snap.category_id, snap.decided_by) == (1, "parent")


CIRCLE = {**TREE["child2father"], "n02084071": ["n02088364"]}


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (changed(child2father=CIRCLE), "expected a tree, got nodes above themselves"),
        (changed(child2father={**TREE["child2father"], "n02113335": ["n02113335"]}), "above themselves"),
        (changed(child2father={**TREE["child2father"], "n02113335": ["n99"]}), "expected nodes that the file names, got 'n99'"),
        (changed(categoryid2treeid={**TREE["categoryid2treeid"], "2": "n99"}), "got 'n99' for category 2"),
        (changed(categoryid2treeid={**TREE["categoryid2treeid"], "2": "n02084071"}), "for both 1 and 2"),
        (changed(categoryid2treeid={"one": "n02084071"}), "expected a category's id and its node"),
        (changed(categoryid2treeid={"1": ["n02084071", "n02113335"]}), "expected a category's id and its node"),
        (changed(categoryid2treeid={"1001": "n02084071"}), "got none of its ids"),
        (changed(id2name={node: f"x{node}" for node in TREE["id2name"]}), "0 of 5 names alike, such as 'dog' for 'xn02084071'"),
        (changed(categoryid2treeid={}), "expected a category tree with categoryid2treeid and child2father"),
        (changed(child2father={}, father2child={}), "expected a category tree with"),
        ({"categories": CATEGORIES}, "none of its mappings"),
        ([1, 2], "got a list"),
        ('{"id2name": ', "does not parse"),
        ("", "does not parse"),
        ('{"id2name": ' + "[" * 5000, "nested at most"),
        (changed(id2name={"n1": "x" * 501}), "at most 500 characters"),
    ],
)  # fmt: skip
def test_other_trees_are_refused_with_what_is_wrong(tmp_path: Path, tree: object, expected: str) -> None:
    names, file = write(tmp_path, tree)
    with pytest.raises(InputError) as refused:
        load_with_tree(names, file)
    assert expected in str(refused.value)
    assert "category_tree.json" in str(refused.value)
    check = check_vocabulary(names, tree=file)
    assert not check.usable
    assert [problem.kind for problem in check.problems if problem.fatal] == ["tree"]


def test_missing_and_endless_trees_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, file = write(tmp_path)
    with pytest.raises(InputError, match="expected a category tree file, got nothing"):
        load_with_tree(names, str(tmp_path / "none.json"))
    monkeypatch.setattr(module, "MAX_LINKS", 20)
    with pytest.raises(InputError, match="expected at most 20 nodes and links"):
        load_with_tree(names, file)
    monkeypatch.setattr(module, "MAX_TREE_BYTES", 100)
    with pytest.raises(InputError, match="expected at most 100 bytes"):
        load_with_tree(names, file)


def test_line_of_twenty_thousand_nodes_ends_in_time(tmp_path: Path) -> None:
    length = 20_000
    fathers = {f"n{node}": [f"n{node + 1}"] for node in range(length)}
    rows = [{"id": 1, "name": "dog"}, {"id": 2, "name": "beast"}]
    tree = {"categoryid2treeid": {"1": "n0", "2": f"n{length}"}, "child2father": fathers}
    started = time.process_time()
    assert parents(load_with_tree(*write(tmp_path, tree, rows))) == {1: (2,), 2: ()}
    assert time.process_time() - started < 10.0


def test_categories_may_lie_so_deep_and_no_deeper() -> None:
    def line(length: int) -> Hierarchy:
        rows = [Category(category_id=1, name="n1")]
        rows += [Category(category_id=one, name=f"n{one}", extra={"parent": one - 1}) for one in range(2, length + 1)]
        return Hierarchy(make_vocabulary("v", reversed(rows)))

    assert len(line(MAX_LEVELS).ancestors(MAX_LEVELS)) == MAX_LEVELS - 1
    with pytest.raises(InputError, match=f"expected at most {MAX_LEVELS} levels of parents"):
        line(MAX_LEVELS + 1)


def test_check_says_how_many_have_a_parent_and_ends_with_two_for_another_tree(tmp_path: Path) -> None:
    names, file = write(tmp_path)
    result = CliRunner().invoke(command, ["check", names, "--tree", file])
    assert result.exit_code == 0
    assert "5 categories, 0 synonyms, 2 with a parent" in result.output
    document = json.loads(CliRunner().invoke(command, ["check", names, "--tree", file, "--json"]).output)
    assert document["num_parents"] == 2
    _, file = write(tmp_path, changed(child2father=CIRCLE))
    result = CliRunner().invoke(command, ["check", names, "--tree", file])
    assert result.exit_code == 2
    assert "error: tree (1)" in result.output
