"""`rlabel bench`: its corpus and models are the same for a seed, its operations are those that torch counts, its numbers add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from label_factories import rlabel_here
from rlabel.bench import prefill
from rlabel.bench.arithmetic import LanguageShape, language_shape, matrix_peak, prefill_flop, tokens_flop
from rlabel.bench.corpus import draw_corpus, draw_names
from rlabel.bench.measure import measure, table
from rlabel.bench.models import SHAPES, Shape, make_model
from rlabel.bench.pipeline import Timed
from rlabel.bench.plain import generate, one_region
from rlabel.bench.prefill import measure_prefill, prefill_text
from rlabel.bench.rows import Prepared, Row
from rlabel.corpus.coco import read_corpus
from rlabel.labeling.engine import Engine, EngineOptions

import model_factories as factory  # isort: skip

SMALL = Shape(
    width=32, inner_width=64, num_layers=2, num_heads=2, num_key_value_heads=1, vocabulary_size=1500,
    image_tokens_per_side=2, weight_std=0.2,
)  # fmt: skip


def test_a_drawn_corpus_is_the_same_for_a_seed_and_has_the_asked_sizes(tmp_path: Path) -> None:
    first, second = (draw_corpus(tmp_path / name, 3, 4, seed=5) for name in ("a", "b"))
    assert first.regions.read_bytes() == second.regions.read_bytes() and first.names == second.names
    for picture in sorted(first.images.iterdir()):
        assert picture.read_bytes() == (second.images / picture.name).read_bytes()
    with read_corpus(str(first.regions)) as corpus:
        records = list(corpus.images())
        assert [len(record.regions) for record in records] == [4, 4, 4] and not corpus.problems
    kinds = {
        tuple(sorted(row.keys() & {"bbox", "segmentation"}))
        for row in json.loads(first.regions.read_text())["annotations"]
    }
    assert kinds == {("bbox",), ("segmentation",)}
    assert len(set(draw_names(250))) == 250


def test_a_model_of_a_shape_answers_each_region_otherwise_and_the_same_for_a_seed() -> None:
    names = draw_names(40)
    model, processor = make_model(SMALL, names, seed=1)
    again, _ = make_model(SMALL, names, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert len(processor.tokenizer) == 1500 and processor.num_image_tokens == 4
    assert processor.tokenizer.decode([1499]).strip() == "word1499"
    engine = Engine(model, processor, EngineOptions(max_new_tokens=4))
    inputs = factory.random_inputs(processor, [3, 4])
    texts = [answer.text for own in engine.answer(inputs) for answer in own]
    assert len(set(texts)) > 1
    # What it is compared with says the same, one at a time and together.
    regions = [one_region(item, number) for item in inputs for number in range(len(item.region_masks_RGG))]
    assert [text for region in regions for text in generate(engine, [region])] == texts == generate(engine, regions)


def test_the_135m_shape_is_that_of_smollm2() -> None:
    from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration

    made, _ = make_model(SMALL, draw_names(40))
    config = made.config
    shape = SHAPES["135m"]
    for field, value in (
        ("hidden_size", shape.width), ("intermediate_size", shape.inner_width), ("num_hidden_layers", shape.num_layers),
        ("num_attention_heads", shape.num_heads), ("num_key_value_heads", shape.num_key_value_heads),
        ("vocab_size", shape.vocabulary_size), ("head_dim", shape.width // shape.num_heads),
    ):  # fmt: skip
        setattr(config.text_config, field, value)
    with torch.device("meta"):
        outline = RegionGPTForConditionalGeneration(config)
    assert sum(parameter.numel() for parameter in outline.language_model.parameters()) == 134_515_008


def test_operations_of_the_language_model_are_those_that_torch_counts() -> None:
    model, _ = make_model(SMALL, draw_names(40))
    model.language_model.set_attn_implementation("eager")
    shape = language_shape(model)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.language_model(inputs_embeds=torch.zeros(1, 6, 32), logits_to_keep=1)
    # Eager attention computes the upper triangle too: 36 pairs of positions instead of 21.
    masked = 4 * shape.num_layers * shape.attention_width * 15
    assert counter.get_total_flops() == tokens_flop(shape, 0, 6) + masked + 2 * shape.head_weights
    # Two halves of a sequence are the whole.
    assert tokens_flop(shape, 0, 2) + tokens_flop(shape, 2, 4) == tokens_flop(shape, 0, 6)
    by_hand = LanguageShape(linear_weights=10, num_layers=1, attention_width=3, head_weights=0)
    assert tokens_flop(by_hand, 5, 1) == 2 * 10 + 4 * 3 * 6


def test_prefill_counts_nothing_that_need_not_be_computed() -> None:
    shape = LanguageShape(
        linear_weights=100, num_layers=2, attention_width=3, head_weights=7, last_query_weights=10, last_rest_weights=30
    )
    # Two images of 4 tokens: all weights but the last layer's 40; attention of one layer. Three regions of 2 tokens, at positions 4 and 5:
    # the last layer is finished for the second alone.
    images = 2 * (2 * 60 * 4 + 4 * 3 * (1 + 2 + 3 + 4))
    regions = 3 * (2 * (100 + 70) + 4 * 2 * 3 * (5 + 6) + 2 * 7)
    assert prefill_flop(shape, 4, 2, 2, 3) == images + regions
    model, _ = make_model(SMALL, draw_names(40))
    known = language_shape(model)
    # Width 32, inside 64: queries 32 x 32; output 32 x 32, then three of 32 x 64.
    assert (known.last_query_weights, known.last_rest_weights) == (1024, 1024 + 3 * 2048)


def test_the_share_of_prefill_names_threads_precision_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "matrix_peak", lambda *_, **__: 1e9)
    model, processor = make_model(SMALL, draw_names(40))
    engine = Engine(model, processor, EngineOptions(max_new_tokens=2))
    inputs = factory.random_inputs(processor, [3, 4])
    prepared = Prepared(batches=(tuple(inputs),), keys=((("1",) * 3, ("2",) * 4),))
    before = torch.get_num_threads()
    said: list[str] = []
    try:
        for threads, clock in ((1, "processor"), (2, "wall")):
            torch.set_num_threads(threads)
            found = measure_prefill(engine, prepared, 1, said.append)
            assert (found.threads, found.clock, found.dtype, found.sharing) == (
                threads, clock, "float32", "packed, own layers",
            )  # fmt: skip
            sizes = (2 * len(engine.prompt.prefix_ids), 7 * len(engine.prompt.suffix_ids))
            assert (found.num_prefix_tokens, found.num_suffix_tokens) == sizes
            assert found.shares == (pytest.approx(found.flop / found.seconds / found.peak_flop_per_s, abs=1e-3),)
            assert f"float32, {threads} thread" in prefill_text(found) and f"{clock} time" in prefill_text(found)
    finally:
        torch.set_num_threads(before)
    assert len(said) == 2


def test_bench_refuses_what_does_not_go_with_prefill_and_compile_mode() -> None:
    for words, flag in (
        (["--prefill", "--only", "packed"], "--prefill: it measures no rows"),
        (["--compile-mode", "reduce-overhead"], "--compile-mode reduce-overhead: it is of --compile"),
    ):
        result = rlabel_here("bench", words)
        assert result.returncode == 2 and flag in result.stderr


def test_a_matrix_peak_is_a_rate() -> None:
    peak = matrix_peak(torch.float32, torch.device("cpu"), seconds=0.03, sides=(64, 128))
    assert 1e8 < peak < 1e15


def test_medians_ratios_and_texts_are_counted_over_the_rounds() -> None:
    slow, fast = iter([9.0, 4.0, 2.0, 3.0]), iter([9.0, 1.0, 1.0, 1.0])
    rows = [
        Row(name="generate", what="slow", run=lambda: Timed(seconds=next(slow), texts={"1": "a cat", "2": "a dog"})),
        Row(
            name="packed",
            what="fast",
            run=lambda: Timed(seconds=next(fast), texts={"1": "a cat", "2": "a cow", "3": "x", "4": "y"}),
        ),
    ]
    said: list[str] = []
    first, second = measure(rows, 3, said.append)
    assert (first.regions_per_s, first.ratio, first.seconds) == (pytest.approx(2 / 3), 1.0, (4.0, 2.0, 3.0))
    assert (second.regions_per_s, second.ratio) == (4.0, pytest.approx(6.0))
    assert (second.num_same, second.num_compared) == (1, 2)
    assert len(said) == 6
    assert "1 of 2" in table([first, second], None)


def test_bench_prints_a_table_and_one_json_line_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setitem(SHAPES, "tiny", SMALL)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    wanted = ["generate", "batched", "expanded", "packed", "no-ray"]
    only = [word for name in wanted for word in ("--only", name)]
    sizes = ["--images", "2", "--regions-per-image", "3", "--rounds", "1", "--plain-regions", "4", "--threads", "1"]
    result = rlabel_here("bench", [*sizes, *only, "--profile", "--json", str(tmp_path / "bench.json")])
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout.splitlines()[-1])
    assert document == json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in document["rows"]] == wanted
    for row in document["rows"]:
        assert row["num_same"] == row["num_compared"] == 4 and row["regions_per_s"] > 0
    assert document["arithmetic"]["needed_flop"] > 0 and document["arithmetic"]["overall_share"] > 0
    assert "pipeline in this process" in result.stdout and "decode steps" in result.stdout
    assert "matrix products in float32 on 1 thread reach" in result.stdout
    assert document["stages"]["stages"]["read and decode"]["count"] == 2
    assert list((tmp_path / "temporary").iterdir()) == []


def test_bench_refuses_a_gpu_that_is_not_there_and_a_model_that_is_none(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        result = rlabel_here("bench", ["--device", "cuda"])
        assert result.returncode == 2 and "--device cuda: expected cpu, or a GPU that torch" in result.stderr
    result = rlabel_here("bench", ["--model", str(tmp_path), "--images", "1"])
    assert result.returncode == 1 and "config.json" in result.stderr
