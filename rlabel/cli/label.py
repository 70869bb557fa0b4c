"""`rlabel label`: the main job."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import click

from rlabel.cli.dry_run import Measure, asked_measure, print_plan
from rlabel.cli.live import shown_live
from rlabel.cli.numbers import FiniteRange
from rlabel.cli.options import INTERRUPTED, Stopped, ends_cleanly, print_json, settings_options, stop_on_sigterm
from rlabel.cli.propose import ProposeDone, proposals_are_there, propose_first
from rlabel.cli.propose_plan import print_propose_plan
from rlabel.cli.regions_in import regions_as_coco
from rlabel.cluster.session import import_ray
from rlabel.config import LabelSettings, load_settings
from rlabel.errors import RlabelError, TooManyFailures, UsageError
from rlabel.proposing.settings import EMBEDDED
from rlabel.run.directory import RunDirectory
from rlabel.run.first_look import check_pictures
from rlabel.run.job import LabelJob, open_run, plan_job
from rlabel.run.lease import LeaseLost, driving
from rlabel.run.merge import answers_file
from rlabel.run.profile import PROFILE, profile_text, write_profile
from rlabel.run.progress import RunProgress
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
@settings_options(LabelSettings, {"propose": EMBEDDED})
@click.option("--dry-run", is_flag=True, help="Print the plan, the exact prompt and the estimated cost; write nothing.")
@click.option(
    "--measure",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="With --dry-run: label N images drawn evenly from the plan in this process, and count hours and GPU-hours from that.",
)
@click.option(
    "--measure-precisions",
    metavar="LIST",
    help="With --measure: once at each of float32, bfloat16, float16, int8, nf4, separated by commas.",
)
@click.option(
    "--price-per-hour",
    type=FiniteRange(min=0),
    help="With --measure: of one GPU (of one CPU where the model runs on those), to say what the run costs.",
)
@ends_cleanly
def label(
    config: str | None,
    dry_run: bool,
    measure: int | None,
    measure_precisions: str | None,
    price_per_hour: float | None,
    **flags: Any,
) -> None:
    """Label every region of a corpus: a category with a score, an abstention, or a failure with its reason.

    \b
    Example:
      rlabel label --images photos/ --regions masks.json --vocabulary names.txt --out run/
      rlabel label --images yolo/images/ --regions yolo/ --vocabulary names.txt --out run/
      rlabel label --images photos/ --propose --vocabulary names.txt --out run/
      rlabel label --task caption --images photos/ --regions masks.json --out captions/
      rlabel label --task relate --images photos/ --regions masks.json --pairs pairs.json --out relations/
      rlabel label --task refer --images photos/ --regions masks.json --expressions said.json --out referred/
      rlabel label --config label.yaml --dry-run --measure 20 --measure-precisions float32,bfloat16 --price-per-hour 2.5

    Run it again to continue where it stopped. Exit codes: 0 done, 1 stopped by an error, 2 wrong call, 3 too many failures, 130 interrupted.
    """
    settings = load_settings(LabelSettings, config, flags)
    asked = asked_measure(settings, dry_run, measure, measure_precisions, price_per_hour)
    run_label(settings, dry_run=dry_run, measure=asked)


def run_label(settings: LabelSettings, *, dry_run: bool = False, measure: Measure | None = None) -> None:
    """Find regions where that is asked, plan, label, merge and report; what `rlabel label` and the jobs do once they have their settings.

    measure: of a dry run, what to measure.
    """
    stop_on_sigterm()
    _refuse_relative_paths_in_a_job(settings)
    proposed: ProposeDone | None = None
    if settings.propose is not None:
        if dry_run and not proposals_are_there(settings):
            print_propose_plan(settings, measure)
            return
        proposed = None if dry_run else propose_first(settings)
    with regions_as_coco(settings, dry_run=dry_run, measure=measure) as known:
        _plan_and_label(known, dry_run=dry_run, measure=measure, proposed=proposed)


def _plan_and_label(
    settings: LabelSettings, *, dry_run: bool, measure: Measure | None, proposed: ProposeDone | None
) -> None:
    job = plan_job(settings, meanwhile=None if dry_run or settings.no_ray else import_ray)
    with job.corpus, ExitStack() as stack:
        if dry_run:
            print_plan(job, measure)
            return
        check_pictures(job)
        if settings.no_ray:  # under Ray the actors' nodes are asked, not this one
            from rlabel.regiongpt.devices import usable_device

            usable_device(settings.device)
        run = open_run(job, under_ray=not settings.no_ray)
        lease = stack.enter_context(driving(run, settings.driver_expiry_s))
        progress = RunProgress(run, settings.heartbeat_s, lease)
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
        if lease is not None:
            progress.write("running")
        try:
            with shown_live(progress):
                _label(job, run, progress)
            progress.check()
            counts = run.merge(results_files=settings.results_files)
            run.tidy()
            also = _snap_also(job, run)
        except (KeyboardInterrupt, Stopped):
            progress.write("stopped", INTERRUPTED, "interrupted; the same command goes on")
            raise
        except LeaseLost:  # the run is another driver's now, and so is its status
            progress.give_up()
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
                **({} if proposed is None else proposed.beside_labels()),
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
    from rlabel.cluster.job import do_shards

    pool = do_shards(job.settings, LabelWorker, spec, run, job.shards(), progress, profile=job.settings.profile)
    _tell_quantized(pool.worker_notes)
    _tell_profile(run, pool.profiles)


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
            embedder=embedder_name(settings.embedder, settings.embedder_dtype),
            fallback=settings.fallback,
            thesaurus_sha256=thesaurus_digest(settings.thesaurus),
        )
        for vocabulary, where in zip(job.also, also_folders(settings.out, job.also), strict=True)
    ]
    return snap_jobs(
        run,
        jobs,
        settings.embedder,
        embedder_dtype=settings.embedder_dtype,
        thesaurus=settings.thesaurus,
        results_files=settings.results_files,
        heartbeat_s=settings.heartbeat_s,
        driver_expiry_s=settings.driver_expiry_s,
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
