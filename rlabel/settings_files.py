"""Where settings come from: a YAML file checked against its schema, and flags, which win. Knows no setting itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rlabel.errors import InputError, UsageError
from rlabel.records import JsonObject
from rlabel.schema_files import validate
from rlabel.yaml_files import BadYaml, load_yaml_file


class SettingsRecord(BaseModel):
    """Settings of a job. schema_name: of the JSON Schema that their file is checked against."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    schema_name: ClassVar[str]

    def check(self) -> None:
        """Raise UsageError for settings that do not go together."""


_S = TypeVar("_S", bound=SettingsRecord)


def load_settings(kind: type[_S], config_file: str | None, flags: Mapping[str, Any]) -> _S:
    """Return settings from a YAML file and flags; a flag that is not None wins.

    Raises UsageError naming the first field that is missing or wrong.
    """
    values: dict[str, Any] = {} if config_file is None else _read_yaml(kind, config_file)
    values.update({name: value for name, value in flags.items() if value is not None})
    for name, value in values.items():
        if "" in (value if isinstance(value, tuple | list) else [value]):
            raise UsageError(
                f"{_flag(name)}: expected a value, got an empty text, as of a variable that is not set. Give one, or leave the option out."
            )
    try:
        settings = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UsageError(
                f"{_flag(name)}: missing. Give it as a flag, or as `{name}:` in the file of --config."
            ) from error
        expected = _EXPECTED.get(first["type"], first["msg"].removeprefix("Value error, ")).format(
            **first.get("ctx", {})
        )
        raise UsageError(
            f"{_flag(name)}: expected {expected}, got {first.get('input')!r}. Give such a value, or leave the option out."
        ) from error
    settings.check()
    return settings


# What pydantic calls a broken rule, and what was expected then.
_EXPECTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "at most {max_length} characters",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
    "string_type": "text",
    "finite_number": "a finite number",
    "extra_forbidden": "an option that --help lists",
}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def fields_in_order(kind: type[BaseModel]) -> list[str]:
    """Return a record's fields as people should read them: its own, and after them those that it shares with other jobs."""
    own = [name for name in kind.model_fields if name in kind.__annotations__]
    return own + [name for name in kind.model_fields if name not in kind.__annotations__]


def settings_schema(kind: type[BaseModel]) -> JsonObject:
    """Return the JSON Schema of a settings file: as the record's own, but nothing is required, since flags may give it."""
    schema: JsonObject = {"$schema": "https://json-schema.org/draft/2020-12/schema", **kind.model_json_schema()}
    schema.pop("required", None)
    properties = schema["properties"]
    assert isinstance(properties, dict)
    schema["properties"] = {name: properties[name] for name in fields_in_order(kind)}
    return schema


def _read_yaml(kind: type[SettingsRecord], config_file: str) -> dict[str, Any]:
    try:
        loaded = load_yaml_file(Path(config_file))
    except (OSError, BadYaml) as error:
        raise UsageError(
            f"--config {config_file}: expected a readable YAML file, got: {' '.join(str(error).split())}."
        ) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(
            f"--config {config_file}: expected a mapping of settings, got a {type(loaded).__name__}. Write `name: value` lines."
        )
    values = {str(name).replace("-", "_"): value for name, value in loaded.items()}
    try:
        validate(values, kind.schema_name, f"--config {config_file}")
    except InputError as error:
        raise UsageError(str(error)) from error
    return values
