"""The seam between labeling and models: what turns prepared images into answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.corpus.picture import Sight
from rlabel.labeling.continuous import ContinuousBatch
from rlabel.labeling.engine import Decoded, Engine
from rlabel.regiongpt.processing import RegionInputs


class Describer(Protocol):
    """Describes regions. `prepare` runs on CPU threads ahead of `describe`, which owns the model."""

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> Any:
        """Return the model's inputs for some regions of one image, pixels at hand."""

    def describe(self, inputs: Sequence[Any]) -> list[list[Decoded]]:
        """Return one answer a region for each of the inputs, in order."""


@runtime_checkable
class JoinableDescriber(Protocol):
    """A Describer that can let images join while it still answers others."""

    def continuous(self, most_regions: int) -> ContinuousBatch[Any] | None:
        """Return a batch that answers as `describe` does, at most so many regions at once; None where nothing could join it."""


class RegionGPTDescriber:
    """Describes regions by a RegionGPT engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
        return inputs_of(self.engine, image, regions)

    def describe(self, inputs: Sequence[RegionInputs]) -> list[list[Decoded]]:
        return self.engine.answer(inputs)

    def continuous(self, most_regions: int) -> ContinuousBatch[Any] | None:
        # A name is chosen in a few steps, most of them of many tokens: there is little to gain.
        joins = self.engine.stretches is None and self.engine.options.prefix_sharing in ("auto", "packed")
        return ContinuousBatch(self.engine, most_regions) if joins else None


def inputs_of(engine: Engine, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
    """Return an engine's inputs for some regions of one image, pixels at hand."""
    assert image.picture is not None
    return engine.processor.image_processor.prepare(image.picture, [region.mask for region in regions])


def sight_of(user: object) -> Sight | None:
    """Return what the engine of a describer or asker sees of a picture; None where it has none. It spares decoding, no more."""
    engine = getattr(user, "engine", None)
    return engine.processor.image_processor.sight if isinstance(engine, Engine) else None
