"""The labels of `rlabel train` of any layout, as files that training reads: converted once, into OUT-annotations/ and OUT-val-annotations/."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlabel.config import TrainSettings
from rlabel.errors import InputError, RlabelError, UsageError
from rlabel.formats.taken import Asked
from rlabel.storage import MissingFile, open_url

if TYPE_CHECKING:
    from rlabel.cli.regions_in import Labels
    from rlabel.training.mixture import Mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenLabels:
    """What is trained on, train or mixture, and validated on. mixture: with the files of its datasets that had to be converted."""

    train: Labels | None
    val: Labels | None
    mixture: Mixture | None


def take_labels(settings: TrainSettings, mixture: Mixture | None, stack: ExitStack, *, dry_run: bool) -> TakenLabels:
    """Return all labels that the settings name, converted where that is needed and not done. stack: keeps what a dry run converts.

    Raises InputError or UsageError for what cannot be read, has no category, or has another layout than told.
    """
    train = val = None
    if settings.annotations is not None:
        train = _one(settings, "", stack, dry_run=dry_run)
    if settings.val_annotations is not None:
        val = _one(settings, "val_", stack, dry_run=dry_run)
    if mixture is not None:
        mixture = _of_mixture(settings, mixture, stack, dry_run=dry_run)
    return TakenLabels(train=train, val=val, mixture=mixture)


def _one(settings: TrainSettings, which: str, stack: ExitStack, *, dry_run: bool) -> Labels:
    """Return the labels to train on, or with "val_" those to validate on."""
    from rlabel.cli.regions_in import labels_as_coco

    flag = f"--{which.replace('_', '-')}"
    asked = Asked(source=f"{flag}annotations", format="--format", images=f"{flag}images", with_categories=True)
    into = f"{settings.out.rstrip('/')}-{which.replace('_', '-')}annotations"
    given, images = str(getattr(settings, f"{which}annotations")), getattr(settings, f"{which}images")
    labels = stack.enter_context(
        labels_as_coco(given, settings.format, images, into, asked, boxes=settings.boxes, dry_run=dry_run)
    )
    if labels.was_converted and getattr(settings, f"{which}split") is not None:
        raise UsageError(
            f"{flag}split: only RefCOCO's references have splits, and {given} holds none. Leave it out, and name the files of the split."
        )
    return labels


def _of_mixture(settings: TrainSettings, mixture: Mixture, stack: ExitStack, *, dry_run: bool) -> Mixture:
    """Return a mixture whose datasets are all of layouts that training reads."""
    from rlabel.cli.regions_in import labels_as_coco

    datasets = []
    for number, one in enumerate(mixture.datasets):
        asked = Asked(source="annotations", format="format:", images="images:", with_categories=True)
        given, images = one.annotations_url(mixture.folder), one.images_url(mixture.folder)
        into = f"{settings.out.rstrip('/')}-annotations/{number}"
        try:
            labels = stack.enter_context(
                labels_as_coco(given, one.format, images, into, asked, boxes=settings.boxes, dry_run=dry_run)
            )
        except RlabelError as error:
            raise type(error)(f"{mixture.where}, dataset {one.name}: {error}") from error
        if labels.was_converted:
            one = one.model_copy(update={"annotations": labels.file, "format": labels.format})
        datasets.append(one)
    return mixture.model_copy(update={"datasets": tuple(datasets)})


def labels_record(labels: TakenLabels, mixture: Any) -> dict[str, Any]:
    """Return what of the labels decides the weights: what the files hold that are read, and a mixture as it is written."""
    if labels.mixture is None:
        assert labels.train is not None
        return {"annotations_sha256": _file_sha256(labels.train.file)}
    digests = [
        _file_sha256(one.annotations_url(mixture.folder), f"{mixture.where}, dataset {one.name}, annotations")
        for one in labels.mixture.datasets
    ]
    return {"mixture": mixture.model_dump(mode="json"), "annotations_sha256": digests}


def _file_sha256(url: str, where: str = "--annotations") -> str:
    digest = hashlib.sha256()
    if "://" not in url and Path(url).is_dir():  # Visual Genome and RefCOCO are folders
        for path in sorted([*Path(url).glob("*.json"), *Path(url).glob("*.p")]):
            digest.update(f"{path.name} {_file_sha256(str(path))}\n".encode())
        return digest.hexdigest()
    try:
        with open_url(url) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except MissingFile as error:
        raise InputError(
            f"{where} {url}: no such file. Give a COCO JSON with categories, or what the format says."
        ) from error
    return digest.hexdigest()


def absolute(path: str) -> str:
    """Workers run in other folders: a local path must not depend on this one."""
    return path if "://" in path else str(Path(path).resolve())
