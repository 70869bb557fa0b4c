"""Helpers of test_guards: what a module imports, which files the repository has, which commands a README shows."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
_FENCED = re.compile(r"^```([a-z]*)[ ]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4}|\t).*\n?)+", re.MULTILINE)
_SHELLS = {"", "bash", "sh", "shell", "console", "text"}
# Programs, and words of Python, that take "rlabel" as the name of a package or a folder.
_NAME_A_PACKAGE = {"pip", "python", "python3", "git", "cd", "ls", "from", "import"}
_ENDS_A_COMMAND = re.compile(r"^(?:\|\|?|&&?|;|\d?>>?|2>&1|<)$")


def modules_of(*packages: str) -> list[Path]:
    """Return the module files of top-level packages, relative to the root, sorted."""
    return sorted(path.relative_to(ROOT) for package in packages for path in (ROOT / package).rglob("*.py"))


def imported_names(module: Path, source: str) -> set[str]:
    """Return the dotted names that a module's source imports, wherever in it, relative ones made absolute.

    `from a import b` gives `a.b`: whether b is a module or a value in one, the room it lies in is the same.
    """
    package = module.parent.parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def repository_files() -> list[Path] | None:
    """Return the tracked files and those that could be added, relative to the root; None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        return None
    paths = {Path(name) for name in listed.stdout.decode("utf-8").split("\0") if name}
    return sorted(path for path in paths if (ROOT / path).is_file())


def shell_commands(markdown: str) -> Iterator[list[str]]:
    """Give the words of every command in the shell blocks: without prompt, comment, variables, pipes and redirections.

    Fenced blocks of a shell or of no language count, and indented ones; continued lines are joined; each side of `&&`,
    `|` and `;` is a command of its own.
    """
    blocks = [block for language, block in _FENCED.findall(markdown) if language in _SHELLS]
    blocks += _INDENTED.findall(_FENCED.sub("", markdown))
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^\s*\$\s+", "", line)
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            try:
                words = list(lexer)
            except ValueError:  # an apostrophe in a line of output: no command
                continue
            command: list[str] = []
            in_target = False
            for word in [*words, ";"]:
                if _ENDS_A_COMMAND.match(word):
                    in_target = ">" in word or word == "<"
                    if not in_target:
                        if command:
                            yield command
                        command = []
                elif in_target:
                    in_target = False
                elif command or not re.match(r"^[A-Z_]+=", word):
                    command.append(word)


def inline_commands(markdown: str) -> Iterator[list[str]]:
    """Give the words of every command that runs rlabel within a sentence or a table, between single backticks."""
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", _FENCED.sub("", markdown)):
        if re.match(r"(?:rlabel|ray|python) ", f"{span} "):
            yield shlex.split(span)


def rlabel_arguments(command: list[str]) -> list[str] | None:
    """Return what a command passes to `rlabel`, or to a job by `python -m jobs.NAME`; None if it runs neither.

    Something may stand before it: `time rlabel ...`, or the file name of a table's left column.
    """
    for place, word in enumerate(command):
        if Path(word).name == "rlabel":
            return None if Path(command[0]).name in _NAME_A_PACKAGE else command[place + 1 :]
        if word == "-m" and command[place + 1 : place + 2] and command[place + 1].startswith("jobs."):
            return [command[place + 1], *command[place + 2 :]]
    return None


def click_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the click command that words of a README call, and its arguments."""
    from rlabel.cli.main import main

    if words[0].startswith("jobs."):
        module = importlib.import_module(words[0])
        commands = {item for item in vars(module).values() if isinstance(item, click.Command)}
        assert len(commands) == 1, f"{words[0]}: expected one click command in it, got {len(commands)}"
        return commands.pop(), words[1:]
    if words and not words[0].startswith("-"):
        command = main.get_command(click.Context(main), words[0])
        assert command is not None, f"rlabel has no command {words[0]!r}"
        return command, words[1:]
    return main, words


def wrong_call(words: list[str]) -> str | None:
    """Return why click would refuse `rlabel WORDS`, or None. A synopsis, with [--option] or ..., is asked for its options alone."""
    if not words:
        return None
    command, arguments = click_command(words)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= set(command.get_help_option_names(click.Context(command)))
    unknown = [
        word for word in re.findall(r"(?:^|(?<=[\s\[|]))--[a-z][a-z0-9-]*", " ".join(arguments)) if word not in known
    ]
    if unknown:
        return f"no such option: {unknown[0]}"
    if any(word.startswith(("[", "...", "…")) or word.endswith("...") for word in arguments) or "--help" in arguments:
        return None
    try:
        command.make_context(words[0], list(arguments), resilient_parsing=False)
    except click.BadParameter as error:
        return None if isinstance(error.param and error.param.type, click.Path | click.File) else error.format_message()
    except click.exceptions.Exit:
        return None
    except click.UsageError as error:
        return error.format_message()
    return None
