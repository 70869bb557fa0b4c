"""`rlabel doctor`: what it says of a model, by arithmetic and by the weights' own headers; and what it says of things that are no usable model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from label_factories import rlabel_here, save_model
from rlabel.errors import InputError
from rlabel.regiongpt.quantization import count_parameters, resolve_model
from rlabel.vlm.examining import count
from rlabel.vlm.loading import outline
from vlm_factories import loaded, save


def examined(*arguments: object) -> dict[str, Any]:
    result = rlabel_here("doctor", [*map(str, arguments), "--json"])
    assert result.returncode == 0, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def refused(*arguments: object) -> str:
    result = rlabel_here("doctor", [*map(str, arguments), "--json"])
    assert result.returncode in (1, 2) and result.stdout == "" and "Traceback" not in result.stderr
    return str(result.stderr)


def config_only(folder: Path, **fields: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llava"), "llava")


def test_a_known_family_is_told_with_its_numbers(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safetensors.torch.load_file", None)  # no weight is read
    facts = examined(llava)
    assert facts["family"] == "llava" and facts["shared_by_regions"] == "prompt"
    assert facts["region_as"] == {"default": "crop", "ways": ["box", "crop", "outline", "marks"]}
    # 200/640, 120/480, 300/640, 170/480
    assert facts["box_example"] == "[0.31, 0.25, 0.47, 0.35]"
    assert facts["tasks"] == ["classify", "caption", "describe"] and facts["decodings"] == [
        "free",
        "constrained",
        "hybrid",
    ]
    # Two layers of q and o 32 x 32, k and v 16 x 32, and three of 48 x 32.
    quantizable = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    total = sum(count_parameters(llava).values())
    assert facts["quantizable_parameters"] == quantizable and facts["parameters"]["total"] == total
    sizes = facts["weight_bytes"]
    assert sizes["float32"] == 4 * total and sizes["bfloat16"] == 2 * total
    assert sizes["int8"] == quantizable + 2 * (total - quantizable)
    assert sizes["nf4"] == pytest.approx(quantizable * (4 + 0.127) / 8 + 2 * (total - quantizable), abs=2)
    assert facts["cache_bytes_a_token"] == 2 * 2 * 1 * 16 * 2  # keys and values, layers, heads, width, bytes
    assert facts["bytes_on_disk"] == (llava / "model.safetensors").stat().st_size
    checks = {check["name"]: check for check in facts["machine"]}
    assert (
        checks["processor"]["ok"] and checks["torchvision"]["ok"] is None and "GPU" in checks and "disk" not in checks
    )


@pytest.mark.parametrize(
    ("kind", "shared"), [("florence2", "picture"), ("paligemma", "picture"), ("qwen3_vl", "prompt")]
)
def test_parameters_are_those_of_the_weights(tmp_path: Path, kind: str, shared: str) -> None:
    facts = examined(save(tmp_path / kind, kind))
    assert facts["shared_by_regions"] == shared
    # PaliGemma's and Florence-2's heads are their word embeddings, stored once; Florence-2's file holds tables of positions too.
    assert facts["parameters"]["total"] == sum(weight.numel() for weight in loaded(tmp_path / kind).parameters())
    assert min(facts["parameters"].values()) > 0


def test_published_sizes_come_out_of_their_configurations(tmp_path: Path) -> None:
    # Qwen2.5-VL-3B-Instruct, whose safetensors hold 3,754,622,976 parameters (head tied), and llava-1.5-7b-hf with 7,063,427,072.
    qwen = config_only(
        tmp_path / "qwen", model_type="qwen2_5_vl", tie_word_embeddings=True,
        text_config={
            "model_type": "qwen2_5_vl_text", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        },
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048, "patch_size": 14},
    )  # fmt: skip
    vision = {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16,
              "num_hidden_layers": 24, "patch_size": 14}  # fmt: skip
    llava = config_only(
        tmp_path / "llava",
        model_type="llava",
        text_config={"model_type": "llama", "vocab_size": 32064},
        vision_config=vision,
    )
    numbers = count(outline(qwen))
    assert numbers.total == 3_754_622_976
    assert numbers.cache_bytes == 2 * 36 * 2 * 128 * 2
    assert count(outline(llava)).total == 7_063_427_072


def test_a_regiongpt_is_told_too(tmp_path: Path) -> None:
    facts = examined(save_model(tmp_path / "model"))
    assert facts["family"] == "regiongpt" and facts["region_as"]["ways"] == ["mask"] and "hybrid" in facts["decodings"]
    assert facts["parameters"]["total"] == sum(count_parameters(tmp_path / "model").values())


def test_the_text_says_the_same(llava: Path) -> None:
    result = rlabel_here("doctor", [str(llava)])
    for words in ("family      llava", "crop (default)", "[0.31, 0.25, 0.47, 0.35]", "nf4 ", "processor"):
        assert words in result.stdout


def test_a_type_that_nobody_told_of_gets_crops_and_a_hint(llava: Path, tmp_path: Path) -> None:
    for name in (
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "processor_config.json",
    ):
        (tmp_path / name).write_bytes((llava / name).read_bytes())
    config = {**json.loads((llava / "config.json").read_text()), "model_type": "llava_next_video"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = examined(tmp_path)
    assert facts["family"] == "unknown" and facts["region_as"]["ways"] == ["crop", "outline", "marks"]
    assert "--family" in facts["notes"][0]
    told = examined(tmp_path, "--family", "llava_next")
    assert told["region_as"]["ways"][0] == "box" and not told["notes"]
    assert "expected one of qwen2_vl" in refused(tmp_path, "--family", "nobody")


def test_what_is_missing_here_is_said(llava: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rlabel.vlm.examining._version", lambda module: None)
    monkeypatch.setattr("os.sysconf", lambda name: 100)  # 10,000 bytes of memory
    for path in llava.iterdir():
        if path.name != "preprocessor_config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    checks = {check["name"]: check for check in examined(tmp_path)["machine"]}
    assert [name for name, check in checks.items() if check["ok"] is False] == [
        "GPU",
        "memory",
        "bitsandbytes",
        "processor",
    ]
    assert "no --quantization" in checks["bitsandbytes"]["says"] and "at none" in checks["memory"]["says"]


def test_things_that_are_no_usable_model_are_refused_with_what_to_do(llava: Path, tmp_path: Path) -> None:
    assert "sees no pictures" in refused(config_only(tmp_path / "text", model_type="llama"))
    assert "rlabel assemble" in refused(tmp_path / "text")
    assert "answers no questions" in refused(config_only(tmp_path / "tower", model_type="siglip_vision_model"))
    assert "newer transformers" in refused(config_only(tmp_path / "new", model_type="vlm_of_2030"))
    saved = config_only(tmp_path / "later", model_type="vlm_of_2030", transformers_version="6.1.0")
    assert "it was saved by transformers 6.1.0" in refused(saved)
    remote = config_only(tmp_path / "remote", model_type="vlm_of_2030", auto_map={"AutoModel": "evil.Model"})
    assert "brings its own code (evil.py), which is not run unasked" in refused(remote)
    assert "no weights at all" in refused(config_only(tmp_path / "empty", model_type="llava"))
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"cos\nsystem")
    assert "only pytorch_model.bin, which is never opened since it may run code" in refused(tmp_path / "empty")
    assert "saved quantized" in refused(
        config_only(tmp_path / "four", model_type="llava", quantization_config={"load_in_4bit": True})
    )
    endless = config_only(
        tmp_path / "endless", model_type="llava", text_config={"model_type": "llama", "num_hidden_layers": 10**9}
    )
    (endless / "model.safetensors").write_bytes(b"")
    assert "num_hidden_layers: expected at most 4096, got 1000000000" in refused(endless)
    assert "without config.json" in refused(tmp_path)
    assert "got a file" in refused(llava / "config.json")
    assert "no such folder. Check the path" in refused(tmp_path / "gone")
    for number, text in enumerate(("{", "[]", '{"model_type": 3}', "\xff")):
        (tmp_path / f"bad{number}").mkdir()
        (tmp_path / f"bad{number}" / "config.json").write_text(text, encoding="latin-1")
        assert "Copy or download the folder again" in refused(tmp_path / f"bad{number}")


def test_folders_that_hold_something_else_are_told_what_they_hold(llava: Path, tmp_path: Path) -> None:
    def folder(name: str, *files: str, **fields: object) -> Path:
        made = config_only(tmp_path / name, **fields)
        for file in files:
            (made / file).parent.mkdir(exist_ok=True)
            (made / file).write_bytes(b"GGUF")
        if not fields:
            (made / "config.json").unlink()
        return made

    assert "openai/clip" not in (clip := refused(folder("clip", model_type="clip"))) and "answers no questions" in clip
    gguf = folder("gguf", "model-Q4_K_M.gguf")
    assert "model-Q4_K_M.gguf (GGUF, llama.cpp's format): give the model that it was made from" in refused(gguf)
    assert "got a file in GGUF" in refused(gguf / "model-Q4_K_M.gguf")
    assert "only a.gguf (GGUF" in refused(folder("gguf2", "a.gguf", model_type="llava"))
    assert "params.json, a publisher's own format" in refused(folder("mistral", "params.json"))
    assert "with model_index.json, which makes pictures" in refused(folder("diffusion", "model_index.json"))
    assert "with inner/config.json: name that folder" in refused(folder("outer", "inner/config.json"))
    awq = folder("awq", model_type="qwen2_5_vl", quantization_config={"quant_method": "awq", "bits": 4})
    assert "it was saved quantized (awq)" in refused(awq) and "--quantization int8 or nf4" in refused(awq)

    lora = folder("lora", "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text('{"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}')
    assert "got an adapter (LoRA) of llava-hf/llava-1.5-7b-hf. Merge the two" in refused(lora)
    (lora / "config.json").write_text((llava / "config.json").read_text())  # some trainers leave one there
    assert "got an adapter (LoRA)" in refused(lora)
    (lora / "adapter_config.json").write_text("[")
    assert "got an adapter (LoRA) of its base model" in refused(lora)


def test_an_adapter_on_the_hub_is_told_as_one_from_its_first_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(_: str, *, allow_patterns: list[str], **__: object) -> str:
        asked.append(allow_patterns)
        if "adapter_config.json" in allow_patterns:
            (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B-Instruct"}')
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert "got an adapter (LoRA) of Qwen/Qwen2.5-VL-3B-Instruct" in refused("someone/lora")
    assert len(asked) == 1  # nothing large was fetched


@pytest.mark.parametrize("kind", ["llava", "regiongpt"])
def test_half_a_download_names_what_is_missing(llava: Path, tmp_path: Path, kind: str) -> None:
    half = tmp_path / "half"
    if kind == "llava":
        shutil.copytree(llava, half)
    else:
        save_model(half)
    (half / "model.safetensors").rename(half / "model-00001-of-00003.safetensors")
    shards = {f"w{i}": f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    index = half / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert "names 2 files that are not there, model-00002-of-00003.safetensors first: half a download" in (
        refused(half) if kind == "llava" else refusal_of(half)
    )
    for broken in ("[", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../../secret"}}'):
        index.write_text(broken)  # an index that says nothing is the loader's affair, and no path leads out
        assert kind == "regiongpt" or examined(half)["family"] == "llava"


def refusal_of(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        resolve_model(folder)
    return str(error.value)


def test_a_repository_that_is_gated_missing_or_out_of_reach_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    for kind, words in (
        (GatedRepoError, "gated. Accept its conditions on its page, then log in with `hf auth login`"),
        (RepositoryNotFoundError, "no public model of that name. Check the name"),
        (LocalEntryNotFoundError, "download it where there is a network and give the folder"),
    ):

        def fails(*_: object, kind: Any = kind, **__: object) -> None:
            raise kind.__new__(kind)

        monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
        assert words in refused("someone/model")
