"""Two processes that train one model together, in shards, over gloo; each writes what it ends with."""

from __future__ import annotations

import math
import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import rlabel.training.loop as loop
from rlabel.training.checkpoint import save_weights
from rlabel.training.loop import TrainJob, train
from rlabel.training.objectives import TrainingStep
from rlabel.training.sharding import ShardedStep
from train_factories import Killed, Place


class Sharded(Place):
    """A place of one of two workers. What each holds of the model while it trains is written down; only the first keeps checkpoints."""

    world_size = 2
    sharded = True

    def __init__(self, folder: Path, rank: int, die_at_report: int | None = None) -> None:
        super().__init__(folder, die_at_report)
        self.rank = rank
        self.shares: list[float] = []

    def wrap(self, step: TrainingStep) -> nn.Module:
        total = sum(parameter.numel() for parameter in step.model.parameters())
        wrapped = ShardedStep(step, self.device)
        own = sum(parameter.to_local().numel() for parameter in step.model.parameters())  # type: ignore[attr-defined]
        self.shares.append(own / total)
        return wrapped

    def restore(self) -> Path | None:
        dist.barrier()
        return super().restore()

    def report(self, progress, write_checkpoint) -> None:  # type: ignore[no-untyped-def]
        super().report(progress, write_checkpoint if self.rank == 0 else None)


def work(rank: int, folder: Path, job: TrainJob, deaths: list[int]) -> None:
    """Train as rank `rank`: once undisturbed, once dying at reports."""
    torch.set_num_threads(1)
    loop._HEARTBEAT_S = math.inf
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    run = Sharded(folder / "undisturbed", rank)
    made, _ = train(job, run)
    save_weights(made.state_dict(), folder / f"undisturbed{rank}.safetensors")
    (folder / f"shares{rank}.txt").write_text(" ".join(map(str, run.shares)))
    for number in deaths:
        try:
            train(job, Sharded(folder / "killed", rank, number))
        except Killed:
            torch.rand(3)  # another process has other random numbers behind it
    made, _ = train(job, Sharded(folder / "killed", rank))
    save_weights(made.state_dict(), folder / f"killed{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    where = Path(sys.argv[2])
    work(int(sys.argv[1]), where, *pickle.loads((where / "job.pickle").read_bytes()))
