"""--trust-remote-code: the code of a model's repository runs when it is named, and never otherwise."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from label_factories import Setup, rlabel_here, save_model
from vlm_factories import loaded, save

CODE = """
from pathlib import Path

from transformers import LlavaConfig, LlavaForConditionalGeneration

Path({mark!r}).write_text("ran")


class OwnConfig(LlavaConfig):
    model_type = "own_vlm"


class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model folder of a type that transformers does not know, with code that leaves a mark beside it when it runs."""
    # Where transformers copies code to before it imports it.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = save(tmp_path / "own", "llava")
    # As the class names them: transformers renames weights for the types that it knows alone.
    save_file(loaded(folder).state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "own_code.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "own_code.OwnConfig", "AutoModelForImageTextToText": "own_code.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own_vlm", "auto_map": auto_map}))
    return folder


def doctor(*arguments: object) -> Any:
    return rlabel_here("doctor", [*map(str, arguments), "--json"])


def test_code_does_not_run_unasked_and_the_message_names_the_flag(repository: Path, tmp_path: Path) -> None:
    setup = Setup(tmp_path / "corpus", repository, 2)
    for result in (doctor(repository), rlabel_here("label", setup.arguments(tmp_path / "out", no_ray=True))):
        assert result.returncode == 1 and result.stdout == ""
        assert "brings its own code (own_code.py), which is not run unasked" in result.stderr
        assert "--trust-remote-code" in result.stderr and "read that code" in result.stderr
    assert not (tmp_path / "mark").exists() and not (tmp_path / "modules").exists()


def test_code_that_is_trusted_labels_and_stands_in_the_manifest(repository: Path, tmp_path: Path) -> None:
    told = doctor(repository, "--trust-remote-code")
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout)
    assert facts["model_type"] == "own_vlm" and facts["family"] == "unknown" and facts["parameters"]["total"] > 0
    assert (tmp_path / "mark").read_text() == "ran"
    setup, out = Setup(tmp_path / "corpus", repository, 1), tmp_path / "out"
    more: dict[str, object] = {
        "no_ray": True, "trust_remote_code": True, "crop_px": 56, "task": "caption", "vocabulary": None, "threshold": None, "margin": None,
        "max_failure_rate": 1,
    }  # fmt: skip
    result = rlabel_here("label", setup.arguments(out, **more))
    assert result.returncode == 0, result.stderr
    assert (
        "the model failed" not in (out / "failures.jsonl").read_text()
    )  # gibberish of random weights may have no words
    kept = json.loads((out / "manifest.json").read_text())["settings"]
    assert kept["trust_remote_code"] is True and kept["family"] == "unknown"
    # Other code is another model.
    with (repository / "own_code.py").open("a") as file:
        file.write("\n# changed\n")
    again = rlabel_here("label", setup.arguments(out, **more))
    assert again.returncode == 2 and "model_sha256" in again.stderr


def test_a_known_type_with_code_runs_transformers_own(repository: Path, tmp_path: Path) -> None:
    config = json.loads((repository / "config.json").read_text())
    (repository / "config.json").write_text(json.dumps({**config, "model_type": "llava"}))
    assert doctor(repository).returncode == 0
    assert not (tmp_path / "mark").exists()


def test_code_elsewhere_and_needless_trust_are_refused(repository: Path, tmp_path: Path) -> None:
    config = json.loads((repository / "config.json").read_text())
    far = {name: f"someone/else--{value}" for name, value in config["auto_map"].items()}
    (repository / "config.json").write_text(json.dumps({**config, "auto_map": far}))
    result = doctor(repository, "--trust-remote-code")
    assert result.returncode == 1 and "a reference to another repository (someone/else--own_code" in result.stderr
    setup = Setup(tmp_path / "corpus", save_model(tmp_path / "regiongpt"), 2)
    result = rlabel_here("label", setup.arguments(tmp_path / "out", no_ray=True, trust_remote_code=True))
    assert result.returncode == 2 and "--trust-remote-code: a RegionGPT runs rlabel's own code" in result.stderr


def test_code_that_does_not_work_is_one_message(repository: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "modules", ignore_errors=True)
    (repository / "own_code.py").write_text("raise ArithmeticError('not today')\n")
    result = doctor(repository, "--trust-remote-code")
    assert result.returncode == 1 and "not today" in result.stderr and "Traceback" not in result.stderr
