"""A training that was killed resumes to the bit, checkpoints fit their model alone, and LoRA ends as plain weights."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlabel.errors import InputError
from rlabel.labeling.engine import to_device_batch
from rlabel.regiongpt.assembly import load_processor, save
from rlabel.regiongpt.quantization import load_model
from rlabel.training.checkpoint import load_weights, save_weights
from rlabel.training.dataset import BatchDataset
from rlabel.training.loop import train, write_model
from rlabel.training.parts import load_corpus
from train_factories import (
    PARTS,
    Files,
    Killed,
    Place,
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


# ---- resuming

COURSE = recipe(
    stage(
        "align",
        epochs=3,
        learning_rates=ALL_PARTS,
        batch_norm="trained",
        checkpoint_every=2,
        decorrelate=True,
        anchor={"vision_tower": 0.25},
        augment={"geometry": 1, "keep": [0.0, 0.5]},
    ),
    stage("instruct", epochs=2, checkpoint_every=2, **LORA),
    stage("spell", steps=4, checkpoint_every=2),
    stage("instruct", name="finish", epochs=2, weight_decay=0.1, warmup=0.5, checkpoint_every=3, augment={"colour": 1}),
)


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, processor = tiny(name_map=True, name_memory=0)
    made.config.text_config.attention_dropout = 0.3
    folder = tmp_path_factory.mktemp("dropout") / "model"
    save(made, processor, folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, with_dropout: Path, files: Files) -> Place:
    folder = tmp_path_factory.mktemp("undisturbed")
    watched = place(folder)
    made, _ = train(files.job(with_dropout, COURSE), watched)
    save_file(weights(made), folder / "model.safetensors")
    return watched


# Reports: align 2, 4, 6 (its end), instruct 2, 4 (its end), spell 2, 4 (its end), finish 3, 4 (its end).
@pytest.mark.parametrize("deaths", [[1], [3], [4], [5], [6], [7], [8], [9], [2, 2, 2, 2]])
def test_killed_training_ends_with_the_weights_of_an_undisturbed_one_to_the_bit(
    tmp_path: Path, with_dropout: Path, files: Files, undisturbed: Place, deaths: list[int]
) -> None:
    assert undisturbed.steps == [
        ("align", 2),
        ("align", 4),
        ("align", 6),
        ("instruct", 2),
        ("instruct", 4),
        ("spell", 2),
        ("spell", 4),
        ("finish", 3),
        ("finish", 4),
    ]
    job = files.job(with_dropout, COURSE)
    done = 0
    for reports in deaths:
        dying = place(tmp_path, die_at_report=reports)
        with pytest.raises(Killed):
            train(job, dying)
        done += reports
        assert dying.steps == undisturbed.steps[done - reports : done]
        torch.rand(3)  # another process has other random numbers behind it
    after, _ = train(job, resumed := place(tmp_path))
    assert resumed.steps == undisturbed.steps[done:]
    assert largest_difference(weights(after), weights(undisturbed.folder)) == 0


def test_dropout_is_really_on_in_these_runs(with_dropout: Path, files: Files, tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "without", name_map=True, name_memory=0)
    course = recipe(stage("instruct"))
    assert (
        largest_difference(
            trained(files.job(with_dropout, course), tmp_path / "a"), trained(files.job(model, course), tmp_path / "b")
        )
        > 0
    )


def test_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    save_weights(tiny()[0].state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="refinement.0.* does not fit"):
        load_weights(tiny(refine=False)[0], tmp_path)
    save_weights(tiny(refine=False)[0].state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="refinement.0.* does not fit"):
        load_weights(tiny()[0], tmp_path)


@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_checkpoint_keeps_tied_weights_once_and_gives_them_back(tmp_path: Path, text: str) -> None:
    made, _ = tiny(text=text)
    save_weights(made.state_dict(), tmp_path / "weights.safetensors")
    other, _ = tiny(text=text, seed=1)
    assert largest_difference(weights(made), weights(other)) > 0
    load_weights(other, tmp_path)
    assert largest_difference(weights(made), weights(other)) == 0


# ---- LoRA


def test_lora_trains_the_language_model_and_is_saved_as_plain_weights(
    tmp_path: Path,
    model: Path,
    files: Files,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    course = recipe(stage("instruct", epochs=4, images_per_batch=4, checkpoint_every=1, **LORA))
    watched = place(tmp_path / "run")
    made, processor = train(files.job(model, course), watched)
    assert watched.progress[-1].loss < watched.progress[0].loss
    before, after = weights(model), weights(made)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    language = {name for name in changed if name.startswith("language_model.")}
    assert {name.split(".")[0] for name in changed} == {"language_model", "connector"}
    assert all("proj" in name for name in language)  # linear layers, neither embeddings nor norms nor the head
    # Merged: the difference of every layer has the rank of the recipe.
    for name in language:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= 2

    write_model(made, processor, tmp_path / "out")
    assert capfd.readouterr().err == ""
    # What Python shows to users by default.
    assert not [str(shown.message) for shown in recwarn if issubclass(shown.category, UserWarning | FutureWarning)]
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = load_model(tmp_path / "out")
    assert weights(tmp_path / "out").keys() == weights(model).keys()
    corpus = load_corpus(str(files.images), str(files.annotations))
    samples = BatchDataset(corpus, processor, course.stages[0], 0, 0, 1)[0][:1]
    prompt = processor.prompt("Name <region>.")
    batch = to_device_batch(
        [sample.inputs for sample in samples], load_processor(str(tmp_path / "out")), torch.device("cpu")
    )
    logits = []
    for one in (made, loaded):
        with torch.no_grad():
            maps, image_tokens = one.encode_images(batch.pixels_B3SS)
            regions = one.encode_regions(
                maps,
                batch.region_masks_RGG,
                batch.region_image_index_R,
                batch.zoom_pixels_Z3SS,
                batch.zoom_masks_ZSS,
                batch.zoom_region_index_Z,
            )
            ids = torch.tensor([[*prompt.prefix_ids, *prompt.suffix_ids]])
            logits.append(one.language_model(inputs_embeds=one.embed_prompt(ids, image_tokens, regions[:1])).logits)
    assert torch.equal(logits[0], logits[1])
