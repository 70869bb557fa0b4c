"""A SpatialRGPT checkpoint with random weights, and what the public code computes from it, restated from its facts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import model_factories as factory

C, D = 32, 48  # channels of the towers of model_factories, and a language model of another width
SELECT = {"siglip": "cls_patch", "clip": "patch"}
MEAN = [0.1, 0.2, 0.3]


def shapes_of_the_public_code(c: int, d: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return {folder: {tensor: shape}}, written down from the constructors of SpatialRGPT's RegionExtractor and MultimodalProjector."""
    return {
        "region_extractor": {
            "feature_refinement_module.0.weight": (c, c, 2, 2),
            "feature_refinement_module.0.bias": (c,),
            "feature_refinement_module.1.weight": (c,),
            "feature_refinement_module.1.bias": (c,),
            "feature_refinement_module.3.weight": (c, c, 2, 2),
            "feature_refinement_module.3.bias": (c,),
            "rgb_projector.weight": (d, c),
            "rgb_projector.bias": (d,),
            "depth_projector.weight": (d, c),
            "depth_projector.bias": (d,),
        },
        "mm_projector": {
            "layers.1.weight": (4 * c,),
            "layers.1.bias": (4 * c,),
            "layers.2.weight": (d, 4 * c),
            "layers.2.bias": (d,),
            "layers.4.weight": (d, d),
            "layers.4.bias": (d,),
        },
    }


def public_forward(folder: Path, tokens_NLC: Tensor, masks_RHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return (image_tokens_NTD, region_tokens_RD of picture 0): what SpatialRGPT's code computes from the tower's tokens, restated in plain calls."""
    extractor, projector = (
        {name: tensor.float() for name, tensor in load_file(folder / part / "model.safetensors").items()}
        for part in ("region_extractor", "mm_projector")
    )
    n, num_tokens, c = tokens_NLC.shape
    side = math.isqrt(num_tokens)
    x = tokens_NLC.reshape(n, side, side, c).permute(0, 3, 1, 2)
    refine = "feature_refinement_module"
    x = F.conv_transpose2d(x, extractor[f"{refine}.0.weight"], extractor[f"{refine}.0.bias"], stride=2)
    centred = x - x.mean(dim=1, keepdim=True)
    x = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    x = x * extractor[f"{refine}.1.weight"].view(1, c, 1, 1) + extractor[f"{refine}.1.bias"].view(1, c, 1, 1)
    x = F.conv_transpose2d(F.gelu(x), extractor[f"{refine}.3.weight"], extractor[f"{refine}.3.bias"], stride=2)
    x = F.gelu(x)

    scale = math.sqrt(x.shape[2] * x.shape[3] / (masks_RHW.shape[1] * masks_RHW.shape[2]))
    fine_RHW = F.interpolate(masks_RHW[None].float(), scale_factor=scale, mode="bilinear")[0]
    summed_RC = (fine_RHW[:, None] * x[0][None]).sum(dim=(2, 3))
    pooled_RC = summed_RC / (fine_RHW.sum(dim=(1, 2)) + 1e-8)[:, None]
    regions_RD = F.linear(pooled_RC, extractor["rgb_projector.weight"], extractor["rgb_projector.bias"])

    coarse = F.adaptive_avg_pool2d(x, 27)
    padded = torch.zeros(n, c, 28, 28)
    padded[:, :, :27, :27] = coarse
    blocks = []
    for column in range(0, 28, 2):  # the blocks of 2 x 2 go down the columns first
        for row in range(0, 28, 2):
            corners = [padded[:, :, row + down, column + right] for down in (0, 1) for right in (0, 1)]
            blocks.append(torch.cat(corners, dim=1))
    merged = torch.stack(blocks, dim=1)
    merged = F.layer_norm(merged, (4 * c,), projector["layers.1.weight"], projector["layers.1.bias"])
    hidden = F.gelu(F.linear(merged, projector["layers.2.weight"], projector["layers.2.bias"]))
    return F.linear(hidden, projector["layers.4.weight"], projector["layers.4.bias"]), regions_RD


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document))


def edit_json(path: Path, **fields: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **fields})


def make_checkpoint(folder: Path, vision: str = "siglip", dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint as SpatialRGPT's save_pretrained lays it out, with random weights."""
    factory.save_tower(folder / "vision_tower", vision)
    processor = {"image_processor_type": "CLIPImageProcessor", "image_mean": MEAN, "image_std": [0.4, 0.5, 0.6]}
    write_json(folder / "vision_tower" / "preprocessor_config.json", processor)
    factory.save_language(folder / "llm", hidden_size=D)
    torch.manual_seed(4)
    for part, shapes in shapes_of_the_public_code(C, D).items():
        (folder / part).mkdir()
        # No weight of a norm is one and no bias zero: what goes to the wrong channel shows. Outputs stay near one.
        tensors = {
            name: (torch.randn(shape) / math.sqrt(shape[1]) if len(shape) > 1 else torch.randn(shape) * 0.3 + 0.5).to(
                dtype
            )
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / part / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "region_extractor" / "config.json", {"region_extractor_type": "regiongpt"})
    write_json(folder / "mm_projector" / "config.json", {"mm_projector_type": "mlp_downsample"})
    config = {
        "model_type": "llava_llama", "architectures": ["LlavaLlamaModel"], "hidden_size": D, "mm_hidden_size": C,
        "llm_cfg": {"_name_or_path": "./llm"}, "vision_tower_cfg": {}, "mm_projector_cfg": {}, "region_extractor_cfg": {},
        "enable_region": True, "enable_depth": True, "mm_vision_select_layer": -2, "mm_vision_select_feature": SELECT[vision],
        "image_aspect_ratio": "resize", "mm_use_im_start_end": False, "s2": False,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    return folder
