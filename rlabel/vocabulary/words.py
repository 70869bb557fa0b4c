"""Words as snapping compares them, without case, punctuation, articles, plural and variant spelling. No
vocabularies.
"""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

ARTICLES = frozenset({"a", "an", "the"})
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "`": "'", "\u00b4": "'"})
_ASCII_SPACED = str.maketrans({chr(code): " " for code in range(128) if not chr(code).isalnum()} | {"'": "'", "`": "'"})
_MIN_PLURAL_LETTERS = 3
_MAX_PLURAL_LETTERS = 40


def fold(text: str) -> tuple[str, ...]:
    """Return the words of a text, in order, without case, punctuation and articles; () where it has no word.

    Hyphens and underscores part words. Compatibility forms are unified (NFKC), so full-width letters equal plain ones.
    "A Hot-Dog." gives ("hot", "dog").
    """
    words = split_words(text)
    return tuple(word for word in words if word not in ARTICLES) or words


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of a text, in order, articles included, otherwise as `fold` gives them."""
    # The first is the same as the second on plain letters, and three times as fast.
    spaced = text.lower().translate(_ASCII_SPACED) if text.isascii() else "".join(map(_letter_or_space, unify(text)))
    return tuple(_without_possessive(word) for word in (piece.strip("'") for piece in spaced.split()) if word)


def unify(text: str) -> str:
    """Return the text in NFKC, lower case in Unicode's full sense, and with plain apostrophes."""
    return unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).casefold()


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return a word's singular in one spelling: "tyres" gives "tire". Only comparing stems makes sense: some are no
    words.
    """
    singular = word
    if _MIN_PLURAL_LETTERS <= len(word) <= _MAX_PLURAL_LETTERS and word.isascii() and word.isalpha():
        # singular_noun gives False for words that it takes for singular already.
        singular = _engine().singular_noun(word) or word
    return _SPELLINGS.get(singular, singular)


def stems(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stem of each word."""
    return tuple(stem(word) for word in words)


@lru_cache(maxsize=4096)
def _letter_or_space(character: str) -> str:
    """Return the character if it may stand in a word, "" if it is invisible there (joiners, selectors), else a
    space.
    """
    kind = unicodedata.category(character)
    if kind in ("Cf", "Me") or "\ufe00" <= character <= "\ufe0f":
        return ""
    # Marks belong to words: Devanagari and Thai vowels are marks.
    return character if kind[0] in "LMN" or character == "'" else " "


def _without_possessive(word: str) -> str:
    return word[:-2] if word.endswith("'s") and len(word) > 2 else word


@cache
def _engine() -> Any:
    return inflect_module().engine()


@cache
def inflect_module() -> ModuleType:
    """Return inflect, imported without the checks that it has typeguard build into its functions.

    They parse and compile each function again, over a second at every start, and take two thirds of every call; a word is always a string here.
    """
    try:
        typeguard: Any = import_module("typeguard")  # inflect's dependency, not ours
    except ImportError:  # an inflect that has no such checks
        return import_module("inflect")
    checked = typeguard.typechecked
    typeguard.typechecked = lambda function: function
    try:
        return import_module("inflect")
    finally:
        typeguard.typechecked = checked


def word_set(words: str) -> frozenset[str]:
    """Return the set of the words of a text, split at white space."""
    return frozenset(words.split())


# British or variant spelling -> the one compared. Both sides pass through it, so the direction carries no judgement.
_SPELLINGS: dict[str, str] = {
    variant: compared
    for variant, _, compared in (
        pair.partition(":")
        for pair in word_set(
            "accordian:accordion aeroplane:airplane aluminium:aluminum analogue:analog armour:armor "
            "armoured:armored artefact:artifact axe:ax barbeque:barbecue bbq:barbecue behaviour:behavior "
            "carburettor:carburetor catalogue:catalog catsup:ketchup centre:center cheque:check chile:chili "
            "chilli:chili colour:color coloured:colored cosy:cozy dialogue:dialog disc:disk doughnut:donut "
            "draught:draft drier:dryer fibre:fiber flavour:flavor gipsy:gypsy grey:gray greyhound:grayhound "
            "grille:grill hairdrier:hairdryer harbour:harbor jewellery:jewelry judgement:judgment kerb:curb "
            "labour:labor licence:license litre:liter manoeuvre:maneuver metre:meter mollusc:mollusk mould:mold "
            "moustache:mustache neighbour:neighbor odour:odor omelette:omelet parlour:parlor plough:plow "
            "programme:program pyjama:pajama racquet:racket sabre:saber savoury:savory sceptre:scepter "
            "sledge:sled spectre:specter sulphur:sulfur syrup:sirup tee:t theatre:theater traveller:traveler "
            "tsar:czar tyre:tire vapour:vapor waggon:wagon whisky:whiskey woollen:woolen yoghourt:yogurt "
            "yoghurt:yogurt"
        )
    )
}
