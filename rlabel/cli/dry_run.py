"""What `rlabel label --dry-run` prints: the plan, the exact prompt and what it will cost, estimated or measured."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlabel.cli.options import print_json
from rlabel.config import LabelSettings
from rlabel.errors import RlabelError, UsageError
from rlabel.records import JsonValue
from rlabel.run.directory import RunDirectory
from rlabel.run.job import LabelJob
from rlabel.run.progress import heartbeat
from rlabel.run.propose_estimate import ProposedSample
from rlabel.storage import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What to measure. num_images: of the sample. price_per_hour: of one GPU, or of one CPU where the model runs on those."""

    num_images: int
    precisions: Sequence[LabelSettings]
    price_per_hour: float | None


def asked_measure(
    settings: LabelSettings,
    dry_run: bool,
    num_images: int | None,
    precisions: str | None,
    price_per_hour: float | None,
) -> Measure | None:
    """Return what the options ask to be measured, None for nothing.

    Raises UsageError for options that do not go together, and as `estimate.settings_at` does.
    """
    if num_images is None:
        for flag, given in (("--measure-precisions", precisions), ("--price-per-hour", price_per_hour)):
            if given is not None:
                raise UsageError(f"{flag}: it belongs to --measure N. Add that, or leave it out.")
        return None
    if not dry_run:
        raise UsageError("--measure: it belongs to --dry-run. Add that, or leave it out.")
    from rlabel.run.estimate import settings_at

    names = [] if precisions is None else [name.strip() for name in precisions.split(",")]
    return Measure(num_images=num_images, precisions=settings_at(settings, names), price_per_hour=price_per_hour)


def print_plan(job: LabelJob, measure: Measure | None = None) -> None:
    """Print the plan and what it will take; with something to measure, label a sample for that. The last line is JSON. Writes nothing.

    Raises as `estimate.measure` does.
    """
    from rlabel.regiongpt.quantization import count_parameters

    settings, plan, unit = job.settings, job.plan, job.manifest.unit
    parameters = count_parameters(job.model)
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
    prompt = _print_prompt(job, parameters.get("language_model", 0))
    print(f"on disk           about {plan.num_regions * 900 / 1e6:.1f} MB of shards and as much again of answers")
    print(f"time              {_time_estimate(job, measure)}", flush=True)
    measured = [] if measure is None else print_measured(job, measure)
    print_json(
        {
            "dry_run": True,
            "task": settings.task,
            "images": plan.num_images,
            "regions": plan.num_regions,
            "unit": unit,
            "shards": plan.num_shards,
            "prompt": prompt,
            **({} if measure is None else {"measured": measured}),
        }
    )


def _print_prompt(job: LabelJob, language: int) -> str:
    """Print the prompt and return it; and of a RegionGPT, whose prompts are all of one length, what it costs. language: parameters of its language model."""
    settings, plan, unit = job.settings, job.plan, job.manifest.unit
    if job.plain is not None:
        print(f"family            {job.plain.family}, regions shown as {job.plain.region_as}")
        print(f"prompt            {job.plain.prompt!r}")
        return job.plain.prompt
    from rlabel.regiongpt.assembly import load_processor
    from rlabel.run.questions import example_question

    prompt = load_processor(str(job.model)).prompt(example_question(settings))
    print(f"prompt            {prompt.text!r}")
    if settings.task != "refer" and settings.mode == "separate":
        tokens = plan.num_images * len(prompt.prefix_ids) + plan.num_regions * (len(prompt.suffix_ids) + 4)
        print(
            f"prompt tokens     {len(prompt.prefix_ids)} an image, shared by its {unit}, and {len(prompt.suffix_ids)} a {unit[:-1]}"
        )
        print(
            f"language model    about {tokens} tokens, {2 * language * tokens / 1e12:.3f} TFLOP (4 answer tokens a {unit[:-1]} assumed)"
        )
    return prompt.text


def _time_estimate(job: LabelJob, measure: Measure | None) -> str:
    status = None
    try:
        run = RunDirectory.open(Store.open(job.settings.out))
        from rlabel.run.status import read_status

        status = read_status(run.store)
    except RlabelError:
        pass
    if status is not None and status.regions_per_s:
        left = (status.regions_total - status.regions_done) / status.regions_per_s
        return f"{left / 3600:.2f} h for what is left, at the {status.regions_per_s:.1f} {status.unit}/s this run had ({heartbeat(status)})"
    return "measured below" if measure is not None else "unknown until something is labeled: add --measure 20"


def print_measured(job: LabelJob, measure: Measure, proposing: ProposedSample | None = None) -> list[JsonValue]:
    """Label the sample at each precision, print a row for each, and return the rows for machines.

    proposing: where the job is of a sample's regions alone, what finding them took.
    """
    from rlabel.run import estimate

    unit = job.manifest.unit
    counts = ", ".join(str(number) for number in estimate.ACTORS)
    rows: list[JsonValue] = []
    print(
        f"rlabel: labeling {min(measure.num_images, job.plan.num_images)} images of the plan to measure; nothing is written",
        file=sys.stderr,
        flush=True,
    )
    for row in estimate.measure(job, measure.num_images, measure.precisions):
        if row.problem is not None:
            print(f"{row.precision:17s} not measured: {row.problem}", flush=True)
            rows.append(estimate.estimate_to_json(row, []))
            continue
        found = estimate.costs(row, job, measure.price_per_hour, proposing)
        kind = "GPU" if row.device.startswith("cuda") else "CPU"
        margin = "" if row.margin_s is None else f" +- {row.margin_s:.2g}"
        told: list[str] = [
            f"{row.seconds_per_region:.3g}{margin} s a {unit[:-1]}: {row.regions} {unit} of {row.images} images on {row.device}, "
            f"cpus_per_actor {job.settings.cpus_per_actor}; {row.load_s:.1f} s to load",
            f"{_in_a_row(one.hours * 60 for one in found)} min with {counts} actors"
            if found[0].hours < 1
            else f"{_in_a_row(one.hours for one in found)} h with {counts} actors",
            f"{_in_a_row(one.device_hours for one in found)} {kind}-hours",
        ]
        if measure.price_per_hour is not None:
            told.append(f"{_in_a_row(one.price or 0.0 for one in found)} to pay")
        if row.same_answers is not None:
            told.append(f"{row.same_answers:.1%} of the answers are those of the first row")
        if row.failures:
            told.append(f"{row.failures} {unit} of the sample failed")
        print(f"{row.precision:17s} " + ("\n" + " " * 18).join(told), flush=True)
        rows.append(estimate.estimate_to_json(row, found))
    return rows


def _in_a_row(values: Iterable[float]) -> str:
    """Return numbers as people read them: three digits, and no more places than that needs."""
    return ", ".join(f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values)
