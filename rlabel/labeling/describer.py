"""The seam between labeling and models: what turns prepared images into answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.labeling.engine import Decoded, Engine
from rlabel.regiongpt.processing import RegionInputs


class Describer(Protocol):
    """Describes regions. `prepare` runs on CPU threads ahead of `describe`, which owns the model."""

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> Any:
        """Return the model's inputs for some regions of one image, pixels at hand."""

    def describe(self, inputs: Sequence[Any]) -> list[list[Decoded]]:
        """Return one answer a region for each of the inputs, in order."""


class RegionGPTDescriber:
    """Describes regions by a RegionGPT engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
        return inputs_of(self.engine, image, regions)

    def describe(self, inputs: Sequence[RegionInputs]) -> list[list[Decoded]]:
        return self.engine.answer(inputs)


def inputs_of(engine: Engine, image: PreparedImage, regions: Sequence[PreparedRegion]) -> RegionInputs:
    """Return an engine's inputs for some regions of one image, pixels at hand."""
    assert image.pixels_HWC is not None
    return engine.processor.image_processor.prepare(image.pixels_HWC, [region.mask for region in regions])
