"""A bar on a terminal, lines elsewhere: the same numbers, and neither where the other belongs."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from rlabel.cli.live import counted_live, shown_live
from rlabel.run.progress import RunProgress
from run_factories import begin_run, shard_result


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal to redirect stderr to; pytest itself would take it back before the test begins."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "140")):
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def label_two(folder: Path, stderr: io.StringIO) -> RunProgress:
    """Commit two of two shards, telling after each."""
    run = begin_run(folder, 2)
    progress = RunProgress(run, heartbeat_s=0.0)
    with redirect_stderr(stderr), shown_live(progress):
        for index in range(2):
            run.commit(shard_result(index))
            progress.beat(", a note")
            print("somebody else's line", file=sys.stderr)
    return progress


def test_on_a_terminal_a_bar_moves_and_other_lines_stay_readable(tmp_path: Path, terminal: Terminal) -> None:
    progress = label_two(tmp_path, terminal)
    shown = terminal.getvalue()
    assert "\x1b[" in shown and "16/12 regions" in shown and "abstained" in shown  # 8 a shard; the made-up plan says 12
    assert shown.count("somebody else's line") == 2 and "rlabel: 8/12" not in shown
    before = len(shown)
    with redirect_stderr(terminal):
        progress.beat()
    assert "rlabel: 16/12 regions" in terminal.getvalue()[before:]  # afterwards lines again


@pytest.mark.parametrize("kind", ["file", "dumb terminal"])
def test_elsewhere_there_are_heartbeat_lines_and_no_bar(
    tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out = io.StringIO() if kind == "file" else terminal
    if kind == "dumb terminal":
        monkeypatch.setenv("TERM", "dumb")
    label_two(tmp_path, out)
    assert "\x1b[" not in out.getvalue() and "rlabel: 8/12 regions" in out.getvalue()


def test_a_run_that_fails_leaves_no_bar_behind(tmp_path: Path, terminal: Terminal) -> None:
    progress = RunProgress(begin_run(tmp_path, 2), heartbeat_s=5.0)
    tell = progress.tell
    with pytest.raises(ValueError, match="stop"), redirect_stderr(terminal), shown_live(progress):
        raise ValueError("stop")
    assert progress.tell is tell and progress.heartbeat_s == 5.0
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


def test_what_is_counted_without_a_run_has_a_bar_too(terminal: Terminal) -> None:
    with redirect_stderr(terminal), counted_live("regions drawn") as beat:
        beat(5, 10)
    assert "5/10 regions drawn" in terminal.getvalue()
