"""Preparing one image: every region ends prepared or failed, and what is wrong is told with file, region and cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlabel.corpus.inputs import PreparedImage, prepare_image, stray_failure
from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import mask_to_rle
from rlabel.records import ImageRecord, Region
from rlabel.storage import Store

from factories import HEIGHT, WIDTH, image_record, pixels, region, save_picture  # isort: skip

BOX = (2.0, 3.0, 6.0, 4.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_picture(tmp_path / "a.png")
    return tmp_path


def prepared(
    folder: Path, record: ImageRecord, limits: Limits | None = None, include_crowds: bool = True
) -> PreparedImage:
    return prepare_image(Store.open(folder), record, limits or Limits(), include_crowds=include_crowds)


def test_a_good_image_gives_its_pixels_and_a_mask_a_region(folder):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:9, 1:3] = True
    found = prepared(folder, image_record(region("1", box_xywh=BOX), region("2", segmentation=mask_to_rle(mask))))
    assert found.pixels_HWC is not None and (found.pixels_HWC == pixels()).all() and found.failures == ()
    assert [item.region.key for item in found.regions] == ["1", "2"]
    assert found.regions[0].mask.box_xywh == BOX and (found.regions[1].mask.mask_HW == mask).all()


def test_one_bad_region_fails_alone_and_says_why(folder):
    regions = (
        region("1", box_xywh=(99, 3, 6, 4)),
        region("2", box_xywh=BOX),
        region("3", segmentation="x"),
        region("4"),
    )
    found = prepared(folder, image_record(*regions, id="id 7"))
    assert [item.region.key for item in found.regions] == ["2"]
    assert [(item.region.key, item.kind, item.image_id) for item in found.failures] == [
        ("1", "region", "id 7"),
        ("3", "region", "id 7"),
        ("4", "region", "id 7"),
    ]
    assert all(item.reason.startswith(f"a.png, region {item.region.key}: ") for item in found.failures)


def test_a_bad_image_fails_each_of_its_regions_with_the_cause(folder):
    found = prepared(folder, image_record(region("1", box_xywh=BOX), region("2", box_xywh=BOX), file_name="b.png"))
    assert found.pixels_HWC is None and found.regions == ()
    assert [(item.region.key, item.kind) for item in found.failures] == [("1", "image"), ("2", "image")]
    assert found.failures[0].reason == "b.png: there is no such file in the image folder."


def test_a_row_without_a_file_name_is_a_failure_of_its_regions(folder):
    record = ImageRecord(row={"id": 3}, file_name=None, width_px=None, height_px=None, regions=(region(box_xywh=BOX),))
    assert prepared(folder, record).failures[0].reason == "image id 3: the image row has no usable file_name."


def test_an_image_without_regions_is_not_even_opened(folder):
    found = prepared(folder, image_record(file_name="not there.png"))
    assert (found.pixels_HWC, found.regions, found.failures) == (None, (), ())


@pytest.mark.parametrize(("width", "height"), [(WIDTH + 1, HEIGHT), (WIDTH, 1), (WIDTH, None), (None, None)])
def test_a_size_that_disagrees_with_the_picture_is_a_failure_with_both_sizes(folder, width, height):
    found = prepared(folder, image_record(region(box_xywh=BOX), width=width, height=height))
    if (width or WIDTH, height or HEIGHT) == (WIDTH, HEIGHT):
        assert found.failures == ()  # a size that is not stated cannot disagree
        return
    (failure,) = found.failures
    assert (
        failure.kind == "image" and f"{WIDTH} x {HEIGHT}" in failure.reason and f"{width} x {height}" in failure.reason
    )


def test_the_size_is_that_of_the_upright_picture(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels()).transpose(Image.Transpose.ROTATE_90).save(folder / "a.png", exif=exif)
    found = prepared(folder, image_record(region(box_xywh=BOX)))
    assert found.pixels_HWC is not None and (found.pixels_HWC == pixels()).all()
    (failure,) = prepared(folder, image_record(region(box_xywh=BOX), width=HEIGHT, height=WIDTH)).failures
    assert "EXIF" in failure.reason


def test_a_problem_found_while_reading_becomes_the_reason(folder):
    found = prepared(folder, image_record(region("1", box_xywh=BOX, problem="twins"), region("2", box_xywh=BOX)))
    assert [item.reason for item in found.failures] == ["a.png, region 1: twins."] and len(found.regions) == 1


def test_crowds_are_prepared_unless_they_are_switched_off(folder):
    record = image_record(region("1", box_xywh=BOX, is_crowd=True), region("2", box_xywh=BOX))
    assert len(prepared(folder, record).regions) == 2
    found = prepared(folder, record, include_crowds=False)
    assert [item.region.key for item in found.regions] == ["2"]
    assert found.failures[0].kind == "region" and "crowds are skipped" in found.failures[0].reason


def test_regions_beyond_the_limit_fail_and_the_first_ones_do_not(folder):
    record = image_record(*(region(str(number), box_xywh=BOX) for number in range(1, 5)))
    found = prepared(folder, record, Limits(max_regions_per_image=2))
    assert [item.region.key for item in found.regions] == ["1", "2"]
    assert "limit of 2" in found.failures[0].reason and len(found.failures) == 2


def test_an_lvis_row_finds_its_file_with_or_without_the_folder_of_its_split(folder):
    for stored in ("val2017/1.png", "2.png"):
        save_picture(folder / stored)
    for number in ("1", "2"):
        row = {"id": 1, "coco_url": f"http://images.example.org/val2017/{number}.png"}
        record = ImageRecord(
            row=row, file_name=f"val2017/{number}.png", width_px=None, height_px=None, regions=(region(box_xywh=BOX),)
        )
        assert prepared(folder, record).failures == ()


def test_a_stray_region_ends_as_a_failure_that_says_why():
    failure = stray_failure(Region(key="4", region_id=4, annotation_id=4, problem="its image_id 9 is in no image row"))
    assert failure.kind == "region" and failure.image_id is None
    assert failure.reason == "no image, region 4: its image_id 9 is in no image row."


def test_a_long_file_name_does_not_make_a_long_reason(folder):
    found = prepared(folder, image_record(region(box_xywh=BOX), file_name="x" * 5000))
    assert len(found.failures[0].reason) < 400
