"""How large a case is, and the line that each of its tests ends with. Light: the runner needs no more."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How large the cases are. points: kills of a test. regions: of the long run. files, fuzz_s: of the fuzzers."""

    points: int = 20
    seed: int = 0
    regions: int = 1_000_000
    files: int = 10_000
    fuzz_s: int = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a test found. faults: injected. lost: regions without an outcome. duplicated: outcomes too many.

    redone: shards put through the labeler again; None where that cannot be counted.
    """

    test: str
    faults: int
    seconds: float
    ok: bool
    lost: int = 0
    duplicated: int = 0
    redone: int | None = None
    notes: str = ""


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 1)


def line_of(text: str) -> Line | None:
    """Return the line that a case printed; None for whatever else it said."""
    try:
        found = json.loads(text)
        return Line(**{name: value for name, value in found.items() if name in Line.__slots__})
    except (ValueError, TypeError, AttributeError):
        return None
