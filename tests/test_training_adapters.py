"""QLoRA trains against a 4-bit base and writes unquantized weights; gradient checkpointing changes nothing but the memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlabel.errors import InputError
from rlabel.regiongpt.assembly import save
from rlabel.regiongpt.quantization import load_model, quantized_layers
from rlabel.training.adapters import add_lora, merge_lora, quantize_base, set_gradient_checkpointing
from rlabel.training.loop import train, write_model
from rlabel.training.objectives import TrainingStep
from train_factories import (
    Files,
    Killed,
    Place,
    largest_difference,
    place,
    recipe,
    stage,
    tiny,
    weights,
)

RATES = {"connector": 1e-3, "language_model": 1e-2}


def qlora(base: str = "nf4", **more: Any) -> Any:
    fields = {"lora": {"rank": 2, "alpha": 4, "base": base}, "learning_rates": RATES}
    return stage("instruct", epochs=4, checkpoint_every=2, **{**fields, **more})


@pytest.fixture(autouse=True)
def _no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlabel.training.loop._HEARTBEAT_S", math.inf)


# ---- QLoRA


class Looking(Place):
    """Notes which layers are quantized while a stage trains."""

    quantized: list[str]

    def wrap(self, step: TrainingStep) -> nn.Module:
        self.quantized = quantized_layers(step.model)
        return step


def test_base_is_quantized_while_it_trains_and_what_is_written_are_its_own_weights_and_the_adapter(
    tmp_path: Path, model: Path, files: Files
) -> None:
    (tmp_path / "run").mkdir()
    watched = Looking(tmp_path / "run")
    job = files.job(
        model,
        recipe(qlora(validate_every=2, keep="last")),
        val_images_url=str(files.images),
        val_annotations_url=str(files.annotations),
    )
    made, processor = train(job, watched)
    assert len(watched.quantized) == 2 * 7  # two layers of a Llama, seven linear layers each; not the head
    assert all(name.startswith("language_model.") and name.endswith(".base_layer") for name in watched.quantized)
    assert watched.progress[-1].loss < watched.progress[0].loss
    assert quantized_layers(made) == []

    write_model(made, processor, tmp_path / "out")
    before, after = weights(model), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {value.dtype for value in after.values() if value.is_floating_point()} == {torch.float32}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    language = {name for name in changed if name.startswith("language_model.")}
    assert len(language) == 14
    assert all("proj" in name for name in language)
    # nf4 rounds every weight: had it been the base of the merge, the difference would have full rank.
    for name in language:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= 2
    load_model(tmp_path / "out")


def test_nf4_base_decides_what_is_learned(tmp_path: Path, model: Path, files: Files) -> None:
    left, right = (
        weights(train(files.job(model, recipe(qlora(base))), place(tmp_path / base))[0]) for base in ("nf4", "none")
    )
    assert 0 < largest_difference(left, right) < 0.2


@pytest.mark.parametrize("deaths", [[1], [2], [3], [1, 1]])
def test_killed_qlora_ends_with_the_weights_of_an_undisturbed_one_to_the_bit(
    tmp_path: Path, model: Path, files: Files, deaths: list[int]
) -> None:
    job = files.job(model, recipe(stage("align", checkpoint_every=1), qlora(), stage("instruct", name="finish")))
    left, _ = train(job, place(tmp_path / "undisturbed"))
    for number in deaths:
        with pytest.raises(Killed):
            train(job, place(tmp_path / "run", die_at_report=1 + number))
    right, _ = train(job, place(tmp_path / "run"))
    assert largest_difference(weights(left), weights(right)) == 0


def test_adapter_that_learned_nothing_leaves_every_weight_to_the_bit() -> None:
    made, _ = tiny()
    before = weights(made)
    add_lora(made, qlora())
    originals = quantize_base(made, qlora())
    made.to("cpu")  # quantizes
    assert len(quantized_layers(made)) == len(originals.layers) == 14
    with torch.no_grad():
        made.language_model(inputs_embeds=torch.randn(1, 3, 32))
    merge_lora(made, originals)
    assert largest_difference(weights(made), before) == 0


def test_quantized_layers_compute_what_bitsandbytes_dequantizes() -> None:
    from bitsandbytes.functional import dequantize_4bit

    made, _ = tiny()
    add_lora(made, qlora())
    quantize_base(made, qlora())
    made.to("cpu")
    layer = made.get_submodule(quantized_layers(made)[0])
    rows_NI = torch.randn(5, 32)
    assert layer.weight.quant_state.quant_type == "nf4"  # type: ignore[union-attr]
    weight_OI = dequantize_4bit(layer.weight.data, layer.weight.quant_state)  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(layer(rows_NI), rows_NI @ weight_OI.float().T, atol=1e-5, rtol=1e-5)


# ---- gradient checkpointing


@pytest.mark.parametrize(
    "more", [{}, {"lora": {"rank": 2, "alpha": 4}}, {"lora": {"rank": 2, "alpha": 4, "base": "nf4"}}]
)
def test_gradient_checkpointing_computes_each_layer_twice_and_learns_the_same_to_the_bit(
    tmp_path: Path, files: Files, more: dict[str, Any]
) -> None:
    made, processor = tiny()
    made.config.text_config.attention_dropout = 0.3  # what is drawn must be drawn again
    save(made, processor, tmp_path / "model")
    ends, passes = [], []
    for on in (False, True):
        counts: list[int] = []

        class Counting(Place):
            def wrap(self, step: TrainingStep, counts: list[int] = counts) -> nn.Module:
                layer = next(one for one in step.model.language_model.modules() if isinstance(one, nn.ModuleList))[0]
                layer.mlp.register_forward_pre_hook(lambda *_: counts.append(1))
                return step

        (tmp_path / str(on)).mkdir()
        course = recipe(stage("instruct", learning_rates=RATES, gradient_checkpointing=on, **more))
        done, _ = train(files.job(tmp_path / "model", course), Counting(tmp_path / str(on)))
        assert not done.language_model.is_activation_checkpointing
        ends.append(weights(done))
        passes.append(len(counts))
    assert largest_difference(*ends) == 0
    assert passes == [2, 4]  # two steps


def test_language_model_that_cannot_compute_its_layers_twice_is_refused_by_the_field() -> None:
    made, _ = tiny()
    type(made.language_model).supports_gradient_checkpointing = False
    try:
        with pytest.raises(InputError, match="stage instruct, gradient_checkpointing: the language model .llama."):
            set_gradient_checkpointing(made, stage("instruct", gradient_checkpointing=True))
    finally:
        type(made.language_model).supports_gradient_checkpointing = True
