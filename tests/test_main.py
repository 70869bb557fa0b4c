"""The command `rlabel` itself: what it lists, and what it answers to a word that it does not know."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from guards import ROOT
from rlabel.cli.main import main


def test_help_lists_every_command_once():
    commands = main.list_commands(click.Context(main))
    assert len(set(commands)) == len(commands)
    lines = CliRunner().invoke(main, ["--help"]).output.splitlines()
    assert [sum(line.startswith(f"  {name} ") for line in lines) for name in commands] == [1] * len(commands)


def test_every_file_with_a_command_is_listed():
    files = {
        path.stem.replace("_", "-")
        for path in (ROOT / "rlabel" / "cli").glob("*.py")
        if re.search(r"^@click\.(command|group)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert files - {"main"} == set(main.list_commands(click.Context(main)))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("lable", "Did you mean label"),
        ("evaluate_captions", "Did you mean evaluate-captions"),
        ("xyzzy", "`rlabel --help` lists"),
    ],
)
def test_an_unknown_command_is_answered_with_the_next_step(typed: str, said: str):
    result = CliRunner().invoke(main, [typed])
    assert result.exit_code == 2
    assert f"{typed}: there is no such command. {said}" in result.output
