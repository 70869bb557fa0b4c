from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from rlabel.cli.main import main
from rlabel.errors import InputError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.regiongpt.assembly import load_processor, save
from rlabel.regiongpt.configuration import RegionGPTConfig
from rlabel.regiongpt.modeling import Connector, Refinement
from rlabel.regiongpt.quantization import load_model
from rlabel.regiongpt.spatialrgpt import import_spatialrgpt, layout, plan_import

import model_factories as factory  # isort: skip
from spatialrgpt_factories import (  # isort: skip
    D, MEAN, C, edit_json, make_checkpoint, public_forward, shapes_of_the_public_code, write_json,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made") / "checkpoint")


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "checkpoint"))


# What is computed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vision", ["siglip", "clip"])
def test_imported_model_computes_the_tokens_of_the_public_code(tmp_path: Path, vision: str, dtype: torch.dtype) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", vision, dtype)
    model, processor, _ = import_spatialrgpt(folder)
    save(model, processor, tmp_path / "out")
    model, processor = load_model(tmp_path / "out"), load_processor(str(tmp_path / "out"))
    pixels = torch.randn(2, 3, 32, 32)
    # 32 pixels to 16 cells: there the bilinear resize is the mean of 2 x 2 pixels, so both ways to resize masks agree.
    masks = torch.zeros(3, 32, 32)
    masks[0, 3:20, 5:9] = masks[1, 30:, 31:] = 1.0
    masks[2] = torch.rand(32, 32) > 0.5
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder / "vision_tower")(pixel_values=pixels, output_hidden_states=True)
        tokens = states.hidden_states[-2]
        expected_image, expected_regions = public_forward(folder, tokens[:, 1:] if vision == "clip" else tokens, masks)
        maps, image = model.encode_images(pixels)
        fine = masks.reshape(3, 16, 2, 16, 2).mean(dim=(2, 4))
        regions = model.encode_regions(maps, fine, torch.zeros(3, dtype=torch.long))
    assert image.shape == (2, 196, D) and regions.shape == (3, 1, D)
    torch.testing.assert_close(image, expected_image, rtol=0, atol=1e-5)
    torch.testing.assert_close(regions[:, 0], expected_regions, rtol=0, atol=1e-5)
    # The comparison can tell: neither a transposed grid nor another order of merged channels would pass.
    swapped = expected_image.unflatten(1, (14, 14)).transpose(1, 2).flatten(1, 2)
    assert (image - swapped).abs().max() > 0.1 and expected_image.std() > 0.1 and expected_regions.std() > 0.1


def test_imported_model_keeps_tower_and_language_model_and_answers(made: Path, tmp_path: Path) -> None:
    model, processor, report = import_spatialrgpt(made)
    tower = AutoModel.from_pretrained(made / "vision_tower").state_dict()
    kept = model.vision_tower.state_dict()
    assert kept.keys() == tower.keys() and all(torch.equal(kept[name], tower[name]) for name in tower)
    words = load_file(made / "llm" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight[: len(words)], words)  # type: ignore[index]
    assert processor.num_image_tokens == 196 and processor.image_processor.mask_side == 16
    assert processor.image_processor.image_mean == MEAN and report.vision == str(made / "vision_tower")
    save(model, processor, tmp_path)
    loaded, loaded_processor = load_model(tmp_path), load_processor(str(tmp_path))
    inputs = factory.random_inputs(loaded_processor, [2, 1])
    options = EngineOptions(max_new_tokens=3)
    answers = Engine(loaded, loaded_processor, options).answer(inputs)
    assert [len(image) for image in answers] == [2, 1]
    assert answers == Engine(model, processor, options).answer(inputs)


def test_language_model_with_a_tied_head_stays_tied(made: Path, tmp_path: Path) -> None:
    factory.save_language(tmp_path / "tied", "qwen2", hidden_size=D)
    model, processor, _ = import_spatialrgpt(made, llm=str(tmp_path / "tied"))
    save(model, processor, tmp_path / "out")
    loaded = load_model(tmp_path / "out")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight  # type: ignore[union-attr]
    ids = torch.tensor([[1, 20, 21]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_extractor_of_the_published_size_has_20_066_816_parameters() -> None:
    with torch.device("meta"):
        modules = (Refinement(1152), nn.Linear(1152, 4096), nn.Linear(1152, 4096), Connector(4 * 1152, 4096))
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in modules]
    assert sum(counts[:3]) == 20_066_816
    weights = layout(1152, 4096)
    extractor = [math.prod(weight.shape) for weight in weights if weight.name.startswith("region_extractor/")]
    assert sum(extractor) == 20_066_816
    assert sum(math.prod(weight.shape) for weight in weights) == sum(counts)
    public = {
        f"{folder}/{name}": shape
        for folder, shapes in shapes_of_the_public_code(1152, 4096).items()
        for name, shape in shapes.items()
    }
    assert {weight.name: weight.shape for weight in weights} == public


def test_configs_from_before_these_options_mean_what_they_meant() -> None:
    config = RegionGPTConfig()
    assert config.image_token_order == "rows" and config.connector == "shared"
    for field in ({"image_token_order": "spiral"}, {"connector": "linear"}):
        with pytest.raises(ValueError, match=next(iter(field))):
            RegionGPTConfig(**field)  # type: ignore[arg-type]


# What is said


def test_report_names_what_was_used_and_what_was_not(checkpoint: Path) -> None:
    save_file({"x": torch.zeros(1)}, checkpoint / "optimizer.safetensors")
    report = plan_import(checkpoint)
    assert [weight.name for weight in report.unused] == [
        "region_extractor/depth_projector.weight",
        "region_extractor/depth_projector.bias",
    ]
    assert all(weight.reason and "depth" in weight.reason for weight in report.unused)
    assert len(report.used) == 14 and report.missing == ()
    targets = {weight.name: weight.target for weight in report.used}
    assert targets["region_extractor/rgb_projector.weight"] == "region_connector.weight"
    assert targets["mm_projector/layers.4.bias"] == "connector.3.bias"
    assert [file.name for file in report.unused_files] == ["optimizer.safetensors"]
    assert [sentence.split(":")[0] for sentence in report.differences] == [
        "Pictures", "Masks", "Prompts", "Precision", "Depth",
    ]  # fmt: skip


def test_checkpoint_without_a_depth_branch_is_imported(checkpoint: Path) -> None:
    path = checkpoint / "region_extractor" / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith("depth")}, path)
    edit_json(checkpoint / "config.json", enable_depth=False)
    report = import_spatialrgpt(checkpoint)[2]
    assert report.unused == () and len(report.differences) == 4


@pytest.mark.parametrize(
    "part, name",
    [("region_extractor", "rgb_projector.bias"), ("mm_projector", "layers.1.weight"), ("vision_tower", "embeddings.patch_embedding.bias"),
     ("llm", "model.norm.weight")],
)  # fmt: skip
def test_missing_weights_are_named_and_never_made_up(checkpoint: Path, part: str, name: str) -> None:
    path = checkpoint / part / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    assert plan_import(checkpoint).missing == (f"{part}/{name}",)
    with pytest.raises(InputError, match=f"1 are missing: {part}/{name}"):
        import_spatialrgpt(checkpoint)


def test_absent_parts_are_filled_in_from_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    for part in ("vision_tower", "llm"):
        shutil.move(checkpoint / part, tmp_path / part)
    missing = plan_import(checkpoint).missing
    assert [name.split()[0] for name in missing] == ["vision_tower/", "llm/"]
    with pytest.raises(InputError, match="--llm"):
        import_spatialrgpt(checkpoint)
    report = import_spatialrgpt(checkpoint, vision=str(tmp_path / "vision_tower"), llm=str(tmp_path / "llm"))[2]
    assert report.missing == () and report.llm == str(tmp_path / "llm")


def test_named_part_takes_the_place_of_the_checkpoints_own(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint / "llm", tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    model, _, report = import_spatialrgpt(checkpoint, llm=str(tmp_path / "other"))
    assert torch.equal(model.language_model.model.norm.weight, load_file(path)["model.norm.weight"])
    assert [file.name for file in report.unused_files] == ["llm/"]


def test_command_says_all_and_writes_a_model_folder(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dry = CliRunner().invoke(main, ["import-spatialrgpt", str(made), "--out", str(out), "--dry-run"])
    assert dry.exit_code == 0, dry.stderr
    assert not out.exists() and "not used: region_extractor/depth_projector.weight (48, 32): " in dry.stderr
    wet = CliRunner().invoke(main, ["import-spatialrgpt", str(made), "--out", str(out)])
    assert wet.exit_code == 0, wet.stderr
    assert wet.stderr.splitlines()[-1].startswith(f"rlabel: wrote {out}")
    assert json.loads(wet.stdout) == json.loads(dry.stdout)
    assert load_model(out).config.image_token_order == "columns"
    again = CliRunner().invoke(main, ["import-spatialrgpt", str(made), "--out", str(out)])
    assert again.exit_code == 2 and "--out" in again.stderr


def test_dry_run_of_an_incomplete_checkpoint_lists_it_and_fails(checkpoint: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkpoint / "llm")
    arguments = ["import-spatialrgpt", str(checkpoint), "--out", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "missing: llm/" in result.stderr
    assert json.loads(result.stdout)["missing"] and not (tmp_path / "out").exists()


# What is refused


@pytest.mark.parametrize(
    "where, fields, message",
    [
        ("region_extractor", {"region_extractor_type": "duplicate_deconv"}, "region_extractor_type.*'regiongpt'.*'duplicate_deconv'"),
        ("mm_projector", {"mm_projector_type": "mlp2x_gelu"}, "mm_projector_type.*'mlp_downsample'.*'mlp2x_gelu'"),
        (".", {"enable_region": None}, "enable_region"),
        (".", {"s2": True}, "s2"),
        (".", {"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        (".", {"image_aspect_ratio": "pad"}, "image_aspect_ratio.*'resize'.*'pad'"),
        (".", {"mm_vision_select_layer": None}, "mm_vision_select_layer.*None"),
        (".", {"mm_vision_select_layer": -5}, "mm_vision_select_layer.*4 hidden states.*-5"),
        (".", {"mm_vision_select_feature": "patch"}, "mm_vision_select_feature.*'cls_patch'.*'patch'"),
        (".", {"quantization_config": {"quant_method": "awq"}}, "quantized"),
        (".", {"llm_cfg": {"quantization_config": {"quant_method": "awq"}}}, "quantized"),
        ("llm", {"quantization_config": {"quant_method": "awq"}}, "quantized"),
        (".", {"region_extractor_cfg": "../elsewhere"}, "region_extractor_cfg.*inside"),
        (".", {"llm_cfg": "/etc"}, "llm_cfg.*inside"),
        (".", {"model_type": "regiongpt"}, "a model folder of rlabel"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_kept_are_refused(
    checkpoint: Path, where: str, fields: dict[str, Any], message: str
) -> None:
    edit_json(checkpoint / where / "config.json", **fields)
    with pytest.raises(InputError, match=message):
        plan_import(checkpoint)


def _empty(folder: Path) -> Path:
    (folder / "new").mkdir()
    return folder / "new"


def _without_regions(folder: Path) -> Path:
    shutil.rmtree(folder / "region_extractor")
    return folder


def _without_config(folder: Path) -> Path:
    (folder / "config.json").unlink()
    return folder


def _adapter(folder: Path) -> Path:
    write_json(folder / "adapter_config.json", {})
    return folder


def _plain_model(folder: Path) -> Path:
    return Path(shutil.move(folder / "llm", folder.parent / "plain"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: folder / "no-such", "no such folder"),
        (lambda folder: folder / "config.json", "got a file"),
        (_empty, "an empty folder"),
        (_without_config, "a folder with llm, mm_projector"),
        (_without_regions, "region_extractor/.*looks like a VILA"),
        (_adapter, "LoRA adapter"),
        (_plain_model, "looks like a llama model"),
        (lambda folder: folder / "llm", "one part of it"),
    ],
)
def test_folder_of_another_kind_is_told_what_it_looks_like(
    checkpoint: Path, change: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan_import(change(checkpoint))


def test_shape_that_does_not_fit_is_named_with_both_shapes(checkpoint: Path, tmp_path: Path) -> None:
    factory.save_language(tmp_path / "narrow")
    with pytest.raises(InputError, match=r"rgb_projector.weight: expected \(32, 32\).*got \(48, 32\)"):
        plan_import(checkpoint, llm=str(tmp_path / "narrow"))
    edit_json(checkpoint / "vision_tower" / "config.json", intermediate_size=64)
    with pytest.raises(InputError, match=r"vision_tower.*fc1.* expected \(64.*got \(48"):
        plan_import(checkpoint)


def test_tensors_that_the_public_code_does_not_have_are_refused(checkpoint: Path) -> None:
    path = checkpoint / "region_extractor" / "model.safetensors"
    good = load_file(path)
    save_file({**good, "feature_refinement_module.4.weight": torch.zeros(C)}, path)
    with pytest.raises(InputError, match=r"feature_refinement_module\.4\.weight"):
        plan_import(checkpoint)
    save_file({**good, "rgb_projector.weight": torch.zeros(D, C, dtype=torch.int8)}, path)
    with pytest.raises(InputError, match=r"rgb_projector\.weight \(I8\).*quantized"):
        plan_import(checkpoint)
    save_file(good, path)
    save_file({"rgb_projector.bias": good["rgb_projector.bias"]}, path.with_name("more.safetensors"))
    with pytest.raises(InputError, match=r"rgb_projector\.bias: .*twice"):
        plan_import(checkpoint)


def test_tower_of_another_family_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    factory.save_tower(tmp_path / "dino", "dinov2")
    with pytest.raises(InputError, match="--vision .*dinov2"):
        plan_import(checkpoint, vision=str(tmp_path / "dino"))
    with pytest.raises(InputError, match="--llm .*siglip_vision_model"):
        plan_import(checkpoint, llm=str(checkpoint / "vision_tower"))


def test_clip_tower_without_its_mean_and_deviation_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", "clip")
    (folder / "vision_tower" / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        import_spatialrgpt(folder)


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"llm_cfg": 1', b"\xff\xfe"])
def test_damaged_files_are_errors_that_name_them(checkpoint: Path, damage: bytes) -> None:
    whole = (checkpoint / "config.json").read_bytes()
    (checkpoint / "config.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"config\.json: expected a JSON object"):
        plan_import(checkpoint)
    (checkpoint / "config.json").write_bytes(whole)
    weights = checkpoint / "mm_projector" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"mm_projector/model\.safetensors: expected whole"):
        plan_import(checkpoint)


def test_shard_outside_of_its_folder_is_refused(checkpoint: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../../other.safetensors"}}
    write_json(checkpoint / "llm" / "model.safetensors.index.json", index)
    with pytest.raises(InputError, match=r"index\.json.*other\.safetensors"):
        plan_import(checkpoint)


def test_part_in_a_folder_that_the_config_names_is_found(checkpoint: Path) -> None:
    shutil.move(checkpoint / "region_extractor", checkpoint / "regions")
    edit_json(checkpoint / "config.json", region_extractor_cfg="regions")
    report = plan_import(checkpoint)
    assert len(report.used) == 14 and report.unused_files == ()


# Pickles


def test_tensors_in_a_pickle_are_read_where_there_are_no_safetensors(checkpoint: Path) -> None:
    expected = import_spatialrgpt(checkpoint)[0].state_dict()
    for part in ("region_extractor", "mm_projector"):
        path = checkpoint / part / "model.safetensors"
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()
    got = import_spatialrgpt(checkpoint)[0].state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected if "connector" in name or "refine" in name)


def test_pickle_that_would_run_code_is_never_opened(checkpoint: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (checkpoint / "opened",)

    folder = checkpoint / "region_extractor"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert plan_import(checkpoint).missing == ()  # safetensors are there: not even looked at
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pytorch_model\.bin: expected a state dict of tensors alone"):
        plan_import(checkpoint)
    torch.save({"rgb_projector.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: expected a state dict of tensors alone"):
        plan_import(checkpoint)
    assert not (checkpoint / "opened").exists()


def test_folder_without_weights_is_an_error(checkpoint: Path) -> None:
    (checkpoint / "mm_projector" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="mm_projector: expected model.safetensors"):
        plan_import(checkpoint)
