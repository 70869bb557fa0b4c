"""What an English thesaurus knows of nouns: which words mean one thing, and which thing is a kind of which. Knows no vocabularies.

The nouns of WordNet 3.1 come with rlabel, packed into one file by `wordnet_pack` (wordnet/, with WordNet's licence beside it).
Others are read from a folder with WordNet's own files `index.noun` and `data.noun` (format: wndb(5WN)), as WordNet and NLTK's corpus
`wordnet` hold them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from rlabel.errors import InputError
from rlabel.storage import MissingFile, open_url
from rlabel.vocabulary.words import fold, stem

# What may be named instead of a folder: the nouns that rlabel carries, and no thesaurus at all.
WORDNET, NO_THESAURUS = "wordnet", "none"
PACKED = Path(__file__).parent / "wordnet" / "nouns.npz"
MAX_FILE_BYTES = 256 * 2**20
_INDEX, _DATA = "index.noun", "data.noun"
_HYPERNYM_MARKS = ("@", "@i")


class Thesaurus:
    """Nouns with their senses, the most usual first, and for each sense those it is directly a kind of.

    A sense is a number that means nothing else.
    """

    def __init__(self, senses_of: dict[str, tuple[int, ...]], kinds_of: dict[int, tuple[int, ...]]) -> None:
        """senses_of: by lower-case noun, words joined by "_". kinds_of: the senses right above each sense."""
        self._senses_of = senses_of
        self._kinds_of = kinds_of

    def senses(self, text: str) -> tuple[int, ...]:
        """Return the senses of a noun or noun phrase, the most usual first; () where it is none that is known.

        Spaces, hyphens and case do not matter; the last word may be a plural.
        """
        words = fold(text)
        if not words:
            return ()
        singular = (*words[:-1], stem(words[-1]))
        forms = ("_".join(words), "".join(words), "-".join(words), "_".join(singular), "".join(singular))
        return next((self._senses_of[form] for form in forms if form in self._senses_of), ())

    def above(self, sense: int, max_steps: int) -> dict[int, int]:
        """Return the senses that a sense is a kind of, each with its steps upwards: itself (0), those right above (1), ..."""
        steps_of = {sense: 0}
        edge = [sense]
        for steps in range(1, max_steps + 1):
            edge = [
                kind
                for one in edge
                for kind in dict.fromkeys(self._kinds_of.get(one, ()))
                if steps_of.setdefault(kind, steps) == steps
            ]
        return steps_of


def load_thesaurus(place: str) -> Thesaurus | None:
    """Return the nouns that rlabel carries ("wordnet"), no thesaurus ("none"), or the nouns in a folder of WordNet's files.

    place: one of the two words, else a local path or any fsspec URL (a folder called "wordnet" is "./wordnet").

    Raises InputError where a file is missing or is not of that format.
    """
    if place == NO_THESAURUS:
        return None
    return _packed() if place == WORDNET else Thesaurus(*read_wordnet(place))


def thesaurus_digest(place: str) -> str | None:
    """Return the hex digest of the files that `load_thesaurus` reads, None for "none". Raises InputError where one cannot be read."""
    if place == NO_THESAURUS:
        return None
    if place == WORDNET:
        return hashlib.sha256(_packed_bytes()).hexdigest()
    folder = str(place).rstrip("/\\")
    digest = hashlib.sha256()
    for name in (_INDEX, _DATA):
        digest.update(hashlib.sha256(_content(f"{folder}/{name}")).digest())
    return digest.hexdigest()


def read_wordnet(url: str) -> tuple[dict[str, tuple[int, ...]], dict[int, tuple[int, ...]]]:
    """Return what `Thesaurus` takes, from a folder of WordNet's files; a sense is its place in data.noun, in bytes.

    Raises InputError where a file is missing or is not of that format.
    """
    folder = str(url).rstrip("/\\")
    senses_of: dict[str, tuple[int, ...]] = {}
    kinds_of: dict[int, tuple[int, ...]] = {}
    for where, fields in _lines(f"{folder}/{_INDEX}"):
        try:
            num_senses = int(fields[2])
            senses_of[fields[0]] = tuple(map(int, fields[len(fields) - num_senses :]))
        except (ValueError, IndexError) as error:
            raise _malformed(where, _INDEX, fields) from error
    for where, fields in _lines(f"{folder}/{_DATA}"):
        try:
            start = 4 + 2 * int(fields[3], 16)
            pointers = fields[start + 1 : start + 1 + 4 * int(fields[start])]
            kinds_of[int(fields[0])] = tuple(
                int(pointers[place + 1])
                for place in range(0, len(pointers), 4)
                if pointers[place] in _HYPERNYM_MARKS and pointers[place + 2] == "n"
            )
        except (ValueError, IndexError) as error:
            raise _malformed(where, _DATA, fields) from error
    if not senses_of or not kinds_of:
        raise InputError(f"{folder}: expected nouns in {_INDEX} and {_DATA}, got none. Check that the files are whole.")
    return senses_of, kinds_of


def unpack(file: Path) -> Thesaurus:
    """Return the nouns that `wordnet_pack.pack` wrote. Raises InputError where the file is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            nouns = arrays["nouns"].tobytes().decode("utf-8").split("\n")
            senses, num_senses_N = iter(arrays["senses"].tolist()), arrays["num_senses"].tolist()
            kinds, num_kinds_S = iter(arrays["kinds"].tolist()), arrays["num_kinds"].tolist()
            senses_of = {noun: tuple(islice(senses, number)) for noun, number in zip(nouns, num_senses_N, strict=True)}
            kinds_of = {sense: tuple(islice(kinds, number)) for sense, number in enumerate(num_kinds_S) if number}
    except Exception as error:  # a cut zip file raises any of a dozen kinds
        raise InputError(
            f"{file}: expected the nouns of WordNet that come with rlabel, got {type(error).__name__}: {error}. "
            "Install rlabel again, or pass --thesaurus none."
        ) from error
    return Thesaurus(senses_of, kinds_of)


@cache
def _packed() -> Thesaurus:
    return unpack(PACKED)


def _packed_bytes() -> bytes:
    try:
        return PACKED.read_bytes()
    except OSError as error:
        raise InputError(
            f"{PACKED}: expected the nouns of WordNet that come with rlabel, got {error}. "
            "Install rlabel again, or pass --thesaurus none."
        ) from error


def _lines(url: str) -> Iterator[tuple[str, list[str]]]:
    """Give where each entry stands, and its fields before the gloss; the licence at the top is indented."""
    for number, line in enumerate(_content(url).decode("utf-8", errors="replace").split("\n"), start=1):
        if line.strip() and not line.startswith(" "):
            yield f"{url}, line {number}", line.split("|", 1)[0].split()


def _content(url: str) -> bytes:
    try:
        with open_url(url) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except Exception as error:  # every filesystem raises its own kinds
        got = "nothing" if isinstance(error, MissingFile) else f"{type(error).__name__}: {error}".removesuffix(".")
        raise InputError(
            f"{url}: expected a file of WordNet, got {got}. "
            f"Name the folder that holds {_INDEX} and {_DATA}, or give {WORDNET!r} for the nouns that rlabel carries, or {NO_THESAURUS!r}."
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"{url}: expected at most {MAX_FILE_BYTES} bytes, got more. Is this WordNet's file?")
    return content


def _malformed(where: str, name: str, fields: list[str]) -> InputError:
    return InputError(
        f"{where}: expected an entry as WordNet writes {name}, got {' '.join(fields)[:60]!r}. "
        "Name a folder with WordNet's own files."
    )
