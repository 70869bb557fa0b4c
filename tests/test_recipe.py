"""Recipes: the shipped ones load, wrong ones are refused by name, and the numbers of steps are those of a pencil."""

from __future__ import annotations

from pathlib import Path

import pytest

import model_factories
from rlabel.errors import InputError
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.training.adapters import add_lora
from rlabel.training.freezing import parameter_groups, plain_name
from rlabel.training.recipe import Stage, load_recipe, shipped_recipes
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


CONNECTORS = {"refinement", "connector", "region_connector", "zoom_connector"}
# What each stage of each shipped recipe trains; everything else is frozen. "language_model*": of it LoRA alone.
TRAINED: dict[str, list[set[str]]] = {
    "mini": [
        {"vision_tower", "refinement", "connector", "zoom_connector"},
        {"language_model", "place_connector"},
    ],
    "mini-masks": [{"vision_tower", "refinement", "connector", "zoom_connector"}],
    "fine-tune": [CONNECTORS, {"language_model"}, {"vision_tower", "language_model", *CONNECTORS}],
    "fine-tune-lora": [CONNECTORS, {"language_model*", *CONNECTORS}],
    "fine-tune-qlora": [{"language_model*", *CONNECTORS}],
    "paper-align": [{"place_connector", *CONNECTORS}],
    "paper-pre-train": [{"language_model", "place_connector", *CONNECTORS}],
    "paper-fine-tune": [{"language_model", "place_connector", *CONNECTORS}],
}
# SpatialRGPT's training scripts: learning rate, images of a worker, accumulated batches. RegionGPT's supplementary: regions a category.
PAPER = {
    "paper-align": (1e-3, 32, 1, None),
    "paper-pre-train": (5e-5, 16, 1, 100),
    "paper-fine-tune": (2e-5, 16, 2, 20),
}


def with_every_part() -> RegionGPTForConditionalGeneration:
    """Return a small model that has each optional part, EfficientNet-Lite for a tower (as `mini` asks) and Llama's names of layers."""
    return model_factories.model(connector="separate", zoom_feature_layers=[-4, -1], place_token=True, name_map=True)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_shipped_recipe_trains_the_parts_that_it_says_and_freezes_the_rest(name: str) -> None:
    stages = load_recipe(name).stages
    assert len(stages) == len(TRAINED[name])
    for one, parts in zip(stages, TRAINED[name], strict=True):
        model = with_every_part()
        add_lora(model, one)
        parameter_groups(model, one)
        free = {plain_name(key) for key, parameter in model.named_parameters() if parameter.requires_grad}
        trained, expected = {key.split(".")[0] for key in free}, {part.removesuffix("*") for part in parts}
        places = {"place_connector"}  # rlabel's own, which any recipe may train
        assert trained - places == expected - places
        assert expected <= trained
        language = {key for key in free if key.startswith("language_model.")}
        assert all(".lora_" in key for key in language) == ("language_model" not in parts)


def test_mini_leaves_root_and_depthwise_convolutions_of_its_tower_and_all_word_embeddings() -> None:
    for one in (*load_recipe("mini").stages, *load_recipe("mini-masks").stages):
        model = with_every_part()
        parameter_groups(model, one)
        free = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
        assert not {key for key in free if "depthwise" in key or "stem" in key or "embed" in key or "lm_head" in key}
        assert not {key for key in free if key.startswith(("vision_tower.stages.0", "vision_tower.stages.1"))}


@pytest.mark.parametrize("name", PAPER)
def test_recipes_of_the_paper_hold_its_numbers(name: str) -> None:
    (one,) = load_recipe(name).stages
    rate, images, accumulate, per_category = PAPER[name]
    assert set(one.learning_rates.values()) == {rate}
    assert (one.images_per_batch, one.accumulate, one.per_category) == (images, accumulate, per_category)
    assert (one.epochs, one.warmup, one.weight_decay, one.dtype) == (1, 0.03, 0, "bfloat16")
    assert one.conversation == "multi_turn"


def test_patterns_that_freeze_all_that_is_named_are_refused() -> None:
    one = stage(learning_rates={"connector": 1e-3}, frozen=["connector.*"])
    with pytest.raises(InputError, match="stage align, frozen: expected something left to train"):
        parameter_groups(with_every_part(), one)


def lora_on(*targets: str) -> Stage:
    return stage("instruct", learning_rates={"language_model": 1e-3}, lora={"targets": list(targets)})


def test_lora_s_targets_are_looked_for_in_the_language_model() -> None:
    names = [key for key, _ in with_every_part().named_parameters()]
    lora_on("q_proj", "mlp.up_proj").check_names(names)
    for wrong in ("qproj", "proj", "vision_tower"):
        with pytest.raises(InputError, match=f"stage instruct, lora.targets: expected ends of names.*got '{wrong}'"):
            lora_on("q_proj", wrong).check_names(names)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_shipped_recipe_loads_under_its_own_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.stages


def test_every_file_of_the_folder_is_a_shipped_recipe() -> None:
    assert shipped_recipes() == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert {"mini", "fine-tune", "fine-tune-lora", "fine-tune-qlora", *PAPER} <= set(shipped_recipes())


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
        ("objective: align", "objective: align\n    lora: {base: int3}", "stages.0.lora.base"),
        ("objective: align", "objective: align\n    keep: first", "stages.0.keep"),
        ("objective: align", "objective: align\n    patience: 3", "give validate_every too"),
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
    with pytest.raises(InputError, match="fine-tune, fine-tune-lora, fine-tune-qlora, mini"):
        load_recipe("minni")


def test_missing_recipe_file_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file.*fine-tune, fine-tune-lora, fine-tune-qlora, mini"):
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


def test_some_stages_of_a_recipe_stay_in_its_order() -> None:
    mini = load_recipe("mini")
    assert [stage.name for stage in mini.of_stages("spell, align").stages] == ["align", "spell"]
    assert mini.of_stages("spell").stages == mini.stages[1:]
    with pytest.raises(
        InputError, match="--stages align,talk: recipe mini has no stage 'talk'. Its stages: align, spell"
    ):
        mini.of_stages("align,talk")
