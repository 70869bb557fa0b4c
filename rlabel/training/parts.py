"""Opens labeled datasets for training: what cannot be learned from is refused here, with file, record and remedy, before any step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from rlabel.corpus.coco import LabeledCorpus, read_labeled
from rlabel.corpus.inputs import prepare_image
from rlabel.corpus.isolation import shared_decoders
from rlabel.corpus.labeled import Format, LabeledCategory, LabeledImage, LabeledSource
from rlabel.corpus.limits import Limits
from rlabel.corpus.open import open_labeled
from rlabel.errors import InputError
from rlabel.records import JsonValue
from rlabel.storage import Store
from rlabel.training.corpus import Part, TrainCorpus, pack, union, with_labels

# Pictures looked at before a corpus is called unusable.
_LOOKED_AT = 100


def load_corpus(
    images_url: str,
    annotations_url: str,
    limit: int | None = None,
    format: Format | Literal["auto"] = "coco",
    split: str | None = None,
) -> TrainCorpus:
    """Return the labeled, non-crowd regions of one labeled file; see `read_part`."""
    part = read_part(images_url, annotations_url, limit, format, split)
    check_pictures(part)
    return union([part])


def read_part(
    images_url: str,
    annotations_url: str,
    limit: int | None = None,
    format: Format | Literal["auto"] = "coco",
    split: str | None = None,
    name: str = "dataset",
) -> Part:
    """Return the labeled, non-crowd regions of a labeled file, one image in memory at a time. format, split: see `open_labeled`.

    Raises InputError when it has no categories (COCO), names a category that it does not define, or holds no usable region.
    """
    if format == "coco":
        with read_labeled(annotations_url) as corpus:
            names = _checked_names(corpus.categories, annotations_url)
            part = pack(
                _of_coco(corpus, limit, names, annotations_url),
                names,
                name=name,
                where=annotations_url,
                images_url=images_url,
                categories={number: LabeledCategory(category_id=number, name=said) for number, said in names.items()},
            )
    else:
        with open_labeled(format, annotations_url, split) as source:
            # LVIS and V3Det write words joined by underscores.
            names = {number: category.name.replace("_", " ").strip() for number, category in source.categories.items()}
            part = pack(
                _of_other(source, limit),
                names,
                name=name,
                where=annotations_url,
                images_url=images_url,
                categories=dict(source.categories),
            )
    if not len(part.images):
        raise InputError(
            f"{annotations_url}: expected at least one labeled region of a picture, got none. Check annotations and image ids."
        )
    return part


def _of_other(source: LabeledSource, limit: int | None) -> Iterator[LabeledImage]:
    for image in source.images(limit):
        yield with_labels(image, [label for label in image.labels if not label.region.is_crowd])


def _of_coco(
    corpus: LabeledCorpus, limit: int | None, names: dict[int, str], annotations_url: str
) -> Iterator[LabeledImage]:
    for image in corpus.images(limit):
        labels = [label for label in image.labels if not label.region.is_crowd and label.region.problem is None]
        for label in labels:
            if label.category_id not in names:
                raise InputError(
                    f"{annotations_url}, annotation {label.region.region_id}: expected a category_id that the file's categories define, "
                    f"got {label.category_id}. Add the category or drop the annotation."
                )
        yield with_labels(image, labels)


def _checked_names(categories: JsonValue, annotations_url: str) -> dict[int, str]:
    """Return {id: stripped name} of the rows that have both."""
    names: dict[int, str] = {}
    for row in categories if isinstance(categories, list) else []:
        if isinstance(row, dict):
            category_id, name = row.get("id"), row.get("name")
            if isinstance(category_id, int) and isinstance(name, str):
                names[category_id] = name.strip()
    if not names:
        raise InputError(
            f"{annotations_url}: expected a list of categories with id and name, got none. Training needs labeled regions."
        )
    if unnamed := [category_id for category_id, name in names.items() if not name]:
        raise InputError(
            f"{annotations_url}, category {unnamed[0]}: expected a name, got an empty one. Name it, or drop it and its annotations."
        )
    return names


def check_pictures(part: Part) -> None:
    """Raise InputError when nothing at the head of a part can be used: better now than after an hour of empty batches."""
    store, limits = Store.open(part.images_url), Limits()
    folder = store.local_path("")
    if folder is not None and not folder.is_dir():
        raise InputError(
            f"{part.images_url}: no such folder. Give the folder that the file names of {part.where} are relative to."
        )
    first_reason = ""
    for image in islice(part.images, _LOOKED_AT):
        prepared = prepare_image(store, image.record, limits, decoder=shared_decoders())
        if prepared.regions:
            return
        first_reason = first_reason or prepared.failures[0].reason
    raise InputError(
        f"{part.where}: expected pictures in {part.images_url} with usable regions, got none among the first "
        f"{min(len(part.images), _LOOKED_AT)}; {first_reason} `rlabel validate` lists what is wrong with every row."
    )
