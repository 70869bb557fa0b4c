"""Turns a SpatialRGPT checkpoint into a RegionGPT: its refinement and connectors exactly, its tower and language model by the loaders of `parts`.

Names, shapes and layer order are facts of SpatialRGPT's public code: llava/model/region_extractor/base_extractor.py,
llava/model/multimodal_projector/base_projector.py, llava/model/llava_arch.py (sub-folders) and llava/mm_utils.py (pictures and masks).
What this model cannot compute exactly is refused; what it does not need (depth) is listed. Reading files is `spatialrgpt_files`' affair.

Legend: C channels of the vision tower, D width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig

from rlabel.errors import InputError
from rlabel.prompts.templates import IMAGE, REGION
from rlabel.regiongpt.auto import register
from rlabel.regiongpt.configuration import RegionGPTConfig
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.parts import add_special_tokens, load_language, load_vision
from rlabel.regiongpt.processing import RegionGPTImageProcessor, RegionGPTProcessor
from rlabel.regiongpt.spatialrgpt_files import (
    Checkpoint,
    lacking_weights,
    open_checkpoint,
    other_weight_files,
    part_config,
    read_json,
)

EXTRACTOR, PROJECTOR = "region_extractor", "mm_projector"
# The region extractor averages the refined map to this side, whatever grid the tower has (base_extractor.py).
IMAGE_TOKENS_PER_SIDE = 27
MERGE_SIZE = 2
REFINED = 4  # times the tower's grid, after two deconvolutions of stride 2
# Which `mm_vision_select_feature` leaves a square grid of patches: CLIP's class token must go, SigLIP has none.
SELECT_FEATURE = {"clip_vision_model": "patch", "siglip_vision_model": "cls_patch"}
_NO_DEPTH = "rlabel's regions are made of colours alone; it has no depth input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A tensor of SpatialRGPT's layout: name ("folder/tensor"), shape, and its name in this model, or the reason why it has none."""

    name: str
    shape: tuple[int, ...]
    target: str | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedFile:
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import takes and leaves.

    vision, llm: where the tower and the language model come from; None where the checkpoint has none and nothing was named.
    missing: names that must be there and are not; nothing is converted while there are any.
    differences: what rlabel does in its own way around the weights, in sentences.
    """

    used: tuple[Weight, ...]
    unused: tuple[Weight, ...]
    unused_files: tuple[UnusedFile, ...]
    missing: tuple[str, ...]
    vision: str | None
    llm: str | None
    differences: tuple[str, ...]


def layout(channels: int, width: int) -> tuple[Weight, ...]:
    """Return every tensor of the two folders region_extractor/ ("regiongpt") and mm_projector/ ("mlp_downsample") for C = channels and D = width."""
    merged = channels * MERGE_SIZE**2
    # (module of SpatialRGPT, module of this model, shape of its weight, length of its bias); deconvolutions are (in, out, height, width).
    modules: tuple[tuple[str, str | None, tuple[int, ...], int], ...] = (
        (f"{EXTRACTOR}/feature_refinement_module.0", "refinement.0", (channels, channels, 2, 2), channels),
        (f"{EXTRACTOR}/feature_refinement_module.1", "refinement.1", (channels,), channels),
        (f"{EXTRACTOR}/feature_refinement_module.3", "refinement.3", (channels, channels, 2, 2), channels),
        (f"{EXTRACTOR}/rgb_projector", "region_connector", (width, channels), width),
        (f"{EXTRACTOR}/depth_projector", None, (width, channels), width),
        (f"{PROJECTOR}/layers.1", "connector.0", (merged,), merged),
        (f"{PROJECTOR}/layers.2", "connector.1", (width, merged), width),
        (f"{PROJECTOR}/layers.4", "connector.3", (width, width), width),
    )
    return tuple(
        Weight(
            name=f"{name}.{kind}",
            shape=shape,
            target=f"{target}.{kind}" if target else None,
            reason=None if target else _NO_DEPTH,
        )
        for name, target, weight_shape, bias in modules
        for kind, shape in (("weight", weight_shape), ("bias", (bias,)))
    )


def plan_import(folder: str | Path, vision: str | None = None, llm: str | None = None) -> ImportReport:
    """Return what an import would take and leave; only configs and the headers of weight files are read.

    vision, llm: folders or hub ids instead of the checkpoint's own vision_tower/ and llm/.
    Raises InputError when the folder is no SpatialRGPT checkpoint, or one that this model cannot represent exactly.
    """
    return _plan(folder, vision, llm)[0]


def import_spatialrgpt(
    folder: str | Path, vision: str | None = None, llm: str | None = None
) -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor, ImportReport]:
    """Return the checkpoint as a RegionGPT in eval mode with its processor, in float32, and what was taken and left.

    Raises InputError as `plan_import` does, and when weights are missing.
    """
    report, checkpoint, layer = _plan(folder, vision, llm)
    check_nothing_missing(report, folder)
    assert report.vision is not None and report.llm is not None
    register()
    tower, language = load_vision(report.vision), load_language(report.llm)
    if tower.tower.config.model_type == "clip_vision_model" and set(tower.mean) == {0.5}:
        raise InputError(
            f"--vision {report.vision}: expected preprocessor_config.json with the mean and deviation that CLIP was trained with, got none. "
            "Copy it into the folder."
        )
    add_special_tokens(language)
    config = RegionGPTConfig(
        vision_config=tower.tower.config,
        text_config=language.model.config,
        image_size_px=tower.image_size_px,
        vision_feature_layer=layer,
        refine=True,
        image_tokens_per_side=IMAGE_TOKENS_PER_SIDE,
        merge_size=MERGE_SIZE,
        image_token_order="columns",
        connector="separate-linear",
        image_token_id=language.tokenizer.convert_tokens_to_ids(IMAGE),  # type: ignore[arg-type]
        region_token_id=language.tokenizer.convert_tokens_to_ids(REGION),  # type: ignore[arg-type]
    )
    with torch.device("meta"):  # its parts are here already: at 8 B parameters a second copy matters
        model = RegionGPTForConditionalGeneration(config)
    model.vision_tower, model.language_model = tower.tower, language.model
    weights = {str(weight.target): _converted(weight, checkpoint) for weight in report.used}
    unexpected = model.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    assert not unexpected and not any(parameter.is_meta for parameter in model.parameters())
    images = RegionGPTImageProcessor(
        image_size_px=tower.image_size_px,
        mask_side=REFINED * (tower.image_size_px // tower.tower.config.patch_size),
        image_mean=tower.mean,
        image_std=tower.std,
    )
    tokens_per_side = -(-IMAGE_TOKENS_PER_SIDE // MERGE_SIZE)
    return (
        model.eval(),
        RegionGPTProcessor(images, language.tokenizer, num_image_tokens=tokens_per_side**2),
        report,
    )


def check_nothing_missing(report: ImportReport, folder: str | Path) -> None:
    """Raise InputError when weights that a model cannot do without are missing."""
    if report.missing:
        raise InputError(
            f"{folder}: expected all weights of a SpatialRGPT, {len(report.missing)} are missing: {_few(report.missing)}. "
            "Copy or download the folder again; a missing llm/ or vision_tower/ can be named by --llm or --vision."
        )


def _converted(weight: Weight, checkpoint: Checkpoint) -> Tensor:
    """Return a tensor of SpatialRGPT as this model has it, in float32 (exact from 16 bits)."""
    tensor = checkpoint.tensors[weight.name].read().to(torch.float32, copy=True)
    if weight.target in ("connector.0.weight", "connector.0.bias", "connector.1.weight"):
        # Merged channels there: row of the pixel, column, channel. Here (torch's pixel_unshuffle): channel, row, column.
        tensor = tensor.unflatten(-1, (MERGE_SIZE**2, -1)).transpose(-1, -2).flatten(-2)
    return tensor.contiguous()


def _plan(folder: str | Path, vision: str | None, llm: str | None) -> tuple[ImportReport, Checkpoint, int]:
    """Return (report, opened checkpoint, vision_feature_layer)."""
    root = Path(folder)
    checkpoint = open_checkpoint(root, (EXTRACTOR, PROJECTOR))
    layer = _check_settings(root, checkpoint)
    own_vision, own_llm = checkpoint.folders["vision_tower"], checkpoint.folders["llm"]
    vision_path, llm_path = (
        vision or (str(own_vision) if own_vision else None),
        llm or (str(own_llm) if own_llm else None),
    )
    missing = []
    channels, width = checkpoint.config.get("mm_hidden_size"), checkpoint.config.get("hidden_size")
    if vision_path is None:
        missing.append("vision_tower/ (name another by --vision)")
    else:
        tower_config = part_config("--vision", vision_path)
        tower_config = getattr(tower_config, "vision_config", tower_config)
        _check_tower(root, checkpoint.config, vision_path, tower_config, layer)
        channels = tower_config.hidden_size
        missing += lacking_weights("--vision", vision_path, lambda: AutoModel.from_config(tower_config))
    if llm_path is None:
        missing.append("llm/ (name another by --llm)")
    else:
        text_config = part_config("--llm", llm_path)
        width = getattr(text_config, "hidden_size", width)
        try:
            missing += lacking_weights("--llm", llm_path, lambda: AutoModelForCausalLM.from_config(text_config))
        except ValueError as error:
            raise InputError(
                f"--llm {llm_path}: expected a causal language model, got a {text_config.model_type}. Name another by --llm."
            ) from error
    if not _is_count(channels) or not _is_count(width):
        raise InputError(
            f"{root / 'config.json'}: expected mm_hidden_size and hidden_size, the widths of tower and language model, got {channels!r} and {width!r}. "
            "Name both parts by --vision and --llm."
        )
    weights = layout(channels, width)
    _check_shapes(root, checkpoint, weights)
    there = [weight for weight in weights if weight.name in checkpoint.tensors]
    missing += [weight.name for weight in weights if weight.target and weight.name not in checkpoint.tensors]
    unused_files = [
        UnusedFile(name=name, reason="no part of the model's four folders")
        for name in other_weight_files(root, checkpoint)
    ]
    for flag, given, own in (("--vision", vision, own_vision), ("--llm", llm, own_llm)):
        if given and own:
            unused_files.append(UnusedFile(name=f"{own.name}/", reason=f"{flag} {given} takes its place"))
    report = ImportReport(
        used=tuple(weight for weight in there if weight.target),
        unused=tuple(weight for weight in there if not weight.target),
        unused_files=tuple(unused_files),
        missing=tuple(missing),
        vision=vision_path,
        llm=llm_path,
        differences=_differences(checkpoint.config, llm_path),
    )
    return report, checkpoint, layer


def _check_settings(root: Path, checkpoint: Checkpoint) -> int:
    """Return the tower's hidden state that is used; InputError for settings whose computation this model does not have."""
    config = checkpoint.config
    asked: tuple[tuple[str, Any, Any, str], ...] = (
        (
            f"{EXTRACTOR}/config.json, region_extractor_type",
            checkpoint.part_configs[EXTRACTOR].get("region_extractor_type"),
            "regiongpt",
            "the only region extractor whose forward pass is public",
        ),
        (
            f"{PROJECTOR}/config.json, mm_projector_type",
            checkpoint.part_configs[PROJECTOR].get("mm_projector_type"),
            "mlp_downsample",
            "the projector of SpatialRGPT's models; others have other layers",
        ),
        (
            "config.json, enable_region",
            config.get("enable_region"),
            True,
            "without it the refinement is not run at all",
        ),
        ("config.json, s2", config.get("s2") or False, False, "features of several scales have no counterpart here"),
        (
            "config.json, mm_use_im_start_end",
            config.get("mm_use_im_start_end") or False,
            False,
            "rlabel puts no tokens around the image",
        ),
        (
            "config.json, image_aspect_ratio",
            config.get("image_aspect_ratio"),
            "resize",
            "rlabel squeezes pictures to a square; padded or cut ones are not what it would show this model",
        ),
    )
    for where, got, expected, why in asked:
        if got != expected or type(got) is not type(expected):
            raise InputError(
                f"{root}, {where}: expected {expected!r} ({why}), got {got!r}. This checkpoint cannot be imported exactly."
            )
    layer = config.get("mm_vision_select_layer")
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise InputError(
            f"{root}, config.json, mm_vision_select_layer: expected the number of a hidden state such as -2, got {layer!r}. "
            "Take the config.json that was saved with the weights."
        )
    return layer


def _check_tower(root: Path, config: dict[str, Any], path_or_id: str, tower: PretrainedConfig, layer: int) -> None:
    expected = SELECT_FEATURE.get(tower.model_type)
    if expected is None:
        raise InputError(
            f"--vision {path_or_id}: expected a vision tower of {' or '.join(SELECT_FEATURE)}, as SpatialRGPT's models have, got a {tower.model_type}. "
            "Name another by --vision."
        )
    if (got := config.get("mm_vision_select_feature")) != expected:
        raise InputError(
            f"{root}, config.json, mm_vision_select_feature: expected {expected!r}, which leaves the square grid of a {tower.model_type}, got {got!r}. "
            "Name the tower it was trained with by --vision."
        )
    if not -tower.num_hidden_layers - 1 <= layer <= tower.num_hidden_layers:
        raise InputError(
            f"{root}, config.json, mm_vision_select_layer: expected one of the {tower.num_hidden_layers + 1} hidden states of {path_or_id}, got {layer}. "
            "Name the tower it was trained with by --vision."
        )


def _check_shapes(root: Path, checkpoint: Checkpoint, weights: tuple[Weight, ...]) -> None:
    """Raise InputError for tensors that are not in the layout or have other shapes: they would be other computations."""
    unknown = sorted(checkpoint.tensors.keys() - {weight.name for weight in weights})
    if unknown:
        raise InputError(
            f"{root}: expected the layers of SpatialRGPT's public code, got {len(unknown)} tensors that it does not have: {_few(tuple(unknown))}. "
            "Without them the model would compute something else; this checkpoint cannot be imported."
        )
    for weight in weights:
        if weight.name in checkpoint.tensors and (got := checkpoint.tensors[weight.name].shape) != weight.shape:
            raise InputError(
                f"{root}, {weight.name}: expected {weight.shape} for this tower and language model, got {got}. "
                "Name the parts that it was trained with by --vision and --llm."
            )


def _differences(config: dict[str, Any], llm: str | None) -> tuple[str, ...]:
    sentences = [
        "Pictures: rlabel squeezes them with a bilinear filter, SpatialRGPT with a bicubic one.",
        "Masks: rlabel takes the covered share of each cell of the feature map; SpatialRGPT resizes to the picture's side by the nearest pixel, "
        "then bilinearly, and can lose masks of one or two pixels.",
        "Prompts: `<mask>` is `<region>` here, and the conversation template lies in SpatialRGPT's code, not in the checkpoint; "
        + (
            "rlabel uses the chat template of the tokenizer."
            if llm and _has_chat_template(Path(llm))
            else "the tokenizer has no chat template that rlabel could use, so it asks in plain lines."
        ),
        "Precision: weights are kept in float32; SpatialRGPT runs in 16 bits.",
    ]
    if config.get("enable_depth"):
        sentences.append(
            "Depth: the model was trained with `<depth>` tokens beside `<mask>`; it is asked without them here."
        )
    return tuple(sentences)


def _has_chat_template(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if any(folder.glob("chat_template*")):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


def _is_count(number: object) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
