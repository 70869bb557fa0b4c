"""What a frozen tower sees of a corpus, kept on the disk, and the regions as patches of it: a tower's pass is paid once for many small trainings.

Legend: N pictures, B of a batch, C channels and H x W cells of a coarse map, G x G cells of a refined one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlabel.corpus.inputs import prepare_image
from rlabel.corpus.isolation import shared_decoders
from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import RegionMask
from rlabel.errors import InputError
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs
from rlabel.storage import Store
from rlabel.training.cells import Given
from rlabel.training.corpus import TrainCorpus
from rlabel.training.dataset import Sample
from rlabel.training.other_masks import box_mask, moved_edge

# RegionGPT's table takes a kernel of 5 where the picture's side is 336 px: 2 px to each side.
_REACH_PX, _REACH_SIDE_PX = 2, 336
_TOWER_BATCH = 8
_SAY_EVERY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture's usable regions: their masks, names (None: without one) and keys."""

    masks: tuple[RegionMask, ...]
    names: tuple[str | None, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenes:
    """A corpus whose pictures the tower has seen. maps_NCHW: float16, on the disk; a picture that cannot be used has zeros, and no regions."""

    scenes: tuple[Scene, ...]
    maps_NCHW: NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Patch:
    """The part of a coarse map in which a region lies. map_CHW: float16. mask_GG: float32, the region's share of each cell of the refined part."""

    map_CHW: NDArray[np.float16]
    mask_GG: NDArray[np.float32]
    name: str | None
    key: str


def cut_patches(scenes: Scenes, given: Given, mask_side: int) -> list[list[Patch]]:
    """Return each picture's regions as patches. Refinement mixes no coarse cells, so the rest of a picture changes nothing of its regions."""
    finer = mask_side // scenes.maps_NCHW.shape[-1]
    cut = []
    for scene, map_CHW in zip(scenes.scenes, scenes.maps_NCHW, strict=True):
        patches = []
        for region, name, key in zip(scene.masks, scene.names, scene.keys, strict=True):
            mask_GG = changed_mask(region, given).resample(mask_side, mask_side)
            rows, columns = _touched(mask_GG.max(1), finer), _touched(mask_GG.max(0), finer)
            part_GG = mask_GG[rows.start * finer : rows.stop * finer, columns.start * finer : columns.stop * finer]
            patches.append(Patch(map_CHW=map_CHW[:, rows, columns].copy(), mask_GG=part_GG.copy(), name=name, key=key))
        cut.append(patches)
    return cut


def _touched(cover_G: NDArray[np.float32], finer: int) -> slice:
    """Return the coarse cells from the first to the last that hold something above 0."""
    places = np.flatnonzero(cover_G) // finer
    return slice(int(places[0]), int(places[-1]) + 1)


def lay_sheets(patches: Sequence[Patch], side: int, finer: int) -> list[Sample]:
    """Return patches side by side on as few square maps as shelves of falling height need; samples whose pixels are these maps.

    side: of the coarse maps. A row of patches is as high as its first one. Half the cells are refined that whole pictures would have.
    """
    sheets: list[list[tuple[Patch, int, int]]] = []
    top = left = shelf = 0
    for patch in sorted(patches, key=lambda patch: -patch.map_CHW.shape[1]):
        height, width = patch.map_CHW.shape[1:]
        if left + width > side:
            top, left, shelf = top + shelf, 0, 0
        if not sheets or top + height > side:
            sheets.append([])
            top = left = shelf = 0
        shelf = shelf or height
        sheets[-1].append((patch, top, left))
        left += width
    return [_sheet(placed, side, finer) for placed in sheets]


def _sheet(placed: list[tuple[Patch, int, int]], side: int, finer: int) -> Sample:
    map_CHW = np.zeros((placed[0][0].map_CHW.shape[0], side, side), np.float16)
    masks_RGG = np.zeros((len(placed), side * finer, side * finer), np.float32)
    for mask_GG, (patch, top, left) in zip(masks_RGG, placed, strict=True):
        height, width = patch.map_CHW.shape[1:]
        map_CHW[:, top : top + height, left : left + width] = patch.map_CHW
        y, x = top * finer, left * finer
        mask_GG[y : y + height * finer, x : x + width * finer] = patch.mask_GG
    inputs = RegionInputs(
        pixels_3SS=torch.from_numpy(map_CHW),
        region_masks_RGG=torch.from_numpy(masks_RGG),
        zoom_crops_Z4SS=None,
        zoom_region_index_Z=None,
    )
    return Sample(inputs=inputs, names=tuple(patch.name for patch, _, _ in placed), seed=0)


def changed_mask(region: RegionMask, given: Given) -> RegionMask:
    """Return the region as it is given: itself, its box, or its mask grown or shrunk by 2 px of a picture whose longer side is 336."""
    if given == "mask":
        return region
    if given == "box":
        return box_mask(region)
    reach_px = max(1, round(_REACH_PX * max(region.height_px, region.width_px) / _REACH_SIDE_PX))
    return moved_edge(region, reach_px if given == "dilated" else -reach_px)


def look(
    corpus: TrainCorpus,
    model: RegionGPTForConditionalGeneration,
    processor: RegionGPTProcessor,
    file: Path,
    say: Callable[[str], None],
) -> Scenes:
    """Return the corpus with the tower's map of each picture, read from `file` or made and written there.

    A picture that cannot be used has a map of zeros and no regions. Raises InputError when none can.
    """
    limits, stores = Limits(), {part.images_url: Store.open(part.images_url) for part in corpus.parts}
    known = _open_maps(file, len(corpus.images))
    writing = None
    scenes: list[Scene] = []
    pending: list[tuple[int, Tensor]] = []
    said = time.monotonic()
    for index, image in enumerate(corpus.images):
        part = corpus.part_of(index)
        images = processor.image_processor
        store, decoders = stores[part.images_url], shared_decoders()
        prepared = prepare_image(store, image.record, limits, sight=images.sight, decoder=decoders)
        labels = {label.region.key: label for label in image.labels}
        own = [labels[region.region.key] for region in prepared.regions]
        scenes.append(
            Scene(
                masks=tuple(region.mask for region in prepared.regions),
                names=tuple(part.name_of(label) for label in own),
                keys=tuple(label.region.key for label in own),
            )
        )
        if known is None and prepared.picture is not None:
            pending.append((index, images.prepare(prepared.picture, ()).pixels_3SS))
        if pending and (len(pending) == _TOWER_BATCH or index == len(corpus.images) - 1):
            maps_BCHW = _coarse(model, [pixels_3SS for _, pixels_3SS in pending])
            if writing is None:
                shape = (len(corpus.images), *maps_BCHW.shape[1:])
                writing = np.lib.format.open_memmap(_part(file), "w+", np.float16, shape)
            writing[[i for i, _ in pending]] = maps_BCHW
            pending = []
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            say(f"{file.name}: {index + 1} of {len(corpus.images)} pictures")
    if not any(scene.names for scene in scenes):
        raise InputError(f"{part.images_url}: no usable region in {len(scenes)} pictures. See `rlabel validate`.")
    if writing is not None:
        writing.flush()
        _part(file).rename(file)
        known = _open_maps(file, len(scenes))
    assert known is not None
    return Scenes(scenes=tuple(scenes), maps_NCHW=known)


def _part(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}")


def _open_maps(file: Path, count: int) -> NDArray[np.float16] | None:
    if not file.is_file():
        return None
    maps_NCHW: NDArray[np.float16] = np.load(file, mmap_mode="r", allow_pickle=False)
    if maps_NCHW.ndim != 4 or len(maps_NCHW) != count:
        raise InputError(
            f"{file}: expected the maps of {count} pictures, got shape {maps_NCHW.shape}. Delete the file."
        )
    return maps_NCHW


@torch.inference_mode()
def _coarse(model: RegionGPTForConditionalGeneration, pixels: list[Tensor]) -> NDArray[np.float16]:
    device = next(model.vision_tower.parameters()).device
    maps_BCHW: NDArray[np.float16] = model.coarse_maps(torch.stack(pixels).to(device)).half().cpu().numpy()
    return maps_BCHW
