"""Training from LVIS, V3Det, Visual Genome and RefCOCO: what each layout lets a conversation say, and that a step learns from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset_factories import (
    lvis_rows,
    refcoco_folder,
    v3det_rows,
    visual_genome_folder,
    write_json,
)
from rlabel.corpus.open import open_labeled
from rlabel.prompts.tasks import TASKS
from rlabel.training.corpus import TrainCorpus
from rlabel.training.dataset import BatchDataset, Sample
from rlabel.training.loop import train
from rlabel.training.parts import load_corpus
from train_factories import Files, place, recipe, stage, tiny, tiny_folder

ALL = dict.fromkeys(TASKS, 1.0)


def lvis(folder: Path) -> Path:
    return write_json(folder / "lvis.json", lvis_rows())


def v3det(folder: Path) -> Path:
    return write_json(folder / "v3det.json", v3det_rows())


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    "lvis": (lvis, None),
    "v3det": (v3det, None),
    "visual_genome": (visual_genome_folder, None),
    "refcoco": (refcoco_folder, "train"),
}


def made(format: Any, folder: Path) -> tuple[Path, Path, str | None]:
    """Write annotations of a layout, and grey pictures of the sizes that they speak of; return (images, annotations, split)."""
    write, split = LAYOUTS[format]
    annotations = write(folder / "annotations")
    random = np.random.default_rng(0)
    with open_labeled(format, annotations, split) as source:
        for image in source.images():
            path = folder / "images" / str(image.record.file_name)
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (int(image.record.height_px or 64), int(image.record.width_px or 64), 3)
            Image.fromarray(random.integers(0, 255, size, dtype=np.uint8)).save(path)
    return folder / "images", annotations, split


def loaded(format: Any, folder: Path) -> TrainCorpus:
    images, annotations, split = made(format, folder)
    return load_corpus(str(images), str(annotations), format=format, split=split)


def samples(corpus: TrainCorpus, **more: Any) -> list[Sample]:
    dataset = BatchDataset(corpus, tiny()[1], stage("instruct", **{"tasks": ALL, **more}), 0, 0, 1)
    found = [dataset.sample(index, 0, None) for index in range(len(corpus.images))]
    return [sample for sample in found if sample is not None]


def answers(corpus: TrainCorpus, **more: Any) -> set[str | None]:
    return {turn.answer for sample in samples(corpus, **more) for turns in sample.conversations for turn in turns}


@pytest.mark.parametrize("format", LAYOUTS)
def test_a_tiny_model_takes_a_step_from_every_layout(tmp_path: Path, format: Any) -> None:
    images, annotations, split = made(format, tmp_path)
    course = recipe(
        stage("align", epochs=1, images_per_batch=2),
        stage("instruct", epochs=1, images_per_batch=2, tasks=ALL, align_weight=0.5),
    )
    job = Files(images, annotations).job(tiny_folder(tmp_path / "model"), course, format=format, split=split)
    watched = place(tmp_path / "run")
    train(job, watched)
    assert {line.stage for line in watched.progress} == {"align", "instruct"}
    assert all(math.isfinite(line.loss) and line.loss > 0 for line in watched.progress), watched.progress


def test_names_of_lvis_are_words_without_underscores(tmp_path: Path) -> None:
    corpus = loaded("lvis", tmp_path)
    assert {"aerosol can", "air conditioner", "applesauce"} == set(corpus.all_names)
    assert answers(corpus, tasks={"classify": 1.0}) == {"aerosol can", "air conditioner"}


def test_visual_genome_gives_names_captions_and_relations(tmp_path: Path) -> None:
    corpus = loaded("visual_genome", tmp_path)
    assert corpus.parts[0].names == {} and corpus.all_names
    said = answers(corpus, tasks={"classify": 1.0, "caption": 1.0, "relate": 1.0})
    stated = {relation.predicate for image in corpus.images for relation in image.relations}
    captions = {label.caption for image in corpus.images for label in image.labels if label.caption}
    assert stated and captions
    assert stated <= said and captions <= said and set(corpus.all_names) <= said


def test_relations_are_asked_about_the_regions_that_they_are_stated_of(tmp_path: Path) -> None:
    corpus = loaded("visual_genome", tmp_path)
    for image, sample in zip(corpus.images, samples(corpus, tasks={"relate": 1.0}), strict=True):
        keys = [label.region.key for label in image.labels]
        stated = [{keys.index(one.subject_key), keys.index(one.object_key)} for one in image.relations]
        assert [set(turn.mentions) for turns in sample.conversations for turn in turns] == stated


def test_refcoco_asks_which_region_an_expression_means(tmp_path: Path) -> None:
    corpus = loaded("refcoco", tmp_path)
    expressions = {text for image in corpus.images for label in image.labels for text in label.expressions}
    asked = [
        (turn, image)
        for image, sample in zip(corpus.images, samples(corpus, tasks={"refer": 1.0}), strict=True)
        for turns in sample.conversations
        for turn in turns
    ]
    for turn, image in asked:
        meant = image.labels[turn.mentions[int(str(turn.answer)) - 1]]
        assert any(text.strip().rstrip(".") in turn.question for text in meant.expressions)
    assert expressions


def test_all_questions_about_an_image_may_be_one_conversation(tmp_path: Path) -> None:
    corpus = loaded("visual_genome", tmp_path)
    for apart, together in zip(samples(corpus), samples(corpus, conversation="multi_turn"), strict=True):
        assert all(len(turns) == 1 for turns in apart.conversations)
        assert together.conversations == (tuple(turns[0] for turns in apart.conversations),)
