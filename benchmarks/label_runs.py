"""Labels a corpus in several ways, each in a process of its own, and prints accuracy, speed and memory beside each other.

    python benchmarks/label_runs.py quantization --images DIR --regions FILE --vocabulary FILE --truth FILE --provenance FILE [--model DIR]
    python benchmarks/label_runs.py looks --images DIR --regions FILE --vocabulary FILE --truth FILE --provenance FILE [--model DIR]
    python benchmarks/label_runs.py memory --images DIR --regions FILE --vocabulary FILE [--times 10]

Memory is the peak resident set of the labeling process (getrusage), with its model; `memory` labels the corpus once and repeated.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import rlabel
from rlabel.evaluation.evaluate import evaluate_run


@click.group()
def main() -> None:
    """Runs of the labeling job, compared."""


def _compared(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of runs that are judged by the truth."""
    for option in (
        click.option("--threads", default=2),
        click.option("--model", default="embedded"),
        click.option("--provenance"),
        click.option("--truth", required=True),
        click.option("--vocabulary", required=True),
        click.option("--regions", required=True),
        click.option("--images", required=True),
    ):
        command = option(command)
    return command


@main.command()
@_compared
def quantization(**given: Any) -> None:
    """none, int8, nf4 and bfloat16 on the same corpus."""
    model = given["model"]
    _compare(
        {
            "none, float32": (model, []),
            "none, bfloat16": (model, ["--dtype", "bfloat16"]),
            "int8, float32": (model, ["--quantization", "int8"]),
            "nf4, float32": (model, ["--quantization", "nf4"]),
            "nf4, bfloat16": (model, ["--quantization", "nf4", "--dtype", "bfloat16"]),
        },
        **given,
    )


@main.command()
@_compared
@click.option("--only", multiple=True, help="Of the ways, those whose names hold this, besides the plain look.")
def looks(only: tuple[str, ...], **given: Any) -> None:
    """Views, wordings, conversations, and what is zoomed how: each against the plain look."""
    model = given["model"]
    with tempfile.TemporaryDirectory() as folder:

        def zoomed(name: str, **changed: Any) -> tuple[str, list[str]]:
            return str(_changed_processor(model, Path(folder) / name, changed)), []

        ways = {
            "plain": (model, []),
            "views flip": (model, ["--views", "flip"]),
            "views box": (model, ["--views", "box"]),
            "views both": (model, ["--views", "both"]),
            "5 wordings": (model, ["--num-questions", "5"]),
            "mode multi_turn": (model, ["--mode", "multi_turn"]),
            "mode one_turn": (model, ["--mode", "one_turn"]),
            "context 0": zoomed("context0", zoom_context=0.0),
            "context 0.3": zoomed("context3", zoom_context=0.3),
            "0.1 and 0.4": zoomed("scales", zoom_more_contexts=[0.4]),
            "outside hidden": zoomed("keep0", zoom_keep=0.0),
            "outside half": zoomed("keep5", zoom_keep=0.5),
            "crops 128 px": zoomed("size128", zoom_size_px=128),
            "crops 192 px": zoomed("size192", zoom_size_px=192),
            "zoom < 64 px": zoomed("below64", zoom="small", zoom_below_px=64.0),
            "zoom < 32 px": zoomed("below32", zoom="small", zoom_below_px=32.0),
        }
        chosen = {
            name: way for name, way in ways.items() if name == "plain" or not only or any(part in name for part in only)
        }
        _compare(chosen, **given)


def _changed_processor(model: str, folder: Path, changed: dict[str, Any]) -> Path:
    """Return a model folder that differs in its image processor; the weights are links."""
    source = Path(rlabel.__file__).parent / "embedded" if model == "embedded" else Path(model)
    folder.mkdir()
    for file in source.iterdir():
        if file.is_file() and file.name != "processor_config.json":
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((source / "processor_config.json").read_text())
    config["image_processor"].update(changed)
    (folder / "processor_config.json").write_text(json.dumps(config))
    return folder


def _compare(
    ways: dict[str, tuple[str, list[str]]],
    *,
    images: str,
    regions: str,
    vocabulary: str,
    truth: str,
    provenance: str | None,
    model: str,
    threads: int,
) -> None:
    """Print a row for each way: (model folder, flags). Texts are compared with those of the first."""
    base_texts: dict[str, str] = {}
    print(
        f"{'':18}{'top-1':>8}{'unseen':>8}{'coverage':>10}{'same text':>11}{'regions/s':>11}{'peak MB':>9}{'model MB':>10}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (own_model, flags)) in enumerate(ways.items()):
            out = str(Path(folder) / f"run{number}")
            arguments = ["--images", images, "--regions", regions, "--vocabulary", vocabulary, "--out", out]
            measured = _child(
                [*arguments, "--model", own_model, "--cpus-per-actor", str(threads), "--max-failure-rate", "1", *flags]
            )
            evaluation = evaluate_run(out, truth, provenance)
            texts = _texts(out)
            base_texts = base_texts or texts
            same = sum(texts.get(key) == text for key, text in base_texts.items()) / len(base_texts)
            unseen = evaluation.top1_unseen.share if evaluation.top1_unseen else None
            print(
                f"{name:18}{100 * (evaluation.top1.share or 0):>7.1f}%{100 * (unseen or 0):>7.1f}%{100 * (evaluation.coverage or 0):>9.1f}%"
                f"{100 * same:>10.1f}%{measured['regions_per_s']:>11.1f}{measured['peak_mb']:>9.0f}{measured['model_mb']:>10.1f}",
                flush=True,
            )


@main.command()
@click.option("--images", required=True)
@click.option("--regions", required=True)
@click.option("--vocabulary", required=True)
@click.option("--model", default="embedded")
@click.option("--times", default=10)
@click.option("--threads", default=2)
def memory(images: str, regions: str, vocabulary: str, model: str, times: int, threads: int) -> None:
    """The corpus once, and repeated under new ids."""
    with tempfile.TemporaryDirectory() as folder:
        repeated = Path(folder) / "repeated.json"
        _repeat(Path(regions), repeated, times)
        for name, file in (("once", regions), (f"{times} times", str(repeated))):
            out = str(Path(folder) / name.replace(" ", "-"))
            arguments = [
                "--images",
                images,
                "--regions",
                file,
                "--vocabulary",
                vocabulary,
                "--model",
                model,
                "--out",
                out,
            ]
            measured = _child([*arguments, "--cpus-per-actor", str(threads)])
            print(
                f"{name:10} {measured['regions']:>7} regions, {measured['regions_per_s']:.1f} regions/s, peak {measured['peak_mb']:.0f} MB",
                flush=True,
            )


@main.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def child(flags: tuple[str, ...]) -> None:
    """Label in this process and print what it took."""
    from rlabel.cli.label import label
    from rlabel.run import worker

    sizes: dict[str, float] = {}
    build = worker.LabelWorker.__init__

    def measured_build(self: worker.LabelWorker, spec: worker.WorkerSpec) -> None:
        build(self, spec)
        model = self.labeler.describer.engine.model  # type: ignore[attr-defined]
        tensors = [*model.parameters(), *model.buffers()]
        sizes["model_mb"] = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6
        sizes["labeling_since"] = time.perf_counter()

    worker.LabelWorker.__init__ = measured_build  # type: ignore[method-assign]
    label.main([*flags, "--no-ray"], standalone_mode=False)
    seconds = time.perf_counter() - sizes.pop("labeling_since")
    counts = json.loads((Path(flags[flags.index("--out") + 1]) / "status.json").read_text())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "peak_mb": peak_mb,
                "regions": counts["regions_done"],
                "regions_per_s": counts["regions_done"] / seconds,
                **sizes,
            }
        )
    )


def _child(flags: list[str]) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, "child", "--", *flags], capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr[-2000:])
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _texts(run: str) -> dict[str, str]:
    labels = json.loads((Path(run) / "labels.json").read_text())["annotations"]
    texts = {str(row["attributes"]["region_id"]): row["attributes"]["text"] for row in labels}
    for line in (Path(run) / "abstained.jsonl").read_text().splitlines():
        row = json.loads(line)
        texts[str(row["region_id"])] = row["text"]
    return texts


def _repeat(source: Path, target: Path, times: int) -> None:
    corpus = json.loads(source.read_text())
    step = 1 + max([row["id"] for row in corpus["images"]] + [row["id"] for row in corpus["annotations"]])
    images = [{**row, "id": row["id"] + copy * step} for copy in range(times) for row in corpus["images"]]
    regions = [
        {**row, "id": row["id"] + copy * step, "image_id": row["image_id"] + copy * step}
        for copy in range(times)
        for row in corpus["annotations"]
    ]
    target.write_text(json.dumps({"images": images, "annotations": regions}))


if __name__ == "__main__":
    main()
