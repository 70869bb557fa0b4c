"""XML that somebody else wrote: no entities, no document type, one picture's element in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from rlabel.errors import InputError

_MOST_CHILDREN = 1_000_000


def elements(path: Path, tags: tuple[str, ...]) -> Iterator[Element]:
    """Yield every element directly below the root whose tag is one of `tags`, whole; the root itself first, without children.

    What was yielded is emptied when the next is asked for. Raises InputError, with the line, for what is not XML, and for
    a document type, which no annotation needs and which can be made to fill any memory.
    """
    root: Element | None = None
    depth = 0
    try:
        for event, element in iterparse(str(path), events=("start", "end"), forbid_dtd=True):
            if event == "start":
                depth += 1
                if root is None:
                    root = element
                    yield Element(element.tag, element.attrib)
                elif depth == 3 and len(root) and len(root[-1]) > _MOST_CHILDREN:
                    raise InputError(f"{path}: an element with more than {_MOST_CHILDREN} inside. Check the file.")
                continue
            depth -= 1
            if depth == 1:
                if element.tag in tags:
                    yield element
                assert root is not None
                root.clear()
    except DefusedXmlException as error:
        raise InputError(
            f"{path}: it has a document type or entities, which annotations do not need. Take them out of the file."
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: not XML that can be read ({error}). Export it anew.") from error


def root_tag(path: Path) -> str:
    """Return the name of a file's root element. Raises as `elements`."""
    for element in elements(path, ()):
        return str(element.tag)
    raise InputError(f"{path}: an XML file without an element. Export it anew.")


def number(text: str | None) -> float | None:
    """Return a finite number of a text; None for anything else."""
    try:
        value = float(text) if text is not None and len(text) < 100 else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def whole(text: str | None) -> int | None:
    """Return a positive whole number of a text; None for anything else."""
    value = number(text)
    return int(value) if value is not None and value.is_integer() and 0 < value < 2**31 else None


def words(text: str | None) -> str | None:
    """Return a text without outer blanks; None for nothing."""
    return text.strip() or None if text is not None else None
