"""The whole job on the bundled sample: label, fine-tune, label again, evaluate. `make demo` runs it; no download, no GPU.

Each step prints the command that does the same. Everything is written to demo-run/.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from rlabel.cli.label import run_label
from rlabel.cli.options import share_cores
from rlabel.cli.train import run_train
from rlabel.cluster.session import ray_session
from rlabel.config import LabelSettings, TrainSettings
from rlabel.evaluation.evaluate import evaluate_run
from rlabel.evaluation.records import Evaluation
from rlabel.report.page import write_report
from rlabel.run.status import read_status
from rlabel.storage import Store

SAMPLE = Path(__file__).resolve().parent / "things-sample"
OUT = Path("demo-run")


def main() -> None:
    share_cores()
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    with ray_session(None, num_cpus=3):
        label("before", None)
        command = (
            f"rlabel train --images {rel('train/images')} --annotations {rel('train/instances.json')} --out {OUT}/tuned"
        )
        step("fine-tune on the 80 labeled scenes", command)
        settings = {
            "images": str(SAMPLE / "train/images"),
            "annotations": str(SAMPLE / "train/instances.json"),
            "out": str(OUT / "tuned"),
        }
        run_train(TrainSettings.model_validate(settings | {"cpus_per_worker": 2}))
        label("after", OUT / "tuned")
    before, after = evaluate("before"), evaluate("after")
    paths = write_report(str(OUT / "after"), str(SAMPLE / "val/images"), str(SAMPLE / "val/instances.json"), after)
    table(before, after)
    print(f"\nlabels    {OUT}/after/labels.json")
    for path in paths:
        print(f"to see    {path}")
    print(f"took      {time.monotonic() - started:.0f} s")


def label(name: str, model: Path | None) -> None:
    command = f"rlabel label --images {rel('val/images')} --regions {rel('val/proposals.json')} --vocabulary {rel('vocabulary.json')} --out {OUT}/{name}"
    step(f"label 30 scenes, {name} fine-tuning", command + (f" --model {model}" if model else ""))
    settings = {
        "images": str(SAMPLE / "val/images"),
        "regions": str(SAMPLE / "val/proposals.json"),
        "vocabulary": str(SAMPLE / "vocabulary.json"),
        "out": str(OUT / name),
    }
    run_label(
        LabelSettings.model_validate(
            settings | ({"model": str(model)} if model else {}) | {"num_actors": 2, "images_per_shard": 8}
        )
    )


def evaluate(name: str) -> Evaluation:
    return evaluate_run(str(OUT / name), str(SAMPLE / "val/instances.json"), str(SAMPLE / "val/provenance.json"))


def rel(part: str) -> str:
    return f"examples/things-sample/{part}"


def step(what: str, command: str) -> None:
    print(f"\n== {what}\n$ {command}", file=sys.stderr, flush=True)


def table(before: Evaluation, after: Evaluation) -> None:
    """Print accuracy before and after; the bundled labeler was trained on the corpus that the sample is from, so little changes."""
    rates = [read_status(Store.open(str(OUT / name))) for name in ("before", "after")]
    rows = [
        ("top-1, all regions", share(before.top1), share(after.top1)),
        ("  pictures of the labeler's training", share(before.top1_seen), share(after.top1_seen)),
        ("  pictures it never saw", share(before.top1_unseen), share(after.top1_unseen)),
        ("regions labeled", str(before.num_labeled), str(after.num_labeled)),
        ("  abstained", str(before.num_abstained), str(after.num_abstained)),
        ("  failed", str(before.num_failed), str(after.num_failed)),
        (
            "regions/s, start of the actors included",
            *(f"{rate.regions_per_s:.1f}" if rate and rate.regions_per_s else "-" for rate in rates),
        ),
    ]
    print(f"\n{'':42}{'before':>14}{'after fine-tuning':>20}")
    for name, *values in rows:
        print(f"{name:42}{values[0]:>14}{values[1]:>20}")


def share(accuracy: object) -> str:
    value = getattr(accuracy, "share", None)
    return "-" if value is None else f"{100 * value:.1f} %"


if __name__ == "__main__":
    main()
