"""Progress lines of a training: measured between two lines, logged as JSON lines, told as text."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

# Reasons why pictures are unusable, each told once: in a line, and of a stage.
_REASONS_A_LINE, _MOST_REASONS = 20, 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One line of the training log: means since the line before.

    num_unusable: pictures that gave no region to train on. unusable: why, with their names, of those that no line told of before, some
    at most; of several workers what the first one met. note: what a stage does before its first step; then the means are all 0.
    kept_step: at the end of a validated stage, the step whose weights it leaves. best_accuracy: of the stage's validations so far.
    """

    stage: str
    step: int
    num_steps: int
    loss: float
    train_accuracy: float
    regions_per_s: float
    val_accuracy: float | None = None
    num_unusable: int = 0
    unusable: tuple[str, ...] = ()
    note: str = ""
    kept_step: int | None = None
    best_accuracy: float | None = None

    @property
    def is_end(self) -> bool:
        """Whether the stage ends here: with its last step, or early since validation gets no better."""
        return self.step == self.num_steps or self.kept_step is not None


class Meter:
    """Running means since the last progress line."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self.reset()

    def reset(self) -> None:
        self.losses: list[float] = []
        self.right = self.total = self.num_unusable = 0
        self._unusable: list[str] = []
        self.since = time.monotonic()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.since

    def add(self, loss: float, right: int, total: int) -> None:
        if total:
            self.losses.append(loss)
        self.right += right
        self.total += total

    def add_unusable(self, count: int, reasons: Iterable[str]) -> None:
        """Count pictures that gave nothing, and keep the reasons that are new."""
        self.num_unusable += count
        for reason in reasons:
            if len(self._unusable) < _REASONS_A_LINE and len(self._told) < _MOST_REASONS and reason not in self._told:
                self._told.add(reason)
                self._unusable.append(reason)

    def progress(self, stage: str, step: int, num_steps: int, val_accuracy: float | None) -> Progress:
        line = Progress(
            stage=stage,
            step=step,
            num_steps=num_steps,
            loss=sum(self.losses) / max(len(self.losses), 1),
            train_accuracy=self.right / max(self.total, 1),
            regions_per_s=self.total / max(self.age_s, 1e-9),
            val_accuracy=val_accuracy,
            num_unusable=self.num_unusable,
            unusable=tuple(self._unusable),
        )
        self.reset()
        return line


def progress_text(progress: Progress) -> str:
    """Return one line for a log."""
    if progress.note:
        return f"{progress.stage} {progress.step}/{progress.num_steps}  {progress.note}"
    validated = "" if progress.val_accuracy is None else f"  val {100 * progress.val_accuracy:.1f} %"
    if progress.kept_step is not None and progress.best_accuracy is not None:
        early = ", ends early" if progress.step < progress.num_steps else ""
        validated += f"  keeps step {progress.kept_step} (best val {100 * progress.best_accuracy:.1f} %){early}"
    unusable = f"  {progress.num_unusable} pictures unusable" if progress.num_unusable else ""
    if progress.unusable:
        unusable += f": {progress.unusable[0]} (rlabel validate lists all)"
    return (
        f"{progress.stage} {progress.step}/{progress.num_steps}  loss {progress.loss:.3f}  "
        f"train {100 * progress.train_accuracy:.1f} %{validated}  {progress.regions_per_s:.0f} regions/s{unusable}"
    )


def append_progress(log: Path, progress: Progress) -> None:
    """Add a line to a log of JSON lines. After a resume the steps since the last checkpoint come again: the later line counts."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(progress)) + "\n")
