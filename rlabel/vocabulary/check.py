"""Finds everything about a vocabulary file that a user should know before labeling with it: what makes it unusable, all of it
and not only the first fault, and what would make answers miss their category. Changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlabel.errors import InputError
from rlabel.records import JsonObject, JsonValue
from rlabel.schema_files import validate
from rlabel.vocabulary.embedding import TextEmbedder
from rlabel.vocabulary.hierarchy import Hierarchy
from rlabel.vocabulary.lexicon import surface_forms
from rlabel.vocabulary.phrases import DENIALS
from rlabel.vocabulary.prototypes import query_text
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.tree import add_tree
from rlabel.vocabulary.vocabulary import (
    Category,
    Vocabulary,
    category_sense,
    load_vocabulary,
    read_plain_rows,
    row_fits,
    row_to_category,
)
from rlabel.vocabulary.words import fold, split_words, stems

MAX_NEAR_PAIRS = 100
# Answers end after 24 tokens (`LabelSettings.max_new_tokens`): about so many words.
_MAX_USUAL_WORDS = 10
_MAX_WRONG_ROWS = 1000
_BLOCK_ROWS = 1024
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing about a vocabulary file.

    kind: a short word, the same for all of its sort. fatal: `load_vocabulary` refuses the file for it. category_indices: positions
    in the file, from 0, of the rows it concerns.
    """

    kind: str
    fatal: bool
    message: str
    category_indices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found.

    num_parents: categories that have a parent. embedded: whether embeddings were compared. problems: fatal ones first, then by kind,
    each in file order.
    """

    url: str
    num_categories: int
    num_synonyms: int
    num_parents: int
    embedded: bool
    problems: tuple[Problem, ...]

    @property
    def usable(self) -> bool:
        """Whether `load_vocabulary` takes the file."""
        return not any(problem.fatal for problem in self.problems)

    def to_json(self) -> JsonObject:
        """Return plain JSON with every problem."""
        counts: dict[str, JsonValue] = dict(sorted(Counter(problem.kind for problem in self.problems).items()))
        return {
            "file": self.url,
            "usable": self.usable,
            "num_categories": self.num_categories,
            "num_synonyms": self.num_synonyms,
            "num_parents": self.num_parents,
            "embedded": self.embedded,
            "counts": counts,
            "problems": [
                {
                    "kind": problem.kind,
                    "fatal": problem.fatal,
                    "message": problem.message,
                    "category_indices": list(problem.category_indices),
                }
                for problem in self.problems
            ],
        }


def check_vocabulary(
    url: str,
    *,
    keep_zero_ids: bool = False,
    embedder: TextEmbedder | None = None,
    near: float = 0.9,
    tree: str | None = None,
) -> Check:
    """Return all that is wrong with, or worth knowing of, a vocabulary file.

    embedder: compares the names of categories; None leaves that out. near: the least cosine of two names, in [-1, 1], that is
    reported; the nearest 100 pairs are. tree: V3Det's category tree, that the vocabulary's parents are taken from.

    A file that cannot be read or parsed, or holds no category, has just that problem. Raises InputError where the embedder does.
    """
    try:
        _, rows = read_plain_rows(url)
    except InputError as error:
        unreadable = Problem(kind="file", fatal=True, message=str(error))
        return Check(url=url, num_categories=0, num_synonyms=0, num_parents=0, embedded=False, problems=(unreadable,))
    problems: list[Problem] = list(_wrong_rows(rows))
    wrong = {index for problem in problems for index in problem.category_indices}
    categories = {
        index: row_to_category(row)
        for index, row in enumerate(rows)
        if index not in wrong and isinstance(row, dict) and len(wrong) < _MAX_WRONG_ROWS
    }
    problems += _wrong_ids(categories, keep_zero_ids)
    problems += _equal_names(categories)
    num_parents = 0
    if not any(problem.fatal for problem in problems):
        # A guard against forgetting a rule here: what refuses is the loader.
        try:
            vocabulary = load_vocabulary(url, keep_zero_ids=keep_zero_ids)
        except InputError as error:
            problems.append(Problem(kind="file", fatal=True, message=str(error)))
        else:
            own_problems, num_parents = _parents(vocabulary, tree)
            problems += own_problems
    problems += _odd_names(categories)
    problems += _shared_synonyms(categories)
    problems += _unreached(categories)
    if embedder is not None:
        problems += _near_names(categories, embedder, near)
    return Check(
        url=url,
        num_categories=len(rows),
        num_synonyms=sum(len(category.synonyms) for category in categories.values()),
        num_parents=num_parents,
        embedded=embedder is not None,
        problems=tuple(sorted(problems, key=lambda problem: (not problem.fatal, problem.kind))),
    )


def _wrong_rows(rows: Sequence[JsonValue]) -> Iterator[Problem]:
    num_wrong = 0
    for index, row in enumerate(rows):
        if row_fits(row):
            continue
        try:
            validate({"categories": [row]}, "vocabulary", "")
        except InputError as error:
            message = str(error).removeprefix(": ").replace("categories[0]", f"categories[{index}]", 1)
            yield Problem(kind="row", fatal=True, message=message, category_indices=(index,))
            num_wrong += 1
            if num_wrong >= _MAX_WRONG_ROWS:
                yield Problem(kind="row", fatal=True, message="more rows like these are not listed")
                return


def _wrong_ids(categories: dict[int, Category], keep_zero_ids: bool) -> Iterator[Problem]:
    indices_of: dict[int, list[int]] = {}
    for index, category in categories.items():
        indices_of.setdefault(category.category_id, []).append(index)
    for category_id, indices in indices_of.items():
        if category_id == 0:
            yield Problem(
                kind="zero id",
                fatal=not keep_zero_ids,
                message=f"id 0 of {_names(categories, indices)}: some readers take it for 'no label'"
                f"{'' if keep_zero_ids else '; renumber it, or give --keep-zero-ids'}",
                category_indices=tuple(indices),
            )
        if len(indices) > 1:
            yield Problem(
                kind="repeated id",
                fatal=True,
                message=f"id {category_id} of {_names(categories, indices)}: give each an id of its own",
                category_indices=tuple(indices),
            )


def _equal_names(categories: dict[int, Category]) -> Iterator[Problem]:
    indices_of: dict[tuple[str, ...], list[int]] = {}
    for index, category in categories.items():
        indices_of.setdefault(fold(category.name) or (category.name.strip(),), []).append(index)
    for indices in indices_of.values():
        by_sense: dict[tuple[str | None, ...], list[int]] = {}
        for index in indices:
            by_sense.setdefault(category_sense(categories[index]), []).append(index)
        for same in by_sense.values():
            if len(same) > 1:
                yield Problem(
                    kind="equal names",
                    fatal=True,
                    message=f"{_names(categories, same)} say the same: merge them, or tell them apart by def, supercategory or synset",
                    category_indices=tuple(same),
                )
        if len(by_sense) > 1:
            yield Problem(
                kind="homonyms",
                fatal=False,
                message=f"{_names(categories, indices)} differ in sense only: answers go to the first",
                category_indices=tuple(indices),
            )
    yield from _alike_names(categories)


def _alike_names(categories: dict[int, Category]) -> Iterator[Problem]:
    """Give names that are one up to plural, spelling and spaces, though not equal."""
    indices_of: dict[str, list[int]] = {}
    for index, category in categories.items():
        joined = "".join(stems(fold(category.name)))
        if joined:
            indices_of.setdefault(joined, []).append(index)
    for indices in indices_of.values():
        if len({fold(categories[index].name) for index in indices}) > 1:
            yield Problem(
                kind="alike names",
                fatal=False,
                message=f"{_names(categories, indices)} differ in plural, spelling or spaces only",
                category_indices=tuple(indices),
            )


def _odd_names(categories: dict[int, Category]) -> Iterator[Problem]:
    for index, category in categories.items():
        for form in dict.fromkeys((category.name, *category.synonyms)):
            what = _oddity(form)
            if what:
                is_name = form == category.name
                yield Problem(
                    kind="odd name" if is_name else "odd synonym",
                    fatal=False,
                    message=f"{_shown(form)}{'' if is_name else f' of {_shown(category.name)}'} {what}",
                    category_indices=(index,),
                )


def _oddity(form: str) -> str:
    words = split_words(form)
    if not words:
        return "has no word: only an answer of exactly these characters meets it"
    if all(word.isdecimal() for word in words):
        return "is only digits"
    if len(words) > _MAX_USUAL_WORDS:
        return f"has {len(words)} words: answers are seldom so long"
    if any(word in DENIALS for word in words):
        return "holds a word that denies in a sentence"
    if any(ord(character) < 32 for character in form):
        return "holds a line break, a tab or another control character"
    return ""


def _shared_synonyms(categories: dict[int, Category]) -> Iterator[Problem]:
    names = {stems(fold(category.name)) for category in categories.values()}
    owners_of: dict[tuple[str, ...], dict[int, str]] = {}
    for index, category in categories.items():
        for form, is_name in surface_forms(category):
            words = stems(fold(form))
            if words and not is_name and words not in names:
                owners_of.setdefault(words, {}).setdefault(index, form)
    for owners in owners_of.values():
        if len(owners) > 1:
            yield Problem(
                kind="shared synonym",
                fatal=False,
                message=f"{_shown(next(iter(owners.values())).strip())} is a synonym of {_names(categories, list(owners))}: "
                "such an answer abstains",
                category_indices=tuple(owners),
            )


def _unreached(categories: dict[int, Category]) -> Iterator[Problem]:
    """Snap every name and synonym, by words alone, and give those that do not come back to their own category."""
    # Ids may repeat in a broken file: here a category's id is its place.
    places = list(categories)
    renumbered = tuple(replace(categories[index], category_id=place) for place, index in enumerate(places))
    snapper = Snapper(Vocabulary(name="check", categories=renumbered, sha256=""), None)
    shared = {words for words, count in _owner_counts(renumbered).items() if count > 1}
    for in_sentence in (False, True):
        asked = [
            (place, form)
            for place, category in enumerate(renumbered)
            for form in (dict.fromkeys([category.name, *category.synonyms]) if not in_sentence else [category.name])
            if form.strip() and (fold(form) or not in_sentence)
        ]
        snaps = snapper.snap([f"A {' '.join(split_words(form))}." if in_sentence else form for _, form in asked])
        for (place, form), snap in zip(asked, snaps, strict=True):
            category = renumbered[place]
            if snap.category_id == place or (snap.category_id is None and stems(fold(form)) in shared):
                continue
            if fold(form) == fold(category.name) and not in_sentence and snap.category_id is not None:
                continue  # a homonym, which is reported as such
            if in_sentence and snap.category_id is not None and snapper.snap([form])[0].category_id != place:
                continue
            gets = (
                f"goes to {_shown(renumbered[snap.category_id].name)}" if snap.category_id is not None else "abstains"
            )
            what = f"the answer {_shown(f'A {form}.')}" if in_sentence else _shown(form)
            own = "" if form == category.name and not in_sentence else f" of {_shown(category.name)}"
            why = f" ({snap.reason})" if snap.reason else ""
            yield Problem(
                kind="missed in a sentence" if in_sentence else "never reached",
                fatal=False,
                message=f"{what}{own} {gets}{why}",
                category_indices=(places[place],),
            )


def _owner_counts(categories: Sequence[Category]) -> Counter[tuple[str, ...]]:
    return Counter(
        words
        for category in categories
        for words in {stems(fold(form)) for form, is_name in surface_forms(category) if not is_name}
    )


def _parents(vocabulary: Vocabulary, tree: str | None) -> tuple[list[Problem], int]:
    """Return what is wrong with the parents, those of a tree where one is given, and how many categories have one."""
    if tree is not None:
        try:
            vocabulary = add_tree(vocabulary, tree)
        except InputError as error:
            return [Problem(kind="tree", fatal=True, message=str(error))], 0
    try:
        hierarchy = Hierarchy(vocabulary)
    except InputError as error:
        message = f"{str(error).removeprefix('vocabulary, ')} Until then no fallback."
        return [Problem(kind="parents", fatal=False, message=message)], 0
    return [], sum(bool(hierarchy.ancestors(category.category_id)) for category in vocabulary.categories)


def _near_names(categories: dict[int, Category], embedder: TextEmbedder, near: float) -> Iterator[Problem]:
    """Give the pairs of names whose cosine is at least `near`, nearest first; equal names are reported elsewhere."""
    texts = {index: query_text(category.name) for index, category in categories.items()}
    indices = [index for index, text in texts.items() if text]
    if not indices:
        return
    rows_ND = np.asarray(embedder.embed([texts[index] for index in indices]), dtype=np.float32)
    pairs: list[tuple[float, int, int]] = []
    for start in range(0, len(indices), _BLOCK_ROWS):
        cosines_BN = rows_ND[start : start + _BLOCK_ROWS] @ rows_ND[start:].T
        block, other = np.nonzero(np.triu(cosines_BN, k=1) >= max(near, 1e-6))
        cosines = cosines_BN[block, other]
        # Only the nearest can end up among the reported.
        best = np.argsort(-cosines, kind="stable")[: 4 * MAX_NEAR_PAIRS]
        pairs += [
            (float(cosines[one]), indices[start + int(block[one])], indices[start + int(other[one])]) for one in best
        ]
    pairs = [pair for pair in pairs if texts[pair[1]] != texts[pair[2]]]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    for cosine, first, second in pairs[:MAX_NEAR_PAIRS]:
        yield Problem(
            kind="near names",
            fatal=False,
            message=f"{_names(categories, [first, second])} have embeddings of cosine {cosine:.3f}",
            category_indices=(first, second),
        )


def _names(categories: dict[int, Category], indices: Sequence[int]) -> str:
    shown = [f"{_shown(categories[index].name)} (id {categories[index].category_id})" for index in indices[:4]]
    more = [f"{len(indices) - 4} more"] if len(indices) > 4 else []
    parts = [*shown, *more]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")
