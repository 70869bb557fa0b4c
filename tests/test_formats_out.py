"""`rlabel export`: what goes out comes in again as it was, or the loss is said; judged by pycocotools and by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from format_factories import areas, make_pictures, make_run, masks_of, read
from rlabel.cli.convert import FORMATS as CONVERT_FORMATS
from rlabel.cli.export import _FORMATS as EXPORT_FORMATS
from rlabel.cli.main import main
from rlabel.config import RegionsBoxes, RegionsFormat
from rlabel.corpus.runs import runs_of_bitmap
from rlabel.errors import InputError, StorageError, UsageError
from rlabel.formats.brush import brush_to_mask, mask_to_brush
from rlabel.formats.convert import convert
from rlabel.formats.export import TARGET_FORMATS, TargetFormat, export
from rlabel.formats.found import Notes
from rlabel.formats.guess import SOURCE_FORMATS
from rlabel.formats.outlines import Loop, joined, outlines, simplified, without_holes
from rlabel.formats.rows import Boxes
from rlabel.formats.shapes import Shapes
from rlabel.formats.shown import Category, ShownLabel, ShownPicture
from rlabel.formats.write_yolo import _polygon as yolo_polygon
from rlabel.formats.writing import Files, made_once
from rlabel.storage import Store
from run_factories import box_polygon, image_row

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(lambda mask: bool(mask.any()))
NAMES = ("cat", "dog", "überraschungsei")
TO_READ: dict[TargetFormat, str] = {
    "lvis": "lvis.json", "yolo": "", "voc": "", "labelstudio": "tasks.json", "cvat": "annotations.xml", "fiftyone": "labels.json",
    "huggingface": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("formats") / "run")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("photos"), "1.jpg", "5.jpg", "20.jpg")


def drawn(loops: Any, shape: tuple[int, ...]) -> Any:
    height, width = shape
    parts = coco_mask.frPyObjects([loop.ravel().tolist() for loop in loops], height, width)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def traced(mask: Any) -> list[tuple[Loop, list[Loop]]]:
    """The outlines of a mask, from the picture's corner."""
    runs = runs_of_bitmap(mask, 0, 0)
    corner = runs.box_xyxy[:2]
    return [(outer + corner, [hole + corner for hole in holes]) for outer, holes in outlines(runs)]


def walked(mask: Any) -> list[list[tuple[int, int]]]:
    """The corners of every outline, walked unit by unit: each from its first corner by rows to the right; where lines cross,
    towards what is up left, or away from it."""
    padded = np.pad(mask, 1).tolist()
    left, right, up, down = (-1, 0), (1, 0), (0, -1), (0, 1)

    def onward(x: int, y: int, heading: tuple[int, int]) -> tuple[int, int]:
        (a, b), (c, d) = padded[y][x : x + 2], padded[y + 1][x : x + 2]
        lines = {way for way, is_line in ((left, a != c), (right, b != d), (up, a != b), (down, c != d)) if is_line}
        back = (-heading[0], -heading[1])
        if len(lines) == 4:
            turns = (
                {left: up, up: left, right: down, down: right} if a else {left: down, down: left, right: up, up: right}
            )
            return turns[back]
        (way,) = lines - {back}
        return way

    rows, columns = range(len(padded) - 1), range(len(padded[0]) - 1)
    to_walk = {
        (y, x) for y in rows for x in columns if padded[y][x + 1] != padded[y + 1][x + 1]
    }  # to the right of a point
    found = []
    while to_walk:
        (y, x), way = min(to_walk), right
        start, loop = (x, y), [(x, y)]
        while True:
            to_walk.discard((y, x - (way == left)) if way in (left, right) else (-1, -1))
            x, y = x + way[0], y + way[1]
            turned = onward(x, y, way)
            if (x, y) == start and turned == right:
                break
            if turned != way:
                loop.append((x, y))
            way = turned
        found.append(loop)
    return found


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_outlines_are_those_of_a_walk_along_every_pixel(mask: Any) -> None:
    pieces, expected = traced(mask), walked(mask)
    outers = [[*map(tuple, outer.tolist())] for outer, _ in pieces]
    holes = [[*map(tuple, hole.tolist())] for _, own in pieces for hole in own]
    assert sorted(outers + holes) == sorted(expected)
    assert outers == [loop for loop in expected if loop in outers], "in the order of their first corners by rows"


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_outlines_drawn_by_pycocotools_are_the_mask_again(mask: Any) -> None:
    loops = [without_holes(outer, holes) for outer, holes in traced(mask)]
    assert (drawn(loops, mask.shape) == mask).all(), "holes cut open, piece by piece"
    assert (drawn([joined(loops)], mask.shape) == mask).all(), "and all in one line"


def test_outlines_of_a_ring_are_its_corners() -> None:
    mask = np.ones((5, 6), dtype=bool)
    mask[1:4, 2:4] = False
    ((outer, (hole,)),) = traced(mask)
    assert sorted(map(tuple, outer.tolist())) == [(0, 0), (0, 5), (6, 0), (6, 5)]
    assert sorted(map(tuple, hole.tolist())) == [(2, 1), (2, 4), (4, 1), (4, 4)]


def test_a_simplified_outline_stays_within_its_tolerance() -> None:
    rows, columns = np.mgrid[:80, :80]
    ((outer, _),) = traced((rows - 40) ** 2 + (columns - 40) ** 2 < 900)
    thinner = simplified(outer, 1.0)
    assert len(thinner) < len(outer) / 3
    from_centre = np.hypot(*(thinner - 40).T)
    assert from_centre.min() > 28 and from_centre.max() < 32
    assert (drawn([thinner], (80, 80)).sum() / 2827) == pytest.approx(1, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_brush_strokes_are_the_mask_again(mask: Any) -> None:
    assert (brush_to_mask(list(mask_to_brush(mask)), *mask.shape) == mask).all()


@pytest.mark.parametrize(("side", "rows"), [(256, 64), (256, 256), (200, 150)])
def test_brush_strokes_hold_runs_longer_than_one_word_can_say(side: int, rows: int) -> None:
    """65,536 values, of which a pixel has four: 64 x 256 pixels are just as many."""
    mask = np.zeros((side, side), dtype=bool)
    mask[:rows] = True
    assert (brush_to_mask(list(mask_to_brush(mask)), side, side) == mask).all()


@pytest.mark.parametrize("to", TO_READ)
def test_out_and_in_again_gives_every_mask_and_name(run: Path, photos: Path, tmp_path: Path, to: TargetFormat) -> None:
    done = export(str(run), str(tmp_path / "out"), to=to, images=str(photos))
    assert (done.num_images, done.num_labels) == (3, 6)
    images = {"huggingface": str(tmp_path / "taken"), "labelstudio": str(photos), "cvat": str(photos)}.get(to)
    back = convert(str(tmp_path / "out" / TO_READ[to]), str(tmp_path / "back.json"), images=images)
    assert back.format == ("coco" if to == "fiftyone" else to) and back.notes == []
    before, after = masks_of(run / "labels.json"), masks_of(tmp_path / "back.json")
    if to != "voc":
        assert list(after) == list(before) if to != "yolo" else sorted(after) == sorted(before)
    for stem, rows in before.items():
        assert [name for name, _ in after[stem]] == [name for name, _ in rows]
        for (_, mask), (_, again) in zip(rows, after[stem], strict=True):
            if to == "voc" and mask.area_px > 100:  # smaller ones lie above
                assert not (again.mask_HW & ~mask.mask_HW).any()
            else:
                assert (again.mask_HW == mask.mask_HW).all()
    said = " ".join(done.lines)
    assert "1 abstentions left out" in said and "1 failures left out" in said
    assert ("lose pixels" in said) == (to == "voc")
    assert ("scores" in said) == (to in ("yolo", "voc"))


def test_every_file_is_the_same_when_exported_again(run: Path, photos: Path, tmp_path: Path) -> None:
    for to in TARGET_FORMATS:
        for name in ("one", "two"):
            export(str(run), str(tmp_path / name / to), to=to, images=str(photos))
    files = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*")) if path.is_file()]
    assert len(files) > 20
    assert [
        str(path) for path in files if (tmp_path / "one" / path).read_bytes() != (tmp_path / "two" / path).read_bytes()
    ] == []


def test_yolo_lines_and_names(run: Path, tmp_path: Path) -> None:
    done = export(str(run), str(tmp_path / "boxes"), to="yolo", boxes_only=True)
    assert (tmp_path / "boxes/labels/1.txt").read_text().splitlines()[0] == "0 0.21875 0.22916667 0.3125 0.20833333"
    assert (tmp_path / "boxes/labels/5.txt").read_text() == "", "a picture without labels stays"
    data = yaml.safe_load((tmp_path / "boxes/data.yaml").read_text())
    assert (data["names"], data["category_ids"]) == (dict(enumerate(NAMES)), {0: 7, 1: 3, 2: 1203})
    assert any("masks left out" in line for line in done.lines)
    export(str(run), str(tmp_path / "masks"), to="yolo")
    assert (tmp_path / "masks/labels/1.txt").read_text().splitlines()[0].split()[:5] == [
        "0",
        "0.0625",
        "0.125",
        "0.375",
        "0.125",
    ]


def shown(shape: Any) -> tuple[ShownPicture, ShownLabel]:
    label = ShownLabel(
        annotation_id=1, category=Category(category_id=1, name="cat", index=0, row={}), box_xywh=(4.0, 6.0, 20.0, 10.0),
        segmentation=shape, area_px=None, score=None, is_crowd=False, attributes={},
    )  # fmt: skip
    return ShownPicture(index=0, image_id=1, file_name="a.jpg", width_px=64, height_px=48, row={}), label


def test_a_polygon_that_draws_as_two_pieces_is_simplified_as_no_single_polygon() -> None:
    picture, label = shown([[2, 2, 12, 2, 12, 10, 30, 10, 30, 2, 40, 2, 40, 12, 30, 12, 30, 10, 12, 10, 12, 12, 2, 12]])
    for tolerance_px in (0.0, 1.0):
        shapes = Shapes(Notes(), tolerance_px)
        mask = shapes.mask(picture, label)
        assert mask is not None
        plain = shapes.plain_polygon(label, mask)
        assert (plain is None) == (tolerance_px > 0), "as long as its own points are kept it is one"
        assert len(shapes.polygons(label, mask)) == (2 if tolerance_px else 1)


def test_shares_of_whole_pixels_are_written_as_any_others() -> None:
    loop = np.array([[0, 0], [63, 1], [21, 47], [64, 48], [3, 0]], dtype=float)
    expected = "0 0 0.984375 0.02083333 0.328125 0.97916667 1 1 0.046875 0"
    assert [yolo_polygon(loop, 64, 48) for _ in range(2)] == [expected] * 2
    assert yolo_polygon(loop + 0.5, 640, 480).split()[2:4] == ["0.09921875", "0.003125"]


def test_what_is_made_once_of_a_number_is_kept_for_some_thousands() -> None:
    known: dict[int, str] = {}
    asked: list[int] = []
    for first in range(0, 100_000, 7000):
        numbers = [*range(first, first + 8000)] * 2
        made = made_once(numbers, known, lambda new: asked.extend(new) or map(str, new))  # type: ignore[func-returns-value]
        assert made == [*map(str, numbers)] and len(known) <= 16_384
    assert 107_000 - 1000 <= len(asked) < 115_000, "of those that were asked for twice in a row most are kept"


def test_simplified_polygons_say_what_they_cost(run: Path, tmp_path: Path) -> None:
    done = export(str(run), str(tmp_path / "out"), to="yolo", tolerance_px=2.0)
    loss = next(row for row in done.losses if "measured" in row)
    assert loss["count"] == loss["measured"] == 6 and 0.5 < loss["least_iou"] <= loss["mean_iou"] <= 1  # type: ignore[operator]


def test_label_studio_tasks_have_scores_texts_and_their_interface(run: Path, tmp_path: Path) -> None:
    export(str(run), str(tmp_path / "out"), to="labelstudio", image_prefix="s3://bucket/")
    first, empty, _ = read(tmp_path / "out/tasks.json")
    assert first["data"] == {"image": "s3://bucket/1.jpg"} and empty["predictions"][0]["result"] == []
    polygon, brush, _ = first["predictions"][0]["result"]
    assert (polygon["score"], polygon["meta"]) == (0.9, {"text": ["=cat"]})
    assert polygon["value"]["points"][0] == [6.25, 12.5] and polygon["value"]["polygonlabels"] == ["cat"]
    assert brush["type"] == "brushlabels", "the ring has a hole"
    assert '<PolygonLabels name="polygonlabels" toName="image">' in (tmp_path / "out/labeling-config.xml").read_text()


def test_tables_hold_labels_abstentions_and_failures(run: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    export(str(run), str(tmp_path / "a"), to="parquet")
    rows = pq.read_table(tmp_path / "a/regions.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["labeled"] * 6 + ["abstained", "failed"]
    ring = rows[1]
    assert (ring["category"], ring["score"], ring["area"], ring["x"]) == ("dog", 0.3, 600.0, 10.0)
    assert coco_mask.decode({"size": [48, 64], "counts": ring["rle"].encode()}).sum() == 400
    assert rows[6]["reason"] and rows[7]["reason"] == "1.jpg: cut off"
    done = export(str(run), str(tmp_path / "b"), to="csv")
    with (tmp_path / "b/regions.csv").open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert (table[0]["text"], table[0]["score"]) == ("'=cat", "0.9"), "no formula"
    assert any("formulas" in line for line in done.lines)


def test_results_files_hold_one_geometry_each(run: Path, tmp_path: Path) -> None:
    export(str(run), str(tmp_path / "out"), to="coco-results")
    boxes, masks = read(tmp_path / "out/bbox.json"), read(tmp_path / "out/segm.json")
    assert len(boxes) == len(masks) == 6
    assert set(boxes[0]) == {"image_id", "category_id", "score", "bbox"} and "bbox" not in masks[0]


def odd_coco(path: Path) -> Path:
    """A COCO file with rows before images, crowds, orphans, a wild file name, and no scores."""
    images = [
        image_row(1),
        {**image_row(2), "file_name": "../../up.jpg"},
        {"id": 3, "file_name": "3.jpg"},
        image_row(1),
    ]
    good = {
        "image_id": 1,
        "category_id": 1,
        "bbox": [4, 6, 20, 10],
        "iscrowd": 0,
        "segmentation": box_polygon(4, 6, 20, 10),
        "area": 200,
    }
    rows = [
        {**good, "id": 1}, {**good, "id": 2, "iscrowd": 1}, {**good, "id": 3, "image_id": 9}, {**good, "id": 4, "category_id": 9},
        {**good, "id": 5, "bbox": [1, "x", 1, 1]}, {**good, "id": 6, "image_id": 2}, {**good, "id": 7, "image_id": 3},
        {**good, "id": 8, "segmentation": {"size": [1, 1], "counts": "1"}},
    ]  # fmt: skip
    path.write_text(
        json.dumps({"annotations": [*rows, None], "images": images, "categories": [{"id": 1, "name": "<cat> & \x01"}]})
    )
    return path


@pytest.mark.parametrize("to", TARGET_FORMATS)
def test_odd_rows_are_counted_and_hurt_nobody(tmp_path: Path, to: TargetFormat) -> None:
    done = export(str(odd_coco(tmp_path / "odd.json")), str(tmp_path / "in/out"), to=to)
    said = " ".join(done.lines)
    assert "no category of their id" in said and "no image has their image_id" in said and "no id of their own" in said
    assert not (tmp_path / "up.jpg").exists() and not (tmp_path / "up.txt").exists()
    if to in ("yolo", "lvis", "coco-results"):
        assert "crowds" in said
    if to == "voc":
        convert(str(tmp_path / "in/out"), str(tmp_path / "back.json"))
        assert areas(tmp_path / "back.json")[0] == ("<cat> & ?", 200), "markup and control characters are text"


def test_a_full_folder_a_missing_run_and_no_categories_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    with pytest.raises(UsageError, match="new or empty folder"):
        export(str(run), str(tmp_path / "full"), to="csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no labels\.json"):
        export(str(tmp_path / "empty"), str(tmp_path / "out"), to="csv")
    (tmp_path / "bare.json").write_text('{"images": [{"id": 1}], "annotations": [{"image_id": 1}]}')
    with pytest.raises(InputError, match="expected categories"):
        export(str(tmp_path / "bare.json"), str(tmp_path / "out"), to="csv")


def test_both_commands_end_with_json_and_say_guess_and_losses(run: Path, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(main, ["export", str(run), "--to", "cvat", "--out", str(tmp_path / "out")])
    assert outcome.exit_code == 0, outcome.output
    last = json.loads(outcome.stdout.splitlines()[-1])
    assert (
        last["files"] == ["annotations.xml"]
        and {"what": "failures left out", "count": 1, "examples": []} in last["losses"]
    )
    outcome = CliRunner().invoke(main, ["convert", str(tmp_path / "out"), "--out", str(tmp_path / "back.json")])
    assert outcome.exit_code == 0 and "read as cvat, since its root element is <annotations>" in outcome.stderr
    assert json.loads(outcome.stdout.splitlines()[-1])["num_regions"] == 6
    outcome = CliRunner().invoke(
        main, ["convert", str(tmp_path / "out"), "--from", "yolo", "--out", str(tmp_path / "no.json")]
    )
    assert outcome.exit_code in (1, 2) and "rlabel:" in outcome.stderr and not (tmp_path / "no.json").exists()


def test_the_commands_list_every_layout() -> None:
    assert (CONVERT_FORMATS, EXPORT_FORMATS) == (SOURCE_FORMATS, TARGET_FORMATS)
    assert get_args(RegionsFormat) == ("auto", *SOURCE_FORMATS) and get_args(RegionsBoxes) == get_args(Boxes)


@pytest.mark.parametrize(
    "shape",
    [
        {
            "size": [48, 64],
            "counts": [5, 3, 0, 4, 3060],
        },  # an empty run in the midst, which the RLE of its mask has not
        {"size": [48, 64], "counts": [0, 3072]},
        [[2, 2, 12, 2, 12, 12, 2, 12], [1, 1]],
        {"size": [48, 64], "counts": [3072]},  # without a pixel: the box is taken
        [[900, 900, 905, 900, 905, 905]],
        {"size": [2, 2], "counts": [0, 4]},  # of another size: nothing
        None,
    ],
)
def test_an_rle_without_drawing_is_that_of_the_drawn_mask(shape: Any) -> None:
    shapes = Shapes(Notes(), 0.0)
    picture, label = shown(shape)
    mask = shapes.mask(picture, label)
    assert shapes.rle(picture, label) == (None if mask is None else mask.to_rle())


def test_files_written_side_by_side_are_all_there_or_their_error_is_raised(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    with Files(store) as files:
        for number in range(600):
            files.put(f"{number % 7}/{number}.txt", b"%d" % number)
    assert {path.read_text() for path in (tmp_path / "out").rglob("*.txt")} == {str(number) for number in range(600)}
    (tmp_path / "out/file").write_text("in the way")
    with pytest.raises(StorageError), Files(store) as files:
        files.put("file/below.txt", b"")
