"""V3Det's category tree: which of a vocabulary's categories is whose parent, from the file V3Det publishes beside its annotations.

`v3det_2023_v1_category_tree.json` is one JSON object of mappings, as V3Det's own readers use it (github.com/V3Det/V3Det:
v3det_visualize_tree.py and evaluation/cocoeval_mp.py). Read here are
    categoryid2treeid   {"1": "n03210683", ...}   the node of each category, by the category's id as text
    child2father        {node: [nodes right above it]}
    father2child        {node: [nodes right below it]}, where child2father is missing
    id2name             {node: name}, or a list of names
and the others (id2name_zh, id2desc, id2synonym_list, ancestor2descendant, ...) passed over. Most nodes are no categories ("organism"):
a category's parent is the nearest category above it, of equally near ones the first in the file's order. What a parent is used for is
left to `hierarchy`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import ijson

from rlabel.errors import InputError
from rlabel.vocabulary.lexicon import surface_forms
from rlabel.vocabulary.reading import Nesting, file_chunks
from rlabel.vocabulary.vocabulary import Category, Vocabulary, load_vocabulary
from rlabel.vocabulary.words import fold

MAX_TREE_BYTES = 512 * 2**20
MAX_LINKS = 2_000_000
_MAX_TEXT_CHARACTERS = 500
_NODES, _FATHERS, _CHILDREN, _NAMES = "categoryid2treeid", "child2father", "father2child", "id2name"
# A tree of another vocabulary agrees with next to none of the names; V3Det's own need not agree with all of them.
_LEAST_AGREEMENT = 0.2
_ADVICE = "Name V3Det's v3det_2023_v1_category_tree.json, and the categories it belongs to."


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryTree:
    """What a tree file says. node_of: by category id. fathers_of: the nodes right above a node. names_of: of a node."""

    where: str
    node_of: dict[int, str]
    fathers_of: dict[str, list[str]]
    names_of: dict[str, list[str]] = field(default_factory=dict)


def load_with_tree(url: str, tree: str | None, *, keep_zero_ids: bool = False) -> Vocabulary:
    """Return the vocabulary in a file, as `load_vocabulary` does, with the parents that a tree file gives its categories.

    tree: path or URL; None leaves the categories as they are. Raises InputError as `load_vocabulary` and `add_tree`.
    """
    vocabulary = load_vocabulary(url, keep_zero_ids=keep_zero_ids)
    return vocabulary if tree is None else add_tree(vocabulary, tree)


def add_tree(vocabulary: Vocabulary, tree: str) -> Vocabulary:
    """Return the vocabulary with the parents that the tree in a file gives its categories, and a note on how many.

    Raises InputError as `load_tree` and `with_parents`.
    """
    categories, note = with_parents(vocabulary.categories, load_tree(tree), f"vocabulary {vocabulary.name}")
    return replace(vocabulary, categories=categories, notes=(*vocabulary.notes, note))


def load_tree(url: str) -> CategoryTree:
    """Return the tree in the file at a local path or any fsspec URL. Memory is bounded by the nodes and links that count.

    Raises InputError where the file cannot be read, is no such tree, names a node it does not know, or runs in circles.
    """
    sections = _read_sections(url)
    if not sections[_NODES] or not (sections[_FATHERS] or sections[_CHILDREN]):
        raise InputError(
            f"{url}: expected a category tree with {_NODES} and {_FATHERS}, got {_found(sections)}. {_ADVICE}"
        )
    fathers_of = sections[_FATHERS]
    if not fathers_of:
        for father, children in sections[_CHILDREN].items():
            for child in children:
                fathers_of.setdefault(child, []).append(father)
    node_of: dict[int, str] = {}
    category_of: dict[str, int] = {}
    for text, nodes in sections[_NODES].items():
        category_id = _to_id(text, nodes, url)
        node_of[category_id] = nodes[0]
        if category_of.setdefault(nodes[0], category_id) != category_id:
            raise InputError(
                f"{url}, {_NODES}: expected a node for each category, got {_shown(nodes[0])} for both "
                f"{category_of[nodes[0]]} and {category_id}. Take the file as it is published."
            )
    tree = CategoryTree(where=url, node_of=node_of, fathers_of=fathers_of, names_of=sections[_NAMES])
    _check_nodes(tree)
    _fathers_first(tree)
    return tree


def with_parents(categories: Sequence[Category], tree: CategoryTree, where: str) -> tuple[tuple[Category, ...], str]:
    """Return the categories with their parent's id under `parent`, as `hierarchy` reads it, and a sentence on how many have one.

    A category that the tree gives no parent keeps what its own row says. where: what error messages call the vocabulary.

    Raises InputError where the tree belongs to another vocabulary: it holds none of the ids, or other names under them.
    """
    named = [category for category in categories if category.category_id in tree.node_of]
    judged = [category for category in named if tree.names_of.get(tree.node_of[category.category_id])]
    agreeing = sum(_agrees(category, tree) for category in judged)
    if not named or agreeing < _LEAST_AGREEMENT * len(judged):
        got = (
            f"{agreeing} of {len(judged)} names alike, such as {_shown(judged[0].name)} for "
            f"{_shown(tree.names_of[tree.node_of[judged[0].category_id]][0])}"
            if named
            else "none of its ids"
        )
        raise InputError(f"{tree.where}: expected the tree of {where}, got {got}. {_ADVICE}")
    parent_of = _parents(tree, {category.category_id for category in categories})
    linked = tuple(
        replace(category, extra={**category.extra, "parent": parent_of[category.category_id]})
        if category.category_id in parent_of
        else category
        for category in categories
    )
    missing = len(categories) - len(named)
    num_parents = sum(category.category_id in parent_of for category in categories)
    note = f"the tree gives {num_parents} of {len(categories)} categories a parent"
    return linked, f"{note} and does not know {missing}" if missing else note


def _parents(tree: CategoryTree, ids: set[int]) -> dict[int, int]:
    """Return the nearest of these categories above each of them, for those that have one."""
    category_at = {node: category_id for category_id, node in tree.node_of.items() if category_id in ids}
    # Of each node the nearest category at or above it, with its steps; found once, the fathers before their children.
    at_or_above: dict[str, tuple[int, int] | None] = {}

    def above(node: str) -> tuple[int, int] | None:
        found = [at_or_above[father] for father in tree.fathers_of.get(node, ())]
        steps = [(one[0] + 1, place, one[1]) for place, one in enumerate(found) if one is not None]
        nearest = min(steps, default=None)
        return None if nearest is None else (nearest[0], nearest[2])

    for node in _fathers_first(tree):
        at_or_above[node] = (0, category_at[node]) if node in category_at else above(node)
    parents = ((category_id, above(node)) for node, category_id in category_at.items())
    return {category_id: nearest[1] for category_id, nearest in parents if nearest is not None}


def _fathers_first(tree: CategoryTree) -> list[str]:
    """Return the nodes of the categories and all that lie above them, every node after its fathers. Raises InputError for a circle."""
    order: list[str] = []
    done: set[str] = set()
    open_nodes: dict[str, None] = {}
    for start in tree.node_of.values():
        stack: list[tuple[str, Iterator[str]]] = []
        if start not in done:
            stack.append((start, iter(tree.fathers_of.get(start, ()))))
            open_nodes[start] = None
        while stack:
            node, fathers = stack[-1]
            father = next((one for one in fathers if one not in done), None)
            if father is None:
                stack.pop()
                del open_nodes[node]
                done.add(node)
                order.append(node)
                continue
            if father in open_nodes:
                line = list(open_nodes)
                circle = [*line[line.index(father) :], father]
                raise InputError(
                    f"{tree.where}: expected a tree, got nodes above themselves: {' -> '.join(map(_shown, circle[:6]))}. "
                    "Take the file as it is published."
                )
            open_nodes[father] = None
            stack.append((father, iter(tree.fathers_of.get(father, ()))))
    return order


def _check_nodes(tree: CategoryTree) -> None:
    """Raise where a category or a link names a node that the file does not know."""
    known = set(tree.names_of) or set(tree.fathers_of).union(*tree.fathers_of.values())
    for category_id, node in tree.node_of.items():
        if node not in known:
            raise InputError(
                f"{tree.where}, {_NODES}: expected nodes that the file names, got {_shown(node)} for category {category_id}. "
                "Take the file as it is published."
            )
    for child, fathers in tree.fathers_of.items():
        for node in (child, *fathers):
            if node not in known:
                raise InputError(
                    f"{tree.where}, {_FATHERS}: expected nodes that the file names, got {_shown(node)}. "
                    "Take the file as it is published."
                )


def _agrees(category: Category, tree: CategoryTree) -> bool:
    theirs = {fold(name) for name in tree.names_of[tree.node_of[category.category_id]]}
    return any(fold(form) in theirs for form, _ in surface_forms(category))


def _to_id(text: str, nodes: list[str], url: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16) or len(nodes) != 1:
        raise InputError(
            f"{url}, {_NODES}: expected a category's id and its node, got {_shown(text)}: {_shown(', '.join(nodes))}. {_ADVICE}"
        )
    return int(text)


def _read_sections(url: str) -> dict[str, dict[str, list[str]]]:
    """Return the four mappings, each value as a list of texts, from one pass over the file's events."""
    sections: dict[str, dict[str, list[str]]] = {name: {} for name in (_NODES, _FATHERS, _CHILDREN, _NAMES)}
    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events, use_float=True)
    nesting = Nesting(url)
    num_bytes = num_texts = depth = 0
    section: dict[str, list[str]] | None = None
    texts: list[str] = []
    try:
        for chunk in file_chunks(url, "category tree"):
            nesting.check(chunk)
            num_bytes += len(chunk)
            if num_bytes > MAX_TREE_BYTES:
                raise InputError(f"{url}: expected at most {MAX_TREE_BYTES} bytes, got more. {_ADVICE}")
            parser.send(chunk)
            for event, value in events:
                if event in ("start_map", "start_array"):
                    depth += 1
                    if depth == 1 and event == "start_array":
                        raise InputError(f"{url}: expected a category tree, a JSON object, got a list. {_ADVICE}")
                elif event in ("end_map", "end_array"):
                    depth -= 1
                elif event == "map_key" and depth == 1:
                    section, texts = sections.get(str(value)), []
                elif section is None:
                    continue
                elif event == "map_key" and depth == 2:
                    texts = section.setdefault(_short(value, url), [])
                elif event in ("string", "number") and depth in (2, 3):
                    texts.append(_short(value, url))
                    num_texts += 1
                    if num_texts > MAX_LINKS:
                        raise InputError(f"{url}: expected at most {MAX_LINKS} nodes and links, got more. {_ADVICE}")
            events.clear()
        parser.close()
    except (ijson.JSONError, UnicodeDecodeError) as error:
        cause = " ".join(str(error).split())[:160]
        raise InputError(f"{url}: expected JSON, got something that does not parse ({cause}). {_ADVICE}") from error
    return sections


def _short(value: object, url: str) -> str:
    text = str(value)
    if len(text) > _MAX_TEXT_CHARACTERS:
        raise InputError(
            f"{url}: expected names of at most {_MAX_TEXT_CHARACTERS} characters, got {_shown(text)}. {_ADVICE}"
        )
    return text


def _found(sections: dict[str, dict[str, list[str]]]) -> str:
    return ", ".join(name for name, section in sections.items() if section) or "none of its mappings"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
