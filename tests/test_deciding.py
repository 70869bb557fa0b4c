"""How likely each name is, told token by token."""

import pytest
import torch

from rlabel.prompts.tasks import RegionFacts
from rlabel.prompts.templates import Turn
from rlabel.training.deciding import NamePaths, ShownRow
from rlabel.training.packing import IGNORED, Row

END = 9
# "fire truck" and "fire hydrant" begin alike; "cat" is also the beginning of "cat flap".
PATHS = NamePaths({"fire truck": [1, 2, END], "fire hydrant": [1, 3, END], "cat": [4, END], "cat flap": [4, 5, END]})
LIKELY = torch.tensor([[0.3, 0.1, 0.4, 0.2]])


def said(depth: int, path: int, said_V: torch.Tensor) -> torch.Tensor:
    return PATHS.loss(said_V[None].log_softmax(-1), LIKELY, torch.tensor([path]), torch.tensor([depth]))


def wanted(depth: int, path: int) -> dict[int, float]:
    """Return what the loss wants to hear: its gradient vanishes where the model says just that."""
    logits_V = torch.zeros(10, requires_grad=True)
    said(depth, path, logits_V).sum().backward()
    assert logits_V.grad is not None
    # Cross-entropy against p: gradient is softmax - p.
    share_V = 0.1 - logits_V.grad
    return {token: round(float(share), 4) for token, share in enumerate(share_V) if share > 1e-6}


@pytest.mark.parametrize(
    ("depth", "path", "expected"),
    [
        (0, 0, {1: 0.4, 4: 0.6}),
        (0, 3, {1: 0.4, 4: 0.6}),
        (1, 0, {2: 0.75, 3: 0.25}),
        (1, 2, {END: 0.6667, 5: 0.3333}),
        (2, 3, {END: 1.0}),
    ],
)
def test_next_tokens_are_as_likely_as_the_names_that_go_on_with_them(
    depth: int, path: int, expected: dict[int, float]
) -> None:
    assert wanted(depth, path) == expected


def test_where_no_name_that_goes_on_has_probability_the_loss_is_finite() -> None:
    loss_P = PATHS.loss(
        torch.zeros(1, 10).log_softmax(-1), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([2]), torch.tensor([1])
    )
    assert torch.isfinite(loss_P).all()


def test_only_questions_for_one_name_are_decided() -> None:
    facts = [RegionFacts(box_xywh=(0, 0, 1, 1), area_px=1, name="cat"), RegionFacts(box_xywh=(0, 0, 1, 1), area_px=1)]
    assert PATHS.decided(Turn(question="<region>?", mentions=(0,), answer="cat"), facts) == (0, 2)
    assert PATHS.decided(Turn(question="<region>?", mentions=(0,), answer="A cat."), facts) is None
    assert PATHS.decided(Turn(question="<region>?", mentions=(1,), answer="cat"), facts) is None
    assert PATHS.decided(Turn(question="<region> <region>?", mentions=(0, 1), answer="cat"), facts) is None


def test_tokens_of_other_answers_keep_their_losses() -> None:
    row = Row(
        ids=(0, 0, 4, 0, 7),
        labels=(IGNORED, 4, END, 7, END),
        positions=(0, 1, 2, 1, 2),
        owners=(-2, 0, 0, 1, 1),
        mentions=(0, 0),
    )
    shown = ShownRow(
        row=row,
        image_1TD=torch.zeros(1, 1, 2),
        regions_RKD=torch.zeros(1, 1, 2),
        decided_S=((0, 2), None),
        likely_RN=LIKELY,
    )
    plain_P, logits_PV = torch.full((4,), 5.0), torch.zeros(4, 10)
    loss_P = PATHS.put_in(plain_P, logits_PV, [shown], [(0, 1), (0, 2), (0, 3), (0, 4)])
    uniform = torch.log(torch.tensor(10.0))
    assert loss_P.tolist() == pytest.approx([float(uniform), float(uniform), 5.0, 5.0])
    assert (
        PATHS.put_in(
            plain_P,
            logits_PV,
            [ShownRow(row=row, image_1TD=shown.image_1TD, regions_RKD=shown.regions_RKD)],
            [(0, 1)] * 4,
        )
        is plain_P
    )
