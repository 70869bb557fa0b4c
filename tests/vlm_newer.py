"""Tiny models of further families with random weights, as `vlm_factories` makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from vlm_factories import CHAT, TEXT, VIT, image_processor, siglip_vision, tokenizer

Made = tuple[Any, Any, Any, str]


def _qwen_like(kind: str) -> Made:
    special = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    made = tokenizer(special, ["<|vision_start|>", "<|vision_end|>"])
    ids = made.convert_tokens_to_ids
    images = image_processor(
        "qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil", patch_size=16,
        size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96},
    )  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {**TEXT, "vocab_size": len(made), "rope_parameters": rope}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 16,
        "num_position_embeddings": 64,
    }  # fmt: skip
    if kind == "qwen3_vl_moe":
        name, text = "Qwen3VLMoe", {**text, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        vision["deepstack_visual_indexes"] = [0]
    else:
        name = "Qwen3_5"
        text |= {
            "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "linear_num_key_heads": 2, "linear_num_value_heads": 2,
            "rope_parameters": {**rope, "partial_rotary_factor": 1.0},
        }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    )  # fmt: skip
    chat = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return config, (images, made), {"class": "Qwen3VLProcessor"}, chat


def _glm(kind: str) -> Made:
    special = {"image_token": "<|image|>", "video_token": "<|video|>"}
    more = ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    made = tokenizer(special, more)
    ids = made.convert_tokens_to_ids
    images = image_processor(
        "glm4v.image_processing_pil_glm4v", "Glm4vImageProcessorPil", patch_size=14,
        size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84},
    )  # fmt: skip
    text: dict[str, Any] = {
        **TEXT, "vocab_size": len(made),
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
    }  # fmt: skip
    if kind == "glm4v_moe":
        text |= {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
        }
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14, "image_size": 56,
    }  # fmt: skip
    name = {"glm4v": "Glm4v", "glm4v_moe": "Glm4vMoe", "glm46v": "Glm46V"}[kind]
    if kind == "glm46v":
        text["model_type"], vision["model_type"] = "glm4v_text", "glm4v_vision"
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=vision, image_token_id=ids("<|image|>"), video_token_id=ids("<|video|>"),
        image_start_token_id=ids(more[0]), image_end_token_id=ids(more[1]), video_start_token_id=ids(more[2]),
        video_end_token_id=ids(more[3]), tie_word_embeddings=False,
    )  # fmt: skip
    processor = "Glm46VProcessor" if kind == "glm46v" else "Glm4vProcessor"
    return (
        config,
        (images, made),
        {"class": processor},
        CHAT.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>"),
    )


def _pixtral(kind: str) -> Made:
    made = tokenizer({"image_token": "[IMG]"}, ["[IMG_BREAK]", "[IMG_END]"])
    merge = 2 if kind == "mistral3" else 1
    images = image_processor(
        "pixtral.image_processing_pil_pixtral",
        "PixtralImageProcessorPil",
        patch_size={"height": 8 * merge, "width": 8 * merge},
        size={"longest_edge": 64},
    )
    vision = {"model_type": "pixtral", **VIT, "image_size": 64, "patch_size": 8, "head_dim": 16}
    text = {"model_type": "mistral", **TEXT, "vocab_size": len(made), "sliding_window": None}
    image = made.convert_tokens_to_ids("[IMG]")
    fields = {"class": "PixtralProcessor", "patch_size": 8, "spatial_merge_size": merge}
    if kind == "mistral3":
        config: Any = transformers.Mistral3Config(
            vision_config=vision,
            text_config=text,
            image_token_index=image,
            spatial_merge_size=merge,
            tie_word_embeddings=False,
        )
    else:
        config = transformers.LlavaConfig(
            vision_config=vision, text_config=text, image_token_id=image, vision_feature_layer=-1,
            vision_feature_select_strategy="full", tie_word_embeddings=False,
        )  # fmt: skip
    return config, (images, made), fields, CHAT.replace("IMAGE", "[IMG]")


def _aya() -> Made:
    more = [
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE_GLOBAL",
        *(f"TILE_{i}" for i in range(1, 5)),
    ]
    made = tokenizer({"image_token": "<image>"}, more)
    images = image_processor(
        "got_ocr2.image_processing_pil_got_ocr2", "GotOcr2ImageProcessorPil", size={"height": 28, "width": 28},
        crop_to_patches=True, min_patches=1, max_patches=3,
    )  # fmt: skip
    config = transformers.AyaVisionConfig(
        vision_config={**siglip_vision(vision_use_head=False), "patch_size": 7}, text_config=_cohere2(made), downsample_factor=2,
        image_token_index=made.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )  # fmt: skip
    fields = {"class": "AyaVisionProcessor", "patch_size": 7, "img_size": 28, "downsample_factor": 2}
    return config, (images, made), fields, CHAT.replace("IMAGE", "<image>")


def _cohere2(made: Any) -> dict[str, Any]:
    layers = ["sliding_attention", "full_attention"]
    return {"model_type": "cohere2", **TEXT, "vocab_size": len(made), "sliding_window": 64, "layer_types": layers}


def _ovis2() -> Made:
    tags = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    made = tokenizer({"image_token": "<image>"}, ["<IMG_ATOM>", *tags])
    ids = made.convert_tokens_to_ids
    images = image_processor(
        "ovis2.image_processing_pil_ovis2", "Ovis2ImageProcessorPil", size={"height": 28, "width": 28}, max_patches=2
    )
    vision = {**VIT, "image_size": 28, "patch_size": 7, "hidden_stride": 2, "vocab_size": 64}
    text = {"model_type": "qwen2", **TEXT, "vocab_size": len(made)}
    config = transformers.Ovis2Config(
        vision_config=vision, text_config=text, image_token_id=ids("<IMG_ATOM>"), visual_indicator_token_ids=[ids(tag) for tag in tags],
        vocab_size=len(made), hidden_size=32, tie_word_embeddings=False,
    )  # fmt: skip
    return config, (images, made), {"class": "Ovis2Processor", "image_seq_length": 4}, CHAT.replace("IMAGE", "<image>")


def _idefics2() -> Made:
    made = tokenizer(
        {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}, ["<end_of_utterance>"]
    )
    images = image_processor(
        "idefics2.image_processing_pil_idefics2", "Idefics2ImageProcessorPil", size={"shortest_edge": 28, "longest_edge": 56},
        do_image_splitting=False,
    )  # fmt: skip
    text = {"model_type": "mistral", **TEXT, "vocab_size": len(made), "sliding_window": None}
    config = transformers.Idefics2Config(
        vision_config={**VIT, "image_size": 56, "patch_size": 14}, text_config=text, image_token_id=made.convert_tokens_to_ids("<image>"),
        perceiver_config={
            "resampler_n_latents": 3, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16, "num_key_value_heads": 1,
            "hidden_size": 32,
        },
        tie_word_embeddings=False,
    )  # fmt: skip
    return config, (images, made), {"class": "Idefics2Processor", "image_seq_len": 3}, CHAT.replace("IMAGE", "<image>")


def _mllama() -> Made:
    made = tokenizer({"image_token": "<|image|>"}, ["<|python_tag|>"])
    images = image_processor(
        "mllama.image_processing_pil_mllama",
        "MllamaImageProcessorPil",
        size={"height": 28, "width": 28},
        max_image_tiles=2,
    )
    text = {**TEXT, "vocab_size": len(made) - 1, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    config = transformers.MllamaConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2, "image_size": 28,
            "patch_size": 14, "max_num_tiles": 2, "vision_output_dim": 64, "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config=text, image_token_index=made.convert_tokens_to_ids("<|image|>"),
    )  # fmt: skip
    return config, (images, made), {"class": "MllamaProcessor"}, CHAT.replace("IMAGE", "<|image|>")


NEEDS_TORCHVISION = ("mistral3", "pixtral")
NEWER: dict[str, Callable[[], Made]] = {
    "qwen3_vl_moe": lambda: _qwen_like("qwen3_vl_moe"),
    "qwen3_5": lambda: _qwen_like("qwen3_5"),
    "glm4v": lambda: _glm("glm4v"),
    "glm4v_moe": lambda: _glm("glm4v_moe"),
    "glm46v": lambda: _glm("glm46v"),
    "mistral3": lambda: _pixtral("mistral3"),
    "pixtral": lambda: _pixtral("llava"),
    "aya_vision": _aya,
    "ovis2": _ovis2,
    "idefics2": _idefics2,
    "mllama": _mllama,
}
