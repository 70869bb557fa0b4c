"""The journal of a training: JSON lines, a picture of the curves, and TensorBoard's event files where they are asked for."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from rlabel.training.progress import Progress, append_progress

CURVES, EVENTS = "curves.png", "tensorboard"
_PANEL_INCHES = (5.0, 3.0)


class Journal:
    """Keeps progress in a log of JSON lines, and beside it what people look at. One process writes it."""

    def __init__(self, log: Path, *, tensorboard: bool = False) -> None:
        self.log = log
        self.tensorboard = tensorboard
        self._writer: Any = None

    def add(self, progress: Progress) -> None:
        """Add a line; draw the curves anew at each validation and at the end of each stage."""
        append_progress(self.log, progress)
        if progress.note:
            return
        if self.tensorboard:
            self._add_events(progress)
        if progress.val_accuracy is not None or progress.is_end:
            draw_curves(self.log, self.log.with_name(CURVES))

    def _add_events(self, progress: Progress) -> None:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        if self._writer is None:
            # Two files of one second would have one name.
            suffix = f".{re.sub(r'[^A-Za-z0-9]', '-', progress.stage)}"
            self._writer = SummaryWriter(str(self.log.with_name(EVENTS)), flush_secs=10, filename_suffix=suffix)
        values = {
            "loss": progress.loss,
            "train_accuracy": progress.train_accuracy,
            "val_accuracy": progress.val_accuracy,
            "regions_per_s": progress.regions_per_s,
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"{name}/{progress.stage}", value, progress.step)
        if progress.is_end:
            # The next stage opens a file of its own; the writer works in a thread, and what it holds must be on the disk when the training ends.
            self._writer.close()
            self._writer = None


def read_progress(log: Path) -> dict[str, list[Progress]]:
    """Return the lines of a log by stage, ascending by step. Of a step that was done again after a resume the later line counts."""
    by_stage: dict[str, dict[int, Progress]] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            progress = Progress(**json.loads(line))
        except (ValueError, TypeError):
            continue  # a process that was killed in the middle of a line
        if not progress.note:
            by_stage.setdefault(progress.stage, {})[progress.step] = progress
    return {stage: [steps[step] for step in sorted(steps)] for stage, steps in by_stage.items()}


def draw_curves(log: Path, target: Path) -> None:
    """Write a PNG of loss (above) and accuracies (below) over the steps of each stage. Without a line to draw it writes nothing."""
    from matplotlib.figure import Figure

    stages = read_progress(log)
    if not stages:
        return
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(stages), 2 * height), layout="constrained")
    panels = figure.subplots(2, len(stages), squeeze=False, sharex="col")
    for (stage, lines), above, below in zip(stages.items(), *panels, strict=True):
        steps = [line.step for line in lines]
        above.plot(steps, [line.loss for line in lines], color="tab:blue")
        above.set_title(stage)
        below.plot(steps, [100 * line.train_accuracy for line in lines], color="tab:blue", label="train")
        validated = [line for line in lines if line.val_accuracy is not None]
        if validated:
            accuracies = [100 * line.val_accuracy for line in validated if line.val_accuracy is not None]
            below.plot([line.step for line in validated], accuracies, "o-", color="tab:orange", label="validation")
        if lines[-1].kept_step is not None:
            below.axvline(lines[-1].kept_step, color="tab:grey", linestyle=":", label="kept")
        below.set_xlabel("step")
        below.legend(loc="best", fontsize="small")
        for panel in (above, below):
            panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("loss")
    panels[1][0].set_ylabel("accuracy, %")
    drawing = target.with_name(f".{target.name}")
    figure.savefig(drawing, dpi=100, format="png")
    os.replace(drawing, target)  # never half a picture, whoever looks
