"""Where the training loop runs: what it asks of its place, and the plainest of places, one process and a local folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from rlabel.training.journal import Journal
from rlabel.training.objectives import TrainingStep
from rlabel.training.progress import Progress, progress_text

# Checkpoints kept on the disk.
_KEPT = 2


class Surroundings(Protocol):
    """What the loop asks of its place: who it is, how to wrap a module, where to leave progress and checkpoints."""

    rank: int
    world_size: int
    device: torch.device
    # Whether wrap shards the model, so that no worker holds all of it on its device.
    sharded: bool

    def wrap(self, step: TrainingStep) -> nn.Module: ...

    def restore(self) -> Path | None:
        """Return the folder of the newest checkpoint, or None at the beginning."""

    def report(self, progress: Progress, write_checkpoint: Callable[[Path], None] | None) -> None:
        """Take a progress line, and where given a function that writes a checkpoint into a folder; with one, every rank calls at the same steps."""


class LocalSurroundings:
    """One process, checkpoints in a local folder (none: nothing is kept), progress lines in log (progress.jsonl of that folder). Used without Ray."""

    rank = 0
    world_size = 1
    sharded = False

    def __init__(
        self,
        folder: Path | None,
        device: torch.device,
        say: Callable[[str], None] = print,
        log: Path | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.folder = folder
        log = log or (folder / "progress.jsonl" if folder else None)
        self.journal = Journal(log, tensorboard=tensorboard) if log else None
        self.device = device
        self.say = say

    def wrap(self, step: TrainingStep) -> nn.Module:
        return step

    def restore(self) -> Path | None:
        done = self._checkpoints()
        return done[-1] if done else None

    def _checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path.parent for path in self.folder.glob("checkpoint-*/trainer.json")) if self.folder else []

    def report(self, progress: Progress, write_checkpoint: Callable[[Path], None] | None) -> None:
        self.say(progress_text(progress))
        if self.journal is not None:
            self.journal.add(progress)
        if self.folder is None or write_checkpoint is None:
            return
        kept = self._checkpoints()
        number = int(kept[-1].name.removeprefix("checkpoint-")) + 1 if kept else 0
        writing = self.folder / ".writing"
        shutil.rmtree(writing, ignore_errors=True)  # of a process that was killed here
        write_checkpoint(writing)
        writing.rename(self.folder / f"checkpoint-{number:06d}")
        for old in kept[: 1 - _KEPT]:
            shutil.rmtree(old, ignore_errors=True)
