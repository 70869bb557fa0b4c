"""Canonical JSON: the same value gives the same bytes on every machine, so that bytes can be compared and hashed."""

from __future__ import annotations

import hashlib
import json
import math

from rlabel.records import JsonObject, JsonValue

# Made once: making one takes as long as a short line does. JSON values hold no cycles.
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
)


def canonical_bytes(value: JsonValue) -> bytes:
    """Return a value as one line of UTF-8 JSON: keys sorted, no spaces, floats by their shortest exact repr.

    Raises ValueError for NaN and infinities, which JSON does not have; `json_safe` replaces them.
    """
    text = _ENCODER.encode(value)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate, legal in a JSON escape, has no UTF-8: this one line keeps its escapes.
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def canonical_text(value: JsonValue) -> str:
    """Return the same as text. A lone surrogate stays in it, so that it may have no UTF-8. Raises ValueError as `canonical_bytes`."""
    return _ENCODER.encode(value)


def canonical_sha256(value: JsonValue) -> str:
    """Return the hex SHA-256 of a value's canonical bytes."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


def json_safe(value: JsonValue) -> JsonValue:
    """Return a value of an input file with every NaN or infinity as the text that Python prints for it.

    Only rows that cannot be labeled hold such numbers; they are kept readable instead of costing their whole shard.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return [json_safe(item) for item in value]
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    return value


def object_of(value: JsonValue) -> JsonObject:
    """Return the value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}
