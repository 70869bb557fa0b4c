"""`rlabel train`: fine-tune a labeler."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from rlabel.cli.options import Stopped, ends_cleanly, settings_options, stop_on_sigterm
from rlabel.config import TrainSettings, load_settings
from rlabel.errors import InputError, UsageError
from rlabel.storage import MissingFile, Store, open_url

RECORD = "training.json"


@click.command(context_settings={"max_content_width": 110})
@settings_options(TrainSettings)
@click.option("--dry-run", is_flag=True, help="Print what would be trained; train nothing.")
@ends_cleanly
def train(config: str | None, dry_run: bool, **flags: Any) -> None:
    """Fine-tune a labeler on a labeled COCO corpus; the result is a folder for --model.

    \b
    Example:
      rlabel train --images photos/ --annotations instances.json --out tuned/

    Run it again to continue from the last checkpoint.
    """
    run_train(load_settings(TrainSettings, config, flags), dry_run=dry_run)


def run_train(settings: TrainSettings, *, dry_run: bool = False) -> None:
    """Check everything, train, and write the model folder; what `rlabel train` and the jobs do once they have their settings."""
    from rlabel.regiongpt.quantization import model_fingerprint
    from rlabel.run.job import resolve
    from rlabel.training.loop import TrainJob
    from rlabel.training.recipe import load_recipe

    recipe = load_recipe(settings.recipe)
    if settings.epochs is not None:
        recipe = recipe.model_copy(update={"stages": [stage.model_copy(update={"epochs": settings.epochs}) for stage in recipe.stages]})
    if (settings.val_images is None) != (settings.val_annotations is None):
        raise UsageError("--val-images and --val-annotations: expected both or neither, got one. Give the other.")
    model = resolve(settings.model)
    record = {
        **settings.deciding(),
        "model_sha256": model_fingerprint(model),
        "annotations_sha256": _file_sha256(settings.annotations),
        "recipe": recipe.model_dump(mode="json"),
    }
    fingerprint = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    job = TrainJob(
        model=str(model),
        images_url=_absolute(settings.images),
        annotations_url=_absolute(settings.annotations),
        recipe=recipe,
        seed=settings.seed,
        limit=settings.limit,
        val_images_url=_absolute(settings.val_images) if settings.val_images else None,
        val_annotations_url=_absolute(settings.val_annotations) if settings.val_annotations else None,
        val_limit=settings.val_limit,
        num_loader_workers=settings.num_loader_workers,
    )
    if dry_run:
        _print_plan(job)
        return
    out = Store.open(settings.out)
    if _begin(out, settings.out, {**record, "fingerprint": fingerprint}):
        print(f"rlabel: {settings.out} holds the finished model of exactly these settings.", file=sys.stderr)
        return
    _check_corpus(job)
    try:
        if settings.no_ray:
            _train_here(settings, job, out)
        else:
            _train_on_ray(settings, job, out, fingerprint)
    except Stopped:
        print("rlabel: training stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        raise
    print(f"rlabel: wrote {settings.out}; label with: rlabel label --model {settings.out} ...", file=sys.stderr)


def _begin(out: Store, name: str, record: dict[str, Any]) -> bool:
    """Claim the output folder; return True if it holds the finished model already.

    Raises UsageError when it was begun with other settings, or holds something else.
    """
    data = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    names = [entry for entry in out.list("") if not entry.startswith(".")]
    if names and RECORD not in names:
        raise UsageError(f"--out {name}: expected a new folder or one of an earlier `rlabel train`, got other files ({names[0]}, ...). Give another --out.")
    if not out.put_if_absent(RECORD, data):
        old = json.loads(out.read(RECORD))
        differing = [key for key in record if key != "fingerprint" and old.get(key) != record[key]]
        if old.get("fingerprint") != record["fingerprint"]:
            raise UsageError(
                f"--out {name}: was begun with other settings ({', '.join(differing) or 'another version'}); continuing would mix two trainings. "
                "Give another --out, or the settings of that training."
            )
    return out.exists("config.json")


def _check_corpus(job: Any) -> None:
    """Read the labels once here, so that a bad file is told before any worker starts."""
    from rlabel.training.dataset import load_corpus

    corpus = load_corpus(job.images_url, job.annotations_url, job.limit)
    print(f"rlabel: {len(corpus.images)} images, {corpus.num_regions} regions, {len(corpus.names)} categories", file=sys.stderr, flush=True)


def _train_here(settings: TrainSettings, job: Any, out: Store) -> None:
    import torch

    from rlabel.training.loop import LocalSurroundings
    from rlabel.training.loop import train as loop
    from rlabel.training.loop import write_model

    stop_on_sigterm()
    torch.set_num_threads(settings.cpus_per_worker)
    folder = out.local_path("")
    if folder is None:
        raise UsageError(f"--out {settings.out}: --no-ray keeps its checkpoints on a local disk. Use a local folder, or leave --no-ray out.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = loop(job, LocalSurroundings(folder / "checkpoints", device, lambda line: print(f"rlabel: {line}", file=sys.stderr, flush=True)))
    _write_out(lambda target: write_model(model, processor, target, getattr(torch, settings.save_dtype)), out)


def _train_on_ray(settings: TrainSettings, job: Any, out: Store, fingerprint: str) -> None:
    from rlabel.cluster.pool import choose_actors
    from rlabel.cluster.session import ray_session
    from rlabel.cluster.train import TrainPlacement, train_on_ray

    log_path = out.join("progress.jsonl")
    # Training's own controller takes a logical CPU beside the workers'.
    with ray_session(settings.address, settings.num_workers * settings.cpus_per_worker + 1) as ray, _followed(out):
        stop_on_sigterm()
        _, gpus = choose_actors(ray, 1, settings.gpus_per_worker, settings.cpus_per_worker)
        placement = TrainPlacement(
            name=f"rlabel-{fingerprint[:16]}",
            storage=_absolute(settings.storage) if settings.storage else out.join("checkpoints"),
            num_workers=settings.num_workers,
            gpus_per_worker=gpus,
            cpus_per_worker=settings.cpus_per_worker,
            max_failures=settings.max_failures,
            save_dtype=settings.save_dtype,
            log_path=log_path,
        )
        train_on_ray(job, placement, lambda folder: _copy_model(folder, out))


def _copy_model(folder: Path, out: Store) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == "config.json"):  # config.json last: where it is, the model is whole
        out.put(str(path.relative_to(folder)), path.read_bytes())


def _write_out(write: Any, out: Store) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="rlabel-model-") as folder:
        write(Path(folder) / "model")
        _copy_model(Path(folder) / "model", out)


class _followed:
    """Prints the lines that the workers add to progress.jsonl, while Ray Train runs."""

    def __init__(self, out: Store) -> None:
        import threading

        self.out = out
        self.seen = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._lines()  # those of an earlier start are old news
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(timeout=5)
        self._print()

    def _follow(self) -> None:
        while not self.stop.wait(2.0):
            self._print()

    def _lines(self) -> list[str]:
        try:
            lines = self.out.read("progress.jsonl").decode().splitlines()
        except MissingFile:
            return []
        new, self.seen = lines[self.seen :], len(lines)
        return new

    def _print(self) -> None:
        from rlabel.training.loop import Progress, progress_text

        for line in self._lines():
            print(f"rlabel: {progress_text(Progress(**json.loads(line)))}", file=sys.stderr, flush=True)


def _print_plan(job: Any) -> None:
    from rlabel.training.dataset import cap_per_category, load_corpus

    corpus = load_corpus(job.images_url, job.annotations_url, job.limit)
    print(f"images      {len(corpus.images)}\nregions     {corpus.num_regions}\ncategories  {len(corpus.names)}\nmodel       {job.model}")
    for number, stage in enumerate(job.recipe.stages):
        sampled = cap_per_category(corpus, stage.per_category, job.seed + number)
        steps = max(1, round(len(sampled.images) // stage.images_per_batch * stage.epochs)) // stage.accumulate
        print(f"stage       {stage.name}: {stage.objective}, {sampled.num_regions} regions, {steps} steps, trains {', '.join(stage.learning_rates)}")


def _file_sha256(url: str) -> str:
    digest = hashlib.sha256()
    try:
        with open_url(url) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except MissingFile as error:
        raise InputError(f"--annotations {url}: no such file. Give a COCO JSON with categories.") from error
    return digest.hexdigest()


def _absolute(path: str) -> str:
    """Workers run in other folders: a local path must not depend on this one."""
    return path if "://" in path else str(Path(path).resolve())
