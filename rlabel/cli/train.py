"""`rlabel train`: fine-tune a labeler."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from rlabel.cli.options import ends_cleanly, settings_options, stop_on_sigterm
from rlabel.cli.train_labels import TakenLabels, absolute, labels_record, take_labels
from rlabel.config import TrainSettings, load_settings
from rlabel.errors import StorageError, UsageError
from rlabel.storage import Store

RECORD = "training.json"


@click.command(context_settings={"max_content_width": 110})
@settings_options(TrainSettings)
@click.option("--dry-run", is_flag=True, help="Print what would be trained; train nothing.")
@ends_cleanly
def train(config: str | None, dry_run: bool, **flags: Any) -> None:
    """Fine-tune a labeler on a labeled corpus; the result is a folder for --model.

    \b
    Example:
      rlabel train --images photos/ --annotations instances.json --out tuned/
      rlabel train --images yolo/images/ --annotations yolo/ --format auto --out tuned/

    Run it again to continue from the last checkpoint.
    """
    run_train(load_settings(TrainSettings, config, flags), dry_run=dry_run)


def run_train(settings: TrainSettings, *, dry_run: bool = False) -> None:
    """Check everything, train, and write the model folder; what `rlabel train` and the jobs do once they have their settings."""
    from rlabel.run.job import resolve
    from rlabel.training.mixture import load_mixture
    from rlabel.training.recipe import load_recipe

    _check_sources(settings)
    mixture = load_mixture(settings.mixture) if settings.mixture else None
    recipe = load_recipe(settings.recipe)
    if settings.stages is not None:
        recipe = recipe.of_stages(settings.stages)
    if settings.epochs is not None:
        recipe = recipe.model_copy(
            update={"stages": [stage.model_copy(update={"epochs": settings.epochs}) for stage in recipe.stages]}
        )
    if settings.no_ray and settings.num_workers > 1:
        raise UsageError(
            f"--no-ray trains in this process alone, got --num-workers {settings.num_workers}. Leave one of the two out."
        )
    if settings.no_ray and settings.parallel == "fsdp":
        raise UsageError(
            "--parallel fsdp: shards a model over Ray's workers, and --no-ray has none. Leave one of the two out."
        )
    refuse_relative_out_in_a_job(settings.out)
    if settings.tensorboard and Store.open(settings.out).local_path("") is None:
        raise UsageError(
            f"--tensorboard: event files are appended to, which {settings.out} does not allow. Use a local --out, or leave it out."
        )
    if (settings.val_images is None) != (settings.val_annotations is None):
        raise UsageError("--val-images and --val-annotations: expected both or neither, got one. Give the other.")
    if (settings.split or settings.val_split) and settings.format not in ("refcoco", "auto"):
        raise UsageError(
            f"--split: only RefCOCO's references have splits, and --format is {settings.format}. Leave it out, and name the file of the split."
        )
    model = resolve(settings.model)
    with ExitStack() as stack:
        labels = take_labels(settings, mixture, stack, dry_run=dry_run)
        _train(settings, recipe, model, labels, mixture, dry_run=dry_run)


def _train(
    settings: TrainSettings, recipe: Any, model: Path, labels: TakenLabels, written_mixture: Any, *, dry_run: bool
) -> None:
    """Train on labels that lie in files which training reads. written_mixture: as its file has it, for the record."""
    from rlabel.regiongpt.quantization import model_fingerprint
    from rlabel.training.loop import TrainJob

    record = {
        **settings.deciding(),
        "model_sha256": model_fingerprint(model),
        **labels_record(labels, written_mixture),
        "recipe": recipe.model_dump(mode="json"),
    }
    fingerprint = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    job = TrainJob(
        model=str(model),
        images_url=absolute(settings.images) if settings.images else "",
        annotations_url=absolute(labels.train.file) if labels.train else "",
        mixture=labels.mixture,
        recipe=recipe,
        seed=settings.seed,
        limit=settings.limit,
        val_images_url=absolute(settings.val_images) if settings.val_images else None,
        val_annotations_url=absolute(labels.val.file) if labels.val else None,
        val_limit=settings.val_limit,
        num_loader_workers=settings.num_loader_workers,
        format=labels.train.format if labels.train else "coco",
        split=settings.split,
        val_split=settings.val_split,
        val_format=labels.val.format if labels.val else None,
    )
    if dry_run:
        _check_recipe(job, settings.parallel)
        _print_plan(job, settings.num_workers)
        return
    out = Store.open(settings.out)
    record = {**record, "fingerprint": fingerprint}
    if _is_finished(out, settings.out, record):
        print(f"rlabel: {settings.out} holds the finished model of exactly these settings.", file=sys.stderr)
        return
    if out.is_process_private and not settings.no_ray:
        raise UsageError(
            f"--out {settings.out}: a store that lives in one process cannot take what workers write. Use a disk or an object store."
        )
    _check_recipe(job, settings.parallel)
    _check_corpora(job)
    if not out.put_if_absent(RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()):
        _is_finished(out, settings.out, record)  # another command may have claimed the folder meanwhile
    if settings.no_ray:
        _train_here(settings, job, out, fingerprint)
    else:
        _train_on_ray(settings, job, out, fingerprint)
    print(f"rlabel: wrote {settings.out}; label with: rlabel label --model {settings.out} ...", file=sys.stderr)


def _check_sources(settings: TrainSettings) -> None:
    """Raise UsageError unless the settings name one labeled dataset, or a mixture of several."""
    if settings.mixture is not None:
        for name in ("images", "annotations", "split"):
            if getattr(settings, name) is not None:
                raise UsageError(
                    f"--{name}: the datasets of --mixture {settings.mixture} have their own. Leave one of the two out."
                )
        return
    for name in ("images", "annotations"):
        if getattr(settings, name) is None:
            raise UsageError(
                f"--{name}: missing. Give it as a flag, or as `{name}:` in the file of --config; or name several datasets with --mixture."
            )


def _is_finished(out: Store, name: str, record: dict[str, Any]) -> bool:
    """Return whether the output folder holds the finished model of these settings; False for a new folder and for one to be continued.

    Raises UsageError when it was begun with other settings, or holds something else.
    """
    names = [entry for entry in out.list("") if not entry.startswith(".")]
    if not names:
        return False
    foreign = UsageError(
        f"--out {name}: expected a new folder or one of an earlier `rlabel train`, got other files ({names[0]}, ...). Give another --out."
    )
    if RECORD not in names:
        raise foreign
    try:
        old = json.loads(out.read(RECORD))
    except ValueError as error:
        raise foreign from error
    if not isinstance(old, dict):
        raise foreign
    if old.get("fingerprint") != record["fingerprint"]:
        differing = [key for key in record if key != "fingerprint" and old.get(key) != record[key]]
        raise UsageError(
            f"--out {name}: was begun with other settings ({', '.join(differing) or 'another version'}); continuing would mix two trainings. "
            "Give another --out, or the settings of that training."
        )
    return "config.json" in names


def _check_recipe(job: Any, parallel: str) -> None:
    """Look for the recipe's names in the model, and for what its stages need, before the output folder is claimed: a misspelling must not bind it."""
    from rlabel.regiongpt.quantization import count_parameters
    from rlabel.training.checkpoint import weight_names
    from rlabel.training.sharding import check_shardable

    count_parameters(job.model)  # says which file is no whole safetensors
    for stage in job.recipe.stages:
        stage.check_names(weight_names(job.model))
        stage.check_validated(job.is_validated)
        if parallel == "fsdp":
            check_shardable(stage)


def _check_corpora(job: Any) -> None:
    """Read the labels once here, so that a bad file is told before any worker starts."""
    corpus = job.corpus()
    print(
        f"rlabel: {len(corpus.images)} images, {corpus.num_regions} regions, {len(corpus.all_names)} categories",
        file=sys.stderr,
        flush=True,
    )
    job.validation()


def _checkpoints_url(settings: TrainSettings, out: Store) -> str:
    return absolute(settings.storage) if settings.storage else out.join("checkpoints")


def _train_here(settings: TrainSettings, job: Any, out: Store, fingerprint: str) -> None:
    from rlabel.training.loop import train_here

    url = _checkpoints_url(settings, out)
    storage = Store.open(url).local_path("")
    if storage is None:
        flag = "--storage" if settings.storage else "--out"
        raise UsageError(
            f"{flag} {url}: --no-ray keeps its checkpoints on a local disk. Use a local folder, or leave --no-ray out."
        )
    stop_on_sigterm()
    write = train_here(
        job,
        storage / _run_name(fingerprint),
        out.local_path("progress.jsonl"),
        settings.cpus_per_worker,
        settings.save_dtype,
        _say,
        settings.tensorboard,
    )
    _write_out(write, out)


def _train_on_ray(settings: TrainSettings, job: Any, out: Store, fingerprint: str) -> None:
    from rlabel.cluster.pool import choose_actors
    from rlabel.cluster.session import ray_session
    from rlabel.cluster.train import TrainPlacement, train_on_ray

    if out.local_path("") is None:
        _say(
            f"{settings.out} cannot be appended to, so no progress lines; checkpoints will show in {_checkpoints_url(settings, out)}"
        )
    with ray_session(settings.address, settings.num_workers * settings.cpus_per_worker) as ray, _followed(out):
        stop_on_sigterm()
        _, gpus = choose_actors(ray, 1, settings.gpus_per_worker, settings.cpus_per_worker)
        _tell_if_too_few(ray, settings, gpus)
        placement = TrainPlacement(
            name=_run_name(fingerprint),
            storage=_checkpoints_url(settings, out),
            num_workers=settings.num_workers,
            gpus_per_worker=gpus,
            cpus_per_worker=settings.cpus_per_worker,
            max_failures=settings.max_failures,
            save_dtype=settings.save_dtype,
            log_path=out.local_path("progress.jsonl"),
            parallel=settings.parallel,
            tensorboard=settings.tensorboard,
            out=out,
            attempt=uuid.uuid4().hex,
        )
        train_on_ray(job, placement, lambda folder: _copy_model(folder, out))


def _run_name(fingerprint: str) -> str:
    return f"rlabel-{fingerprint[:16]}"


def _say(line: str) -> None:
    print(f"rlabel: {line}", file=sys.stderr, flush=True)


def _tell_if_too_few(ray: Any, settings: TrainSettings, gpus_per_worker: float) -> None:
    """Say so when the cluster is too small now: Ray would wait without a word, since nodes may still come."""
    have = ray.cluster_resources()
    for name, each in (("CPU", float(settings.cpus_per_worker)), ("GPU", gpus_per_worker)):
        if each * settings.num_workers > have.get(name, 0.0):
            _say(
                f"{settings.num_workers} workers need {each * settings.num_workers:g} {name}s, the cluster has {have.get(name, 0.0):g}: "
                "waiting for nodes to join. Lower --num-workers, or stop with Ctrl-C."
            )


def _copy_model(folder: Path, out: Store) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in sorted(
        files, key=lambda path: path.name == "config.json"
    ):  # config.json last: where it is, the model is whole
        out.put_stream(path.relative_to(folder).as_posix(), _chunks(path))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            yield chunk


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
        self.last_step: tuple[str, int] = ("", 0)
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
        """Return the whole lines that are new; one that is just being written comes next time."""
        try:
            lines = self.out.read("progress.jsonl").decode(errors="replace").split("\n")[:-1]
        except StorageError:
            return []
        new, self.seen = lines[self.seen :], len(lines)
        return new

    def _print(self) -> None:
        from rlabel.training.progress import Progress, progress_text

        for line in self._lines():
            try:
                progress = Progress(**json.loads(line))
            except (ValueError, TypeError):
                continue  # a worker that was killed in the middle of a line
            if progress.stage == self.last_step[0] and progress.step <= self.last_step[1]:
                _say("a worker was lost; training goes on from the last checkpoint")
            self.last_step = (progress.stage, progress.step)
            _say(progress_text(progress))


def _print_plan(job: Any, num_workers: int) -> None:
    from rlabel.training.sampling import for_stage

    corpus = job.corpus()
    print(
        f"images      {len(corpus.images)}\nregions     {corpus.num_regions}\ncategories  {len(corpus.all_names)}\nmodel       {job.model}"
    )
    for part in corpus.parts if job.mixture else ():
        print(
            f"dataset     {part.name}: {len(part.images)} images, {int(part.num_regions.sum())} regions, weight {part.weight:g}"
        )
    for number, stage in enumerate(job.recipe.stages):
        sampled = for_stage(corpus, stage, job.seed + number)
        steps = stage.num_steps(sampled.epoch_size, num_workers)
        print(
            f"stage       {stage.name}: {stage.objective}, {sampled.num_regions} regions, {steps} steps, trains {', '.join(stage.learning_rates)}"
        )


def refuse_relative_out_in_a_job(out: str) -> None:
    """Raise UsageError for a relative --out in a Ray job: its working folder is a throw-away copy."""
    in_job = bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
    if in_job and "://" not in out and not os.path.isabs(out):
        raise UsageError(
            f"--out {out}: relative, but a Ray job runs in a copy of the working folder that is thrown away. Give an absolute path or URL."
        )
