from __future__ import annotations

import contextlib
import json
import logging
import pickle
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlabel.errors import InputError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.regiongpt.assembly import load_processor, save
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.quantization import (
    Precision,
    check_quantized,
    count_parameters,
    load_model,
    model_fingerprint,
    quantized_layers,
    resolve_model,
)

import model_factories as factory  # isort: skip

INT8, NF4 = Precision(quantization="int8"), Precision(quantization="nf4")
# bitsandbytes packs nf4 weights in blocks of 64 on some CPUs.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.08}
# Measured on random weights, three kinds of language model: 0.016 to 0.018 and 0.15 to 0.18 (relative Euclidean distance of all logits).
LOGITS_BOUND = {"int8": 0.04, "nf4": 0.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def write_model(folder: Path, text: str = "llama") -> Path:
    made = factory.model(
        "siglip", text, image_size=32, connector="separate", zoom_feature_layers=[-2], text_fields=WIDE
    )
    save(made, factory.processor(made, zoom="all"), folder)
    return folder


@cache
def prompt_embeddings() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 20, 64) * 0.25


def logits(model: RegionGPTForConditionalGeneration) -> torch.Tensor:
    with torch.no_grad():
        return model.language_model(inputs_embeds=prompt_embeddings().to(model.dtype)).logits.float()


# ---- which layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [INT8, NF4], ids=["int8", "nf4"])
@pytest.mark.parametrize(
    ("text", "head"),
    [("llama", "lm_head"), ("qwen2", "lm_head"), ("gpt_neox", "lm_head"), ("gpt_neox_japanese", "embed_out")],
)
def test_the_quantized_layers_are_the_language_models_linears_but_its_head(
    tmp_path: Path, precision: Precision, text: str, head: str
) -> None:
    plain = load_model(write_model(tmp_path, text))
    linears = [name for name, module in plain.named_modules() if isinstance(module, nn.Linear)]
    assert {name.split(".")[0] for name in linears} == {
        "vision_tower",
        "connector",
        "region_connector",
        "zoom_connector",
        "language_model",
    }
    expected = [name for name in linears if name.startswith("language_model.") and name != f"language_model.{head}"]
    assert len(expected) == len([name for name in linears if name.startswith("language_model.")]) - 1
    model = load_model(tmp_path, precision)
    assert quantized_layers(model) == expected
    assert quantized_layers(plain) == []
    state, plain_state = model.state_dict(), plain.state_dict()
    untouched = [name for name in plain_state if name.rpartition(".")[0] not in expected]
    assert untouched and all(torch.equal(state[name], plain_state[name]) for name in untouched)
    assert {state[f"{name}.weight"].dtype for name in expected} == {torch.int8 if precision is INT8 else torch.uint8}


def test_four_bits_are_nf4_with_the_asked_compute_type_and_double_quantization(folder: Path) -> None:
    for double in (True, False):
        model = load_model(
            folder, Precision(quantization="nf4", double_quantization=double, dtype="bfloat16", compute_dtype="float32")
        )
        layer = model.get_submodule(quantized_layers(model)[0])
        assert layer.weight.quant_state.quant_type == "nf4"  # type: ignore[union-attr]
        assert layer.weight.quant_state.nested is double  # type: ignore[union-attr]
        assert layer.compute_dtype == torch.float32
        assert model.vision_tower.dtype == torch.bfloat16
    follows = load_model(folder, Precision(quantization="nf4", dtype="bfloat16"))
    assert follows.get_submodule(quantized_layers(follows)[0]).compute_dtype == torch.bfloat16


def test_widths_that_nf4_cannot_pack_are_an_error_at_load_and_not_at_the_first_answer(tmp_path: Path) -> None:
    made = factory.model("siglip", image_size=32)  # 32 wide
    save(made, factory.processor(made), tmp_path)
    try:
        model = load_model(tmp_path, NF4)
    except InputError as error:
        assert "multiples of 64" in str(error) and "q_proj (32 to 32)" in str(error)
    else:  # a CPU on which bitsandbytes does not repack
        with torch.no_grad():
            assert torch.isfinite(model(input_ids=torch.tensor([[1, 20]])).logits).all()


def test_the_audit_refuses_a_quantized_connector_or_head_and_quantizing_nothing(folder: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    for name in ("connector.1", "language_model.lm_head", "vision_tower.encoder.layers.0.mlp.fc1"):
        model = load_model(folder, NF4)
        model.set_submodule(name, Linear4bit(8, 8))
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            check_quantized(model, NF4)
    with pytest.raises(InputError, match="no linear layer"):
        check_quantized(load_model(folder), NF4)


# ---- what comes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [INT8, NF4], ids=["int8", "nf4"])
def test_logits_stay_within_the_stated_bound_and_vision_features_are_bit_equal(
    folder: Path, precision: Precision
) -> None:
    plain, quantized = load_model(folder), load_model(folder, precision)
    exact, rough = logits(plain), logits(quantized)
    assert 0 < float((rough - exact).norm() / exact.norm()) < LOGITS_BOUND[precision.quantization]
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for one, other in zip(plain.encode_images(pixels), quantized.encode_images(pixels), strict=True):
            assert torch.equal(one, other)
        masks, index = torch.rand(2, 16, 16), torch.tensor([0, 1])
        regions = [
            model.encode_regions(model.encode_images(pixels)[0], masks, index, pixels, torch.ones(2, 32, 32), index)
            for model in (plain, quantized)
        ]
    assert torch.equal(*regions)


@pytest.mark.parametrize("double", [True, False])
def test_an_nf4_layer_multiplies_by_its_dequantized_weights(folder: Path, double: bool) -> None:
    from bitsandbytes.functional import dequantize_4bit

    exact = load_model(folder)
    model = load_model(folder, Precision(quantization="nf4", double_quantization=double))
    for name in quantized_layers(model):
        layer = model.get_submodule(name)
        weight = dequantize_4bit(
            layer.weight.data, layer.weight.quant_state
        ).float()  # before the first forward repacks it
        original = exact.get_submodule(name).weight
        assert 0.05 < (weight - original).norm() / original.norm() < 0.12  # nf4 of normal numbers: 9 %
        for shape in ((1, 1), (3, 17)):
            x = torch.randn(*shape, weight.shape[1])
            with torch.no_grad():
                expected = x @ weight.T
                assert (layer(x) - expected).norm() / expected.norm() < 0.01  # bfloat16, whatever was asked


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_every_precision_answers_every_region(folder: Path, quantization: str, dtype: str) -> None:
    model = load_model(folder, Precision(quantization=quantization, dtype=dtype))  # type: ignore[arg-type]
    assert not model.training and model.device.type == "cpu"
    processor = load_processor(str(folder))
    answers = Engine(model, processor, EngineOptions(max_new_tokens=3)).answer(factory.random_inputs(processor, [2, 3]))
    values = [value for image in answers for answer in image for value in answer.token_logprobs]
    assert [len(image) for image in answers] == [2, 3] and values
    assert all(value <= 0 and value == value and value > float("-inf") for value in values)


def test_convolutions_of_the_tower_are_channels_last(tmp_path: Path) -> None:
    made = factory.model("lite")
    save(made, factory.processor(made), tmp_path)
    weights = [
        p for p in load_model(tmp_path).vision_tower.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1
    ]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_int8_does_not_fill_the_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        logits(load_model(folder, INT8))
    assert "inputs will be cast" not in caplog.text


# ---- saving -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [INT8, NF4], ids=["int8", "nf4"])
def test_a_quantized_model_is_not_saved(folder: Path, tmp_path: Path, precision: Precision) -> None:
    model = load_model(folder, precision)
    logits(model)  # on some CPUs this repacks nf4 weights in place, and what would be saved is corrupt
    with pytest.raises(InputError, match="quantized model is not saved"):
        save(model, load_processor(str(folder)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_was_saved_quantized_is_refused(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, NF4)
    model.save_pretrained(tmp_path)  # what `save` refuses to do
    with pytest.raises(InputError, match="saved quantized"):
        load_model(tmp_path)


# ---- folders that cannot be used ----------------------------------------------------------------------------------------


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_a_missing_folder_or_a_file_is_an_error_that_names_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder.*Check the path"):
        load_model(tmp_path / "absent")
    with pytest.raises(InputError, match="got a file"):
        load_model(folder / "config.json")
    with pytest.raises(InputError, match="without config.json"):
        load_model(tmp_path)


def test_another_kind_of_model_is_an_error_that_names_the_way_on(tmp_path: Path) -> None:
    factory.save_language(tmp_path / "llama")
    with pytest.raises(InputError, match="got 'llama'.*rlabel assemble"):
        load_model(tmp_path / "llama")
    (tmp_path / "llama" / "config.json").write_text("{")
    with pytest.raises(InputError, match="expected JSON"):
        load_model(tmp_path / "llama")


def test_pickled_weights_are_refused_and_never_opened(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (tmp_path / "opened",)  # type: ignore[return-value]

    bad = copy_of(folder, tmp_path / "pickled")
    (bad / "model.safetensors").unlink()
    (bad / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="pytorch_model.bin, which is never opened"):
        load_model(bad)
    assert not (tmp_path / "opened").exists()


def test_code_in_a_model_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    bad = copy_of(folder, tmp_path / "code")
    (bad / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\nclass Config: pass\nclass Made: pass\n"
    )
    automatic = {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.Model",
        "AutoModelForCausalLM": "evil.Model",
        "AutoProcessor": "evil.Made",
    }
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        content = json.loads((bad / name).read_text())
        content["auto_map"] = automatic | (
            {"AutoTokenizer": ["evil.Made", None]} if name == "tokenizer_config.json" else {}
        )
        for part in ("vision_config", "text_config"):
            if part in content:
                content[part]["auto_map"] = automatic
        (bad / name).write_text(json.dumps(content))
    for load in (lambda: load_model(bad), lambda: load_model(bad, NF4), lambda: load_processor(str(bad))):
        with contextlib.suppress(InputError):  # refusing is as good as ignoring
            load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("precision", [Precision(), INT8, NF4], ids=["none", "int8", "nf4"])
def test_cut_or_missing_weights_are_an_error_and_never_random_numbers(
    folder: Path, tmp_path: Path, precision: Precision
) -> None:
    cut = copy_of(folder, tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:4], b"", b"\xff" * 200):
        (cut / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="--model .*cut.*safetensors"):
            load_model(cut, precision)
    for name in ("connector.1.weight", "language_model.model.layers.1.mlp.up_proj.weight"):
        lacking = copy_of(folder, tmp_path / f"lacking {name}")
        weights = load_file(lacking / "model.safetensors")
        del weights[name]
        save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=f"lack 1 of the weights.*{name}"):
            load_model(lacking, precision)
    weights = load_file(folder / "model.safetensors")
    weights["connector.1.weight"] = torch.zeros(3, 3)
    (tmp_path / "other").mkdir()
    save_file(weights, copy_of(folder, tmp_path / "misfit") / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="--model"):
        load_model(tmp_path / "misfit", precision)


def test_a_hub_id_out_of_reach_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="someone/some-model: no such folder, and no hub model.*give the folder"):
        resolve_model("someone/some-model")
    for path in ("./absent", "/absent/model", "a/b/c", "../up"):
        with pytest.raises(InputError, match="no such folder. Check the path"):
            resolve_model(path)


def test_a_hub_id_is_resolved_to_the_cached_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, ...]] = []

    def snapshot_download(repo_id: str, allow_patterns: list[str], **_: object) -> str:
        asked.append((repo_id, *allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("someone/some-model") == folder
    assert asked[0] == ("someone/some-model", "config.json")  # a wrong model is found before its weights come
    assert not {"*.bin", "*.pt", "*.py", "*"} & set(asked[1])


# ---- fingerprints and counts --------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_every_file_that_decides_and_with_no_other(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path / "copy")
    original = model_fingerprint(folder)
    assert len(original) == 64 and model_fingerprint(str(copy)) == original
    (copy / "README.md").write_text("about")
    (copy / "generation_config.json").write_text("{}")
    (copy / "progress.jsonl").write_text("{}")
    assert model_fingerprint(copy) == original
    seen = {original}
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
    ):
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        (copy / name).write_bytes(bytes(content))
        changed = model_fingerprint(copy)
        assert changed not in seen
        seen.add(changed)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert model_fingerprint(copy) not in seen
    for missing in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="--model"):
            model_fingerprint(missing)


@pytest.mark.parametrize(("vision", "text"), [("lite", "llama"), ("siglip", "qwen2")])
def test_parameters_are_counted_from_the_headers_alone(tmp_path: Path, vision: str, text: str) -> None:
    made = factory.model(vision, text, connector="separate")
    made.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected = {name: sum(p.numel() for p in child.parameters()) for name, child in made.named_children()}
    assert count_parameters(tmp_path) == expected
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(InputError, match="whole safetensors"):
        count_parameters(tmp_path)
