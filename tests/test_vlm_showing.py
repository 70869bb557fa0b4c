"""How regions are shown to plain models: box texts against hand arithmetic, crops, outlines and marks against pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model_factories import box_mask, mask_of
from rlabel.corpus.picture import LargePicture
from rlabel.errors import UsageError
from rlabel.vlm.families import FAMILIES, family_of, named, prompt_text
from rlabel.vlm.inputs import PlainProcessor
from rlabel.vlm.loading import load_processor
from rlabel.vlm.showing import box_text, crop, outlined, whole_picture
from vlm_factories import plan, save

# Corners (64, 48) to (320, 360) of a picture of 640 x 480: shares 0.1, 0.1, 0.5, 0.75.
BOX, PICTURE = (64.0, 48.0, 320.0, 360.0), (640.0, 480.0)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("qwen2_vl", "<|box_start|>(100,100),(500,750)<|box_end|>"),
        ("qwen2_5_vl", "[56, 42, 280, 315]"),  # of 560 x 420 pixels
        ("qwen3_vl", "[100, 100, 500, 750]"),
        ("internvl", "<box>[[100, 100, 500, 750]]</box>"),
        ("llava", "[0.10, 0.10, 0.50, 0.75]"),
        ("llava_next", "[0.10, 0.10, 0.50, 0.75]"),
        ("llava_onevision", "[0.10, 0.10, 0.50, 0.75]"),
        ("idefics3", "[0.10, 0.10, 0.50, 0.75]"),
        ("gemma3", "[0.10, 0.10, 0.50, 0.75]"),
        ("paligemma", "<loc0102><loc0102><loc0768><loc0512>"),  # 102.4, 102.4, 768, 512: y before x
        ("florence2", "<loc_100><loc_100><loc_500><loc_750>"),
        # (0.1 * 32, 0.1 * 32) lies in column 3, row 3; 0.5 * 32 = 16 ends column 15, 0.75 * 32 = 24 ends row 23.
        ("kosmos2", "<object><patch_index_0099><patch_index_0751></object>"),
        ("qwen3_5", "[100, 100, 500, 750]"),
        ("glm4v", "[[100,100,500,750]]"),
    ],
)
def test_a_box_is_written_as_its_family_reads_it(family: str, text: str) -> None:
    own = named(family)
    assert own.coordinates is not None
    assert box_text(own.box, own.coordinates, BOX, PICTURE, (560, 420)) == text


def test_every_family_that_writes_boxes_is_checked_by_hand_and_the_others_are_shown_none() -> None:
    written = [family for family in FAMILIES if family.coordinates is not None]
    assert len(written) == 14 and all(family.source and "box" in family.ways for family in written)
    assert all("box" not in family.ways and family.default == "crop" for family in FAMILIES if family not in written)


@pytest.mark.parametrize(
    ("coordinates", "text"),
    [
        ("thousand", "666"),  # 666.7
        ("loc_yx", "<loc0000><loc0000><loc1023><loc0682>"),  # 682.7
        ("loc_xy", "<loc_0><loc_0><loc_666><loc_999>"),
        ("unit", "0.67"),
    ],
)
def test_bins_are_cut_off_and_shares_are_rounded(coordinates: str, text: str) -> None:
    template = "{box}" if coordinates.startswith("loc") else "{x2}"
    assert box_text(template, coordinates, (0.0, 0.0, 200.0, 300.0), (300.0, 300.0)) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("coordinates", "text"),
    [
        ("loc_yx", "<loc0000><loc0000><loc1023><loc1023>"),
        ("loc_xy", "<loc_0><loc_0><loc_999><loc_999>"),
        ("patches", "<object><patch_index_0000><patch_index_1023></object>"),
    ],
)
def test_a_box_of_the_whole_picture_keeps_to_the_last_token(coordinates: str, text: str) -> None:
    whole = (-3.0, 0.0, 640.0, 481.0)  # a hair outside, as boxes are
    assert box_text("{box}", coordinates, whole, PICTURE) == text  # type: ignore[arg-type]


def test_a_box_smaller_than_a_patch_is_in_one_patch() -> None:
    assert box_text("{box}", "patches", (322.0, 242.0, 324.0, 244.0), PICTURE).count("patch_index_0528") == 2


def test_absolute_boxes_are_in_the_pixels_that_the_processor_makes(tmp_path: pytest.TempPathFactory) -> None:
    shown = PlainProcessor(load_processor(save(tmp_path, "qwen2_5_vl")), plan("qwen2_5_vl"))  # type: ignore[arg-type]
    # 200 x 100 pixels are brought below 84 x 84 = 7056, to whole blocks of 28: 112 x 56.
    assert shown.resized_px(Image.new("RGB", (200, 100))) == (112, 56)
    inputs = shown.prepare(np.zeros((100, 200, 3), np.uint8), [box_mask(100, 200, 50, 25, 100, 50)])
    text = shown.tokenizer.decode(inputs.looks[0].rows[0]["input_ids"][0])
    assert "[28, 14, 84, 42]" in text


def test_a_picture_padded_to_a_square_moves_shares_but_not_pixels() -> None:
    whole = whole_picture(np.full((50, 100, 3), 9, np.uint8), 1000, square=True)
    assert whole.image.size == (100, 100) and whole.seen_px == (100.0, 100.0)
    assert whole.image.getpixel((0, 49)) == (9, 9, 9) and whole.image.getpixel((0, 50)) == (127, 127, 127)
    assert box_text("{y2}", "unit", (0.0, 0.0, 100.0, 50.0), whole.seen_px) == "0.50"


def test_a_whole_picture_is_shrunk_and_one_of_200_to_1_padded() -> None:
    whole = whole_picture(np.zeros((300, 600, 3), np.uint8), 200, square=False)
    assert whole.image.size == (200, 100) and whole.seen_px == (600.0, 300.0)
    thin = whole_picture(np.zeros((2, 400, 3), np.uint8), 1024, square=False)
    assert thin.image.size == (400, 20) and thin.seen_px == (400.0, 20.0)


def test_a_large_picture_is_shown_as_its_pixels_are() -> None:
    rows = np.random.default_rng(0).integers(0, 255, (15, 20, 3), np.uint8)
    pixels = np.ascontiguousarray(rows.repeat(100, 0).repeat(100, 1))
    large, plain = (whole_picture(p, 500, square=False).image for p in (LargePicture.of_pixels(pixels), pixels))
    assert large.size == plain.size == (500, 375)
    assert np.abs(np.asarray(large, int) - np.asarray(plain, int)).mean() < 2.0


def test_a_crop_is_a_square_around_the_box_with_its_margin() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[40:60, 40:60] = 200
    shown = np.asarray(crop(picture, box_mask(100, 100, 40, 40, 20, 20), 60, 1.0))
    assert shown.shape == (60, 60, 3)
    assert (shown[22:38, 22:38] == 200).all() and (shown[:18] == 0).all()  # a box of 20 and 20 more on each side
    edge = np.asarray(crop(picture, box_mask(100, 100, 0, 0, 20, 20), 60, 1.0))
    assert (edge[:18, :18] == 127).all()


def test_an_outline_follows_the_mask_and_not_its_box() -> None:
    mask_HW = np.zeros((100, 100), np.bool_)
    mask_HW[20:80, 20:40] = mask_HW[60:80, 20:80] = True  # an L
    whole = whole_picture(np.zeros((100, 100, 3), np.uint8), 100, square=False)
    red = np.asarray(outlined(whole, [mask_of(mask_HW)], numbered=False))[..., 0] > 0
    assert red[50, 39:41].any() and red[58:61, 60].any()  # its inner sides
    assert not red[20:50, 50:90].any()  # the corner that the box has and the L has not
    assert not red[30:70, 25:35].any()  # what it shows stays visible
    assert (np.asarray(whole.image) == 0).all()  # the picture itself is not drawn on


def test_an_outline_of_a_shrunk_sliver_is_still_drawn() -> None:
    whole = whole_picture(np.zeros((1000, 1000, 3), np.uint8), 100, square=False)
    drawn = np.asarray(outlined(whole, [box_mask(1000, 1000, 500, 200, 1, 600)], numbered=False))
    assert drawn[20:80, 48:53].any(axis=(1, 2)).all()


def test_marks_have_numbers_in_their_own_colours_that_do_not_cover_each_other() -> None:
    whole = whole_picture(np.zeros((400, 400, 3), np.uint8), 400, square=False)
    same_corner = [box_mask(400, 400, 100, 100, 50 + 40 * i, 60) for i in range(3)]
    drawn = np.asarray(outlined(whole, same_corner, numbered=True))
    # Plates of 12-pixel letters are 14 pixels high, one below the other.
    assert [tuple(drawn[y, 101].tolist()) for y in (101, 115, 129)] == [(230, 30, 30), (0, 114, 178), (0, 158, 115)]
    for y in (100, 114, 128):
        assert (drawn[y : y + 14, 100:114] > 200).all(2).sum() > 3  # a number in white on each


def test_a_family_is_chosen_by_config_json_or_by_the_user() -> None:
    assert family_of("qwen3_vl_moe").name == "qwen3_vl" and family_of("smolvlm").name == "idefics3"
    assert family_of("something_new").coordinates is None
    assert plan("something_new", family="internvl", region_as="box").family == "internvl"
    assert plan("llava", region_as="box").region_as == "box" and plan("llava").region_as == "crop"
    with pytest.raises(UsageError, match="--family llamas: expected one of qwen2_vl, "):
        plan("something_new", family="llamas")


def test_a_users_question_gets_the_region_in_the_familys_words() -> None:
    asked = plan("qwen3_vl", question="What colour has <region>?")
    assert prompt_text(asked, box="[1, 2, 3, 4]") == "What colour has the region [1, 2, 3, 4]?"
    marked = plan("qwen3_vl", region_as="marks", question="What colour has <region>?")
    assert prompt_text(marked, number=7) == "What colour has the outline numbered 7?"


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("something_new", {"region_as": "box"}, "--region-as box: nobody .* 'something_new' .* --region-as crop, or name the family .* --family"),
        ("florence2", {"region_as": "marks"}, "--region-as marks: florence2 .* Use --region-as crop"),
        ("florence2", {"question": "What is <region>?"}, "--question: florence2 .*<REGION_TO_CATEGORY>.* Leave it out"),
        ("qwen3_vl", {"decoding": "hybrid", "rank_by": "prior"}, "--rank-by prior: a plain model .qwen3_vl. .*--rank-by total or per_token"),
        ("mistral3", {"region_as": "box"}, "--region-as box: nobody .* 'mistral3' .* --region-as crop, or name the family"),
        ("qwen3_vl", {"mode": "multi_turn"}, "--mode multi_turn: .*Leave it out"),
        ("qwen3_vl", {"views": "flip"}, "--views flip: "),
        ("qwen3_vl", {"num_questions": 3}, "--num-questions 3: "),
        ("qwen3_vl", {"compile": True}, "--compile True: "),
        ("qwen3_vl", {"prefix_sharing": "packed"}, "--prefix-sharing packed: .* Use auto, expanded or none"),
        ("qwen3_vl", {"task": "relate", "vocabulary": None}, "--task relate: .* one region at a time"),
        ("qwen3_vl", {"task": "refer", "vocabulary": None, "expressions": "e.json"}, "--task refer: "),
    ],
)  # fmt: skip
def test_what_a_plain_model_cannot_do_is_refused_with_what_to_do(
    kind: str, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        plan(kind, **settings)
