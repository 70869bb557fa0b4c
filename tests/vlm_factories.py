"""Tiny vision-language models of many families with random weights, made from configurations and saved as folders; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model_factories import box_mask, picture
from rlabel.corpus.masks import RegionMask
from rlabel.vlm import loading
from rlabel.vlm.families import PlainModel, plan_plain

CHAT = (
    "{% for message in messages %}[{{ message['role'] }}] {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
VIT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer(special: dict[str, str], tokens: Sequence[str] = ()) -> Any:
    """Return a tokenizer of single bytes. special: its named tokens (image_token, ...). tokens: further ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first = ["<pad>", "<s>", "</s>", "<unk>", *special.values(), *tokens]
    vocabulary = {token: i for i, token in enumerate([*first, *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", extra_special_tokens=dict(special)
    )  # fmt: skip
    made.add_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    return made


def image_processor(module: str, name: str, **fields: Any) -> Any:
    return getattr(__import__(f"transformers.models.{module}", fromlist=[name]), name)(**fields)


def _qwen(kind: str) -> tuple[Any, Any, Any, str]:
    special = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    made = tokenizer(special, ["<|vision_start|>", "<|vision_end|>", "<|box_start|>", "<|box_end|>"])
    ids = made.convert_tokens_to_ids
    patch = 16 if kind == "qwen3_vl" else 14
    images = image_processor(
        "qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil", patch_size=patch,
        size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84},
    )  # fmt: skip
    text = {
        **TEXT,
        "vocab_size": len(made),
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
    }
    vision: dict[str, Any] = {
        "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14},
        "qwen2_5_vl": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14,
            "window_size": 56, "fullatt_block_indexes": [1],
        },
        "qwen3_vl": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 16,
            "deepstack_visual_indexes": [0], "num_position_embeddings": 64,
        },
    }[kind]  # fmt: skip
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    )  # fmt: skip
    chat = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return config, (images, made), {"class": f"{name}Processor"}, chat


def _clip_vision(**more: Any) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **VIT, "image_size": 28, "patch_size": 14, "projection_dim": 32, **more}


def siglip_vision(**more: Any) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", **VIT, "image_size": 28, "patch_size": 14, **more}


def _llama(made: Any) -> dict[str, Any]:
    return {"model_type": "llama", **TEXT, "vocab_size": len(made)}


def _llava(kind: str) -> tuple[Any, Any, Any, str]:
    special = {"image_token": "<image>", "video_token": "<video>"}
    made = tokenizer(special)
    image = made.convert_tokens_to_ids("<image>")
    sizes: dict[str, Any] = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    if kind == "llava":
        images = image_processor("llava.image_processing_pil_llava", "LlavaImageProcessorPil", **sizes)
        config: Any = transformers.LlavaConfig(
            vision_config=_clip_vision(), text_config=_llama(made), image_token_id=image, vision_feature_layer=-1
        )
        fields = {
            "class": "LlavaProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        }
    elif kind == "llava_next":
        grid = [[28, 56], [56, 28], [56, 56]]
        images = image_processor(
            "llava_next.image_processing_pil_llava_next",
            "LlavaNextImageProcessorPil",
            image_grid_pinpoints=grid,
            **sizes,
        )
        config = transformers.LlavaNextConfig(
            vision_config=_clip_vision(),
            text_config=_llama(made),
            image_token_id=image,
            vision_feature_layer=-1,
            image_grid_pinpoints=grid,
        )
        fields = {
            "class": "LlavaNextProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        }
    else:
        grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
        images = image_processor(
            "llava_onevision.image_processing_pil_llava_onevision", "LlavaOnevisionImageProcessorPil", image_grid_pinpoints=grid,
            size={"height": 28, "width": 28},
        )  # fmt: skip
        config = transformers.LlavaOnevisionConfig(
            vision_config=siglip_vision(vision_use_head=False), text_config={**_llama(made), "model_type": "qwen2"}, image_token_id=image,
            video_token_id=made.convert_tokens_to_ids("<video>"), vision_feature_layer=-1, image_grid_pinpoints=grid,
        )  # fmt: skip
        fields = {"class": "LlavaOnevisionProcessor", "num_image_tokens": 4, "vision_feature_select_strategy": "full"}
    return config, (images, made), fields, CHAT.replace("IMAGE", "<image>")


def _internvl() -> tuple[Any, Any, Any, str]:
    special = {
        "context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>",
    }  # fmt: skip
    made = tokenizer(special, ["<box>", "</box>"])
    for name, token in special.items():
        setattr(made, f"{name}_id", made.convert_tokens_to_ids(token))
    images = image_processor(
        "got_ocr2.image_processing_pil_got_ocr2", "GotOcr2ImageProcessorPil", size={"height": 28, "width": 28},
        crop_to_patches=True, min_patches=1, max_patches=3,
    )  # fmt: skip
    vision = {**VIT, "image_size": [28, 28], "patch_size": [7, 7]}
    config = transformers.InternVLConfig(
        vision_config=vision, text_config={**_llama(made), "model_type": "qwen2"}, image_token_id=made.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    return (
        config,
        (images, made),
        {"class": "InternVLProcessor", "image_seq_length": 4},
        CHAT.replace("IMAGE", "<IMG_CONTEXT>"),
    )


def _idefics3(kind: str) -> tuple[Any, Any, Any, str]:
    special = {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }  # fmt: skip
    made = tokenizer(special, [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)])
    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
    images = image_processor(
        f"{kind}.image_processing_pil_{kind}", f"{name}ImageProcessorPil", size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
    )  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        vision_config={**VIT, "image_size": 28, "patch_size": 7}, text_config=_llama(made), image_token_id=made.convert_tokens_to_ids("<image>"),
        scale_factor=2, tie_word_embeddings=False,
    )  # fmt: skip
    return config, (images, made), {"class": f"{name}Processor", "image_seq_len": 4}, CHAT.replace("IMAGE", "<image>")


def _gemma3() -> tuple[Any, Any, Any, str]:
    special = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    made = tokenizer(special)
    images = image_processor(
        "gemma3.image_processing_pil_gemma3", "Gemma3ImageProcessorPil", size={"height": 28, "width": 28}
    )
    ids = made.convert_tokens_to_ids
    text = {
        **TEXT, "vocab_size": len(made), "query_pre_attn_scalar": 16, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**VIT, "image_size": 28, "patch_size": 7}, mm_tokens_per_image=4,
        image_token_id=ids("<image_soft_token>"), boi_token_id=ids("<start_of_image>"), eoi_token_id=ids("<end_of_image>"),
    )  # fmt: skip
    return (
        config,
        (images, made),
        {"class": "Gemma3Processor", "image_seq_length": 4},
        CHAT.replace("IMAGE", "<start_of_image>"),
    )


def _paligemma() -> tuple[Any, Any, Any, str]:
    made = tokenizer({"image_token": "<image>"}, [f"<loc{i:04d}>" for i in range(1024)])
    images = image_processor(
        "siglip.image_processing_pil_siglip", "SiglipImageProcessorPil", size={"height": 28, "width": 28}
    )
    images.image_seq_length = 4
    text = {"model_type": "gemma", **TEXT, "vocab_size": len(made) + 128, "hidden_activation": "gelu_pytorch_tanh"}
    config = transformers.PaliGemmaConfig(
        vision_config=siglip_vision(vision_use_head=False), text_config=text, image_token_index=made.convert_tokens_to_ids("<image>"),
        projection_dim=32, hidden_size=32,
    )  # fmt: skip
    return config, (images, made), {"class": "PaliGemmaProcessor"}, ""


def _florence2() -> tuple[Any, Any, Any, str]:
    made = tokenizer({"image_token": "<image>"}, [f"<loc_{i}>" for i in range(1000)])
    images = image_processor(
        "clip.image_processing_pil_clip",
        "CLIPImageProcessorPil",
        size={"height": 64, "width": 64},
        do_center_crop=False,
    )
    images.image_seq_length = 5
    vision = {
        "depths": [1, 1, 1, 1], "embed_dim": [8, 16, 16, 32], "num_heads": [1, 1, 1, 2], "num_groups": [1, 1, 1, 2], "window_size": 4,
        "projection_dim": 32, "max_position_embeddings": 10,
    }  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": len(made), "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
    }  # fmt: skip
    config = transformers.Florence2Config(
        vision_config=vision, text_config=text, image_token_id=made.convert_tokens_to_ids("<image>")
    )
    return config, (images, made), {"class": "Florence2Processor"}, ""


def _kosmos2() -> tuple[Any, Any, Any, str]:
    made = tokenizer({}, [])
    images = image_processor(
        "clip.image_processing_pil_clip",
        "CLIPImageProcessorPil",
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
    )
    text = {
        "vocab_size": 2048, "embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {**VIT, "image_size": 28, "patch_size": 14}
    config = transformers.Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=64)
    return config, (images, made), {"class": "Kosmos2Processor", "num_patch_index_tokens": 1024}, ""


MAKERS: dict[str, Callable[[], tuple[Any, Any, Any, str]]] = {
    "qwen2_vl": lambda: _qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: _qwen("qwen2_5_vl"),
    "qwen3_vl": lambda: _qwen("qwen3_vl"),
    "internvl": _internvl,
    "llava": lambda: _llava("llava"),
    "llava_next": lambda: _llava("llava_next"),
    "llava_onevision": lambda: _llava("llava_onevision"),
    "idefics3": lambda: _idefics3("idefics3"),
    "smolvlm": lambda: _idefics3("smolvlm"),
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "florence2": _florence2,
    "kosmos2": _kosmos2,
}


def save(
    folder: Path, kind: str, seed: int = 0, makers: dict[str, Callable[[], tuple[Any, Any, Any, str]]] = MAKERS
) -> Path:
    """Write a tiny model of a kind with its processor into a folder; return the folder."""
    config, (images, made), fields, chat = makers[kind]()
    torch.manual_seed(seed)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        # Wide enough for answers to differ from region to region.
        for name, parameter in model.named_parameters():
            if name.endswith("attn_gate") or name.endswith(
                "mlp_gate"
            ):  # closed at first: nothing of a picture would come through
                parameter.fill_(1.0)
            elif parameter.ndim > 1:
                parameter.normal_(0.0, 0.3 if "lm_head" in name or "embed_tokens" in name else 0.15)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    images.save_pretrained(folder)
    name = fields.pop("class")
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": name, **fields}))
    if chat:
        (folder / "chat_template.jinja").write_text(chat)
    return folder


def regions(height: int = 60, width: int = 90) -> tuple[np.ndarray, list[RegionMask]]:
    """Return a picture of coarse tiles and six boxes in it, of sizes that are written with one, two or three digits."""
    boxes = [(0, 0, 30, 20), (10, 5, 60, 50), (50, 30, 40, 30), (2, 3, 5, 4), (70, 8, 15, 44), (0, 0, width, height)]
    return picture(height, width, 3), [box_mask(height, width, *box) for box in boxes]


def plan(model_type: str, **settings: Any) -> PlainModel:
    from rlabel.config import LabelSettings

    given: dict[str, Any] = {
        "images": "i",
        "regions": "r",
        "out": "o",
        "vocabulary": "v",
        "crop_px": 56,
        "picture_px": 128,
        **settings,
    }
    return plan_plain(LabelSettings(**given), model_type)


def loaded(folder: Path, **more: Any) -> Any:
    from rlabel.regiongpt.quantization import Precision

    return loading.load_model(folder, Precision(**more), "cpu")


def kept_models(folder_of: Callable[[str], Path]) -> Callable[[str], tuple[Any, Any]]:
    """Return a function that gives (model, processor) of a kind, each made once. folder_of: a new folder for a kind."""

    @cache
    def get(kind: str) -> tuple[Any, Any]:
        folder = save(folder_of(kind), kind)
        return loaded(folder), loading.load_processor(folder)

    return get
