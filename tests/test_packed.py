"""Images in a temporary file: they come back as they were, in any order, in any process; nothing of them is left behind."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from rlabel.corpus.labeled import Federated, LabeledImage, LabeledRegion, Relation
from rlabel.corpus.packed import PackedImages
from rlabel.errors import InputError
from rlabel.records import ImageRecord, Region
from rlabel.training.corpus import pack, union


def image(number: int) -> LabeledImage:
    """Return an image with as many regions as its number, and everything that a layout may say of them."""
    regions = tuple(
        Region(
            key=f"{number}.{i}",
            region_id=i,
            annotation_id=i,
            segmentation=[[0.5, 1.0, 2.0, 3.0, 4.0, 5.0]],
            box_xywh=(0.0, 1.0, 2.5, 3.0),
            extra={"größe": None},
        )
        for i in range(number)
    )
    labels = tuple(
        LabeledRegion(region=region, category_id=7, caption="a cup", expressions=("left",), names=("cup",))
        for region in regions
    )
    record = ImageRecord(row={"id": number}, file_name=f"{number}.png", width_px=9, height_px=8, regions=regions)
    relations = (Relation(subject_key="0", predicate="on", object_key="1"),) * (number > 1)
    return LabeledImage(
        record=record,
        labels=labels,
        relations=relations,
        federated=Federated(negative_ids=(3,), not_exhaustive_ids=(number,)),
    )


def packed(num_images: int, folder: Path) -> PackedImages:
    images = PackedImages(str(folder))
    for number in range(num_images):
        images.append(image(number))
    images.finish()
    return images


def test_images_come_back_as_they_were_in_any_order(tmp_path: Path) -> None:
    images = packed(5, tmp_path)
    assert len(images) == 5
    assert [images[i] for i in (3, 0, 4, 4, -1)] == [image(3), image(0), image(4), image(4), image(4)]
    assert images[1:3] == [image(1), image(2)]
    assert list(images) == [image(i) for i in range(5)]
    for out in (5, -6):
        with pytest.raises(IndexError):
            images[out]


def test_the_file_has_no_name_that_a_killed_process_could_leave_behind(tmp_path: Path) -> None:
    images = packed(3, tmp_path)
    assert images.num_bytes > 0
    assert list(tmp_path.iterdir()) == []


def send(images: Sequence[LabeledImage], number: int, to: Connection) -> None:
    to.send(images[number])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["packed", "corpus"])
def test_other_processes_read_the_same_file(tmp_path: Path, method: str, kind: str) -> None:
    images: Sequence[LabeledImage] = packed(4, tmp_path)
    if kind == "corpus":
        images = union([pack([image(1), image(3), image(2), image(3)], {7: "cup"})]).images
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=send, args=(images, 2, there))  # type: ignore[attr-defined]
    process.start()
    assert here.poll(60)
    assert here.recv() == image(2)
    process.join()
    assert images[3] == image(3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(InputError, match=f"{tmp_path}: cannot hold .* TMPDIR"):
        packed(2, tmp_path)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: cannot hold"):
        PackedImages(str(tmp_path / "nowhere"))
