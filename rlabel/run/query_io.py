"""Outcomes of pairs and expressions as lines of a shard file and back; `records_io` has those of regions."""

from __future__ import annotations

from typing import Any

from rlabel.records import (
    Candidate,
    Expression,
    JsonObject,
    Pair,
    Place,
    Query,
    QueryFailure,
    Referral,
    Relation,
)
from rlabel.run.canonical import json_safe


def query_outcome_to_json(outcome: Relation | Referral | QueryFailure) -> JsonObject:
    """Return what became of a pair or an expression as one JSON object."""
    if isinstance(outcome, QueryFailure):
        return {
            "kind": "query_failure",
            "query": query_to_json(outcome.query),
            "image_id": json_safe(outcome.image_id),
            "failure_kind": outcome.kind,
            "reason": outcome.reason,
        }
    if isinstance(outcome, Relation):
        return {
            "kind": "relation",
            "query": query_to_json(outcome.pair),
            "image_id": json_safe(outcome.image_id),
            "predicate": outcome.predicate,
            "score": outcome.score,
            "subject": place_to_json(outcome.subject),
            "object": place_to_json(outcome.object),
        }
    return {
        "kind": "referral",
        "query": query_to_json(outcome.expression),
        "image_id": json_safe(outcome.image_id),
        "chosen": place_to_json(outcome.chosen),
        "score": outcome.score,
        "candidates": [
            {"key": item.key, "region_id": item.region_id, "score": item.score} for item in outcome.candidates
        ],
        "text": outcome.text,
    }


def query_outcome_from_json(record: dict[str, Any]) -> Relation | Referral | QueryFailure:
    """Return the outcome of a line that `query_outcome_to_json` made. Raises ValueError, KeyError or TypeError for any other."""
    query, image_id, kind = _query_from_json(record["query"]), record["image_id"], record["kind"]
    if kind == "query_failure":
        return QueryFailure(query=query, image_id=image_id, kind=record["failure_kind"], reason=record["reason"])
    if kind == "relation" and isinstance(query, Pair):
        return Relation(
            pair=query,
            image_id=image_id,
            predicate=record["predicate"],
            score=record["score"],
            subject=_place_from_json(record["subject"]),
            object=_place_from_json(record["object"]),
        )
    if kind == "referral" and isinstance(query, Expression):
        return Referral(
            expression=query,
            image_id=image_id,
            chosen=_place_from_json(record["chosen"]),
            score=record["score"],
            candidates=tuple(Candidate(**item) for item in record["candidates"]),
            text=record["text"],
        )
    raise ValueError(f"unknown kind {kind!r}")


def query_to_json(query: Query) -> JsonObject:
    """Return a pair or an expression as a JSON object; `expression` tells the two apart."""
    common: JsonObject = {"key": query.key, "image_id": json_safe(query.image_id), "problem": query.problem}
    if isinstance(query, Pair):
        return {**common, "subject": query.subject, "object": query.object}
    return {
        **common,
        "id": query.expression_id,
        "expression": query.text,
        "candidates": list(query.candidates),
    }


def place_to_json(place: Place) -> JsonObject:
    return {
        "key": place.key,
        "region_id": place.region_id,
        "bbox": list(place.box_xywh),
        "area": place.area_px,
    }


def _query_from_json(row: dict[str, Any]) -> Query:
    key, image_id, problem = row["key"], row["image_id"], row["problem"]
    if "expression" not in row:
        return Pair(key=key, image_id=image_id, subject=row["subject"], object=row["object"], problem=problem)
    return Expression(
        key=key,
        image_id=image_id,
        expression_id=row["id"],
        text=row["expression"],
        candidates=tuple(row["candidates"]),
        problem=problem,
    )


def _place_from_json(row: dict[str, Any]) -> Place:
    x, y, width, height = row["bbox"]
    return Place(key=row["key"], region_id=row["region_id"], box_xywh=(x, y, width, height), area_px=row["area"])
