"""Labeled images to train on: one dataset or several as one, drawn by number. Rows lie in temporary files, only numbers in memory.

Opens no annotation files (`parts`) and draws nothing (`sampling`).

Legend: P parts, N images of all parts, M their regions, both in the order of parts, then of files; K images in use.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from rlabel.corpus.labeled import LabeledCategory, LabeledImage, LabeledRegion
from rlabel.corpus.packed import PackedImages
from rlabel.prompts.tasks import Task

Numbers = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]
Reals = npt.NDArray[np.float64]
Cap = int | Literal["all"]
NO_INDEX = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One labeled dataset, whole; each of its images has at least one usable region.

    name: what a mixture calls it. where: its annotations, for messages. names: of its categories by id, as they are said;
    empty where regions have names of their own. all_names: every category's name and every name that a region has of its
    own, once each. num_regions: int32, of each image. name_index: int32, the place of each region's name in all_names, or
    -1. category_index: int32, equal for regions of one category, or -1; ascending by the text of the id.
    askable: the tasks for which there is something to ask. weight, per_category, tasks: what a mixture says of it; None:
    what the stage says. vocabulary: what questions call its names, if anything.
    """

    name: str
    where: str
    images_url: str
    images: Sequence[LabeledImage]
    categories: Mapping[int, LabeledCategory]
    names: Mapping[int, str]
    all_names: tuple[str, ...]
    num_regions: Indices
    name_index: Indices
    category_index: Indices
    askable: frozenset[Task]
    weight: float = 1.0
    per_category: Cap | None = None
    tasks: Mapping[Task, float] | None = None
    vocabulary: str | None = None

    def name_of(self, label: LabeledRegion) -> str | None:
        """Return what a region is called; None where only a caption or an expression is known of it."""
        return name_of(label, self.names)


def name_of(label: LabeledRegion, names: Mapping[int, str]) -> str | None:
    """Return the name of a region's category, else the first that it has of its own, else None."""
    if label.category_id is not None and label.category_id in names:
        return names[label.category_id]
    return label.names[0] if label.names else None


def pack(
    images: Iterable[LabeledImage],
    names: Mapping[int, str],
    *,
    name: str = "dataset",
    where: str = "",
    images_url: str = "",
    categories: Mapping[int, LabeledCategory] | None = None,
) -> Part:
    """Return images as a part, one in memory at a time. Images without regions, or without a file name, are left out.

    Raises InputError when the temporary file finds no space, and what the reading of `images` raises.
    """
    packed = PackedImages()
    known = {said: place for place, said in enumerate(dict.fromkeys(names.values()))}
    categories_seen: dict[int | str, int] = {}
    num_regions, name_index, category_index = array("i"), array("i"), array("i")
    askable: set[Task] = set()
    for image in images:
        if not image.labels or not image.record.file_name:
            continue
        packed.append(image)
        num_regions.append(len(image.labels))
        for label in image.labels:
            said = name_of(label, names)
            name_index.append(NO_INDEX if said is None else known.setdefault(said, len(known)))
            key = label.category_id if label.category_id is not None else said
            category_index.append(NO_INDEX if key is None else categories_seen.setdefault(key, len(categories_seen)))
        askable |= _askable(image, names)
    packed.finish()
    # Ascending by text, as categories are gone through when they are capped. The last place is that of -1.
    rank = np.full(len(categories_seen) + 1, NO_INDEX, np.int32)
    rank[[categories_seen[key] for key in sorted(categories_seen, key=str)]] = np.arange(len(categories_seen))
    return Part(
        name=name,
        where=where,
        images_url=images_url,
        images=packed,
        categories=categories if categories is not None else {},
        names=names,
        all_names=tuple(known),
        num_regions=np.array(num_regions, np.int32),
        name_index=np.array(name_index, np.int32),
        category_index=rank[np.array(category_index, np.int32)],
        askable=frozenset(askable),
    )


def _askable(image: LabeledImage, names: Mapping[int, str]) -> set[Task]:
    found: set[Task] = set()
    several = len(image.labels) > 1
    if any(name_of(label, names) for label in image.labels):
        found |= {"classify", "classify_all"}
    if any(label.caption or label.expressions for label in image.labels):
        found.add("caption")
    if image.relations:
        found.add("relate")
    if several:
        found.add("place")
    if several and any(label.expressions or label.caption for label in image.labels):
        found.add("refer")
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainCorpus:
    """Parts as one corpus, or what a stage takes of them. The same name in two parts is one name.

    all_names: once each. first_image: int64 (P + 1), the number of each part's first image. first_region: int64 (N + 1).
    name_index: int32 (M), into all_names, or -1. numbers: int64 (K), the images in use, ascending. kept: bool (M), regions in
    use; None: all. repeats: float64 (K), how often each image comes in an epoch on average; None: once each.
    """

    parts: tuple[Part, ...]
    all_names: list[str]
    first_image: Numbers
    first_region: Numbers
    name_index: Indices
    numbers: Numbers
    kept: npt.NDArray[np.bool_] | None = None
    repeats: Reals | None = None
    images: Images = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", Images(self))

    @property
    def num_regions(self) -> int:
        return int(self.regions_of_images().sum())

    @property
    def epoch_size(self) -> int:
        """How many images an epoch draws."""
        return len(self.numbers) if self.repeats is None else max(1, round(float(self.repeats.sum())))

    def regions_of_images(self) -> Numbers:
        """Return num_regions_K: int64, how many regions in use each image in use has."""
        if self.kept is None:
            return np.diff(self.first_region)[self.numbers]
        up_to = np.concatenate([[0], np.cumsum(self.kept)])
        return up_to[self.first_region[self.numbers + 1]] - up_to[self.first_region[self.numbers]]

    def parts_of_images(self) -> Numbers:
        """Return parts_K: int64, which part each image in use is of."""
        return np.searchsorted(self.first_image, self.numbers, side="right") - 1

    def part_of(self, index: int) -> Part:
        """Return the part that image `index` of `images` is of."""
        return self.parts[int(np.searchsorted(self.first_image, self.numbers[index], side="right")) - 1]

    def image(self, index: int) -> LabeledImage:
        """Return image `index` of those in use with its regions in use, and the relations between these."""
        number = int(self.numbers[index])
        part = int(np.searchsorted(self.first_image, number, side="right")) - 1
        image = self.parts[part].images[number - int(self.first_image[part])]
        if self.kept is None:
            return image
        kept = self.kept[self.first_region[number] : self.first_region[number + 1]]
        return image if kept.all() else with_labels(image, [image.labels[place] for place in np.flatnonzero(kept)])


class Images(Sequence[LabeledImage]):
    """The images of a corpus in use, in order, each read from its file when it is asked for."""

    def __init__(self, corpus: TrainCorpus) -> None:
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self._corpus.numbers)

    @overload
    def __getitem__(self, index: int) -> LabeledImage: ...

    @overload
    def __getitem__(self, index: slice) -> list[LabeledImage]: ...

    def __getitem__(self, index: int | slice) -> LabeledImage | list[LabeledImage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._corpus.image(index)

    def __iter__(self) -> Iterator[LabeledImage]:
        return (self[i] for i in range(len(self)))


def with_labels(image: LabeledImage, labels: Sequence[LabeledRegion]) -> LabeledImage:
    """Return the image with these of its labels, and the relations between them."""
    keys = {label.region.key for label in labels}
    relations = tuple(one for one in image.relations if one.subject_key in keys and one.object_key in keys)
    record = replace(image.record, regions=tuple(label.region for label in labels))
    return replace(image, record=record, labels=tuple(labels), relations=relations)


def union(parts: Sequence[Part]) -> TrainCorpus:
    """Return parts as one corpus, all of their images in use."""
    joined: dict[str, int] = {}
    names = []
    for part in parts:
        # The last place is that of -1.
        places = [joined.setdefault(name, len(joined)) for name in part.all_names]
        names.append(np.array([*places, NO_INDEX], np.int32)[part.name_index])
    first_image = np.cumsum([0, *(len(part.images) for part in parts)], dtype=np.int64)
    first_region = np.zeros(first_image[-1] + 1, np.int64)
    np.cumsum(np.concatenate([part.num_regions for part in parts]), out=first_region[1:])
    return TrainCorpus(
        parts=tuple(parts),
        all_names=list(joined),
        first_image=first_image,
        first_region=first_region,
        name_index=np.concatenate(names),
        numbers=np.arange(first_image[-1], dtype=np.int64),
    )
