"""Reads YAML of strangers: plain values only, and never more of them than the text is worth."""

from __future__ import annotations

from pathlib import Path

import yaml

# Recipes and settings have some hundred lines.
_LONGEST_TEXT = 2**20
_MOST_VALUES = 200_000
_LONGEST_INTEGER = 400  # characters; Python does not print what has more than 4300 digits


class BadYaml(ValueError):
    """The text is no YAML of plain values, or more than is read; the message says which."""


def load_yaml_file(path: Path) -> object:
    """Return the value of a YAML file. Raises BadYaml; OSError where it cannot be read."""
    with path.open("rb") as file:
        data = file.read(_LONGEST_TEXT + 1)
    try:
        return load_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadYaml(f"no UTF-8 text ({error.reason})") from error


def load_yaml(text: str) -> object:
    """Return the value of a YAML text: mappings, lists, texts, numbers, dates.

    An anchor is shared where it is named again, not copied: ten lines can stand for a billion values, on which whoever walks
    them afterwards would spend days. So they are counted as often as they would be walked.

    Raises BadYaml.
    """
    if len(text) > _LONGEST_TEXT:
        raise BadYaml(f"longer than {_LONGEST_TEXT} characters")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _num_values(node, {}) > _MOST_VALUES:
                raise BadYaml(f"its anchors stand for more than {_MOST_VALUES} values. Write them out")
            value: object = loader.construct_document(node)
            return value
        finally:
            loader.dispose()
    except BadYaml:
        raise
    except RecursionError as error:
        raise BadYaml("nested too deeply") from error
    # Its constructors raise ValueError for a date or number that is none, TypeError for a key that cannot be one.
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, KeyError, AttributeError) as error:
        raise BadYaml(" ".join(str(error).split())[:300] or type(error).__name__) from error


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, each anchor counted where it is named. known: of nodes counted before, by identity."""
    found = known.get(id(node))
    if found is not None:
        if not found:
            raise BadYaml("an anchor holds itself")
        return found
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > _LONGEST_INTEGER:
        raise BadYaml("a whole number of more digits than can be meant")
    known[id(node)] = 0
    number = 1
    if isinstance(node, yaml.MappingNode):
        number += sum(_num_values(key, known) + _num_values(value, known) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        number += sum(_num_values(item, known) for item in node.value)
    known[id(node)] = number
    return number
