"""What a training step computes: by hand arithmetic, by the plain model on one region alone, and by where gradients arrive.

Legend: R regions, D width of the language model, T tokens, V tokens of the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import model_factories
from rlabel.errors import InputError
from rlabel.labeling.conversation import Conversation
from rlabel.labeling.engine import Engine, EngineOptions, to_device_batch
from rlabel.prompts.instructions import CLASSIFY
from rlabel.prompts.templates import Turn
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor
from rlabel.training.dataset import Sample
from rlabel.training.freezing import parameter_groups
from rlabel.training.objectives import TrainingStep, learning_rate_share
from rlabel.training.packing import Row, pack, script
from train_factories import COLOURS, PARTS, Tap, rates, samples_of, stage, tiny, training_step

CPU = torch.device("cpu")
NAMES = list(COLOURS)
Made = tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]


# ---- instruct


def logits_by_place(logits_NV: Tensor, rows: Sequence[Row]) -> list[dict[int, Tensor]]:
    """Return for each packed row {place: its logits}: the head gave those of the answers only, row after row."""
    spoken = iter(logits_NV)
    return [{t: next(spoken) for t, label in enumerate(row.labels) if label >= 0} for row in rows]


def logits_alone(made: Made, sample: Sample, region: int, prompt_ids: list[int], answer: list[int]) -> Tensor:
    """Return logits_TV of transformers' plain forward for one region of one image by itself, from the last prompt token on."""
    model, processor = made
    inputs = sample.inputs
    zoom = inputs.zoom_region_index_Z
    mine = None if zoom is None else (zoom == region).nonzero()[:, 0]
    batch = to_device_batch(
        [
            replace(
                inputs,
                region_masks_RGG=inputs.region_masks_RGG[region : region + 1],
                zoom_crops_Z4SS=None
                if mine is None or inputs.zoom_crops_Z4SS is None
                else inputs.zoom_crops_Z4SS[mine],
                zoom_region_index_Z=None if mine is None else torch.zeros(len(mine), dtype=torch.long),
            )
        ],
        processor,
        CPU,
    )
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([[*prompt_ids, *answer[:-1]]]),
            pixel_values=batch.pixels_B3SS,
            region_masks=batch.region_masks_RGG,
            zoom_pixels=batch.zoom_pixels_Z3SS,
            zoom_masks=batch.zoom_masks_ZSS,
            zoom_region_index=batch.zoom_region_index_Z,
        )
    return output.logits[0, len(prompt_ids) - 1 :]


@pytest.mark.parametrize("text", ["llama", "qwen2", "gpt_neox"])
@pytest.mark.parametrize("tokens_per_region", [1, 2])
@pytest.mark.parametrize("questions", ["one", "many"])
def test_packed_row_is_each_region_alone(tmp_path: Path, text: str, tokens_per_region: int, questions: str) -> None:
    """The block mask and the positions: every region's answer has the logits that the plain model gives it without its row-mates; the loss is their mean."""
    made = tiny(text=text, tokens_per_region=tokens_per_region)
    model, processor = made
    made[0].eval()
    step = TrainingStep(model, processor, stage("instruct"), NAMES)
    samples = []
    for i, sample in enumerate(samples_of(tmp_path, processor, num_images=3)):
        names = sample.names[: 1 + i]  # rows of 1, 2 and 3 regions: two are padded
        asked = [CLASSIFY[(region * 3 if questions == "many" else 0) + i] for region in range(len(names))]
        conversations = tuple(
            (Turn(question=question, mentions=(region,), answer=name),)
            for region, (question, name) in enumerate(zip(asked, names, strict=True))
        )
        samples.append(_with_regions(replace(sample, names=names, conversations=conversations), len(names)))
    tap = Tap(model)
    result = step(samples)
    losses: list[Tensor] = []
    right = 0
    rows = [
        pack([script(processor, turns) for turns in sample.conversations], processor.region_token_id)
        for sample in samples
    ]
    for row, spoken, sample in zip(rows, logits_by_place(tap.logits.detach(), rows), samples, strict=True):
        for region, (turn,) in enumerate(sample.conversations):
            answer = processor.answer_ids(str(turn.answer))
            prompt_ids = processor.conversation_ids([turn.unanswered()])
            wanted_TV = logits_alone(made, sample, region, prompt_ids, answer)
            places = [t for t, label in enumerate(row.labels) if label >= 0 and row.owners[t] == region]
            assert [row.labels[t] for t in places] == answer
            got_TV = torch.stack([spoken[t] for t in places])
            assert torch.allclose(got_TV, wanted_TV, atol=1e-4), float((got_TV - wanted_TV).abs().max())
            losses.append(F.cross_entropy(wanted_TV, torch.tensor(answer), reduction="none"))
            right += int(wanted_TV.argmax(-1).tolist() == answer)
    assert result.loss.item() == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)
    assert (result.num_right, result.num_regions) == (right, 6)


@pytest.mark.parametrize("template", [False, True])
def test_one_conversation_of_many_turns_is_what_the_labeler_would_go_through(tmp_path: Path, template: bool) -> None:
    """Each answer is trained behind the tokens that `Conversation` has in its cache when it says it; questions of two regions name the right ones."""
    made = tiny()
    model, processor = made
    made[0].eval()
    processor.tokenizer.chat_template = model_factories.CHAT_TEMPLATE if template else None
    sample = samples_of(tmp_path, processor, num_images=1)[0]
    turns = (
        Turn(question="Name <region>.", mentions=(2,), answer="cat"),
        Turn(question="Is <region> left of <region>?", mentions=(1, 0), answer="dog cat"),
        Turn(question="And now?", answer="dog"),
    )
    step = TrainingStep(model, processor, stage("instruct"), NAMES)
    tap = Tap(model)
    result = step([replace(sample, conversations=(turns,))])
    trained_TV = tap.logits.detach()
    conversation = Conversation(model, processor, sample.inputs, max_new_tokens=1)
    losses = []
    ids: list[int] = []
    for number, turn in enumerate(turns):
        answer = processor.answer_ids(str(turn.answer))
        ids += [*processor.turn_ids(turns[: number + 1]), *answer[:-1]]
        mentions = [index for one in turns[: number + 1] for index in one.mentions]
        with torch.no_grad():
            embeddings = conversation._embed(ids, 0, mentions)
            logits_TV = model.language_model(inputs_embeds=embeddings).logits[0, -len(answer) :]
        losses.append(F.cross_entropy(logits_TV, torch.tensor(answer), reduction="none"))
        start = sum(len(processor.answer_ids(str(one.answer))) for one in turns[:number])
        got_TV = trained_TV[start : start + len(answer)]
        assert torch.allclose(got_TV, logits_TV, atol=1e-4)
    assert result.loss.item() == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)
    assert result.num_regions == 1


def _with_regions(sample: Sample, count: int) -> Sample:
    inputs = sample.inputs
    assert inputs.zoom_crops_Z4SS is not None and inputs.zoom_region_index_Z is not None
    kept = replace(
        inputs,
        region_masks_RGG=inputs.region_masks_RGG[:count],
        zoom_crops_Z4SS=inputs.zoom_crops_Z4SS[:count],
        zoom_region_index_Z=inputs.zoom_region_index_Z[:count],
    )
    return replace(sample, inputs=kept)


def test_teacher_forcing_of_the_engine_s_own_answer_has_the_engine_s_probabilities(tmp_path: Path) -> None:
    """Training's row and the labeling engine agree on every token of what the engine says."""
    made = tiny()
    model, processor = made
    engine = Engine(model, processor, EngineOptions(max_new_tokens=4))
    sample = samples_of(tmp_path, processor, num_images=1)[0]
    said: list[list[int]] = []
    engine.processor.decode_answer = lambda ids: said.append(list(ids)) or ""  # type: ignore[method-assign, func-returns-value]
    decoded = engine.answer([sample.inputs])[0]
    step = TrainingStep(model, processor, stage("instruct"), NAMES)
    end = processor.tokenizer.eos_token_id
    answers = {name: [*ids, end] for name, ids in zip(sample.names, said, strict=True)}
    processor.answer_ids = answers.__getitem__  # type: ignore[method-assign]
    asked = tuple((Turn(question=CLASSIFY[0], mentions=(i,), answer=name),) for i, name in enumerate(sample.names))
    tap = Tap(model)
    step([replace(sample, conversations=asked)])
    row = pack([script(processor, turns) for turns in asked], processor.region_token_id)
    (logprobs,) = logits_by_place(tap.logits.detach().log_softmax(-1), [row])
    for region, (ids, answer) in enumerate(zip(said, decoded, strict=True)):
        places = [t for t, label in enumerate(row.labels) if label >= 0 and row.owners[t] == region]
        forced = [float(logprobs[t][token]) for t, token in zip(places, ids, strict=False)]
        assert forced == pytest.approx(list(answer.token_logprobs[: len(ids)]), abs=1e-4)
    assert sum(map(len, said)) > 0


def test_loss_is_on_the_answers_only(tmp_path: Path) -> None:
    made = tiny()
    step = training_step(made, stage("instruct"))
    samples = samples_of(tmp_path, made[1])
    tap = Tap(made[0])
    step(samples).loss.backward()
    assert tap.logits.grad is not None
    num_answer_tokens = sum(len(made[1].answer_ids(name)) for sample in samples for name in sample.names)
    assert int((tap.logits.grad.abs().sum(-1) > 0).sum()) == num_answer_tokens


def test_align_weight_adds_the_align_loss(tmp_path: Path) -> None:
    made = tiny()
    samples = samples_of(tmp_path, made[1])
    losses = {
        weight: float(training_step(made, stage(objective, align_weight=weight))(samples).loss.detach())
        for objective, weight in (("instruct", 0.0), ("instruct", 0.5))
    }
    align = float(training_step(made, stage("align")).eval()(samples).loss.detach())
    assert losses[0.5] == pytest.approx(losses[0.0] + 0.5 * align, rel=1e-5)


# ---- what is trained


@pytest.mark.parametrize("objective", ["align", "instruct"])
@pytest.mark.parametrize("part", PARTS)
def test_gradients_reach_the_named_part_and_no_other(tmp_path: Path, objective: str, part: str) -> None:
    made = tiny()
    step = training_step(made, stage(objective, learning_rates=rates(part, "zoom_connector"), batch_norm="trained"))
    step(samples_of(tmp_path, made[1])).loss.backward()
    reached = {
        name.split(".")[0]
        for name, parameter in made[0].named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    # Aligning makes no language model pass, and word embeddings are its fixed targets.
    assert reached == {part, "zoom_connector"} - ({"language_model"} if objective == "align" else set())
    freed = {name.split(".")[0] for name, parameter in made[0].named_parameters() if parameter.requires_grad}
    assert freed == {part, "zoom_connector"}


def test_the_longest_name_decides_a_learning_rate() -> None:
    model, _ = tiny()
    groups = parameter_groups(
        model, stage("instruct", learning_rates={"language_model": 1e-3, "language_model.lm_head": 1e-5})
    )
    by_rate: dict[Any, list[Any]] = {group["lr"]: list(group["params"]) for group in groups}  # type: ignore[call-overload]
    assert [parameter is model.language_model.lm_head.weight for parameter in by_rate[1e-5]] == [True]
    assert len(by_rate[1e-3]) == len(list(model.language_model.parameters())) - 1
    assert all(group["peak_lr"] == group["lr"] for group in groups)


def test_a_name_is_a_whole_component_not_the_beginning_of_a_word() -> None:
    with pytest.raises(InputError, match="learning_rates: expected names of this model's weights, got 'language'"):
        parameter_groups(tiny()[0], stage(learning_rates=rates("connector", "language")))


def test_misspelt_part_is_refused_with_the_parts_there_are() -> None:
    with pytest.raises(
        InputError,
        match="got 'conector'. Its parts: connector, language_model, refinement, vision_tower, zoom_connector",
    ):
        parameter_groups(tiny()[0], stage(learning_rates=rates("connector", "conector")))


def test_parts_that_only_other_models_have_may_be_named_but_not_alone() -> None:
    model, _ = tiny(zoom="off", refine=False)
    named = rates("connector", "refinement", "region_connector", "zoom_connector")
    assert len(parameter_groups(model, stage(learning_rates=named))) == 1
    with pytest.raises(InputError, match="got 'zoom_connector'"):
        parameter_groups(model, stage(learning_rates=rates("zoom_connector")))


def statistics(model: RegionGPTForConditionalGeneration) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


@pytest.mark.parametrize(
    ("batch_norm", "trained", "change"), [("trained", True, True), ("frozen", True, False), ("trained", False, False)]
)
def test_batch_statistics_change_only_where_the_recipe_trains_them(
    tmp_path: Path, batch_norm: str, trained: bool, change: bool
) -> None:
    made = tiny()
    parts = rates("connector", "zoom_connector", *(["vision_tower"] if trained else []))
    step = training_step(made, stage(learning_rates=parts, batch_norm=batch_norm))
    before = statistics(made[0])
    samples = samples_of(tmp_path, made[1])
    step(samples).loss.backward()
    after = statistics(made[0])
    assert before
    assert any(not torch.equal(before[name], after[name]) for name in before) is change
    made[0].eval()
    before = statistics(made[0])
    step.eval()(samples)  # validation changes nothing in any case
    assert all(torch.equal(before[name], value) for name, value in statistics(made[0]).items())


def test_whole_pictures_never_change_batch_statistics(tmp_path: Path) -> None:
    made = tiny(zoom="off")
    step = training_step(made, stage(learning_rates=rates("vision_tower", "connector"), batch_norm="trained"))
    before = statistics(made[0])
    step(samples_of(tmp_path, made[1])).loss.backward()
    assert all(torch.equal(before[name], value) for name, value in statistics(made[0]).items())


@pytest.mark.parametrize(
    ("zoom", "through_image", "reached"),
    [("off", False, False), ("off", True, True), ("all", False, True), ("all", True, True)],
)
def test_gradients_reach_the_tower_through_the_paths_that_are_open(
    tmp_path: Path, zoom: str, through_image: bool, reached: bool
) -> None:
    made = tiny(zoom=zoom)
    step = training_step(
        made,
        stage(
            learning_rates=rates("vision_tower", "connector"), tower_through_image=through_image, batch_norm="trained"
        ),
    )
    step(samples_of(tmp_path, made[1])).loss.backward()
    assert (
        any(
            parameter.grad is not None and bool(parameter.grad.any()) for parameter in made[0].vision_tower.parameters()
        )
        is reached
    )
    # The connector learns from the whole picture in any case.
    assert all(parameter.grad is not None for parameter in made[0].connector.parameters())


def test_the_whole_picture_adds_its_own_gradient_to_that_of_the_crops(tmp_path: Path) -> None:
    gradients = []
    for through_image in (False, True):
        made = tiny()
        step = training_step(
            made, stage(learning_rates=rates("vision_tower", "connector"), tower_through_image=through_image)
        )
        step(samples_of(tmp_path, made[1])).loss.backward()
        gradients.append(made[0].vision_tower.stem[0].weight.grad)
    assert gradients[0] is not None and gradients[1] is not None
    assert not torch.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize("objective", ["align", "instruct"])
def test_batch_without_a_usable_picture_has_a_loss_of_zero_that_reaches_every_trained_weight(objective: str) -> None:
    """A worker must meet the others at every step, or they would wait for it for ever."""
    made = tiny()
    step = training_step(made, stage(objective, learning_rates=rates(*PARTS)))
    result = step([])
    result.loss.backward()
    assert (result.loss.item(), result.num_right, result.num_regions) == (0.0, 0, 0)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in made[0].parameters())


def test_bfloat16_computes_in_bfloat16_and_keeps_the_weights_in_float32(tmp_path: Path) -> None:
    made = tiny()
    samples = samples_of(tmp_path, made[1])
    exact = training_step(made, stage("instruct"))(samples).loss
    tap = Tap(made[0])
    rounded = training_step(made, stage("instruct", dtype="bfloat16"))(samples).loss
    rounded.backward()
    assert tap.logits.dtype == torch.bfloat16
    assert rounded.dtype == torch.float32
    assert {parameter.dtype for parameter in made[0].parameters()} == {torch.float32}
    assert rounded.item() != exact.item()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


# ---- schedule


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.5),  # two steps of warm-up
        (1, 1.0),
        (2, 1.0),  # the cosine begins at its top
        (4, (1 + math.sqrt(0.5)) / 2),  # cos(pi / 4)
        (6, 0.5),
        (8, (1 - math.sqrt(0.5)) / 2),
        (9, 0.0380602),  # (1 + cos(7 pi / 8)) / 2
    ],
)
def test_learning_rate_of_ten_steps_by_hand(step: int, share: float) -> None:
    assert learning_rate_share(step, 10, 0.2) == pytest.approx(share, abs=1e-6)


@given(st.integers(1, 300), st.floats(0, 1))
def test_learning_rate_rises_to_the_peak_then_falls_and_every_step_learns(num_steps: int, warmup: float) -> None:
    shares = [learning_rate_share(step, num_steps, warmup) for step in range(num_steps)]
    top = shares.index(max(shares))
    assert max(shares) == 1.0
    assert all(0 < share <= 1 for share in shares)
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
