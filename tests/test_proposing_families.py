"""Each family of proposers loaded and asked once, as transformers saves it: small, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from tokenizers.pre_tokenizers import ByteLevel

from rlabel.errors import InputError
from rlabel.proposing.models import make_proposer, plan_proposer
from rlabel.proposing.settings import ProposeSettings
from rlabel.records import ImageRecord

RECORD = ImageRecord(row={"id": 1}, file_name="a.png", width_px=None, height_px=None, regions=())
HEADS: dict[str, Any] = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECODER = {**HEADS, "iou_head_hidden_dim": 8, "iou_head_depth": 2}
NAMES = ("cat", "dog", "tree")


def sam2(folder: Path) -> None:
    backbone = t.Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 2, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 8, 8],
        global_attention_blocks=[2],
        window_positional_embedding_background_size=[2, 2],
    )
    vision = t.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        fpn_hidden_size=16,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    config = t.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    t.Sam2Model(config).save_pretrained(folder)


def sam3(folder: Path) -> None:
    backbone = t.Sam3ViTConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        window_size=2,
        global_attn_indexes=[1],
        pretrain_image_size=56,
    )
    vision = t.Sam3VisionConfig(
        backbone_config=backbone,
        fpn_hidden_size=16,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        image_size=56,
    )
    prompts = {"hidden_size": 16, "image_size": 56, "patch_size": 14, "mask_input_channels": 4}
    config = t.Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    t.Sam3TrackerModel(config).save_pretrained(folder)


def rt_detr(folder: Path) -> None:
    backbone = t.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = t.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 16, 16],
        d_model=16,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        encoder_attention_heads=2,
        decoder_layers=1,
        num_queries=10,
        num_labels=3,
        decoder_in_channels=[16, 16, 16],
        decoder_n_points=2,
        num_denoising=0,
    )
    t.RTDetrForObjectDetection(config).save_pretrained(folder)
    t.RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)


def owlv2(folder: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = sorted(ByteLevel.alphabet())
    # The first token of a text is not 0, or OWL takes it for padding.
    vocabulary = {name: place for place, name in enumerate(["!pad", "<|startoftext|>", "<|endoftext|>", *tokens])}
    vocabulary |= {f"{name}</w>": len(vocabulary) + place for place, name in enumerate(tokens)}
    text = {**small, "vocab_size": len(vocabulary), "max_position_embeddings": 16}
    config = t.Owlv2Config(
        text_config={**text, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        vision_config={**small, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    t.Owlv2ForObjectDetection(config).save_pretrained(folder)
    images = t.Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    t.Owlv2Processor(images, t.CLIPTokenizerFast(vocab=vocabulary, merges=[])).save_pretrained(folder)


def grounding_dino(folder: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    swin = t.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = t.GroundingDinoConfig(
        backbone_config=swin,
        text_config={"model_type": "bert", "vocab_size": 60, "max_position_embeddings": 256, **small},
        num_queries=9,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_n_points=2,
        decoder_n_points=2,
        max_text_len=64,
    )
    t.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *NAMES)
    tokenizer = t.BertTokenizerFast(vocab={word: place for place, word in enumerate(words)})
    images = t.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    t.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


def proposer(folder: Path, **more: Any) -> Any:
    settings = ProposeSettings(images="in", out="out", proposer=str(folder), device="cpu", min_score=0.0, **more)
    return make_proposer(plan_proposer(settings), settings)


def picture(height: int = 60, width: int = 90) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("make", [sam2, sam3])
def test_later_sams_give_three_masks_a_point_at_most(make: Callable[[Path], None], tmp_path: Path) -> None:
    torch.manual_seed(0)
    make(tmp_path)
    model = proposer(tmp_path, points_per_side=3, min_predicted_iou=0.0, min_stability=0.0, points_per_batch=4)
    found = model.propose(picture(), RECORD)
    assert 0 < len(found) <= 27
    assert all(one.rle is not None and one.rle["size"] == [60, 90] for one in found)
    # They stretch a picture to a square: its last corner is the square's.
    pixels, scale_x, scale_y = model.prepared(picture())
    side = pixels.shape[-1]
    assert (scale_x * 90, scale_y * 60) == pytest.approx((side, side))


@pytest.mark.parametrize("make", [rt_detr, owlv2, grounding_dino])
def test_detectors_give_boxes_inside_the_picture(make: Callable[[Path], None], tmp_path: Path) -> None:
    torch.manual_seed(0)
    make(tmp_path)
    more: dict[str, Any] = {}
    if make is not rt_detr:
        (tmp_path / "names.txt").write_text("\n".join(NAMES))
        more = {"vocabulary": str(tmp_path / "names.txt"), "names_per_query": 2}
    model = proposer(tmp_path, **more)
    calls: list[Any] = []
    forward = model.model.forward
    model.model.forward = lambda *args, **inputs: calls.append(inputs) or forward(*args, **inputs)
    found = model.propose(picture(), RECORD)
    # Three names, two at once.
    assert len(calls) == (1 if make is rt_detr else 2)
    assert found and all(one.rle is None for one in found)
    for one in found:
        left, top, width, height = one.box_xywh
        assert 0 <= left < left + width <= 90.01 and 0 <= top < top + height <= 60.01


def test_a_model_with_missing_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    rt_detr(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "enc_output" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="expected the weights of a rt_detr, got none for"):
        proposer(tmp_path)
