"""`rlabel label` with a plain model: whole runs, resume, what is refused before a weight is loaded; quantization."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO

from label_factories import Setup, outputs, rlabel_here, save_model
from rlabel.errors import InputError
from rlabel.regiongpt.quantization import quantized_layers
from vlm_factories import loaded, save

NUM_IMAGES = 3


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("plain")
    return Setup(folder, save(folder / "model", "qwen2_5_vl"), NUM_IMAGES)


def label(setup: Setup, out: Path, **more: object) -> Any:
    return rlabel_here("label", setup.arguments(out, no_ray=True, **more))


@pytest.fixture(scope="module")
def finished(setup: Setup) -> Path:
    out = setup.folder / "finished"
    result = label(setup, out)
    assert result.returncode == 0, result.stderr
    return out


def test_a_run_ends_in_coco_with_one_outcome_a_region(setup: Setup, finished: Path) -> None:
    coco = COCO(str(finished / "labels.json"))
    told = [len((finished / name).read_text().splitlines()) for name in ("abstained.jsonl", "failures.jsonl")]
    assert coco.anns and len(coco.anns) + told[0] == 2 * NUM_IMAGES and told[1] == 0
    assert all(0 < annotation["score"] <= 1 for annotation in coco.anns.values())
    kept = json.loads((finished / "manifest.json").read_text())["settings"]
    assert (kept["family"], kept["region_as"], kept["picture_px"]) == ("qwen2_5_vl", "box", 1024)
    assert kept["question"] == kept["prompt"] and "{box}" in kept["prompt"]


def test_a_run_that_was_cut_goes_on_to_the_same_bytes(setup: Setup, finished: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(finished, cut)
    (cut / "shards" / "000001.jsonl").unlink()
    for name in ("labels.json", "status.json"):
        (cut / name).unlink()
    assert label(setup, cut).returncode == 0
    assert outputs(cut) == outputs(finished)


@pytest.mark.parametrize(
    "changed", [{"region_as": "crop"}, {"picture_px": 64}, {"family": "qwen3_vl"}, {"question": "And <region>?"}]
)
def test_another_way_of_showing_refuses_to_go_on(setup: Setup, finished: Path, changed: dict[str, object]) -> None:
    result = label(setup, finished, **changed)
    assert result.returncode == 2 and next(iter(changed)).replace("question", "prompt") in result.stderr


@pytest.mark.parametrize("decoding", ["constrained", "hybrid"])
def test_names_of_the_vocabulary_are_chosen_and_a_cut_run_goes_on(setup: Setup, tmp_path: Path, decoding: str) -> None:
    out, cut = tmp_path / "out", tmp_path / "cut"
    more: dict[str, object] = {"decoding": decoding, **({"search": "exact"} if decoding == "constrained" else {})}
    result = label(setup, out, **more)
    assert result.returncode == 0, result.stderr
    coco = COCO(str(out / "labels.json"))
    told = [len((out / name).read_text().splitlines()) for name in ("abstained.jsonl", "failures.jsonl")]
    assert coco.anns and len(coco.anns) + told[0] == 2 * NUM_IMAGES and told[1] == 0
    names = {category["name"] for category in coco.cats.values()}
    by = {annotation["attributes"]["decided_by"] for annotation in coco.anns.values()}
    if decoding == "constrained":
        assert not told[0] and by == {"exact"}
        assert {annotation["attributes"]["text"] for annotation in coco.anns.values()} <= names
    else:
        assert "likelihood" in by and all(0 <= annotation["score"] <= 1 for annotation in coco.anns.values())
    shutil.copytree(out, cut)
    (cut / "shards" / "000000.jsonl").unlink()
    (cut / "labels.json").unlink()
    assert label(setup, cut, **more).returncode == 0
    assert outputs(cut) == outputs(out)


def test_captions_of_marks_and_of_quantized_layers(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more: dict[str, object] = {
        "task": "caption",
        "vocabulary": None,
        "threshold": None,
        "margin": None,
        "max_failure_rate": 1,
    }
    result = label(setup, out, region_as="marks", quantization="int8", **more)
    assert result.returncode == 0, result.stderr
    captions = json.loads((out / "captions.json").read_text())["annotations"]
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert captions and len(captions) + len(failures) == 2 * NUM_IMAGES
    assert all("has no words" in failure["reason"] for failure in failures)  # gibberish of random weights
    assert "model.language_model.layers.1.mlp.down_proj" in result.stderr and "visual" not in result.stderr


def test_a_dry_run_tells_the_prompt_and_loads_nothing(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlabel.vlm.loading.load_model", None)
    result = label(setup, tmp_path / "out", dry_run=True)
    assert result.returncode == 0 and "qwen2_5_vl, regions shown as box" in result.stdout
    assert "Name the object in the region {box}" in result.stdout and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"decoding": "hybrid", "rank_by": "prior"}, 2, "--rank-by prior: a plain model"),
        ({"family": "nobody"}, 2, "--family nobody: expected one of"),
        ({"model": "embedded", "region_as": "crop"}, 2, "--region-as crop: a RegionGPT is given the masks themselves"),
        ({"attention": "flash_attention_2"}, 1, "without --quantization and --attention"),
    ],
)
def test_wrong_settings_are_refused(
    setup: Setup, tmp_path: Path, settings: dict[str, object], code: int, words: str
) -> None:
    result = label(setup, tmp_path / "out", **settings)
    assert result.returncode == code and words in result.stderr and result.stdout == ""


def test_a_regiongpt_is_not_shown_crops(setup: Setup, tmp_path: Path) -> None:
    result = label(setup, tmp_path / "out", model=save_model(tmp_path / "model"), crop_px=99)
    assert result.returncode == 2 and "--crop-px 99: a RegionGPT is given the masks" in result.stderr


def test_a_model_without_its_processor_is_refused_at_the_start(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(setup.model, folder)
    (folder / "preprocessor_config.json").unlink()
    monkeypatch.setattr("rlabel.vlm.loading.load_model", None)
    result = label(setup, tmp_path / "out", model=folder)
    assert result.returncode == 1 and "expected the files of a processor" in result.stderr


def test_a_chat_template_that_drops_the_picture_is_refused_at_the_start(setup: Setup, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(setup.model, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['role'] }}: hello")
    result = label(setup, tmp_path / "out", model=folder)
    assert result.returncode == 1 and "cannot take a question about one picture" in result.stderr


def test_weights_that_lack_a_layer_are_refused(setup: Setup, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(setup.model, folder)
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layers.1.mlp" in name)
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lack 1 of the weights"):
        loaded(folder)
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(InputError, match="expected whole safetensors"):
        loaded(folder)


@pytest.mark.parametrize("kind", ["florence2", "kosmos2", "llava"])
def test_only_the_language_model_is_quantized(tmp_path: Path, kind: str) -> None:
    model = loaded(save(tmp_path, kind), quantization="int8")
    names = quantized_layers(model)
    assert names and all("language" in name or name.startswith("text_model.") for name in names)
    assert not [name for name in names if "vision" in name or "head" in name or "project" in name.replace("_proj", "")]
    parts = {"encoder", "decoder"} if kind == "florence2" else {"layers"}
    assert all(any(part in name for name in names) for part in parts)


def test_a_bfloat16_model_takes_pixels_of_its_own_kind(setup: Setup, tmp_path: Path) -> None:
    assert loaded(setup.model, dtype="bfloat16").dtype == torch.bfloat16
    result = label(setup, tmp_path / "out", dtype="bfloat16", region_as="crop", crop_px=56)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "out" / "failures.jsonl").read_text()
