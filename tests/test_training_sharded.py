"""Two workers that each hold a part of the model end with the weights of one process, and their checkpoints are whole."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlabel.errors import InputError
from rlabel.training.loop import train
from rlabel.training.recipe import Recipe
from rlabel.training.sharding import check_shardable
from train_factories import (
    PARTS,
    Files,
    labeled_corpus,
    largest_difference,
    place,
    recipe,
    stage,
    tiny_folder,
    weights,
)

# Starts processes; on a machine with more to do than it has cores each takes many times its seconds.
pytestmark = pytest.mark.timeout(400)
TESTS = Path(__file__).parent
LORA = {"lora": {"rank": 2, "alpha": 4}, "learning_rates": {"connector": 1e-3, "language_model": 1e-2}}


def course(num_workers: int) -> Recipe:
    """Return stages of every objective; the same pictures a step for one worker and for two."""
    parts = dict.fromkeys(PARTS, 1e-3)
    one: dict[str, Any] = {"images_per_batch": 1, "accumulate": 2 // num_workers}
    return recipe(
        stage("align", epochs=4, checkpoint_every=3, learning_rates=parts, validate_every=2, keep="last", **one),
        stage("instruct", epochs=2, checkpoint_every=3, gradient_checkpointing=True, **one, **LORA),
        stage("instruct", name="finish", epochs=2, checkpoint_every=3, weight_decay=0.1, **one),
        # Names are drawn by each worker for itself, so what this ends with is compared with nothing but itself.
        *([stage("spell", steps=2)] if num_workers > 1 else []),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny", text="qwen2")  # its head is tied


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Four pictures, of which one is broken: now and then one worker has nothing to do."""
    made = labeled_corpus(tmp_path_factory.mktemp("corpus"), num_images=4)
    (made.images / "2.png").write_bytes(b"no picture")
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model: Path, files: Files) -> Path:
    """Return the folder in which two workers have trained undisturbed, and once more killed in each stage."""
    folder = tmp_path_factory.mktemp("sharded")
    for name in ("undisturbed", "killed"):
        (folder / name).mkdir()
    validated = {"val_images_url": str(files.images), "val_annotations_url": str(files.annotations)}
    deaths = [2, 4, 2]
    (folder / "job.pickle").write_bytes(pickle.dumps((files.job(model, course(2), **validated), deaths)))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "sharded_workers.py")]
    workers = [
        subprocess.Popen([*command, str(rank), str(folder)], env=env, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        told = [worker.communicate(timeout=350)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(told)
    return folder


def after_finish(trained: Path) -> dict[str, torch.Tensor]:
    """Return the weights with which the undisturbed workers came to the stage of names."""
    (one,) = (
        one
        for one in (trained / "undisturbed").glob("c*")
        if '"stage": 3, "step": 0' in (one / "trainer.json").read_text()
    )
    return load_file(one / "weights.safetensors")


def test_two_workers_with_a_part_each_end_with_the_weights_of_one_process_that_accumulates(
    tmp_path: Path, trained: Path, model: Path, files: Files
) -> None:
    ranks = [load_file(trained / f"undisturbed{rank}.safetensors") for rank in (0, 1)]
    assert largest_difference(*ranks) == 0
    alone, _ = train(files.job(model, course(1)), place(tmp_path / "alone"))
    together, after, before = after_finish(trained), weights(alone), weights(model)
    assert largest_difference(before, {name: after[name] for name in before}) > 1e-3
    assert largest_difference(together, {name: after[name] for name in together}) < 1e-5


def test_each_worker_holds_half_of_the_model(trained: Path) -> None:
    for rank in (0, 1):
        shares = [float(share) for share in (trained / f"shares{rank}.txt").read_text().split()]
        assert len(shares) == 4
        assert all(0.45 < share < 0.55 for share in shares)


def test_sharded_training_that_was_killed_ends_with_the_same_weights(trained: Path) -> None:
    assert largest_difference(*(load_file(trained / f"{name}0.safetensors") for name in ("undisturbed", "killed"))) == 0


def test_one_process_goes_on_from_the_checkpoint_of_shards(
    tmp_path: Path, trained: Path, model: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the middle of the stage with LoRA, whose optimizer was in shards."""
    monkeypatch.setattr("rlabel.training.loop._HEARTBEAT_S", math.inf)
    kept = sorted((trained / "undisturbed").glob("c*"))
    middle = next(one for one in kept if '"stage": 1, "step": 3' in (one / "trainer.json").read_text())
    shutil.copytree(middle, tmp_path / "c000")
    run = place(tmp_path)
    made, _ = train(files.job(model, course(1)), run)
    assert run.steps[0] == ("instruct", 4)
    expected = after_finish(trained)
    assert largest_difference(expected, {name: weights(made)[name] for name in expected}) < 1e-5


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"batch_norm": "trained"}, "batch_norm"),
        ({"lora": {"base": "nf4"}, "learning_rates": {"language_model": 1e-3}}, "lora.base"),
    ],
)
def test_what_cannot_be_sharded_is_refused_by_its_field(more: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"stage instruct, {named}: --parallel fsdp cannot shard it"):
        check_shardable(stage("instruct", **more))
