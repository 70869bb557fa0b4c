"""A driver under Ray loads no model: it never holds torch, and still finds early, and in the same words, what is wrong with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from label_factories import ROOT, Setup, save_model
from rlabel.config import LabelSettings
from rlabel.errors import RlabelError
from rlabel.run.job import plan_job

# The last line: the exit code, and which of what may be heavy is loaded; Ray has to be, else the probe is blind.
DRIVER = """
import json, sys
from tests.chaos.driver import main
sys.argv = ["driver", "fast", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as end:
    code = end.code
print(json.dumps([code, *sorted({"ray", "torch", "transformers", "sentence_transformers"} & set(sys.modules))]))
"""
PLANNER = """
import json, sys
from rlabel.config import LabelSettings
from rlabel.errors import RlabelError
from rlabel.run.job import plan_job
try:
    plan_job(LabelSettings(**json.loads(sys.argv[1])), meanwhile=lambda: None)
except RlabelError as error:
    print(json.dumps([type(error).__name__, error.exit_code, str(error), "torch" in sys.modules]))
"""


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("light")
    return Setup(folder, save_model(folder / "model"), num_images=2)


def last_line(script: str, argument: object) -> Any:
    """Return what a fresh Python prints last, a line of JSON."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(argument)], cwd=ROOT, capture_output=True, text=True, timeout=110,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_driver_under_ray_plans_labels_and_merges_without_torch(setup: Setup, local_ray: Any, tmp_path: Path) -> None:
    address = local_ray.get_runtime_context().gcs_address
    arguments = setup.arguments(tmp_path / "out", address=address, num_actors=1, gpus_per_actor=0)
    assert last_line(DRIVER, arguments) == [0, "ray"]
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["annotations"]


def test_an_error_of_the_model_is_found_apart_in_the_same_words_and_before_that_of_the_regions(
    setup: Setup, tmp_path: Path
) -> None:
    for file in setup.model.iterdir():
        if file.name != "processor_config.json":  # what only the processor itself misses
            (tmp_path / file.name).symlink_to(file)
    settings = {
        "images": str(setup.corpus / "images"), "regions": str(tmp_path / "none.json"), "vocabulary": str(setup.vocabulary),
        "model": str(tmp_path), "out": str(tmp_path / "out"),
    }  # fmt: skip
    with pytest.raises(RlabelError, match="processor_config.json") as here:
        plan_job(LabelSettings(**settings))
    expected = [type(here.value).__name__, here.value.exit_code, str(here.value), False]
    assert last_line(PLANNER, settings) == expected
