"""Validation decides which weights a stage leaves and when it ends, and a run that was killed decides the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from rlabel.errors import InputError
from rlabel.training.corpus import TrainCorpus
from rlabel.training.loop import TrainJob, train
from rlabel.training.objectives import TrainingStep
from rlabel.training.progress import progress_text
from train_factories import (
    PARTS,
    Files,
    Killed,
    Place,
    largest_difference,
    place,
    recipe,
    stage,
    weights,
)

STEPS = 8
# Accuracy after each step. Up to step 3 it gets better; then patience of 3 waits in vain, since step 5 is only as good.
SCRIPT = {1: 0.2, 2: 0.1, 3: 0.6, 4: 0.5, 5: 0.6, 6: 0.3, 7: 0.9, 8: 0.7}
ALL_PARTS = dict.fromkeys(PARTS, 1e-3)


@pytest.fixture(autouse=True)
def _validation_by_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    def scripted(step: TrainingStep, corpus: TrainCorpus) -> float:
        step.model.eval()
        return SCRIPT[1 + round(step.progress * STEPS)]

    monkeypatch.setattr("rlabel.training.loop.validate", scripted)
    monkeypatch.setattr("rlabel.training.loop._HEARTBEAT_S", math.inf)


def validated(files: Files, model: Path, *stages: Any) -> TrainJob:
    return files.job(
        model, recipe(*stages), val_images_url=str(files.images), val_annotations_url=str(files.annotations)
    )


def eight_steps(**more: Any) -> Any:
    fields = {"epochs": 4, "validate_every": 1, "checkpoint_every": 1, "learning_rates": ALL_PARTS}
    return stage("align", batch_norm="trained", **{**fields, **more})


def checkpoint_of(run: Place, step: int) -> dict[str, Any]:
    """Return the weights of the checkpoint after a step of the first stage."""
    (folder,) = (one for one in run.folder.glob("c*") if place_of(one)["stage"] == 0 and place_of(one)["step"] == step)
    return load_file(folder / "weights.safetensors")


def place_of(checkpoint: Path) -> dict[str, Any]:
    content = json.loads((checkpoint / "trainer.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize(
    ("more", "last", "kept", "best"),
    [
        ({}, 8, 7, 0.9),
        ({"keep": "last"}, 8, 8, 0.9),
        ({"patience": 4}, 8, 7, 0.9),  # steps 4, 5 and 6 are not better, step 7 is
        ({"patience": 3}, 6, 5, 0.6),  # of steps 3 and 5, which are equal, the later
        ({"patience": 3, "keep": "last"}, 6, 6, 0.6),
        ({"patience": 1}, 2, 1, 0.2),
        ({"validate_every": 3}, 8, 8, 0.7),  # steps 3, 6 and the last
        ({"validate_every": 4, "patience": 1}, 8, 8, 0.7),
    ],
)
def test_stage_ends_when_patience_does_and_leaves_the_weights_that_it_shall_keep(
    tmp_path: Path, model: Path, files: Files, more: dict[str, Any], last: int, kept: int, best: float
) -> None:
    run = place(tmp_path / "run")
    made, _ = train(validated(files, model, eight_steps(**more)), run)
    assert [step for _, step in run.steps] == list(range(1, last + 1))
    line = run.progress[-1]
    assert (line.kept_step, line.best_accuracy, line.is_end) == (kept, best, True)
    assert ("ends early" in progress_text(line)) == (last < STEPS)
    assert all(one.kept_step is None and not one.is_end for one in run.progress[:-1])
    if kept == last:  # its checkpoint points at the next stage already
        assert largest_difference(weights(made), load_file(run.restore() / "weights.safetensors")) == 0  # type: ignore[operator]
        assert largest_difference(weights(made), checkpoint_of(run, last - 1)) > 0
    else:
        assert largest_difference(weights(made), checkpoint_of(run, kept)) == 0


def test_next_stage_goes_on_from_the_weights_that_were_kept(tmp_path: Path, model: Path, files: Files) -> None:
    """In one step with a rate of next to nothing nothing moves."""
    still = stage("align", name="still", epochs=1, images_per_batch=4, learning_rates={"connector": 1e-30}, keep="last")
    run = place(tmp_path / "run")
    made, _ = train(validated(files, model, eight_steps(), still), run)
    assert run.steps[-1] == ("still", 1)
    assert largest_difference(weights(made), checkpoint_of(run, 7)) == 0


def test_checkpoint_says_which_step_was_best_and_how_long_that_is_ago(
    tmp_path: Path, model: Path, files: Files
) -> None:
    run = place(tmp_path / "run")
    train(validated(files, model, eight_steps(patience=4)), run)
    places = {place_of(one)["step"]: place_of(one) for one in run.folder.glob("c*")}
    told = {step: (one["best_accuracy"], one["best_step"], one["num_stale"]) for step, one in places.items() if step}
    assert told == {
        1: (0.2, 1, 0),
        2: (0.2, 1, 1),
        3: (0.6, 3, 0),
        4: (0.6, 3, 1),
        5: (0.6, 5, 2),
        6: (0.6, 5, 3),
        7: (0.9, 7, 0),
    }
    assert places[0] == {"stage": 1, "step": 0, "best_accuracy": None, "best_step": 0, "num_stale": 0}
    # The best weights lie beside the newest where they are others.
    best = {place_of(one)["step"] for one in run.folder.glob("c*") if (one / "best.safetensors").exists()}
    assert best == {2, 4, 6}


LORA = {"lora": {"rank": 2, "alpha": 4}, "learning_rates": {"connector": 1e-3, "language_model": 1e-2}}
# Validated after each step, a checkpoint after every second: the best step may lie before it, be it, or come after it.
COURSES = {
    "full": (eight_steps(patience=3, checkpoint_every=2), stage("instruct", keep="last")),
    "lora": (stage("instruct", name="align", epochs=4, validate_every=1, patience=3, checkpoint_every=2, **LORA),),
}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, model: Path, files: Files
) -> Callable[[str], dict[str, torch.Tensor]]:
    @cache
    def run(course: str) -> dict[str, torch.Tensor]:
        watched = place(tmp_path_factory.mktemp(course))
        made, _ = train(validated(files, model, *COURSES[course]), watched)
        assert [step for name, step in watched.steps if name == "align"] == [1, 2, 3, 4, 5, 6]
        return weights(made)

    return run


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("deaths", [[1], [3], [4], [6], [2, 1, 1]])
def test_killed_training_keeps_the_same_weights_as_an_undisturbed_one(
    tmp_path: Path,
    model: Path,
    files: Files,
    undisturbed: Callable[[str], dict[str, torch.Tensor]],
    deaths: list[int],
    course: str,
) -> None:
    job = validated(files, model, *COURSES[course])
    expected = undisturbed(course)
    for number in deaths:
        with pytest.raises(Killed):
            train(job, place(tmp_path / "run", die_at_report=number))
    made, _ = train(job, place(tmp_path / "run"))
    assert largest_difference(expected, weights(made)) == 0


def test_without_validation_the_last_step_is_left(tmp_path: Path, model: Path, files: Files) -> None:
    run = place(tmp_path / "run")
    train(files.job(model, recipe(eight_steps(validate_every=None))), run)
    assert (run.progress[-1].kept_step, run.progress[-1].step, run.progress[-1].is_end) == (None, 8, True)


def test_patience_without_validations_is_refused_before_the_first_step(
    tmp_path: Path, model: Path, files: Files
) -> None:
    run = place(tmp_path / "run")
    with pytest.raises(InputError, match="stage align, patience: expected something to validate on.*--val-images"):
        train(files.job(model, recipe(eight_steps(patience=2))), run)
    assert not run.progress
    with pytest.raises(ValidationError, match="give validate_every too"):
        eight_steps(patience=2, validate_every=None)
