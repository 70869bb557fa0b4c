"""What finds regions for a run: one call a shard, committed by itself. Ray wraps it; --no-ray calls it directly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rlabel.corpus.decoding import IN_PROCESS, Decoder
from rlabel.corpus.images import BadImage, open_image
from rlabel.corpus.isolation import IsolatedDecoders
from rlabel.corpus.limits import Limits
from rlabel.memory import MemoryKeeper, reuse_freed_memory
from rlabel.proposing.found import kept
from rlabel.proposing.models import ProposerPlan, make_proposer
from rlabel.proposing.settings import ProposeSettings
from rlabel.records import Failure, ImageRecord, JsonObject, Outcome, Proposals, Proposed, Shard, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.run.proposals import ProposeJob
from rlabel.run.records_io import check_complete
from rlabel.storage import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeSpec:
    """All a worker needs, small enough to send: no weights, no pictures."""

    settings: ProposeSettings
    proposer: ProposerPlan
    run: RunDirectory | None  # None: nothing is committed


class ProposeWorker:
    """Holds one proposer and the run it works for."""

    shards_at_once: ClassVar[int] = 1

    def __init__(self, spec: ProposeSpec) -> None:
        """Load the model, if there is one. Raises InputError when it cannot be loaded, RunError where no decoder can be started."""
        settings = spec.settings
        self.decoder: Decoder = IN_PROCESS
        decoders = IsolatedDecoders() if settings.isolate_decoders else None
        reuse_freed_memory(in_new_threads=True)
        self.memory = MemoryKeeper()
        self.proposer = make_proposer(spec.proposer, settings)
        self.keeping = spec.proposer.keeping
        self.limits = Limits(max_pixels=settings.max_pixels, max_file_bytes=settings.max_file_bytes)
        if decoders is not None:
            decoders.check()
            self.decoder = decoders
        self.images = Store.open(settings.images)
        self.run = spec.run
        self.name = spec.proposer.name

    def describe(self) -> tuple[str, ...]:
        """Return nothing; the call by which a pool learns that the model is loaded."""
        return ()

    def profile(self) -> None:
        return None

    def begin(self, shard: Shard) -> _InWork:
        """Return a shard in work."""
        return _InWork(self, shard)

    def label_only(self, shard: Shard) -> ShardResult:
        """Return a shard's result without committing it."""
        self.memory.tidy()
        rows: list[JsonObject] = []
        outcomes: list[Outcome] = []
        for record in shard.images:
            outcome = self._picture(record)
            outcomes.append(outcome)
            size = {"height": outcome.height_px, "width": outcome.width_px} if isinstance(outcome, Proposals) else {}
            rows.append({**record.row, **size})
        result = ShardResult(index=shard.index, images=tuple(rows), outcomes=tuple(outcomes))
        check_complete(shard, result)
        return result

    def label_and_commit(self, shard: Shard) -> int:
        """Do a shard and commit it; return its number of pictures."""
        result = self.label_only(shard)
        assert self.run is not None
        self.run.commit(result)
        return shard.num_regions

    def _picture(self, record: ImageRecord) -> Outcome:
        whole, image_id = record.regions[0], record.row.get("id")
        try:
            if record.file_name is None:
                raise BadImage("the image row has no usable file_name")
            picture = open_image(self.images, record.file_name, self.limits, self.decoder)
            height, width = picture.shape[:2]
            if (record.height_px or height, record.width_px or width) != (height, width):
                raise BadImage(
                    f"the upright picture is {width} x {height} pixels (width x height), its row says {record.width_px} x {record.height_px}; "
                    "correct the row, or leave its width and height out"
                )
        except BadImage as error:
            reason = f"{record.file_name or f'image id {image_id}'}: {error}."
            return Failure(region=whole, image_id=image_id, kind="image", reason=reason)
        found = kept(self.proposer.propose(picture, record), self.keeping, height, width)
        return Proposals(
            region=whole,
            image_id=image_id,
            proposer=self.name,
            height_px=height,
            width_px=width,
            found=tuple(
                Proposed(box_xywh=one.box_xywh, area_px=one.area_px, segmentation=one.rle, score=one.score)
                for one in found
            ),
        )


class _InWork:
    """A shard that nothing is prepared of."""

    def __init__(self, worker: ProposeWorker, shard: Shard) -> None:
        self._worker, self._shard = worker, shard
        self._result: ShardResult | None = None

    def answer(self) -> None:
        self._result = self._worker.label_only(self._shard)

    def result(self) -> ShardResult:
        assert self._result is not None
        return self._result

    def close(self) -> None:
        return None


def propose_spec(job: ProposeJob, run: RunDirectory) -> ProposeSpec:
    """Return what a worker needs of a planned job, its paths absolute: workers run in other folders than the command."""
    settings: Any = job.settings.model_copy(update={"images": Store.open(job.settings.images).url})
    return ProposeSpec(settings=settings, proposer=replace(job.proposer), run=run)
