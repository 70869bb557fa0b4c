"""Ray's metrics of an actor, on a real local Ray: what is registered with it and what is counted."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from rlabel.cluster.metrics import measured
from rlabel.cluster.pool import PoolOptions, ShardPool
from rlabel.records import Shard, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.spans import recorded, span
from run_factories import begin_run, everything, shard_of, shard_result

pytestmark = pytest.mark.timeout(400)


class Worker:
    """Gives ready results, and keeps an eye on what Ray's metrics are given."""

    def __init__(self, run: RunDirectory, results: dict[int, ShardResult]) -> None:
        from ray.util import metrics

        self.run, self.results = run, results
        self.given: defaultdict[tuple[str, ...], float] = defaultdict(float)
        given = self.given

        class Seen(metrics.Counter):  # type: ignore[misc]
            def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
                super().inc(value, tags)  # refuses what is not registered
                given[(self.info["name"], self.info["default_tags"]["run"], *(tags or {}).values())] += value

        class SeenHistogram(metrics.Histogram):  # type: ignore[misc]
            def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
                super().observe(value, tags)
                given[(self.info["name"], self.info["default_tags"]["run"])] += 1

        metrics.Counter, metrics.Histogram = Seen, SeenHistogram

    def describe(self) -> str:
        return "ready"

    def label_only(self, shard: Shard) -> ShardResult:
        with span("model"):
            return self.results[shard.index]

    def label_and_commit(self, shard: Shard) -> int:
        result = self.label_only(shard)
        self.run.commit(result)
        return shard.num_regions

    def profile(self) -> Any:
        found = recorded()
        return dict(self.given), None if found is None else len(found.spans)


def test_an_actor_counts_regions_tokens_abstentions_failures_and_seconds(local_ray, tmp_path: Path) -> None:
    import run_factories

    for module in (sys.modules[__name__], run_factories):
        local_ray.cloudpickle.register_pickle_by_value(module)
    results = {0: everything(0), 1: shard_result(1, num_images=6)}
    run = begin_run(tmp_path, 2)
    options = PoolOptions(num_actors=1, gpus_per_actor=0.0, cpus_per_actor=1, wait_for_actors_s=60.0, profile=True)
    pool = ShardPool(local_ray, measured(Worker), (run, results), run, options)
    pool.label([shard_of(result) for result in results.values()])
    ((given, num_spans),) = pool.profiles
    run_id = run.fingerprint[:12]
    seconds = given.pop(("rlabel_stage_seconds", run_id, "model"))
    assert 0 < seconds < 60 and num_spans == 0, "only sums are kept"
    kinds = [outcome.kind for outcome in results[1].outcomes if type(outcome).__name__ == "Failure"]
    num_answers = {
        kind: sum(type(outcome).__name__ == kind for result in results.values() for outcome in result.outcomes)
        for kind in ("Label", "Abstention")
    }
    assert {"image", "region"} == set(kinds) and num_answers["Label"] > 5 and num_answers["Abstention"] > 1
    assert given == {
        ("rlabel_regions", run_id): 3 + 20,
        ("rlabel_tokens", run_id): 3 * num_answers["Label"],  # those of run_factories have three each
        ("rlabel_abstentions", run_id): num_answers["Abstention"],
        ("rlabel_failures", run_id, "image"): kinds.count("image"),
        ("rlabel_failures", run_id, "region"): kinds.count("region") + 1,
        ("rlabel_shard_seconds", run_id): 2,
    }


def test_the_worker_that_is_measured_keeps_its_name_and_what_a_pool_reads_of_it() -> None:
    class Twice(Worker):
        """Two at once."""

        shards_at_once = 2

    made: Any = measured(Twice)
    assert (made.__name__, made.__doc__, made.shards_at_once) == ("Twice", "Two at once.", 2)
    assert made.label_and_commit is Twice.label_and_commit and made.label_only is not Twice.label_only
