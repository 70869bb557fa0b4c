"""A long run: many synthetic regions, four actors that ask no model. What the driver holds, what Ray's object store holds, and how fast it goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from label_factories import ROOT, Setup, save_model, save_vocabulary
from rlabel.run.directory import RunDirectory
from rlabel.storage import Store
from tests.chaos.driver import WATCH
from tests.chaos.line import Clock, Line, Options

_REGIONS_PER_IMAGE, _NUM_PICTURES, _LIMIT_MIB = 20, 50, 500


def million(folder: Path, options: Options) -> Iterator[Line]:
    """Label many regions and look at the driver meanwhile."""
    setup = _setup(folder, options.regions)
    out, watch = folder / "run", folder / "watch.jsonl"
    arguments = setup.arguments(out, num_actors=4, images_per_shard=16, heartbeat_s=30)
    clock = Clock()
    with (folder / "said.txt").open("w") as said, (folder / "stdout.txt").open("w+") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.driver", "fast", *arguments], cwd=ROOT, stdout=stdout, stderr=said, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), WATCH: str(watch)},
        )  # fmt: skip
        try:
            code = process.wait()
        finally:
            process.kill()
        stdout.seek(0)
        printed = stdout.read()
    if code != 0:
        yield Line(
            test="long run", faults=0, seconds=clock.seconds, ok=False, notes=(folder / "said.txt").read_text()[-400:]
        )
        return
    counts = json.loads(printed.splitlines()[-1])
    seen = _seen(out)
    lines = [json.loads(line) for line in watch.read_text().splitlines()]
    peak_mib, growth_mib = max(line["rss"] for line in lines) / 2**20, _growth(lines, "rss") / 2**20
    store_mib = [line["object_store"] / 2**20 for line in lines if line["object_store"] is not None]
    lost = options.regions - len(seen)
    duplicated = (
        seen.total() - len(seen) + abs(counts["labels"] + counts["abstentions"] + counts["failures"] - options.regions)
    )
    yield Line(
        test=f"{options.regions:,} synthetic regions, trivial describer, 4 actors", faults=0, lost=lost, duplicated=duplicated,
        seconds=clock.seconds, ok=not (lost or duplicated or counts["failures"]) and peak_mib < _LIMIT_MIB and max(store_mib, default=0) < 50,
        notes=f"{counts['regions_per_s']:.0f} regions/s; driver at most {peak_mib:.0f} MiB, {growth_mib:+.0f} MiB from the second quarter of labeling to the "
        f"last; object store at most {max(store_mib, default=0):.1f} MiB, {store_mib[-1] if store_mib else 0:.1f} MiB at the end",
    )  # fmt: skip


def _growth(lines: list[dict[str, float]], name: str) -> float:
    """Return how much more there was in the last quarter of the time that Ray was there than in the second."""
    values = [line[name] for line in lines if line["object_store"] is not None]
    quarter = len(values) // 4
    return median(values[-quarter:]) - median(values[quarter : 2 * quarter]) if quarter else 0.0


def _seen(out: Path) -> Counter[int]:
    seen: Counter[int] = Counter()
    for result in RunDirectory.open(Store.open(out)).results():
        seen.update(outcome.region.region_id for outcome in result.outcomes)  # type: ignore[union-attr, misc]
    return seen


def _setup(folder: Path, num_regions: int) -> Setup:
    """Write a corpus of many image rows over few small pictures."""
    setup = Setup.__new__(Setup)
    setup.folder, setup.model, setup.corpus = folder, save_model(folder / "model"), folder / "corpus"
    setup.vocabulary = save_vocabulary(folder / "names.json")
    (setup.corpus / "images").mkdir(parents=True)
    dice = np.random.default_rng(0)
    for number in range(_NUM_PICTURES):
        Image.fromarray(dice.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(
            setup.corpus / "images" / f"{number}.png"
        )
    num_images = -(-num_regions // _REGIONS_PER_IMAGE)
    with (setup.corpus / "regions.json").open("w") as file:
        file.write('{"images": [')
        for number in range(num_images):
            row = {"id": number + 1, "file_name": f"{number % _NUM_PICTURES}.png", "width": 24, "height": 16}
            file.write(("," if number else "") + json.dumps(row))
        file.write('], "annotations": [')
        for number in range(num_regions):
            box = [number % 12, number // 12 % 8, 10, 6]
            row = {"id": number + 1, "image_id": number // _REGIONS_PER_IMAGE + 1, "bbox": box}
            file.write(("," if number else "") + json.dumps(row))
        file.write("]}")
    return setup


CASES: dict[str, Callable[[Path, Options], Iterator[Line]]] = {"million": million}
