"""Recipes: the shipped ones load, wrong ones are refused by name, and the numbers of steps are those of a pencil."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlabel.errors import InputError
from rlabel.training.recipe import load_recipe, shipped_recipes
from train_factories import stage

RECIPES = Path(__file__).parent.parent / "rlabel" / "recipes"

GOOD = """
name: mine
stages:
  - name: align
    objective: align
    learning_rates: {connector: 1e-3}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_shipped_recipe_loads_under_its_own_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.stages


def test_every_file_of_the_folder_is_a_shipped_recipe() -> None:
    assert shipped_recipes() == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert {"mini", "fine-tune", "fine-tune-lora"} <= set(shipped_recipes())


def test_recipe_file_loads_and_yaml_s_text_for_1e_3_is_a_number(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, GOOD)).stages[0].learning_rates == {"connector": 0.001}


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("objective: align", "objective: dance", "stages.0.objective"),
        ("objective: align", "objective: align\n    epochz: 3", "stages.0.epochz"),
        ("connector: 1e-3", "connector: -1", "stages.0.learning_rates.connector"),
        ("{connector: 1e-3}", "{}", "stages.0.learning_rates"),
        ("objective: align", "objective: align\n    images_per_batch: 0", "stages.0.images_per_batch"),
        ("objective: align", "objective: align\n    augment: {mirror: 0.7}", "stages.0.augment.mirror"),
        ("objective: align", "objective: align\n    augment: {keep: [0, 1.5]}", "stages.0.augment.keep.1"),
        ("objective: align", "objective: align\n    lora: {rank: 4}", "lora needs"),
        ("{connector: 1e-3}", "{language_model.lm_head: 1e-3}", "align makes no language model pass"),
        ("objective: align", "objective: spell\n    steps: 3", "spell trains the language model"),
        ("objective: align", "objective: align\n    steps: 3", "steps belongs to objective spell"),
        ("name: mine", "nam: mine", "name"),
        (GOOD, "stages: []\nname: x", "stages"),
        (GOOD, "just a sentence", "the file"),
        (GOOD, "", "the file"),
        ("name: mine", "name: [", "while parsing"),
    ],
)
def test_wrong_field_of_a_recipe_is_named(tmp_path: Path, before: str, after: str, named: str) -> None:
    assert before in GOOD
    with pytest.raises(InputError) as caught:
        load_recipe(written(tmp_path, GOOD.replace(before, after)))
    assert named in str(caught.value)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(InputError, match="fine-tune, fine-tune-lora, mini"):
        load_recipe("minni")


def test_missing_recipe_file_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file.*fine-tune, fine-tune-lora, mini"):
        load_recipe(str(tmp_path / "none.yaml"))


def test_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="readable YAML"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_folder_with_the_name_of_a_shipped_recipe_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fine-tune").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("fine-tune").name == "fine-tune"


@pytest.mark.parametrize(
    ("num_images", "batch", "workers", "epochs", "accumulate", "steps"),
    [
        (10, 3, 1, 1, 1, 3),  # the tenth image waits for another epoch's order
        (10, 3, 1, 2, 1, 6),
        (10, 3, 1, 0.5, 1, 2),  # 1.5 batches
        (10, 3, 1, 2, 2, 3),
        (10, 3, 2, 3, 1, 3),  # 6 images a step of both workers
        (10, 3, 1, 1, 2, 1),  # the third batch has no partner
        (2, 8, 1, 3, 1, 3),  # fewer images than a batch
        (2, 8, 1, 1, 4, 1),
    ],
)
def test_steps_of_a_stage_are_whole_batches_of_all_workers(
    num_images: int, batch: int, workers: int, epochs: float, accumulate: int, steps: int
) -> None:
    made = stage(images_per_batch=batch, epochs=epochs, accumulate=accumulate)
    assert made.num_steps(num_images, workers) == steps
