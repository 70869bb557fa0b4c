"""SAM 3 looks for names: the masks are those of transformers' own post-processing, whatever is computed once and whatever at once."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from pycocotools import mask as coco_mask
from tokenizers.pre_tokenizers import ByteLevel

from rlabel.errors import InputError, UsageError
from rlabel.proposing.models import make_proposer, plan_proposer
from rlabel.proposing.sam import normalisation
from rlabel.proposing.sam_text import SamTextProposer, flop_of_names
from rlabel.proposing.settings import ProposeSettings
from rlabel.records import ImageRecord

RECORD = ImageRecord(row={"id": 1}, file_name="a.png", width_px=None, height_px=None, regions=())
NAMES = ("cat", "dog", "tall tree", "car", "hat")
SIDE = 56


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    made = tmp_path_factory.mktemp("sam3")
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    tokens = sorted(ByteLevel.alphabet())
    vocabulary = {name: place for place, name in enumerate(["<|startoftext|>", "<|endoftext|>", *tokens])}
    vocabulary |= {f"{name}</w>": len(vocabulary) + place for place, name in enumerate(tokens)}
    backbone = {
        **small, "model_type": "sam3_vit_model", "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 14, "window_size": 2,
        "global_attn_indexes": [1], "pretrain_image_size": SIDE,
    }  # fmt: skip
    config = t.Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={
            **small, "model_type": "clip_text_model", "vocab_size": len(vocabulary), "num_hidden_layers": 1, "max_position_embeddings": 12,
            "projection_dim": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        },
        geometry_encoder_config={**small, "num_layers": 1},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 1, "num_queries": 6},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )  # fmt: skip
    model = t.Sam3Model(config)
    # Random weights draw masks that are all inside or all outside, or alike for every name; these ones differ.
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "embeddings" not in name:
            torch.nn.init.normal_(weight, std=0.35)
    model.save_pretrained(made)
    t.CLIPTokenizerFast(vocab=vocabulary, merges=[]).save_pretrained(made)
    (made / "names.txt").write_text("\n".join(NAMES))
    return made


def proposer(folder: Path, **more: Any) -> SamTextProposer:
    given = {"vocabulary": str(folder / "names.txt"), "min_score": 0.2, **more}
    settings = ProposeSettings(images="in", out="out", proposer=str(folder), device="cpu", **given)
    made = make_proposer(plan_proposer(settings), settings)
    assert isinstance(made, SamTextProposer)
    return made


def picture(height: int = 60, width: int = 90) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers' post-processing, whose module asks for torchvision, though this function of it does not."""
    if "torchvision" not in sys.modules:
        for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["torchvision.ops.boxes"].batched_nms = None  # type: ignore[attr-defined]
    module = importlib.import_module("transformers.models.sam3.image_processing_sam3")
    return module.Sam3ImageProcessor.post_process_instance_segmentation


@torch.inference_mode()
def test_masks_and_scores_are_those_of_transformers_one_name_and_picture_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = proposer(folder, names_per_query=3)
    found = ours.propose(picture(), RECORD)
    model = t.Sam3Model.from_pretrained(folder).eval()
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    resized = np.asarray(Image.fromarray(picture()).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy((resized / 127.5 - 1).astype(np.float32)).permute(2, 0, 1)[None]
    expected: list[tuple[float, Any]] = []
    for name in NAMES:
        text = tokenizer([name], padding="max_length", max_length=12, return_tensors="pt")
        outputs = model(pixel_values=pixels, input_ids=text["input_ids"], attention_mask=text["attention_mask"])
        (result,) = judge(monkeypatch)(None, outputs, threshold=0.2, target_sizes=[(60, 90)])
        for score, mask in zip(result["scores"].tolist(), result["masks"].numpy(), strict=True):
            if mask.any():
                expected.append((score, mask))
    assert 3 < len(found) == len(expected)
    assert [one.score for one in found] == pytest.approx([score for score, _ in expected], abs=2e-5)
    differ = sum(int((coco_mask.decode(one.rle) != mask).sum()) for one, (_, mask) in zip(found, expected, strict=True))
    assert differ <= 2, "a pixel at one half may fall on either side, once names are multiplied together"
    assert len({one.area_px for one in found}) > 3


def test_the_picture_is_looked_at_once_and_the_texts_once_a_run(folder: Path) -> None:
    ours = proposer(folder, names_per_query=2)
    looks, texts, calls = [], [], []
    for owner, name, counted in (
        (ours.model.vision_encoder, "forward", looks),
        (ours.model.text_encoder, "forward", texts),
        (ours.model.detr_encoder, "forward", calls),
    ):
        own = getattr(owner, name)
        setattr(owner, name, lambda *a, own=own, counted=counted, **k: counted.append(1) or own(*a, **k))
    first = ours.propose(picture(), RECORD)
    assert (len(looks), len(texts), len(calls)) == (1, 0, 3)
    assert ours.propose(picture(), RECORD) == first, "what a picture leaves behind sways none after it"


def test_only_what_is_sure_enough_is_drawn(folder: Path) -> None:
    scores = sorted(one.score for one in proposer(folder).propose(picture(), RECORD))
    middle = scores[len(scores) // 2]
    assert scores[0] < middle
    above = proposer(folder, min_score=middle).propose(picture(), RECORD)
    assert 0 < len(above) < len(scores) and min(one.score for one in above) >= middle


def test_many_names_are_said_with_their_cost(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proposer(folder)
    assert capsys.readouterr().err == ""
    (tmp_path / "many.txt").write_text("\n".join(f"thing{n}" for n in range(120)))
    ours = proposer(folder, vocabulary=str(tmp_path / "many.txt"), names_per_query=512)
    assert "each of 120 names in each picture" in capsys.readouterr().err
    assert [len(features) for features, _ in ours.texts] == [8] * 15, "however many are asked for at once"
    assert flop_of_names(ours.model, 120) == pytest.approx(120 * flop_of_names(ours.model, 1))


def test_the_published_folder_of_films_looks_for_names_only_where_there_are_some(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    whole = {
        "model_type": "sam3_video",
        "detector_config": config,
        "tracker_config": {"model_type": "sam3_tracker_video"},
    }
    (tmp_path / "config.json").write_text(json.dumps(whole))
    settings = ProposeSettings(images="in", out="out", proposer=str(tmp_path))
    assert plan_proposer(settings).kind == "sam3_video"
    named = settings.model_copy(update={"vocabulary": str(folder / "names.txt")})
    assert plan_proposer(named).kind == "sam3"
    found = proposer(tmp_path).propose(picture(), RECORD)
    assert found == proposer(folder).propose(picture(), RECORD)


def test_without_names_or_a_tokenizer_it_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sam3 looks for names, got no --vocabulary"):
        plan_proposer(ProposeSettings(images="in", out="out", proposer=str(folder)))
    for name in ("config.json", "model.safetensors", "names.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InputError, match="expected a tokenizer"):
        proposer(tmp_path)


def test_channels_are_normalised_as_the_folder_says_in_either_file(tmp_path: Path) -> None:
    assert normalisation(tmp_path, "sam3")[0].tolist() == [0.5] * 3
    assert normalisation(tmp_path, "sam2")[0].tolist() == pytest.approx([0.485, 0.456, 0.406])
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"image_mean": [0.25, 0.5, 0.75]}}))
    assert normalisation(tmp_path, "sam3")[0].tolist() == [0.25, 0.5, 0.75]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0]}))
    assert normalisation(tmp_path, "sam3")[0].tolist() == [0, 0, 0]
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(InputError, match="image_mean: expected three numbers"):
        normalisation(tmp_path, "sam3")
