"""Which category of a vocabulary is whose parent, and the label an answer falls back to that is only sure of the parent.

A row's `parent` names a category by id or by name and must exist. Its `supercategory` makes a parent where a category bears that
name; else it only names a group, as in COCO. Leaves to `snapping` when to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlabel.errors import InputError
from rlabel.records import JsonValue, Snap
from rlabel.vocabulary.vocabulary import Category, Vocabulary
from rlabel.vocabulary.words import fold

# Categories that are looked at for a tie; where even the last of them ties, nothing is concluded.
NUM_TIED = 16
# WordNet's longest line has some twenty; a chain of all categories would make every look-up as long.
MAX_LEVELS = 256
_DECIMALS = 6


class Hierarchy:
    """The parents of a vocabulary's categories, each at most one, without cycles."""

    def __init__(self, vocabulary: Vocabulary, where: str = "vocabulary") -> None:
        """Read the parents.

        where: what error messages call the vocabulary. Raises InputError where a `parent` is no category of it, where a name
        fits several, where a category is its own ancestor, and for lines of more than 256 levels.
        """
        self._name_of = {category.category_id: category.name for category in vocabulary.categories}
        self._parent_of: dict[int, int] = {}
        ids_of: dict[tuple[str, ...], list[int]] = {}
        for category in vocabulary.categories:
            ids_of.setdefault(_key(category.name), []).append(category.category_id)
        for index, category in enumerate(vocabulary.categories):
            parent = self._parent(category, ids_of, f"{where}, categories[{index}] ({category.name!r})")
            if parent is not None:
                self._parent_of[category.category_id] = parent
        self._check_lines(where)

    def __len__(self) -> int:
        """Return the number of categories, those without a parent included."""
        return len(self._name_of)

    def name(self, category_id: int) -> str:
        """Return the name of a category."""
        return self._name_of[category_id]

    def ancestors(self, category_id: int) -> tuple[int, ...]:
        """Return the ids of a category's ancestors, its parent first; () where it has none."""
        found: list[int] = []
        while category_id in self._parent_of:
            category_id = self._parent_of[category_id]
            found.append(category_id)
        return tuple(found)

    def common(self, category_ids: Sequence[int]) -> int | None:
        """Return the nearest category that holds all of these, one of them if it holds the others; None where none does."""
        if not category_ids:
            return None
        lines = [(category_id, *self.ancestors(category_id)) for category_id in category_ids]
        rest = [frozenset(line) for line in lines[1:]]
        return next((one for one in lines[0] if all(one in line for line in rest)), None)

    def _parent(self, category: Category, ids_of: dict[tuple[str, ...], list[int]], where: str) -> int | None:
        stated = category.extra.get("parent")
        if stated is None:
            group = category.supercategory
            # A supercategory that repeats the name is a filler of many export tools.
            found = [] if group is None else [one for one in ids_of.get(_key(group), []) if one != category.category_id]
            return found[0] if len(found) == 1 else None
        found = self._stated_ids(stated, ids_of)
        if len(found) != 1:
            raise InputError(
                f"{where}: expected `parent` to be the id or the name of one category, got {_shown(stated)}, which "
                f"{'none has' if not found else f'{len(found)} categories have'}. "
                "Correct it, give the parent's id, or leave the key out."
            )
        return found[0]

    def _stated_ids(self, stated: JsonValue, ids_of: dict[tuple[str, ...], list[int]]) -> list[int]:
        if isinstance(stated, str):
            by_name = ids_of.get(_key(stated), [])
            # A table gives ids as texts.
            digits = stated.strip()
            if not by_name and digits.isascii() and digits.isdigit() and len(digits) <= 16:
                return [int(digits)] if int(digits) in self._name_of else []
            return by_name
        if isinstance(stated, int | float) and not isinstance(stated, bool) and stated in self._name_of:
            return [int(stated)]
        return []

    def _check_lines(self, where: str) -> None:
        level_of: dict[int, int] = {}
        for start in self._parent_of:
            line: dict[int, None] = {}
            current: int | None = start
            while current is not None and current not in level_of:
                if current in line:
                    cycle = [*list(line)[list(line).index(current) :], current]
                    names = " -> ".join(repr(self._name_of[one]) for one in cycle[:6])
                    raise InputError(
                        f"{where}: expected a tree, got categories that are their own ancestors: {names}. "
                        "Leave out one of these parents."
                    )
                line[current] = None
                current = self._parent_of.get(current)
            above = 0 if current is None else level_of[current]
            level_of.update((one, above + steps) for steps, one in enumerate(reversed(line), start=1))
            if level_of[start] > MAX_LEVELS:
                raise InputError(
                    f"{where}: expected at most {MAX_LEVELS} levels of parents, got {level_of[start]} above and with "
                    f"{self._name_of[start]!r}. Leave some out."
                )


def fall_back(
    snap: Snap,
    nearest: Sequence[tuple[int, float]],
    hierarchy: Hierarchy,
    margin: float,
    threshold: float,
    choices: Sequence[int] = (),
) -> Snap:
    """Return the label with the parent that all tied categories share, or the abstention as it came where there is none.

    nearest: (category_id, cosine) of the categories nearest to the text, best first, NUM_TIED of them if there are so many; []
    where the embedding was not asked. margin, threshold: those that made the snap abstain. choices: ids of the categories that
    the words of the text fit alike; they go before `nearest`.

    Only ties fall back: a denial, an empty answer and one below the threshold stay abstentions. Similarity and margin stay
    those of the tie.
    """
    if snap.category_id is not None:
        return snap
    tied = list(choices) or _tied(snap, nearest, hierarchy, margin, threshold)
    parent = hierarchy.common(tied) if len(tied) > 1 else None
    if parent is None:
        return snap
    return replace(snap, category_id=parent, nearest_name=hierarchy.name(parent), decided_by="parent", reason=None)


def _tied(
    snap: Snap, nearest: Sequence[tuple[int, float]], hierarchy: Hierarchy, margin: float, threshold: float
) -> list[int]:
    if not nearest or not nearest[0][1] >= threshold or snap.similarity != min(nearest[0][1], 1.0):
        return []
    best = nearest[0][1]
    tied = [category_id for category_id, cosine in nearest if round(best - cosine, _DECIMALS) < margin]
    return tied if len(tied) < len(nearest) or len(nearest) == len(hierarchy) else []


def _key(name: str) -> tuple[str, ...]:
    return fold(name) or (name.strip(),)


def _shown(value: JsonValue) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
