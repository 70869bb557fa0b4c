"""Attention implementations and torch.compile: chosen at loading, refused in words where they are not there, and the texts stay."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import rlabel.regiongpt.quantization as quantization
from label_factories import save_model
from rlabel.config import LabelSettings
from rlabel.errors import InputError, UsageError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.regiongpt.assembly import load_processor
from rlabel.regiongpt.quantization import Precision, compile_layers, load_model

import model_factories as factory  # isort: skip

SETTINGS = {"images": "i", "regions": "r", "vocabulary": "v", "out": "o"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "model")


def texts(model, folder: Path, sharing: str) -> list[str]:
    engine = Engine(model, load_processor(str(folder)), EngineOptions(max_new_tokens=4, prefix_sharing=sharing))  # type: ignore[arg-type]
    return [answer.text for own in engine.answer(factory.random_inputs(engine.processor, [3, 2])) for answer in own]


def test_attention_is_what_was_asked_for_and_the_texts_are_the_same(folder: Path) -> None:
    eager = load_model(folder, Precision(attention="eager"))
    assert eager.language_model.config._attn_implementation == "eager"
    sdpa = load_model(folder, Precision(attention="sdpa"))
    assert sdpa.language_model.config._attn_implementation == "sdpa"
    for sharing in ("expanded", "packed"):
        assert texts(eager, folder, sharing) == texts(sdpa, folder, sharing)


def test_flash_attention_is_refused_on_a_cpu_and_where_the_model_lacks_it(folder: Path, monkeypatch) -> None:
    with pytest.raises(
        InputError, match=r"--attention flash_attention_2: it takes float16 or bfloat16 on a GPU, got bfloat16 on cpu"
    ):
        load_model(folder, Precision(attention="flash_attention_2", dtype="bfloat16"))

    def lacking(self, name: str) -> None:
        raise ImportError("the package is not installed\nand so on")

    monkeypatch.setattr("transformers.LlamaForCausalLM.set_attn_implementation", lacking)
    with pytest.raises(InputError, match=r"--attention sdpa: not available .*: the package is not installed\. Use"):
        load_model(folder, Precision(attention="sdpa"))


def test_compiled_layers_give_the_same_texts_and_leave_the_weights_names(folder: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++ on a CPU")
    plain = load_model(folder)
    before = {sharing: texts(plain, folder, sharing) for sharing in ("expanded", "packed")}
    # Two layers are enough, and one whole compilation is many seconds: the norms alone.
    for layer in plain.language_model.model.layers:
        del layer.mlp
        layer.mlp = torch.nn.Identity()
    without = texts(plain, folder, "packed")
    compile_layers(plain)
    assert texts(plain, folder, "packed") == without and before["packed"] == before["expanded"]
    assert not any("_orig_mod" in name for name in plain.state_dict())


def test_the_mode_of_compilation_is_handed_on_and_a_cpu_is_told_that_it_has_no_cuda_graphs(
    folder: Path, monkeypatch, caplog
) -> None:
    modes = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **given: modes.append(given["mode"]))
    compile_layers(load_model(folder))
    assert set(modes) == {"default"} and caplog.text == ""
    modes.clear()
    load_model(folder, Precision(compile=True, compile_mode="reduce-overhead"))
    assert set(modes) == {"reduce-overhead"} and len(modes) > 1
    assert "CUDA graphs are of GPUs; on this cpu it is as default" in caplog.text


def test_a_machine_without_a_compiler_is_told_so_before_the_first_picture(folder: Path, monkeypatch) -> None:
    def no_compiler(self, *_: object, **__: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found\nmore")

    model = load_model(folder)
    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", no_compiler)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: None)
    with pytest.raises(InputError, match=r"--compile: .*no working C\+\+ compiler found\. Install a C\+\+ compiler"):
        quantization.compile_layers(model)


def test_compile_and_quantization_do_not_go_together_and_both_options_decide() -> None:
    with pytest.raises(UsageError, match="--compile: not for --quantization nf4"):
        LabelSettings(**SETTINGS, compile=True, quantization="nf4").check()
    plain = LabelSettings(**SETTINGS).deciding()
    assert "compile" not in plain and "attention" not in plain, "runs that were begun before go on"
    assert LabelSettings(**SETTINGS, compile=True).deciding() == {**plain, "compile": True}
    tuned = LabelSettings(**SETTINGS, compile=True, compile_mode="reduce-overhead")
    tuned.check()
    assert tuned.deciding() == {**plain, "compile": True, "compile_mode": "reduce-overhead"}
    with pytest.raises(UsageError, match="--compile-mode reduce-overhead: it is of --compile"):
        LabelSettings(**SETTINGS, compile_mode="reduce-overhead").check()
    assert LabelSettings(**SETTINGS, attention="eager").deciding() == {**plain, "attention": "eager"}
    assert LabelSettings(**SETTINGS, profile=True).deciding() == plain


def test_a_tower_of_convolutions_is_laid_out_with_channels_last(folder: Path) -> None:
    tower = load_model(folder, Precision(dtype="bfloat16")).vision_tower
    weights = [
        module.weight for module in tower.modules() if isinstance(module, torch.nn.Conv2d) and module.groups == 1
    ]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    maps = tower.feature_maps(torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16), [-4])[-4]
    assert maps.dtype == torch.bfloat16 and maps.is_contiguous(memory_format=torch.channels_last)
