"""The lines that `rlabel train` tells of workers: each once, whole, and a lost worker by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlabel.cli import train as cli
from rlabel.storage import Store


def line(step: int) -> str:
    return json.dumps(
        {
            "stage": "align",
            "step": step,
            "num_steps": 9,
            "loss": 1.0,
            "train_accuracy": 0.5,
            "regions_per_s": 3.0,
            "val_accuracy": None,
        }
    )


def test_lines_of_workers_are_told_once_whole_and_a_lost_worker_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "progress.jsonl"
    log.write_text(f"{line(1)}\n")
    followed = cli._followed(Store.open(tmp_path))
    followed._lines()  # those of an earlier start
    log.write_text(f'{line(1)}\n{line(2)}\n{line(3)}\n{{"stage": "ali')
    followed._print()
    # The process died in the middle of that line; the next one goes on behind it.
    log.write_text(f'{line(1)}\n{line(2)}\n{line(3)}\n{{"stage": "ali{line(3)}\n{line(3)}\n{line(4)}\n')
    followed._print()
    followed._print()
    told = [one.split("  ")[0] for one in capsys.readouterr().err.splitlines()]
    assert told == [
        "rlabel: align 2/9",
        "rlabel: align 3/9",
        "rlabel: a worker was lost; training goes on from the last checkpoint",
        "rlabel: align 3/9",
        "rlabel: align 4/9",
    ]


def test_no_log_yet_is_no_error(tmp_path: Path) -> None:
    assert cli._followed(Store.open(tmp_path / "not-there"))._lines() == []
