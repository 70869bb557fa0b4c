"""Writes what the page's gallery of regions reads: sheets of thumbnails, and records in scripts, since a page on disk may fetch nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rlabel.evaluation.reading import LABELS, NamedCategory, read_categories
from rlabel.records import JsonValue
from rlabel.report.items import Item, Truths, choose_doubtful, read_items
from rlabel.report.sprites import SHEET_COLUMNS, THUMB_PX, Sheets, draw_thumbs
from rlabel.run.directory import RunDirectory
from rlabel.run.review import former_decisions
from rlabel.storage import MissingFile, Store

FOLDER = "report"
META = "gallery.js"
DEFAULT_MAX_REGIONS = 100_000
DEFAULT_MAX_THUMBS = 10_000  # 50 MB, of which a browser opens what is looked at
_CHUNK_ROWS = 4_000
_MAX_TEXT = 300  # characters of an answer or a reason; the files of the run have all of them
_OUTCOMES = ("label", "abstention", "failure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """What was written. num_shown of num_regions regions, num_thumbs of them with a picture, of at most max_thumbs (None: of all).

    num_decided: decisions of an earlier review that the page begins with. paths: of its files, in the page's folder.
    """

    num_regions: int
    num_shown: int
    num_thumbs: int
    max_thumbs: int | None
    num_decided: int
    num_chunks: int
    has_truth: bool
    paths: tuple[str, ...]


def write_gallery(
    run: RunDirectory,
    out: Store,
    images: Store | None,
    truth_url: str | None,
    max_regions: int = DEFAULT_MAX_REGIONS,
    max_thumbs: int | None = DEFAULT_MAX_THUMBS,
    beat: Callable[[int, int], None] | None = None,
) -> Gallery:
    """Write the gallery's files into OUT/report and return what is in them. The same run gives the same bytes.

    images: without it there are no thumbnails. max_regions: beyond it, only the most doubtful are there. max_thumbs: beyond
    it, only the most doubtful have a thumbnail; None draws all. beat: called with how many regions are done, and of how
    many, now and then.
    Raises RunError for a damaged shard, InputError for a truth or former decisions that cannot be read, StorageError when a
    file cannot be written.
    """
    categories = read_categories(run.store, LABELS)
    truths = None if truth_url is None else Truths(truth_url, categories)
    decided = former_decisions(run)
    choice = choose_doubtful(run, max_regions, max_thumbs if images is not None else 0)
    shown = choice.shown
    items = (item for item in read_items(run, truths) if shown is None or item.position in shown)
    sheets = Sheets(out, FOLDER)
    chunks = _Chunks(out, {category.category_id: index for index, category in enumerate(categories)})
    num_expected = choice.num_regions if shown is None else len(shown)
    for item, thumb in draw_thumbs(items, images, choice.drawn):
        chunks.add(item, None if thumb is None else sheets.add(thumb))
        if beat is not None:
            beat(chunks.num_rows, num_expected)
    sheets.close()
    chunks.close()
    meta = _meta(run, categories, chunks, sheets.num_thumbs)
    meta["decided"] = [decision.to_json() for decision in decided]
    path = f"{FOLDER}/{META}"
    out.put(path, _script("rlabelMeta", meta))
    paths = (path, *chunks.written, *sheets.written)
    _remove_others(out, paths)
    return Gallery(
        num_regions=choice.num_regions,
        num_shown=chunks.num_rows,
        num_thumbs=sheets.num_thumbs,
        max_thumbs=max_thumbs,
        num_decided=len(decided),
        num_chunks=len(chunks.written),
        has_truth=truths is not None,
        paths=paths,
    )


class _Chunks:
    """Collects rows and stores a script of each _CHUNK_ROWS. Words are in a list of their own, a row names them by their place."""

    def __init__(self, out: Store, category_indexes: dict[int, int]) -> None:
        self._out, self._category_indexes = out, category_indexes
        self._rows: list[JsonValue] = []
        self._words: dict[str, int] = {}
        self.num_rows = 0
        self.written: list[str] = []

    def add(self, item: Item, thumb: int | None) -> None:
        self._rows.append(
            [
                item.key,
                self._word(item.file_name or ""),
                _OUTCOMES.index(item.outcome),
                -1 if item.category_id is None else self._category_indexes.get(item.category_id, -1),
                round(item.score, 4),
                round(item.margin, 4),
                self._word(item.step),
                self._word(item.text),
                -1 if item.true_name is None else self._word(item.true_name),
                -1 if item.is_correct is None else int(item.is_correct),
                self._word(item.note),
                -1 if thumb is None else thumb,
            ]
        )
        self.num_rows += 1
        if len(self._rows) == _CHUNK_ROWS:
            self.close()

    def close(self) -> None:
        """Store the chunk that is not full, if there is one."""
        if not self._rows:
            return
        path = f"{FOLDER}/chunk-{len(self.written)}.js"
        self._out.put(path, _script("rlabelTake", {"words": list(self._words), "rows": self._rows}))
        self.written.append(path)
        self._rows, self._words = [], {}

    def _word(self, text: str) -> int:
        shown = text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
        return self._words.setdefault(shown, len(self._words))


def _meta(
    run: RunDirectory, categories: tuple[NamedCategory, ...], chunks: _Chunks, num_thumbs: int
) -> dict[str, JsonValue]:
    return {
        "run": run.fingerprint,
        "categories": [[category.category_id, category.name] for category in categories],
        "num_chunks": len(chunks.written),
        "num_thumbs": num_thumbs,
        "thumb_px": THUMB_PX,
        "sheet_columns": SHEET_COLUMNS,
    }


def _script(function: str, value: JsonValue) -> bytes:
    """Return a call of a function of the page. ASCII: what ends a line or a script elsewhere is escaped here."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f"{function}({text});\n".encode("ascii")


def _remove_others(out: Store, paths: Iterable[str]) -> None:
    """Remove what an earlier, larger gallery left in the folder."""
    kept = set(paths)
    for name in out.list(FOLDER):
        path = f"{FOLDER}/{name}"
        if path not in kept and name.startswith(("chunk-", "sheet-")):
            try:
                out.delete(path)
            except MissingFile:
                continue
