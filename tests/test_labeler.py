"""The Labeler: every region of a shard ends as one outcome, in order, whatever the model, the pictures or the batches do."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from factories import HEIGHT, WIDTH, image_record, image_row, region, save_picture
from label_factories import FakeDescriber
from rlabel.errors import StorageError
from rlabel.labeling.labeler import Labeler
from rlabel.records import Abstention, Evidence, Failure, ImageRecord, Label, Region, Shard
from rlabel.run.records_io import check_complete
from rlabel.storage import Store
from rlabel.vocabulary.calibration import Calibrator
from rlabel.vocabulary.likelihood import Choosing, LikelyName
from rlabel.vocabulary.snapping import Snapper
from rlabel.vocabulary.vocabulary import Category, Vocabulary, make_vocabulary

SNAPPER = Snapper(
    Vocabulary(
        name="two",
        categories=(Category(category_id=3, name="cat"), Category(category_id=7, name="dog")),
        sha256="0" * 64,
    ),
    None,
)
BOX = (2.0, 3.0, 6.0, 4.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("pictures")
    save_picture(folder / "a.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    return Store.open(folder)


def boxed(key: str, **more: object) -> Region:
    return region(key, box_xywh=BOX, **more)


def shard_of(*images: ImageRecord, strays: tuple[Region, ...] = ()) -> Shard:
    return Shard(index=4, content_sha256="0" * 64, images=images, stray_regions=strays)


def picture(image_id: int, *regions: Region, file_name: str = "a.png") -> ImageRecord:
    return image_record(*regions, id=image_id, file_name=file_name)


def keys(result) -> list[str]:
    return [outcome.region.key for outcome in result.outcomes]


# One image: its file, and for each region whether its row is good, bad, or makes the model raise.
FILES = st.sampled_from(["a.png", "a.png", "cut.png", "gone.png"])
IMAGES = st.lists(
    st.tuples(FILES, st.lists(st.sampled_from(["good", "bad", "raises", "nan", "odd"]), max_size=7)), max_size=8
)


@settings(max_examples=60)
@given(plan=IMAGES, num_strays=st.integers(0, 3), size=st.integers(1, 6))
def test_every_region_has_one_outcome_in_shard_order_and_no_batch_is_too_large(pictures, plan, num_strays, size):
    says: dict[str, str | Exception] = {}
    logprobs: dict[str, tuple[float, ...]] = {}
    images: list[ImageRecord] = []
    expected: dict[str, type] = {}
    number = 0
    for image_id, (file_name, kinds) in enumerate(plan, start=1):
        regions = []
        for kind in kinds:
            number += 1
            key = str(number)
            regions.append(region(key) if kind == "bad" else boxed(key))
            if kind == "raises":
                says[key] = RuntimeError("the tensors did not fit")
            if kind == "odd":
                says[key] = "zzyzx"
            if kind == "nan":
                logprobs[key] = (-0.1, math.nan)
            expected[key] = {"good": Label, "odd": Abstention}.get(kind, Failure) if file_name == "a.png" else Failure
        images.append(picture(image_id, *regions, file_name=file_name))
    strays = tuple(region(str(1000 + i), problem="in no image row") for i in range(num_strays))
    expected |= {stray.key: Failure for stray in strays}
    shard = shard_of(*images, strays=strays)
    describer = FakeDescriber(says, logprobs=logprobs)

    result = Labeler(describer, SNAPPER, max_regions_per_batch=size).label(shard, pictures)

    check_complete(shard, result)
    assert keys(result) == list(expected)
    assert max((len(call) for call in describer.calls), default=0) <= size
    for outcome in result.outcomes:
        # A region that makes the model raise takes those of its image that are in the same batch with it, and no others.
        of_a_raising_image = any(
            isinstance(says.get(key), Exception) for key in _image_keys(images, outcome.region.key)
        )
        if not of_a_raising_image:
            assert type(outcome) is expected[outcome.region.key]
        elif outcome.region.key in says and expected[outcome.region.key] is Failure:
            assert isinstance(outcome, Failure)
    assert result == Labeler(FakeDescriber(says, logprobs=logprobs), SNAPPER, max_regions_per_batch=size).label(
        shard, pictures
    )


def _image_keys(images: list[ImageRecord], key: str) -> list[str]:
    return next(
        ([item.key for item in image.regions] for image in images if any(item.key == key for item in image.regions)), []
    )


def test_an_image_with_more_regions_than_a_batch_is_cut_in_its_order(pictures):
    describer = FakeDescriber()
    shard = shard_of(picture(1, *(boxed(str(n)) for n in range(1, 8))), picture(2, boxed("8")))
    Labeler(describer, SNAPPER, max_regions_per_batch=3).label(shard, pictures)
    assert describer.calls == [["1", "2", "3"], ["4", "5", "6"], ["7", "8"]]


def test_batches_hold_several_images_up_to_the_bound(pictures):
    describer = FakeDescriber()
    shard = shard_of(*(picture(n, boxed(str(2 * n)), boxed(str(2 * n + 1))) for n in range(1, 5)))
    Labeler(describer, SNAPPER, max_regions_per_batch=5).label(shard, pictures)
    assert describer.calls == [["2", "3", "4", "5"], ["6", "7", "8", "9"]]


def test_a_model_that_raises_on_one_image_fails_only_that_images_regions(pictures):
    shard = shard_of(picture(1, boxed("1")), picture(2, boxed("2"), boxed("3")), picture(3, boxed("4")))
    result = Labeler(FakeDescriber({"3": ValueError("bad\nshape")}), SNAPPER).label(shard, pictures)
    assert [type(outcome) for outcome in result.outcomes] == [Label, Failure, Failure, Label]
    failure = result.outcomes[1]
    assert isinstance(failure, Failure) and (failure.kind, failure.image_id) == ("model", 2)
    assert failure.reason == "a.png, region 2: the model failed (ValueError: bad shape)."


def test_inputs_that_cannot_be_made_fail_only_their_image(pictures):
    class Picky(FakeDescriber):
        def prepare(self, image, regions):
            if image.record.row["id"] == 2:
                raise ZeroDivisionError("a mask of no height")
            return super().prepare(image, regions)

    shard = shard_of(picture(1, boxed("1")), picture(2, boxed("2")), picture(3, boxed("3")))
    result = Labeler(Picky(), SNAPPER).label(shard, pictures)
    assert [type(outcome) for outcome in result.outcomes] == [Label, Failure, Label]
    assert "ZeroDivisionError: a mask of no height" in result.outcomes[1].reason  # type: ignore[union-attr]


def test_a_broken_gpu_is_nobodys_picture_and_ends_the_call(pictures):
    describer = FakeDescriber({"1": torch.AcceleratorError("CUDA error: an illegal memory access was encountered")})
    with pytest.raises(torch.AcceleratorError):
        Labeler(describer, SNAPPER).label(shard_of(picture(1, boxed("1")), picture(2, boxed("2"))), pictures)


def test_a_store_that_cannot_be_read_now_ends_the_call_since_another_try_may_help(monkeypatch, pictures):
    def unreachable(*_: object, **__: object) -> None:
        raise StorageError("s3: no connection")

    monkeypatch.setattr("rlabel.labeling.labeler.prepare_image", unreachable)
    with pytest.raises(StorageError, match="no connection"):
        Labeler(FakeDescriber(), SNAPPER).label(shard_of(picture(1, boxed("1"))), pictures)


@pytest.mark.parametrize("values", [(math.nan,), (-0.1, -math.inf), (math.inf,)])
def test_probabilities_that_are_no_numbers_are_a_failure_and_not_a_label(pictures, values):
    result = Labeler(FakeDescriber(logprobs={"1": values}), SNAPPER).label(
        shard_of(picture(1, boxed("1"), boxed("2"))), pictures
    )
    assert [type(outcome) for outcome in result.outcomes] == [Failure, Label]
    assert result.outcomes[0].reason == "a.png, region 1: the model gave no finite probabilities."  # type: ignore[union-attr]


def test_a_label_carries_text_scores_box_and_area(pictures):
    labeler = Labeler(FakeDescriber({"1": "a dog"}, logprobs={"1": (math.log(0.5), math.log(0.5))}), SNAPPER)
    (label,) = labeler.label(shard_of(picture(9, boxed("1"))), pictures).outcomes
    assert isinstance(label, Label)
    assert (label.image_id, label.category_id, label.text) == (9, 7, "a dog")
    assert (label.text_score, label.score, label.box_xywh, label.area_px, label.segmentation) == (
        0.25,
        0.25,
        BOX,
        24.0,
        None,
    )


def test_a_label_keeps_what_its_tokens_say(pictures):
    describer = FakeDescriber(logprobs={"1": (-0.5, -1.5, -1.0), "2": (0.0001, -5000.0)})
    first, second = Labeler(describer, SNAPPER).label(shard_of(picture(1, boxed("1"), boxed("2"))), pictures).outcomes
    assert first.evidence == Evidence(num_tokens=3, mean_logprob=-1.0, min_logprob=-1.5)
    # Half precision lifts one above 0; the other would overflow a sum of many.
    assert second.evidence == Evidence(num_tokens=2, mean_logprob=-500.0, min_logprob=-1000.0)


def test_scores_are_calibrated_and_labels_below_the_least_score_abstain(pictures):
    # Raw scores from 0.5 on are right nine times of ten, those below one time of ten.
    steps = Calibrator(method="isotonic", starts=(0.0, 0.5), values=(0.1, 0.9))
    logprobs = {"1": (math.log(0.8),), "2": (math.log(0.3),)}
    shard = shard_of(picture(1, boxed("1"), boxed("2")))
    sure, unsure = Labeler(FakeDescriber(logprobs=logprobs), SNAPPER, calibrator=steps).label(shard, pictures).outcomes
    assert (sure.score, sure.raw_score) == (0.9, 0.8) and (unsure.score, unsure.raw_score) == (0.1, 0.3)
    kept, dropped = (
        Labeler(FakeDescriber(logprobs=logprobs), SNAPPER, calibrator=steps, min_score=0.5)
        .label(shard, pictures)
        .outcomes
    )
    assert kept == sure
    assert isinstance(dropped, Abstention) and dropped.text == unsure.text and dropped.evidence == unsure.evidence
    assert dropped.snap.category_id is None and "below 0.5" in dropped.snap.reason


def test_likelihoods_decide_where_the_describer_gives_some(pictures):
    choosing = Choosing(
        make_vocabulary("two", [Category(category_id=3, name="cat"), Category(category_id=7, name="dog")])
    )

    class Doubtful(FakeDescriber):
        def _decoded(self, key):
            names = (("dog", -0.5), ("cat", -1.0))
            return replace(
                super()._decoded(key),
                likely_names=tuple(LikelyName(name=name, logprob=value, rank=value) for name, value in names),
            )

    (label,) = (
        Labeler(Doubtful(), SNAPPER, choosing=choosing).label(shard_of(picture(1, boxed("1"))), pictures).outcomes
    )
    assert (label.text, label.category_id, label.snap.decided_by) == ("a cat", 7, "likelihood")
    assert label.score == pytest.approx(math.exp(-0.5), abs=1e-6)
    assert [one.category_id for one in label.evidence.candidates] == [7, 3]


def test_an_answer_that_no_category_is_near_abstains_and_keeps_its_text(pictures):
    (outcome,) = (
        Labeler(FakeDescriber(otherwise="zzyzx"), SNAPPER).label(shard_of(picture(1, boxed("1"))), pictures).outcomes
    )
    assert isinstance(outcome, Abstention) and outcome.text == "zzyzx" and outcome.snap.category_id is None


def test_crowds_are_labeled_or_become_failures_by_the_setting(pictures):
    shard = shard_of(picture(1, boxed("1", is_crowd=True), boxed("2")))
    assert [type(item) for item in Labeler(FakeDescriber(), SNAPPER).label(shard, pictures).outcomes] == [Label, Label]
    skipped = Labeler(FakeDescriber(), SNAPPER, include_crowds=False).label(shard, pictures).outcomes
    assert [type(item) for item in skipped] == [Failure, Label] and "crowd" in skipped[0].reason  # type: ignore[union-attr]


def test_pictures_without_regions_and_shards_of_strays_pass_without_the_model(pictures):
    describer = FakeDescriber()
    result = Labeler(describer, SNAPPER).label(
        shard_of(picture(1), strays=(region("5", problem="in no image row"),)), pictures
    )
    assert result.images == (image_row(1),) and keys(result) == ["5"] and describer.calls == []


def test_too_few_answers_are_a_broken_promise_and_no_label_is_misplaced(pictures):
    class Forgetful(FakeDescriber):
        def describe(self, inputs):
            return [answers[:-1] for answers in super().describe(inputs)]

    with pytest.raises(ValueError):
        Labeler(Forgetful(), SNAPPER).label(shard_of(picture(1, boxed("1"), boxed("2"))), pictures)


def test_pictures_are_prepared_ahead_of_the_model_but_not_without_bound(pictures):
    prepared: list[str] = []
    ahead: list[int] = []
    enough = threading.Event()

    class Slow(FakeDescriber):
        def prepare(self, image, regions):
            prepared.append(regions[0].region.key)
            if len(prepared) >= 5:
                enough.set()
            return super().prepare(image, regions)

        def describe(self, inputs):
            enough.wait(20)
            ahead.append(len(prepared))
            return super().describe(inputs)

    shard = shard_of(*(picture(n, boxed(str(n))) for n in range(1, 30)))
    result = Labeler(Slow(), SNAPPER, max_regions_per_batch=1).label(shard, pictures)
    assert prepared == keys(result)
    assert 4 <= ahead[0] <= 8


# segmentation_to_write


def written(pictures: Store, given: Region):
    (label,) = Labeler(FakeDescriber(), SNAPPER).label(shard_of(picture(1, given)), pictures).outcomes
    assert isinstance(label, Label)
    return label


def test_good_polygons_are_written_verbatim(pictures):
    shape = [[2, 3, 12.5, 3, 12.5, 9, 2, 9], [15, 1, 20, 1, 20, 8]]
    assert written(pictures, region("1", segmentation=shape)).segmentation is shape


def test_mended_polygons_are_written_as_the_mask_that_was_used(pictures):
    label = written(pictures, region("1", segmentation=[[2, 3, 12, 3, 12, 9, 2, 9], [1, 1, 5, 5]]))
    assert isinstance(label.segmentation, dict)
    found = coco.decode(label.segmentation)
    assert found.shape == (HEIGHT, WIDTH) and found.sum() == label.area_px == 60


def test_uncompressed_rle_is_written_compressed_and_covers_the_same_pixels(pictures):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[4:9, 10:13] = 1
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    label = written(pictures, region("1", segmentation={"size": [HEIGHT, WIDTH], "counts": counts}))
    assert isinstance(label.segmentation, dict) and isinstance(label.segmentation["counts"], str)
    assert (coco.decode(label.segmentation) == mask).all() and label.area_px == 15


def test_compressed_rle_is_written_verbatim(pictures):
    rle = coco.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))
    shape = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode("ascii")}
    assert written(pictures, region("1", segmentation=shape)).segmentation is shape


def test_a_box_has_no_segmentation_also_where_it_stands_in_for_an_empty_one(pictures):
    assert written(pictures, boxed("1")).segmentation is None
    assert written(pictures, boxed("1", segmentation=[])).segmentation is None
