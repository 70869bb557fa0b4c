"""The memory of names: what it holds, what region tokens recall of it, and that it goes along with the model; weights drawn back to where they began."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import model_factories
from rlabel.errors import InputError
from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.regiongpt.assembly import load_processor, save
from rlabel.regiongpt.quantization import Precision, load_model
from rlabel.training.anchor import draw_back
from rlabel.training.names import learn_name_map, name_embeddings, remember_names
from train_factories import (
    COLOURS,
    rates,
    samples_of,
    stage,
    tiny,
    training_step,
)

NAMES = ["cat", "dog", "fire hydrant"]


def with_memory(names: list[str] = NAMES, **more):
    model, processor = tiny(name_memory=0, **more)
    remember_names(model, processor, names)
    return model, processor


def test_a_token_is_drawn_to_the_names_it_recalls_by_hand() -> None:
    """Names (1, 0) and (0, 1); a token (6, 8): unit (0.6, 0.8). Temperature 0.5: logits 1.2 and 1.6; shares 1 / (1 + e^0.4) = 0.401312 and 0.598688.

    Recalled: (0.401312, 0.598688) / 0.720738 = (0.556807, 0.830659). With weight 2: (0.6, 0.8) + (1.113614, 1.661318) = (1.713614, 2.461318),
    of length 2.999091; times 10: (5.713778, 8.206880).
    """
    model, _ = tiny(name_memory=0)
    width = model.get_input_embeddings().weight.shape[1]
    model.set_name_memory(torch.eye(width)[:2])
    model.config.name_memory_weight, model.config.name_memory_temperature = 2.0, 0.5
    token_RKD = torch.zeros(1, 1, width)
    token_RKD[0, 0, :2] = torch.tensor([6.0, 8.0])
    got = model.recall(token_RKD)[0, 0]
    assert got[:2].tolist() == pytest.approx([5.713778, 8.206880], abs=1e-4)
    assert not got[2:].any()


def test_without_a_memory_tokens_stay_as_they_are() -> None:
    model, processor = tiny()
    tokens = torch.randn(2, 1, 32)
    assert model.recall(tokens) is tokens
    remember_names(model, processor, NAMES)  # a model without one is not given one
    assert model.config.name_memory is None and model.recall(tokens) is tokens


def test_several_tokens_of_a_region_move_together_and_keep_their_mean_length() -> None:
    model, _ = with_memory(tokens_per_region=2)
    tokens_RKD = torch.randn(3, 2, 32)
    moved_RKD = model.recall(tokens_RKD)
    assert torch.allclose(moved_RKD[:, 0] - tokens_RKD[:, 0], moved_RKD[:, 1] - tokens_RKD[:, 1], atol=1e-6)
    assert torch.allclose(moved_RKD.mean(1).norm(dim=-1), tokens_RKD.mean(1).norm(dim=-1), atol=1e-5)


def test_new_names_are_added_and_known_ones_are_not() -> None:
    model, processor = with_memory()
    ids = {name: processor.answer_ids(name) for name in NAMES}
    wanted = F.normalize(name_embeddings(model, ids), dim=-1)
    assert torch.allclose(model.get_buffer("name_memory"), wanted)
    remember_names(model, processor, ["dog", "bus", "cat", "bus"])
    assert model.config.name_memory == 4
    assert torch.equal(model.get_buffer("name_memory")[:3], wanted)
    remember_names(model, processor, [])
    assert model.config.name_memory == 4


def test_a_new_name_map_leaves_the_names_it_was_learned_from_and_no_other() -> None:
    model, processor = with_memory(["bus", *NAMES], name_map=True)
    ids = {name: processor.answer_ids(name) for name in NAMES}
    learn_name_map(model, ids, "align")
    memory_ND = model.get_buffer("name_memory")
    assert torch.allclose(memory_ND[:3], F.normalize(name_embeddings(model, ids), dim=-1), atol=1e-5)
    assert not memory_ND[3:].any()


def test_the_memory_goes_along_with_the_model_and_changes_its_answers(tmp_path: Path) -> None:
    model, processor = with_memory()
    save(model, processor, tmp_path / "model")
    again = load_model(str(tmp_path / "model"), Precision(), "cpu")
    assert torch.equal(again.get_buffer("name_memory"), model.get_buffer("name_memory"))
    inputs = model_factories.random_inputs(processor, [2])
    engine = Engine(again, load_processor(str(tmp_path / "model")), EngineOptions())
    with torch.inference_mode():
        before = engine.encode(inputs).regions_RKD
        again.set_name_memory(again.get_buffer("name_memory")[:1])
        assert not torch.equal(engine.encode(inputs).regions_RKD, before)


def test_alignment_sees_tokens_as_they_are_and_the_language_model_as_they_recall(tmp_path: Path) -> None:
    plain, remembering = tiny(), with_memory(list(COLOURS))
    remembering[0].load_state_dict(plain[0].state_dict(), strict=False)
    samples = samples_of(tmp_path, plain[1])
    losses = {}
    for objective in ("align", "instruct"):
        for name, made in (("plain", plain), ("remembering", remembering)):
            torch.manual_seed(0)
            losses[objective, name] = training_step(made, stage(objective))(samples).loss.item()
    assert losses["align", "plain"] == losses["align", "remembering"]
    assert losses["instruct", "plain"] != losses["instruct", "remembering"]


def test_spelling_shows_made_up_tokens_as_they_recall() -> None:
    made = with_memory(list(COLOURS))
    step = training_step(made, stage("spell"))
    torch.manual_seed(0)
    remembered = step(list(COLOURS) * 5).loss.item()
    made[0].config.name_memory = None
    torch.manual_seed(0)
    assert step(list(COLOURS) * 5).loss.item() != remembered


def test_weights_are_drawn_back_by_the_longest_prefix() -> None:
    trained, start = (
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
    )
    for value, model in ((1.0, trained), (0.0, start)):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, value)
    draw_back(trained, start, {"0": 0.25, "0.bias": 1.0})
    means = {name: float(parameter.detach().mean()) for name, parameter in trained.named_parameters()}
    assert means == {"0.weight": 0.75, "0.bias": 0.0, "1.weight": 1.0, "1.bias": 1.0}


def test_an_anchor_that_the_model_does_not_have_is_refused() -> None:
    names = ["vision_tower.stem.weight", "connector.weight"]
    stage(learning_rates=rates("connector"), anchor={"vision_tower": 0.2}).check_names(names)
    with pytest.raises(InputError, match="stage align, anchor: .* got 'tower'"):
        stage(learning_rates=rates("connector"), anchor={"tower": 0.2}).check_names(names)
