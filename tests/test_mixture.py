"""Mixtures: several labeled datasets as one corpus, read from a file whose mistakes are told with dataset, key and remedy before any step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from torch.utils.data import DataLoader

from dataset_factories import lvis_rows, refcoco_folder, visual_genome_folder, visual_genome_rows, write_json
from rlabel.cli.main import main
from rlabel.corpus.labeled import Federated
from rlabel.corpus.open import open_labeled
from rlabel.errors import InputError, UsageError
from rlabel.training.corpus import TrainCorpus
from rlabel.training.dataset import BatchDataset, Sample, keep_samples
from rlabel.training.mixture import load_mixture, open_mixture
from rlabel.training.sampling import for_stage
from test_train_data import same
from train_factories import labeled_corpus, stage, tiny, tiny_folder

ROOT = Path(__file__).resolve().parent.parent


def pictures(folder: Path, format: Any, annotations: Path, split: str | None = None) -> None:
    """Write a picture of each size that the annotations speak of."""
    with open_labeled(format, annotations, split) as source:
        for image in source.images():
            path = folder / str(image.record.file_name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (int(image.record.width_px or 64), int(image.record.height_px or 64)), "teal").save(path)


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "images": f"{name}/images", "annotations": f"{name}/annotations", **more}


def four(folder: Path) -> list[dict[str, Any]]:
    """Write a COCO-like corpus, LVIS, Visual Genome and RefCOCO; return their rows of a mixture."""
    labeled_corpus(folder / "things", num_images=3)
    lvis = write_json(folder / "lvis" / "lvis.json", lvis_rows())
    pictures(folder / "lvis" / "images", "lvis", lvis)
    genome = visual_genome_folder(folder / "genome" / "annotations")
    pictures(folder / "genome" / "images", "visual_genome", genome)
    refcoco = refcoco_folder(folder / "refcoco" / "annotations")
    pictures(folder / "refcoco" / "images", "refcoco", refcoco, "train")
    return [
        row("things", annotations="things/instances.json", per_category=1, tasks={"classify": 1.0}),
        row("lvis", annotations="lvis/lvis.json", format="lvis"),
        row("genome", format="visual_genome", per_category="all", tasks={"caption": 1.0, "relate": 1.0}, weight=2),
        row("refcoco", format="refcoco", split="train", tasks={"refer": 1.0, "caption": 1.0}),
    ]


def written(folder: Path, content: Any) -> str:
    path = folder / "mixture.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def opened(folder: Path, rows: list[dict[str, Any]], **more: Any) -> TrainCorpus:
    return open_mixture(load_mixture(written(folder, {"datasets": rows})), **more)


def dataset(corpus: TrainCorpus, **more: Any) -> BatchDataset:
    made = stage("instruct", **more)
    return BatchDataset(for_stage(corpus, made, 0), tiny()[1], made, 5, 0, 1)


def turns_by_part(corpus: TrainCorpus, **more: Any) -> dict[str, list[tuple[Sample, Any]]]:
    data = dataset(corpus, **more)
    found: dict[str, list[tuple[Sample, Any]]] = {}
    for index in range(len(data.corpus.images)):
        sample = data.sample(index, 0, None)
        assert sample is not None
        own = found.setdefault(data.corpus.part_of(index).name, [])
        own += [(sample, turn) for turns in sample.conversations for turn in turns]
    return found


# ---- the file


def test_paths_are_relative_to_the_file_and_urls_stay(tmp_path: Path) -> None:
    mixture = load_mixture(written(tmp_path, {"datasets": [row("a"), row("b", images="s3://bucket/b")]}))
    first, second = mixture.datasets
    assert first.images_url(mixture.folder) == str(tmp_path / "a" / "images")
    assert first.annotations_url(mixture.folder) == str(tmp_path / "a" / "annotations")
    assert second.images_url(mixture.folder) == "s3://bucket/b"
    assert (first.weight, first.per_category, first.tasks, first.format) == (1.0, None, None, "coco")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            {"datasets": [row("a"), row("b", weigth=2)]},
            "dataset b: unknown key 'weigth'. Known: name, images, annotations",
        ),
        ({"datasets": [row("a")], "name": "x"}, "unknown key 'name'. Known: datasets"),
        ({"datasets": [{"name": "a", "images": "x"}]}, "dataset a: annotations is missing. Add it."),
        ({"datasets": [{"images": "x", "annotations": "y"}]}, "dataset number 1: name is missing. Add it."),
        ({}, "datasets is missing. Add it."),
        ({"datasets": []}, "datasets: .*at least 1"),
        ({"datasets": "a"}, "datasets: .*got 'a'"),
        ({"datasets": ["a"]}, "dataset number 1: "),
        ({"datasets": [row("a", weight=-1)]}, "dataset a: weight: .*greater than or equal to 0, got -1"),
        ({"datasets": [row("a", weight=float("inf"))]}, "dataset a: weight: "),
        ({"datasets": [row("a", per_category=0)]}, "dataset a: per_category"),
        ({"datasets": [row("a", per_category="none")]}, "dataset a: per_category"),
        ({"datasets": [row("a", tasks={})]}, "dataset a: tasks"),
        ({"datasets": [row("a", tasks={"sing": 1})]}, "dataset a: tasks.sing"),
        ({"datasets": [row("a", tasks={"classify": 2})]}, "dataset a: tasks.classify"),
        ({"datasets": [row("a", format="voc2012")]}, "dataset a: format: "),
        ({"datasets": [row("a"), row("a")]}, "dataset a: expected a name of its own"),
        ({"datasets": [row("a")], "where": "x"}, "expected a mapping with the list"),
        ("- a\n", "expected a mapping with the list"),
        ("datasets: [", "expected a readable YAML file"),
    ],
)
def test_a_mistake_is_told_with_file_dataset_and_key(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        load_mixture(written(tmp_path, content))
    assert str(caught.value).startswith(f"--mixture {tmp_path / 'mixture.yaml'}")


def test_a_missing_file_is_told() -> None:
    with pytest.raises(InputError, match="--mixture none.yaml: no such file"):
        load_mixture("none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "mixtures").glob("*.yaml")), ids=lambda path: path.name)
def test_the_papers_mixtures_are_mixtures(path: Path) -> None:
    rows = {one.name: one for one in load_mixture(str(path)).datasets}
    # RegionGPT, supplementary: annotations a category, tasks.
    caps = {"v3det": 100} if "pretrain" in path.name else {"v3det": 10, "coco": 20, "lvis": 20}
    assert {name: one.per_category for name, one in rows.items()} == {
        **caps, "visual_genome": "all", "refcoco": "all",
    }  # fmt: skip
    assert set(rows["visual_genome"].tasks or ()) == {"caption", "relate"}
    assert set(rows["refcoco"].tasks or ()) == {"caption", "refer"}


# ---- what is wrong in a dataset


def spoil_lvis(folder: Path) -> None:
    rows = lvis_rows()
    del rows["images"][1]["neg_category_ids"]
    write_json(folder / "lvis" / "lvis.json", rows)


def spoil_category(folder: Path) -> None:
    content = json.loads((folder / "things" / "instances.json").read_text())
    content["annotations"][2]["category_id"] = 77
    write_json(folder / "things" / "instances.json", content)


def spoil_genome(folder: Path) -> None:
    rows = {name: content if name == "image_data.json" else [] for name, content in visual_genome_rows().items()}
    visual_genome_folder(folder / "genome" / "annotations", rows)


@pytest.mark.parametrize(
    ("name", "change", "spoil", "kind", "told"),
    [
        ("things", {}, spoil_category, InputError, "instances.json, annotation 3: .*got 77. Add the category or drop"),
        ("lvis", {}, spoil_lvis, InputError, "lvis.json, images, id 522418: expected neg_category_ids.*as coco"),
        ("refcoco", {"split": "dev"}, None, InputError, "the split 'dev', got a file without it. It has: train"),
        ("refcoco", {"split": None}, None, UsageError, "expected the split to read, got none"),
        ("genome", {}, spoil_genome, InputError, "at least one usable region"),
        ("things", {"annotations": "none.json"}, None, InputError, "none.json: there is no such file"),
        ("things", {"images": "none"}, None, InputError, "none: no such folder"),
        ("things", {"images": "lvis"}, None, InputError, "with usable regions, got none among the first 3"),
        ("lvis", {"split": "train"}, None, UsageError, "only read from RefCOCO"),
    ],
)
def test_wrong_data_is_told_with_mixture_and_dataset(
    tmp_path: Path, name: str, change: dict[str, Any], spoil: Callable[[Path], None] | None, kind: Any, told: str
) -> None:
    rows = [{**one, **change} if one["name"] == name else one for one in four(tmp_path)]
    if spoil is not None:
        spoil(tmp_path)
    with pytest.raises(kind, match=told) as caught:
        opened(tmp_path, rows)
    assert str(caught.value).startswith(f"--mixture {tmp_path / 'mixture.yaml'}, dataset {name}: ")


# ---- the corpus


def test_datasets_lie_one_after_the_other_with_their_names_joined(tmp_path: Path) -> None:
    corpus = opened(tmp_path, four(tmp_path))
    assert [corpus.part_of(i).name for i in range(len(corpus.images))] == (
        ["things"] * 3 + ["lvis"] * 2 + ["genome"] * 2 + ["refcoco"]
    )
    # RefCOCO's categories are person and dog; dog is one of the things, too.
    assert corpus.all_names == [
        "cat", "dog", "teapot", "fire hydrant", "aerosol can", "air conditioner", "applesauce",
        "clock", "street", "shade", "person",
    ]  # fmt: skip
    assert len(opened(tmp_path, four(tmp_path), limit=1).images) == 4


def test_each_dataset_gives_its_own_tasks_and_those_of_the_stage_where_it_names_none(tmp_path: Path) -> None:
    corpus = opened(tmp_path, four(tmp_path))
    turns = turns_by_part(corpus)
    answers = {name: {turn.answer for _, turn in own} for name, own in turns.items()}
    assert answers["things"] <= {"cat", "dog", "teapot", "fire hydrant"} and answers["things"]
    assert answers["lvis"] == {"aerosol can", "air conditioner"}
    assert answers["genome"] == {
        "the clock is green in colour", "shade is along the street", "road with a yellow line", "ON", "next to",
    }  # fmt: skip


def test_expressions_reach_conversations_as_reference_and_as_captions(tmp_path: Path) -> None:
    corpus = opened(tmp_path, four(tmp_path))
    own = [index for index in range(len(corpus.images)) if corpus.part_of(index).name == "refcoco"]
    said = {text for index in own for label in corpus.images[index].labels for text in label.expressions}
    assert said == {"the lady with the blue shirt", "lady w back to us", "boy"}
    turns = [turn for _, turn in turns_by_part(corpus)["refcoco"]]
    captions = {turn.answer for turn in turns if turn.answer in said}
    referred = [turn for turn in turns if any(text in turn.question for text in said)]
    assert "boy" in captions and captions & {"the lady with the blue shirt", "lady w back to us"}
    assert referred
    (image,) = (corpus.images[index] for index in own)
    for turn in referred:
        meant = image.labels[turn.mentions[int(str(turn.answer)) - 1]]
        assert any(text in turn.question for text in meant.expressions)


def test_all_tasks_of_an_image_are_one_conversation(tmp_path: Path) -> None:
    corpus = opened(tmp_path, four(tmp_path))
    data = dataset(corpus, conversation="multi_turn")
    for index in range(len(data.corpus.images)):
        sample = data.sample(index, 0, None)
        assert sample is not None and len(sample.conversations) == 1
    kinds = [turn.answer for turn in data.sample(len(data.corpus.images) - 3, 0, None).conversations[0]]  # type: ignore[union-attr]
    assert {"the clock is green in colour", "ON"} <= set(kinds)


def test_what_lvis_says_of_images_and_categories_goes_with_them_through_caps(tmp_path: Path) -> None:
    rows = [one for one in four(tmp_path) if one["name"] in ("things", "lvis")]
    corpus = for_stage(opened(tmp_path, rows), stage(per_category=1, weights={"things": 0}), 0)
    assert [image.federated for image in corpus.images] == [
        Federated(negative_ids=(3, 1), not_exhaustive_ids=()),
        Federated(negative_ids=(), not_exhaustive_ids=(1,)),
    ]
    categories = corpus.part_of(0).categories
    assert {id_: category.frequency for id_, category in categories.items()} == {1: "c", 2: "f", 3: "r"}


def test_a_datasets_vocabulary_is_named_in_its_questions_alone(tmp_path: Path) -> None:
    things, lvis = four(tmp_path)[:2]
    found = turns_by_part(opened(tmp_path, [{**things, "tasks": None}, {**lvis, "vocabulary": "LVIS"}]))
    assert not [turn for _, turn in found["things"] if "LVIS" in turn.question]
    assert [turn for _, turn in found["lvis"] if turn.question.endswith("Use the names of LVIS.")]


# ---- batches


def test_batches_of_a_mixture_are_the_same_whoever_makes_them_and_whenever(tmp_path: Path) -> None:
    corpus = opened(tmp_path, four(tmp_path))
    more = {"epochs": 3, "balance": 0.5, "images_per_batch": 3, "augment": {"paste": 0.5, "mirror": 0.5}}
    whole = dataset(corpus, **more)
    # Draws: 3 things, 2 of LVIS, twice the 2 of Visual Genome, 1 of RefCOCO.
    assert whole.corpus.epoch_size == 10 and len(whole) == 9
    batches = [whole[number] for number in range(len(whole))]
    tail = dataset(opened(tmp_path, four(tmp_path)), **more)
    tail.first_batch = 4
    assert all(same(tail[number], batches[4 + number]) for number in (4, 0, 2))
    loader = DataLoader(dataset(corpus, **more), batch_size=None, collate_fn=keep_samples, num_workers=2)
    assert all(same(left, right) for left, right in zip(loader, batches, strict=True))
    assert [sample.conversations for sample in tail[0]] == [sample.conversations for sample in batches[4]]


def test_an_image_that_comes_twice_in_an_epoch_is_augmented_anew(tmp_path: Path) -> None:
    corpus = opened(tmp_path, [{**four(tmp_path)[0], "weight": 2, "per_category": "all"}])
    data = dataset(corpus, images_per_batch=6, augment={"colour": 1.0})
    (batch,) = (data[number] for number in range(len(data)))
    assert len(batch) == 6
    assert len({sample.inputs.pixels_3SS.numpy().tobytes() for sample in batch}) == 6
    first, second = data.sample(0, 0, None), data.sample(0, 0, None, again=1)
    assert first is not None and second is not None
    assert torch.equal(first.inputs.pixels_3SS, second.inputs.pixels_3SS) and first.seed != second.seed


# ---- the command

COURSE = {
    "name": "x",
    "stages": [
        {"name": "learn", "objective": "instruct", "images_per_batch": 2, "learning_rates": {"connector": 1e-3}}
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"))


def command(folder: Path, model: Path, *more: str) -> Result:
    (folder / "r.yaml").write_text(yaml.safe_dump(COURSE))
    flags = ["--model", str(model), "--recipe", str(folder / "r.yaml"), "--out", str(folder / "out")]
    return CliRunner().invoke(main, ["train", *flags, "--no-ray", "--num-loader-workers", "0", *more])


def test_a_mixture_is_trained_and_what_changes_it_refuses_to_go_on(tmp_path: Path, model: Path) -> None:
    file = written(tmp_path, {"datasets": four(tmp_path)})
    planned = command(tmp_path, model, "--mixture", file, "--dry-run")
    assert planned.exit_code == 0, planned.output
    # Draws: 3 things (fewer after the cap), 2 of LVIS, twice the 2 of Visual Genome, 1 of RefCOCO; 2 a batch.
    assert "images      8\n" in planned.stdout and "learn: instruct, " in planned.stdout
    assert "dataset     genome: 2 images, 6 regions, weight 2\n" in planned.stdout
    done = command(tmp_path, model, "--mixture", file)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "config.json").is_file()
    again = command(tmp_path, model, "--mixture", file)
    assert "holds the finished model of exactly these settings" in again.stderr
    rows = four(tmp_path)
    rows[1]["weight"] = 3
    other = command(tmp_path, model, "--mixture", written(tmp_path, {"datasets": rows}))
    assert other.exit_code == 2 and "other settings (mixture)" in other.stderr
    written(tmp_path, {"datasets": four(tmp_path)})
    write_json(tmp_path / "lvis" / "lvis.json", {**lvis_rows(), "info": {"description": "another file"}})
    changed = command(tmp_path, model, "--mixture", file)
    assert changed.exit_code == 2 and "other settings (annotations_sha256)" in changed.stderr


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (("--mixture", "{mixture}", "--images", "x"), 2, "--images: the datasets of --mixture"),
        (("--mixture", "{mixture}", "--annotations", "x"), 2, "--annotations: the datasets of --mixture"),
        (("--mixture", "none.yaml"), 1, "--mixture none.yaml: no such file"),
        ((), 2, "--images: missing. .* or name several datasets with --mixture"),
        (("--images", "x"), 2, "--annotations: missing."),
        (("--mixture", "{broken}"), 1, "dataset gone, annotations .*none.json: no such file"),
    ],
)
def test_wrong_calls_are_refused_before_the_folder_is_claimed(
    tmp_path: Path, model: Path, flags: tuple[str, ...], code: int, told: str
) -> None:
    labeled_corpus(tmp_path / "things", num_images=1)
    good = written(tmp_path, {"datasets": [row("things", annotations="things/instances.json")]})
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump({"datasets": [row("gone", annotations="none.json")]}))
    result = command(tmp_path, model, *(flag.format(mixture=good, broken=broken) for flag in flags))
    assert result.exit_code == code, result.output
    assert re.search(told, result.stderr), result.stderr
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_anything_to_ask_is_refused_before_any_step(tmp_path: Path, model: Path) -> None:
    labeled_corpus(tmp_path / "things", num_images=2)
    file = written(tmp_path, {"datasets": [row("things", annotations="things/instances.json", tasks={"relate": 1.0})]})
    result = command(tmp_path, model, "--mixture", file)
    assert (
        result.exit_code == 1 and "expected something to ask by the tasks of dataset things (relate)" in result.stderr
    )
    assert not (tmp_path / "out").exists()
