"""What an actor did, as metrics of Ray: regions, tokens, abstentions, failures, seconds of shards and of stages.

Ray exports them from each node for Prometheus, under names that begin with `ray_rlabel_`; without its dashboard's agents they go nowhere and cost
microseconds a shard. Labels and runs do not hang on them. Without Ray there are none.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any, TypeVar, cast

from rlabel.records import Abstention, Failure, QueryFailure, Shard, ShardResult
from rlabel.spans import own_seconds, start_recording

_SHARD_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]
_RUN_ID_LENGTH = 12
_W = TypeVar("_W", bound=type)


class WorkerMetrics:
    """The metrics of one actor. run_id: the beginning of the run's fingerprint, a tag of each. May be used by several threads at once."""

    def __init__(self, run_id: str) -> None:
        from ray.util import metrics

        def counter(name: str, description: str, *more_tags: str) -> Any:
            made = metrics.Counter(f"rlabel_{name}", description, tag_keys=("run", *more_tags))
            made.set_default_tags({"run": run_id})
            return made

        self.regions = counter("regions", "Regions, pairs or expressions that have an outcome.")
        self.tokens = counter("tokens", "Tokens of answers.")
        self.abstentions = counter("abstentions", "Regions whose answer no category is near enough to.")
        self.failures = counter("failures", "Regions that could not be labeled.", "kind")
        self.stage_seconds = counter("stage_seconds", "Seconds in a stage, on the host's clock.", "stage")
        self.shard_seconds = metrics.Histogram(
            "rlabel_shard_seconds", "Seconds of a shard in an actor.", boundaries=_SHARD_SECONDS, tag_keys=("run",)
        )
        self.shard_seconds.set_default_tags({"run": run_id})
        self._lock = threading.Lock()
        self._seconds_told: dict[str, float] = {}
        if own_seconds() is None:  # else --profile records already, and more
            start_recording(num_kept=0)

    def count(self, result: ShardResult, seconds: float) -> None:
        """Count what became of a shard, and what its stages took since the last one."""
        outcomes = result.outcomes
        evidence = [getattr(outcome, "evidence", None) for outcome in outcomes]
        _add(self.regions, len(outcomes))
        _add(self.tokens, sum(one.num_tokens for one in evidence if one is not None))
        _add(self.abstentions, sum(isinstance(outcome, Abstention) for outcome in outcomes))
        kinds = Counter(outcome.kind for outcome in outcomes if isinstance(outcome, Failure | QueryFailure))
        for kind, number in kinds.items():
            _add(self.failures, number, kind=kind)
        self.shard_seconds.observe(seconds)
        with self._lock:
            now = own_seconds() or {}
            new = {stage: total - self._seconds_told.get(stage, 0.0) for stage, total in now.items()}
            self._seconds_told = now
        for stage, more in new.items():
            _add(self.stage_seconds, more, stage=stage)


def measured(worker_class: _W) -> _W:
    """Return a worker class that does the same and counts it. It has a `run`, and `label_only` through which all its shards go."""
    base: Any = worker_class

    class Measured(base):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.metrics = WorkerMetrics(self.run.fingerprint[:_RUN_ID_LENGTH])

        def label_only(self, shard: Shard) -> ShardResult:
            started = time.perf_counter()
            result: ShardResult = super().label_only(shard)
            self.metrics.count(result, time.perf_counter() - started)
            return result

    Measured.__name__, Measured.__qualname__ = (
        worker_class.__name__,
        worker_class.__qualname__,
    )  # what Ray's lists call the actor
    Measured.__doc__ = worker_class.__doc__
    return cast(_W, Measured)


def _add(counter: Any, number: float, **tags: str) -> None:
    if number > 0:  # Ray refuses zero
        counter.inc(number, tags=tags)
