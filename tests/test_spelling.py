"""What the language model is shown while it learns to spell, and what reaches its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rlabel.prompts.tasks import RegionFacts
from rlabel.training.spelling import Bank, EncodedPicture, disturb, make_up, make_up_boxes, place_facts
from train_factories import PARTS, Tap, rates, samples_of, stage, tiny, training_step


def embeddings(num: int = 20, width: int = 64) -> torch.Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(0)) * 0.02


def test_made_up_tokens_carry_the_name_they_are_nearest_to() -> None:
    names_ND = embeddings()
    torch.manual_seed(0)
    index_R = torch.arange(20).repeat(50)
    tokens_RD, nearest_R = make_up(index_R, names_ND, None)
    for token_D, nearest in zip(tokens_RD, nearest_R.tolist(), strict=True):
        cosines = [float(F.cosine_similarity(token_D, name_D, dim=0)) for name_D in names_ND]
        assert max(range(20), key=cosines.__getitem__) == nearest
    # Most stay with the name they were made around; some were drawn so far towards another that they are its own.
    assert 0.5 < float((nearest_R == index_R).float().mean()) < 1.0


def test_made_up_tokens_are_as_long_as_words_and_some_lie_far_from_every_name() -> None:
    names_ND = embeddings()
    torch.manual_seed(0)
    tokens_RD, nearest_R = make_up(torch.arange(20).repeat(50), names_ND, None)
    ratio_R = tokens_RD.norm(dim=-1) / names_ND[nearest_R].norm(dim=-1)
    assert float(ratio_R.min()) >= 0.6 and float(ratio_R.max()) <= 1.4
    cosine_R = F.cosine_similarity(tokens_RD, names_ND[nearest_R])
    assert float(cosine_R.min()) < 0.5 < 0.95 < float(cosine_R.max())


def test_easy_tokens_lie_near_their_names() -> None:
    names_ND = embeddings()
    torch.manual_seed(0)
    index_R = torch.arange(20).repeat(50)
    tokens_RD, nearest_R = make_up(index_R, names_ND, None, hardness=0.2)
    assert torch.equal(nearest_R, index_R)
    assert float(F.cosine_similarity(tokens_RD, names_ND[index_R]).min()) > 0.85


def test_made_up_tokens_miss_in_the_directions_in_which_real_ones_do() -> None:
    """All real tokens miss along one axis that no name has: half of the made-up ones must lie along it too."""
    names_ND = F.pad(embeddings(), (0, 1))
    axis_D = F.one_hot(torch.tensor(64), 65).float()
    picture = EncodedPicture(
        image_1TD=torch.zeros(1, 4, 65),
        regions_RD=names_ND[:2] + 0.3 * axis_D,
        boxes_R5=torch.zeros(2, 5),
        facts=tuple(RegionFacts(box_xywh=(0, 0, 1, 1), area_px=1, name=name) for name in ("a", "b")),
    )
    bank = Bank(pictures=[picture])
    bank.finish({"a": 0, "b": 1})
    torch.manual_seed(0)
    misses_RD = bank.draw_misses(1000, names_ND)
    assert misses_RD is not None
    assert torch.allclose(misses_RD, axis_D.expand(1000, -1), atol=1e-5)
    torch.manual_seed(0)
    tokens_RD, _ = make_up(torch.arange(20).repeat(50), names_ND, misses_RD)
    along_R = F.normalize(tokens_RD, dim=-1)[:, 64]
    assert 0.25 < float((along_R > 0.5).float().mean()) < 0.75


def test_real_tokens_stay_near_what_they_were() -> None:
    names_ND = embeddings()
    torch.manual_seed(0)
    disturbed_RD = disturb(names_ND, names_ND)
    assert not torch.allclose(disturbed_RD, names_ND)
    assert torch.equal(
        (F.normalize(disturbed_RD, dim=-1) @ F.normalize(names_ND, dim=-1).T).argmax(-1), torch.arange(20)
    )


def test_a_bank_without_pictures_has_nothing_to_draw() -> None:
    bank = Bank()
    bank.finish({})
    assert bank.draw() is None and bank.draw_misses(3, embeddings()) is None


@pytest.mark.parametrize("banked", [False, True])
def test_spelling_trains_the_language_model_alone_by_answers_alone(tmp_path: Path, banked: bool) -> None:
    made = tiny()
    step = training_step(made, stage("spell", learning_rates=rates(*PARTS)))
    if banked:
        step.fill_bank([samples_of(tmp_path, made[1])])
    torch.manual_seed(0)
    tap = Tap(made[0])
    result = step(["cat", "fire hydrant"] * 10)
    result.loss.backward()
    reached = {
        name.split(".")[0]
        for name, parameter in made[0].named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert reached == {"language_model"}
    assert tap.logits.grad is not None
    # Rows of 16 names: 16 and 4; pictures of the bank take the places of some and their three names are said too.
    assert result.num_regions == 20 if not banked else 19 <= result.num_regions <= 23
    # Each name is a token or more and its end; the prompts around them do not reach the head.
    lengths = [len(made[1].answer_ids(name)) for name in step.name_index]
    num_answer_tokens = int((tap.logits.grad.abs().sum(-1) > 0).sum())
    assert min(lengths) * result.num_regions <= num_answer_tokens <= max(lengths) * result.num_regions
    torch.manual_seed(0)
    assert step(["cat", "fire hydrant"] * 10).loss.item() == result.loss.item()


def test_a_share_of_the_rows_asks_all_in_one_conversation() -> None:
    made = tiny()
    step = training_step(made, stage("spell", learning_rates=rates(*PARTS), multi_turn_share=1.0))
    torch.manual_seed(0)
    result = step(["cat", "fire hydrant"] * 10)
    # Two rows, of 16 names and of 4.
    assert result.num_regions == 2
    torch.manual_seed(0)
    apart = training_step(made, stage("spell", learning_rates=rates(*PARTS)))(["cat", "fire hydrant"] * 10)
    assert apart.num_regions == 20
    assert result.loss.item() != apart.loss.item()


def test_names_of_many_regions_at_once_are_asked_of_any_number_of_them() -> None:
    step = training_step(tiny(), stage("spell", learning_rates=rates(*PARTS), tasks={"classify_all": 1.0}))
    facts = [RegionFacts(box_xywh=(0, 0, 1, 1), area_px=1, name="cat") for _ in range(16)]
    torch.manual_seed(0)
    asked = [step._draw_turns(facts) for _ in range(200)]
    assert all(len(turns) == 1 for turns in asked)
    counts = {len(turns[0].mentions) for turns in asked}
    assert {1, 2, 5, 16} <= counts and max(counts) == 16
    assert all(
        turns[0].answer == " ".join(f"{n}: cat" for n in range(1, len(turns[0].mentions) + 1)) for turns in asked
    )


def test_made_up_boxes_lie_in_the_picture_and_hold_their_area() -> None:
    torch.manual_seed(0)
    left, top, right, bottom, area = make_up_boxes(2000, torch.device("cpu")).unbind(1)
    assert float(torch.stack([left, top]).min()) >= 0 and float(torch.stack([right, bottom]).max()) <= 1 + 1e-6
    assert (right > left).all() and (bottom > top).all()
    assert (area <= (right - left) * (bottom - top) + 1e-6).all() and (area > 0).all()
    assert float((right - left).min()) < 0.06 and float((right - left).max()) > 0.8


def test_facts_of_a_made_up_region_are_those_of_its_box() -> None:
    fact = place_facts(RegionFacts(box_xywh=(0, 0, 0, 0), area_px=0, name="cat"), (0.25, 0.5, 0.75, 0.625, 0.05))
    assert fact == RegionFacts(box_xywh=(0.25, 0.5, 0.5, 0.125), area_px=0.05, name="cat")
