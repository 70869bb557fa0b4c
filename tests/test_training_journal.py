"""What a training leaves for people to look at: the curves, and TensorBoard's event files."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from rlabel.training.journal import Journal, draw_curves, read_progress
from rlabel.training.progress import Progress, append_progress

LINE = Progress(stage="align", step=20, num_steps=60, loss=1.5, train_accuracy=0.5, regions_per_s=33.0)


def test_curves_are_drawn_at_each_validation_and_at_the_end_of_a_stage(tmp_path: Path) -> None:
    journal, picture = Journal(tmp_path / "progress.jsonl"), tmp_path / "curves.png"
    journal.add(replace(LINE, note="encodes pictures"))
    journal.add(LINE)
    assert not picture.exists()
    journal.add(replace(LINE, step=40, val_accuracy=0.25))
    first = picture.read_bytes()
    journal.add(replace(LINE, step=50))
    assert picture.read_bytes() == first
    journal.add(replace(LINE, step=60))
    assert picture.read_bytes() != first
    with Image.open(picture) as one:
        one.load()
        assert (one.format, one.size) == ("PNG", (500, 600))
    journal.add(replace(LINE, stage="instruct", step=5, val_accuracy=0.5, kept_step=3, best_accuracy=0.75))  # early
    with Image.open(picture) as two:
        assert two.size == (1000, 600)  # a column of panels a stage
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "progress.jsonl"]


def test_curves_show_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged by matplotlib's own record of what it drew."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1])
    log = tmp_path / "progress.jsonl"
    for step, loss, val in ((20, 3.0, None), (40, 2.0, 0.25), (60, 1.0, 0.5)):
        append_progress(log, replace(LINE, step=step, loss=loss, val_accuracy=val))
    draw_curves(log, tmp_path / "curves.png")
    above, below = drawn[0].axes
    assert above.get_title() == "align"
    assert above.lines[0].get_xydata().tolist() == [[20, 3.0], [40, 2.0], [60, 1.0]]  # type: ignore[union-attr]
    assert below.lines[0].get_xydata().tolist() == [[20, 50.0], [40, 50.0], [60, 50.0]]  # type: ignore[union-attr]
    assert below.lines[1].get_xydata().tolist() == [[40, 25.0], [60, 50.0]]  # type: ignore[union-attr]


def test_of_steps_that_were_done_again_the_later_line_counts_and_half_a_line_none(tmp_path: Path) -> None:
    log = tmp_path / "progress.jsonl"
    for step, loss in ((20, 3.0), (40, 2.0)):
        append_progress(log, replace(LINE, step=step, loss=loss))
    with log.open("a") as stream:
        stream.write('{"stage": "ali')
    append_progress(log, LINE)  # behind the half line, so lost with it
    for step, loss in ((40, 1.75), (60, 1.0)):
        append_progress(log, replace(LINE, step=step, loss=loss))
    assert {name: [(line.step, line.loss) for line in lines] for name, lines in read_progress(log).items()} == {
        "align": [(20, 3.0), (40, 1.75), (60, 1.0)]
    }


def test_log_without_a_line_is_not_drawn(tmp_path: Path) -> None:
    log = tmp_path / "progress.jsonl"
    append_progress(log, replace(LINE, note="encodes pictures"))
    draw_curves(log, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_event_files_hold_every_number_of_every_line(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    journal = Journal(tmp_path / "progress.jsonl", tensorboard=True)
    journal.add(LINE)
    journal.add(replace(LINE, step=60, loss=0.5, val_accuracy=0.25))
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, place, told = file.read_bytes(), 0, []
    while place < len(content):  # TFRecord: length, its checksum, the message, its checksum
        (length,) = struct.unpack("<Q", content[place : place + 8])
        event = Event.FromString(content[place + 12 : place + 12 + length])
        told += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        place += 12 + length + 4
    assert sorted(told) == [
        ("loss/align", 20, 1.5),
        ("loss/align", 60, 0.5),
        ("regions_per_s/align", 20, 33.0),
        ("regions_per_s/align", 60, 33.0),
        ("train_accuracy/align", 20, 0.5),
        ("train_accuracy/align", 60, 0.5),
        ("val_accuracy/align", 60, 0.25),
    ]
    assert [json.loads(line)["step"] for line in (tmp_path / "progress.jsonl").read_text().splitlines()] == [20, 60]
