"""`rlabel label`: the main job."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

import click

from rlabel.cli.options import INTERRUPTED, Stopped, ends_cleanly, print_json, settings_options, stop_on_sigterm
from rlabel.config import LabelSettings, load_settings
from rlabel.errors import RlabelError, RunError, TooManyFailures, UsageError
from rlabel.memory import reuse_freed_memory_environment
from rlabel.run.directory import RunDirectory
from rlabel.run.job import LabelJob, open_run, plan_job
from rlabel.run.merge import answers_file
from rlabel.run.profile import PROFILE, profile_text, write_profile
from rlabel.run.progress import RunProgress, heartbeat
from rlabel.spans import Profile, recorded, stop_recording

_PROBLEMS_SHOWN = 20
_ANSWERS = {
    "classify": "labels",
    "caption": "captions",
    "describe": "captions",
    "relate": "relations",
    "refer": "choices",
}


@click.command(context_settings={"max_content_width": 110})
@settings_options(LabelSettings)
@click.option("--dry-run", is_flag=True, help="Print the plan, the exact prompt and the estimated cost; label nothing.")
@ends_cleanly
def label(config: str | None, dry_run: bool, **flags: Any) -> None:
    """Label every region of a corpus: a category with a score, an abstention, or a failure with its reason.

    \b
    Example:
      rlabel label --images photos/ --regions masks.json --vocabulary names.txt --out run/
      rlabel label --task caption --images photos/ --regions masks.json --out captions/
      rlabel label --task relate --images photos/ --regions masks.json --pairs pairs.json --out relations/
      rlabel label --task refer --images photos/ --regions masks.json --expressions said.json --out referred/

    Run it again to continue where it stopped. Exit codes: 0 done, 1 stopped by an error, 2 wrong call, 3 too many failures, 130 interrupted.
    """
    settings = load_settings(LabelSettings, config, flags)
    run_label(settings, dry_run=dry_run)


def run_label(settings: LabelSettings, *, dry_run: bool = False) -> None:
    """Plan, label, merge and report; what `rlabel label` and the jobs do once they have their settings."""
    stop_on_sigterm()
    _refuse_relative_paths_in_a_job(settings)
    job = plan_job(settings)
    with job.corpus:
        if dry_run:
            _print_plan(job)
            return
        run = open_run(job, under_ray=not settings.no_ray)
        progress = RunProgress(run, settings.heartbeat_s)
        for note in job.vocabulary.notes if job.vocabulary is not None else ():
            print(f"rlabel: vocabulary: {note}", file=sys.stderr)
        for note in job.calibrator_notes:
            print(f"rlabel: {note}", file=sys.stderr)
        if settings.vocabulary is not None and job.vocabulary is None:
            print(f"rlabel: --vocabulary is not used by --task {settings.task}", file=sys.stderr)
        for problem in job.corpus.problems[:_PROBLEMS_SHOWN]:
            print(f"rlabel: corpus: {problem.where}: {problem.what}", file=sys.stderr)
        if len(job.corpus.problems) > _PROBLEMS_SHOWN:
            print(
                f"rlabel: corpus: {len(job.corpus.problems) - _PROBLEMS_SHOWN} more problems: rlabel validate lists them",
                file=sys.stderr,
            )
        progress.write("running")
        try:
            _label(job, run, progress)
            counts = run.merge(results_files=settings.results_files)
            also = _snap_also(job, run)
        except (KeyboardInterrupt, Stopped):
            progress.write("stopped", INTERRUPTED, "interrupted; the same command goes on")
            raise
        except Exception as error:
            progress.write("failed", error.exit_code if isinstance(error, RlabelError) else 1, str(error))
            raise
        rate = counts.failures / max(counts.regions, 1)
        too_many = rate > settings.max_failure_rate
        unit, file = run.manifest.unit, run.store.join(answers_file(run.manifest))
        abstained = f"{counts.abstentions} abstentions, " if settings.task == "classify" else ""
        message = (
            f"{counts.labels} {_ANSWERS[settings.task]}, {abstained}{counts.failures} failures of {counts.regions} {unit} "
            f"in {counts.images} images: {file}"
        )
        status = progress.write("done", 3 if too_many else 0, message)
        print(f"rlabel: {message}", file=sys.stderr)
        print_json(
            {
                "run": settings.out,
                "task": settings.task,
                "state": "done",
                "exit_code": 3 if too_many else 0,
                "labels": counts.labels,
                "abstentions": counts.abstentions,
                "failures": counts.failures,
                "regions": counts.regions,
                "unit": unit,
                "images": counts.images,
                "regions_per_s": status.regions_per_s,
                "file": file,
                **({"also": also} if also else {}),
            }  # fmt: skip
        )
        if too_many:
            raise TooManyFailures(
                f"{settings.out}: {counts.failures} of {counts.regions} {unit} failed ({rate:.1%}); at most {settings.max_failure_rate:.1%} are allowed. "
                "Their reasons are in failures.jsonl. Mend the input, or raise --max-failure-rate."
            )


def _label(job: LabelJob, run: RunDirectory, progress: RunProgress) -> None:
    from rlabel.run.worker import LabelWorker, worker_spec

    if len(run.committed()) == run.num_shards:
        print(
            f"rlabel: {job.settings.out}: all {run.num_shards} shards are there already; writing the labels again.",
            file=sys.stderr,
        )
        return
    spec = worker_spec(job, run)
    if job.settings.no_ray:
        from rlabel.run.local import label_in_process

        try:
            label_in_process(run, job.shards(), lambda: _told(LabelWorker(spec)), progress, job.settings.max_attempts)
            own = recorded()
            _tell_profile(run, [] if own is None else [own])
        finally:
            stop_recording()
        return
    from rlabel.cluster.pool import PoolOptions, ShardPool, choose_actors
    from rlabel.cluster.session import ray_session

    settings = job.settings
    # Ray tells of dead workers on stdout, whatever it is told; stdout is for results.
    with (
        redirect_stdout(sys.stderr),
        ray_session(settings.address, max(settings.num_actors, 1) * settings.cpus_per_actor) as ray,
    ):
        num_actors, gpus = choose_actors(ray, settings.num_actors, settings.gpus_per_actor, settings.cpus_per_actor)
        options = PoolOptions(
            num_actors=min(num_actors, max(1, run.num_shards)),
            gpus_per_actor=gpus,
            cpus_per_actor=settings.cpus_per_actor,
            max_attempts=settings.max_attempts,
            shard_timeout_s=settings.shard_timeout_s,
            wait_for_actors_s=settings.wait_for_actors_s,
            # The threads of an actor are there before it could say how malloc is to keep what is freed.
            environment=reuse_freed_memory_environment() if gpus == 0 else {},
            profile=settings.profile,
        )
        pool = ShardPool(ray, LabelWorker, (spec,), run, options)
        print(
            f"rlabel: {options.num_actors} actors, {run.num_shards - len(run.committed())} shards to do",
            file=sys.stderr,
            flush=True,
        )
        pool.label(job.shards(), progress.beat)
        _tell_quantized(pool.worker_notes)
    _tell_profile(run, pool.profiles)
    if len(run.committed()) != run.num_shards:
        raise RunError(
            f"{settings.out}: {run.num_shards - len(run.committed())} shards are missing at the end. Run the same command again."
        )


def _snap_also(job: LabelJob, run: RunDirectory) -> list[dict[str, Any]]:
    """Snap the answers to the further vocabularies, without the model."""
    from rlabel.cli.snap import snap_jobs
    from rlabel.run.job import embedder_name
    from rlabel.run.resnap import SnapJob, also_folders
    from rlabel.vocabulary.thesaurus import thesaurus_digest

    settings = job.settings
    jobs = [
        SnapJob(
            vocabulary=vocabulary,
            where=where,
            threshold=settings.threshold,
            margin=settings.margin,
            embedder=embedder_name(settings.embedder),
            fallback=settings.fallback,
            thesaurus_sha256=thesaurus_digest(settings.thesaurus),
        )
        for vocabulary, where in zip(job.also, also_folders(settings.out, job.also), strict=True)
    ]
    return snap_jobs(
        run,
        jobs,
        settings.embedder,
        thesaurus=settings.thesaurus,
        results_files=settings.results_files,
        heartbeat_s=settings.heartbeat_s,
    )


def _told(worker: Any) -> Any:
    _tell_quantized(worker.describe())
    return worker


def _tell_quantized(layers: tuple[str, ...] | None) -> None:
    if layers:
        print(
            f"rlabel: {len(layers)} layers quantized:\n" + "\n".join(f"  {name}" for name in layers),
            file=sys.stderr,
            flush=True,
        )


def _tell_profile(run: RunDirectory, profiles: list[Profile]) -> None:
    if profiles:
        write_profile(run.store, profiles)
        print(f"rlabel: where the time went ({run.store.join(PROFILE)}):\n{profile_text(profiles)}", file=sys.stderr)


def _refuse_relative_paths_in_a_job(settings: LabelSettings) -> None:
    """A Ray job's working folder is a throw-away copy: labels written into it would be lost."""
    import os

    in_job = bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
    if in_job and "://" not in settings.out and not os.path.isabs(settings.out):
        raise UsageError(
            f"--out {settings.out}: relative, but a Ray job runs in a copy of the working folder that is thrown away. Give an absolute path or URL."
        )


def _print_plan(job: LabelJob) -> None:
    from rlabel.regiongpt.assembly import load_processor
    from rlabel.regiongpt.quantization import count_parameters
    from rlabel.run.questions import example_question

    settings, plan, unit = job.settings, job.plan, job.manifest.unit
    prompt = load_processor(str(job.model)).prompt(example_question(settings))
    parameters = count_parameters(job.model)
    language = parameters.get("language_model", 0)
    print(f"task              {settings.task}" + (f", {settings.mode}" if settings.task == "classify" else ""))
    print(f"images            {plan.num_images}")
    print(f"{unit:17s} {plan.num_regions}")
    print(f"shards            {plan.num_shards} (at most {settings.images_per_shard} images each)")
    if job.vocabulary is not None:
        print(f"categories        {len(job.vocabulary.categories)} ({job.vocabulary.name})")
    print(
        f"model             {job.model.name}: "
        + ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in parameters.items())
    )
    print(f"prompt            {prompt.text!r}")
    if settings.task != "refer" and settings.mode == "separate":
        tokens = plan.num_images * len(prompt.prefix_ids) + plan.num_regions * (len(prompt.suffix_ids) + 4)
        print(
            f"prompt tokens     {len(prompt.prefix_ids)} an image, shared by its {unit}, and {len(prompt.suffix_ids)} a {unit[:-1]}"
        )
        print(
            f"language model    about {tokens} tokens, {2 * language * tokens / 1e12:.3f} TFLOP (4 answer tokens a {unit[:-1]} assumed)"
        )
    print(f"on disk           about {plan.num_regions * 900 / 1e6:.1f} MB of shards and as much again of answers")
    print(f"time              {_time_estimate(job)}")


def _time_estimate(job: LabelJob) -> str:
    status = None
    try:
        run = RunDirectory.open(open_store(job.settings.out))
        from rlabel.run.status import read_status

        status = read_status(run.store)
    except RlabelError:
        pass
    if status is not None and status.regions_per_s:
        left = (status.regions_total - status.regions_done) / status.regions_per_s
        return f"{left / 3600:.2f} h for what is left, at the {status.regions_per_s:.1f} {status.unit}/s this run had ({heartbeat(status)})"
    return "unknown until a run has begun: label a part with --limit into another --out, its last line gives the rate"


def open_store(url: str) -> Any:
    from rlabel.storage import Store

    return Store.open(url)
