"""The best of a stage by validation: when it was, the weights of then, and when waiting for a better one ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from rlabel.training.checkpoint import RunPlace
from rlabel.training.recipe import Stage


@dataclass(slots=True)
class Best:
    """What validation says of a stage so far. place: of the run, with the best step. weights: of that step, where `keep: best` may need them."""

    stage: Stage
    place: RunPlace
    weights: dict[str, Tensor] | None = None

    def take(self, accuracy: float, step: int, copy: Callable[[], dict[str, Tensor]]) -> None:
        """Take a validation. Of equals the later is kept, since it was trained longer; it is no improvement, though."""
        before = self.place.best_accuracy
        better = before is None or accuracy > before
        self.place = replace(self.place, num_stale=0 if better else self.place.num_stale + 1)
        if better or accuracy == before:
            self.place = replace(self.place, best_accuracy=accuracy, best_step=step)
            self.weights = copy() if self.stage.keep == "best" else None

    @property
    def is_waiting_in_vain(self) -> bool:
        """Whether the stage's patience is at its end."""
        return self.stage.patience is not None and self.place.num_stale >= self.stage.patience

    def kept_step(self, step: int) -> int | None:
        """Return the step whose weights a stage that ends at `step` leaves; None where nothing was validated."""
        if self.place.best_accuracy is None:
            return None
        return self.place.best_step if self.stage.keep == "best" else step


def changing(model: nn.Module) -> list[str]:
    """Return the names of what training changes: the parameters that are trained, and statistics."""
    state = model.state_dict()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [*trained, *(name for name, _ in model.named_buffers() if name in state)]
