"""The gallery's files: every region with its thumbnail, nothing that runs, the same bytes each time, no more than was asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from label_factories import rlabel_here
from report_factories import HOSTILE, drawn_run
from rlabel.report.drawing import ABSTAINED, RIGHT, WRONG
from rlabel.report.gallery import write_gallery
from rlabel.report.items import choose_doubtful
from rlabel.report.page import write_report
from rlabel.report.sprites import THUMB_PX
from rlabel.run.directory import RunDirectory
from rlabel.storage import Store
from run_factories import manifest


def called(path: Path, function: str) -> Any:
    """Return what a script of the gallery passes to a function of the page."""
    text = path.read_text(encoding="ascii")
    match = re.fullmatch(rf"{function}\((.*)\);\n", text, re.DOTALL)
    assert match is not None, text[:80]
    return json.loads(match[1])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a gallery with the words that they name."""
    columns = (
        "key",
        "file",
        "outcome",
        "category",
        "score",
        "margin",
        "step",
        "text",
        "truth",
        "right",
        "note",
        "thumb",
    )
    rows = []
    for number in range(called(folder / "report" / "gallery.js", "rlabelMeta")["num_chunks"]):
        chunk = called(folder / "report" / f"chunk-{number}.js", "rlabelTake")
        for values in chunk["rows"]:
            row = dict(zip(columns, values, strict=True))
            for name in ("file", "step", "text", "note", "truth"):
                row[name] = None if row[name] < 0 else chunk["words"][row[name]]
            rows.append(row)
    return rows


def make(folder: Path, run: RunDirectory, max_regions: int = 100, *, with_truth: bool = True) -> list[dict[str, Any]]:
    truth = str(folder / "truth.json") if with_truth else None
    write_gallery(run, Store.open(folder / "page"), Store.open(folder / "images"), truth, max_regions)
    return rows_of(folder / "page")


def test_every_region_is_there_once_with_its_outcome_and_truth(tmp_path: Path) -> None:
    rows = {row["key"]: row for row in make(tmp_path, drawn_run(tmp_path))}
    assert sorted(rows) == [str(key) for key in range(10, 18)]
    # of labels.json's categories the first is cat (7) and the second dog (3), and all regions are dogs
    assert [(rows[key]["category"], rows[key]["right"]) for key in ("10", "11")] == [(1, 1), (0, 0)]
    assert (rows["16"]["outcome"], rows["16"]["right"], rows["16"]["truth"]) == (1, -1, "dog")
    assert (rows["17"]["outcome"], rows["17"]["step"], rows["17"]["note"]) == (2, "image", HOSTILE)
    assert rows["10"]["score"] == pytest.approx(1 / 7, abs=1e-4) and rows["10"]["text"] == HOSTILE


def test_without_a_truth_nothing_is_judged(tmp_path: Path) -> None:
    rows = make(tmp_path, drawn_run(tmp_path), with_truth=False)
    assert {row["right"] for row in rows} == {-1} and {row["truth"] for row in rows} == {None}


def test_thumbnails_lie_where_their_numbers_say_in_the_colour_of_their_outcome(tmp_path: Path) -> None:
    rows = make(tmp_path, drawn_run(tmp_path, num_labels=30))
    assert [row["thumb"] for row in rows] == list(range(32))  # 25 on the first sheet
    for row in rows:
        sheet, cell = divmod(row["thumb"], 25)
        top, left = (THUMB_PX * part for part in divmod(cell, 5))
        with Image.open(tmp_path / "page" / "report" / f"sheet-{sheet}.jpg") as picture:
            pixels_HWC = np.asarray(picture)[top : top + THUMB_PX, left : left + THUMB_PX].astype(int)
        color = ABSTAINED if row["outcome"] == 1 else {1: RIGHT, 0: WRONG}.get(row["right"])
        if color is not None:
            distance_HW = np.abs(pixels_HWC - np.array(color)).max(axis=-1)
            assert (distance_HW < 40).sum() > 100, row


def test_no_text_can_end_a_script_or_a_line(tmp_path: Path) -> None:
    make(tmp_path, drawn_run(tmp_path))
    for path in (tmp_path / "page" / "report").glob("*.js"):
        text = path.read_text(encoding="ascii")
        assert "<" not in text and text.count("\n") == 1


def test_of_too_many_regions_the_most_doubtful_stay_and_old_files_go(tmp_path: Path) -> None:
    run = drawn_run(tmp_path, num_labels=30)
    make(tmp_path, run)
    assert (tmp_path / "page" / "report" / "sheet-1.jpg").exists()
    rows = make(tmp_path, run, 3)
    # the abstention (40), and the labels of the lowest scores
    assert sorted(row["key"] for row in rows) == ["10", "11", "40"]
    assert sorted(path.name for path in (tmp_path / "page" / "report").iterdir()) == [
        "chunk-0.js",
        "gallery.js",
        "sheet-0.jpg",
    ]


def test_of_many_regions_the_most_doubtful_have_a_thumbnail_and_the_page_says_so(tmp_path: Path) -> None:
    run = drawn_run(tmp_path, num_labels=30)
    for max_thumbs, drawn, named in (
        (3, {"10", "11", "40"}, "the 3 most doubtful have a thumbnail"),
        (0, set(), "without thumbnails"),
        (None, {str(key) for key in range(10, 42)}, "All 32 regions. "),
        (32, {str(key) for key in range(10, 42)}, "All 32 regions. "),
    ):
        write_report(
            str(tmp_path / "run"), str(tmp_path / "images"), out_url=str(tmp_path / "page"), max_thumbs=max_thumbs
        )
        rows = rows_of(tmp_path / "page")
        assert len(rows) == 32 and {row["key"] for row in rows if row["thumb"] >= 0} == drawn
        assert named in (tmp_path / "page" / "report.html").read_text()
    choice = choose_doubtful(run, 3, 1)
    assert choice.shown is not None and len(choice.shown) == 3
    assert choice.drawn is not None and choice.drawn < choice.shown


def test_the_same_run_gives_the_same_files(tmp_path: Path) -> None:
    run = drawn_run(tmp_path, num_labels=30)
    seen = []
    for _ in range(2):
        make(tmp_path, run)
        seen.append({path.name: path.read_bytes() for path in (tmp_path / "page" / "report").iterdir()})
    assert seen[0] == seen[1] and len(seen[0]) == 4


def test_a_region_without_picture_or_outline_is_there_without_a_thumbnail(tmp_path: Path) -> None:
    run = drawn_run(tmp_path)
    (tmp_path / "images" / "1.jpg").write_bytes(b"no picture")
    rows = make(tmp_path, run)
    assert len(rows) == 8 and {row["file"] for row in rows if row["thumb"] < 0} == {"1.jpg"}
    write_gallery(run, Store.open(tmp_path / "words"), None, None)
    assert {row["thumb"] for row in rows_of(tmp_path / "words")} == {-1}


def test_the_policy_names_every_script_and_style_of_the_page(tmp_path: Path) -> None:
    drawn_run(tmp_path)
    write_report(str(tmp_path / "run"), str(tmp_path / "images"), str(tmp_path / "truth.json"))
    page = (tmp_path / "run" / "report.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    allowed = policy[1].replace("&#39;", "'")
    assert "default-src 'none'" in allowed and "unsafe" not in allowed and "http" not in allowed
    assert page.count("<script>") == 2 and page.count("<style>") == 1 and allowed.count("'sha256-") == 3
    assert " style=" not in page and HOSTILE not in page


def test_the_command_writes_page_and_sheet_where_it_is_told(tmp_path: Path) -> None:
    drawn_run(tmp_path)
    run, images, out, sheet = (str(tmp_path / name) for name in ("run", "images", "page", "s.png"))
    done = rlabel_here(
        "report", [run, "--images", images, "--out", out, "--sheet", sheet, "--max-regions", "5", "--thumbnails", "2"]
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["page"] == f"{out}/report.html"
    rows = rows_of(tmp_path / "page")
    assert (
        len(rows) == 5
        and len([row for row in rows if row["thumb"] >= 0]) == 2
        and not (tmp_path / "run" / "report.html").exists()
    )
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sheet", "s.png"], "--images"),
        (["--max-regions", "0"], "--max-regions"),
        (["--thumbnails", "-1"], "expected a whole number, all or none"),
        (["--truth", "none.json"], "none.json"),
    ],
)
def test_a_wrong_call_is_told_what_to_do(tmp_path: Path, arguments: list[str], named: str) -> None:
    drawn_run(tmp_path)
    done = rlabel_here("report", [str(tmp_path / "run"), *arguments])
    assert done.returncode in (1, 2) and named in done.stderr
    assert rlabel_here("report", [str(tmp_path / "images")]).returncode == 2
    RunDirectory.create_or_resume(Store.open(tmp_path / "said"), manifest(settings={"task": "caption"}))
    done = rlabel_here("report", [str(tmp_path / "said")])
    assert done.returncode == 2 and "caption" in done.stderr
