"""Samples and batches: labeled images out of a corpus, prepared by the code that prepares for labeling, joined into tensors.

Everything random is drawn from (seed, epoch, image), so that a batch is the same whichever worker makes it and whenever.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from rlabel.corpus.coco import read_labeled
from rlabel.corpus.inputs import prepare_image
from rlabel.corpus.labeled import Format, LabeledImage, LabeledRegion
from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import RegionMask
from rlabel.corpus.open import open_labeled
from rlabel.errors import InputError
from rlabel.prompts.tasks import RegionFacts, RelationFact, draw_turns
from rlabel.prompts.templates import Turn
from rlabel.records import JsonValue
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs
from rlabel.storage import Store
from rlabel.training.augment import box_instead, change_pixels, draw_view
from rlabel.training.recipe import Augment, Stage

# How often a task's first question is asked, which is labeling's; the rest keeps the model from hanging on its wording.
_PLAIN_FIRST = 0.5
# Pictures looked at before a corpus is called unusable.
_LOOKED_AT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainCorpus:
    """Labeled images in file order, each with at least one usable region. names: of their categories by id, empty where regions have names of their own."""

    images_url: str
    images: tuple[LabeledImage, ...]
    names: dict[int, str]

    @property
    def num_regions(self) -> int:
        return sum(len(image.labels) for image in self.images)

    @property
    def all_names(self) -> list[str]:
        """Every category's name and every name that a region has of its own, once each."""
        own = (label.names[0] for image in self.images for label in image.labels if label.names)
        return list(dict.fromkeys([*self.names.values(), *own]))

    def name_of(self, label: LabeledRegion) -> str | None:
        """Return what a region is called; None where only a caption or an expression is known of it."""
        if label.category_id is not None and label.category_id in self.names:
            return self.names[label.category_id]
        return label.names[0] if label.names else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prepared image with the names of its regions, in the order of the inputs, and what is asked about them (instruct)."""

    inputs: RegionInputs
    names: tuple[str | None, ...]
    seed: int
    conversations: tuple[tuple[Turn, ...], ...] = ()


def load_corpus(
    images_url: str,
    annotations_url: str,
    limit: int | None = None,
    format: Format | Literal["auto"] = "coco",
    split: str | None = None,
) -> TrainCorpus:
    """Return the labeled, non-crowd regions of a labeled file. format, split: see `open_labeled`.

    Raises InputError when it has no categories (COCO), names a category that it does not define, or holds no usable region; also when the pictures are
    not where images_url says.
    """
    read = (
        _load_coco(images_url, annotations_url, limit)
        if format == "coco"
        else _load_other(images_url, annotations_url, limit, format, split)
    )
    if not read.images:
        raise InputError(
            f"{annotations_url}: expected at least one labeled region of a picture, got none. Check annotations and image ids."
        )
    _check_pictures(read, annotations_url)
    return read


def _load_other(
    images_url: str, annotations_url: str, limit: int | None, format: Format | Literal["auto"], split: str | None
) -> TrainCorpus:
    with open_labeled(format, annotations_url, split) as source:
        # LVIS and V3Det write words joined by underscores.
        names = {number: category.name.replace("_", " ").strip() for number, category in source.categories.items()}
        images = tuple(_without_crowds(image) for image in source.images(limit))
    images = tuple(image for image in images if image.labels and image.record.file_name)
    return TrainCorpus(images_url=images_url, images=images, names=names)


def _without_crowds(image: LabeledImage) -> LabeledImage:
    labels = tuple(label for label in image.labels if not label.region.is_crowd)
    keys = {label.region.key for label in labels}
    relations = tuple(one for one in image.relations if one.subject_key in keys and one.object_key in keys)
    record = replace(image.record, regions=tuple(label.region for label in labels))
    return replace(image, record=record, labels=labels, relations=relations)


def _load_coco(images_url: str, annotations_url: str, limit: int | None) -> TrainCorpus:
    with read_labeled(annotations_url) as corpus:
        names = _category_names(corpus.categories)
        if not names:
            raise InputError(
                f"{annotations_url}: expected a list of categories with id and name, got none. Training needs labeled regions."
            )
        if unnamed := [category_id for category_id, name in names.items() if not name]:
            raise InputError(
                f"{annotations_url}, category {unnamed[0]}: expected a name, got an empty one. Name it, or drop it and its annotations."
            )
        images = []
        for image in corpus.images(limit):
            labels = tuple(
                label for label in image.labels if not label.region.is_crowd and label.region.problem is None
            )
            for label in labels:
                if label.category_id not in names:
                    raise InputError(
                        f"{annotations_url}, annotation {label.region.region_id}: expected a category_id that the file's categories define, "
                        f"got {label.category_id}. Add the category or drop the annotation."
                    )
            if labels and image.record.file_name:
                record = replace(image.record, regions=tuple(label.region for label in labels))
                images.append(LabeledImage(record=record, labels=labels))
    return TrainCorpus(images_url=images_url, images=tuple(images), names=names)


def _category_names(categories: JsonValue) -> dict[int, str]:
    """Return {id: stripped name} of the rows that have both."""
    names: dict[int, str] = {}
    for row in categories if isinstance(categories, list) else []:
        if isinstance(row, dict):
            category_id, name = row.get("id"), row.get("name")
            if isinstance(category_id, int) and isinstance(name, str):
                names[category_id] = name.strip()
    return names


def _check_pictures(corpus: TrainCorpus, annotations_url: str) -> None:
    """Raise InputError when nothing at the head of the corpus can be used: better now than after an hour of empty batches."""
    store, limits = Store.open(corpus.images_url), Limits()
    folder = store.local_path("")
    if folder is not None and not folder.is_dir():
        raise InputError(
            f"{corpus.images_url}: no such folder. Give the folder that the file names of {annotations_url} are relative to."
        )
    first_reason = ""
    for image in corpus.images[:_LOOKED_AT]:
        prepared = prepare_image(store, image.record, limits)
        if prepared.regions:
            return
        first_reason = first_reason or prepared.failures[0].reason
    raise InputError(
        f"{annotations_url}: expected pictures in {corpus.images_url} with usable regions, got none among the first "
        f"{min(len(corpus.images), _LOOKED_AT)}; {first_reason} `rlabel validate` lists what is wrong with every row."
    )


def cap_per_category(corpus: TrainCorpus, per_category: int | None, seed: int) -> TrainCorpus:
    """Return the corpus with at most `per_category` randomly chosen regions of each category; images left empty are dropped (RegionGPT's sampling)."""
    if per_category is None:
        return corpus
    places = defaultdict(list)
    for i, image in enumerate(corpus.images):
        for j, label in enumerate(image.labels):
            places[label.category_id].append((i, j))
    random = np.random.default_rng(seed)
    kept: dict[int, list[int]] = defaultdict(list)
    for category_id in sorted(places, key=str):
        found = places[category_id]
        for k in random.permutation(len(found))[:per_category]:
            kept[found[k][0]].append(found[k][1])
    images = []
    for i in sorted(kept):
        labels = tuple(corpus.images[i].labels[j] for j in sorted(kept[i]))
        record = replace(corpus.images[i].record, regions=tuple(label.region for label in labels))
        keys = {label.region.key for label in labels}
        relations = tuple(
            one for one in corpus.images[i].relations if one.subject_key in keys and one.object_key in keys
        )
        images.append(replace(corpus.images[i], record=record, labels=labels, relations=relations))
    return replace(corpus, images=tuple(images))


class BatchDataset(Dataset[list[Sample]]):
    """Batches of one stage by number: batch b of rank r is the same bytes whoever asks, so that a run can resume at any step."""

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
        self._store: tuple[int, Store] | None = None

    @property
    def store(self) -> Store:
        """The pictures, opened by the process that reads them: drivers of object stores do not survive the fork of a loader's worker."""
        if self._store is None or self._store[0] != os.getpid():
            self._store = (os.getpid(), Store.open(self.corpus.images_url))
        return self._store[1]

    @property
    def batches_per_epoch(self) -> int:
        return self.stage.batches_per_epoch(len(self.corpus.images), self.world_size)

    def __len__(self) -> int:
        return self.stage.num_batches(len(self.corpus.images), self.world_size) - self.first_batch

    def __getitem__(self, number: int) -> list[Sample]:
        """Return the usable samples of one batch; [] where every picture of it is unusable."""
        epoch, batch = divmod(number + self.first_batch, self.batches_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.corpus.images))
        size = self.stage.images_per_batch
        start = (batch * self.world_size + self.rank) * size
        samples = [
            self.sample(int(order[i % len(order)]), epoch, self.stage.augment) for i in range(start, start + size)
        ]
        return [sample for sample in samples if sample is not None]

    def sample(self, index: int, epoch: int, augment: Augment | None) -> Sample | None:
        """Return one prepared image, or None where none of its regions can be used."""
        image = self.corpus.images[index]
        random = np.random.default_rng((self.seed, epoch, index))
        prepared = prepare_image(self.store, image.record, self.limits)
        if prepared.pixels_HWC is None or not prepared.regions:
            return None
        regions = list(prepared.regions)
        if len(regions) > self.stage.max_regions_per_image:
            chosen = sorted(random.permutation(len(regions))[: self.stage.max_regions_per_image])
            regions = [regions[i] for i in chosen]
        labels = {label.region.key: label for label in image.labels}
        own = [labels[region.region.key] for region in regions]
        names = tuple(self.corpus.name_of(label) for label in own)
        masks = [region.mask for region in regions]
        seed = int(random.integers(2**31))
        images = self.processor.image_processor
        mirrored = False
        if augment is None:
            inputs = images.prepare(prepared.pixels_HWC, masks)
        else:
            masks = [box_instead(mask, augment, random) for mask in masks]
            views = [draw_view(augment, random) for _ in masks]
            inputs = images.prepare(prepared.pixels_HWC, masks, views)
            generator = torch.Generator().manual_seed(seed)
            if inputs.zoom_crops_Z4SS is not None:
                inputs = replace(inputs, zoom_crops_Z4SS=change_pixels(inputs.zoom_crops_Z4SS, augment, generator))
            inputs, mirrored = self._changed_picture(inputs, augment, generator)
        sample = Sample(inputs=inputs, names=names, seed=seed)
        if self.stage.objective != "instruct":
            return sample
        facts = [_facts(mask, name, label, mirrored) for mask, name, label in zip(masks, names, own, strict=True)]
        place = {label.region.key: index for index, label in enumerate(own)}
        relations = [
            RelationFact(subject=place[one.subject_key], predicate=one.predicate, object=place[one.object_key])
            for one in image.relations
            if one.subject_key in place and one.object_key in place
        ]
        turns = draw_turns(facts, relations, self.stage.tasks, random, plain_first=_PLAIN_FIRST)
        one_each = self.stage.conversation == "separate"
        conversations = tuple((turn,) for turn in turns) if one_each else (tuple(turns),) if turns else ()
        return replace(sample, conversations=conversations)

    def _changed_picture(
        self, inputs: RegionInputs, augment: Augment, generator: torch.Generator
    ) -> tuple[RegionInputs, bool]:
        """Return the inputs with the whole picture changed as crops are, and whether it is mirrored: else mask pooling learns the pictures by heart."""
        images = self.processor.image_processor
        picture_14SS = F.pad(images.denormalise(inputs.pixels_3SS), (0, 0, 0, 0, 0, 1), value=255)[None]
        plain = augment.model_copy(update={"outline": 0.0, "cutout": 0.0, "edge": 0.0})
        pixels_3SS = images.normalise(change_pixels(picture_14SS, plain, generator)[0, :3])
        masks_RGG = inputs.region_masks_RGG
        mirrored = float(torch.rand((), generator=generator)) < augment.mirror
        if mirrored:
            pixels_3SS, masks_RGG = pixels_3SS.flip(-1), masks_RGG.flip(-1)
        return replace(inputs, pixels_3SS=pixels_3SS, region_masks_RGG=masks_RGG), mirrored


def _facts(mask: RegionMask, name: str | None, label: LabeledRegion, mirrored: bool) -> RegionFacts:
    """Return what conversations may say of a region, in the picture as it is shown."""
    x, y, width, height = mask.box_xywh
    left = mask.width_px - x - width if mirrored else x
    return RegionFacts(
        box_xywh=(left, y, width, height),
        area_px=mask.area_px,
        name=name,
        caption=label.caption,
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
