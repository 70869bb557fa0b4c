"""What rlabel is compared with: transformers' own `generate`, a region at a time, or in padded batches. The same inputs, greedy, the same end."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlabel.labeling.engine import Engine, to_device_batch
from rlabel.regiongpt.processing import RegionInputs


def one_region(item: RegionInputs, number: int) -> RegionInputs:
    """Return the inputs of one region of an image, as if it were the image's only one."""
    crops = index = None
    if item.zoom_crops_Z4SS is not None and item.zoom_region_index_Z is not None:
        own = item.zoom_region_index_Z == number
        if bool(own.any()):
            crops = item.zoom_crops_Z4SS[own]
            index = torch.zeros(len(crops), dtype=torch.long)
    return RegionInputs(
        pixels_3SS=item.pixels_3SS,
        region_masks_RGG=item.region_masks_RGG[number : number + 1],
        zoom_crops_Z4SS=crops,
        zoom_region_index_Z=index,
    )


@torch.inference_mode()
def generate(engine: Engine, regions: Sequence[RegionInputs]) -> list[str]:
    """Return the texts of some regions, each with its picture and prompt, by one call of `generate`. The prompts are equally long; answers are padded."""
    ids = [*engine.prompt.prefix_ids, *engine.prompt.suffix_ids]
    ids_BT = torch.tensor([ids] * len(regions), device=engine.device)
    batch = to_device_batch(regions, engine.processor, engine.device)
    stops = engine.processor.stop_ids
    new_BT = engine.model.generate(
        ids_BT,
        pixel_values=batch.pixels_B3SS,
        region_masks=batch.region_masks_RGG,
        region_image_index=batch.region_image_index_R,
        zoom_pixels=batch.zoom_pixels_Z3SS,
        zoom_masks=batch.zoom_masks_ZSS,
        zoom_region_index=batch.zoom_region_index_Z,
        do_sample=False,
        max_new_tokens=engine.options.max_new_tokens,
        eos_token_id=list(stops),
        pad_token_id=engine.processor.tokenizer.eos_token_id,
    )
    texts = []
    for row in new_BT.tolist():
        end = next((place for place, token in enumerate(row) if token in stops), len(row))
        texts.append(engine.processor.decode_answer(row[:end]))
    return texts
