"""What `rlabel label --propose --dry-run` prints while the regions are not there: how many pictures, and what finding and labeling take."""

from __future__ import annotations

import sys

from rlabel.cli.dry_run import Measure, print_measured
from rlabel.cli.options import print_json
from rlabel.config import LabelSettings
from rlabel.errors import UsageError
from rlabel.run.job import check_files, check_model
from rlabel.run.proposals import REGIONS, plan_proposals, settings_of_proposals


def print_propose_plan(settings: LabelSettings, measure: Measure | None) -> None:
    """Print the plan of a run whose regions are yet to be found; with something to measure, find and label those of a sample.

    The last line is JSON. Writes nothing but a folder for temporary files, which is gone at the end.

    Raises InputError or UsageError for what the run itself would refuse, and as `propose_estimate.measured_job` does.
    """
    check_files(settings)
    model = check_model(settings)
    own = settings_of_proposals(settings)
    job = plan_proposals(own)
    pictures, most = len(job.records), len(job.records) * own.max_per_image
    print(f"task              {settings.task}" + (f", {settings.mode}" if settings.task == "classify" else ""))
    print(f"images            {pictures}")
    print(
        f"proposer          {job.proposer.kind}: at most {own.max_per_image} regions a picture, into {own.out}/{REGIONS}"
    )
    print(f"regions           unknown until they are found: at most {most}")
    print(f"shards            {job.manifest.plan.num_shards} of pictures (at most {own.images_per_shard} images each)")
    print(f"model             {model.folder.name}" + ("" if model.plain is None else f", {model.plain.family}"))
    if measure is None:
        print("time              unknown until something is found and labeled: add --measure 20", flush=True)
    found = None if measure is None else _measured(settings, measure, pictures)
    print_json(
        {
            "dry_run": True,
            "task": settings.task,
            "images": pictures,
            "regions": None,
            "regions_at_most": most,
            "proposer": job.proposer.kind,
            "shards": job.manifest.plan.num_shards,
            **(found or {}),
        }
    )


def _measured(settings: LabelSettings, measure: Measure, pictures: int) -> dict[str, object]:
    from rlabel.run.propose_estimate import measured_job

    if not pictures:
        raise UsageError(
            f"--measure {measure.num_images}: there is no picture to measure. Leave it out, or raise --limit."
        )
    print(
        f"rlabel: looking for regions in {min(measure.num_images, pictures)} of {pictures} images to measure; nothing is written",
        file=sys.stderr,
        flush=True,
    )
    with measured_job(settings, measure.num_images) as (job, sample):
        print(
            f"regions expected  {sample.regions_expected}: {sample.regions} in {sample.pictures} images"
            + (f", {sample.failures} of which failed" if sample.failures else "")
        )
        print(f"proposing         {sample.seconds_per_picture:.3g} s an image", flush=True)
        rows = print_measured(job, measure, sample)
    return {
        "regions_expected": sample.regions_expected,
        "proposing": {
            "images": sample.pictures,
            "regions": sample.regions,
            "failures": sample.failures,
            "load_s": round(sample.load_s, 3),
            "seconds_per_image": round(sample.seconds_per_picture, 4),
        },
        "measured": rows,
    }
