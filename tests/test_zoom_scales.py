"""Several crops of a region at different margins: each is cut, and their mean is what the region shows."""

from __future__ import annotations

import torch

import model_factories
from rlabel.labeling.engine import to_device_batch
from rlabel.regiongpt.processing import RegionInputs

CPU = torch.device("cpu")


def tokens(made, processor, inputs: list[RegionInputs]) -> torch.Tensor:
    batch = to_device_batch(inputs, processor, CPU)
    maps_BCGG, _ = made.encode_images(batch.pixels_B3SS)
    return made.encode_regions(
        maps_BCGG,
        batch.region_masks_RGG,
        batch.region_image_index_R,
        batch.zoom_pixels_Z3SS,
        batch.zoom_masks_ZSS,
        batch.zoom_region_index_Z,
    )


@torch.inference_mode()
def test_a_region_shows_the_mean_of_its_crops() -> None:
    made = model_factories.model(zoom_feature_layers=[-4])
    processor = model_factories.processor(made, zoom="all")

    def inputs(context: float, more: tuple[float, ...] = ()) -> RegionInputs:
        processor.image_processor.zoom_context, processor.image_processor.zoom_more_contexts = context, list(more)
        return model_factories.random_inputs(processor, [3], seed=1)[0]

    tight, wide, both = inputs(0.1), inputs(0.8), inputs(0.1, (0.8,))
    assert both.zoom_region_index_Z is not None and both.zoom_region_index_Z.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(both.zoom_crops_Z4SS[::2], tight.zoom_crops_Z4SS)
    assert torch.equal(both.zoom_crops_Z4SS[1::2], wide.zoom_crops_Z4SS)
    mean_RKD = (tokens(made, processor, [tight]) + tokens(made, processor, [wide])) / 2
    # Regions of another picture, cropped once or not at all, are not touched by the counting.
    got_RKD = tokens(made, processor, [both, tight])
    assert torch.allclose(got_RKD[:3], mean_RKD, atol=1e-5)
    assert torch.allclose(got_RKD[3:], tokens(made, processor, [tight]), atol=1e-5)
