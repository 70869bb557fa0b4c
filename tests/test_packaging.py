"""What a release holds: the source archive, the wheel made from it, and requirements with a tested version for each."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from guards import ROOT, imported_names, modules_of


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 and re.fullmatch(r"[0-9][0-9a-z.]*", pin[1]) for pin in pins), pins
    return {canonicalize_name(name): version for name, version in pins}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a source archive made from a copy of the checkout: building leaves files behind."""
    # By their metadata: to look for the module pip makes setuptools give up its distutils, and torch.compile needs that in other tests.
    if not {"pip", "setuptools"} <= {one.name for one in distributions()}:
        pytest.skip("pip and setuptools are needed to build")
    folder = tmp_path_factory.mktemp("sdist")
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "things-sample")
    for name in ("rlabel", "schemas", "jobs", "tests", "docs", "examples"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=left_out)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder / "tree")
    command = [sys.executable, "-c", make_dist_code(), str(folder)]
    done = subprocess.run(command, cwd=folder / "tree", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.tar.gz")
    return built


def make_dist_code() -> str:
    """Return the Python that `make dist` makes the source archive with; the folder is its argument."""
    (code,) = re.findall(r"^SDIST = (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return str(code)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that the source archive gives, as `make dist` makes it: what it holds is then in both."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", str(folder), str(sdist)], capture_output=True, text=True, timeout=120)
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
    data = data_files()
    assert len(schemas) >= 6 and {"rlabel/py.typed", "rlabel/report/templates/gallery.js"} <= data
    assert (code | schemas | data) - names == set()
    assert [name for name in names if name.endswith(".pyc") or "/tests/" in name] == []
    # The labeler's weights are most of it. Whoever makes it larger should know.
    assert wheel.stat().st_size < 30_000_000


def data_files() -> set[str]:
    """Return whatever lies among the packages and is no code."""
    files = (path for path in (ROOT / "rlabel").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".py"}


def test_source_archive_holds_code_data_tests_and_documents(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    own = {path.as_posix() for path in modules_of("rlabel", "jobs", "tests")}
    documents = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
    examples = {f"examples/cluster/{path.name}" for path in (ROOT / "examples" / "cluster").iterdir()}
    assert (
        own | data_files() | documents | examples | {"constraints.txt", "Makefile", "examples/api.py"}
    ) - names == set()
    assert [name for name in names if "things-sample" in name or name.endswith(".pyc")] == []


def test_installed_wheel_finds_its_schemas_recipes_and_command(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = """
import sys
import tarfile
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
    stated = list(required(wheel).items())
    for extra in extras(wheel):
        of_extra = set(required(wheel, extra).items()) - set(stated)
        assert of_extra, f"the extra {extra} asks for nothing"
        stated += of_extra
    assert {name for name, _ in stated if name not in pins} == set()
    bad = [str(item) for name, item in stated if not item.specifier.contains(pins[name])]
    assert bad == []


def extras(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode("utf-8")).get_all("Provides-Extra") or []


def test_what_is_installed_here_is_what_is_pinned() -> None:
    pins = constraints()
    here = {canonicalize_name(one.name): one.version.partition("+")[0] for one in distributions()}
    assert {name: here[name] for name in pins if name in here and here[name] != pins[name]} == {}


def test_every_extra_that_a_message_or_document_names_exists(wheel: Path) -> None:
    texts = [ROOT / module for module in modules_of("rlabel")]
    texts += [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "setup.py"]
    named = {
        extra
        for path in texts
        for listed in re.findall(r"rlabel\[([a-z0-9, ]+)\]", path.read_text(encoding="utf-8"))
        for extra in re.split(r"[, ]+", listed)
    }
    assert {"s3", "smollm2"} <= named and named - set(extras(wheel)) == set()
