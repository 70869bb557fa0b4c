"""Training's data: what a corpus must hold, the cap a category, batches that anybody makes alike, and the bytes that labeling uses."""

from __future__ import annotations

import functools
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from rlabel.corpus.coco import LabeledImage, LabeledRegion, read_corpus
from rlabel.corpus.inputs import prepare_image
from rlabel.corpus.limits import Limits
from rlabel.corpus.picture import LargePicture
from rlabel.errors import InputError
from rlabel.labeling.describer import RegionGPTDescriber, sight_of
from rlabel.labeling.engine import Engine, EngineOptions, to_device_batch
from rlabel.prompts.instructions import CLASSIFY
from rlabel.prompts.templates import Turn
from rlabel.records import ImageRecord, Region
from rlabel.regiongpt.processing import RegionGPTProcessor, RegionInputs
from rlabel.storage import Store
from rlabel.training.augment import Augment
from rlabel.training.corpus import TrainCorpus, pack, union
from rlabel.training.dataset import BatchDataset, NameDataset, Sample, fade_keeps, keep_samples
from rlabel.training.objectives import TrainingStep
from rlabel.training.packing import script
from rlabel.training.parts import load_corpus
from rlabel.training.sampling import cap_per_category
from train_factories import CATEGORIES, Files, edit, labeled_corpus, row, stage, tiny

AUGMENT = {"geometry": 1, "mirror": 0.5, "colour": 1, "cutout": 0.5, "box": 0.5, "keep": [0.0, 0.5]}


def load(files: Files, limit: int | None = None) -> TrainCorpus:
    return load_corpus(str(files.images), str(files.annotations), limit)


@functools.cache
def processor(zoom: str = "all") -> RegionGPTProcessor:
    return tiny(zoom=zoom)[1]


def dataset(corpus: TrainCorpus, rank: int = 0, world_size: int = 1, zoom: str = "all", **more: Any) -> BatchDataset:
    return BatchDataset(corpus, processor(zoom), stage(**more), 5, rank, world_size)


def same_inputs(left: RegionInputs, right: RegionInputs) -> bool:
    pairs = [(getattr(left, field.name), getattr(right, field.name)) for field in fields(RegionInputs)]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


def same(left: list[Sample], right: list[Sample]) -> bool:
    return len(left) == len(right) and all(
        a.names == b.names and a.seed == b.seed and same_inputs(a.inputs, b.inputs)
        for a, b in zip(left, right, strict=True)
    )


# ---- what a corpus must hold


def test_corpus_gives_labeled_regions_in_file_order(tmp_path: Path) -> None:
    corpus = load(labeled_corpus(tmp_path, num_images=3, regions_per_image=2))
    assert [image.record.file_name for image in corpus.images] == ["0.png", "1.png", "2.png"]
    assert [[label.category_id for label in image.labels] for image in corpus.images] == [[1, 2], [2, 3], [3, 4]]
    assert corpus.num_regions == 6
    assert corpus.parts[0].names == {row["id"]: row["name"] for row in CATEGORIES}


def test_limit_takes_the_first_images(tmp_path: Path) -> None:
    assert len(load(labeled_corpus(tmp_path, num_images=4), limit=2).images) == 2


def test_crowds_and_images_without_labels_are_left_out(tmp_path: Path) -> None:
    files = labeled_corpus(tmp_path, num_images=3)
    edit(files, lambda content: [one.update(iscrowd=1) for one in content["annotations"] if one["image_id"] == 2])
    corpus = load(files)
    assert [image.record.file_name for image in corpus.images] == ["0.png", "2.png"]
    assert [[region.key for region in image.record.regions] for image in corpus.images] == [["1", "2"], ["5", "6"]]


def no_geometry(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        del one["segmentation"], one["bbox"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content["annotations"][2].update(category_id=77), "annotation 3: .*got 77"),
        (lambda content: content["annotations"][1].pop("category_id"), "annotation 2: .*got None"),
        (lambda content: content["annotations"][0].update(category_id="cat"), "annotation 1: .*got None"),
        (lambda content: content.pop("categories"), "list of categories"),
        (lambda content: content.update(categories="cat"), "list of categories"),
        (lambda content: content.update(categories=[{"id": 1}]), "list of categories"),
        (lambda content: content["categories"][1].update(name="  "), "category 2: expected a name"),
        (lambda content: content.update(annotations=[]), "at least one labeled region"),
        (lambda content: [one.update(iscrowd=1) for one in content["annotations"]], "at least one labeled region"),
        (lambda content: [one.update(image_id=99) for one in content["annotations"]], "at least one labeled region"),
        (no_geometry, "usable regions, got none among the first 4; 0.png, region 1: "),
        (
            lambda content: [one.update(file_name="x.png") for one in content["images"]],
            "usable regions, got none among the first 4; x.png",
        ),
    ],
)
def test_unusable_corpus_is_refused_with_file_and_record(tmp_path: Path, change: Any, told: str) -> None:
    files = edit(labeled_corpus(tmp_path), change)
    with pytest.raises(InputError, match=told) as caught:
        load(files)
    assert str(files.annotations) in str(caught.value)


def test_missing_picture_folder_is_told_as_such(tmp_path: Path) -> None:
    files = labeled_corpus(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load_corpus(str(tmp_path / "nowhere"), str(files.annotations))


# ---- the cap a category


def made_corpus(categories: list[list[int]]) -> TrainCorpus:
    """Return a corpus in which image i has regions of the given categories."""
    images = []
    for i, ids in enumerate(categories):
        regions = tuple(Region(key=f"{i}.{j}", region_id=None, annotation_id=None) for j in range(len(ids)))
        labels = tuple(
            LabeledRegion(region=region, category_id=id_, caption=None)
            for region, id_ in zip(regions, ids, strict=True)
        )
        images.append(
            LabeledImage(
                record=ImageRecord(row={}, file_name=f"{i}", width_px=1, height_px=1, regions=regions), labels=labels
            )
        )
    return union([pack(images, dict.fromkeys(range(5), "x"))])


def counted(corpus: TrainCorpus) -> Counter[int | None]:
    return Counter(label.category_id for image in corpus.images for label in image.labels)


def keys(corpus: TrainCorpus) -> list[str]:
    return [region.key for image in corpus.images for region in image.record.regions]


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=8), st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_cap_keeps_at_most_n_a_category_in_file_order_and_drops_empty_images(
    categories: list[list[int]], cap: int, seed: int
) -> None:
    corpus = made_corpus(categories)
    capped = cap_per_category(corpus, cap, seed)
    assert counted(capped) == {id_: min(count, cap) for id_, count in counted(corpus).items()}
    assert all(image.labels for image in capped.images)
    assert all(image.record.regions == tuple(label.region for label in image.labels) for image in capped.images)
    assert keys(capped) == [key for key in keys(corpus) if key in set(keys(capped))]
    assert keys(cap_per_category(corpus, cap, seed)) == keys(capped)


def test_cap_chooses_by_the_seed() -> None:
    corpus = made_corpus([[1, 1, 1, 1]] * 5)
    assert len({tuple(keys(cap_per_category(corpus, 3, seed))) for seed in range(10)}) > 5


def test_without_a_cap_everything_stays() -> None:
    corpus = made_corpus([[1, 1], []])
    assert cap_per_category(corpus, None, 0) is corpus


# ---- batches


def test_batches_are_the_same_whoever_makes_them_and_whenever(tmp_path: Path) -> None:
    corpus = load(labeled_corpus(tmp_path, num_images=5))
    whole = dataset(corpus, epochs=3, augment=AUGMENT)
    batches = [whole[number] for number in range(len(whole))]
    assert len(batches) == 6
    assert not same(batches[0], batches[2])  # the second epoch has another order and other draws
    tail = dataset(corpus, epochs=3, augment=AUGMENT)
    tail.first_batch = 4
    assert len(tail) == 2
    assert all(same(tail[number], batches[4 + number]) for number in (1, 0))
    elsewhere = DataLoader(
        dataset(corpus, epochs=3, augment=AUGMENT), batch_size=None, collate_fn=keep_samples, num_workers=2
    )
    assert all(same(left, right) for left, right in zip(elsewhere, batches, strict=True))


@pytest.mark.parametrize(("num_images", "size", "world_size"), [(12, 2, 3), (12, 2, 1), (13, 2, 2), (5, 1, 5)])
def test_ranks_partition_an_epoch(tmp_path: Path, num_images: int, size: int, world_size: int) -> None:
    corpus = load(labeled_corpus(tmp_path, num_images=num_images, regions_per_image=1, size=40))
    seen: list[list[float]] = []
    for rank in range(world_size):
        part = dataset(corpus, rank, world_size, zoom="off", images_per_batch=size)
        seen += [sample.inputs.pixels_3SS.flatten().tolist() for number in range(len(part)) for sample in part[number]]
    assert len(seen) == num_images // (size * world_size) * size * world_size
    assert len({tuple(pixels) for pixels in seen}) == len(seen)  # every picture is different noise: none came twice


def test_fewer_images_than_a_batch_are_taken_again(tmp_path: Path) -> None:
    corpus = load(labeled_corpus(tmp_path, num_images=2))
    assert [len(batch) for batch in [dataset(corpus, images_per_batch=5)[0]]] == [5]


def test_broken_picture_is_left_out_of_its_batch_and_the_others_stay(tmp_path: Path) -> None:
    files = labeled_corpus(tmp_path, num_images=3)
    corpus = load(files)
    (files.images / "1.png").write_bytes(b"no picture")
    alone = dataset(corpus, images_per_batch=1)
    batches = [alone[number] for number in range(3)]
    assert sorted(len(batch) for batch in batches) == [0, 1, 1]
    together = dataset(corpus, images_per_batch=3)[0]
    assert same(
        sorted(together, key=lambda sample: sample.seed), sorted(sum(batches, []), key=lambda sample: sample.seed)
    )


def test_broken_region_is_left_out_of_its_picture(tmp_path: Path) -> None:
    files = labeled_corpus(tmp_path, num_images=1)
    edit(files, lambda content: content["annotations"].insert(0, row(9, 1, 3, [500, 500, 4, 4])))
    sample = dataset(load(files), images_per_batch=1)[0][0]
    assert sample.names == ("cat", "dog")
    assert len(sample.inputs.region_masks_RGG) == 2


def test_picture_with_many_regions_gives_a_random_part_of_them(tmp_path: Path) -> None:
    corpus = load(labeled_corpus(tmp_path, num_images=1, regions_per_image=4))
    few = dataset(corpus, images_per_batch=1, max_regions_per_image=2, epochs=12)
    drawn = [few[number][0] for number in range(12)]
    assert {len(sample.names) for sample in drawn} == {2}
    assert {len(sample.inputs.region_masks_RGG) for sample in drawn} == {2}
    assert len({sample.names for sample in drawn}) > 2
    order = [row["name"] for row in CATEGORIES]
    assert all(list(sample.names) == sorted(sample.names, key=order.index) for sample in drawn)


def test_fading_draws_stay_in_their_range_and_hang_on_the_sample_alone(tmp_path: Path) -> None:
    corpus = load(labeled_corpus(tmp_path, num_images=4))
    batch = dataset(corpus, images_per_batch=4)[0]
    keeps = fade_keeps(batch, (0.2, 0.3))
    assert keeps.shape == (8, 1, 1, 1)
    assert keeps.min() >= 0.2
    assert keeps.max() <= 0.3
    assert torch.equal(fade_keeps(batch[2:], (0.2, 0.3)), keeps[4:])


def test_batches_of_names_are_the_same_whoever_makes_them_and_differ_by_rank() -> None:
    made = stage("spell", steps=5, accumulate=2, names_per_batch=7)
    names = ["b", "a", "c", "a"]
    whole = NameDataset(names, made, 3, 0)
    batches = [whole[number] for number in range(len(whole))]
    assert [len(batch) for batch in batches] == [7] * 10
    assert {name for batch in batches for name in batch} == {"a", "b", "c"}
    tail = NameDataset(reversed_names := names[::-1], made, 3, 0)
    tail.first_batch = 6
    assert [tail[number] for number in range(len(tail))] == batches[6:]
    assert reversed_names != names
    assert NameDataset(names, made, 3, 1)[0] != batches[0]
    assert made.num_steps(1000, 4) == 5


@pytest.fixture()
def served(tmp_path: Path) -> Iterator[Files]:
    """A corpus whose pictures are behind HTTP, whose driver (as those of object stores) lives in an event loop that a fork does not copy."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

    files = labeled_corpus(tmp_path, num_images=2)
    handler = functools.partial(Quiet, directory=str(files.images))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Files(Path(f"http://127.0.0.1:{server.server_port}"), files.annotations)
        server.shutdown()


def test_pictures_of_a_remote_store_are_read_in_loader_processes(served: Files) -> None:
    url = str(served.images).replace("http:/", "http://")
    corpus = load_corpus(url, str(served.annotations))  # opens the store in this process first
    loader = DataLoader(
        dataset(corpus, images_per_batch=2), batch_size=None, collate_fn=keep_samples, num_workers=1, timeout=60
    )
    assert [[sample.names for sample in batch] for batch in loader] == [[sample.names for sample in dataset(corpus)[0]]]


# ---- contract 5: training = labeling


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("zoom", ["off", "all", "small"])
def test_training_and_labeling_prepare_the_same_bytes_and_tokens(
    tmp_path: Path, zoom: str, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_large:
        monkeypatch.setattr("rlabel.corpus.picture.LARGE_PX", 1000)
    files = labeled_corpus(tmp_path, num_images=2, regions_per_image=4)
    model, made = tiny(zoom=zoom)
    made.image_processor.zoom_below_px = 22.5  # with "small", three of the four regions
    engine = Engine(model, made, EngineOptions())
    trained = BatchDataset(load(files), made, stage(images_per_batch=2), 5, 0, 1)[0]
    store = Store.open(str(files.images))
    with read_corpus(str(files.annotations)) as corpus:
        labeled = []
        for record in corpus.images():
            describer = RegionGPTDescriber(engine)
            prepared = prepare_image(store, record, Limits(), sight=sight_of(describer))
            assert isinstance(prepared.picture, LargePicture) == is_large
            labeled.append(describer.prepare(prepared, prepared.regions))
    for sample in trained:
        twins = [inputs for inputs in labeled if torch.equal(inputs.pixels_3SS, sample.inputs.pixels_3SS)]
        assert len(twins) == 1
        assert same_inputs(sample.inputs, twins[0])
        # ... and what the model is given of them, crops faded
        step = TrainingStep(model, made, stage(), [row["name"] for row in CATEGORIES]).train()
        given = step._device_batch([sample], torch.device("cpu"))
        wanted = to_device_batch(twins, made, torch.device("cpu"))
        for field in fields(given):
            left, right = getattr(given, field.name), getattr(wanted, field.name)
            assert (left is None and right is None) or torch.equal(left, right), field.name
        first = Turn(question=CLASSIFY[0], mentions=(0,), answer=sample.names[0])
        asked = [*engine.prompt.prefix_ids, *engine.prompt.suffix_ids]
        assert list(script(made, [first]).ids) == [*asked, *made.answer_ids(sample.names[0])[:-1]]
    assert {len(inputs.zoom_crops_Z4SS) if inputs.zoom_crops_Z4SS is not None else 0 for inputs in labeled} == {
        {"off": 0, "all": 4, "small": 3}[zoom]
    }


def test_validation_fades_crops_as_labeling_does_whatever_training_draws(tmp_path: Path) -> None:
    corpus = load(labeled_corpus(tmp_path, num_images=1))
    model, made = tiny()
    wide = stage(augment=Augment(keep=(0.6, 0.9)))
    sample = BatchDataset(corpus, made, wide, 5, 0, 1).sample(0, 0, None)
    assert sample is not None
    step = TrainingStep(model, made, wide, corpus.all_names)
    wanted = to_device_batch([sample.inputs], made, torch.device("cpu")).zoom_pixels_Z3SS
    trained = step.train()._device_batch([sample], torch.device("cpu")).zoom_pixels_Z3SS
    validated = step.eval()._device_batch([sample], torch.device("cpu")).zoom_pixels_Z3SS
    assert wanted is not None and trained is not None and validated is not None
    assert torch.equal(validated, wanted)
    assert not torch.equal(trained, wanted)


def test_the_whole_picture_is_mirrored_together_with_its_masks(tmp_path: Path) -> None:
    _, processor = tiny()
    files = labeled_corpus(tmp_path, num_images=1, regions_per_image=2)
    corpus = load_corpus(str(files.images), str(files.annotations))
    plain = BatchDataset(corpus, processor, stage(), 0, 0, 1).sample(0, 0, None)
    assert plain is not None
    changed = BatchDataset(corpus, processor, stage(), 0, 0, 1)
    seen = set()
    for epoch in range(12):
        sample = changed.sample(0, epoch, Augment(mirror=0.5))
        assert sample is not None
        mirrored = not torch.equal(sample.inputs.region_masks_RGG, plain.inputs.region_masks_RGG)
        seen.add(mirrored)
        pixels, masks = sample.inputs.pixels_3SS, sample.inputs.region_masks_RGG
        if mirrored:
            pixels, masks = pixels.flip(-1), masks.flip(-1)
        assert torch.equal(masks, plain.inputs.region_masks_RGG)
        assert torch.allclose(pixels, plain.inputs.pixels_3SS, atol=1e-5)
    assert seen == {True, False}


def test_the_whole_picture_changes_colour_but_keeps_its_edges(tmp_path: Path) -> None:
    _, processor = tiny()
    files = labeled_corpus(tmp_path, num_images=1)
    corpus = load_corpus(str(files.images), str(files.annotations))
    data = BatchDataset(corpus, processor, stage(), 0, 0, 1)
    plain, grey, same = (data.sample(0, 0, augment) for augment in (None, Augment(grey=1.0), Augment(outline=1.0)))
    assert plain is not None and grey is not None and same is not None
    levels_3SS = processor.image_processor.denormalise(grey.inputs.pixels_3SS)
    assert torch.equal(levels_3SS[0], levels_3SS[1]) and torch.equal(levels_3SS[1], levels_3SS[2])
    assert torch.allclose(same.inputs.pixels_3SS, plain.inputs.pixels_3SS, atol=1e-5)
