"""A run's shards done on Ray from start to end: the session, the number of actors, the pool. Knows nothing of models or COCO."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import redirect_stdout
from typing import Any

from rlabel.cluster.metrics import measured
from rlabel.cluster.nodes import choose_actors
from rlabel.cluster.pool import PoolOptions, ShardPool
from rlabel.cluster.session import ray_session
from rlabel.errors import RunError
from rlabel.memory import reuse_freed_memory_environment
from rlabel.pool_settings import PoolSettings
from rlabel.records import Shard
from rlabel.run.directory import RunDirectory
from rlabel.run.progress import RunProgress

# Twice what NFS keeps a folder's listing for where nothing else is said (acdirmax, nfs(5)).
_VISIBLE_S, _LOOK_AGAIN_S = 120.0, 1.0


def do_shards(
    settings: PoolSettings,
    worker_class: type,
    spec: Any,
    run: RunDirectory,
    shards: Iterable[Shard],
    progress: RunProgress,
    *,
    gpus_per_actor: float | None = None,
    profile: bool = False,
) -> ShardPool:
    """Do every shard that is not committed and return the pool, its actors gone, for what its workers said.

    worker_class is made with the spec, in each actor. gpus_per_actor: instead of the settings', for workers that use none whatever they say.

    Raises RunError where Ray cannot be reached, no actor starts, or a shard is missing at the end; what is committed stays.
    """
    wanted = settings.gpus_per_actor if gpus_per_actor is None else gpus_per_actor
    # Ray tells of dead workers on stdout, whatever it is told; stdout is for results.
    with (
        redirect_stdout(sys.stderr),
        ray_session(settings.address, max(settings.num_actors, 1) * settings.cpus_per_actor) as ray,
    ):
        num_actors, gpus = choose_actors(ray, settings.num_actors, wanted, settings.cpus_per_actor)
        options = PoolOptions(
            num_actors=min(num_actors, max(1, run.num_shards)),
            most_actors=0 if settings.num_actors else run.num_shards,
            gpus_per_actor=gpus,
            cpus_per_actor=settings.cpus_per_actor,
            max_attempts=settings.max_attempts,
            shard_timeout_s=settings.shard_timeout_s,
            wait_for_actors_s=settings.wait_for_actors_s,
            # The threads of an actor are there before it could say how malloc is to keep what is freed.
            environment=reuse_freed_memory_environment() if gpus == 0 else {},
            profile=profile,
        )
        pool = ShardPool(ray, measured(worker_class), (spec,), run, options)
        progress.actors = pool.status
        print(
            f"rlabel: {options.num_actors} actors, {run.num_shards - len(run.committed())} shards to do",
            file=sys.stderr,
            flush=True,
        )
        pool.label(shards, progress.beat)
    wait_until_visible(run)
    return pool


def wait_until_visible(run: RunDirectory) -> None:
    """Return as soon as every shard is listed. What another machine has committed NFS may list here up to a minute later.

    Raises RunError when one is still missing then.
    """
    end, told = time.monotonic() + _VISIBLE_S, False
    while missing := run.num_shards - len(run.committed()):
        if time.monotonic() > end:
            raise RunError(
                f"{run.store.join('')}: {missing} shards are missing at the end. Run the same command again."
            )
        if not told:
            told = True
            print(f"rlabel: all is labeled; waiting to see the last {missing} shards here", file=sys.stderr, flush=True)
        time.sleep(_LOOK_AGAIN_S)
