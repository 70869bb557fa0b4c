"""Finds the JSON Schemas of this project and checks parsed files against them.

The schemas lie in `schemas/` beside the package in a checkout and in `rlabel/schemas/` in an installed wheel. Reading
files is left
to the callers: they pass what `json.loads` or `yaml.safe_load` gave.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from rlabel.errors import InputError
from rlabel.records import JsonObject, JsonValue

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE / "schemas", _PACKAGE.parent / "schemas")
_MAX_ERRORS_LOOKED_AT = 50
_MAX_SHOWN = 100


def load_schema(name: str) -> JsonObject:
    """Return the schema kept as `NAME.schema.json`, a fresh object at every call.

    Raises InputError where the installation lacks the file.
    """
    path = _schema_path(name)
    schema: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    return schema


def validate(instance: JsonValue, name: str, where: str) -> None:
    """Check `instance` against the schema `name` and return nothing if it fits.

    where: what the message shall call the checked thing, usually its path.

    Raises InputError with the path of the first error inside the instance ("categories[3].id"), what was expected and
    what was found.
    """
    errors = list(islice(_validator(name).iter_errors(instance), _MAX_ERRORS_LOOKED_AT))
    if errors:
        first = min(errors, key=lambda error: [_sortable(step) for step in error.absolute_path])
        raise InputError(
            f"{where}: {_describe(_innermost(first))} The format is described in schemas/{name}.schema.json."
        )


@lru_cache(maxsize=32)
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(load_schema(name))


def _schema_path(name: str) -> Path:
    for folder in _FOLDERS:
        path = folder / f"{name}.schema.json"
        if path.is_file():
            return path
    raise InputError(
        f"schema {name}: {name}.schema.json is in neither of {', '.join(str(folder) for folder in _FOLDERS)}. "
        "The installation is incomplete: install rlabel again."
    )


def _sortable(step: str | int) -> tuple[int, int, str]:
    return (0, step, "") if isinstance(step, int) else (1, 0, step)


def _innermost(error: ValidationError) -> ValidationError:
    """Return the most telling alternative of an anyOf/oneOf: the one that got furthest into the instance."""
    while error.context:
        error = max(error.context, key=lambda inner: len(inner.absolute_path))
    return error


def _describe(error: ValidationError) -> str:
    """Return one sentence: where in the instance, what was expected, what was found."""
    path = _readable_path(error)
    at = f"{path}: " if path else ""
    rule, value = error.validator, error.validator_value
    if rule == "required":
        return f"{at}{error.message}."
    if rule == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        unknown = sorted(str(key) for key in error.instance if key not in known)
        return f"{at}unknown key {_shown(unknown[0]) if unknown else ''}; known keys: {', '.join(sorted(known))}."
    expected = {
        "type": "a value of type {}",
        "enum": "one of {}",
        "const": "exactly {}",
        "minimum": "at least {}",
        "maximum": "at most {}",
        "exclusiveMinimum": "more than {}",
        "exclusiveMaximum": "less than {}",
        "minItems": "at least {} item(s)",
        "maxItems": "at most {} item(s)",
        "minLength": "at least {} character(s)",
        "maxLength": "at most {} character(s)",
        "pattern": "text that matches {}",
    }.get(str(rule), f"what the rule {rule} {{}} allows")
    return f"{at}expected {expected.format(_shown(value))}, got {_shown(error.instance)}."


def _readable_path(error: ValidationError) -> str:
    text = ""
    for step in error.absolute_path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _shown(value: Any) -> str:
    """Return the value as JSON, cut to a length that a message can bear."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
