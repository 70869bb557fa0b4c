"""Regions of bare pictures: what is found and kept, and the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

import rlabel.run.propose_worker as propose_worker
from rlabel.cli.main import main
from rlabel.config import settings_schema
from rlabel.corpus.coco import read_corpus
from rlabel.errors import UsageError
from rlabel.proposing.embedded import EmbeddedProposer, mask_of, scaled_rle
from rlabel.proposing.found import ALL, Found, Keeping, box_found, kept, mask_found
from rlabel.proposing.hierarchy import colours, find_patches, join
from rlabel.proposing.prompts import along_line
from rlabel.proposing.settings import ProposeSettings
from rlabel.records import ImageRecord
from rlabel.run.proposals import plan_proposals
from rlabel.schema_files import validate

RECORD = ImageRecord(row={"id": 1}, file_name="a.png", width_px=None, height_px=None, regions=())


def scene(width: int = 120, height: int = 90) -> Image.Image:
    """A red disc, box 20 20 50 50, and a blue block, box 70 40 100 80, on grey."""
    drawn = Image.new("RGB", (width, height), (128, 128, 128))
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((20, 20, 49, 49), fill=(220, 30, 30))
    pen.rectangle((70, 40, 99, 79), fill=(30, 40, 200))
    return drawn


def iou(one: Any, other: Any) -> float:
    return float(coco_mask.iou(np.asarray([one], float), np.asarray([other], float), [0])[0, 0])


def mask(height: int, width: int, rows: slice, columns: slice) -> Any:
    inside = np.zeros((height, width), dtype=np.uint8, order="F")
    inside[rows, columns] = 1
    return coco_mask.encode(inside)


# What is found


def test_the_embedded_proposer_finds_what_stands_out() -> None:
    pixels = np.asarray(scene())
    found = kept(EmbeddedProposer().propose(pixels, RECORD), Keeping(max_per_image=5), 90, 120)
    for thing in ((20, 20, 30, 30), (70, 40, 30, 40)):
        assert max(iou(one.box_xywh, thing) for one in found) > 0.8
    disc = max(found, key=lambda one: iou(one.box_xywh, (20, 20, 30, 30)))
    # The mask is the disc, not its box: pi / 4 of it.
    assert disc.area_px / (disc.box_xywh[2] * disc.box_xywh[3]) == pytest.approx(np.pi / 4, abs=0.06)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2)])
def test_the_smallest_pictures_end_without_an_error(size: tuple[int, int]) -> None:
    assert EmbeddedProposer().propose(np.zeros((*size, 3), dtype=np.uint8), RECORD) == []


@pytest.mark.parametrize(("height", "width"), [(7, 9), (64, 48), (13, 100), (5, 5), (1, 3)])
def test_a_small_mask_is_drawn_at_another_size_as_its_nearest_pixels(height: int, width: int) -> None:
    small = np.random.default_rng(3).random((5, 7)) < 0.5
    rows = np.minimum(((np.arange(height) + 0.5) * 5 / height).astype(int), 4)
    columns = np.minimum(((np.arange(width) + 0.5) * 7 / width).astype(int), 6)
    expected = small[rows][:, columns]
    assert (coco_mask.decode(scaled_rle(small, height, width)).astype(bool) == expected).all()
    assert coco_mask.decode(scaled_rle(np.ones((5, 7), dtype=np.bool_), height, width)).all()
    # Of a part of the small picture, what is drawn lies where the part does.
    inside = np.zeros((5, 7), dtype=np.bool_)
    inside[1:5, 2:6] = small[1:5, 2:6]
    part = scaled_rle(inside[1:5, 2:6], height, width, (2, 1), (7, 5))
    assert part == scaled_rle(inside, height, width)


@pytest.mark.parametrize("way", ["edge", "colour", "both"])
def test_what_is_said_of_a_joined_region_is_what_is_counted_in_its_pixels(way: str) -> None:
    pixels = colours(np.random.default_rng(5).integers(0, 256, (24, 31, 3), dtype=np.uint8))
    patches = find_patches(pixels, 0.8, 5)
    nodes = join(patches, way)
    count = len(patches.sizes_N)
    assert count > 5 and len(nodes.patches) == 2 * count - 1 and nodes.sizes_M[-1] == 24 * 31
    for number in (0, count, count + count // 2, 2 * count - 3, 2 * count - 2):
        members = [n for n in range(count) if nodes.patches[number] >> n & 1]
        inside = np.isin(patches.labels_HW, members)
        rows, columns = np.nonzero(inside)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert nodes.boxes_M4[number].tolist() == box and nodes.sizes_M[number] == inside.sum()
        part = mask_of(nodes.patches[number], box, patches)
        assert (part == inside[box[1] : box[3], box[0] : box[2]]).all()
        across = (inside[:, 1:] != inside[:, :-1]).sum() + (inside[1:] != inside[:-1]).sum()
        assert nodes.perimeters_M[number] == across
        rim = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]]).sum()
        assert nodes.edges_M[number] == rim
        spread = np.sqrt(((pixels[inside] - pixels[inside].mean(axis=0)) ** 2).sum(axis=-1).mean())
        assert nodes.spreads_M[number] == pytest.approx(spread, abs=1e-6)


# What is kept


def test_of_two_masks_that_overlap_the_better_stays() -> None:
    better = mask_found(mask(10, 10, slice(0, 10), slice(0, 5)), 0.9)
    worse = mask_found(mask(10, 10, slice(0, 9), slice(0, 5)), 0.8)
    apart = mask_found(mask(10, 10, slice(0, 10), slice(5, 10)), 0.7)
    assert better is not None and worse is not None and apart is not None
    assert kept([apart, worse, better], Keeping(), 10, 10) == [better, apart]
    assert kept([worse, better], Keeping(nms_iou=0.95), 10, 10) == [better, worse]


def test_masks_are_compared_by_their_pixels_not_by_their_boxes() -> None:
    triangle = np.tril(np.ones((20, 20), dtype=np.uint8))
    found = [mask_found(coco_mask.encode(np.asfortranarray(part)), 0.5) for part in (triangle, 1 - triangle)]
    assert len(kept([one for one in found if one is not None], Keeping(max_share=0.9), 20, 20)) == 2


def test_shares_scores_and_the_number_bound_what_is_kept() -> None:
    found = [
        box_found((x, 0, x + side, side), score, 100, 100)
        for x, side, score in ((0, 1, 1), (10, 20, 0.6), (40, 20, 0.4), (0, 90, 0.9))
    ]
    boxes = [one for one in found if one is not None]
    assert [one.score for one in kept(boxes, Keeping(), 100, 100)] == [0.6, 0.4]
    assert [one.score for one in kept(boxes, Keeping(min_score=0.5), 100, 100)] == [0.6]
    assert [one.score for one in kept(boxes, Keeping(max_per_image=1), 100, 100)] == [0.6]
    assert len(kept(boxes, ALL, 100, 100)) == 4


def test_a_box_is_clipped_and_one_outside_or_not_finite_is_none() -> None:
    assert box_found((-5.0, 2.0, 5.0, 20.0), 2.0, 10, 10) == Found(
        box_xywh=(0.0, 2.0, 5.0, 8.0), area_px=40.0, score=1.0
    )
    assert box_found((11.0, 0.0, 15.0, 5.0), 0.5, 10, 10) is None
    assert box_found((float("nan"), 0.0, 15.0, 5.0), 0.5, 10, 10) is None


def test_points_lie_evenly_along_a_scribble() -> None:
    assert along_line([(0, 0), (10, 0), (10, 10)], 5) == [(0, 0), (5, 0), (10, 0), (10, 5), (10, 10)]
    assert along_line([(3, 4), (3, 4)], 5) == [(3, 4)]
    assert along_line([], 5) == []


# The run


def pictures(folder: Path, count: int = 3) -> Path:
    (folder / "more").mkdir(parents=True)
    for index in range(count):
        scene(120 + index).save(folder / f"p{index}.png")
    scene().save(folder / "more" / "a.JPG", format="JPEG")
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def propose(folder: Path, out: Path, *more: str) -> Result:
    return run("propose", folder, "--out", out, "--no-ray", "--images-per-shard", "2", *more)


def test_bare_pictures_become_regions_that_are_read_without_a_problem(tmp_path: Path) -> None:
    result = propose(pictures(tmp_path / "in"), tmp_path / "out")
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["images"], last["failures"], last["exit_code"]) == (5, 1, 0)
    document = json.loads((tmp_path / "out" / "regions.json").read_text())
    assert [row["file_name"] for row in document["images"]] == ["bad.png", "more/a.JPG", "p0.png", "p1.png", "p2.png"]
    assert [row.get("width") for row in document["images"]] == [None, 120, 120, 121, 122]
    assert len(document["annotations"]) == last["regions"] > 0
    assert [row["id"] for row in document["annotations"]] == list(range(1, last["regions"] + 1))
    assert all("category_id" not in row and row["image_id"] != 1 for row in document["annotations"])
    assert "left out, no pictures by their names: notes.txt (1 in all)" in result.stderr
    assert "1 failures in 5 pictures" in result.stderr and "failures.jsonl" in result.stderr
    failure = json.loads((tmp_path / "out" / "failures.jsonl").read_text())
    assert failure["file_name"] == "bad.png" and "not a picture" in failure["reason"]
    with read_corpus(tmp_path / "out" / "regions.json") as corpus:
        assert corpus.problems == []
        region = next(region for image in corpus.images() for region in image.regions)
        # The score cannot sway a labeler; what is handed on says where the region is from.
        assert "score" not in region.extra and region.extra["proposer"] == "embedded"
    for line in (tmp_path / "out" / "shards" / "000000.jsonl").read_text().splitlines():
        validate(json.loads(line), "shard-record", "line")


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "in")
    assert propose(folder, tmp_path / "whole").exit_code == 0
    calls: list[str] = []
    look = propose_worker.ProposeWorker._picture

    def stops(self: Any, record: ImageRecord) -> Any:
        calls.append(str(record.file_name))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return look(self, record)

    monkeypatch.setattr(propose_worker.ProposeWorker, "_picture", stops)
    assert propose(folder, tmp_path / "cut").exit_code == 130
    assert not (tmp_path / "cut" / "regions.json").exists()
    assert propose(folder, tmp_path / "cut").exit_code == 0
    # The committed shard is not done again.
    assert calls[4:] == ["p0.png", "p1.png", "p2.png"]
    for name in ("regions.json", "failures.jsonl", "manifest.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    other = propose(folder, tmp_path / "cut", "--nms-iou", "0.9")
    assert other.exit_code == 2 and "nms_iou" in other.stderr


def test_a_picture_that_breaks_the_proposer_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = EmbeddedProposer.propose

    def breaks(self: Any, picture: Any, record: ImageRecord) -> Any:
        if record.file_name == "p0.png":
            raise RuntimeError("out of luck")
        return find(self, picture, record)

    monkeypatch.setattr(EmbeddedProposer, "propose", breaks)
    assert propose(pictures(tmp_path / "in"), tmp_path / "out", "--max-attempts", "2").exit_code == 0
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [(row["file_name"], row["kind"]) for row in failures] == [("bad.png", "image"), ("p0.png", "attempts")]
    assert "out of luck" in failures[1]["reason"]


def test_a_listing_keeps_its_ids_and_too_many_failures_end_with_3(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in")
    rows = [
        {"id": 70, "file_name": "p1.png"},
        {"id": "x", "file_name": "gone.png"},
        {"id": 3, "file_name": "p0.png", "width": 1, "height": 1},
    ]
    (tmp_path / "list.json").write_text(json.dumps({"images": rows, "annotations": []}))
    result = propose(folder, tmp_path / "out", "--listing", str(tmp_path / "list.json"))
    assert result.exit_code == 3 and "2 of 3 pictures failed" in result.stderr
    document = json.loads((tmp_path / "out" / "regions.json").read_text())
    assert {row["image_id"] for row in document["annotations"]} == {70}


# Wrong input


def test_a_folder_without_pictures_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    result = propose(tmp_path, tmp_path / "out")
    assert result.exit_code == 1 and "expected pictures" in result.stderr
    result = propose(tmp_path / "none", tmp_path / "out")
    assert result.exit_code == 1 and "no such folder" in result.stderr


def test_a_link_to_a_folder_leads_nowhere(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 1)
    (folder / "round").symlink_to(folder)
    job = plan_proposals(ProposeSettings(images=str(folder), out=str(tmp_path / "out")))
    assert [record.file_name for record in job.records] == ["bad.png", "more/a.JPG", "p0.png"]


@pytest.mark.parametrize("wrong", [{"min_share": 0.7}, {"vocabulary": "names.txt"}, {"prompts": "prompts.json"}])
def test_settings_that_do_not_go_together_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        ProposeSettings(images="in", out="out", **wrong).check()


def test_the_schema_of_the_settings_is_the_one_they_give() -> None:
    expected = json.dumps(settings_schema(ProposeSettings), indent=2, ensure_ascii=False) + "\n"
    path = Path(__file__).parent.parent / "schemas" / "propose-settings.schema.json"
    assert path.read_text(encoding="utf-8") == expected
