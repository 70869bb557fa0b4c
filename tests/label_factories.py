"""A tiny labeler on disk, small corpora on disk, and describers that say what they are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rlabel.corpus.inputs import PreparedImage, PreparedRegion
from rlabel.records import JsonObject

if TYPE_CHECKING:
    from rlabel.labeling.engine import Decoded

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("cat", "dog", "teapot", "fire hydrant", "umbrella")


def save_model(folder: Path) -> Path:
    """Write a RegionGPT of random weights; its answers are gibberish, but another one for each region."""
    import model_factories
    from rlabel.regiongpt.assembly import save

    made = model_factories.model()
    save(made, model_factories.processor(made), folder)
    return folder


def save_vocabulary(path: Path, names: Sequence[str] = NAMES) -> Path:
    rows = [{"id": number, "name": name} for number, name in enumerate(names, start=11)]
    path.write_text(json.dumps({"name": "few", "categories": rows}))
    return path


def save_corpus(folder: Path, num_images: int, regions_per_image: int = 2) -> Path:
    """Write pictures of noise and masks of all kinds under folder/images and folder/regions.json; return the folder."""
    random = np.random.default_rng(7)
    (folder / "images").mkdir(parents=True)
    images: list[JsonObject] = []
    annotations: list[JsonObject] = []
    for number in range(1, num_images + 1):
        name = f"{number:04d}.png"
        Image.fromarray(random.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": 24, "height": 16})
        for _ in range(regions_per_image):
            x, y = int(random.integers(0, 12)), int(random.integers(0, 8))
            shape: JsonObject = {"bbox": [x, y, 10, 6]}
            if len(annotations) % 3 == 1:
                shape = {"segmentation": [[x, y, x + 10, y, x + 10, y + 6]]}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **shape})
    (folder / "regions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


class Setup:
    """What one labeling call needs, and the arguments for it."""

    def __init__(self, folder: Path, model: Path, num_images: int) -> None:
        self.folder = folder
        self.model = model
        self.corpus = save_corpus(folder / "corpus", num_images)
        self.vocabulary = save_vocabulary(folder / "names.json")

    def arguments(self, out: str | Path, **more: object) -> list[str]:
        """Return the options of `rlabel label`; True is a bare flag, None leaves an option out."""
        values: dict[str, object] = {
            "images": self.corpus / "images", "regions": self.corpus / "regions.json", "vocabulary": self.vocabulary, "model": self.model,
            "out": out, "threshold": -1, "margin": 0, "images_per_shard": 1, "max_new_tokens": 4, **more,
        }  # fmt: skip
        given: list[str] = []
        for name, value in values.items():
            if value is not None:
                given += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
        return given


class Outcome:
    """How a command ended in this process: the same look as a finished subprocess."""

    def __init__(self, returncode: int, stdout: str, stderr: str) -> None:
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr


def rlabel_here(command: str, arguments: Sequence[str]) -> Outcome:
    """Run `rlabel COMMAND ...` in this process, leaving its signal handlers as they were."""
    from click.testing import CliRunner

    from rlabel.cli.main import main

    before = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(main, [command, *arguments])
    finally:
        signal.signal(signal.SIGTERM, before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # a traceback, which no user may ever see
    return Outcome(result.exit_code, result.stdout, result.stderr)


def start(module: str, arguments: Sequence[str], cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start `python -m MODULE ...` as a process group of its own."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=cwd, env=variables, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_until(
    reached: Callable[[], bool], process: subprocess.Popen[str] | None = None, timeout_s: float = 180.0
) -> None:
    """Return as soon as something is so; fails with the process's words if it ends before."""
    end = time.monotonic() + timeout_s
    while not reached():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode} too early:\n{process.communicate()[1]}")
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def shard_files(out: Path) -> dict[str, tuple[int, int]]:
    """Return the committed shards of a run by name, each with what changes when it is written again."""
    return (
        {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (out / "shards").glob("*.jsonl")}
        if out.exists()
        else {}
    )


def outputs(out: Path) -> dict[str, bytes]:
    """Return all that a run must give again byte for byte."""
    names = ["manifest.json", "abstained.jsonl", "failures.jsonl"]
    answers = [
        name for name in ("labels.json", "captions.json", "relations.json", "referred.json") if (out / name).exists()
    ]
    assert len(answers) == 1, answers
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in [*(out / name for name in [*names, *answers]), *sorted((out / "shards").glob("[!.]*"))]
    }


class FakeDescriber:
    """Says what it is told of each region, by key; what is an exception is raised where that region is in the batch.

    calls: the region keys of every call of describe.
    """

    def __init__(
        self,
        says: Mapping[str, str | Exception] | None = None,
        otherwise: str = "a cat",
        logprobs: Mapping[str, tuple[float, ...]] | None = None,
    ):
        self.says = says or {}
        self.otherwise = otherwise
        self.logprobs = logprobs or {}
        self.calls: list[list[str]] = []

    def prepare(self, image: PreparedImage, regions: Sequence[PreparedRegion]) -> Any:
        assert image.pixels_HWC is not None
        return [item.region.key for item in regions]

    def describe(self, inputs: Sequence[list[str]]) -> list[list[Decoded]]:
        self.calls.append([key for keys in inputs for key in keys])
        return [[self._decoded(key) for key in keys] for keys in inputs]

    def _decoded(self, key: str) -> Decoded:
        said = self.says.get(key, self.otherwise)
        if isinstance(said, Exception):
            raise said
        from rlabel.labeling.engine import Decoded

        return Decoded(text=said, token_logprobs=self.logprobs.get(key, (-0.25, -0.25)))
