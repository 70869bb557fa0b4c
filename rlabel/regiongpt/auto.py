"""Makes transformers' Auto classes know rlabel's model types. Call `register()`; importing does nothing."""

from __future__ import annotations

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from rlabel.regiongpt.configuration import EfficientNetLiteConfig, RegionGPTConfig
from rlabel.regiongpt.efficientnet_lite import EfficientNetLiteModel
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTImageProcessor, RegionGPTProcessor


def register() -> None:
    """Register configurations, models and processors; safe to call again."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
    AutoConfig.register(RegionGPTConfig.model_type, RegionGPTConfig, exist_ok=True)
    AutoModel.register(RegionGPTConfig, RegionGPTForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(RegionGPTConfig, RegionGPTForConditionalGeneration, exist_ok=True)
    AutoImageProcessor.register(RegionGPTConfig, slow_image_processor_class=RegionGPTImageProcessor, exist_ok=True)
    AutoProcessor.register(RegionGPTConfig, RegionGPTProcessor, exist_ok=True)
