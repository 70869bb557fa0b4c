"""A shard's result as JSON Lines and back, byte for byte: schemas/shard-record.schema.json describes each line.

Image rows come first, then one line for each region (label, caption, abstention or failure), pair or expression in shard
order, then one footer whose hash closes the file. Everything an outcome holds is kept, so that a new vocabulary or threshold needs no GPU.
Floats are written as they are (shortest exact repr): whoever makes them rounds them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rlabel.errors import RunError
from rlabel.records import (
    Abstention,
    Caption,
    Evidence,
    Failure,
    JsonObject,
    Label,
    LikelyCategory,
    Outcome,
    Proposals,
    Proposed,
    QueryFailure,
    Region,
    Shard,
    ShardResult,
    Snap,
)
from rlabel.run.canonical import canonical_bytes, canonical_sha256, json_safe
from rlabel.run.query_io import query_outcome_from_json, query_outcome_to_json

# How the line of an image begins; these come first.
IMAGE_LINE = b'{"kind":"image",'
# The field of a footer that holds the hash of its other fields, as canonical JSON.
_OWN_HASH = "footer_sha256"


class DamagedShard(ValueError):
    """A shard file is not what was committed. The message says what is wrong; RunDirectory names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """The last line of a shard file.

    labels: answers that are kept: labels, captions, relations or choices.
    fingerprint: that of the run's manifest. rows: number of lines before the footer. sha256: hex digest of those lines.
    largest_annotation_id: of all its regions, whatever became of them; 0 if none has one.
    """

    shard: int
    fingerprint: str
    rows: int
    sha256: str
    images: int
    labels: int
    abstentions: int
    failures_by_kind: dict[str, int] = field(default_factory=dict)
    largest_annotation_id: int = 0

    @property
    def failures(self) -> int:
        return sum(self.failures_by_kind.values())

    @property
    def regions(self) -> int:
        return self.labels + self.abstentions + self.failures


def check_complete(shard: Shard, result: ShardResult) -> None:
    """Check that a result has exactly one outcome for every region (or pair, or expression) of its shard, in shard order, and its image rows.

    Raises RunError with the first one that is missing, doubled or foreign: a bug of the labeler, never of an input.
    """
    expected = shard.keys
    got = [outcome.key for outcome in result.outcomes]
    if result.index != shard.index or len(result.images) != len(shard.images):
        raise RunError(
            f"shard {shard.index}: expected a result of that index with {len(shard.images)} image rows, got index "
            f"{result.index} with {len(result.images)}. This is a bug in rlabel; please report it."
        )
    if expected != got:
        counts = Counter(expected)
        counts.subtract(got)
        wrong = next((key for key, count in counts.items() if count), None)
        detail = "all are there, but in another order" if wrong is None else f"region {wrong!r} has not exactly one"
        raise RunError(
            f"shard {shard.index}: expected one outcome for each of its {len(expected)} regions in order, got "
            f"{len(got)}: {detail}. This is a bug in rlabel; please report it."
        )


def result_to_bytes(result: ShardResult, fingerprint: str) -> bytes:
    """Return the whole shard file of a result, footer included.

    Raises ValueError for a NaN or infinite number of our own making, and for two outcomes of one region.
    """
    keys = {outcome.key for outcome in result.outcomes}
    if len(keys) != len(result.outcomes):
        raise ValueError(f"shard {result.index}: {len(result.outcomes)} outcomes for {len(keys)} regions")
    lines = [canonical_bytes({"kind": "image", "row": json_safe(row)}) for row in result.images]
    lines += [canonical_bytes(_outcome_to_json(outcome)) for outcome in result.outcomes]
    failures = Counter(outcome.kind for outcome in result.outcomes if isinstance(outcome, Failure | QueryFailure))
    num_abstentions = sum(isinstance(outcome, Abstention) for outcome in result.outcomes)
    footer = Footer(
        shard=result.index,
        fingerprint=fingerprint,
        rows=0,
        sha256="",
        images=len(result.images),
        labels=len(result.outcomes) - num_abstentions - failures.total(),
        abstentions=num_abstentions,
        failures_by_kind=dict(failures),
        largest_annotation_id=max(map(_annotation_id, result.outcomes), default=0),
    )
    return close_body(b"".join(line + b"\n" for line in lines), footer)


def result_from_bytes(data: bytes, index: int, fingerprint: str) -> ShardResult:
    """Return the result that `result_to_bytes` wrote. Raises DamagedShard unless every byte is as committed."""
    body, footer = checked_body(data, index, fingerprint)
    images: list[JsonObject] = []
    outcomes: list[Outcome] = []
    try:
        for line in body.decode("utf-8").split("\n")[:-1]:
            record = json.loads(line)
            if record["kind"] == "image":
                images.append(record["row"])
            else:
                outcomes.append(_outcome_from_json(record))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedShard(f"a record cannot be read ({type(error).__name__}: {error})") from error
    result = ShardResult(index=index, images=tuple(images), outcomes=tuple(outcomes))
    if (len(images), len(outcomes)) != (footer.images, footer.regions):
        raise DamagedShard(f"its footer counts {footer.images} images and {footer.regions} regions, not what it holds")
    return result


def line_to_outcome(line: bytes | str) -> Outcome:
    """Return the outcome of one line of a checked body. Raises ValueError, KeyError or TypeError for any other line."""
    return _outcome_from_json(json.loads(line))


def outcome_to_line(outcome: Outcome) -> bytes:
    """Return an outcome as one line, without its end. Raises ValueError for a NaN or infinite number of our own making."""
    return canonical_bytes(_outcome_to_json(outcome))


def snap_to_json(snap: Snap) -> JsonObject:
    """Return a snap as it stands in a line."""
    return {
        "category_id": snap.category_id,
        "nearest_name": snap.nearest_name,
        "similarity": snap.similarity,
        "margin": snap.margin,
        "decided_by": snap.decided_by,
        "reason": snap.reason,
    }


def close_body(body: bytes, footer: Footer) -> bytes:
    """Return a shard file: its lines and the footer, whose rows and hashes are set here."""
    closed = replace(footer, rows=body.count(b"\n"), sha256=hashlib.sha256(body).hexdigest())
    record: JsonObject = {"kind": "footer", **asdict(closed)}
    return body + canonical_bytes({**record, _OWN_HASH: canonical_sha256(record)}) + b"\n"


def image_lines_end(body: bytes, start: int = 0) -> int:
    """Return where the lines of images, which come first, end, from the start of one of them on. A last line without its end is none."""
    while body.startswith(IMAGE_LINE, start) and (end := body.find(b"\n", start)) >= 0:
        start = end + 1
    return start


def checked_body(data: bytes, index: int, fingerprint: str) -> tuple[bytes, Footer]:
    """Return the lines before the footer, and the footer, after comparing index, run, rows and hash.

    Raises DamagedShard.
    """
    footer = footer_from_tail(data)
    body = data[: data.rfind(b"\n", 0, len(data) - 1) + 1]
    check_footer(footer, index, fingerprint)
    rows = body.count(b"\n")
    if rows != footer.rows:
        raise DamagedShard(f"expected {footer.rows} rows as its footer says, got {rows}")
    digest = hashlib.sha256(body).hexdigest()
    if digest != footer.sha256:
        raise DamagedShard(f"expected the content hash {footer.sha256} of its footer, got {digest}")
    return body, footer


def check_footer(footer: Footer, index: int, fingerprint: str) -> None:
    """Raise DamagedShard if a footer belongs to another shard or another run."""
    if footer.shard != index:
        raise DamagedShard(f"its footer says shard {footer.shard}, the name says {index}")
    if footer.fingerprint != fingerprint:
        raise DamagedShard(f"it belongs to another run: fingerprint {footer.fingerprint}, this run's is {fingerprint}")


def footer_from_tail(tail: bytes) -> Footer:
    """Return the footer from the last bytes of a shard file. Raises DamagedShard if they do not end with one."""
    if not tail.endswith(b"\n"):
        raise DamagedShard("it does not end with a footer line; it is cut off")
    line = tail[tail.rfind(b"\n", 0, len(tail) - 1) + 1 :]
    try:
        record = json.loads(line)
        # Footers of rlabel 0.1 had none.
        own_hash = record.pop(_OWN_HASH, None)
        is_whole = own_hash is None or own_hash == canonical_sha256(record)
        if record.pop("kind") != "footer":
            raise ValueError("the last line is no footer")
        footer = Footer(**record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedShard(f"its last line is no footer ({error}); it is cut off") from error
    if not is_whole:
        raise DamagedShard("its footer does not match the hash in it")
    return footer


def _annotation_id(outcome: Outcome) -> int:
    if not isinstance(outcome, Label | Caption | Abstention | Failure):
        return 0
    return outcome.region.annotation_id or 0


def _outcome_to_json(outcome: Outcome) -> JsonObject:
    if isinstance(outcome, Proposals):
        return _proposals_to_json(outcome)
    if not isinstance(outcome, Label | Caption | Abstention | Failure):
        return query_outcome_to_json(outcome)
    common: JsonObject = {"region": _region_to_json(outcome.region), "image_id": json_safe(outcome.image_id)}
    if isinstance(outcome, Failure):
        return {"kind": "failure", **common, "failure_kind": outcome.kind, "reason": outcome.reason}
    if isinstance(outcome, Caption):
        return {
            "kind": "caption",
            **common,
            "text": outcome.text,
            "score": outcome.score,
            "bbox": list(outcome.box_xywh),
            "area": outcome.area_px,
            "segmentation": outcome.segmentation,
        }
    answered: JsonObject = {
        **common,
        "text": outcome.text,
        "text_score": outcome.text_score,
        "snap": snap_to_json(outcome.snap),
        "bbox": list(outcome.box_xywh),
        "area": outcome.area_px,
        "evidence": {
            "num_tokens": outcome.evidence.num_tokens,
            "mean_logprob": outcome.evidence.mean_logprob,
            "min_logprob": outcome.evidence.min_logprob,
            "candidates": [[one.category_id, one.logprob] for one in outcome.evidence.candidates],
            "agreement": outcome.evidence.agreement,
        },
    }
    if isinstance(outcome, Abstention):
        return {"kind": "abstention", **answered}
    return {
        "kind": "label",
        **answered,
        "category_id": outcome.category_id,
        "score": outcome.score,
        "raw_score": outcome.raw_score,
        "segmentation": outcome.segmentation,
    }


def _outcome_from_json(record: dict[str, Any]) -> Outcome:
    if "region" not in record:
        return query_outcome_from_json(record)
    region, image_id = _region_from_json(record["region"]), record["image_id"]
    if record["kind"] == "failure":
        return Failure(region=region, image_id=image_id, kind=record["failure_kind"], reason=record["reason"])
    if record["kind"] == "proposals":
        return _proposals_from_json(record, region)
    x, y, width, height = record["bbox"]
    box_xywh, area_px = (x, y, width, height), record["area"]
    if record["kind"] == "caption":
        return Caption(
            region=region,
            image_id=image_id,
            text=record["text"],
            score=record["score"],
            box_xywh=box_xywh,
            area_px=area_px,
            segmentation=record["segmentation"],
        )
    snap, evidence = Snap(**record["snap"]), _evidence_from_json(record["evidence"])
    if record["kind"] == "abstention":
        return Abstention(
            region=region,
            image_id=image_id,
            text=record["text"],
            text_score=record["text_score"],
            snap=snap,
            box_xywh=box_xywh,
            area_px=area_px,
            evidence=evidence,
        )
    if record["kind"] != "label":
        raise ValueError(f"unknown kind {record['kind']!r}")
    return Label(
        region=region,
        image_id=image_id,
        category_id=record["category_id"],
        score=record["score"],
        text=record["text"],
        text_score=record["text_score"],
        snap=snap,
        box_xywh=box_xywh,
        area_px=area_px,
        segmentation=record["segmentation"],
        evidence=evidence,
        raw_score=record["raw_score"],
    )


def _proposals_to_json(outcome: Proposals) -> JsonObject:
    return {
        "kind": "proposals",
        "region": _region_to_json(outcome.region),
        "image_id": json_safe(outcome.image_id),
        "proposer": outcome.proposer,
        "height": outcome.height_px,
        "width": outcome.width_px,
        "found": [
            {"bbox": list(one.box_xywh), "area": one.area_px, "segmentation": one.segmentation, "score": one.score}
            for one in outcome.found
        ],
    }


def _proposals_from_json(record: dict[str, Any], region: Region) -> Proposals:
    found = []
    for one in record["found"]:
        x, y, width, height = one["bbox"]
        found.append(
            Proposed(
                box_xywh=(x, y, width, height),
                area_px=one["area"],
                segmentation=one["segmentation"],
                score=one["score"],
            )
        )
    return Proposals(
        region=region,
        image_id=record["image_id"],
        proposer=record["proposer"],
        height_px=record["height"],
        width_px=record["width"],
        found=tuple(found),
    )


def _evidence_from_json(record: dict[str, Any]) -> Evidence:
    candidates = tuple(
        LikelyCategory(category_id=category_id, logprob=value) for category_id, value in record["candidates"]
    )
    return Evidence(**{**record, "candidates": candidates})


def _region_to_json(region: Region) -> JsonObject:
    return {
        "key": region.key,
        "region_id": region.region_id,
        "annotation_id": region.annotation_id,
        "segmentation": json_safe(region.segmentation),
        "bbox": None if region.box_xywh is None else [json_safe(number) for number in region.box_xywh],
        "is_crowd": region.is_crowd,
        "extra": json_safe(region.extra),
        "problem": region.problem,
    }


def _region_from_json(record: dict[str, Any]) -> Region:
    box_xywh: tuple[float, float, float, float] | None = None
    if record["bbox"] is not None:
        # Numbers come back as they were (1 stays 1); only a NaN or an infinity was written as text.
        x, y, width, height = (float(number) if isinstance(number, str) else number for number in record["bbox"])
        box_xywh = (x, y, width, height)
    return Region(
        key=record["key"],
        region_id=record["region_id"],
        annotation_id=record["annotation_id"],
        segmentation=record["segmentation"],
        box_xywh=box_xywh,
        is_crowd=record["is_crowd"],
        extra=record["extra"],
        problem=record["problem"],
    )
