from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from rlabel.errors import InputError
from rlabel.regiongpt.configuration import RegionGPTConfig
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs

import model_factories as factory  # isort: skip


def model_inputs(
    made: RegionGPTProcessor, item: RegionInputs, question: str = "Name the object in <region>."
) -> dict[str, Tensor]:
    """Return what `forward` and `generate` take for one image whose first region is asked about."""
    prompt = made.prompt(question)
    inputs = {
        "input_ids": torch.tensor([[*prompt.prefix_ids, *prompt.suffix_ids]]),
        "pixel_values": item.pixels_3SS[None],
        "region_masks": item.region_masks_RGG[:1],
    }
    if item.zoom_crops_Z4SS is not None:
        pixels, masks = made.image_processor.finish_zoom(item.zoom_crops_Z4SS[:1])
        inputs |= {"zoom_pixels": pixels, "zoom_masks": masks, "zoom_region_index": torch.tensor([0])}
    return inputs


def without_dtype(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the dtype, paths and class names that transformers notes in it at loading and saving."""
    passing = ("dtype", "_name_or_path", "architectures", "transformers_version")
    return {
        key: without_dtype(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in passing
    }


# ---- towers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "num_extra"), [("clip", 1), ("siglip", 0), ("dinov2", 1), ("dinov2_registers", 4)])
def test_patch_tokens_are_laid_as_their_grid_without_class_and_register_tokens(kind: str, num_extra: int) -> None:
    made = factory.model(kind, image_size=48, refine=False)
    pixels = torch.randn(2, 3, 48, 48)
    map_BCHW = made.coarse_maps(pixels)
    state_BLC = made.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    assert state_BLC.shape[1] == 36 + num_extra
    assert map_BCHW.shape == (2, 32, 6, 6)
    for row in range(6):
        for column in range(6):
            assert torch.equal(map_BCHW[:, :, row, column], state_BLC[:, num_extra + row * 6 + column])


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "dinov2_registers", "convnext", "resnet", "lite"])
def test_a_maps_cell_shows_its_own_place_in_the_picture(kind: str) -> None:
    # The input layer sees its own patch only, so a change of one corner must show there and nowhere across.
    made = factory.model(kind, image_size=64, refine=False, vision_feature_layer=0)
    before = torch.zeros(1, 3, 64, 64)
    after = before.clone()
    after[..., :8, 56:] = 1.0  # upper right
    changed_HW = (made.coarse_maps(after) - made.coarse_maps(before)).abs().sum((0, 1)) > 1e-6
    side = changed_HW.shape[0]
    rows, columns = changed_HW.nonzero(as_tuple=True)
    assert len(rows) and int(rows.max()) <= side // 4 and int(columns.min()) >= side - 1 - side // 4


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_convolutional_towers_give_the_hidden_state_that_was_asked_for(kind: str) -> None:
    pixels = torch.randn(1, 3, 64, 64)
    for layer, side in ((-1, 2), (-2, 4), (1, 16)):
        made = factory.model(kind, image_size=64, refine=False, vision_feature_layer=layer)
        expected = made.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
        assert expected.shape[-1] == side
        assert torch.equal(made.coarse_maps(pixels), expected)


def test_the_lite_tower_computes_nothing_behind_the_last_asked_map() -> None:
    tower = factory.model("lite").vision_tower
    pixels = torch.randn(1, 3, 64, 64)
    states = tower(pixel_values=pixels).hidden_states
    ran: list[bool] = []
    tower.head.register_forward_hook(lambda *_: ran.append(True))
    maps = tower.feature_maps(pixels, [-4, 2])
    assert not ran
    assert torch.equal(maps[-4], states[5]) and torch.equal(maps[2], states[2])
    assert [state.shape[-1] for state in states] == [32, 32, 16, 8, 4, 4, 2, 2, 2]


# ---- refinement, image tokens -----------------------------------------------------------------------------------------


def test_refinement_is_four_times_finer_and_can_be_off() -> None:
    pixels = torch.randn(1, 3, 64, 64)
    refined, tokens = factory.model("siglip", refine=True).encode_images(pixels)
    plain, plain_tokens = factory.model("siglip", refine=False).encode_images(pixels)
    assert refined.shape == (1, 32, 32, 32) and plain.shape == (1, 32, 8, 8)
    assert tokens.shape == plain_tokens.shape == (1, 64, factory.WIDTH)
    off = factory.model("siglip", refine=False)
    assert not any(name.startswith("refinement") for name in off.state_dict())
    assert torch.equal(off.encode_images(pixels)[0], off.coarse_maps(pixels))


def test_image_tokens_are_averages_of_the_refined_map() -> None:
    made = factory.model("siglip", image_tokens_per_side=2)
    made.connector = nn.Sequential(nn.Linear(1, 1))  # its weights tell the dtype only
    made.connector.forward = lambda x: x  # type: ignore[method-assign, assignment]
    maps, tokens = made.encode_images(torch.randn(1, 3, 64, 64))
    quarters = [maps[0, :, y : y + 16, x : x + 16].mean((1, 2)) for y in (0, 16) for x in (0, 16)]
    torch.testing.assert_close(tokens[0], torch.stack(quarters), atol=1e-6, rtol=1e-5)


def test_merging_27_patches_a_side_pads_to_28_and_joins_four_neighbours() -> None:
    made = factory.model("siglip", image_size=216, merge_size=2, connector="separate", refine=False)
    pixels = torch.randn(1, 3, 216, 216)
    assert made.encode_images(pixels)[1].shape == (1, 196, factory.WIDTH)
    assert made.connector[0].normalized_shape == (128,) and made.region_connector[0].normalized_shape == (32,)
    made.connector.forward = lambda x: x  # type: ignore[method-assign]
    maps_1C, tokens_1TC = made.encode_images(pixels)
    assert maps_1C.shape[-1] == 27
    inner = tokens_1TC[0, 1 * 14 + 2].view(32, 4)  # row 1, column 2: cells (2, 4), (2, 5), (3, 4), (3, 5)
    neighbours = [maps_1C[0, :, y, x] for y, x in ((2, 4), (2, 5), (3, 4), (3, 5))]
    assert torch.equal(inner, torch.stack(neighbours, 1))
    last = tokens_1TC[0, 195].view(32, 4)
    assert torch.equal(last[:, 0], maps_1C[0, :, 26, 26]) and not last[:, 1:].any()


def test_a_shared_connector_cannot_take_merged_image_tokens() -> None:
    with pytest.raises(ValueError, match="merge_size"):
        RegionGPTConfig(merge_size=2, connector="shared")
    with pytest.raises(ValueError, match="tokens_per_region"):
        RegionGPTConfig(tokens_per_region=0)
    with pytest.raises(ValueError, match="connector"):
        RegionGPTConfig(connector="both")  # type: ignore[arg-type]


# ---- zoom ---------------------------------------------------------------------------------------------------------------


def test_zoomed_crops_join_the_tokens_of_the_regions_they_name_only() -> None:
    made = factory.model("lite", zoom_feature_layers=[-4, -1], tokens_per_region=2)
    maps, masks, index = torch.randn(1, 16, 16, 16), torch.rand(3, 16, 16), torch.zeros(3, dtype=torch.long)
    plain = made.encode_regions(maps, masks, index)
    crops, crop_masks = torch.randn(1, 3, 32, 32), torch.ones(1, 32, 32)
    zoomed = made.encode_regions(maps, masks, index, crops, crop_masks, torch.tensor([1]))
    assert torch.equal(zoomed[[0, 2]], plain[[0, 2]])
    states = made.vision_tower(pixel_values=crops).hidden_states
    halves = [
        torch.cat([states[-4][0, :, :, half].mean((1, 2)), states[-1][0, :, :, 0].mean(1)])
        for half in (slice(0, 1), slice(1, 2))
    ]
    # Strides 16 and 32 of 32 px: a 2 x 2 map, whose halves are its columns, and a single cell, which both parts take whole.
    torch.testing.assert_close(zoomed[1] - plain[1], made.zoom_connector(torch.stack(halves)), atol=1e-4, rtol=1e-4)


# ---- prompts ------------------------------------------------------------------------------------------------------------


def test_features_take_the_places_of_their_tokens_in_order() -> None:
    made = factory.model(tokens_per_region=2)
    image, regions = torch.full((1, 2, factory.WIDTH), 7.0), torch.arange(4.0).view(2, 2, 1).expand(2, 2, factory.WIDTH)
    ids = torch.tensor([[1, 3, 3, 10, 4, 4, 11, 4, 4]])
    embedded = made.embed_prompt(ids, image, regions)
    assert embedded[0, :, 0].tolist()[1:3] == [7, 7]
    assert [embedded[0, place, 5].item() for place in (4, 5, 7, 8)] == [0, 1, 2, 3]
    table = made.get_input_embeddings().weight  # type: ignore[union-attr]
    assert torch.equal(embedded[0, [0, 3, 6]], table[[1, 10, 11]])  # type: ignore[index]


@pytest.mark.parametrize(("num_given", "num_named"), [(2, 1), (1, 2), (1, 0), (0, 1)])
def test_too_many_or_too_few_regions_for_a_prompt_are_an_error_that_says_so(num_given: int, num_named: int) -> None:
    made = factory.model()
    regions = torch.zeros(num_given, 1, factory.WIDTH) if num_given else None
    with pytest.raises(InputError, match=f"{num_named} <region> tokens.*{num_given} region features"):
        made.embed_prompt(torch.tensor([[1] + [4] * num_named]), None, regions)


def test_image_tokens_without_an_image_are_an_error() -> None:
    with pytest.raises(InputError, match="2 <image> tokens"):
        factory.model()(input_ids=torch.tensor([[1, 3, 3, 10]]))


def test_a_prompt_never_takes_the_region_of_another_prompts_image() -> None:
    made = factory.model()
    pixels, masks = torch.randn(2, 3, 64, 64), torch.ones(2, 16, 16)
    both_in_first = torch.tensor([[*[3] * 16, 4, 4], [*[3] * 16, 10, 10]])
    with pytest.raises(InputError, match="region_image_index"):
        made(input_ids=both_in_first, pixel_values=pixels, region_masks=masks, region_image_index=torch.tensor([0, 1]))
    made(input_ids=both_in_first, pixel_values=pixels, region_masks=masks, region_image_index=torch.tensor([0, 0]))
    one_each = torch.tensor([[*[3] * 16, 4, 10], [*[3] * 16, 4, 10]])
    with pytest.raises(InputError, match="region_image_index"):
        made(input_ids=one_each, pixel_values=pixels, region_masks=masks, region_image_index=torch.tensor([1, 0]))


def test_inputs_that_would_be_dropped_are_an_error() -> None:
    made = factory.model()
    with pytest.raises(InputError, match="without pixel_values"):
        made(input_ids=torch.tensor([[1, 10]]), region_masks=torch.ones(1, 16, 16))
    with pytest.raises(InputError, match="no zoom tokens"):
        made.encode_regions(
            torch.zeros(1, 16, 16, 16),
            torch.ones(1, 16, 16),
            torch.tensor([0]),
            torch.zeros(1, 3, 32, 32),
            torch.ones(1, 32, 32),
            torch.tensor([0]),
        )
    with pytest.raises(InputError, match="16 cells a side.*got 9"):
        made.encode_regions(torch.zeros(1, 16, 16, 16), torch.ones(1, 9, 9), torch.tensor([0]))


# ---- transformers' form -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vision", "text", "fields"),
    [
        ("lite", "llama", {"zoom_feature_layers": [-4, -1], "tokens_per_region": 3}),
        ("clip", "qwen2", {"merge_size": 2, "connector": "separate"}),
        ("dinov2_registers", "gpt_neox", {"refine": False}),
        ("siglip", "qwen2", {}),
        ("convnext", "llama", {"image_tokens_per_side": 3}),
        ("resnet", "llama", {}),
    ],
)
def test_saving_and_loading_is_bit_exact_also_through_the_auto_classes(
    tmp_path: Path, vision: str, text: str, fields: dict[str, Any]
) -> None:
    made = factory.model(vision, text, **fields)
    helper = factory.processor(made, zoom="all" if fields.get("zoom_feature_layers") else "off")
    made.save_pretrained(tmp_path)
    helper.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".py")] == []
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=False, use_safetensors=True)
    assert type(again) is RegionGPTForConditionalGeneration
    state, loaded = made.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys() and all(torch.equal(state[name], loaded[name]) for name in state)
    buffers, loaded_buffers = (
        dict(made.named_buffers()),
        dict(again.named_buffers()),
    )  # rotary tables are in no state dict
    assert buffers.keys() == loaded_buffers.keys() and all(
        torch.equal(buffers[name], loaded_buffers[name]) for name in buffers
    )
    tied = again.language_model.get_output_embeddings().weight is again.language_model.get_input_embeddings().weight
    assert tied == (text == "qwen2")
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, RegionGPTConfig)
    assert (
        without_dtype(config.to_dict()) == without_dtype(again.config.to_dict()) == without_dtype(made.config.to_dict())
    )
    loaded_helper = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    assert isinstance(loaded_helper, RegionGPTProcessor)
    item = factory.random_inputs(helper, [1], seed=3)[0]
    loaded_item = factory.random_inputs(loaded_helper, [1], seed=3)[0]
    with torch.no_grad():
        first = made(**model_inputs(helper, item)).logits
        second = factory.aligned(again)(**model_inputs(loaded_helper, loaded_item)).logits
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("vision", "zoom_layers"), [("lite", [-4, -1]), ("siglip", [-2])])
def test_a_model_loaded_in_low_precision_answers_much_as_in_float32(
    tmp_path: Path, dtype: torch.dtype, vision: str, zoom_layers: list[int]
) -> None:
    made = factory.model(vision, zoom_feature_layers=zoom_layers, image_size=32)
    helper = factory.processor(made, zoom="all")
    made.save_pretrained(tmp_path)
    low = RegionGPTForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in low.parameters()} == {dtype}
    rotary = [buffer for name, buffer in low.named_buffers() if "inv_freq" in name]
    assert rotary and all(buffer.dtype == torch.float32 for buffer in rotary)
    inputs = model_inputs(helper, factory.random_inputs(helper, [1])[0])
    with torch.no_grad():
        exact, rough = made(**inputs).logits, low(**inputs).logits
    assert torch.isfinite(rough).all()
    assert (rough.float() - exact).norm() / exact.norm() < 0.1


def test_autocast_in_bfloat16_stays_close_to_float32() -> None:
    made = factory.model(zoom_feature_layers=[-4, -1])
    helper = factory.processor(made, zoom="all")
    inputs = model_inputs(helper, factory.random_inputs(helper, [1])[0])
    with torch.no_grad():
        exact = made(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            rough = made(**inputs).logits
    assert (rough.float() - exact).norm() / exact.norm() < 0.1


def test_gradients_reach_every_part() -> None:
    made = factory.model(connector="separate", zoom_feature_layers=[-4, -1], tokens_per_region=2)
    helper = factory.processor(made, zoom="all")
    inputs = model_inputs(helper, factory.random_inputs(helper, [1])[0])
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    made(**inputs, labels=labels).loss.backward()
    without = [
        name
        for name, p in made.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.any()
    ]
    assert without == []


def test_the_loss_is_the_cross_entropy_of_the_labeled_tokens() -> None:
    made = factory.model()
    ids = torch.tensor([[1, 20, 21, 22, 23]])
    labels = torch.tensor([[-100, -100, -100, 22, 23]])
    output = made(input_ids=ids, labels=labels)
    assert output.loss.item() == pytest.approx(F.cross_entropy(output.logits[0, 2:4], labels[0, 3:]).item(), rel=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        made = factory.model()
        helper = factory.processor(made)
        if checkpointing:
            made.gradient_checkpointing_enable()
        made.train()
        made.vision_tower.eval()
        inputs = model_inputs(helper, factory.random_inputs(helper, [1])[0])
        made(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append(made.connector[1].weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_generate_is_the_language_models_own_over_the_prompts_embeddings() -> None:
    made = factory.model()
    helper = factory.processor(made)
    inputs = model_inputs(helper, factory.random_inputs(helper, [1])[0])
    new = made.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=[999])
    ids = inputs["input_ids"]
    for step in range(5):  # by hand, one whole forward a token
        with torch.no_grad():
            token = made(**{**inputs, "input_ids": ids}).logits[0, -1].argmax()
        assert int(token) == int(new[0, step])
        ids = torch.cat([ids, token.view(1, 1)], 1)
