"""Tiny models with random weights, made from configurations; nothing is downloaded. Plain folders of them for `assemble` to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    GPTNeoXConfig,
    GPTNeoXJapaneseConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    ResNetConfig,
    SiglipVisionConfig,
)

from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import RegionMask, rasterise
from rlabel.prompts.instructions import CLASSIFY
from rlabel.prompts.templates import question_text
from rlabel.regiongpt.auto import register
from rlabel.regiongpt.configuration import EfficientNetLiteConfig, RegionGPTConfig
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTImageProcessor, RegionGPTProcessor, RegionInputs

WIDTH = 32
NAMES = ("cat", "dog", "teapot", "fire hydrant", "polar bear", "wheel", "umbrella", "accordion", "goldfish", "yoke")


@cache
def _tokenizer_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "<image>", "<region>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*NAMES, *(question_text(question) for question in CLASSIFY[:8])], trainer)
    return str(bpe.to_str())


def tokenizer(
    chat_template: str | None = None, special: Sequence[str] = ("<image>", "<region>")
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 400 tokens learned from a few names and the questions."""
    from tokenizers import Tokenizer

    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(special),
    )
    if chat_template is not None:
        made.chat_template = chat_template
    return made


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def lite_config(**more: Any) -> EfficientNetLiteConfig:
    """Return the seven stages of EfficientNet-Lite, one thin block each; strides 2, 2, 4, 8, 16, 16, 32, 32, 32."""
    channels = [8, 8, 12, 12, 16, 16, 20]
    rows = [(3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 2), (3, 1, 2), (5, 2, 2), (3, 1, 2)]
    stages = [[1, kernel, stride, expansion, c] for (kernel, stride, expansion), c in zip(rows, channels, strict=True)]
    return EfficientNetLiteConfig(stem_channels=8, stages=stages, head_channels=24, **more)


_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 8,
}


def vision_config(kind: str, image_size: int = 32) -> PretrainedConfig:
    """Return a small tower: clip, siglip, dinov2, dinov2_registers (patches of 8 pixels), convnext, resnet or lite."""
    makers: dict[str, Any] = {
        "clip": lambda: CLIPVisionConfig(**_VIT, image_size=image_size),
        "siglip": lambda: SiglipVisionConfig(**_VIT, image_size=image_size),
        "dinov2": lambda: Dinov2Config(**{**_VIT, "mlp_ratio": 2}, image_size=image_size),
        "dinov2_registers": lambda: Dinov2WithRegistersConfig(
            **{**_VIT, "mlp_ratio": 2}, num_register_tokens=3, image_size=image_size
        ),
        "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], image_size=image_size),
        "resnet": lambda: ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], layer_type="basic"
        ),
        "lite": lambda: lite_config(image_size=image_size),
    }
    config = makers[kind]()
    assert isinstance(config, PretrainedConfig)
    return config


def text_config(kind: str = "llama", **more: Any) -> PretrainedConfig:
    """Return a two-layer language model: llama, qwen2 (tied head), gpt_neox or gpt_neox_japanese (its head is called embed_out)."""
    common: dict[str, Any] = {
        "vocab_size": 400, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        # Wide enough for answers to differ from region to region.
        "initializer_range": 0.25,
    }  # fmt: skip
    makers: dict[str, Any] = {
        "llama": lambda: LlamaConfig(**{**common, "num_key_value_heads": 1, "tie_word_embeddings": False, **more}),
        "qwen2": lambda: Qwen2Config(**{**common, "num_key_value_heads": 1, "tie_word_embeddings": True, **more}),
        "gpt_neox_japanese": lambda: GPTNeoXJapaneseConfig(**{**common, "tie_word_embeddings": False, **more}),
        "gpt_neox": lambda: GPTNeoXConfig(**{**common, "tie_word_embeddings": False, **more}),
    }
    config = makers[kind]()
    assert isinstance(config, PretrainedConfig)
    return config


def model(
    vision: str = "lite",
    text: str = "llama",
    seed: int = 0,
    image_size: int = 64,
    text_fields: Mapping[str, Any] | None = None,
    **more: Any,
) -> RegionGPTForConditionalGeneration:
    """Return a RegionGPT in eval mode whose regions look different to its language model. more: fields of RegionGPTConfig."""
    register()
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "vision_feature_layer": -4 if vision == "lite" else -2,
        "image_token_id": 3,
        "region_token_id": 4,
        **more,
    }
    config = RegionGPTConfig(
        vision_config=vision_config(vision, image_size),
        text_config=text_config(text, **(text_fields or {})),
        image_size_px=image_size,
        **fields,
    )
    made = RegionGPTForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "connector" in name and name.endswith("3.weight"):
                parameter.mul_(3.0)
    return made.eval()


def processor(
    made: RegionGPTForConditionalGeneration, zoom: str = "off", chat_template: str | None = None, **more: Any
) -> RegionGPTProcessor:
    """Return the processor that fits a model. more: fields of RegionGPTImageProcessor."""
    size = made.config.image_size_px
    with torch.no_grad():
        maps, image_tokens = made.encode_images(torch.zeros(1, 3, size, size))
    fields: dict[str, Any] = {"zoom_size_px": 32, **more}
    images = RegionGPTImageProcessor(image_size_px=size, mask_side=maps.shape[-1], zoom=zoom, **fields)  # type: ignore[arg-type]
    return RegionGPTProcessor(
        images,
        tokenizer(chat_template),
        num_image_tokens=image_tokens.shape[1],
        tokens_per_region=made.config.prompt_tokens_per_region,
    )


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return uint8 (height, width, 3): coarse random tiles, so that neighbouring regions differ."""
    random = np.random.default_rng(seed)
    tiles = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return np.ascontiguousarray(tiles.repeat(8, 0).repeat(8, 1)[:height, :width])


def box_mask(height: int, width: int, x: float, y: float, w: float, h: float) -> RegionMask:
    return rasterise(None, (x, y, w, h), height, width, Limits())


def mask_of(mask_HW: NDArray[np.bool_]) -> RegionMask:
    """Return the region of a mask, by way of its RLE as a corpus gives it."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return rasterise({"size": list(rle["size"]), "counts": rle["counts"].decode()}, None, *mask_HW.shape, Limits())


def aligned(loaded: RegionGPTForConditionalGeneration) -> RegionGPTForConditionalGeneration:
    """Return a model whose weights lie as fresh ones do: from a file they begin at 8 of 64 bytes, and there some processors sum in another order."""
    for parameter in loaded.parameters():
        parameter.data = parameter.data.clone()
    return loaded


def random_inputs(made: RegionGPTProcessor, counts: Sequence[int], seed: int = 0) -> list[RegionInputs]:
    """Return prepared images of various sizes with so many random boxes each."""
    random = np.random.default_rng(seed)
    inputs = []
    for i, count in enumerate(counts):
        height, width = int(random.integers(40, 120)), int(random.integers(40, 120))
        boxes = []
        for _ in range(count):
            w, h = random.uniform(3, width), random.uniform(3, height)
            boxes.append(box_mask(height, width, random.uniform(0, width - w), random.uniform(0, height - h), w, h))
        inputs.append(made.image_processor.prepare(picture(height, width, seed * 1000 + i), boxes))
    return inputs


def save_clip_pair(folder: Path) -> Any:
    """Write a whole tiny CLIP (text and vision); return the model."""
    from transformers import CLIPModel, CLIPTextConfig

    torch.manual_seed(1)
    text = CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    made = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision_config("clip").to_dict(), projection_dim=8)
    )
    made.save_pretrained(folder)
    return made


def save_tower(folder: Path, kind: str) -> Any:
    torch.manual_seed(2)
    made = AutoModel.from_config(vision_config(kind))
    made.save_pretrained(folder)
    return made


def save_language(folder: Path, kind: str = "llama", **more: Any) -> Any:
    """Write a tiny language model with a tokenizer that does not know `<image>` and `<region>` yet; return the model."""
    from tokenizers import Tokenizer

    torch.manual_seed(3)
    made = AutoModelForCausalLM.from_config(text_config(kind, **more))
    made.save_pretrained(folder)
    plain = _tokenizer_json().replace("<image>", "<unused-1>").replace("<region>", "<unused-2>")
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(plain), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return made
