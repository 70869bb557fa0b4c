"""The promises about the repository itself: directions of imports, light import, packaging, commands in the README."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from guards import ROOT, imported_names, modules_of, repository_files, rlabel_arguments, shell_commands

# Rooms from the bottom up; a room imports from lower lines and from itself, never from its own line's other rooms.
LEVELS = (
    ("records", "errors", "memory", "spans"),
    ("schema_files",),
    ("config", "storage"),
    ("corpus", "vocabulary", "prompts"),
    ("regiongpt",),
    ("labeling",),
    ("training",),
    ("run",),
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
            "rlabel/training/",
            "rlabel/cluster/",
            "rlabel/bench/",
            "rlabel/vocabulary/embedding.py",
            "rlabel/run/worker.py",
        ),
    ),
)

MAX_LINES = 420
LONG_FILES = {
    "rlabel/storage.py": "every case of put-if-absent, on local disks and on object stores, is read against the others",
}

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


# Packaging


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 and re.fullmatch(r"[0-9][0-9a-z.]*", pin[1]) for pin in pins), pins
    return {canonicalize_name(name): version for name, version in pins}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built from a copy of the checkout: building leaves files behind."""
    # By their metadata: to look for the module pip makes setuptools give up its distutils, and torch.compile needs that in other tests.
    if not {"pip", "setuptools"} <= {one.name for one in distributions()}:
        pytest.skip("pip and setuptools are needed to build a wheel")
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("rlabel", "schemas", "jobs", "tests"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=left_out)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder / "tree")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", str(folder), str(folder / "tree")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def required(wheel: Path, extra: str = "") -> dict[str, Requirement]:
    """Return the requirements that a wheel states for one extra, by canonical name."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
    stated = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    wanted = [item for item in stated if (item.marker is None or item.marker.evaluate({"extra": extra}))]
    return {canonicalize_name(item.name): item for item in wanted}


def test_wheel_holds_rlabel_alone_with_all_its_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rlabel"}
    code = {path.as_posix() for path in modules_of("rlabel")}
    schemas = {f"rlabel/schemas/{path.name}" for path in (ROOT / "schemas").glob("*.json")}
    data = {
        path.relative_to(ROOT).as_posix()
        for folder in ("recipes", "report/templates", "embedded")
        for path in (ROOT / "rlabel" / folder).rglob("*.*")
    }
    assert len(schemas) >= 6 and len(data) >= 2
    assert (code | schemas | data | {"rlabel/py.typed"}) - names == set()


def test_installed_wheel_finds_its_schemas_recipes_and_command(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import importlib.metadata, rlabel
from importlib.resources import files
from rlabel.schema_files import load_schema
from rlabel.vocabulary.vocabulary import load_vocabulary
assert rlabel.__file__.startswith(sys.argv[1]), rlabel.__file__
load_schema("vocabulary")
assert any(entry.name.endswith(".yaml") for entry in files("rlabel").joinpath("recipes").iterdir())
assert any(entry.name.endswith(".j2") for entry in files("rlabel.report").joinpath("templates").iterdir())
(command,) = next(iter(importlib.metadata.distributions(name="rlabel", path=[sys.argv[1]]))).entry_points
assert command.name == "rlabel" and callable(command.load())
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_imported_library_is_a_stated_dependency(wheel: Path) -> None:
    stated = set(required(wheel))
    distributions = packages_distributions()
    missing = []
    for module in modules_of("rlabel", "jobs"):
        for name in imported_names(module, (ROOT / module).read_text(encoding="utf-8")):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in {"rlabel", "jobs"}:
                continue
            # A part of a stated library (pydantic_core) comes with it.
            owners = {canonicalize_name(owner) for owner in distributions.get(top, [])} | {
                canonicalize_name(top.split("_core")[0])
            }
            if not owners & stated:
                missing.append(f"{module}: {top}")
    assert missing == []


def test_constraints_pin_every_dependency_within_its_bounds(wheel: Path) -> None:
    pins = constraints()
    stated = required(wheel) | required(wheel, "dev")
    assert {name for name in stated if name not in pins} == set()
    assert [str(item) for name, item in stated.items() if not item.specifier.contains(pins[name])] == []


# README


README = ROOT / "README.md"


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


def test_every_command_in_the_readme_parses() -> None:
    if not README.is_file():
        pytest.skip("no README.md yet")
    calls = [rlabel_arguments(command) for command in shell_commands(README.read_text(encoding="utf-8"))]
    calls = [words for words in calls if words is not None]
    assert calls, "README.md shows no rlabel command, or the guard no longer finds them"
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
