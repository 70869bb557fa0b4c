"""Alignment: its loss by hand arithmetic, the places that names are drawn to, and what crops and mask pooling each learn.

Legend: R regions, K tokens a region, D width of the language model, N names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rlabel.errors import InputError
from rlabel.labeling.engine import to_device_batch
from rlabel.training.dataset import BatchDataset
from rlabel.training.objectives import TrainingStep
from rlabel.training.parts import load_corpus
from train_factories import COLOURS, labeled_corpus, samples_of, stage, tiny, training_step

CPU = torch.device("cpu")
NAMES = list(COLOURS)


def test_align_loss_by_hand() -> None:
    """Two names, embeddings (1, 0, ...) and (0, 2, ...); a region at (3, 0, ...) that is the first.

    Cosines 1 and 0, divided by 0.5: logits 2 and 0. Smoothed by 0.1 over two names: targets 0.95 and 0.05.
    ln(e^2 + 1) = 2.126928; loss 0.95 * 0.126928 + 0.05 * 2.126928 = 0.226928. Three times too long: 0.05 * ln(3)^2 = 0.060347.
    """
    model, processor = tiny()
    step = TrainingStep(model, processor, stage(temperature=0.5), ["cat", "dog"])
    first, second = (processor.answer_ids(name)[:-1] for name in ("cat", "dog"))
    assert not set(first) & set(second)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table.zero_()
        table[first, 0] = 1.0
        table[second, 1] = 2.0
    region_1KD = torch.zeros(1, 1, table.shape[1])
    region_1KD[0, 0, 0] = 3.0
    result = step._align(region_1KD, torch.tensor([0]))
    assert result.loss.item() == pytest.approx(0.287275, abs=1e-5)
    assert (result.num_right, result.num_regions) == (1, 1)
    assert step._align(region_1KD, torch.tensor([1])).num_right == 0


def test_align_takes_the_mean_of_a_region_s_tokens() -> None:
    model, processor = tiny(tokens_per_region=4)
    step = TrainingStep(model, processor, stage(), NAMES)
    model.config.tokens_per_region = 4
    regions_RKD = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 2, 1])
    whole, mean = step._align(regions_RKD, target), step._align(regions_RKD.mean(1, keepdim=True), target)
    assert torch.allclose(whole.loss, mean.loss)


def test_align_leaves_the_place_token_out(tmp_path: Path) -> None:
    made = tiny(place_token=True)
    samples = samples_of(tmp_path, made[1])
    losses = []
    for _ in range(2):
        losses.append(training_step(made, stage())(samples).loss.item())
        with torch.no_grad():
            for parameter in made[0].place_connector.parameters():  # type: ignore[union-attr]
                parameter.add_(1.0)
    assert losses[0] == losses[1]


def test_decorrelated_names_are_at_right_angles_near_what_they_were_and_as_long() -> None:
    model, processor = tiny(name_map=True)
    before_ND = TrainingStep(model, processor, stage(), NAMES).name_embeddings()
    step = TrainingStep(model, processor, stage(decorrelate=True), NAMES)
    after_ND = step.name_embeddings()
    unit_ND = F.normalize(after_ND, dim=-1)
    assert float((unit_ND @ unit_ND.T - torch.eye(len(NAMES))).abs().max()) < 0.02
    assert torch.allclose(after_ND.norm(dim=-1), before_ND.norm(dim=-1))
    assert float(F.cosine_similarity(before_ND, after_ND).min()) > 0.7
    # The map stays with the model: a later stage draws to the same places.
    assert torch.equal(TrainingStep(model, processor, stage(), NAMES).name_embeddings(), after_ND)


def test_decorrelation_needs_a_model_that_keeps_the_map() -> None:
    model, processor = tiny()
    with pytest.raises(InputError, match="decorrelate: expected a model that keeps a name map"):
        TrainingStep(model, processor, stage(decorrelate=True), NAMES)


def test_a_name_is_the_mean_input_embedding_of_its_tokens_without_the_end_token() -> None:
    model, processor = tiny()
    names = TrainingStep(model, processor, stage(), ["fire hydrant", "cat", "cat"]).name_embeddings()
    ids = processor.tokenizer("fire hydrant", add_special_tokens=False).input_ids
    assert len(ids) > 1
    wanted = sum(model.get_input_embeddings().weight[i].detach() for i in ids) / len(ids)
    assert names.shape == (2, 32)  # a name that two categories share is one name
    assert torch.allclose(names[0], wanted)
    assert not names.requires_grad


def test_crop_and_pooled_part_are_each_taught_to_name_their_region_alone(tmp_path: Path) -> None:
    made = tiny()
    samples = samples_of(tmp_path, made[1])
    batch = to_device_batch([sample.inputs for sample in samples], made[1], CPU)
    step = training_step(made, stage()).eval()
    targets = torch.tensor([step.name_index[str(name)] for sample in samples for name in sample.names])
    with torch.no_grad():
        assert batch.zoom_pixels_Z3SS is not None and batch.zoom_masks_ZSS is not None
        crops_RKD = made[0].encode_zooms(batch.zoom_pixels_Z3SS, batch.zoom_masks_ZSS)
        maps_BCGG, _ = made[0].encode_images(batch.pixels_B3SS)
        pooled_RKD = made[0].encode_regions(maps_BCGG, batch.region_masks_RGG, batch.region_image_index_R)
        wanted = step._align(crops_RKD, targets).loss + step._align(pooled_RKD, targets).loss
    assert step.train()(samples).loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    # Asked for its accuracy, the model is taken as labeling takes it: both parts in one token.
    with torch.no_grad():
        together = step._align(step._encode(batch)[1], targets).loss
    assert step.eval()(samples).loss.item() == pytest.approx(together.item(), abs=1e-5)


def test_steps_that_teach_crops_alone_leave_the_picture_out(tmp_path: Path) -> None:
    made = tiny()
    step = training_step(made, stage()).train()
    step([replace(sample, teaches_pooled=False) for sample in samples_of(tmp_path, made[1])]).loss.backward()
    reached = {
        name.split(".")[0] for name, one in made[0].named_parameters() if one.grad is not None and one.grad.any()
    }
    assert "zoom_connector" in reached and not reached & {"connector", "refinement"}


def test_the_share_of_batches_that_teach_pooled_parts_is_the_recipes(tmp_path: Path) -> None:
    files = labeled_corpus(tmp_path, 4, 1)
    corpus = load_corpus(str(files.images), str(files.annotations))
    processor, taught = tiny()[1], []
    for share in (0.0, 0.3, 1.0):
        dataset = BatchDataset(corpus, processor, stage(pooled_share=share, epochs=20), 0, 0, 1)
        flags = [{sample.teaches_pooled for sample in dataset[i]} for i in range(40)]
        assert all(len(found) == 1 for found in flags)  # all samples of a batch alike
        taught.append(sum(found == {True} for found in flags))
    assert taught[0] == 0 and 2 <= taught[1] <= 24 and taught[2] == 40
