"""Vocabularies, embedders that are easily foreseen, and small runs for the tests of snapping."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlabel.records import Outcome, ShardResult, Snap
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import PlanSummary
from rlabel.run.resnap import SnapJob, open_snapped, snap_run
from rlabel.storage import Store
from rlabel.vocabulary.embedding import Rows
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, Vocabulary, make_vocabulary
from run_factories import image_row, manifest

BEASTS = make_vocabulary(
    "beasts/of all kinds",
    [Category(category_id=70, name="feline", synonyms=("cat",)), Category(category_id=80, name="thing")],
)
LABELED = Snap(category_id=70, nearest_name="feline", similarity=1.0, margin=1.0, decided_by="phrase")
UNLABELED = Snap(
    category_id=None,
    nearest_name='a "f\u00e9line" \u2028',
    similarity=0.25,
    margin=0.125,
    decided_by=None,
    reason='"no", so',
)


class AxisEmbedder:
    """Puts a text that is known on an axis of its own, others between all; "broken" has no vector."""

    def __init__(self, *texts: str) -> None:
        self.axis_of = {text: axis for axis, text in enumerate(texts)}
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Rows:
        self.asked += texts
        rows = np.zeros((len(texts), len(self.axis_of) + 1), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[self.axis_of.get(text, -1)] = np.nan if text == "broken" else 1.0
        return rows


def job(where: Path, vocabulary: Vocabulary = BEASTS, **more: object) -> SnapJob:
    fields: dict[str, object] = {"threshold": 0.5, "margin": 0.0, "embedder": "axes", **more}
    return SnapJob(vocabulary=vocabulary, where=str(where), **fields)  # type: ignore[arg-type]


def snap_all(source: RunDirectory, where: Path, snapper: Snapper | None = None) -> RunDirectory:
    run = open_snapped(source, job(where))
    snap_run(source, run, lambda: snapper or Snapper(BEASTS, None), lambda: None)
    return run


def one_shard(folder: Path, outcomes: Sequence[Outcome], images: Sequence[int] = (1,), **more: object) -> RunDirectory:
    plan = PlanSummary(num_shards=1, num_images=len(images), num_regions=len(outcomes), sha256="b" * 64)
    run = RunDirectory.create_or_resume(Store.open(folder), manifest(plan=plan, **more))
    run.commit(ShardResult(index=0, images=tuple(image_row(one) for one in images), outcomes=tuple(outcomes)))
    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if not name.endswith("status.json")}


DIMENSIONS = 64


class FakeEmbedder:
    """Gives each text a random but fixed unit row; a text in `near` lies at a stated cosine from another.

    near: {text: (other text, cosine)}. broken: texts whose row is NaN. asked: every text, in the order it was embedded.
    """

    def __init__(self, near: Mapping[str, tuple[str, float]] | None = None, broken: Sequence[str] = ()) -> None:
        self._near = dict(near or {})
        self._broken = frozenset(broken)
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> Rows:
        self.asked += texts
        return np.array([self._row(text) for text in texts], dtype=np.float32).reshape(len(texts), DIMENSIONS)

    def _row(self, text: str) -> np.ndarray:
        if text in self._broken:
            return np.full(DIMENSIONS, np.nan)
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        own = np.random.default_rng(seed).standard_normal(DIMENSIONS)
        if text in self._near:
            other_text, cosine = self._near[text]
            other = self._row(other_text)
            own -= other * (own @ other)
            return cosine * other + np.sqrt(1.0 - cosine**2) * own / np.linalg.norm(own)
        return own / np.linalg.norm(own)


class CountingEmbedder(FakeEmbedder):
    """calls: how many texts each call embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def embed(self, texts: Sequence[str]) -> Rows:
        self.calls.append(len(texts))
        return super().embed(texts)


class ConstantEmbedder:
    """Puts every text at one place."""

    def embed(self, texts: Sequence[str]) -> Rows:
        return np.ones((len(texts), 1), dtype=np.float32)


class TableEmbedder:
    def __init__(self, row_of: Mapping[str, Rows]) -> None:
        self._row_of = row_of

    def embed(self, texts: Sequence[str]) -> Rows:
        return np.stack([self._row_of[text] for text in texts])


def make_pets(*more: Category) -> Vocabulary:
    return make_vocabulary(
        "pets",
        [
            Category(category_id=3, name="cat", synonyms=("cat", "kitten")),
            Category(category_id=9, name="dog", synonyms=("hound",)),
            Category(category_id=12, name="hot dog", synonyms=("frankfurter",)),
            Category(category_id=20, name="airplane"),
            Category(category_id=21, name="fire engine", synonyms=("fire truck",)),
            Category(category_id=22, name="truck"),
            Category(category_id=23, name="couch"),
            Category(category_id=24, name="doughnut"),
            Category(category_id=25, name="cherries"),
            Category(category_id=26, name="bow (weapon)"),
            Category(category_id=27, name="cabinet/shelf"),
            Category(category_id=28, name="t-shirt"),
            Category(category_id=29, name="drinking glass", synonyms=("glass",)),
            Category(category_id=30, name="glasses"),
            Category(category_id=31, name="jack-o'-lantern"),
            Category(category_id=32, name="cup"),
            Category(category_id=33, name="Teddy_Bear"),
            *more,
        ],
    )


def snap_one(text: str, *more: Category) -> Snap:
    return Snapper(make_pets(*more), None).snap([text])[0]
