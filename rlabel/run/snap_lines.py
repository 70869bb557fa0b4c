"""One line of a shard file snapped anew: where only the snap changes, the line is edited, not parsed.

A shard's lines are canonical JSON with known keys in sorted order, so the few values that a snap decides stand in known places,
and all else is kept byte for byte. A quote inside a JSON string is escaped: a key with its quotes and its comma cannot
be part of one. Lines that need more (an abstention that becomes a label gets its segmentation back, a caption
becomes another kind of record) go through the records; both ways give the same bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

from pycocotools import mask as coco_mask

from rlabel.corpus.limits import WIDEST
from rlabel.corpus.masks import BadRegion, mask_to_rle, rasterise
from rlabel.records import Abstention, Caption, Evidence, JsonObject, JsonValue, Label, Outcome, Snap
from rlabel.run.canonical import canonical_bytes
from rlabel.run.carried import NOTHING_CARRIED, Carried
from rlabel.run.records_io import line_to_outcome, outcome_to_line, snap_to_json
from rlabel.vocabulary.likelihood import likelihood_score
from rlabel.vocabulary.scores import label_score

LineKind: TypeAlias = Literal["image", "label", "abstention", "failure"]

_NUMBER = rb"-?[0-9][0-9.eE+-]*"
_IMAGE_LINE, _FAILURE_LINE = b'{"kind":"image",', b'{"failure_kind":'
_SNAP, _SCORE, _SEGMENTATION = b',"snap":{', b',"score":', b',"segmentation":'
_TEXT, _TEXT_SCORE, _LAST_TEXT = b'},"text":"', b',"text_score":', b',"text":"'
# The beginning of a label or an abstention, up to its region. Candidates are arrays of numbers.
_HEAD = re.compile(
    rb'(\{"area":' + _NUMBER + rb',"bbox":\[[0-9.eE+,-]*\])'
    rb'(?:,"category_id":[0-9]+)?'
    rb'(,"evidence":\{"agreement":(?:null|' + _NUMBER + rb'),"candidates":)(\[[][0-9.eE+,-]*\])'
    rb'(,"mean_logprob":' + _NUMBER + rb',"min_logprob":' + _NUMBER + rb',"num_tokens":[0-9]+\},'
    rb'"image_id":(?:-?[0-9]+|"[^"\\]*")),"kind":"(label|abstention)"'
    rb'(?:,"raw_score":(?:null|' + _NUMBER + rb'))?(?=,"region":\{)'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSnap:
    """What a text is snapped to. json: the snap's canonical JSON."""

    snap: Snap
    json: bytes

    @classmethod
    def of(cls, snap: Snap) -> NewSnap:
        return cls(snap=snap, json=canonical_bytes(snap_to_json(snap)))


def distinct_texts_of(body: bytes) -> list[str]:
    """Return the distinct free texts in the lines of a checked shard body, in order."""
    return list(dict.fromkeys(texts_of(body)))


def texts_of(body: bytes) -> Iterator[str]:
    """Yield the free texts in the lines of a checked shard body, in order."""
    for line in body.split(b"\n")[:-1]:
        if not line.startswith((_IMAGE_LINE, _FAILURE_LINE)):
            yield _text(line)


def snap_body(
    body: bytes, new_snaps: Mapping[str, NewSnap], carried: Carried = NOTHING_CARRIED
) -> tuple[bytes, int, int]:
    """Return the lines of a checked shard body with their texts snapped anew, the number of labels, that of abstentions.

    new_snaps: of every text that `texts_of` gives. carried: what of the candidates and the scores stays.
    Raises ValueError, KeyError or TypeError for lines that rlabel did not write.
    """
    lines: list[bytes] = []
    num_labels = num_abstentions = 0
    sizes: dict[bytes, tuple[JsonValue, JsonValue]] | None = None
    old_lines = body.split(b"\n")[:-1]
    for line in old_lines:
        if line.startswith((_IMAGE_LINE, _FAILURE_LINE)):
            lines.append(line)
            continue
        new = new_snaps[_text(line)]
        edited, is_label = _edited(line, new, carried), new.snap.category_id is not None
        if edited is None:
            sizes = _sizes(old_lines) if sizes is None else sizes
            outcome = snapped(line_to_outcome(line), new.snap, sizes, carried)
            edited, is_label = outcome_to_line(outcome), isinstance(outcome, Label)
        lines.append(edited)
        num_labels += is_label
        num_abstentions += not is_label
    return b"".join(line + b"\n" for line in lines), num_labels, num_abstentions


def snapped(
    outcome: Outcome,
    snap: Snap,
    sizes: Mapping[bytes, tuple[JsonValue, JsonValue]],
    carried: Carried = NOTHING_CARRIED,
) -> Outcome:
    """Return a label, abstention or caption with another snap, and what follows from it; others as they are.

    sizes: (height, width) of the pictures, as their rows state them, by the canonical JSON of their ids.
    """
    if not isinstance(outcome, Label | Abstention | Caption):
        return outcome
    probability = outcome.score if isinstance(outcome, Caption) else outcome.text_score
    values = {name: getattr(outcome, name) for name in _FIELDS[Abstention] if hasattr(outcome, name)}
    evidence = Evidence() if isinstance(outcome, Caption) else outcome.evidence
    snap, candidates = carried.choose(snap, evidence.candidates)
    evidence = replace(evidence, candidates=candidates)
    abstention = Abstention(**{**values, "text_score": probability, "snap": snap, "evidence": evidence})
    if snap.category_id is None:
        return abstention
    segmentation = (
        _segmentation(outcome, *sizes.get(canonical_bytes(outcome.image_id), (None, None)))
        if isinstance(outcome, Abstention)
        else outcome.segmentation
    )
    label = Label(
        **{name: getattr(abstention, name) for name in _FIELDS[Abstention]},
        category_id=snap.category_id,
        score=likelihood_score(candidates, snap.category_id) if candidates else label_score(probability, snap),
        segmentation=segmentation,
    )
    return carried.finished(label)


_FIELDS = {Abstention: tuple(one.name for one in fields(Abstention))}


def _text(line: bytes) -> str:
    """Return the text of a label, an abstention or a caption."""
    if line.endswith(b'"}'):  # a caption: its text is the last value
        start, end = line.rindex(_LAST_TEXT) + len(_LAST_TEXT), len(line) - 2
    else:
        end = line.rindex(_TEXT_SCORE) - 1
        start = line.index(_TEXT, line.rindex(_SNAP)) + len(_TEXT)
    raw = line[start:end]
    if b"\\" in raw:
        return str(json.loads(b'"' + raw + b'"'))
    return raw.decode("utf-8")


def _edited(line: bytes, new: NewSnap, carried: Carried) -> bytes | None:
    """Return the line with another snap, None where that takes more than to edit it."""
    head = None if carried.changes_scores else _HEAD.match(line)
    if head is None or b"\\ud" in line:  # a lone surrogate keeps the whole line in ASCII (`canonical_bytes`)
        return None
    before, evidence, candidates, after, kind = head.groups()
    if candidates != b"[]" and carried.names:
        return None
    snap_start = line.rindex(_SNAP)
    text_start = line.index(_TEXT, snap_start) + 1
    answered = b',"snap":' + new.json + line[text_start:]
    if kind == b"abstention":
        region = line[head.end() : snap_start]
        segmentation = _kept_segmentation(region) if new.snap.category_id is not None else b""
        if segmentation is None:
            return None
    else:
        score_start = line.find(_SCORE, head.end())
        if line.find(_SCORE, score_start + 1) >= 0:  # a region's own keys may hold one of that name
            return None
        region = line[head.end() : score_start]
        segmentation = line[line.index(_SEGMENTATION, score_start) : snap_start]
    if new.snap.category_id is None:
        return b"".join((before, evidence, b"[]", after, b',"kind":"abstention"', region, answered))
    score = label_score(float(line[line.rindex(_TEXT_SCORE) + len(_TEXT_SCORE) : -1]), new.snap)
    return b"".join(
        (
            before,
            b',"category_id":%d' % new.snap.category_id,
            evidence,
            b"[]",
            after,
            b',"kind":"label","raw_score":null',
            region,
        )
        + (_SCORE, repr(score).encode("ascii"), segmentation, answered)
    )


def _kept_segmentation(region: bytes) -> bytes | None:
    """Return the key and the segmentation of a region that stays as it is in a label, None for one that needs a look.

    region: as it stands in a line, its segmentation last.
    """
    start = region.index(_SEGMENTATION)
    if region.find(_SEGMENTATION, start + 1) >= 0:
        return None
    value = region[start + len(_SEGMENTATION) : -1]
    if value == b"null" or (value.startswith(b'{"counts":"') and _covers_pixels(json.loads(value))):
        return _SEGMENTATION + value
    return None


def _covers_pixels(rle: JsonObject) -> bool:
    """Return whether a compressed RLE, which the labeler has read before, holds a pixel; it took the box for an empty one."""
    try:
        return int(coco_mask.area(rle)) > 0
    except Exception:  # whatever the C code makes of it; nothing is decoded, so nothing is read beyond the text
        return False


def _sizes(lines: list[bytes]) -> dict[bytes, tuple[JsonValue, JsonValue]]:
    """Return the height and width that the image rows state, by image id."""
    rows: list[JsonObject] = [json.loads(line)["row"] for line in lines if line.startswith(_IMAGE_LINE)]
    return {canonical_bytes(row.get("id")): (row.get("height"), row.get("width")) for row in rows}


def _segmentation(abstention: Abstention, height: JsonValue, width: JsonValue) -> JsonValue:
    """Return what labels.json is to carry for a region that had no label: as the labeler writes it, None for a box.

    Where the row of the picture states no size, polygons that had to be mended cannot be drawn, and the box stands.
    """
    given = abstention.region.segmentation
    if not given:
        return None
    if isinstance(given, dict) and isinstance(size := given.get("size"), list) and len(size) == 2:
        height, width = size
    knows_size = isinstance(height, int) and isinstance(width, int)
    if not isinstance(height, int) or not isinstance(width, int):
        # The mask lies inside its box, which is enough to tell good polygons from those that had to be mended.
        x, y, box_width, box_height = abstention.box_xywh
        height, width = math.ceil(y + box_height), math.ceil(x + box_width)
    try:
        if isinstance(given, dict) and isinstance(given.get("counts"), str):
            return given if _covers_pixels(given) else None
        mask = rasterise(given, abstention.box_xywh, height, width, WIDEST)
    except BadRegion:
        return None
    if mask.source == "polygons" and mask.note is None:
        return given
    return mask_to_rle(mask.mask_HW) if knows_size and mask.source != "box" else None
