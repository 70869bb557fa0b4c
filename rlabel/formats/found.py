"""What a reader of another layout finds: pictures and their regions, in one form for every layout. Holds no reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlabel.records import BoxXywh, JsonObject, JsonValue

_MOST_EXAMPLES = 3
_MOST_SENTENCES = 300
_OTHERS = "notes of yet other kinds"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRegion:
    """One region as a layout gives it.

    segmentation: polygons or RLE as COCO has them; None where the layout has a box alone. box_xywh: left, top, width,
    height in upright picture pixels; None where it is to be taken from the segmentation. name: of its category, stripped;
    None where the layout has none. category_id: of a layout that has COCO's own ids. attributes: what else it says.
    """

    segmentation: JsonValue = None
    box_xywh: BoxXywh | None = None
    name: str | None = None
    is_crowd: bool = False
    attributes: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPicture:
    """One picture with its regions. file_name: below the picture folder, "/"-separated. Sides upright; None if not known."""

    file_name: str
    width_px: int | None
    height_px: int | None
    regions: tuple[FoundRegion, ...]


class Notes:
    """What a person should know of a conversion: each sentence with how often it came up, and the first places.

    Sentences come out in the order of their first mention.
    """

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def say(self, what: str, where: str | None = None, count: int = 1) -> None:
        """Count one more of `what`. where: the file or row, of which the first three are kept."""
        if count < 1:
            return
        if what not in self._counts and len(self._counts) >= _MOST_SENTENCES:
            what = _OTHERS
        what = _printable(what)
        self._counts[what] = self._counts.get(what, 0) + count
        places = self._places.setdefault(what, [])
        if where is not None and len(places) < _MOST_EXAMPLES:
            places.append(_printable(where[:240]))

    def rows(self) -> list[JsonObject]:
        """Return the notes for JSON: what, count and examples."""
        return [
            {"what": what, "count": count, "examples": list(self._places[what])} for what, count in self._counts.items()
        ]

    def lines(self) -> list[str]:
        """Return the notes for a person, one a line."""
        return [
            f"{count} {what}" + (f" (such as {', '.join(self._places[what])})" if self._places[what] else "")
            for what, count in self._counts.items()
        ]


def _printable(text: str) -> str:
    """Return a text that every terminal and JSON reader takes: lone surrogates (of odd file names) as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


class Layout(Protocol):
    """A layout that was opened."""

    @property
    def names(self) -> Sequence[str]:
        """The categories that it lists itself, in its order; others follow as regions name them."""

    @property
    def notes(self) -> Notes:
        """What was left out or is doubtful; complete once `pictures` has ended."""

    def pictures(self) -> Iterator[FoundPicture]:
        """Yield the pictures, one in memory at a time, in an order that the files alone decide.

        Raises InputError, with file and place, for what cannot be read at all.
        """
