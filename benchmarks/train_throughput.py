"""Training throughput through Ray Train (one worker) against the plain loop without Ray: regions a second in steady state.

    python benchmarks/train_throughput.py [--images DIR --annotations FILE.json] [--model DIR] [--steps N] [--rounds K]

Both run the same recipe on the same pictures with the same threads, each in a process of its own; they alternate, and the ratio is the median over
the rounds. A run's throughput is the median over its progress lines but the first, so that start-up is left out; each line counts the time since
the one before it, reports and all.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "examples" / "things-sample" / "train"
BAR = 0.9


@click.command()
@click.option("--images", default=str(SAMPLE / "images"))
@click.option("--annotations", default=str(SAMPLE / "instances.json"))
@click.option("--model", default="embedded")
@click.option("--steps", default=120, help="Of one run; a progress line comes every 20.")
@click.option("--batch", default=8, help="Images a step.")
@click.option("--rounds", default=3)
@click.option("--threads", default=1)
def main(images: str, annotations: str, model: str, steps: int, batch: int, rounds: int, threads: int) -> None:
    """Compare Ray Train with the plain loop; end with 1 where the ratio is below the bar."""
    num_images = len(json.loads(Path(annotations).read_text())["images"])
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(json.dumps(_recipe(steps, batch, num_images)))  # JSON is YAML
        command = [
            sys.executable, "-m", "rlabel.cli.main", "train", "--images", images, "--annotations", annotations,
            "--model", model, "--recipe", str(recipe), "--cpus-per-worker", str(threads),
        ]  # fmt: skip
        for number in range(rounds):
            # Turned round every other time: who comes second finds the pictures in the system's cache.
            order = ("plain", "ray") if number % 2 == 0 else ("ray", "plain")
            speed = {kind: _run(command, kind, Path(folder) / f"{kind}{number}") for kind in order}
            ratios.append(speed["ray"] / speed["plain"])
            print(
                f"round {number + 1}: plain {speed['plain']:.1f}, Ray Train {speed['ray']:.1f} regions/s, ratio {ratios[-1]:.3f}",
                flush=True,
            )
    ratio = statistics.median(ratios)
    print(f"Ray Train / plain loop: {ratio:.3f} (median of {rounds}; bar {BAR})")
    sys.exit(0 if ratio >= BAR else 1)


def _recipe(steps: int, batch: int, num_images: int) -> dict[str, object]:
    """Return one stage of so many steps: conversations about pictures, everything but the word embeddings trained."""
    rates = dict.fromkeys(("vision_tower", "connector", "zoom_connector", "language_model.model.layers"), 1e-6)
    stage = {
        "name": "instruct",
        "objective": "instruct",
        "epochs": steps / max(1, num_images // batch),
        "images_per_batch": batch,
        "learning_rates": rates,
        "checkpoint_every": steps,
    }
    return {"name": "throughput", "stages": [stage]}


def _run(command: list[str], kind: str, out: Path) -> float:
    """Train once into a new folder; return regions a second."""
    more = ["--no-ray"] if kind == "plain" else ["--num-workers", "1"]
    done = subprocess.run([*command, *more, "--out", str(out)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    lines = [json.loads(line) for line in (out / "progress.jsonl").read_text().splitlines()]
    speeds = [line["regions_per_s"] for line in lines[1:] if line["regions_per_s"] > 0]
    if not speeds:
        sys.exit(f"{kind}: expected two progress lines or more, got {len(lines)}. Raise --steps.")
    return statistics.median(speeds)


if __name__ == "__main__":
    main()
