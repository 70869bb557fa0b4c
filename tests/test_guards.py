"""The promises about the repository itself: directions of imports, light import, files, commands in the documents."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from guards import (
    ROOT,
    imported_names,
    inline_commands,
    modules_of,
    repository_files,
    rlabel_arguments,
    shell_commands,
    wrong_call,
)

# Rooms from the bottom up; a room imports from lower lines and from itself, never from its own line's other rooms.
LEVELS = (
    ("records", "errors", "memory", "spans"),
    ("schema_files", "yaml_files"),
    ("settings_files",),
    ("pool_settings",),
    ("config", "storage"),
    ("corpus", "vocabulary", "prompts"),
    ("regiongpt",),
    ("labeling",),
    ("training", "vlm"),
    ("proposing",),
    ("run",),
    ("api",),
    ("formats",),
    ("evaluation",),
    ("report",),
    ("cluster",),
    ("bench",),
    ("cli",),
    ("jobs",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Rooms that may be entered by one door only: validation while training answers regions with the labeler's engine.
DOORS = {("training", "labeling"): "rlabel.labeling.engine"}

# Who may import what is heavy or belongs to one edge. Names are prefixes of module paths.
TORCH = {"torch", "transformers", "peft", "bitsandbytes", "safetensors", "accelerate", "sentence_transformers"}
KEEPERS = (
    ({"ray"}, ("rlabel/cluster/", "rlabel/cli/")),
    ({"click"}, ("rlabel/cli/", "jobs/")),
    (
        TORCH,
        (
            "rlabel/regiongpt/",
            "rlabel/labeling/",
            "rlabel/proposing/",
            "rlabel/vlm/",
            "rlabel/training/",
            "rlabel/cluster/",
            "rlabel/bench/",
            "rlabel/vocabulary/embedding.py",
            "rlabel/run/worker.py",
        ),
    ),
)

MAX_LINES = 420
LONG_FILES: dict[str, str] = {}  # path -> why it is one file

# Where somebody's machine shows through. Written so that this file does not match itself.
MACHINE_TRACES = re.compile(
    r"(?:^|[^a-zA-Z0-9])/(?:work|farm)/"
    r"|(?:^|[^a-zA-Z0-9])/(?:root|Users)/"
    r"|/(?:opt)/(?:wheels|pypi)"
    r"|(?:shared)[/ ](?:corpus|facts|design|style)"
    r"|--(?:extra-)?(?:index)-url|--(?:find)-links"
    r"|(?:pypi)\.org/simple|files\.(?:pythonhosted)"
)


def room_of(dotted_name: str) -> str | None:
    """Return the room of rlabel (or "jobs") that a dotted name lies in; None for others and for the package itself."""
    parts = dotted_name.split(".")
    if parts[0] == "jobs":
        return "jobs"
    return parts[1] if parts[0] == "rlabel" and len(parts) > 1 and parts[1] in LEVEL else None


def wrong_import(importer: str, imported: str) -> str | None:
    """Return what is wrong when the module `importer` imports the name `imported`, both dotted; None if nothing is."""
    from_room, to_room = room_of(importer), room_of(imported)
    if from_room is None or to_room is None or from_room == to_room:
        return None
    if LEVEL[to_room] >= LEVEL[from_room]:
        return f"{importer} imports {imported}, but {to_room} is not below {from_room}"
    door = DOORS.get((from_room, to_room))
    if door is not None and not f"{imported}.".startswith(f"{door}."):
        return f"{importer} imports {imported}, but {from_room} may enter {to_room} only by {door}"
    return None


# Imports


def test_imports_run_one_way() -> None:
    wrong = []
    for module in modules_of("rlabel", "jobs"):
        importer = ".".join(module.with_suffix("").parts)
        for imported in imported_names(module, (ROOT / module).read_text(encoding="utf-8")):
            wrong.append(wrong_import(importer, imported))
    assert [line for line in wrong if line] == []


def test_an_import_against_the_way_is_found_in_every_form() -> None:
    source = "def f():\n    from rlabel import report\n    from ..cli import main\n    import rlabel.cluster.pool\n"
    names = imported_names(Path("rlabel/corpus/coco.py"), source)
    assert names == {"rlabel.report", "rlabel.cli.main", "rlabel.cluster.pool"}
    assert all(wrong_import("rlabel.corpus.coco", name) for name in names)
    assert wrong_import("rlabel.vocabulary.words", "rlabel.corpus.masks")  # the same line of rooms
    assert wrong_import("rlabel.training.loop", "rlabel.labeling.labeler")  # not the door
    assert wrong_import("rlabel.training.loop", "rlabel.labeling.engine.Engine") is None
    assert wrong_import("rlabel.corpus.coco", "rlabel.records.Region") is None


def test_every_room_has_a_place_in_the_import_order() -> None:
    rooms = {module.parts[1].removesuffix(".py") for module in modules_of("rlabel")} - {"__init__", "__main__"}
    assert rooms - set(LEVEL) == set()


def test_ray_click_and_torch_are_imported_only_where_they_belong() -> None:
    wrong = []
    for module in modules_of("rlabel", "jobs"):
        top_level = {name.split(".")[0] for name in imported_names(module, (ROOT / module).read_text(encoding="utf-8"))}
        for libraries, keepers in KEEPERS:
            if not module.as_posix().startswith(keepers):
                wrong += [f"{module} imports {library}" for library in sorted(top_level & libraries)]
    assert wrong == []


HEAVY_AFTER = """
import sys
sys.path.insert(0, {root!r})
{action}
print(*sorted({{"torch", "ray", "transformers", "sentence_transformers"}} & set(sys.modules)))
"""


def heavy_after(action: str) -> str:
    """Return the heavy libraries that are loaded in a fresh Python after some code, as one line."""
    code = HEAVY_AFTER.format(root=str(ROOT), action=action)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def test_importing_rlabel_loads_neither_torch_nor_ray() -> None:
    assert heavy_after('sys.modules["ray"] = sys') == "ray"  # the probe itself sees
    assert heavy_after("import rlabel") == ""


def test_help_of_every_command_loads_neither_torch_nor_ray_on_import() -> None:
    action = """
from click.testing import CliRunner
from rlabel.cli.main import main
commands = main.list_commands(None)
assert "label" in commands
for arguments in [["--help"], *([name, "--help"] for name in commands)]:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
"""
    assert heavy_after(action) == ""


# Files


def test_no_module_is_too_long_to_be_read_at_once() -> None:
    lines = {
        path.as_posix(): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in modules_of("rlabel")
    }
    assert {path: count for path, count in lines.items() if count > MAX_LINES and path not in LONG_FILES} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [
        path.as_posix()
        for path in modules_of("rlabel", "jobs")
        if not ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_no_file_tells_of_the_machine_it_was_written_on() -> None:
    files = repository_files()
    if files is None:
        pytest.skip("not a git checkout")
    found = []
    for path in files:
        data = (ROOT / path).read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            if match := MACHINE_TRACES.search(line):
                found.append(f"{path}:{number}: {match.group(0)}")
    assert found == []


def test_traces_of_a_machine_are_told_from_other_paths() -> None:
    place = "work"
    for line in (f"see /{place}/x", f'"/{place}/x"', "pip install --index" + "-url X"):
        assert MACHINE_TRACES.search(line), line
    for line in ("frame/work/x", "https://host/team/work-sheet", "the /data/photos folder", "s3://bucket/run"):
        assert not MACHINE_TRACES.search(line), line


def test_embedded_labeler_is_at_most_30_megabytes() -> None:
    folder = ROOT / "rlabel" / "embedded"
    if not folder.is_dir():
        pytest.skip("no embedded labeler yet")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 30_000_000


# README


README = ROOT / "README.md"


DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_every_command_in_the_documents_parses(document: Path) -> None:
    if not document.is_file():
        pytest.skip("no README.md yet")
    text = document.read_text(encoding="utf-8")
    calls = [words for command in shell_commands(text) if (words := rlabel_arguments(command)) is not None]
    assert calls, f"{document.name} shows no rlabel command, or the guard no longer finds them"
    # Within a sentence a command may be named without what it needs: the dots make it a synopsis.
    named = [words for command in inline_commands(text) if (words := rlabel_arguments(command))]
    calls += [[*words, "..."] for words in named]
    assert [(" ".join(words), problem) for words in calls if (problem := wrong_call(words))] == []


def test_every_make_target_in_the_readme_exists() -> None:
    if not README.is_file():
        pytest.skip("no README.md yet")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"env", "test", "check", "format", "demo", "clean"} <= targets
    named = {
        word
        for command in shell_commands(README.read_text(encoding="utf-8"))
        if command[0] == "make"
        for word in command[1:]
        if re.fullmatch(r"[a-z]+", word)
    }
    assert named - targets == set()


def test_a_wrong_call_in_a_readme_is_found() -> None:
    text = """
```bash
$ HF_HUB_OFFLINE=1 .venv/bin/rlabel label --images photos/ \\
    --regions masks.json --out run/ > log.txt   # and so on
make demo && rlabel label --no-such-option 1 | tee log
rlabel evaluate
ray job submit --working-dir . -- python -m jobs.label --images s3://b/i --num-actors many
rlabel label --images DIR [--num-actors N] [--nonsense X]
```
```python
rlabel = "label --not-a-command"
```
Indented:

    run/status.json   rlabel status run/   # in a table
    pip install rlabel --upgrade
"""
    said = "run `rlabel status RUN`, `rlabel` and `rlabel label --colour`, not `label --colour`; or `python -m jobs.label ...`"
    inline = [words for command in inline_commands(said) if (words := rlabel_arguments(command)) is not None]
    assert inline == [["status", "RUN"], [], ["label", "--colour"], ["jobs.label", "..."]]
    commands = list(shell_commands(text))
    assert ["make", "demo"] in commands and ["tee", "log"] in commands
    calls = [words for command in commands if (words := rlabel_arguments(command)) is not None]
    assert calls[0] == ["label", "--images", "photos/", "--regions", "masks.json", "--out", "run/"]
    problems = [wrong_call(words) for words in calls]
    assert problems[0] is None
    assert problems.pop() is None and calls[-1] == ["status", "run/"]
    expected = ("--no-such-option", "Missing argument", "not a valid integer", "--nonsense")
    for words, problem in zip(expected, problems[1:], strict=True):
        assert problem is not None and words in problem
