"""A language model's layers in few calls against transformers' own forward; and who is left to transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

import rlabel.labeling.cascade as cascade
import rlabel.labeling.layers as layers_module
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.labeling.layers import Layers
from rlabel.labeling.rows import CascadeRows, Texts, cascade_fits, fitting_layers
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration

import model_factories as factory  # isort: skip

WIDTH = 32
ROWS = torch.tensor([0, 0, 0, 1, 2, 2])
_SIZES = {
    "vocab_size": 90, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES),
    "llama with biases and wide heads": LlamaConfig(**_SIZES, attention_bias=True, mlp_bias=True, head_dim=16),
    "llama with stretched positions": LlamaConfig(
        **_SIZES,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    ),
    "qwen2": Qwen2Config(**_SIZES),
    "qwen3": Qwen3Config(**_SIZES, head_dim=8),
}  # fmt: skip


def labeler(kind: str, dtype: torch.dtype = torch.float32) -> RegionGPTForConditionalGeneration:
    """Return a RegionGPT around a language model in which no weight, bias or norm is one or zero."""
    made = factory.model("lite", "llama")
    torch.manual_seed(3)
    made.language_model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    made.config.text_config = CONFIGS[kind]
    with torch.no_grad():
        for name, parameter in made.language_model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.3)
    return made.to(dtype)


def whole(model: RegionGPTForConditionalGeneration, texts_RTD: Tensor) -> Tensor:
    """Return logits_RTV by transformers' forward, each row by itself from its beginning."""
    rows = [model.language_model(inputs_embeds=text_TD[None]).logits[0] for text_TD in texts_RTD]
    return torch.stack(rows)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.inference_mode()
def test_logits_are_those_of_transformers_own_forward(kind: str) -> None:
    model = labeler(kind)
    layers = Layers.of(model.language_model)
    assert layers is not None
    prefix_BPD, texts_RTD = torch.randn(3, 9, WIDTH), torch.randn(len(ROWS), 6, WIDTH)
    before = [prefix_BPD.clone(), texts_RTD.clone()]
    expected_RTV = whole(model, torch.cat([prefix_BPD[ROWS], texts_RTD], 1))[:, 9:]
    rows = CascadeRows.behind(model, prefix_BPD, ROWS, layers)
    torch.testing.assert_close(rows.feed(texts_RTD[:, :4]), expected_RTV[:, 3], atol=2e-5, rtol=1e-4)
    for step in (4, 5):
        got_RV = rows.feed(texts_RTD[:, step : step + 1])
        torch.testing.assert_close(got_RV, expected_RTV[:, step], atol=2e-5, rtol=1e-4)
    assert float(expected_RTV.std()) > 0.1
    assert torch.equal(before[0], prefix_BPD) and torch.equal(before[1], texts_RTD), "what is given stays as it is"


@torch.inference_mode()
def test_texts_of_various_lengths_behind_a_fork_are_those_of_transformers() -> None:
    model = labeler("qwen3")
    prefix_BPD, asked_RD = torch.randn(3, 9, WIDTH), torch.randn(len(ROWS), 2, WIDTH)
    rows = CascadeRows.behind(model, prefix_BPD, ROWS, Layers.of(model.language_model))
    rows.feed(asked_RD)
    index = torch.tensor([1, 1, 4])
    texts = Texts(
        ids_RM=torch.randint(0, 90, (3, 3)), lengths_R=torch.tensor([3, 1, 2]), first_R=torch.tensor([1, 0, 0])
    )
    got_XV = rows.fork(index).try_texts(texts)
    embedded_RMD = model.get_input_embeddings()(texts.ids_RM)
    all_RTV = whole(model, torch.cat([prefix_BPD[ROWS[index]], asked_RD[index], embedded_RMD], 1))[:, 11:]
    torch.testing.assert_close(got_XV, all_RTV[texts.wanted_RM], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("has_tiles", [False, True])
@torch.inference_mode()
def test_bfloat16_is_as_near_to_float32_as_transformers_is(monkeypatch: pytest.MonkeyPatch, has_tiles: bool) -> None:
    monkeypatch.setattr("rlabel.labeling.layers._has_tiles", lambda: has_tiles)
    exact, rounded = labeler("llama"), labeler("llama", torch.bfloat16)
    exact.load_state_dict({name: value.float() for name, value in rounded.state_dict().items()})
    prefix_BPD, texts_RTD = torch.randn(3, 150, WIDTH).bfloat16(), torch.randn(len(ROWS), 3, WIDTH).bfloat16()
    together = torch.cat([prefix_BPD[ROWS], texts_RTD], 1)
    true_RV = whole(exact, together.float())[:, -1]
    layers = Layers.of(rounded.language_model)
    got_RV = CascadeRows.behind(rounded, prefix_BPD, ROWS, layers).feed(texts_RTD).float()
    theirs = (whole(rounded, together)[:, -1].float() - true_RV).square().mean()
    assert 0 < (got_RV - true_RV).square().mean() < 1.5 * theirs


@torch.inference_mode()
def test_the_fused_attention_is_the_one_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asks, keys, values = (torch.randn(2, 3, length, 8) for length in (7, 40, 40))
    fused = cascade._whole_part(asks, keys, values)
    monkeypatch.setattr(cascade, "_FUSED", ())
    plain = cascade._whole_part(asks, keys, values)
    assert not torch.equal(fused[1], plain[1]), "the two are different ways"
    other = cascade._softmax_parts(asks @ torch.randn(2, 3, 5, 8).transpose(2, 3), torch.randn(2, 3, 5, 8))
    torch.testing.assert_close(cascade._join([fused, other]), cascade._join([plain, other]), atol=1e-6, rtol=1e-5)


def _compiled(model: nn.Module) -> None:
    model.model.layers[1].mlp.compile()  # type: ignore[index, union-attr]


def _hooked(model: nn.Module) -> None:
    model.model.layers[0].register_forward_hook(lambda *_: None)  # type: ignore[index, union-attr]


def _adapted(model: nn.Module) -> None:
    class Adapter(nn.Linear):
        pass

    model.model.layers[0].self_attn.q_proj = Adapter(WIDTH, WIDTH, bias=False)  # type: ignore[index, union-attr]


def _patched(model: nn.Module) -> None:
    model.model.layers[0].mlp.forward = lambda x: x  # type: ignore[index, union-attr]


def _other_activation(model: nn.Module) -> None:
    model.config.hidden_act = "gelu"  # type: ignore[union-attr]


def _half(model: nn.Module) -> None:
    model.half()


def _partly_half(model: nn.Module) -> None:
    model.model.norm.bfloat16()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change",
    [_compiled, _hooked, _adapted, _patched, _other_activation, _half, _partly_half],
    ids=lambda one: one.__name__,
)
def test_a_model_that_is_not_as_transformers_made_it_is_left_to_transformers(change) -> None:
    model = factory.model("lite", "llama").language_model
    assert Layers.of(model) is not None
    change(model)
    assert Layers.of(model) is None


def test_other_families_are_left_to_transformers() -> None:
    assert Layers.of(factory.model("lite", "gpt_neox").language_model) is None


def texts(engine: Engine) -> list[str]:
    inputs = factory.random_inputs(engine.processor, [3, 1, 4], seed=2)
    return [answer.text for own in engine.answer(inputs) for answer in own]


def test_the_engine_takes_the_layers_says_the_same_and_changes_no_weight() -> None:
    model = factory.model("lite", "qwen2")
    processor = factory.processor(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine, copied = (
        Engine(model, processor, EngineOptions(max_new_tokens=5, prefix_sharing=sharing))
        for sharing in ("auto", "expanded")
    )
    assert texts(engine) == texts(copied)
    assert engine._layers is not None and copied._layers is None
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


@torch.inference_mode()
def test_the_try_in_bfloat16_bears_rounding_and_no_wrong_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = factory.model("lite", "llama", text_fields={"num_hidden_layers": 12}).bfloat16()
    assert fitting_layers(model) is not None and cascade_fits(model)
    monkeypatch.setattr(layers_module, "_turned", lambda values_NHE, turn: values_NHE)  # no positions
    assert fitting_layers(model) is None


def test_layers_that_give_other_logits_in_the_try_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = factory.model("lite", "llama")
    engine = Engine(model, factory.processor(model), EngineOptions(max_new_tokens=5))
    right = texts(engine)
    assert engine._layers is not None
    # A transformers to come that turns keys the other way round, say.
    monkeypatch.setattr(layers_module, "_turned", lambda values_NHE, turn: values_NHE.flip(-1) * 3)
    assert fitting_layers(model) is None and cascade_fits(model)
    other = Engine(model, engine.processor, engine.options)
    assert texts(other) == right
    assert other._layers is None and other._sharing == "packed"
