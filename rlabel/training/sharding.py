"""Sharding for models that do not fit one GPU: every worker keeps a part of each parameter, of its gradient and of the optimizer's state (torch's FSDP2).

Each layer of the language model is gathered for its own passes; everything else, the tower and the connectors, is one group that is gathered for a whole
step. So workers whose batches take different ways through the small parts still meet in the same collective calls, in the same order.

What it leaves out: the whole model must fit each worker's host memory, where it is loaded and, at the end of a stage, put together again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rlabel.errors import InputError
from rlabel.training.objectives import StepResult, TrainingStep
from rlabel.training.recipe import Stage


class ShardedStep(nn.Module):
    """A training step whose model is sharded over the workers of the default process group; stands where a step stands."""

    def __init__(self, step: TrainingStep, device: torch.device) -> None:
        super().__init__()
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for parameter in step.model.parameters():  # convolutions lie channels last, which torch 2.13 does not shard
            parameter.data = parameter.data.contiguous()
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for layer in _layers(step.model.language_model):
            fully_shard(layer, mesh=mesh)
        self.even = _EvenStep(step)
        fully_shard(self.even, mesh=mesh, reshard_after_forward=False)

    def forward(self, samples: Any) -> StepResult:
        loss, num_right, num_regions = self.even(samples)
        return StepResult(loss=loss, num_right=num_right, num_regions=num_regions)


class _EvenStep(nn.Module):
    """Makes every worker take part in the same passes and give every gradient, whatever its batch holds. Gives tuples, in which torch looks for tensors."""

    def __init__(self, step: TrainingStep) -> None:
        super().__init__()
        self.step = step
        self.num_passes = 0
        step.model.language_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Count a pass, and let its input have a gradient: by that of their inputs layers know when to share their own, in the same order everywhere."""
        self.num_passes += 1
        shown_BTD = named["inputs_embeds"]
        if torch.is_grad_enabled() and not shown_BTD.requires_grad:
            named = {**named, "inputs_embeds": shown_BTD.detach().requires_grad_()}
        return inputs, named

    def forward(self, samples: Any) -> tuple[Tensor, int, int]:
        self.num_passes = 0
        result = self.step(samples)
        loss = result.loss
        if not torch.is_grad_enabled():
            return loss, result.num_right, result.num_regions
        model = self.step.model
        for parameter in model.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                loss = loss + parameter.flatten()[:0].sum()
        if self.step.stage.objective != "align" and not self.num_passes:
            width = model.config.text_config.hidden_size
            nothing_11D = torch.zeros(1, 1, width, device=loss.device)
            loss = loss + 0 * model.language_model(inputs_embeds=nothing_11D, use_cache=False).logits.float().sum()
        return loss, result.num_right, result.num_regions


def _layers(language_model: nn.Module) -> Sequence[nn.Module]:
    """Return the layers of a language model: its longest list of modules."""
    lists = [list(module) for module in language_model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def check_shardable(stage: Stage) -> None:
    """Raise InputError for what a sharded stage cannot do."""
    for field, wrong, instead in (
        ("lora.base", stage.lora is not None and stage.lora.base == "nf4", "base none"),
        ("batch_norm", stage.batch_norm == "trained", "frozen"),
    ):
        if wrong:
            raise InputError(
                f"recipe, stage {stage.name}, {field}: --parallel fsdp cannot shard it. Use {instead}, or --parallel ddp."
            )


@contextmanager
def gathered(step: nn.Module) -> Iterator[None]:
    """Hold the tower, the connectors and the word embeddings whole while the model is used outside of a step; nothing for a step that is not sharded."""
    if not isinstance(step, ShardedStep):
        yield
        return
    step.even.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        step.even.reshard()  # type: ignore[operator]


def whole(value: Tensor) -> Tensor:
    """Return a tensor put together on the CPU where it is sharded, else as it is; every worker must call it."""
    return value.full_tensor().detach().cpu() if isinstance(value, DTensor) else value


def whole_state(state: Mapping[str, Tensor], names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return a state (or the named part of it) with every tensor whole; every worker must call it."""
    return {name: whole(state[name]) for name in (names if names is not None else state)}


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state with every tensor whole, as that of an unsharded one; every worker must call it."""
    content = optimizer.state_dict()
    state = {
        number: {key: whole(value) for key, value in one.items()} for number, one in sorted(content["state"].items())
    }
    return {**content, "state": state}


def load_optimizer_state(optimizer: torch.optim.Optimizer, content: Mapping[str, Any]) -> None:
    """Give an optimizer its state back, in shards where its parameters are; every worker must call it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {key: _like(value, parameters[number]) for key, value in one.items()}
        for number, one in sorted(content["state"].items())
    }
    optimizer.load_state_dict({**content, "state": state})


@torch.no_grad()
def put_back(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a model's named tensors earlier values, in shards where they are; every worker must call it with the same names."""
    state = model.state_dict()
    for name, value in weights.items():
        state[name].copy_(_like(value, state[name]))


def _like(value: Any, pattern: Tensor) -> Any:
    if isinstance(value, Tensor) and isinstance(pattern, DTensor) and value.shape == pattern.shape:
        return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements)
    return value


def of_rank_0(value: float, device: torch.device) -> float:
    """Return the first worker's value on all: what decides how long workers train together must not differ by a rounding."""
    if not dist.is_available() or not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def norm_of(gradients_norm: Tensor) -> Tensor:
    """Return the norm of all gradients, also of sharded ones."""
    return gradients_norm.full_tensor() if isinstance(gradients_norm, DTensor) else gradients_norm
