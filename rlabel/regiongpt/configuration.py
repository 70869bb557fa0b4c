"""Configurations: RegionGPT (a vision tower and a language model as sub-configs) and the small EfficientNet-Lite tower."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from transformers import AutoConfig, PretrainedConfig

ConnectorKind = Literal["shared", "separate", "separate-linear"]
ImageTokenOrder = Literal["rows", "columns"]
RegionPooling = Literal["grid", "attention"]


class EfficientNetLiteConfig(PretrainedConfig):
    """EfficientNet-Lite: MBConv blocks without squeeze-and-excitation, ReLU6 (Tan and Le 2019; the Lite variants of TensorFlow's TPU models).

    stages: rows of (blocks, kernel, stride, expansion, channels); the defaults are Lite0, 3.4 M parameters without the classifier.
    folded: batch norms are folded into the convolutions (see `efficientnet_lite.fold`); there are none left to train or freeze.
    """

    model_type = "efficientnet_lite"

    def __init__(
        self,
        image_size: int = 224,
        stem_channels: int = 32,
        stages: list[list[int]] | None = None,
        head_channels: int = 1280,
        batch_norm_eps: float = 1e-3,
        batch_norm_momentum: float = 0.01,
        folded: bool = False,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.stem_channels = stem_channels
        self.stages = stages or [
            [1, 3, 1, 1, 16],
            [2, 3, 2, 6, 24],
            [2, 5, 2, 6, 40],
            [3, 3, 2, 6, 80],
            [3, 5, 1, 6, 112],
            [4, 5, 2, 6, 192],
            [1, 3, 1, 6, 320],
        ]
        self.head_channels = head_channels
        self.batch_norm_eps = batch_norm_eps
        self.batch_norm_momentum = batch_norm_momentum
        self.folded = folded
        super().__init__(**kwargs)

    @classmethod
    def scaled(cls, width: float, depth: float) -> EfficientNetLiteConfig:
        """Return Lite0 widened and deepened (Tan and Le 2019, section 3.3; the Lite variants keep the stem, the head and the first and last stage's depth)."""
        stages = cls().stages
        for index, stage in enumerate(stages):
            if 0 < index < len(stages) - 1:
                stage[0] = math.ceil(stage[0] * depth)
            # To a multiple of 8, and never more than a tenth below.
            channels = max(8, int(stage[4] * width + 4) // 8 * 8)
            stage[4] = channels if channels >= 0.9 * stage[4] * width else channels + 8
        return cls(stages=stages)

    @property
    def layer_channels(self) -> list[int]:
        """Channels of every feature map, in the order of hidden_states: stem, stages, head."""
        return [self.stem_channels, *(stage[4] for stage in self.stages), self.head_channels]


class RegionGPTConfig(PretrainedConfig):
    """RegionGPT (arXiv 2403.02330, section 3) with any transformers vision tower and causal language model, and zoom tokens beyond it.

    vision_feature_layer: which hidden state is pooled (-2 for ViTs in the paper).
    refine: two deconvolutions, 4x, before pooling (section 3.2); off is the paper's ablation.
    image_tokens_per_side: side of the grid of image tokens after averaging the refined map back; None: the tower's own grid.
    merge_size: m x m neighbouring image tokens are concatenated before a connector of their own (2 in SpatialRGPT's code); needs separate connectors.
    image_token_order: the grid of image tokens is read row by row, or column by column (SpatialRGPT's code).
    connector: "shared" by image and region tokens (the paper's figure), "separate", or "separate-linear": one linear layer for regions (SpatialRGPT's code).
    tokens_per_region: k >= 1; above 1 the mask is cut into a grid of k parts of equal mass, one token each (region_pooling "grid").
    region_pooling: "grid", or "attention": k learned queries attend to the cells inside the mask, one token each; they start as mask pooling.
    place_token: one more token a region tells where it lies and how large it is, which pooling forgets; off: plain RegionGPT.
    name_map: the model keeps a linear map of name embeddings that region tokens are drawn to (recipes: `decorrelate`); off: the embeddings themselves.
    name_memory: how many names the model remembers by their embeddings; region tokens are drawn to what they recall of them before the language
    model sees them, so that it need not tell names apart itself. None: no memory. Training adds the names of its data.
    name_memory_weight: of what is recalled, beside the token itself. name_memory_temperature: divides cosines before the softmax over names.
    zoom_feature_layers: hidden states of the zoomed crop whose pooled features are joined; empty: no zoom tokens, plain RegionGPT.
    zoom_pooled_weight: of the mask-pooled part in the tokens of regions that also have a crop: 1 adds both, 0 leaves them to the crop.
    """

    model_type = "regiongpt"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: PretrainedConfig | dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        image_size_px: int = 224,
        vision_feature_layer: int = -2,
        refine: bool = True,
        image_tokens_per_side: int | None = None,
        merge_size: int = 1,
        image_token_order: ImageTokenOrder = "rows",
        connector: ConnectorKind = "shared",
        tokens_per_region: int = 1,
        region_pooling: RegionPooling = "grid",
        place_token: bool = False,
        name_map: bool = False,
        name_memory: int | None = None,
        name_memory_weight: float = 1.0,
        name_memory_temperature: float = 0.05,
        zoom_feature_layers: list[int] | None = None,
        zoom_pooled_weight: float = 1.0,
        image_token_id: int = 0,
        region_token_id: int = 1,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _sub_config(vision_config, "efficientnet_lite")
        self.text_config = _sub_config(text_config, "llama")
        self.image_size_px = image_size_px
        self.vision_feature_layer = vision_feature_layer
        self.refine = refine
        self.image_tokens_per_side = image_tokens_per_side
        self.merge_size = merge_size
        self.image_token_order = image_token_order
        self.connector = connector
        self.tokens_per_region = tokens_per_region
        self.region_pooling = region_pooling
        self.place_token = place_token
        self.name_map = name_map
        self.name_memory = name_memory
        self.name_memory_weight = name_memory_weight
        self.name_memory_temperature = name_memory_temperature
        self.zoom_feature_layers = list(zoom_feature_layers or [])
        self.zoom_pooled_weight = zoom_pooled_weight
        self.image_token_id = image_token_id
        self.region_token_id = region_token_id
        if connector not in get_args(ConnectorKind):
            raise ValueError(f"config.json, connector: expected one of {get_args(ConnectorKind)}, got {connector!r}")
        if image_token_order not in get_args(ImageTokenOrder):
            raise ValueError(f"config.json, image_token_order: expected 'rows' or 'columns', got {image_token_order!r}")
        if region_pooling not in get_args(RegionPooling):
            raise ValueError(f"config.json, region_pooling: expected 'grid' or 'attention', got {region_pooling!r}")
        if name_memory_temperature <= 0:
            raise ValueError(f"config.json, name_memory_temperature: expected above 0, got {name_memory_temperature}")
        if tokens_per_region < 1:
            raise ValueError(f"config.json, tokens_per_region: expected 1 or more, got {tokens_per_region}")
        if merge_size > 1 and connector == "shared":
            raise ValueError(
                "config.json: merge_size above 1 widens the image features, so it needs connector 'separate'"
            )
        # Tying is the language model's own affair; the composite has no head of its own to tie.
        kwargs.setdefault("tie_word_embeddings", getattr(self.text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)

    @property
    def prompt_tokens_per_region(self) -> int:
        """Tokens that a region takes in a prompt."""
        return self.tokens_per_region + self.place_token

    @property
    def zoom(self) -> bool:
        return bool(self.zoom_feature_layers)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PretrainedConfig:
        return self.text_config


def _sub_config(config: PretrainedConfig | dict[str, Any] | None, default_type: str) -> PretrainedConfig:
    if isinstance(config, PretrainedConfig):
        return config
    fields = dict(config or {})
    model_type = fields.pop("model_type", default_type)
    if model_type == EfficientNetLiteConfig.model_type:
        return EfficientNetLiteConfig(**fields)
    return AutoConfig.for_model(model_type, **fields)
