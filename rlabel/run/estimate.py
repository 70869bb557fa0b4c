"""What a run will take, measured: some of its pictures labeled in this process, nothing written. Knows nothing of Ray or prices' currencies."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any

from rlabel.config import LabelSettings
from rlabel.errors import RlabelError, RunError, UsageError
from rlabel.records import (
    Abstention,
    Caption,
    Failure,
    ImageRecord,
    JsonObject,
    Label,
    Outcome,
    QueryFailure,
    Referral,
    Relation,
    Shard,
)
from rlabel.run.attempts import in_words
from rlabel.run.job import LabelJob
from rlabel.storage import StoreDown

if TYPE_CHECKING:
    from rlabel.run.propose_estimate import ProposedSample
    from rlabel.run.worker import LabelWorker

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "nf4")
ACTORS = (1, 2, 4, 8)
_QUANTIZED = ("int8", "nf4")
_SEED = 0
_LEAST_SHARDS = 3  # fewer times say nothing of how far they spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What labeling the sample took at one precision.

    device: what the model ran on, "cpu" or "cuda". load_s: until the first answer, which every actor waits for once; label_s: the sample after that.
    regions: of the sample; pairs or expressions where those are asked. margin_s: half the width of the 95 % interval of the seconds a region, by how far
    the sample's shards differ; None of fewer than three. same_answers: share of answers equal to those of the first precision.
    problem: why nothing could be measured; the numbers are 0 then.
    """

    precision: str
    device: str = "cpu"
    load_s: float = 0.0
    label_s: float = 0.0
    images: int = 0
    regions: int = 0
    failures: int = 0
    margin_s: float | None = None
    same_answers: float | None = None
    problem: str | None = None

    @property
    def seconds_per_region(self) -> float:
        return self.label_s / self.regions if self.regions else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What so many actors take for the whole plan. device_hours: of GPUs, or of CPUs where the model runs on those. price: None without a price an hour."""

    actors: int
    hours: float
    device_hours: float
    price: float | None


def settings_at(settings: LabelSettings, precisions: Sequence[str]) -> list[LabelSettings]:
    """Return the settings at each of some precisions, of PRECISIONS; int8 and nf4 keep --dtype. None named gives the settings as they are.

    Raises UsageError for an unknown or repeated one, and where other settings do not go with one.
    """
    if not precisions:
        return [settings]
    wrong = [name for name in precisions if name not in PRECISIONS]
    if wrong or len(set(precisions)) < len(precisions):
        raise UsageError(
            f"--measure-precisions {','.join(precisions)}: expected some of {', '.join(PRECISIONS)}, each once and separated by commas"
            + (f", got {wrong[0]!r}." if wrong else ".")
        )
    changed = []
    for name in precisions:
        change = {"quantization": name} if name in _QUANTIZED else {"quantization": "none", "dtype": name}
        one = settings.model_copy(update=change)
        one.check()
        changed.append(one)
    return changed


def precision_name(settings: LabelSettings) -> str:
    """Return what a row of the estimate is called: `float32`, or `nf4, bfloat16`."""
    return settings.dtype if settings.quantization == "none" else f"{settings.quantization}, {settings.dtype}"


def sample(job: LabelJob, num_images: int) -> list[ImageRecord]:
    """Return images of the plan, in its order: one drawn from each of so many parts of equal length, the same at every call; all of a smaller plan."""
    total = job.plan.num_images
    parts = min(num_images, total)
    draw = random.Random(_SEED)
    chosen = [draw.randrange(part * total // parts, (part + 1) * total // parts) for part in range(parts)]
    return list(_at(job.shards(), chosen))


def _at(shards: Iterator[Shard], places: Sequence[int]) -> Iterator[ImageRecord]:
    """Yield the images at some places of the plan, in rising order; what comes after the last one is not read."""
    wanted = iter(places)
    place = next(wanted, None)
    first = 0
    for shard in shards:
        while place is not None and place < first + len(shard.images):
            yield shard.images[place - first]
            place = next(wanted, None)
        if place is None:
            return
        first += len(shard.images)


def measure(job: LabelJob, num_images: int, precisions: Sequence[LabelSettings]) -> Iterator[Measured]:
    """Yield what labeling a sample of the plan takes at each precision, one model in memory after the other. Pictures are read as by a run.

    A precision that cannot be had here is a row with its problem. Raises UsageError where the sample holds nothing to label, RunError where nothing could
    be measured at all, StorageError where the pictures cannot be read.
    """
    images = sample(job, num_images)
    if not any(image.keys for image in images):
        raise UsageError(
            f"--measure {num_images}: none of the {len(images)} images drawn from {job.plan.num_images} has {job.manifest.unit} to label. "
            "Measure more images."
        )
    size = job.settings.images_per_shard
    shards = [
        Shard(index=start // size, content_sha256="", images=tuple(images[start : start + size]))
        for start in range(0, len(images), size)
    ]
    first: list[str | None] | None = None
    done: list[Measured] = []
    for settings in precisions:
        try:
            row, answers = _measured(job, settings, shards, first)
            first = first or answers
        except StoreDown:
            raise
        except Exception as error:  # a precision that this machine cannot do says nothing of the others
            if len(precisions) == 1 and isinstance(error, RlabelError):
                raise
            problem = str(error) if isinstance(error, RlabelError) else in_words(error)
            row = Measured(precision=precision_name(settings), problem=problem)
        gc.collect()  # the model before the next one is loaded
        done.append(row)
        yield row
    if all(row.problem is not None for row in done):
        raise RunError(f"--measure {num_images}: nothing could be measured. {done[0].problem}")


def costs(
    row: Measured, job: LabelJob, price_per_hour: float | None, proposing: ProposedSample | None = None
) -> list[Cost]:
    """Return what the whole plan takes with each number of actors of ACTORS, each with a device of its own as fast as the one that was measured.

    price_per_hour: of one GPU, or of one CPU where the model runs on those. proposing: of a job of a sample alone, whose whole has its regions yet
    to be found: that takes hours, too, and hours of devices where they are of the same kind.
    """
    settings = job.settings
    regions, shards = job.plan.num_regions, job.plan.num_shards
    if proposing is not None:
        regions, shards = proposing.regions_expected, ceil(proposing.of_pictures / settings.images_per_shard)
    devices = float(settings.cpus_per_actor)
    if row.device.startswith("cuda"):
        devices = settings.gpus_per_actor if settings.gpus_per_actor > 0 else 1.0
    found = []
    for actors in ACTORS:
        busy = max(1, min(actors, shards))  # an actor without a shard is not started
        hours = (row.load_s + row.seconds_per_region * regions / busy) / 3600
        used = hours * busy * devices
        if proposing is not None:
            before = (proposing.load_s + proposing.seconds_per_picture * proposing.of_pictures / busy) / 3600
            hours += before
            if proposing.device == row.device.partition(":")[0]:
                used += before * busy * devices
        price = None if price_per_hour is None else used * price_per_hour
        found.append(Cost(actors=actors, hours=hours, device_hours=used, price=price))
    return found


def estimate_to_json(row: Measured, found: Sequence[Cost]) -> JsonObject:
    """Return one row of the estimate for machines; seconds and hours to four significant digits."""
    if row.problem is not None:
        return {"precision": row.precision, "problem": row.problem}
    kind = "gpu_hours" if row.device.startswith("cuda") else "cpu_hours"
    return {
        "precision": row.precision,
        "device": row.device,
        "images": row.images,
        "regions": row.regions,
        "failures": row.failures,
        "load_s": _short(row.load_s),
        "seconds_per_region": _short(row.seconds_per_region),
        "margin_s": None if row.margin_s is None else _short(row.margin_s),
        "same_answers": row.same_answers,
        "actors": [
            {
                "actors": one.actors,
                "hours": _short(one.hours),
                kind: _short(one.device_hours),
                **({} if one.price is None else {"cost": _short(one.price)}),
            }
            for one in found
        ],
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _measured(
    job: LabelJob, settings: LabelSettings, shards: Sequence[Shard], first: Sequence[str | None] | None
) -> tuple[Measured, list[str | None]]:
    """Return the row of one precision, and the answers. first: those of the first precision."""
    from rlabel.run.worker import LabelWorker, worker_spec

    started_s = time.perf_counter()
    # Where the time went is not recorded: nothing is there to write it into.
    own = replace(job, settings=settings.model_copy(update={"profile": False}))
    worker = LabelWorker(worker_spec(own, None))
    # The first answer of a process is slower: kernels are loaded, memory is asked for. Every actor pays that once.
    warm = next(image for shard in shards for image in shard.images if image.keys)
    worker.label_only(Shard(index=0, content_sha256="", images=(warm,)))
    load_s = time.perf_counter() - started_s
    times, outcomes = _label(worker, shards)
    failures = [one for one in outcomes if isinstance(one, Failure | QueryFailure)]
    if len(failures) == len(outcomes):
        raise RunError(f"all {len(failures)} {job.manifest.unit} of the sample failed; the first: {failures[0].reason}")
    answers = [_said(outcome) for outcome in outcomes]
    row = Measured(
        precision=precision_name(settings),
        device=worker.device,
        load_s=load_s,
        label_s=sum(times),
        images=sum(shard.num_images for shard in shards),
        regions=len(outcomes),
        failures=len(failures),
        margin_s=_margin(times, [shard.num_regions for shard in shards]),
        same_answers=None
        if first is None
        else sum(one == other for one, other in zip(answers, first, strict=True)) / len(first),
    )
    return row, answers


def _label(worker: LabelWorker, shards: Sequence[Shard]) -> tuple[list[float], list[Outcome]]:
    """Return the seconds of each shard and what became of all regions; the next shard is prepared meanwhile, as in a run."""

    def finished(work: Any) -> tuple[float, tuple[Outcome, ...]]:
        result = work.result()
        return time.perf_counter(), result.outcomes

    started_s = time.perf_counter()
    waiting: list[Future[tuple[float, tuple[Outcome, ...]]]] = []
    begun = [worker.begin(shards[0])]
    with ThreadPoolExecutor(1, thread_name_prefix="finish") as pool:
        try:
            for shard in [*shards[1:], None]:
                if shard is not None:
                    begun.append(worker.begin(shard))
                begun[0].answer()
                waiting.append(pool.submit(finished, begun.pop(0)))
        finally:
            for work in begun:
                work.close()
        ended = [one.result() for one in waiting]
    ends = [started_s, *(end_s for end_s, _ in ended)]
    return [later - earlier for earlier, later in pairwise(ends)], [one for _, outcomes in ended for one in outcomes]


def _margin(times_s: Sequence[float], regions: Sequence[int]) -> float | None:
    """Return half the width of the 95 % interval of the ratio of the sums: of a ratio estimator, by Student's t (Cochran, Sampling Techniques, 6.4)."""
    from scipy.stats import t

    count = len(times_s)
    if count < _LEAST_SHARDS:
        return None
    ratio = sum(times_s) / sum(regions)
    squares = sum((time_s - ratio * own) ** 2 for time_s, own in zip(times_s, regions, strict=True))
    return float(t.ppf(0.975, count - 1) * (squares / (count * (count - 1))) ** 0.5 / (sum(regions) / count))


def _said(outcome: Outcome) -> str | None:
    """Return the model's own answer, to compare; None where there is none."""
    match outcome:
        case Relation():
            return outcome.predicate
        case Referral():
            return outcome.chosen.key
        case Label() | Caption() | Abstention():
            return outcome.text
    return None
