"""Prompts kept once and attended by many rows, against prompts copied for every row."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import model_factories
from rlabel.labeling.cascade import ATTENTION, Tiles, cascade_attention
from rlabel.labeling.rows import CascadeRows, CopiedRows, Rows, Texts, cascade_fits, feed_together
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration

# Images with many rows, one, none, and a few; with one tile an image most places would be empty.
IMAGE_INDEX = torch.tensor([0] * 11 + [1] + [3, 3, 3])
WIDTH = model_factories.WIDTH


@cache
def made(text: str) -> RegionGPTForConditionalGeneration:
    return model_factories.model("lite", text)


def pair(text: str) -> tuple[CascadeRows, CopiedRows, Tensor]:
    """Return both kinds of rows behind the same prefixes, and what is to be fed next."""
    torch.manual_seed(1)
    model, prefix_BPD = made(text), torch.randn(4, 13, WIDTH)
    suffix_RSD = torch.randn(len(IMAGE_INDEX), 5, WIDTH)
    return (
        CascadeRows.behind(model, prefix_BPD, IMAGE_INDEX),
        CopiedRows.behind(model, prefix_BPD, IMAGE_INDEX, share=True),
        suffix_RSD,
    )


def assert_same(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape and float(one.std()) > 0.1
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("text", ["llama", "qwen2", "gpt_neox"])
@torch.inference_mode()
def test_rows_that_share_a_prefix_say_what_rows_with_copies_of_it_say(text: str) -> None:
    shared, copied, suffix_RSD = pair(text)
    assert_same(shared.feed(suffix_RSD), copied.feed(suffix_RSD))
    for _ in range(18):  # beyond the room that is made at once
        step_RD = torch.randn(len(IMAGE_INDEX), 1, WIDTH)
        assert_same(shared.feed(step_RD), copied.feed(step_RD))
    kept = torch.tensor([0, 2, 2, 11, 14])
    shared.keep(kept)
    copied.keep(kept)
    step_RD = torch.randn(len(kept), 1, WIDTH)
    assert_same(shared.feed(step_RD), copied.feed(step_RD))


@torch.inference_mode()
def test_rows_that_have_come_to_different_lengths_are_fed_together() -> None:
    first, copied, suffix_RSD = pair("llama")
    second, other, _ = pair("llama")
    for rows in (first, copied, second, other):
        rows.feed(suffix_RSD)
    ahead_RD = torch.randn(len(IMAGE_INDEX), 1, WIDTH)
    second.feed(ahead_RD)
    other.feed(ahead_RD)
    few = torch.tensor([0, 11, 12])
    second.keep(few)
    other.keep(few)
    for _ in range(18):
        step_RD = torch.randn(len(IMAGE_INDEX) + len(few), 1, WIDTH)
        got = feed_together([first, second], step_RD)
        assert_same(got, torch.cat([copied.feed(step_RD[: len(IMAGE_INDEX)]), other.feed(step_RD[-len(few) :])]))


@torch.inference_mode()
def test_prefixes_that_no_row_looks_at_are_let_go_once_they_are_half_of_all() -> None:
    shared, copied, suffix_RSD = pair("llama")
    assert shared.num_prefixes == 4
    for kept, num_prefixes in ((torch.arange(12), 2), (torch.tensor([11]), 1)):
        shared.keep(kept)
        copied.keep(kept)
        assert shared.num_prefixes == num_prefixes and shared.num_rows == len(kept)
    assert_same(shared.feed(suffix_RSD[:1]), copied.feed(suffix_RSD[:1]))


@torch.inference_mode()
def test_a_fork_tries_texts_of_various_lengths_and_leaves_the_rows_as_they_are() -> None:
    shared, copied, suffix_RSD = pair("llama")
    shared.feed(suffix_RSD)
    copied.feed(suffix_RSD)
    texts = Texts(
        ids_RM=torch.randint(0, 400, (5, 4)),
        lengths_R=torch.tensor([4, 2, 1, 3, 4]),
        first_R=torch.tensor([0, 1, 0, 2, 1]),
    )
    index = torch.tensor([0, 0, 5, 11, 14])

    def tried(rows: Rows) -> Tensor:
        return rows.fork(index).try_texts(texts)

    assert_same(tried(shared), tried(copied))
    assert len(tried(shared)) == 4 + 1 + 1 + 1 + 3
    # A row fed by itself gives the same: texts beside it, and what fills them up, change nothing.
    alone = shared.fork(index[3:4]).feed(made("llama").get_input_embeddings()(texts.ids_RM[3:4, :3]))
    assert_same(tried(shared)[6:7], alone)
    step_RD = torch.randn(len(IMAGE_INDEX), 1, WIDTH)
    assert_same(shared.feed(step_RD), copied.feed(step_RD))


def test_rows_are_laid_in_tiles_and_taken_out_again_in_their_order() -> None:
    groups = torch.tensor([0, 0, 0, 2, 2, 5])
    tiles = Tiles.of(groups, 6, torch.device("cpu"))
    values = torch.arange(1.0, 7.0)[:, None]
    laid = tiles.lay(values)
    assert torch.equal(tiles.take(laid), values)
    group_of_tile = torch.arange(6) if tiles.group_T is None else tiles.group_T
    for tile, group in zip(laid, group_of_tile, strict=True):
        inside = [int(value) - 1 for value in tile.flatten() if value > 0]
        assert all(int(groups[row]) == int(group) for row in inside)


def test_no_tile_is_larger_than_it_pays() -> None:
    alone = Tiles.of(torch.arange(9), 9, torch.device("cpu"))
    assert (alone.num_tiles, alone.rows_each, alone.group_T, alone.slot_R) == (9, 1, None, None)
    # One image of 40 regions among 9 of one: tiles of 40 would hold 360 empty places.
    skewed = Tiles.of(torch.tensor([0] * 40 + list(range(1, 10))), 10, torch.device("cpu"))
    assert skewed.num_tiles * skewed.rows_each < 100


@torch.inference_mode()
def test_language_models_that_look_otherwise_keep_their_copies() -> None:
    assert cascade_fits(made("llama")) and cascade_fits(made("gpt_neox"))
    assert not cascade_fits(made("gpt_neox_japanese"))  # it has an attention of its own
    windowed = model_factories.model("lite", "llama")
    windowed.config.text_config.sliding_window = 8
    assert not cascade_fits(windowed)


def test_a_model_attends_as_before_after_sharing() -> None:
    config = made("llama").language_model.config
    before = config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), cascade_attention(made("llama").language_model):
        assert config._attn_implementation == ATTENTION
        raise RuntimeError("stop")
    assert config._attn_implementation == before != ATTENTION


def test_as_many_tiles_as_beginnings_are_not_one_for_each() -> None:
    """One beginning has many rows, three have one, three have none."""
    index_R = torch.tensor([0] * 16 + [1, 2, 3])
    tiles = Tiles.of(index_R, 7, torch.device("cpu"))
    assert (tiles.num_tiles, tiles.rows_each) == (7, 4)
    keys_GHLE = torch.arange(7.0).view(7, 1, 1, 1)
    group_T = tiles.keys_of(keys_GHLE).flatten().tolist()
    laid_TC = tiles.lay(index_R + 1.0)
    assert all(set(own.tolist()) <= {0.0, group + 1.0} for own, group in zip(laid_TC, group_T, strict=True))
    assert tiles.take(laid_TC).tolist() == (index_R + 1).tolist()
