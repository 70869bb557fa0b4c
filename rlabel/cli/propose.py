"""`rlabel propose`: regions of bare pictures, for `rlabel label` to read."""

from __future__ import annotations

import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from typing import Any

import click

from rlabel.cli.live import shown_live
from rlabel.cli.options import INTERRUPTED, Stopped, ends_cleanly, print_json, settings_options, stop_on_sigterm
from rlabel.config import LabelSettings, load_settings
from rlabel.errors import RlabelError, RunError, TooManyFailures, UsageError
from rlabel.memory import reuse_freed_memory_environment
from rlabel.proposing.models import looks_for_names
from rlabel.proposing.settings import EMBEDDED, ProposeSettings
from rlabel.run.directory import RunDirectory
from rlabel.run.lease import LeaseLost, driving
from rlabel.run.progress import RunProgress
from rlabel.run.proposals import REGIONS, ProposeJob, merge_proposals, plan_proposals
from rlabel.storage import Store


@click.command(context_settings={"max_content_width": 110})
@click.argument("pictures", metavar="[IMAGES]", required=False)
@settings_options(ProposeSettings)
@ends_cleanly
def propose(pictures: str | None, config: str | None, **flags: Any) -> None:
    """Find regions in bare pictures and write them as COCO without classes, which `rlabel label` reads.

    \b
    Example:
      rlabel propose photos/ --out regions/
      rlabel propose photos/ --proposer sam-vit-base/ --out regions/
      rlabel propose photos/ --proposer owlv2/ --vocabulary names.txt --out regions/
      rlabel label --images photos/ --regions regions/regions.json --vocabulary names.txt --out run/

    Run it again to continue where it stopped. Exit codes: 0 done, 1 stopped by an error, 2 wrong call, 3 too many failures, 130 interrupted.
    """
    if pictures is not None:
        if flags.get("images") not in (None, pictures):
            raise UsageError(f"--images {flags['images']}: got another folder, {pictures}, as well. Give one of them.")
        flags["images"] = pictures
    stop_on_sigterm()
    done = run_propose(load_settings(ProposeSettings, config, flags))
    print_json(done.report())
    done.check()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeDone:
    """What a run of `rlabel propose` wrote. file: path or URL of regions.json."""

    settings: ProposeSettings
    proposer: str
    file: str
    num_images: int
    num_failures: int
    num_found: int

    @property
    def has_too_many_failures(self) -> bool:
        return self.num_failures / max(self.num_images, 1) > self.settings.max_failure_rate

    def report(self) -> dict[str, Any]:
        """Return the machine-readable last line."""
        return {
            "run": self.settings.out,
            "task": "propose",
            "state": "done",
            "exit_code": 3 if self.has_too_many_failures else 0,
            "proposer": self.proposer,
            "images": self.num_images,
            "failures": self.num_failures,
            "regions": self.num_found,
            "file": self.file,
        }

    def check(self) -> None:
        """Raise TooManyFailures where more pictures failed than the settings allow."""
        if self.has_too_many_failures:
            raise TooManyFailures(
                f"{self.settings.out}: {self.num_failures} of {self.num_images} pictures failed; at most {self.settings.max_failure_rate:.1%} are "
                "allowed. Their reasons are in failures.jsonl. Mend the input, or raise --max-failure-rate."
            )


def proposed_first(proposer: str, config: str | None, flags: dict[str, Any]) -> LabelSettings:
    """Find the regions that `rlabel label --propose` labels, beside its run, and return its settings with their file.

    What is wrong with the labeling itself is said first. Raises what `run_propose` does, and TooManyFailures.
    """
    if flags.get("regions") is not None:
        raise UsageError(f"--regions {flags['regions']}: got --propose, which finds them, as well. Give one of them.")
    # Until they are found the place of the regions is not known.
    label = load_settings(LabelSettings, config, {**flags, "regions": REGIONS})
    from rlabel.run.job import check_files

    check_files(label, with_regions=False)
    values = label.model_dump()
    shared = {name: values[name] for name in ProposeSettings.model_fields.keys() & values.keys()}
    shared |= {
        "out": f"{label.out.rstrip('/')}-regions",
        "proposer": proposer,
        "vocabulary": label.vocabulary if looks_for_names(proposer) else None,
    }
    settings = load_settings(ProposeSettings, None, shared)
    if Store.open(settings.out).url == Store.open(label.images).url:
        raise UsageError(f"--out {label.out}: its regions would lie in --images {label.images}. Give another --out.")
    done = run_propose(settings)
    done.check()
    return label.model_copy(update={"regions": done.file})


def run_propose(settings: ProposeSettings) -> ProposeDone:
    """Plan, propose and merge; what `rlabel propose` and `rlabel label --propose` do once they have their settings."""
    job = plan_proposals(settings)
    store = Store.open(settings.out)
    if not settings.no_ray and store.is_process_private:
        raise UsageError(
            f"--out {settings.out}: a store that lives in one process cannot hold a run of several. Use a disk or an object store."
        )
    store.check_can_commit()
    run = RunDirectory.create_or_resume(store, job.manifest)
    with ExitStack() as stack:
        lease = stack.enter_context(driving(run, settings.driver_expiry_s))
        progress = RunProgress(run, settings.heartbeat_s, lease)
        if lease is not None:
            progress.write("running")
        try:
            with shown_live(progress):
                _propose(job, run, progress)
            progress.check()
            counts, num_found = merge_proposals(run)
            run.tidy()
        except (KeyboardInterrupt, Stopped):
            progress.write("stopped", INTERRUPTED, "interrupted; the same command goes on")
            raise
        except LeaseLost:
            progress.give_up()
            raise
        except Exception as error:
            progress.write("failed", error.exit_code if isinstance(error, RlabelError) else 1, str(error))
            raise
        done = ProposeDone(
            settings=settings,
            proposer=job.proposer.name,
            file=store.join(REGIONS),
            num_images=counts.images,
            num_failures=counts.failures,
            num_found=num_found,
        )
        message = f"{num_found} regions, {counts.failures} failures in {counts.images} pictures: {done.file}"
        progress.write("done", 3 if done.has_too_many_failures else 0, message)
        print(f"rlabel: {message}", file=sys.stderr, flush=True)
        return done


def _propose(job: ProposeJob, run: RunDirectory, progress: RunProgress) -> None:
    from rlabel.run.propose_worker import ProposeWorker, propose_spec

    settings = job.settings
    if len(run.committed()) == run.num_shards:
        print(f"rlabel: {settings.out}: all {run.num_shards} shards are there already", file=sys.stderr)
        return
    spec = propose_spec(job, run)
    if settings.no_ray:
        from rlabel.run.local import label_in_process

        label_in_process(run, job.shards(), lambda: ProposeWorker(spec), progress, settings.max_attempts)
        return
    from rlabel.cluster.metrics import measured
    from rlabel.cluster.pool import PoolOptions, ShardPool, choose_actors
    from rlabel.cluster.session import ray_session

    gpus_wanted = 0.0 if settings.proposer == EMBEDDED else settings.gpus_per_actor
    # Ray tells of dead workers on stdout, whatever it is told; stdout is for results.
    with (
        redirect_stdout(sys.stderr),
        ray_session(settings.address, max(settings.num_actors, 1) * settings.cpus_per_actor) as ray,
    ):
        num_actors, gpus = choose_actors(ray, settings.num_actors, gpus_wanted, settings.cpus_per_actor)
        options = PoolOptions(
            num_actors=min(num_actors, max(1, run.num_shards)),
            most_actors=0 if settings.num_actors else run.num_shards,
            gpus_per_actor=gpus,
            cpus_per_actor=settings.cpus_per_actor,
            max_attempts=settings.max_attempts,
            shard_timeout_s=settings.shard_timeout_s,
            wait_for_actors_s=settings.wait_for_actors_s,
            environment=reuse_freed_memory_environment() if gpus == 0 else {},
        )
        pool = ShardPool(ray, measured(ProposeWorker), (spec,), run, options)
        progress.actors = pool.status
        pool.label(job.shards(), progress.beat)
    if len(run.committed()) != run.num_shards:
        raise RunError(
            f"{settings.out}: {run.num_shards - len(run.committed())} shards are missing at the end. Run the same command again."
        )
