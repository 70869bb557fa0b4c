"""Proposers of transformers, small and with random weights: shapes, grids and filters, and coordinates back in the picture's pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SamConfig, SamModel

from rlabel.errors import InputError, UsageError
from rlabel.proposing.detectors import DetectorProposer, corners_of
from rlabel.proposing.models import ProposerPlan, make_proposer, plan_proposer
from rlabel.proposing.sam import SamProposer, View, _is_cut_off, grid, stability, views_of
from rlabel.proposing.settings import ProposeSettings
from rlabel.records import ImageRecord

SIDE = 64


def record(name: str = "a.png", image_id: int = 1) -> ImageRecord:
    return ImageRecord(row={"id": image_id}, file_name=name, width_px=None, height_px=None, regions=())


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 8,
            "output_channels": 16,
            "mlp_dim": 16,
            "global_attn_indexes": [0],
            "window_size": 4,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 8,
            "iou_head_depth": 2,
        },
    )
    folder = tmp_path_factory.mktemp("sam")
    SamModel(config).save_pretrained(folder)
    return folder


def sam(folder: Path, tmp_path: Path, **more: Any) -> SamProposer:
    settings = ProposeSettings(
        images=str(tmp_path), out=str(tmp_path / "out"), proposer=str(folder), device="cpu", **more
    )
    proposer = make_proposer(plan_proposer(settings), settings)
    assert isinstance(proposer, SamProposer)
    return proposer


def picture(height: int, width: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_grid_holds_the_middles_of_its_cells() -> None:
    points = grid(2, 40, 100)
    assert points.tolist() == [[25.0, 10.0], [75.0, 10.0], [25.0, 30.0], [75.0, 30.0]]


def test_crops_cover_the_picture_and_overlap() -> None:
    views = views_of(60, 90, 1)
    assert len(views) == 5
    covered = np.zeros((60, 90), dtype=int)
    for view in views[1:]:
        covered[view.top_px : view.bottom_px, view.left_px : view.right_px] += 1
    assert covered.min() == 1
    # 512 / 1500 of the shorter side, 60, is 20 pixels of overlap.
    assert (covered[0] == 2).sum() == 20


def test_stability_is_the_share_of_a_mask_that_a_higher_threshold_leaves() -> None:
    logits = torch.tensor([[[5.0, 5.0, 0.5, -5.0]], [[-5.0, -5.0, -5.0, -5.0]]])
    assert stability(logits).tolist() == pytest.approx([2 / 3, 0.0])


def test_a_mask_at_the_edge_of_a_crop_inside_the_picture_is_cut_off() -> None:
    inside = np.zeros((100, 100), dtype=np.bool_)
    inside[40:60, 70:100] = True
    assert _is_cut_off(inside, View(left_px=0, top_px=0, right_px=100, bottom_px=100, step=2), (100, 200))
    assert not _is_cut_off(inside, View(left_px=100, top_px=0, right_px=200, bottom_px=100, step=2), (100, 200))


def test_sam_sees_the_pixels_that_its_own_processor_prepares(sam_folder: Path, tmp_path: Path) -> None:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    judge = SamImageProcessorPil(
        size={"longest_edge": SIDE},
        pad_size={"height": SIDE, "width": SIDE},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    pixels = picture(40, 100)
    expected = judge(pixels, return_tensors="pt")["pixel_values"]
    got, scale_x, scale_y = sam(sam_folder, tmp_path).prepared(pixels)
    assert torch.allclose(got, expected, atol=1e-5)
    assert (scale_x, scale_y) == pytest.approx((0.64, 26 / 40))


def test_masks_of_a_padded_picture_come_back_where_they_were(sam_folder: Path, tmp_path: Path) -> None:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    logits = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(1))
    got = sam(sam_folder, tmp_path).enlarged(logits, 40, 100)
    judge = SamImageProcessorPil(pad_size={"height": SIDE, "width": SIDE})
    expected = judge.post_process_masks([logits[None]], [[40, 100]], [[26, SIDE]], binarize=False)[0][0]
    assert torch.allclose(got, expected, atol=1e-5)


def test_sam_gives_masks_of_the_pictures_size_and_its_filters_take_some_away(sam_folder: Path, tmp_path: Path) -> None:
    everything = {"min_predicted_iou": 0.0, "min_stability": 0.0, "points_per_side": 3, "points_per_batch": 4}
    proposer = sam(sam_folder, tmp_path, **everything)
    proposer.model.mask_decoder.iou_prediction_head.proj_out.bias.data.fill_(0.5)
    pixels = picture(30, 50)
    found = proposer.propose(pixels, record())
    assert 0 < len(found) <= 3 * 3 * 3
    assert all(one.rle is not None and one.rle["size"] == [30, 50] for one in found)
    strict = sam(sam_folder, tmp_path, **{**everything, "min_predicted_iou": 1.0})
    assert strict.propose(pixels, record()) == []


def test_prompts_give_a_mask_each_for_their_picture_alone(sam_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "points": [[5, 5], [9, 9]], "labels": [1, 0]},
        {"image_id": 1, "scribbles": [[[0, 0], [10, 0], [10, 10]]], "box": [2, 2, 20, 10]},
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    proposer = sam(sam_folder, tmp_path, prompts=str(tmp_path / "prompts.json"))
    asked = []

    def answer(_seen: Any, prompt: Any, height: int, width: int) -> None:
        asked.append((prompt, height, width))

    proposer._of_prompt = answer  # type: ignore[method-assign, assignment]
    assert proposer.propose(picture(30, 50), record("a.png", 1)) == []
    assert [(len(prompt.points_xy), prompt.labels[:2], height, width) for prompt, height, width in asked] == [
        (2, (1, 0), 30, 50),
        (16, (1, 1), 30, 50),
    ]
    assert asked[1][0].box_xyxy == (2.0, 2.0, 22.0, 12.0)
    asked.clear()
    proposer.propose(picture(30, 50), record("b.png", 2))
    assert asked == []


def test_a_prompt_reaches_the_model_and_comes_back_as_one_mask(sam_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps([{"image_id": 1, "points": [[5, 5]]}]))
    proposer = sam(sam_folder, tmp_path, prompts=str(tmp_path / "prompts.json"))
    found = proposer.propose(picture(30, 50), record())
    assert len(found) <= 1 and all(one.rle is not None and one.rle["size"] == [30, 50] for one in found)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([], "at least one prompt"),
        ([{"points": [[1, 2]]}], "neither"),
        ([{"image_id": 1}], "none of them"),
        ([{"image_id": 1, "points": [[1, "x"]]}], "number of pixels"),
        ([{"image_id": 1, "points": [[1, 2]], "labels": [2]}], "1 \\(inside\\) or 0"),
        ([{"image_id": 1, "box": [1, 2, 0, 4]}], "positive width"),
        ([{"image_id": 1, "point": [1, 2]}], "keys of"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(sam_folder: Path, tmp_path: Path, rows: list[Any], what: str) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=what):
        sam(sam_folder, tmp_path, prompts=str(tmp_path / "prompts.json"))


# Detectors


def test_boxes_by_centre_and_sides_are_shares_of_the_picture() -> None:
    assert corners_of([0.5, 0.25, 0.2, 0.5], 100, 40) == pytest.approx((40.0, 0.0, 60.0, 20.0))


class _Answers:
    """A detector that gives the same two boxes at every call."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def __call__(self, **inputs: Any) -> Any:
        self.asked.append(inputs)
        logits = torch.tensor([[[4.0, -9.0], [-4.0, -5.0]]])
        boxes = torch.tensor([[[0.5, 0.25, 0.2, 0.5], [0.5, 0.5, 1.0, 1.0]]])
        return type("Output", (), {"logits": logits, "pred_boxes": boxes})()


@pytest.mark.parametrize(("kind", "box"), [("rt_detr", (40.0, 0.0, 20.0, 20.0)), ("owlv2", (40.0, 0.0, 20.0, 40.0))])
def test_a_detectors_boxes_come_back_in_pixels(tmp_path: Path, kind: str, box: tuple[float, ...]) -> None:
    settings = ProposeSettings(images="x", out="y", proposer=str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "RTDetrImageProcessor"}')
    plan = ProposerPlan(kind=kind, name=kind, folder=str(tmp_path), keeping=settings.keeping(0.3))
    model = _Answers()
    proposer = DetectorProposer(model, plan, settings, torch.device("cpu"))
    found = proposer.propose(picture(40, 100), record())
    assert [one.box_xywh for one in found] == [box]
    assert found[0].score == pytest.approx(0.982014, abs=1e-5)
    assert model.asked[0]["pixel_values"].shape == (1, 3, 640, 640)


# What is no proposer


def folder_of(tmp_path: Path, model_type: str) -> str:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "what"),
    [
        ("llama", "language model that sees no pictures"),
        ("llava", "answers questions about pictures"),
        ("regiongpt", "--model"),
        ("nobody", "proposes no regions"),
    ],
)
def test_a_model_that_proposes_nothing_is_refused(tmp_path: Path, model_type: str, what: str) -> None:
    settings = ProposeSettings(images="x", out="y", proposer=folder_of(tmp_path, model_type))
    with pytest.raises(InputError, match=what):
        plan_proposer(settings)


def test_a_repository_that_is_not_there_is_said(tmp_path: Path) -> None:
    settings = ProposeSettings(images="x", out="y", proposer=str(tmp_path / "none"))
    with pytest.raises(InputError, match="--proposer .*no such folder"):
        plan_proposer(settings)


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    folder_of(tmp_path, "sam")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="pytorch_model.bin"):
        plan_proposer(ProposeSettings(images="x", out="y", proposer=str(tmp_path)))


@pytest.mark.parametrize(
    ("model_type", "more", "what"),
    [
        ("owlv2", {}, "no --vocabulary"),
        ("grounding-dino", {}, "no --vocabulary"),
        ("sam", {"vocabulary": "names.txt"}, "looks for no names"),
        ("rt_detr", {"prompts": "p.json"}, "takes no points"),
    ],
)
def test_what_does_not_go_with_a_kind_is_said(tmp_path: Path, model_type: str, more: dict[str, Any], what: str) -> None:
    settings = ProposeSettings(images="x", out="y", proposer=folder_of(tmp_path, model_type), **more)
    with pytest.raises(UsageError, match=what):
        plan_proposer(settings)
