"""Finds the one thing that a sentence is about: its head noun, not what stands beside it, nor what is denied.

No parser: a left-to-right reading of known names, function words and punctuation, in the manner of English noun
phrases, where the head comes last ("fire engine") and what hangs on it follows ("a dog on a couch"). Knows names only
through the look-up it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from rlabel.vocabulary.words import ARTICLES, fold, split_words, stem, word_set

MAX_PHRASE_CHARACTERS = 1000

LookUp = Callable[[tuple[str, ...]], tuple[int, ...]]

_COMMA = ","
# Stands where a participle takes an object ("riding a horse"), which "a sleeping dog" does not.
_OBJECT_FOLLOWS = ">"
# Opens a remark on what stands before it, or is part of a name ("bow (weapon)").
_BRACKET = "("
_SENTENCE_END = re.compile(r"(?<=\w{3})[.!?](?=\s|$)|[\n;!?]")
_SEPARATORS = re.compile(r"[,/&+|:\"]|\s-\s|\u2013|\u2014")
_CONJUNCTIONS = word_set("and or nor versus vs plus")
_COPULAS = word_set("is are was were be being shows show depicts contains called named features")
_RELATIONS = word_set(
    "of in on at with by for from to into onto over under above below behind beside near next inside outside "
    "around against between among "
    "across through along beyond that which who whose where while without attached made worn held seen"
)
DENIALS = word_set(
    "not no never neither none nothing nobody cannot unknown unclear unsure unidentifiable unrecognizable"
)
_NO_PARTICIPLES = word_set(
    "string spring swing earring ceiling building painting clothing railing pudding thing something steed breed "
    "tweed speed"
)
_DETERMINERS = word_set(
    "this these those my your his her its our their some any each every one two three it he she "
    "they there here i we see"
)
# "a pair of shoes" is about the shoes; "a cup of tea" is about the cup.
_TRANSPARENT = word_set(
    "picture photo photograph image view up kind type sort piece slice pair bunch group set pile part herd "
    "flock row stack lot couple number "
    "variety example"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an answer is about.

    choices: category indices, several where the answer does not tell. words: what was read, for a message.
    noun_phrase: the name with the words before it that narrow it down ("garbage can" where only "can" is known), ""
    where nothing does.
    denied: the answer says that it is not this thing, or that there is none.
    """

    choices: tuple[int, ...]
    words: str
    noun_phrase: str = ""
    denied: bool = False


@dataclass(slots=True)
class _Clause:
    """What has been read of a sentence so far."""

    head: tuple[int, ...] = ()
    head_words: str = ""
    head_is_modifier: bool = False
    noun_phrase: str = ""
    words_before: list[str] = field(default_factory=list)
    before_copula: tuple[int, ...] = ()
    before_copula_words: str = ""
    in_complement: bool = False
    after_conjunction: bool = False
    touches_head: bool = False
    denying: bool = False
    denied_words: str = ""
    denied: tuple[int, ...] = ()


def read_phrase(text: str, look_up: LookUp, max_words: int) -> Reading | None:
    """Return what the text is about, None where it names nothing known in a place that counts.

    look_up: category indices that a tuple of folded words names, () for none. max_words: the longest name's number of
    words.
    """
    denied: Reading | None = None
    sentences = _SENTENCE_END.split(text[:MAX_PHRASE_CHARACTERS])
    if len(sentences) > 1 and (listed := _read_list(sentences, look_up)):
        return listed
    for sentence in sentences:
        clause = _read_sentence(_tokens(sentence), look_up, max_words)
        choices = clause.head or clause.before_copula
        if choices and not (clause.head and clause.head_is_modifier):
            noun_phrase = clause.noun_phrase if clause.head else ""
            words = clause.head_words or clause.before_copula_words
            return Reading(choices=choices, words=words, noun_phrase=noun_phrase)
        if clause.denied_words and denied is None:
            denied = Reading(choices=clause.denied, words=clause.denied_words, denied=True)
    return denied


def _read_list(sentences: list[str], look_up: LookUp) -> Reading | None:
    """Return what a list is about, all its entries; None where one of them is more or less than a name."""
    entries = [words for words in map(fold, sentences) if words]
    found = [look_up(words) for words in entries]
    if len(entries) < 2 or not all(found):
        return None
    choices = tuple(dict.fromkeys(choice for choices in found for choice in choices))
    return Reading(choices=choices, words=" and ".join(" ".join(words) for words in dict.fromkeys(entries)))


def first_sentence(text: str) -> str:
    """Return the first sentence of a text that has a word in it, the text itself if there is none."""
    return next(
        (sentence for sentence in _SENTENCE_END.split(text[:MAX_PHRASE_CHARACTERS]) if split_words(sentence)), text
    )


def _tokens(sentence: str) -> list[str]:
    tokens: list[str] = []
    for piece in _SEPARATORS.split(sentence):
        for part_index, part in enumerate(piece.split("(")):
            if part_index and tokens and tokens[-1] not in (_COMMA, _BRACKET):
                tokens.append(_BRACKET)
            for word in split_words(part):
                if word not in ARTICLES:
                    tokens.append(word)
                elif tokens and _may_be_participle(tokens[-1]):
                    tokens.append(_OBJECT_FOLLOWS)
        tokens.append(_COMMA)
    return tokens[:-1]


def _may_be_participle(word: str) -> bool:
    return word.endswith(("ing", "ed")) and len(word) > 4 and word not in _NO_PARTICIPLES


def _read_sentence(tokens: list[str], look_up: LookUp, max_words: int) -> _Clause:
    clause = _Clause()
    position = 0
    while position < len(tokens):
        num_words, choices = _longest(tokens, position, look_up, max_words)
        follower = tokens[position + 1] if position + 1 < len(tokens) else ""
        if num_words == 1 and follower == "of" and stem(tokens[position]) in _TRANSPARENT:
            position += 2
            continue
        if num_words:
            _take_name(clause, choices, " ".join(tokens[position : position + num_words]))
            position += num_words
            continue
        if follower == "of" and stem(tokens[position]) in _TRANSPARENT:
            position += 2
            continue
        _take_word(clause, tokens[position])
        position += 1
    return clause


def _longest(tokens: list[str], position: int, look_up: LookUp, max_words: int) -> tuple[int, tuple[int, ...]]:
    """Return the number of tokens of the longest name that starts here, and whose name it is; (0, ()) for none."""
    if tokens[position] == _BRACKET:
        return 0, ()
    for num_tokens in range(min(max_words + 1, len(tokens) - position), 0, -1):
        span = tokens[position : position + num_tokens]
        if _COMMA in span or span[-1] == _BRACKET:
            continue
        if choices := look_up(tuple(token for token in span if token != _BRACKET)):
            return num_tokens, choices
    return 0, ()


def _take_name(clause: _Clause, choices: tuple[int, ...], words: str) -> None:
    if clause.in_complement:
        pass
    elif clause.denying:
        clause.denied = clause.denied or choices
        clause.denied_words = f"{clause.denied_words} {words}".strip()
    elif clause.head and clause.after_conjunction:
        clause.head = tuple(dict.fromkeys(clause.head + choices))
        clause.head_words = f"{clause.head_words} and {words}"
        clause.head_is_modifier = False
    else:
        clause.head, clause.head_words, clause.head_is_modifier = choices, words, False
        clause.noun_phrase = " ".join([*clause.words_before, words]) if clause.words_before else ""
    clause.words_before.append(words)
    clause.after_conjunction = False
    clause.touches_head = not clause.denying and not clause.in_complement


def _take_word(clause: _Clause, word: str) -> None:
    if word == _COMMA or word in _CONJUNCTIONS or word == "but":
        clause.after_conjunction = True
        if word in (_COMMA, "but"):
            clause.denying = False
            if not clause.head and not clause.before_copula:
                clause.in_complement = False
    elif word == "only" and clause.denied_words == "not" and not clause.denied:
        # "not only a dog but also a cat" names both.
        clause.denying, clause.denied_words = False, ""
    elif word in DENIALS or word.endswith("n't"):
        clause.denying = True
        # "a jar with no lid" denies the lid, not the jar.
        if not clause.in_complement:
            clause.denied_words = clause.denied_words or word
    elif word in _COPULAS:
        if clause.head:
            clause.before_copula, clause.before_copula_words = clause.head, clause.head_words
        clause.head, clause.in_complement, clause.after_conjunction = (), False, False
    elif word in _RELATIONS or word in (_BRACKET, _OBJECT_FOLLOWS) or (clause.head and _may_be_participle(word)):
        clause.in_complement = True
    else:
        if word not in _DETERMINERS:
            clause.words_before.append(word)
        clause.head_is_modifier = clause.head_is_modifier or clause.touches_head
        return
    clause.touches_head = False
    clause.words_before = []
