"""What `rlabel label --propose` will take: regions found in some of its pictures, in this process, to be labeled by `estimate.measure`."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rlabel.config import LabelSettings
from rlabel.errors import RunError
from rlabel.records import Shard
from rlabel.run.directory import RunDirectory
from rlabel.run.job import LabelJob, plan_job
from rlabel.run.manifest import plan_summary
from rlabel.run.proposals import REGIONS, merge_proposals, plan_proposals, settings_of_proposals, shards_of
from rlabel.run.propose_worker import ProposeWorker, propose_spec
from rlabel.storage import Store

_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposedSample:
    """What finding the regions of some pictures took. failures: pictures without an answer. of_pictures: of the whole run.

    device: what the proposer ran on, "cpu" or "cuda". load_s: until it is loaded, which every actor waits for once; propose_s: the sample after that.
    """

    pictures: int
    of_pictures: int
    regions: int
    failures: int
    device: str
    load_s: float
    propose_s: float

    @property
    def seconds_per_picture(self) -> float:
        return self.propose_s / max(self.pictures, 1)

    @property
    def regions_expected(self) -> int:
        """Return how many regions the whole run will have if its pictures are like the sample's."""
        return round(self.regions / max(self.pictures, 1) * self.of_pictures)


@contextmanager
def measured_job(settings: LabelSettings, num_images: int) -> Iterator[tuple[LabelJob, ProposedSample]]:
    """Give the job of labeling a sample's regions, and what finding them took. The pictures are drawn evenly, the same at every call.

    Raises as `plan_proposals` and `plan_job` do, and RunError where nothing is found.
    """
    own = settings_of_proposals(settings)
    job = plan_proposals(own)
    total = len(job.records)
    parts = min(num_images, total)
    draw = random.Random(_SEED)
    chosen = [draw.randrange(part * total // parts, (part + 1) * total // parts) for part in range(parts)]
    records = tuple(job.records[place] for place in chosen)
    shards = list(shards_of(records, own.images_per_shard))
    with tempfile.TemporaryDirectory(prefix="rlabel-measure-") as folder:
        run = RunDirectory.create_or_resume(Store.open(folder), replace(job.manifest, plan=plan_summary(shards)))
        started_s = time.perf_counter()
        worker = ProposeWorker(propose_spec(job, run))
        # The first picture of a process is slower: a decoder is started, memory asked for.
        worker.label_only(Shard(index=0, content_sha256="", images=records[:1]))
        ready_s = time.perf_counter()
        for shard in shards:
            worker.label_and_commit(shard)
        ended_s = time.perf_counter()
        counts, num_found = merge_proposals(run)
        if not num_found:
            raise RunError(
                f"--measure {num_images}: no regions were found in {len(records)} of {total} images, {counts.failures} of which failed. "
                "Measure more images."
            )
        sample = ProposedSample(
            pictures=len(records),
            of_pictures=total,
            regions=num_found,
            failures=counts.failures,
            device=str(getattr(worker.proposer, "device", "cpu")).partition(":")[0],
            load_s=ready_s - started_s,
            propose_s=ended_s - ready_s,
        )
        most = LabelSettings.model_fields["max_proposals"].default
        found = {"regions": run.store.join(REGIONS), "propose": None, "limit": None, "max_proposals": most}
        label = plan_job(settings.model_copy(update=found))
        with label.corpus:
            yield label, sample
