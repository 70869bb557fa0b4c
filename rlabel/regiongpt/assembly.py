"""Builds a fresh RegionGPT from pre-trained parts, and saves and loads models with their processor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlabel.errors import InputError
from rlabel.prompts.templates import IMAGE, REGION
from rlabel.regiongpt.auto import register
from rlabel.regiongpt.configuration import ConnectorKind, RegionGPTConfig, RegionPooling
from rlabel.regiongpt.modeling import Connector, RegionGPTForConditionalGeneration
from rlabel.regiongpt.parts import LITE2, LITE_TOWERS, TINY, add_special_tokens, load_language, load_vision
from rlabel.regiongpt.places import PlaceConnector
from rlabel.regiongpt.processing import RegionGPTImageProcessor, RegionGPTProcessor, ZoomWhich


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblyOptions:
    """How the parts are put together; None takes what suits the tower. See RegionGPTConfig and RegionGPTImageProcessor."""

    image_size_px: int | None = None
    vision_feature_layer: int | None = None
    refine: bool = True
    image_tokens_per_side: int | None = None
    merge_size: int = 1
    connector: ConnectorKind | None = None
    tokens_per_region: int = 1
    region_pooling: RegionPooling = "grid"
    place_token: bool = False
    name_map: bool = False
    name_memory: bool = False
    zoom: ZoomWhich = "off"
    zoom_size_px: int | None = None
    zoom_below_px: float = 64.0
    zoom_context: float = 0.1
    zoom_keep: float = 0.0
    zoom_more_contexts: tuple[float, ...] = ()
    zoom_pooled_weight: float = 1.0
    zoom_feature_layers: tuple[int, ...] | None = None
    seed: int = 0


def assemble(
    vision: str = LITE2,
    llm: str = TINY,
    options: AssemblyOptions = AssemblyOptions(),
    tokenizer_texts: Iterable[str] = (),
) -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]:
    """Return a RegionGPT with pre-trained tower and language model and fresh refinement and connectors; deterministic by seed."""
    register()
    torch.manual_seed(options.seed)
    tower = load_vision(vision)
    language = load_language(llm, tokenizer_texts)
    add_special_tokens(language)
    lite = vision in LITE_TOWERS
    # Stride 16 pools small regions far better than stride 32 in the Lite towers; ViTs take the second-to-last layer (RegionGPT, section 3.1).
    layer = options.vision_feature_layer if options.vision_feature_layer is not None else (-4 if lite else -2)
    zoom_layers = options.zoom_feature_layers or ((-4, -1) if lite else (layer,))
    zoom_size_px = options.zoom_size_px or (160 if lite else tower.image_size_px)
    config = RegionGPTConfig(
        vision_config=tower.tower.config,
        text_config=language.model.config,
        image_size_px=options.image_size_px or tower.image_size_px,
        vision_feature_layer=layer,
        refine=options.refine,
        image_tokens_per_side=options.image_tokens_per_side,
        merge_size=options.merge_size,
        connector=options.connector or ("separate" if options.merge_size > 1 else "shared"),
        tokens_per_region=options.tokens_per_region,
        region_pooling=options.region_pooling,
        place_token=options.place_token,
        name_map=options.name_map,
        name_memory=0 if options.name_memory else None,
        zoom_feature_layers=list(zoom_layers) if options.zoom != "off" else [],
        zoom_pooled_weight=options.zoom_pooled_weight,
        image_token_id=language.tokenizer.convert_tokens_to_ids(IMAGE),  # type: ignore[arg-type]
        region_token_id=language.tokenizer.convert_tokens_to_ids(REGION),  # type: ignore[arg-type]
    )
    torch.manual_seed(options.seed)
    model = RegionGPTForConditionalGeneration(config)
    model.vision_tower.load_state_dict(tower.tower.state_dict())
    model.language_model.load_state_dict(language.model.state_dict())
    model.language_model.generation_config = language.model.generation_config
    word_rms = float(model.get_input_embeddings().weight.detach().float().square().mean().sqrt())  # type: ignore[operator]
    for module in model.children():
        if isinstance(module, Connector | PlaceConnector):
            module.scale_output(word_rms)
    model.eval()
    maps_BCGG, image_tokens_BTD = _try_sizes(
        model, zoom_size_px, f"--vision {vision}: its own pictures have {tower.image_size_px} px a side"
    )
    images = RegionGPTImageProcessor(
        image_size_px=config.image_size_px,
        mask_side=maps_BCGG.shape[-1],
        image_mean=tower.mean,
        image_std=tower.std,
        zoom=options.zoom,
        zoom_size_px=zoom_size_px,
        zoom_below_px=options.zoom_below_px,
        zoom_context=options.zoom_context,
        zoom_keep=options.zoom_keep,
        zoom_more_contexts=options.zoom_more_contexts,
    )
    processor = RegionGPTProcessor(
        images,
        language.tokenizer,
        num_image_tokens=image_tokens_BTD.shape[1],
        tokens_per_region=config.prompt_tokens_per_region,
    )
    return model, processor


@torch.no_grad()
def _try_sizes(model: RegionGPTForConditionalGeneration, zoom_size_px: int, own: str) -> tuple[Tensor, Tensor]:
    """Return (maps_BCGG, image_tokens_BTD) of one empty picture; InputError where the tower cannot take pictures or crops of these sides."""
    name, side = "image_size_px", model.config.image_size_px
    try:
        encoded = model.encode_images(torch.zeros(1, 3, side, side))
        if model.config.zoom:
            name, side = "zoom_size_px", zoom_size_px
            model.encode_zooms(torch.zeros(1, 3, side, side), torch.ones(1, side, side))
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{name}: {own}, and it cannot take {side}: {str(error).splitlines()[0]} Leave {name} out."
        ) from error
    return encoded


def save(model: RegionGPTForConditionalGeneration, processor: RegionGPTProcessor, folder: str | Path) -> None:
    """Write a model folder: config, safetensors, processor. Refuses a model that bitsandbytes has quantized."""
    if getattr(model, "quantization_method", None) is not None or getattr(model, "is_quantized", False):
        # bitsandbytes 0.50.2 repacks nf4 weights in place at the first CPU forward; what is saved afterwards is corrupt.
        raise InputError(
            f"{folder}: a quantized model is not saved, since its weights may have been repacked. Save the unquantized one."
        )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_processor(path_or_id: str) -> RegionGPTProcessor:
    register()
    try:
        return RegionGPTProcessor.from_pretrained(path_or_id, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--model {path_or_id}: expected a folder made by `rlabel train` or `rlabel assemble` (processor_config.json beside config.json); "
            f"got: {str(error).splitlines()[0]}. Check the path."
        ) from error
