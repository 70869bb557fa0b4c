"""Samples and batches: labeled images out of a corpus, prepared by the code that prepares for labeling.

Everything random is drawn from (seed, epoch, image), so that a batch is the same whichever worker makes it and whenever.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from rlabel.corpus.inputs import PreparedImage, prepare_image
from rlabel.corpus.isolation import shared_decoders
from rlabel.corpus.labeled import LabeledImage, LabeledRegion
from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import RegionMask
from rlabel.corpus.picture import LargePicture, PixelsHWC, Sight
from rlabel.prompts.tasks import RegionFacts, RelationFact, draw_turns
from rlabel.prompts.templates import Turn
from rlabel.records import Region
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs
from rlabel.storage import Store
from rlabel.training.augment import change_pixels, draw_view
from rlabel.training.corpus import Numbers, Part, TrainCorpus
from rlabel.training.other_masks import other_mask
from rlabel.training.paste import Cut, is_worth_cutting, paste
from rlabel.training.recipe import Augment, Stage
from rlabel.training.sampling import epoch_order

# How often a task's first question is asked, which is labeling's; the rest keeps the model from hanging on its wording.
PLAIN_FIRST = 0.5
# Regions of another picture that are pasted at most; and what stands for them, since no relation is stated of them.
_MOST_PASTED = 3
_PASTED = Region(key="pasted", region_id=None, annotation_id=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prepared image with the names of its regions, in the order of the inputs; what is known of them (spell) or asked about them (instruct).

    teaches_pooled: of align, the mask-pooled parts of zoomed regions learn from its batch.
    """

    inputs: RegionInputs
    names: tuple[str | None, ...]
    seed: int
    facts: tuple[RegionFacts, ...] = ()
    conversations: tuple[tuple[Turn, ...], ...] = ()
    teaches_pooled: bool = True


class Batch(list[Sample]):
    """The usable samples of a batch. unusable: of each picture of it that gave none, why, with its name."""

    unusable: tuple[str, ...] = ()


class BatchDataset(Dataset[list[Sample]]):
    """Batches of one stage by number: batch b of rank r is the same bytes whoever asks, so that a run can resume at any step.

    Pictures are decoded in processes of their own: one that crashes its decoder is unusable as any other bad one is.
    """

    def __init__(
        self, corpus: TrainCorpus, processor: RegionGPTProcessor, stage: Stage, seed: int, rank: int, world_size: int
    ) -> None:
        self.corpus = corpus
        self.processor = processor
        self.stage = stage
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.limits = Limits()
        self.first_batch = 0
        self._unusable: list[str] = []
        self._stores: tuple[int, dict[str, Store]] = (0, {})
        self._epoch: tuple[int, tuple[Numbers, Numbers]] | None = None

    def store(self, url: str) -> Store:
        """Return a folder of pictures, opened by the process that reads it: drivers of object stores do not survive the fork of a loader's worker."""
        if self._stores[0] != os.getpid():
            self._stores = (os.getpid(), {})
        if url not in self._stores[1]:
            self._stores[1][url] = Store.open(url)
        return self._stores[1][url]

    @property
    def batches_per_epoch(self) -> int:
        return self.stage.batches_per_epoch(self.corpus.epoch_size, self.world_size)

    def __len__(self) -> int:
        return self.stage.num_batches(self.corpus.epoch_size, self.world_size) - self.first_batch

    def __getitem__(self, number: int) -> Batch:
        """Return the usable samples of one batch; none where every picture of it is unusable."""
        epoch, batch = divmod(number + self.first_batch, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, epoch_order(self.corpus, self.seed, epoch))
        order, again = self._epoch[1]
        size = self.stage.images_per_batch
        start = (batch * self.world_size + self.rank) * size
        places = [i % len(order) for i in range(start, start + size)]
        draw = np.random.default_rng((self.seed, epoch, batch)).random()  # one for all ranks: they work alike
        teaches_pooled = bool(draw < self.stage.pooled_share)
        samples = [self.sample(int(order[i]), epoch, self.stage.augment, int(again[i]), teaches_pooled) for i in places]
        usable = Batch(sample for sample in samples if sample is not None)
        usable.unusable = tuple(self._unusable)
        self._unusable.clear()
        return usable

    def sample(
        self, index: int, epoch: int, augment: Augment | None, again: int = 0, teaches_pooled: bool = True
    ) -> Sample | None:
        """Return one prepared image, or None where none of its regions can be used. again: how often it came before in the epoch."""
        image, part = self.corpus.images[index], self.corpus.part_of(index)
        random = np.random.default_rng((self.seed, epoch, index, again) if again else (self.seed, epoch, index))
        images = self.processor.image_processor
        prepared = self._prepared(part, image, images.sight)
        if prepared.picture is None or not prepared.regions:
            self._unusable += [failure.reason for failure in prepared.failures[:1]]
            return None
        picture, regions = prepared.picture, _shown(prepared, image, part)
        if len(regions) > self.stage.max_regions_per_image:
            chosen = sorted(random.permutation(len(regions))[: self.stage.max_regions_per_image])
            regions = [regions[i] for i in chosen]
        if augment is not None and augment.paste and random.random() < augment.paste:
            picture, regions = self._with_pasted(index, picture, regions, random)
        own = [region.label for region in regions]
        names = tuple(region.name for region in regions)
        masks = [region.mask for region in regions]
        seed = int(random.integers(2**31))
        mirrored = False
        if augment is None:
            inputs = images.prepare(picture, masks)
        else:
            masks = [other_mask(mask, augment, random) for mask in masks]
            views = [draw_view(augment, random) for _ in masks]
            inputs = images.prepare(picture, masks, views)
            generator = torch.Generator().manual_seed(seed)
            if inputs.zoom_crops_Z4SS is not None:
                inputs = replace(inputs, zoom_crops_Z4SS=change_pixels(inputs.zoom_crops_Z4SS, augment, generator))
            zoomed = inputs.zoom_region_index_Z
            is_seen_whole = teaches_pooled or zoomed is None or len(zoomed) < len(masks)
            if is_seen_whole or self.stage.objective != "align":
                inputs, mirrored = self._changed_picture(inputs, augment, generator)
        sample = Sample(inputs=inputs, names=names, seed=seed, teaches_pooled=teaches_pooled)
        if self.stage.objective == "align":
            return sample
        facts = [_facts(mask, name, label, mirrored, seed) for mask, name, label in zip(masks, names, own, strict=True)]
        sample = replace(sample, facts=tuple(facts))
        if self.stage.objective == "spell":
            return sample
        place = {label.region.key: index for index, label in enumerate(own)}
        relations = [
            RelationFact(subject=place[one.subject_key], predicate=one.predicate, object=place[one.object_key])
            for one in image.relations
            if one.subject_key in place and one.object_key in place
        ]
        turns = draw_turns(
            facts,
            relations,
            part.tasks or self.stage.tasks,
            random,
            plain_first=PLAIN_FIRST,
            vocabulary=part.vocabulary,
        )
        one_each = self.stage.conversation == "separate"
        conversations = tuple((turn,) for turn in turns) if one_each else (tuple(turns),) if turns else ()
        return replace(sample, conversations=conversations)

    def _prepared(self, part: Part, image: LabeledImage, sight: Sight | None) -> PreparedImage:
        store, decoders = self.store(part.images_url), shared_decoders()
        return prepare_image(store, image.record, self.limits, sight=sight, decoder=decoders)

    def _with_pasted(
        self, index: int, picture: PixelsHWC | LargePicture, regions: list[_Shown], random: Generator
    ) -> tuple[PixelsHWC | LargePicture, list[_Shown]]:
        """Return the picture with up to _MOST_PASTED named regions of another one on it, and its regions as they are then: what is covered, and the new."""
        room = min(1 + int(random.integers(_MOST_PASTED)), self.stage.max_regions_per_image - len(regions))
        if len(self.corpus.images) < 2 or room < 1:
            return picture, regions
        other = (index + 1 + int(random.integers(len(self.corpus.images) - 1))) % len(self.corpus.images)
        image, part = self.corpus.images[other], self.corpus.part_of(other)
        prepared = self._prepared(part, image, None)
        other_HWC = prepared.pixels_HWC
        if other_HWC is None:
            return picture, regions
        found = [one for one in _shown(prepared, image, part) if one.name and is_worth_cutting(one.mask)]
        found = [found[i] for i in random.permutation(len(found))[:room]]
        cuts = [Cut(pixels_HWC=other_HWC, mask=one.mask) for one in found]
        pixels_HWC = picture.pixels_HWC if isinstance(picture, LargePicture) else picture
        pasted = paste(pixels_HWC, [one.mask for one in regions], cuts, random)
        left = [replace(one, mask=mask) for one, mask in zip(regions, pasted.masks, strict=True) if mask is not None]
        # Of a pasted region only the name is still true: its caption and expressions may speak of what was around it.
        laid = [
            replace(one, mask=mask, label=LabeledRegion(region=_PASTED, category_id=None, caption=None))
            for one, mask in zip(found, pasted.laid, strict=True)
            if mask is not None
        ]
        return pasted.pixels_HWC, [*left, *laid]

    def _changed_picture(
        self, inputs: RegionInputs, augment: Augment, generator: torch.Generator
    ) -> tuple[RegionInputs, bool]:
        """Return the inputs with the whole picture changed as crops are, and whether it is mirrored: else mask pooling learns the pictures by heart."""
        images = self.processor.image_processor
        picture_14SS = F.pad(images.denormalise(inputs.pixels_3SS), (0, 0, 0, 0, 0, 1), value=255)[None]
        plain = augment.model_copy(update={"outline": 0.0, "cutout": 0.0})
        pixels_3SS = images.normalise(change_pixels(picture_14SS, plain, generator)[0, :3])
        masks_RGG = inputs.region_masks_RGG
        mirrored = float(torch.rand((), generator=generator)) < augment.mirror
        if mirrored:
            pixels_3SS, masks_RGG = pixels_3SS.flip(-1), masks_RGG.flip(-1)
        return replace(inputs, pixels_3SS=pixels_3SS, region_masks_RGG=masks_RGG), mirrored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shown:
    """A region as a picture shows it."""

    mask: RegionMask
    label: LabeledRegion
    name: str | None


def _shown(prepared: PreparedImage, image: LabeledImage, part: Part) -> list[_Shown]:
    """Return the usable regions of an image with their labels."""
    labels = {label.region.key: label for label in image.labels}
    own = [(region.mask, labels[region.region.key]) for region in prepared.regions]
    return [_Shown(mask=mask, label=label, name=part.name_of(label)) for mask, label in own]


def _facts(mask: RegionMask, name: str | None, label: LabeledRegion, mirrored: bool, seed: int) -> RegionFacts:
    """Return what conversations may say of a region, in the picture as it is shown. An expression is a caption where there is no other (RegionGPT)."""
    expression = label.expressions[seed % len(label.expressions)] if label.expressions else None
    x, y, width, height = mask.box_xywh
    left = mask.width_px - x - width if mirrored else x
    return RegionFacts(
        box_xywh=(left, y, width, height),
        area_px=mask.area_px,
        name=name,
        caption=label.caption or expression,
        expressions=label.expressions,
    )


class NameDataset(Dataset[list[str]]):
    """Batches of names for `spell`, drawn evenly; batch b of rank r is the same whoever asks."""

    def __init__(self, names: Sequence[str], stage: Stage, seed: int, rank: int) -> None:
        self.names = sorted(set(names))
        self.stage = stage
        self.seed = seed
        self.rank = rank
        self.first_batch = 0

    def __len__(self) -> int:
        return self.stage.num_batches(0, 1) - self.first_batch

    def __getitem__(self, number: int) -> list[str]:
        random = np.random.default_rng((self.seed, number + self.first_batch, self.rank))
        return [self.names[i] for i in random.integers(len(self.names), size=self.stage.names_per_batch)]


def keep_samples(samples: list[Any]) -> list[Any]:
    """Collate function of a loader whose dataset makes whole batches."""
    return samples


def fade_keeps(samples: Sequence[Sample], keep: tuple[float, float]) -> Tensor:
    """Return keep_Z111: a draw for each crop of how much of its outside stays visible."""
    draws: list[Any] = []
    for sample in samples:
        if sample.inputs.zoom_crops_Z4SS is not None:
            draws.append(np.random.default_rng(sample.seed).uniform(*keep, size=len(sample.inputs.zoom_crops_Z4SS)))
    return torch.from_numpy(np.concatenate(draws)).float()[:, None, None, None]
