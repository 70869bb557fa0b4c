from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlabel.errors import InputError
from rlabel.prompts.instructions import CLASSIFY
from rlabel.regiongpt.assembly import load_processor
from rlabel.regiongpt.processing import RegionGPTImageProcessor, RegionGPTProcessor

import model_factories as factory  # isort: skip

SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2, "<image>": 3, "<region>": 4}


def make(
    chat_template: str | None = None, num_image_tokens: int = 5, tokens_per_region: int = 1, **images: object
) -> RegionGPTProcessor:
    image_processor = RegionGPTImageProcessor(image_size_px=64, mask_side=16, zoom_size_px=32, **images)  # type: ignore[arg-type]
    return RegionGPTProcessor(
        image_processor,
        factory.tokenizer(chat_template),
        num_image_tokens=num_image_tokens,
        tokens_per_region=tokens_per_region,
    )


@pytest.mark.parametrize("chat_template", [None, factory.CHAT_TEMPLATE])
@pytest.mark.parametrize("tokens_per_region", [1, 3])
@pytest.mark.parametrize("question", [CLASSIFY[0], "<region>?", "Is <region> left of <region>, or not?"])
def test_prefix_and_suffix_are_the_whole_tokenised_prompt(
    chat_template: str | None, tokens_per_region: int, question: str
) -> None:
    made = make(chat_template, tokens_per_region=tokens_per_region)
    prompt = made.prompt(question)
    user = "<image>" * 5 + "\n" + question.replace("<region>", "<region>" * tokens_per_region)
    whole = f"<s>{user}\n" if chat_template is None else f"<s>[user] {user}\n[assistant] "
    assert [*prompt.prefix_ids, *prompt.suffix_ids] == made.tokenizer(whole, add_special_tokens=False).input_ids
    assert prompt.prefix_ids.count(SPECIAL["<image>"]) == 5 and prompt.suffix_ids.count(SPECIAL["<image>"]) == 0
    assert prompt.prefix_ids.count(SPECIAL["<region>"]) == 0
    assert prompt.suffix_ids[0] == SPECIAL["<region>"]
    assert prompt.suffix_ids.count(SPECIAL["<region>"]) == tokens_per_region * question.count("<region>")


def test_a_question_without_a_region_or_with_an_image_of_its_own_is_an_error() -> None:
    with pytest.raises(InputError, match="<region>"):
        make().prompt("What is this?")
    with pytest.raises(InputError, match="<image>"):
        make().prompt("<image> What is <region>?")


@pytest.mark.parametrize(
    "name", ["<region>", "a <image> of <region>", "</s>", "cat</s> dog", "<s><pad>", "cat\n<region>"]
)
def test_a_name_cannot_smuggle_special_tokens_into_an_answer(name: str) -> None:
    made = make()
    ids = made.answer_ids(name)
    assert ids[-1] == SPECIAL["</s>"]
    assert not set(ids[:-1]) & set(SPECIAL.values())
    assert made.tokenizer.decode(ids[:-1]) == name
    # and what was asked for once does not stick to the tokenizer
    assert SPECIAL["<region>"] in made.prompt(CLASSIFY[0]).suffix_ids


def test_an_answer_is_its_text_and_the_end_token_and_decodes_back() -> None:
    made = make()
    ids = made.answer_ids("fire hydrant")
    assert ids == [*made.tokenizer("fire hydrant", add_special_tokens=False).input_ids, SPECIAL["</s>"]]
    assert made.decode_answer(ids) == "fire hydrant"


def test_answers_end_at_the_end_token_and_at_every_token_with_a_line_break() -> None:
    made = make()
    breaking = {i for i in range(len(made.tokenizer)) if "\n" in made.tokenizer.decode([i])}
    assert breaking
    assert set(made.stop_ids) == breaking | {SPECIAL["</s>"]}


def test_saving_and_loading_keeps_the_prompt_and_the_pixels(tmp_path: Path) -> None:
    made = make(
        factory.CHAT_TEMPLATE,
        7,
        3,
        zoom="small",
        zoom_keep=0.35,
        zoom_context=0.25,
        zoom_below_px=20.0,
        zoom_more_contexts=(0.5, 1.0),
        image_mean=(0.1, 0.2, 0.3),
    )
    made.save_pretrained(tmp_path)
    again = load_processor(str(tmp_path))
    assert (again.num_image_tokens, again.tokens_per_region) == (7, 3)
    assert again.prompt(CLASSIFY[1]) == made.prompt(CLASSIFY[1])
    assert again.stop_ids == made.stop_ids
    before, after = made.image_processor, again.image_processor
    assert isinstance(after, RegionGPTImageProcessor)
    for name in (
        "image_size_px",
        "mask_side",
        "image_mean",
        "image_std",
        "zoom",
        "zoom_size_px",
        "zoom_below_px",
        "zoom_context",
        "zoom_more_contexts",
        "zoom_keep",
    ):
        assert list(np.atleast_1d(getattr(after, name))) == list(np.atleast_1d(getattr(before, name))), name
    assert not list(tmp_path.glob("*.py"))


def test_a_folder_without_a_processor_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        load_processor(str(tmp_path))


def test_pixels_are_normalised_and_masks_are_shares_of_cells() -> None:
    made = make(image_mean=(0.5, 0.25, 0.0), image_std=(0.5, 0.25, 1.0))
    picture_HWC = np.zeros((32, 128, 3), np.uint8)
    picture_HWC[:, :, 2] = 255
    inputs = made.image_processor.prepare(
        picture_HWC, [factory.box_mask(32, 128, 64, 0, 64, 16), factory.box_mask(32, 128, 0, 0, 4, 1)]
    )
    assert inputs.pixels_3SS.shape == (3, 64, 64) and inputs.pixels_3SS.dtype == torch.float32
    torch.testing.assert_close(inputs.pixels_3SS[:, 10, 10], torch.tensor([-1.0, -1.0, 1.0]))
    quarter = torch.zeros(16, 16)
    quarter[:8, 8:] = 1
    assert torch.equal(inputs.region_masks_RGG[0], quarter)
    assert inputs.region_masks_RGG[1].sum() == pytest.approx(4 / (8 * 2)) and inputs.region_masks_RGG[1, 0, 0] > 0
    assert inputs.zoom_crops_Z4SS is None and inputs.zoom_region_index_Z is None


def test_the_squeezed_picture_is_pils() -> None:
    picture_HWC = factory.picture(50, 90)
    inputs = make(image_mean=(0, 0, 0), image_std=(1 / 255,) * 3).image_processor.prepare(picture_HWC, [])
    expected = np.asarray(Image.fromarray(picture_HWC).resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(inputs.pixels_3SS.permute(1, 2, 0).numpy(), expected, atol=1e-3)
    assert inputs.region_masks_RGG.shape == (0, 16, 16)


def test_zoom_takes_no_region_all_or_those_below_a_size_of_the_squeezed_picture() -> None:
    picture_HWC = factory.picture(128, 256)
    # 64 px wide pictures: across 1/4, down 1/2. Longer sides once squeezed: 16, 15, 16, 4.
    regions = [factory.box_mask(128, 256, 0, 0, *size) for size in ((64, 4), (60, 4), (4, 32), (16, 8))]
    for zoom, expected in (("off", None), ("all", [0, 1, 2, 3]), ("small", [1, 3])):
        inputs = make(zoom=zoom, zoom_below_px=16.0).image_processor.prepare(picture_HWC, regions)
        if expected is None:
            assert inputs.zoom_crops_Z4SS is None and inputs.zoom_region_index_Z is None
        else:
            assert inputs.zoom_crops_Z4SS is not None and inputs.zoom_region_index_Z is not None
            assert (
                inputs.zoom_crops_Z4SS.shape == (len(expected), 4, 32, 32)
                and inputs.zoom_crops_Z4SS.dtype == torch.uint8
            )
            assert inputs.zoom_region_index_Z.tolist() == expected
