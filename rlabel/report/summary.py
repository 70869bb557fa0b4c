"""Counts what a run says of itself, without a truth: outcomes, names, unmatched answers, failures. Streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rlabel.evaluation.reading import (
    ABSTAINED,
    FAILURES,
    LABELS,
    read_categories,
    read_lines,
    read_members,
    stream_rows,
)
from rlabel.records import JsonValue
from rlabel.storage import Store

NUM_LISTED = 20
NUM_BINS = 20
# Distinct texts and reasons that are counted: a run of millions may have as many of them. Later ones are not listed.
_MAX_DISTINCT = 100_000
_MAX_FACTS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRow:
    """Something that num_regions regions have in common; detail says more of it ("" where there is no more)."""

    name: str
    detail: str
    num_regions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run holds.

    score_bins: how many labels have a score in each of NUM_BINS equal parts of [0, 1], the lowest first.
    facts: the file's own account of how it was made (info.rlabel), as (name, value).
    categories, unmatched_texts (detail: a nearest name), failures (name: kind, detail: reason): most frequent first.
    """

    num_images: int
    num_labeled: int
    num_abstained: int
    num_failed: int
    facts: tuple[tuple[str, str], ...]
    categories: tuple[CountRow, ...]
    decided_by: tuple[CountRow, ...]
    unmatched_texts: tuple[CountRow, ...]
    failures: tuple[CountRow, ...]
    score_bins: tuple[int, ...] = (0,) * NUM_BINS

    @property
    def num_regions(self) -> int:
        return self.num_labeled + self.num_abstained + self.num_failed


def summarise_run(run_url: str) -> RunSummary:
    """Return the counts of a run. Raises InputError when its files cannot be read."""
    store = Store.open(run_url)
    names = {category.category_id: category.name for category in read_categories(store, LABELS)}
    num_images = sum(1 for _ in stream_rows(store, LABELS, "images"))
    categories: Counter[tuple[str, str]] = Counter()
    steps: Counter[tuple[str, str]] = Counter()
    texts: Counter[tuple[str, str]] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    nearest: dict[str, str] = {}
    bins = [0] * NUM_BINS
    num_labeled = num_abstained = num_failed = 0
    for row in stream_rows(store, LABELS, "annotations"):
        num_labeled += 1
        category_id, attributes = row.get("category_id"), row.get("attributes")
        name = names.get(category_id) if isinstance(category_id, int) else None
        categories[name if name is not None else str(category_id), ""] += 1
        score = row.get("score")
        if isinstance(score, int | float) and 0 <= score <= 1:
            bins[min(int(score * NUM_BINS), NUM_BINS - 1)] += 1
        steps[str(attributes.get("decided_by", "")) if isinstance(attributes, dict) else "", ""] += 1
    for row in read_lines(store, ABSTAINED):
        num_abstained += 1
        text = str(row.get("text", ""))
        if text in nearest or len(nearest) < _MAX_DISTINCT:
            texts[text, nearest.setdefault(text, str(row.get("nearest_name") or ""))] += 1
    for row in read_lines(store, FAILURES):
        num_failed += 1
        reason = (str(row.get("kind", "")), str(row.get("reason", "")))
        if reason in reasons or len(reasons) < _MAX_DISTINCT:
            reasons[reason] += 1
    return RunSummary(
        num_images=num_images,
        num_labeled=num_labeled,
        num_abstained=num_abstained,
        num_failed=num_failed,
        facts=tuple(_facts(store)),
        categories=_rows(categories),
        decided_by=_rows(steps),
        unmatched_texts=_rows(texts),
        failures=_rows(reasons),
        score_bins=tuple(bins),
    )


def _rows(counter: Counter[tuple[str, str]]) -> tuple[CountRow, ...]:
    ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:NUM_LISTED]
    return tuple(CountRow(name=name, detail=detail, num_regions=count) for (name, detail), count in ordered)


def _facts(store: Store) -> list[tuple[str, str]]:
    info = next((member.value for member in read_members(store, LABELS) if member.name == "info"), None)
    own = info.get("rlabel") if isinstance(info, dict) else None
    return list(_flatten("", own))[:_MAX_FACTS]


def _flatten(prefix: str, value: JsonValue) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else key, inner)
    elif value is not None and prefix:
        yield prefix, ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
