"""Models of a chosen shape from random weights: as slow as trained ones, and their answers, though gibberish, differ from region to region."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rlabel.prompts.instructions import CLASSIFY
from rlabel.prompts.templates import IMAGE, REGION, question_text
from rlabel.regiongpt.auto import register
from rlabel.regiongpt.configuration import EfficientNetLiteConfig, RegionGPTConfig
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTImageProcessor, RegionGPTProcessor

ShapeName = Literal["tiny", "135m"]
_SPECIAL = ("<pad>", "<s>", "</s>", IMAGE, REGION)
_PIECES_LEARNED = 1200
_LOUDNESS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a labeler. The tower is EfficientNet-Lite0 on 224 px; its stride-16 map gives image_tokens_per_side squared image tokens."""

    width: int
    inner_width: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    vocabulary_size: int
    image_tokens_per_side: int
    weight_std: float


SHAPES: dict[ShapeName, Shape] = {
    # The embedded labeler's, a little smaller.
    "tiny": Shape(
        width=256,
        inner_width=704,
        num_layers=4,
        num_heads=4,
        num_key_value_heads=4,
        vocabulary_size=8192,
        image_tokens_per_side=4,
        weight_std=0.06,
    ),
    # SmolLM2-135M's language model (its config.json), 196 image tokens.
    "135m": Shape(
        width=576,
        inner_width=1536,
        num_layers=30,
        num_heads=9,
        num_key_value_heads=3,
        vocabulary_size=49152,
        image_tokens_per_side=14,
        weight_std=0.05,
    ),
}


def make_model(
    shape: Shape, names: Sequence[str], seed: int = 0
) -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]:
    """Return a labeler of this shape in float32 with random weights, the same for the same seed, and its processor.

    names: what the tokenizer is learned from, so that a name takes few tokens.
    """
    register()
    tokenizer = _tokenizer(names, shape.vocabulary_size)
    torch.manual_seed(seed)
    config = RegionGPTConfig(
        vision_config=EfficientNetLiteConfig(folded=True),
        text_config=LlamaConfig(
            vocab_size=shape.vocabulary_size,
            hidden_size=shape.width,
            intermediate_size=shape.inner_width,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_key_value_heads,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            initializer_range=shape.weight_std,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        image_size_px=224,
        vision_feature_layer=-4,
        image_tokens_per_side=shape.image_tokens_per_side,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),  # type: ignore[arg-type]
        region_token_id=tokenizer.convert_tokens_to_ids(REGION),  # type: ignore[arg-type]
    )
    model = RegionGPTForConditionalGeneration(config).eval()
    for module in model.vision_tower.modules():
        # A depthwise layer's fan out counts all channels; by it, what the tower sees would fade to nothing.
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in")
    _spread(model, shape)
    with torch.no_grad():
        maps_BCGG, image_tokens_BTD = model.encode_images(torch.zeros(1, 3, 224, 224))
    images = RegionGPTImageProcessor(image_size_px=224, mask_side=maps_BCGG.shape[-1])
    return model, RegionGPTProcessor(images, tokenizer, num_image_tokens=image_tokens_BTD.shape[1])


@torch.no_grad()
def _spread(model: RegionGPTForConditionalGeneration, shape: Shape) -> None:
    """Make answers differ from region to region, and from token to token, as a trained model's do."""
    # A tied head finds again what it was given, unless half the signs are turned.
    norm_D = model.language_model.model.norm.weight
    norm_D.copy_(torch.randint(0, 2, norm_D.shape) * 2.0 - 1.0)
    # What all places of a picture have in common outweighs what sets them apart; the connector's norm takes it away.
    maps_BCGG, _ = model.encode_images(F.interpolate(torch.rand(4, 3, 28, 28) * 4.0 - 2.0, 224))
    cells_NC = F.layer_norm(maps_BCGG.permute(0, 2, 3, 1).flatten(0, 2), maps_BCGG.shape[1:2])
    std_C, mean_C = torch.std_mean(cells_NC, 0)
    norm = model.connector[0]
    assert isinstance(norm, nn.LayerNorm)
    norm.weight.copy_(1.0 / (std_C + 1e-3))
    norm.bias.copy_(-mean_C / (std_C + 1e-3))
    model.connector.scale_output(_LOUDNESS * shape.weight_std)


def _tokenizer(names: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE learned from names and questions, filled up with words to the size, so that every token a model says can be read."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, _PIECES_LEARNED),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*names, *(question_text(question) for question in CLASSIFY)], trainer)
    made = json.loads(bpe.to_str())
    pieces: dict[str, int] = made["model"]["vocab"]
    pieces.update({f"Ġword{number}": number for number in range(len(pieces), size)})
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(made)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[IMAGE, REGION],
    )
