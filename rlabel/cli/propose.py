"""`rlabel propose`: regions of bare pictures, for `rlabel label` to read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import click

from rlabel.cli.live import shown_live
from rlabel.cli.options import INTERRUPTED, Stopped, ends_cleanly, print_json, settings_options, stop_on_sigterm
from rlabel.config import LabelSettings, load_settings
from rlabel.errors import RlabelError, TooManyFailures, UsageError
from rlabel.proposing.settings import EMBEDDED, ProposeSettings
from rlabel.run.directory import MANIFEST, RunDirectory
from rlabel.run.lease import LeaseLost, driving
from rlabel.run.merge import FAILURES
from rlabel.run.progress import RunProgress
from rlabel.run.proposals import REGIONS, ProposeJob, merge_proposals, plan_proposals, settings_of_proposals
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

    def beside_labels(self) -> dict[str, Any]:
        """Return what the last line of `rlabel label --propose` says of it; the reasons of pictures that failed are only in its own run."""
        return {"proposed": self.file, **({"pictures_failed": self.num_failures} if self.num_failures else {})}

    def check(self) -> None:
        """Raise TooManyFailures where more pictures failed than the settings allow."""
        if self.has_too_many_failures:
            raise TooManyFailures(
                f"{self.settings.out}: {self.num_failures} of {self.num_images} pictures failed; at most {self.settings.max_failure_rate:.1%} are "
                "allowed. Their reasons are in failures.jsonl. Mend the input, or raise --max-failure-rate."
            )


def propose_first(label: LabelSettings) -> ProposeDone:
    """Find the regions that `rlabel label --propose` labels, beside its run; what is there already is not found again.

    What is wrong with the labeling itself, its model among it, is said first. Raises what `run_propose` does, and TooManyFailures.
    """
    from rlabel.run.job import check_files, check_model_apart

    check_files(label)
    if not proposals_are_there(label):
        check_model_apart(label)  # not after hours of looking for regions
    with in_words_of_label():
        done = run_propose(settings_of_proposals(label))
    done.check()
    return done


def proposals_are_there(settings: LabelSettings) -> bool:
    """Return whether the regions of `rlabel label --propose` have been found already. Writes nothing.

    Raises UsageError where those that are there were found with other settings, as the run itself would.
    """
    own = settings_of_proposals(settings)
    store = Store.open(own.out)
    if not store.exists(MANIFEST):
        return False
    with in_words_of_label():
        RunDirectory.create_or_resume(store, plan_proposals(own).manifest)
    return store.exists(REGIONS)


@contextmanager
def in_words_of_label() -> Iterator[None]:
    """Name the flags of `rlabel label` where a run of proposals is refused for its settings, which have other names there."""
    try:
        yield
    except UsageError as error:
        text = str(error)
        for name, flag in (("max_per_image", "--max-proposals"), ("proposer", "--propose")):
            text = text.replace(f"settings.{name}:", f"settings.{name} ({flag}):")
        raise UsageError(text) from error


def run_propose(settings: ProposeSettings) -> ProposeDone:
    """Plan, propose and merge; what `rlabel propose` and `rlabel label --propose` do once they have their settings."""
    job = plan_proposals(settings)
    if job.others:
        few = ", ".join(job.others[:3]) + (", ..." if len(job.others) > 3 else "")
        print(
            f"rlabel: {settings.images}: left out, no pictures by their names: {few} ({len(job.others)} in all)",
            file=sys.stderr,
        )
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
        if counts.failures:
            message += f"; the reasons are in {store.join(FAILURES)}"
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
    from rlabel.cluster.job import do_shards

    # The embedded proposer has nothing to do on one.
    gpus = 0.0 if settings.proposer == EMBEDDED else None
    do_shards(settings, ProposeWorker, spec, run, job.shards(), progress, gpus_per_actor=gpus)
