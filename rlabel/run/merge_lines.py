"""One line of a shard file as a row of labels.json, captions.json or abstained.jsonl: its values are moved, not parsed.

A shard's lines are canonical JSON with known keys in sorted order, and a row holds the same values under other keys, also in
canonical form. So a line that matches the grammar below, character by character, becomes a row by cutting and joining. Any other
line (a lone surrogate, a number of 30 digits, a record that rlabel did not write) is left to the records, which give the
same bytes or say what is wrong with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import NoReturn

from rlabel.records import BoxXywh, JsonObject
from rlabel.run.canonical import canonical_bytes, canonical_text, object_of
from rlabel.run.coco import DROPPED_KEYS, corners
from rlabel.vocabulary.scores import first_share

# Quantifiers are possessive: no line, however made, is looked at twice.
_STRING = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\bfnrt]|u00[01][0-9a-f])[^"\\\x00-\x1f]*+)*+"'
_INTEGER = r"-?(?:0|[1-9][0-9]{0,18}+)"
_NUMBER = _INTEGER + r"(?:\.[0-9]{1,40}+)?+(?:e[+-][0-9]{2})?+"
_NUMBERS = rf"\[{_NUMBER}(?:,{_NUMBER})*+\]"
_BOX = rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
_ID = rf"(?:{_INTEGER}|{_STRING})"
_SHAPE = rf'(?:\{{"counts":(?:{_STRING}|{_NUMBERS}),"size":\[{_INTEGER},{_INTEGER}\]\}}|\[{_NUMBERS}(?:,{_NUMBERS})*+\]|null|\[\])'
_PAIR = rf"\[{_INTEGER},{_NUMBER}\]"
_EVIDENCE = (
    rf'"evidence":\{{"agreement":(null|{_NUMBER}),"candidates":(\[(?:{_PAIR}(?:,{_PAIR})*+)?+\]),'
    rf'("mean_logprob":{_NUMBER},"min_logprob":{_NUMBER},"num_tokens":{_INTEGER})\}}'
)
_PLACE = rf'\{{"area":({_NUMBER}),"bbox":({_BOX}),'
# Up to the value of the region's own keys, which may be any JSON object, and from there on.
_REGION = rf'"region":\{{"annotation_id":(null|{_INTEGER}),"bbox":(?:null|{_BOX}),"extra":'
_REST = rf',"is_crowd":(false|true),"key":({_STRING}),"problem":(?:null|{_STRING}),"region_id":(null|{_ID}),"segmentation":(?P<given>{_SHAPE})\}},'
_SNAP = (
    rf'"snap":\{{"category_id":(?:null|{_INTEGER}),"decided_by":(null|{_STRING}),"margin":({_NUMBER}),'
    rf'"nearest_name":(null|{_STRING}),"reason":(null|{_STRING}),"similarity":({_NUMBER})\}},'
    rf'"text":({_STRING}),"text_score":({_NUMBER})\}}'
)
# Mostly that of the region again: then it is compared, not looked at.
_OWN_SHAPE = rf'"score":({_NUMBER}),"segmentation":((?P=given)|{_SHAPE}),'
_LABEL_HEAD = re.compile(
    _PLACE + rf'"category_id":({_INTEGER}),{_EVIDENCE},"image_id":({_ID}),"kind":"label","raw_score":(null|{_NUMBER}),{_REGION}'
)  # fmt: skip
_LABEL_REST = re.compile(_REST + _OWN_SHAPE + _SNAP)
_CAPTION_HEAD = re.compile(_PLACE + rf'"image_id":({_ID}),"kind":"caption",{_REGION}')
_CAPTION_REST = re.compile(_REST + _OWN_SHAPE + rf'"text":({_STRING})\}}')
_ABSTENTION_HEAD = re.compile(_PLACE + rf'{_EVIDENCE},"image_id":({_ID}),"kind":"abstention",{_REGION}')
_ABSTENTION_REST = re.compile(_REST + _SNAP)
_NO_SHAPE = ("null", "[]")
_ROW_START = b'{"kind":"image","row":'


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def image_row(line: bytes) -> bytes:
    """Return the row of an image's line, verbatim. Raises ValueError, KeyError or TypeError for any other line."""
    row = line[len(_ROW_START) : -1]
    if line.startswith(_ROW_START) and line.endswith(b"}}"):
        try:
            _DECODER.decode(row.decode())
            return row
        except ValueError:
            pass  # other keys come after the row, or it holds what JSON does not have
    return canonical_bytes(json.loads(line)["row"])


def label_row(line: str, new_id: int, run_id: str) -> tuple[str, bool] | None:
    """Return the annotation of a label's line, and whether it has an id of its own; None where that takes more than to move its values.

    new_id: the id it gets if it has none. run_id: as `coco.label_to_annotation` takes it.
    """
    head = _LABEL_HEAD.match(line)
    if head is None:
        return None
    area, box, category_id, agreement, candidates, tokens, image_id, raw_score, own_id = head.groups()
    extra, at = _extra(line, head.end())
    rest = _LABEL_REST.fullmatch(line, at)
    if rest is None or extra is None:
        return None
    is_crowd, _, region_id, _, score, shape, decided_by, margin, _, _, similarity, text, text_score = rest.groups()
    share, runner_up = ("", "") if candidates == "[]" else _candidates(candidates)
    attributes = (
        f"{_if_known('agreement', agreement)}{share}"
        f'"decided_by":{decided_by},"margin":{margin},{tokens},{_if_known("raw_score", raw_score)}'
        f'"region_id":{region_id},"run_id":"{run_id}",{runner_up}{_FROM_BOX if shape in _NO_SHAPE else ""}'
        f'"similarity":{similarity},"status":"labeled","text":{text},"text_score":{text_score}'
        f"{_WAS_CROWD if is_crowd == 'true' else ''}"
    )
    annotation_id, is_own = (str(new_id), False) if own_id == "null" else (own_id, True)
    if shape in _NO_SHAPE:
        shape = _corners(box)
    if not extra:
        return (
            f'{{"area":{area},"attributes":{{{attributes}}},"bbox":{box},"category_id":{category_id},"id":{annotation_id},'
            f'"image_id":{image_id},"iscrowd":0,"score":{score},"segmentation":{shape}}}',
            is_own,
        )
    members = {
        "area": area,
        "bbox": box,
        "category_id": category_id,
        "id": annotation_id,
        "image_id": image_id,
        "iscrowd": "0",
        "score": score,
        "segmentation": shape,
    }
    return _with_extra(members, attributes, extra), is_own


def caption_row(line: str, new_id: int, run_id: str) -> tuple[str, bool] | None:
    """Return the annotation of a caption's line; see `label_row`."""
    head = _CAPTION_HEAD.match(line)
    if head is None:
        return None
    area, box, image_id, own_id = head.groups()
    extra, at = _extra(line, head.end())
    rest = _CAPTION_REST.fullmatch(line, at)
    if rest is None or extra is None:
        return None
    is_crowd, key, region_id, _, score, shape, text = rest.groups()
    attributes = (
        f'"region_key":{key},"run_id":"{run_id}"'
        f"{',' + _FROM_BOX[:-1] if shape in _NO_SHAPE else ''}{_WAS_CROWD if is_crowd == 'true' else ''}"
    )
    annotation_id, is_own = (str(new_id), False) if own_id == "null" else (own_id, True)
    members = {
        "area": area,
        "bbox": box,
        "caption": text,
        "id": annotation_id,
        "image_id": image_id,
        "iscrowd": "0",
        "region_id": region_id,
        "score": score,
        "segmentation": _corners(box) if shape in _NO_SHAPE else shape,
    }
    return _with_extra(members, attributes, {name: extra[name] for name in extra if name != "region_id"}), is_own


def abstention_row(line: str, file_name_of: Callable[[str], str]) -> str | None:
    """Return the line of abstained.jsonl of an abstention's line; None where that takes more than to move its values.

    file_name_of: gives the canonical JSON of a picture's name for that of its id.
    """
    head = _ABSTENTION_HEAD.match(line)
    if head is None:
        return None
    area, box, agreement, candidates, tokens, image_id, _ = head.groups()
    extra, at = _extra(line, head.end())
    rest = _ABSTENTION_REST.fullmatch(line, at)
    if rest is None or extra is None:
        return None
    _, key, region_id, _, _, margin, nearest_name, reason, similarity, text, text_score = rest.groups()
    share, runner_up = ("", "") if candidates == "[]" else _candidates(candidates)
    before_tokens, _, num_tokens = tokens.rpartition(",")
    file_name = file_name_of(image_id)
    if "\\ud" in file_name:  # a lone surrogate, which keeps its whole line in ASCII (`canonical_bytes`)
        return None
    return (
        f'{{{_if_known("agreement", agreement)}"area":{area},"bbox":{box},{share}"file_name":{file_name},'
        f'"image_id":{image_id},"kind":"abstention","margin":{margin},{before_tokens},"nearest_name":{nearest_name},{num_tokens},'
        f'"reason":{reason},"region_id":{region_id},"region_key":{key},{runner_up}"similarity":{similarity},"text":{text},'
        f'"text_score":{text_score}}}'
    )


_FROM_BOX = '"segmentation_from":"box",'
_WAS_CROWD = ',"was_crowd":true'


def _if_known(name: str, value: str) -> str:
    return "" if value == "null" else f'"{name}":{value},'


def _extra(line: str, at: int) -> tuple[JsonObject | None, int]:
    """Return the region's own keys and where they end; None where they are no plain JSON object."""
    if line.startswith("{}", at):
        return {}, at + 2
    try:
        value, end = _DECODER.raw_decode(line, at)
    except (ValueError, RecursionError):
        return None, at
    # A lone surrogate keeps its whole line in ASCII (`canonical_bytes`).
    return (value if isinstance(value, dict) and line.find("\\ud", at, end) < 0 else None), end


def _with_extra(members: dict[str, str], attributes: str, extra: JsonObject) -> str:
    """Return an annotation with the keys of its input row that collide with none of ours. Raises ValueError for an infinite number."""
    theirs = {key: value for key, value in object_of(extra.get("attributes")).items() if key not in DROPPED_KEYS}
    members["attributes"] = (
        canonical_text({**theirs, **json.loads(f"{{{attributes}}}")}) if theirs else f"{{{attributes}}}"
    )
    for key, value in extra.items():
        if key not in DROPPED_KEYS:
            # repr is what the encoder writes too: the shortest digits that give the number again.
            is_number = type(value) is int or (type(value) is float and math.isfinite(value))
            members[key] = repr(value) if is_number else canonical_text(value)
    return "{" + ",".join([f"{_key_text(key)}:{members[key]}" for key in sorted(members)]) + "}"


@lru_cache(maxsize=256)
def _key_text(key: str) -> str:
    return canonical_text(key)


def _candidates(text: str) -> tuple[str, str]:
    """Return the share of the first candidate and the id of the second as members of an object, each with a comma behind."""
    pairs = json.loads(text)
    share = first_share([logprob for _, logprob in pairs])
    runner_up = f'"runner_up_id":{pairs[1][0]},' if len(pairs) > 1 else ""
    return f'"candidate_share":{canonical_text(share)},', runner_up


def _corners(box: str) -> str:
    x, y, width, height = json.loads(box)
    own: BoxXywh = (x, y, width, height)
    return canonical_text(corners(own))
