"""The lexical steps of snapping: from the words of an answer to a category, without any model.

exact and synonym compare the text as it stands; inflection compares words without case, punctuation, articles, plural
and spelling variants; phrase looks for names inside a sentence. Leaves to `snapping` what no word decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rlabel.records import DecidedBy
from rlabel.vocabulary.phrases import DENIALS, MAX_PHRASE_CHARACTERS, Reading, read_phrase
from rlabel.vocabulary.vocabulary import Category, Vocabulary
from rlabel.vocabulary.words import fold, stems, unify

# "t shirt" and "tshirt" are one; two letters run together by chance are not.
_MIN_JOINED_LETTERS = 4
# What forms say where nothing is to be said; only as whole answers.
_NO_ANSWERS = frozenset({"n/a", "n.a", "na", "nil", "null", "undefined"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the words say: a category (decided_by is set), or that nothing should be chosen (reason is set).

    category_index: position in the vocabulary; where nothing is chosen, that of the nearest category, or None.
    noun_phrase: where a name was found with words before it that narrow it down, all of them; else "".
    choices: positions of the categories that fit alike, where that is the reason; else ().
    """

    category_index: int | None
    decided_by: DecidedBy | None
    reason: str | None = None
    noun_phrase: str = ""
    choices: tuple[int, ...] = ()


@dataclass(slots=True)
class _Owners:
    """The categories a form of words belongs to: the first one so named, and those that have it as a synonym."""

    named: int | None = None
    called: list[int] = field(default_factory=list)

    def add(self, category_index: int, is_name: bool) -> None:
        if is_name and self.named is None:
            self.named = category_index
        elif not is_name and category_index not in self.called:
            self.called.append(category_index)

    def choices(self) -> tuple[int, ...]:
        """Return the one owner, or all of them where they are of equal standing."""
        return (self.named,) if self.named is not None else tuple(self.called)


class Lexicon:
    """The names and synonyms of a vocabulary, indexed.

    A name goes before a synonym, and of equal names the first in file order.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._names = [category.name for category in vocabulary.categories]
        self._verbatim_names: dict[str, int] = {}
        self._verbatim_synonyms: dict[str, _Owners] = {}
        self._folded: dict[tuple[str, ...], _Owners] = {}
        self._stemmed: dict[tuple[str, ...], _Owners] = {}
        self._joined: dict[str, _Owners] = {}
        for index, category in enumerate(vocabulary.categories):
            self._verbatim_names.setdefault(category.name.strip(), index)
            for form, is_name in surface_forms(category):
                if not is_name:
                    self._verbatim_synonyms.setdefault(form.strip(), _Owners()).add(index, is_name)
                words = fold(form)
                if words:
                    stemmed = stems(words)
                    self._folded.setdefault(words, _Owners()).add(index, is_name)
                    self._stemmed.setdefault(stemmed, _Owners()).add(index, is_name)
                    self._joined.setdefault("".join(stemmed), _Owners()).add(index, is_name)
        # "no entry" must not count as a denial where a "no entry sign" is known.
        self._denials_in_names = {pair for words in self._folded for pair in _pairs(words) if pair[0] in DENIALS}
        self._max_words = max((len(words) for words in self._stemmed), default=0)

    def find(self, text: str) -> Finding | None:
        """Return what the words of a text say of its category, None where they say nothing."""
        stripped = text.strip()
        if stripped in self._verbatim_names:
            return Finding(category_index=self._verbatim_names[stripped], decided_by="exact")
        if stripped in self._verbatim_synonyms:
            return self._decide(self._verbatim_synonyms[stripped].choices(), "synonym", stripped)
        words = fold(stripped[:MAX_PHRASE_CHARACTERS])
        stemmed = stems(words)
        joined = "".join(stemmed)
        owners = self._folded.get(words) or self._stemmed.get(stemmed)
        if owners is None and len(joined) >= _MIN_JOINED_LETTERS:
            owners = self._joined.get(joined)
        if owners is not None:
            return self._decide(owners.choices(), "inflection", stripped)
        if unify(stripped).strip(" .!") in _NO_ANSWERS:
            return Finding(
                category_index=None, decided_by=None, reason=f"the answer denies or does not know ({stripped!r})"
            )
        reading = read_phrase(stripped, self._spans_at, self._max_words)
        if reading is None or (reading.denied and not self._denials_in_names.isdisjoint(_pairs(words))):
            return None
        return self._reading_to_finding(reading)

    def _reading_to_finding(self, reading: Reading) -> Finding:
        if reading.denied:
            return Finding(
                category_index=reading.choices[0] if reading.choices else None,
                decided_by=None,
                reason=f"the answer denies or does not know ({reading.words!r})",
            )
        return replace(self._decide(reading.choices, "phrase", reading.words), noun_phrase=reading.noun_phrase)

    def _spans_at(self, words: tuple[str, ...]) -> tuple[int, ...]:
        owners = self._folded.get(words) or self._stemmed.get(stems(words))
        return () if owners is None else owners.choices()

    def _decide(self, choices: tuple[int, ...], step: DecidedBy, words: str) -> Finding:
        if len(choices) == 1:
            return Finding(category_index=choices[0], decided_by=step)
        names = " and ".join(repr(self._names[index]) for index in choices[:3])
        return Finding(
            category_index=choices[0],
            decided_by=None,
            reason=f"{_shortened(words)!r} fits several categories alike: {names}",
            choices=choices,
        )


def surface_forms(category: Category) -> Iterator[tuple[str, bool]]:
    """Yield what a category may be called, and whether that is its name in full (True) or stands behind other
    categories' names.

    Besides the synonyms these are a name without its bracket ("bow (weapon)") and the sides of a slash
    ("cabinet/shelf").
    """
    yield category.name, True
    derived: list[str] = []
    for form in (category.name, *category.synonyms):
        bare = form.split("(")[0] if form.rstrip().endswith(")") else form
        derived += [form, bare] if "/" not in bare else [form, bare, *bare.split("/")]
    seen = {category.name}
    for form in derived:
        if form.strip() and form not in seen:
            seen.add(form)
            yield form, False


def _pairs(words: tuple[str, ...]) -> set[tuple[str, str]]:
    return set(zip(words, words[1:], strict=False))


def _shortened(words: str) -> str:
    return words if len(words) <= 60 else words[:60] + "..."
