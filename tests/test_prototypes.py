"""The vectors of a vocabulary: exact cosines, and the nearest categories, however the work is cut."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from rlabel.vocabulary.embedding import Rows
from rlabel.vocabulary.prototypes import Prototypes
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, make_vocabulary
from snap_factories import ConstantEmbedder, FakeEmbedder, TableEmbedder, make_pets


def test_nearest_categories_come_best_first_with_their_cosines() -> None:
    embedder = FakeEmbedder(near={"puppy": ("dog", 0.8), "kitten": ("puppy", 0.7)})
    snapper = Snapper(make_pets(), embedder)
    puppy, empty, wordless, again = snapper.nearest(["A puppy.", "", "\u2026", "puppy"], 3)
    assert [category_id for category_id, _ in puppy[:2]] == [9, 3]
    assert puppy[0][1] == pytest.approx(0.8, abs=2e-6) and puppy[1][1] == pytest.approx(0.7, abs=2e-6)
    assert puppy[2][1] <= puppy[1][1] and len(puppy) == 3
    assert (empty, wordless, again) == ([], [], puppy)
    assert len(snapper.nearest(["puppy"], 99)[0]) == len(make_pets().categories)
    assert snapper.nearest(["puppy"], 0) == [[]]
    assert Snapper(make_pets(), None).nearest(["puppy"], 2) == [[]]
    assert Snapper(make_pets(), FakeEmbedder(broken=["puppy"])).nearest(["puppy", "zonk"], 1)[0] == []


def test_nearest_and_snap_agree_and_equal_cosines_keep_the_order_of_the_file() -> None:
    embedder = FakeEmbedder(near={"cat": ("beast", 0.9), "dog": ("beast", 0.9)})
    snapper = Snapper(make_pets(), embedder, margin=0.0)
    (found,) = snapper.nearest(["beast"], 2)
    assert [category_id for category_id, _ in found] in ([3, 9], [9, 3])
    assert (snapper.snap(["beast"])[0].category_id, snapper.snap(["beast"])[0].similarity) == found[0]
    twins = make_vocabulary("twins", [Category(category_id=5, name="saw"), Category(category_id=4, name="axe")])
    assert [one for one, _ in Snapper(twins, ConstantEmbedder()).nearest(["zonk"], 2)[0]] == [5, 4]


def test_cosines_are_exact_sums_of_numbers_on_a_grid() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [f"name {number}" for number in range(30)]
    vocabulary = make_vocabulary("v", [Category(category_id=n + 1, name=name) for n, name in enumerate(names)])
    prototypes = Prototypes(vocabulary, TableEmbedder(dict(zip(names, rows[:30], strict=True))))
    exact = [
        [sum(Fraction(round(float(x) * 2**24), 2**24) * Fraction(round(float(y) * 2**24), 2**24) for x, y in zip(q, p, strict=True)) for p in rows[:30]]
        for q in rows[30:]
    ]  # fmt: skip
    for query, expected in zip(rows[30:], exact, strict=True):
        assert [Fraction(value) for value in prototypes.similarities(query).tolist()] == expected
        assert Fraction(prototypes.cosine(query, 7)) == expected[7]
    indices, cosines = prototypes.nearest(rows[30:], 2)
    for row, expected in enumerate(exact):
        order = sorted(range(30), key=lambda index: -expected[index])[:2]
        assert indices[row].tolist() == order and cosines[row].tolist() == [float(expected[index]) for index in order]


def crowded_vocabulary(dice: np.random.Generator, dimensions: int, size: int) -> tuple[Prototypes, list[Rows]]:
    """Return prototypes of categories with up to three names, some of them equal or all but equal, and rows that lie among them."""
    row_of: dict[str, Rows] = {}
    categories = []
    for number in range(size):
        names = [f"name {number} {place}" for place in range(dice.integers(1, 4))]
        for name in names:
            row = dice.standard_normal(dimensions)
            if row_of and dice.random() < 0.5:
                old = row_of[list(row_of)[dice.integers(len(row_of))]]
                row = old + row * dice.choice([0.0, 1e-8, 1e-7, 1e-5, 1e-2])
            row_of[name] = (row / np.linalg.norm(row)).astype(np.float32)
        categories.append(Category(category_id=number + 1, name=names[0], synonyms=tuple(names[1:])))
    vocabulary = make_vocabulary("crowded", categories)
    near = [row_of[name] + np.float32(1e-6) * dice.standard_normal(dimensions).astype(np.float32) for name in row_of]
    return Prototypes(vocabulary, TableEmbedder(row_of)), [*row_of.values(), *near]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("most_finalists", [64, 1])
def test_nearest_are_those_of_all_exact_cosines(
    seed: int, most_finalists: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlabel.vocabulary.prototypes._MAX_FINALISTS", most_finalists)
    dice = np.random.default_rng(seed)
    size = int(dice.integers(1, 40))
    prototypes, rows = crowded_vocabulary(dice, int(dice.choice([2, 16, 384])), size)
    odd = [rows[0] * 0, rows[0] * np.nan, rows[0] * np.inf, -rows[0], rows[-1] * np.float32(1.7)]
    asked = np.stack([*rows, *odd]).astype(np.float32)
    k = int(dice.integers(1, 20))
    indices, cosines = prototypes.nearest(asked, k)
    for number, row in enumerate(asked):
        with np.errstate(invalid="ignore"):
            exact = prototypes.similarities(row)
        if np.isfinite(exact).all():
            order = sorted(range(size), key=lambda index: (-exact[index], index))[:k]  # noqa: B023
            assert indices[number].tolist() == order and cosines[number].tolist() == exact[order].tolist()
        else:
            assert np.isnan(cosines[number]).all()


def test_rough_products_alone_would_be_wrong() -> None:
    # Three names nearer to each other than float32 can tell: what is nearest is decided by exact sums.
    dice = np.random.default_rng(1)
    prototypes, rows = crowded_vocabulary(dice, 384, 60)
    asked = np.stack(rows)
    rough = asked @ prototypes._rows_PD.T
    by_rough = prototypes._owners_P[rough.argmax(axis=1)]
    assert (prototypes.nearest(asked, 1)[0][:, 0] != by_rough).any()


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"blorp {number}" for number in range(50)]
    whole = Snapper(make_pets(), FakeEmbedder(), threshold=-1.0).snap(texts)
    monkeypatch.setattr("rlabel.vocabulary.prototypes._BLOCK_NUMBERS", 60)
    monkeypatch.setattr("rlabel.vocabulary.snapping._MAX_TOGETHER", 7)
    assert Snapper(make_pets(), FakeEmbedder(), threshold=-1.0).snap(texts) == whole
