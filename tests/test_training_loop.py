"""The training loop: it learns, says how it goes, and broken pictures do not stop it."""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlabel.errors import InputError, RunError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.prompts.instructions import CLASSIFY
from rlabel.prompts.templates import Turn
from rlabel.regiongpt.quantization import Precision, load_model
from rlabel.training.dataset import BatchDataset
from rlabel.training.deciding import ShownRow
from rlabel.training.loop import LocalSurroundings, train, write_model
from rlabel.training.objectives import TrainingStep
from rlabel.training.packing import pack, script
from rlabel.training.parts import load_corpus
from rlabel.training.progress import Progress, progress_text
from rlabel.training.recipe import Recipe
from rlabel.training.sampling import cap_per_category
from train_factories import (
    COLOURS,
    PARTS,
    Files,
    Place,
    edit,
    labeled_corpus,
    largest_difference,
    place,
    recipe,
    stage,
    tiny,
    tiny_folder,
    trained,
    weights,
)

ALL_PARTS = dict.fromkeys(PARTS, 1e-3)
LORA = {"lora": {"rank": 2, "alpha": 4}, "learning_rates": {"connector": 1e-3, "language_model": 1e-2}}


@pytest.fixture(autouse=True)
def _no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine the loop says more than at its checkpoints."""
    monkeypatch.setattr("rlabel.training.loop._HEARTBEAT_S", math.inf)


# ---- learning


def test_tiny_model_learns_three_pictures_by_heart(tmp_path: Path, model: Path) -> None:
    files = labeled_corpus(tmp_path, num_images=3)
    rates = dict.fromkeys(PARTS, 5e-3)
    course = recipe(
        stage("align", epochs=120, images_per_batch=3, learning_rates=rates, tower_through_image=False),
        stage("instruct", epochs=120, images_per_batch=3, learning_rates=rates),
    )
    watched = place(tmp_path / "run")
    made, processor = train(
        files.job(model, course, val_images_url=str(files.images), val_annotations_url=str(files.annotations)), watched
    )
    by_stage = {name: [line for line in watched.progress if line.stage == name] for name in ("align", "instruct")}
    assert by_stage["instruct"][0].loss > 1.0
    assert by_stage["instruct"][-1].loss < 0.1
    assert by_stage["align"][-1].train_accuracy == 1.0
    assert by_stage["instruct"][-1].train_accuracy > 0.95  # over the last steps, whose questions are drawn anew
    assert [lines[-1].val_accuracy for lines in by_stage.values()] == [1.0, 1.0]
    # ... and says the names freely, by the engine that labels.
    corpus = load_corpus(str(files.images), str(files.annotations))
    samples = BatchDataset(corpus, processor, course.stages[1], 0, 0, 1)[0]
    answers = Engine(made, processor, EngineOptions()).answer([sample.inputs for sample in samples])
    assert [[answer.text for answer in image] for image in answers] == [list(sample.names) for sample in samples]


def test_language_model_learns_to_spell_every_name_without_its_pictures(tmp_path: Path, model: Path) -> None:
    """Of four names two have no region; all four must come out when the region token is the name's own embedding."""
    files = labeled_corpus(tmp_path, num_images=2, regions_per_image=1)
    rates = {"language_model": 1e-2}
    course = recipe(stage("spell", steps=200, names_per_batch=64, learning_rates=rates, checkpoint_every=100))
    watched = place(tmp_path / "run")
    made, processor = train(files.job(model, course), watched)
    assert watched.progress[0].loss > watched.progress[-1].loss
    step = TrainingStep(made, processor, course.stages[0], list(COLOURS))
    tap: list[torch.Tensor] = []
    made.language_model.register_forward_hook(lambda module, inputs, output: tap.append(output.logits))
    corpus = load_corpus(str(files.images), str(files.annotations))
    sample = BatchDataset(corpus, processor, course.stages[0], 0, 0, 1).sample(0, 0, None)
    assert sample is not None
    with torch.no_grad():
        _, image_1TD = made.encode_images(sample.inputs.pixels_3SS[None])
        scripts = [
            script(processor, [Turn(question=CLASSIFY[0], mentions=(i,), answer=name)])
            for i, name in enumerate(COLOURS)
        ]
        row = pack(scripts, processor.region_token_id)
        shown = ShownRow(row=row, image_1TD=image_1TD, regions_RKD=step.name_embeddings()[:, None])
        result = step._answer_loss([shown])
    assert (result.num_right, result.num_regions) == (4, 4)
    before, after = weights(model), weights(made)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("language_model.") for name in changed)


def test_validation_counts_names_that_training_does_not_know_as_wrong(
    tmp_path: Path, model: Path, files: Files
) -> None:
    other = labeled_corpus(tmp_path, num_images=2)
    edit(other, lambda content: [one.update(name=f"unheard {one['name']}") for one in content["categories"]])
    course = recipe(stage("align", epochs=1), stage("instruct", epochs=1))
    watched = place(tmp_path / "run")
    train(
        files.job(model, course, val_images_url=str(other.images), val_annotations_url=str(other.annotations)), watched
    )
    assert [line.val_accuracy for line in watched.progress] == [0.0, 0.0]


def test_validation_does_not_change_what_is_learned(tmp_path: Path, model: Path, files: Files) -> None:
    course = recipe(
        stage(
            "align",
            epochs=2,
            learning_rates=ALL_PARTS,
            batch_norm="trained",
            validate_every=1,
            augment={"keep": [0.0, 0.5]},
            keep="last",
        ),
        stage("instruct", epochs=1, validate_every=1, keep="last"),
    )
    validated = files.job(model, course, val_images_url=str(files.images), val_annotations_url=str(files.annotations))
    watched = place(tmp_path / "a")
    left = weights(train(validated, watched)[0])
    assert all(line.val_accuracy is not None for line in watched.progress)
    assert largest_difference(left, trained(files.job(model, course), tmp_path / "b")) == 0


def test_only_what_the_stage_names_changes(tmp_path: Path, model: Path, files: Files) -> None:
    before = weights(model)
    after = trained(
        files.job(model, recipe(stage("instruct", learning_rates={"zoom_connector": 1e-3}))), tmp_path / "run"
    )
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"zoom_connector"}


def test_seed_decides_the_weights(tmp_path: Path, model: Path, files: Files) -> None:
    course = recipe(stage("align", epochs=2))
    first, again, other = (
        trained(files.job(model, course, seed=seed), tmp_path / name) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert largest_difference(first, again) == 0
    assert largest_difference(first, other) > 0


def test_batch_of_four_is_two_accumulated_batches_of_two(tmp_path: Path, model: Path, files: Files) -> None:
    one = recipe(stage("align", epochs=3, images_per_batch=4, learning_rates=ALL_PARTS))
    two = recipe(stage("align", epochs=3, images_per_batch=2, accumulate=2, learning_rates=ALL_PARTS))
    start = weights(model)
    left, right = trained(files.job(model, one), tmp_path / "a"), trained(files.job(model, two), tmp_path / "b")
    assert largest_difference(left, start) > 1e-3
    assert largest_difference(left, right) < 1e-5


def test_recipe_s_cap_a_category_decides_what_is_trained_on(tmp_path: Path, model: Path) -> None:
    files = labeled_corpus(tmp_path, num_images=8)
    course = recipe(stage("align", images_per_batch=1, per_category=1, checkpoint_every=1))
    corpus = cap_per_category(load_corpus(str(files.images), str(files.annotations)), 1, 0)
    assert len(corpus.images) < 8
    watched = place(tmp_path / "run")
    train(files.job(model, course), watched)
    assert watched.progress[-1].num_steps == len(corpus.images)


def test_bfloat16_stage_learns_and_leaves_float32_weights(tmp_path: Path, model: Path, files: Files) -> None:
    course = recipe(
        stage(
            "align",
            epochs=60,
            images_per_batch=4,
            dtype="bfloat16",
            learning_rates=dict.fromkeys(PARTS, 3e-3),
            checkpoint_every=1,
        )
    )
    watched = place(tmp_path / "run")
    made, _ = train(files.job(model, course), watched)
    assert watched.progress[-1].loss < watched.progress[0].loss / 2
    assert {value.dtype for value in weights(made).values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_model_saved_in_half_precision_is_trained_in_float32_and_saved_again(
    tmp_path: Path, files: Files, dtype: torch.dtype
) -> None:
    made, processor = tiny()
    write_model(made, processor, tmp_path / "half", dtype)
    assert {value.dtype for value in weights(tmp_path / "half").values() if value.is_floating_point()} == {dtype}
    after, processor = train(files.job(tmp_path / "half", recipe(stage("instruct"))), place(tmp_path / "run"))
    assert {parameter.dtype for parameter in after.parameters()} == {torch.float32}
    write_model(after, processor, tmp_path / "out", dtype)
    assert next(load_model(tmp_path / "out", Precision(dtype="float32")).parameters()).dtype == torch.float32


# ---- what goes wrong


def test_broken_pictures_are_counted_and_do_not_stop_the_training(tmp_path: Path, model: Path) -> None:
    files = labeled_corpus(tmp_path, num_images=4)
    for name in ("1.png", "3.png"):
        (files.images / name).write_bytes(b"no picture")
    course = recipe(
        stage("align", epochs=2, images_per_batch=1, checkpoint_every=4), stage("instruct", images_per_batch=4)
    )
    watched = place(tmp_path / "run")
    made, _ = train(files.job(model, course), watched)
    assert [(line.stage, line.step, line.num_unusable) for line in watched.progress] == [
        ("align", 4, 2),
        ("align", 8, 2),
        ("instruct", 1, 2),
    ]
    assert all(math.isfinite(line.loss) and line.loss > 0 for line in watched.progress)
    assert all(bool(value.isfinite().all()) for value in weights(made).values())
    assert "2 pictures unusable" in progress_text(watched.progress[0])


def test_gradients_that_are_not_finite_end_the_training_with_advice(tmp_path: Path, model: Path, files: Files) -> None:
    course = recipe(stage("instruct", epochs=20, learning_rates={"connector": 1e30}, clip_norm=1e30))
    with pytest.raises(
        RunError, match="stage instruct, step [0-9]+: expected finite gradients.*Lower the learning rates"
    ):
        train(files.job(model, course), place(tmp_path / "run"))


def test_stage_that_trains_nothing_that_matters_is_refused(tmp_path: Path, files: Files) -> None:
    """Without crops, and with the whole picture shut off, nothing of the tower takes part."""
    folder = tiny_folder(tmp_path / "model", zoom="off")
    course = recipe(stage("align", learning_rates={"vision_tower": 1e-3}, tower_through_image=False))
    with pytest.raises(InputError, match="stage align: nothing that learning_rates names .vision_tower. takes part"):
        train(files.job(folder, course), place(tmp_path / "run"))


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "expected whole safetensors"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "got 'llama'"),
        (lambda folder: (folder / "config.json").write_text("{"), "expected JSON"),
        (lambda folder: (folder / "processor_config.json").unlink(), "--model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "--model"),
        (lambda folder: _drop_weights(folder, "zoom_connector"), "lack 6 of the weights"),
        (lambda folder: _tower_of_kind(folder, "nosuchtower"), "--model"),
    ],
)
def test_unusable_model_folder_is_told_in_one_short_sentence(
    tmp_path: Path, files: Files, break_it: Callable[[Path], None], told: str
) -> None:
    folder = tiny_folder(tmp_path / "model")
    break_it(folder)
    with pytest.raises(InputError, match=told) as caught:
        train(files.job(folder, recipe(stage())), place(tmp_path / "run"))
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


def _drop_weights(folder: Path, part: str) -> None:
    kept = {name: value for name, value in weights(folder).items() if not name.startswith(part)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _tower_of_kind(folder: Path, kind: str) -> None:
    """transformers answers an unknown kind with a list of some hundred kinds that it knows."""
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = kind
    (folder / "config.json").write_text(json.dumps(config))


# ---- what it leaves behind


def test_loop_keeps_no_tensors_from_step_to_step(tmp_path: Path, model: Path, files: Files) -> None:
    counts: list[int] = []

    class Counting(Place):
        def report(self, progress: Progress, write_checkpoint: Callable[[Path], None] | None) -> None:
            gc.collect()
            counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))

    course = recipe(stage("instruct", epochs=4, images_per_batch=1, checkpoint_every=4, align_weight=0.5))
    (tmp_path / "run").mkdir()
    train(files.job(model, course), Counting(tmp_path / "run"))
    assert len(counts) == 4
    assert len(set(counts[1:])) == 1


def test_loader_processes_end_with_the_stage_and_change_nothing(tmp_path: Path, model: Path, files: Files) -> None:
    course = recipe(stage("align", epochs=2, augment={"geometry": 1, "colour": 1}))
    left = trained(files.job(model, course, num_loader_workers=2), tmp_path / "a")
    assert multiprocessing.active_children() == []
    assert largest_difference(left, trained(files.job(model, course), tmp_path / "b")) == 0


def test_job_can_be_sent_to_workers(files: Files, model: Path) -> None:
    job = files.job(model, recipe(stage("align", epochs=2), stage("instruct", **LORA)), seed=3)
    assert pickle.loads(pickle.dumps(job)) == job
    assert isinstance(job.recipe, Recipe)


LINE = Progress(stage="align", step=20, num_steps=100, loss=1.23456, train_accuracy=0.5, regions_per_s=33.3)


def test_progress_is_a_line_that_a_person_can_read() -> None:
    assert progress_text(LINE) == "align 20/100  loss 1.235  train 50.0 %  33 regions/s"


def test_slow_training_says_something_now_and_then(
    tmp_path: Path, model: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlabel.training.loop._HEARTBEAT_S", 0.0)
    watched = place(tmp_path / "run")
    train(files.job(model, recipe(stage(epochs=2, checkpoint_every=4))), watched)
    assert watched.steps == [("align", 1), ("align", 2), ("align", 3), ("align", 4)]
    assert len(list(watched.folder.glob("c*"))) == 1  # a line more, not a checkpoint


def test_local_run_keeps_its_two_newest_checkpoints_and_every_progress_line(tmp_path: Path) -> None:
    said: list[str] = []
    local = LocalSurroundings(tmp_path / "run", torch.device("cpu"), said.append)
    assert local.restore() is None

    def write(content: str) -> Callable[[Path], None]:
        def writer(folder: Path) -> None:
            folder.mkdir(parents=True)
            (folder / "trainer.json").write_text(content)

        return writer

    for number in range(4):
        local.report(LINE, write(str(number)))
        local.report(LINE, None)
    assert sorted(path.name for path in (tmp_path / "run").glob("*")) == [
        "checkpoint-000002",
        "checkpoint-000003",
        "progress.jsonl",
    ]
    (tmp_path / "run" / ".writing").mkdir()  # a process was killed here
    (tmp_path / "run" / ".writing" / "old").touch()
    again = LocalSurroundings(tmp_path / "run", torch.device("cpu"), said.append)
    newest = again.restore()
    assert newest is not None
    assert (newest / "trainer.json").read_text() == "3"
    again.report(LINE, write("4"))
    assert [path.name for path in again._checkpoints()] == ["checkpoint-000003", "checkpoint-000004"]
    assert not (tmp_path / "run" / "checkpoint-000004" / "old").exists()
    assert len(said) == len((tmp_path / "run" / "progress.jsonl").read_text().splitlines()) == 9


def test_local_run_without_a_folder_keeps_nothing(
    tmp_path: Path, model: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(files.job(model, recipe(stage())), LocalSurroundings(None, torch.device("cpu"), lambda line: None))
    assert list(tmp_path.iterdir()) == []
