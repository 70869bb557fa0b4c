"""Finds the run's categories among the truth's, when both come from one vocabulary and when they do not."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rlabel.errors import InputError
from rlabel.evaluation.reading import NamedCategory


def normalise_name(name: str) -> str:
    """Return a name for comparing: lower case, "_", "-" and ":" as spaces, single spaces."""
    return " ".join(re.sub(r"[_\-:]", " ", unicodedata.normalize("NFKC", name).casefold()).split())


def match_categories(run: Sequence[NamedCategory], truth: Sequence[NamedCategory]) -> tuple[dict[int, int], str]:
    """Return the truth's category id for each run category that has one, and "id" or "name" (some ids differ).

    The same id counts only with the same name. Else the one truth category of that name is taken, else the one that
    shares a name or synonym; of several, none.
    Raises InputError when nothing matches.
    """
    truth_by_id = {category.category_id: category for category in truth}
    by_name = _index((normalise_name(category.name), category.category_id) for category in truth)
    by_any_name = _index((name, category.category_id) for category in truth for name in _all_names(category))
    found: dict[int, int] = {}
    for category in run:
        name = normalise_name(category.name)
        same_id = truth_by_id.get(category.category_id)
        if same_id is not None and normalise_name(same_id.name) == name:
            found[category.category_id] = category.category_id
            continue
        candidates = by_name.get(name) or {i for known in _all_names(category) for i in by_any_name.get(known, ())}
        if len(candidates) == 1:
            found[category.category_id] = next(iter(candidates))
    if not found:
        raise InputError(
            f"no category of the run's vocabulary is in the truth, neither by id and name nor by name: the run has "
            f"{_examples(run)}, the truth has {_examples(truth)}. Name a truth file with the same categories, or label "
            "again with a vocabulary made from the truth's."
        )
    return found, "id" if all(a == b for a, b in found.items()) else "name"


def _all_names(category: NamedCategory) -> set[str]:
    return {normalise_name(name) for name in (category.name, *category.synonyms)}


def _index(pairs: Iterable[tuple[str, int]]) -> dict[str, set[int]]:
    index: defaultdict[str, set[int]] = defaultdict(set)
    for name, category_id in pairs:
        index[name].add(category_id)
    return dict(index)


def _examples(categories: Sequence[NamedCategory]) -> str:
    shown = ", ".join(f"{category.category_id} {category.name!r}" for category in categories[:3])
    return f"{shown}{', ...' if len(categories) > 3 else ''} ({len(categories)} in all)"
