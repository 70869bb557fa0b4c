from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rlabel.errors import InputError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.regiongpt.assembly import AssemblyOptions, assemble, load_processor, save
from rlabel.regiongpt.modeling import Connector
from rlabel.regiongpt.parts import load_language, load_vision
from rlabel.regiongpt.quantization import load_model

import model_factories as factory  # isort: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    factory.save_clip_pair(folder / "clip-pair")
    for kind in ("clip", "siglip", "convnext"):
        factory.save_tower(folder / kind, kind)
    factory.save_language(folder / "llama")
    factory.save_language(
        folder / "qwen2", "qwen2", vocab_size=512
    )  # more rows than its tokenizer has tokens, as Qwen's
    return folder


@pytest.mark.parametrize("vision", ["clip-pair", "clip", "siglip", "convnext"])
@pytest.mark.parametrize("llm", ["llama", "qwen2"])
def test_a_model_is_assembled_saved_and_answers(parts: Path, tmp_path: Path, vision: str, llm: str) -> None:
    model, processor = assemble(str(parts / vision), str(parts / llm), AssemblyOptions(tokens_per_region=2, zoom="all"))
    save(model, processor, tmp_path)
    assert (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("*.bin"))
    loaded, loaded_processor = load_model(tmp_path), load_processor(str(tmp_path))
    inputs = factory.random_inputs(loaded_processor, [3, 1])
    options = EngineOptions(max_new_tokens=4)
    first, second = (
        Engine(model, processor, options).answer(inputs),
        Engine(loaded, loaded_processor, options).answer(inputs),
    )
    assert first == second and [len(image) for image in first] == [3, 1]


def test_a_clip_pairs_vision_half_keeps_its_weights(parts: Path) -> None:
    from transformers import CLIPModel

    pair = CLIPModel.from_pretrained(parts / "clip-pair").eval()
    model, _ = assemble(str(parts / "clip-pair"), str(parts / "llama"), AssemblyOptions(refine=False))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = pair.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        assert torch.equal(model.coarse_maps(pixels).flatten(2).transpose(1, 2), expected[:, 1:])


def test_the_language_model_keeps_its_weights_and_gains_two_tokens(parts: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(parts / "llama").eval()
    model, processor = assemble(str(parts / "clip"), str(parts / "llama"))
    ids = torch.tensor([[1, 20, 21]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits[..., :400], plain(input_ids=ids).logits)
    assert processor.image_token_id == model.config.image_token_id == 400
    assert processor.region_token_id == model.config.region_token_id == 401
    assert model.get_input_embeddings().weight.shape[0] == 402  # type: ignore[union-attr]
    assert processor.tokenizer("<region><image>", add_special_tokens=False).input_ids == [401, 400]
    roomy, _ = assemble(str(parts / "clip"), str(parts / "qwen2"))
    assert roomy.get_input_embeddings().weight.shape[0] == 512  # type: ignore[union-attr]


def test_assembling_twice_with_one_seed_gives_the_same_weights(parts: Path) -> None:
    def build(seed: int) -> dict[str, torch.Tensor]:
        return assemble(str(parts / "clip"), str(parts / "llama"), AssemblyOptions(seed=seed))[0].state_dict()

    first, again, other = build(1), build(1), build(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = {name.split(".")[0] for name in first if not torch.equal(first[name], other[name])}
    assert differing >= {"refinement", "connector"} and "vision_tower" not in differing


def test_fresh_connectors_speak_as_loud_as_words(parts: Path) -> None:
    model, _ = assemble(str(parts / "clip"), str(parts / "llama"), AssemblyOptions(merge_size=2, zoom="all"))
    words = float(model.get_input_embeddings().weight.detach().square().mean().sqrt())  # type: ignore[union-attr, operator]
    connectors = [module for module in model.children() if isinstance(module, Connector)]
    assert len(connectors) == 3
    for connector in connectors:
        width = connector[1].in_features
        assert isinstance(width, int)
        spoken = connector(torch.randn(500, width)).square().mean().sqrt().item()
        assert spoken == pytest.approx(words, rel=0.35)


def test_the_published_mean_and_deviation_are_used_where_a_folder_has_them(parts: Path, tmp_path: Path) -> None:
    factory.save_tower(tmp_path, "siglip")
    published = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    part = load_vision(str(tmp_path))
    assert part.mean == (0.1, 0.2, 0.3) and part.std == (0.4, 0.5, 0.6) and part.image_size_px == 32


def test_options_say_what_they_make(parts: Path) -> None:
    model, processor = assemble(
        str(parts / "siglip"),
        str(parts / "llama"),
        AssemblyOptions(image_tokens_per_side=3, merge_size=2, tokens_per_region=4, refine=False),
    )
    assert model.config.connector == "separate" and model.config.zoom_feature_layers == []
    assert (
        processor.num_image_tokens == 4
        and processor.tokens_per_region == 4
        and processor.image_processor.mask_side == 4
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        AssemblyOptions().seed = 1  # type: ignore[misc]


def test_a_vit_cannot_zoom_at_another_size_than_its_own(parts: Path) -> None:
    with pytest.raises(InputError, match="zoom_size_px.*32"):
        assemble(str(parts / "clip"), str(parts / "llama"), AssemblyOptions(zoom="all", zoom_size_px=64))


def test_a_vit_cannot_see_at_another_size_than_its_own(parts: Path) -> None:
    with pytest.raises(InputError, match="image_size_px.*32"):
        assemble(str(parts / "clip"), str(parts / "llama"), AssemblyOptions(image_size_px=64))


def test_a_part_that_cannot_be_used_is_an_error_that_names_its_flag(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--vision .*no-such"):
        load_vision(str(tmp_path / "no-such"))
    with pytest.raises(InputError, match="--llm .*no-such"):
        load_language(str(tmp_path / "no-such"))
    with pytest.raises(InputError, match="--vision .*no vision tower"):
        load_vision(str(parts / "llama"))
    with pytest.raises(InputError, match="--llm"):
        load_language(str(parts / "clip"))
    with pytest.raises(InputError, match="--llm tiny"):
        load_language("tiny", [" "])
    factory.save_tower(tmp_path / "cut", "clip")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="--vision"):
        load_vision(str(tmp_path / "cut"))


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (tmp_path / "opened",)  # type: ignore[return-value]

    factory.save_tower(tmp_path / "tower", "clip")
    (tmp_path / "tower" / "model.safetensors").unlink()
    (tmp_path / "tower" / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="--vision"):
        load_vision(str(tmp_path / "tower"))
    assert not (tmp_path / "opened").exists()


def test_the_tiny_language_model_learns_its_tokens_from_names() -> None:
    part = load_language("tiny", [*factory.NAMES, "lighthouse"])
    ids = part.tokenizer("lighthouse", add_special_tokens=False).input_ids
    assert part.tokenizer.decode(ids).strip() == "lighthouse" and len(ids) < len("lighthouse")
    assert 3e6 < sum(p.numel() for p in part.model.parameters()) < 4e6
    assert np.isfinite(part.model(torch.tensor([ids])).logits.detach().numpy()).all()
