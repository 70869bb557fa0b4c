"""Mixtures: several labeled datasets trained on as one. YAML in, checked records out, then the corpus of all of them.

    datasets:
      - name: lvis
        images: coco
        annotations: lvis_v1_train.json
        format: lvis
        weight: 0.5
        per_category: 20
        tasks: {classify: 1.0}

Paths are relative to the file's own folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlabel.config import DatasetFormat
from rlabel.corpus.labeled import Format
from rlabel.errors import InputError, RlabelError
from rlabel.prompts.tasks import Task
from rlabel.training.corpus import TrainCorpus, union
from rlabel.training.parts import check_pictures, read_part
from rlabel.yaml_files import BadYaml, load_yaml_file


class LabeledSet(BaseModel):
    """One dataset of a mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="what messages and the weights of a recipe's stages call it")
    images: str = Field(min_length=1, description="folder of the pictures")
    annotations: str = Field(min_length=1, description="file or folder of the labels")
    format: DatasetFormat = Field("coco", description="layout of the annotations")
    split: str | None = Field(None, description="RefCOCO: train, val, test, testA or testB")
    weight: float = Field(
        1.0,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="how often each of its images comes in an epoch on average: 1 once, 0.5 in every other epoch, 3 three times",
    )
    per_category: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        None, description="at most this many regions of each category; left out: what the stage says; all: no cap"
    )
    tasks: dict[Task, Annotated[float, Field(ge=0, le=1)]] | None = Field(
        None, min_length=1, description="how often each task is asked; left out: what the stage says"
    )
    vocabulary: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="what its names are called in every other question for a name, as `rlabel label --vocabulary-name` does; left out: never",
    )

    def images_url(self, folder: str) -> str:
        return _from(folder, self.images)

    def annotations_url(self, folder: str) -> str:
        return _from(folder, self.annotations)


class Mixture(BaseModel):
    """Datasets trained on as one. where: the file that it is from, for messages; folder: what its paths are relative to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    datasets: tuple[LabeledSet, ...] = Field(min_length=1)
    where: str = Field("mixture", exclude=True)
    folder: str = Field(".", exclude=True)


def load_mixture(file: str) -> Mixture:
    """Return the mixture of a YAML file.

    Raises InputError naming the dataset and the key that is wrong.
    """
    where = f"--mixture {file}"
    try:
        content = load_yaml_file(Path(file))
    except FileNotFoundError as error:
        raise InputError(f"{where}: no such file. Give a YAML file with a list of datasets.") from error
    except (OSError, BadYaml) as error:
        raise InputError(f"{where}: expected a readable YAML file, got: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not content.keys().isdisjoint({"where", "folder"}):
        raise InputError(f"{where}: expected a mapping with the list `datasets`, got {str(content)[:80]}. Write one.")
    try:
        mixture = Mixture.model_validate({**content, "where": where, "folder": str(Path(file).resolve().parent)})
    except ValidationError as error:
        raise InputError(f"{where}, {_first_problem(error, content)}") from error
    names = [one.name for one in mixture.datasets]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise InputError(f"{where}, dataset {twice[0]}: expected a name of its own, got one that two have. Rename one.")
    return mixture


def open_mixture(mixture: Mixture, limit: int | None = None) -> TrainCorpus:
    """Return the datasets of a mixture as one corpus. limit: only the first images of each.

    Raises what `read_part` and `check_pictures` raise, with the mixture's file and the dataset's name before it.
    """
    parts = []
    for one in mixture.datasets:
        try:
            images, annotations = one.images_url(mixture.folder), one.annotations_url(mixture.folder)
            # Other layouts than these were converted before, or are refused here.
            read_as = cast(Literal[Format, "auto"], one.format)
            part = read_part(images, annotations, limit, read_as, one.split, one.name)
            check_pictures(part)
        except RlabelError as error:
            raise type(error)(f"{mixture.where}, dataset {one.name}: {error}") from error
        part = replace(part, weight=one.weight, per_category=one.per_category)
        parts.append(replace(part, tasks=one.tasks, vocabulary=one.vocabulary))
    return union(parts)


def _from(folder: str, path: str) -> str:
    return path if "://" in path else str(Path(folder) / path)


def _first_problem(error: ValidationError, content: dict[str, Any]) -> str:
    """Return dataset, key, what is wrong and the remedy in words."""
    first = error.errors()[0]
    place: Sequence[str | int] = first["loc"]
    inside = len(place) > 1 and place[0] == "datasets" and isinstance(place[1], int)
    keys = ", ".join(LabeledSet.model_fields) if inside else "datasets"
    names = [str(part) for part in (place[2:] if inside else place)]
    which = ""
    if inside:
        row = content["datasets"][place[1]]
        name = row.get("name") if isinstance(row, dict) else None
        which = f"dataset {name if isinstance(name, str) else f'number {int(place[1]) + 1}'}: "
    key = names[0] if names else "it"
    if first["type"] == "extra_forbidden":
        return f"{which}unknown key {key!r}. Known: {keys}. Correct it, or take it out."
    if first["type"] == "missing":
        return f"{which}{key} is missing. Add it."
    return (
        f"{which}{'.'.join(names) or 'datasets'}: {first['msg']}, got {first.get('input')!r:.80}. Known keys: {keys}."
    )
