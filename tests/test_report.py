"""The contact sheet and the page: legible, escaped, offline, the same every time."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fsspec
import numpy as np
import pytest
from PIL import Image

from rlabel.errors import InputError
from rlabel.evaluation.auditing import audit_run
from rlabel.evaluation.evaluate import evaluate_run
from rlabel.report import drawing
from rlabel.report.drawing import ABSTAINED, FAILED, RIGHT, WRONG, Color, draw_regions
from rlabel.report.page import write_report
from rlabel.report.reading import DrawnRegion, read_drawn_images
from rlabel.report.sheet import TILE_WIDTH_PX, draw_pictures, make_sheet
from rlabel.report.worst import draw_cases, surest_wrong

CATEGORIES = [{"id": 5, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog", "supercategory": "animal"}]
HOSTILE = "<script>alert(1)</script>"
BOXES = {11: [10, 10, 60, 60], 12: [100, 10, 60, 60], 13: [10, 100, 60, 60], 14: [100, 100, 60, 60]}


def square(region_id: int) -> list[list[int]]:
    x, y, w, h = BOXES[region_id]
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def label(region_id: int, category_id: int) -> dict[str, Any]:
    return {
        "id": region_id,
        "image_id": 1,
        "category_id": category_id,
        "bbox": BOXES[region_id],
        "area": 3600,
        "iscrowd": 0,
        "segmentation": square(region_id),
        "score": 0.5,
        "attributes": {"region_id": region_id, "text": HOSTILE, "decided_by": "exact"},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on one black picture: 11 right, 12 wrong, 13 abstained, 14 failed, with a hostile answer and reason."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (180, 180)).save(tmp_path / "images" / "a.png")
    folder = tmp_path / "run"
    folder.mkdir()
    labels = {
        "info": {"rlabel": {"version": "1.2.3", "settings": {"model": HOSTILE}}},
        "categories": CATEGORIES,
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [label(11, 5), label(12, 5)],
    }
    (folder / "labels.json").write_text(json.dumps(labels))
    abstained = {"region_id": 13, "image_id": 1, "text": HOSTILE, "nearest_name": HOSTILE, "bbox": BOXES[13]}
    failed = {"region_id": 14, "image_id": 1, "kind": "model", "reason": f"{HOSTILE}.jpg: cut off"}
    (folder / "abstained.jsonl").write_text(json.dumps(abstained) + "\n")
    (folder / "failures.jsonl").write_text(json.dumps(failed) + "\n")
    write_truth(tmp_path, "dog")
    return folder


def write_truth(folder: Path, dog: str) -> None:
    annotations = [
        {"id": i, "image_id": 1, "category_id": 5 if i == 11 else 7, "bbox": BOXES[i], "area": 3600, "iscrowd": 0}
        | {"segmentation": square(i)}
        for i in BOXES
    ]
    categories = [CATEGORIES[0], CATEGORIES[1] | {"name": dog}]
    content = {"images": [{"id": 1}], "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))


def count_color(pixels_HWC: np.ndarray, color: Color) -> int:
    return int((pixels_HWC == np.array(color)).all(axis=-1).sum())


def drawn(**more: Any) -> DrawnRegion:
    fields: dict[str, Any] = {"outcome": "label", "words": "cat", "score": 0.5, "true_name": None, "is_correct": None}
    return DrawnRegion(**{**fields, "segmentation": None, "box_xywh": [50, 90, 20, 20], **more})


class Tags(HTMLParser):
    """Collects what a browser would see: tag names, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_outcomes_are_told_apart_by_colour_on_the_sheet(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    assert make_sheet(str(run), str(tmp_path / "images"), out, str(tmp_path / "truth.json")) == 1
    with Image.open(out) as sheet:
        assert sheet.width > TILE_WIDTH_PX
        pixels_HWC = np.asarray(sheet.convert("RGB"))[60:]  # below the legend
    for color in (RIGHT, WRONG, ABSTAINED, FAILED):
        assert count_color(pixels_HWC, color) > 300, color


def test_without_a_truth_nothing_is_called_right_or_wrong(run: Path, tmp_path: Path) -> None:
    make_sheet(str(run), str(tmp_path / "images"), tmp_path / "sheet.png")
    pixels_HWC = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert count_color(pixels_HWC, RIGHT) == count_color(pixels_HWC, WRONG) == 0
    assert count_color(pixels_HWC, ABSTAINED) > 300  # its box is in abstained.jsonl


def test_an_outline_follows_the_mask_and_not_its_box() -> None:
    triangle = drawn(segmentation=[[0, 0, 200, 0, 0, 200]], is_correct=True, words="t")
    picture = np.asarray(draw_regions(np.zeros((400, 400, 3), np.uint8), [triangle], 400, 400))
    assert count_color(picture[95:106, 95:106], RIGHT) > 10  # the middle of the slanted side
    assert count_color(picture[190:200, 190:200], RIGHT) == 0  # the box's far corner


def test_a_region_of_one_pixel_is_still_drawn_in_a_large_picture() -> None:
    dot = drawn(segmentation=None, box_xywh=[1000, 1000, 1, 1], is_correct=False)
    picture = np.asarray(draw_regions(np.zeros((4000, 4000, 3), np.uint8), [dot], 400, 400))
    assert count_color(picture, WRONG) > 0


def test_tags_stay_inside_the_picture_and_do_not_cover_each_other() -> None:
    # four boxes at the corners and one in the middle: each tag has a free place, so all of its width shows
    boxes = [[0, 0, 40, 20], [360, 0, 40, 20], [0, 380, 40, 20], [360, 380, 40, 20], [180, 190, 40, 20]]
    blank = np.zeros((400, 400, 3), np.uint8)

    def tag_px(box_list: list[list[int]]) -> int:
        regions = [drawn(words="hippopotamus", is_correct=True, box_xywh=box) for box in box_list]
        return count_color(np.asarray(draw_regions(blank, regions, 400, 400)), RIGHT)

    assert tag_px(boxes) == sum(tag_px([box]) for box in boxes)


@pytest.mark.parametrize(
    "segmentation", [[[1, 2]], {"size": [1, 1], "counts": [7]}, "nonsense", {"size": [180, 180], "counts": "\x00"}, 3]
)
def test_a_region_that_cannot_be_drawn_does_not_stop_the_others(segmentation: Any) -> None:
    regions = [drawn(segmentation=segmentation, box_xywh=["a", None, 1, 2]), drawn(is_correct=True)]
    picture = draw_regions(np.zeros((180, 180, 3), np.uint8), regions, 180, 180)
    assert count_color(np.asarray(picture), RIGHT) > 100


def test_a_crowded_picture_has_tags_for_its_largest_regions_only(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.loads((run / "labels.json").read_text())
    boxes = [[x * 8, y * 8, 3 + (x + y) % 5, 4] for y in range(20) for x in range(20)]
    rows["annotations"] = [label(11, 5) | {"segmentation": None, "bbox": box} for box in boxes]
    (run / "labels.json").write_text(json.dumps(rows))
    (image,) = read_drawn_images(str(run), 1)
    tagged = []
    monkeypatch.setattr(drawing, "tag_lines", lambda region: tagged.append(region.box_xywh[2]) or ["cat"])
    draw_regions(np.zeros((180, 180, 3), dtype=np.uint8), image.regions, 480, 640)
    assert len(tagged) == 100 and min(tagged) >= 6  # of widths 3 to 7, 80 regions each
    (picture,) = draw_pictures(str(run), str(tmp_path / "images"), None, 1)
    assert picture.description.endswith("; and 362 more") and picture.description.count(";") == 40


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_pictures_of_any_shape_are_drawn(size: tuple[int, int]) -> None:
    picture = draw_regions(np.zeros((*size, 3), np.uint8), [drawn(box_xywh=[0, 0, 1, 1])], 480, 640)
    assert picture.width <= 480 and picture.height <= 640


def test_the_page_escapes_what_the_model_and_the_files_say(run: Path, tmp_path: Path) -> None:
    write_truth(tmp_path, HOSTILE)
    hostile_name = f"{HOSTILE.replace('/', '')}.png"
    Image.new("RGB", (180, 180)).save(tmp_path / "images" / hostile_name)
    labels = json.loads((run / "labels.json").read_text())
    labels["images"][0]["file_name"] = hostile_name
    labels["categories"] = [CATEGORIES[0], CATEGORIES[1] | {"name": HOSTILE, "supercategory": HOSTILE}]
    (run / "labels.json").write_text(json.dumps(labels))
    write_report(str(run), str(tmp_path / "images"), str(tmp_path / "truth.json"))
    page = (run / "report.html").read_text(encoding="utf-8")
    tags = parse(page)
    assert tags.names.count("script") == 1  # the page's own
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert tags.text.count(HOSTILE) >= 4  # shown as it is: the answer, the nearest name, the true name, the reason
    assert hostile_name in tags.text


def test_the_page_shows_both_curves_for_light_and_dark_paper_with_their_numbers(run: Path, tmp_path: Path) -> None:
    write_report(str(run), str(tmp_path / "images"), str(tmp_path / "truth.json"))
    tags = parse((run / "report.html").read_text(encoding="utf-8"))
    light = [value for name, value in tags.attributes if name == "src" and "svg" in value]
    # each curve in two colours, of which the style shows one; both say the same to those who listen
    assert len(set(light)) == 4
    for chart in light:
        drawing = base64.b64decode(chart.partition(",")[2]).decode()
        assert ElementTree.fromstring(drawing).tag.endswith("svg")
        assert "<dc:date>" not in drawing and "http" not in re.sub(
            r'xmlns\S*="[^"]*"|rdf:\S*="[^"]*"|<!DOCTYPE[^>]*>', "", drawing
        )
    # both labels have a score of 0.5, and one of the two is right
    alts = [value for name, value in tags.attributes if name == "alt"]
    assert any("Reliability diagram" in alt and "error 0.000" in alt for alt in alts)
    assert any("Risk-coverage curve" in alt and "50.0 % wrong" in alt for alt in alts)
    assert "0.47 to 0.53" in tags.text and "Risk and coverage" in tags.text


def test_a_contradicted_label_is_shown_alone_with_its_outline(run: Path, tmp_path: Path) -> None:
    truth, images = str(tmp_path / "truth.json"), str(tmp_path / "images")
    cases = draw_cases(surest_wrong(audit_run(str(run), truth)), str(run), truth, images)
    assert [(case.suspect.region_id, case.suspect.human_name) for case in cases] == [("12", "dog")]
    assert cases[0].picture is not None
    picture = np.asarray(cases[0].picture.image)
    assert picture.shape[0] == picture.shape[1] == 300
    # the window, a square of 102 pixels around the box of 60 at (100, 10), is moved down into the picture: (79, 0) to (180, 102)
    rows, columns = np.nonzero((picture == np.array(WRONG)).all(axis=-1))
    assert rows.min() == pytest.approx(10 * 300 / 102, abs=4) and columns.min() == pytest.approx(22 * 300 / 102, abs=4)
    assert rows.max() == pytest.approx(70 * 300 / 102, abs=4) and columns.max() == pytest.approx(82 * 300 / 102, abs=4)


@pytest.mark.parametrize(
    "box", [None, "x", [1, 2], [float("nan"), 0, 1, 1], [1e300, 0, 1, 1], [500, 500, 9, 9], [0, 0, 0, 0]]
)
def test_a_case_with_a_box_that_is_none_shows_the_whole_picture(run: Path, tmp_path: Path, box: Any) -> None:
    content = json.loads((tmp_path / "truth.json").read_text())
    content["annotations"][1]["bbox"] = box
    (tmp_path / "truth.json").write_text(json.dumps(content))
    truth = str(tmp_path / "truth.json")
    suspects = surest_wrong(audit_run(str(run), truth))
    case = draw_cases(suspects, str(run), truth, str(tmp_path / "images"))[0]
    assert case.picture is not None and count_color(np.asarray(case.picture.image), WRONG) > 100


def test_cases_without_pictures_are_told_in_words(run: Path, tmp_path: Path) -> None:
    truth = str(tmp_path / "truth.json")
    suspects = surest_wrong(audit_run(str(run), truth))
    assert draw_cases(suspects, str(run), truth, None)[0].no_picture_because == "no image folder was given"
    (tmp_path / "images" / "a.png").unlink()
    assert "no such file" in draw_cases(suspects, str(run), truth, str(tmp_path / "images"))[0].no_picture_because
    write_report(str(run), None, truth)
    text = parse((run / "report.html").read_text(encoding="utf-8")).text
    assert "Sure, and against the truth" in text and "region 12 of image 1; no picture: no image folder" in text


def test_categories_and_scores_of_an_evaluation_by_hand(run: Path, tmp_path: Path) -> None:
    evaluation = evaluate_run(str(run), str(tmp_path / "truth.json"))
    rows = {
        row.name: (row.num_regions, row.num_correct, row.num_said, row.precision) for row in evaluation.per_category
    }
    assert rows == {"cat": (1, 1, 2, 0.5), "dog": (3, 0, 0, None)}
    assert evaluation.scores is not None
    assert [(point.num_labels, point.coverage, point.risk) for point in evaluation.scores.curve] == [
        (1, 0.5, 0.5),
        (2, 1.0, 0.5),
    ]
    plain: Any = evaluation.to_json()
    assert plain["scores"]["ece"] == pytest.approx(0.0) and len(plain["per_category"]) == 2
    (run / "labels.json").write_text(json.dumps({"categories": CATEGORIES, "images": [{"id": 1}], "annotations": []}))
    assert evaluate_run(str(run), str(tmp_path / "truth.json")).scores is None


def test_the_page_is_one_file_that_needs_no_network(run: Path, tmp_path: Path) -> None:
    written = write_report(str(run), str(tmp_path / "images"), str(tmp_path / "truth.json"))
    assert [Path(path).name for path in written] == ["report.html", "sheet.png"]
    page = (run / "report.html").read_text(encoding="utf-8")
    tags = parse(page)
    sources = [value for name, value in tags.attributes if name in ("src", "href", "srcset", "action")]
    assert sources and all(
        value.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,")) for value in sources
    )
    assert "link" not in tags.names and not re.search(r"url\(|@import", page)
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_the_numbers(run: Path, tmp_path: Path) -> None:
    write_report(str(run), str(tmp_path / "images"), str(tmp_path / "truth.json"))
    text = parse((run / "report.html").read_text(encoding="utf-8")).text
    assert "25.0 %" in text  # one of four regions is right
    assert "1 right, 1 wrong, 1 abstained, 1 failed" in text
    assert "cut off" in text and "1.2.3" in text


def test_without_truth_and_pictures_there_is_still_a_page(run: Path) -> None:
    written = write_report(str(run))
    assert [Path(path).name for path in written] == ["report.html"]
    text = parse((run / "report.html").read_text(encoding="utf-8")).text
    assert "Nothing here is compared with a truth" in text and "no image folder was given" in text


def test_pictures_that_cannot_be_opened_do_not_stop_the_page(run: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "a.png").write_bytes(b"not a picture")
    write_report(str(run), str(tmp_path / "images"))
    assert "a.png" in parse((run / "report.html").read_text(encoding="utf-8")).text
    with pytest.raises(InputError, match="none of 1 pictures"):
        make_sheet(str(run), str(tmp_path / "images"), tmp_path / "sheet.png")


def test_a_file_name_that_leaves_the_image_folder_is_not_opened(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    labels = json.loads((run / "labels.json").read_text())
    labels["images"][0]["file_name"] = "../secret.png"
    (run / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(InputError, match="secret.png"):
        make_sheet(str(run), str(tmp_path / "images"), tmp_path / "sheet.png")


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        paths = write_report(str(run), str(tmp_path / "images"), str(tmp_path / "truth.json"))
        seen.append([Path(path).read_bytes() for path in paths])
    assert seen[0] == seen[1]


def test_a_run_at_another_url_is_reported_there(run: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    try:
        for path in run.iterdir():
            memory.pipe_file(f"/report-test/{path.name}", path.read_bytes())
        write_report("memory://report-test", str(tmp_path / "images"))
        assert memory.cat_file("/report-test/report.html").startswith(b"<!doctype html>")
        assert Image.open(io.BytesIO(memory.cat_file("/report-test/sheet.png"))).format == "PNG"
    finally:
        memory.rm("/report-test", recursive=True)


def test_the_pictures_are_always_the_same_ones_and_have_regions(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(100)]
    labels = [label(11, 5) | {"image_id": i} for i in range(0, 100, 2)]
    content = {"categories": CATEGORIES, "images": images, "annotations": labels}
    backwards = content | {"images": images[::-1], "annotations": labels[::-1]}
    chosen = []
    for name, value in (("a", content), ("b", backwards)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels.json").write_text(json.dumps(value))
        chosen.append([image.file_name for image in read_drawn_images(str(tmp_path / name), 12)])
    assert chosen[0] == chosen[1]
    assert 0 < len(chosen[0]) <= 12
    assert all(int(name.removesuffix(".png")) % 2 == 0 for name in chosen[0])
