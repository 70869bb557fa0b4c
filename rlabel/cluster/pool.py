"""Places shards on a pool of actors: one actor call is one shard, committed by the actor. Knows nothing of models or COCO.

A shard is tried a few times, each within a deadline; one that keeps failing is split into its images, and the image that fails even
alone is recorded as a failure with the reason. Actors that die are replaced. Old attempts may still write: a commit takes the first.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlabel.errors import RlabelError, RunError
from rlabel.records import Shard, ShardResult
from rlabel.run.attempts import failed_shard, image_shard, in_words, joined
from rlabel.run.directory import RunDirectory

_POLL_S = 1.0
_PROFILES_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    num_actors: int
    gpus_per_actor: float
    cpus_per_actor: int
    max_attempts: int = 3
    shard_timeout_s: float = 3600.0
    wait_for_actors_s: float = 600.0
    environment: Mapping[str, str] = field(default_factory=dict)  # of the actors' processes
    profile: bool = False


@dataclass(slots=True)
class _Task:
    """A shard, or one image of a shard that is being split (part: its place in the shard)."""

    shard: Shard
    part: int | None = None
    attempts: int = 0
    must_be_alone: bool = False  # it was at a worker that died, with others

    @property
    def is_suspect(self) -> bool:
        """Return whether it may be what kills workers; then it is tried alone, so that no other task is blamed for it, nor it for another."""
        return self.attempts > 0 or self.part is not None or self.must_be_alone


@dataclass(slots=True)
class _Split:
    """The images of a split shard that are done, by place."""

    shard: Shard
    results: dict[int, ShardResult] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    ready: Any
    is_ready: bool = False
    in_flight: dict[Any, _Task] = field(default_factory=dict)
    head_since: float = 0.0


class ShardPool:
    """Runs one labeling run on Ray actors.

    worker_class: has label_and_commit(shard), label_only(shard) -> ShardResult, and describe(), whose answer says that it is ready. Where it has
    shards_at_once, so many threads call it at once. worker_args: what it is made with.
    """

    def __init__(
        self, ray: Any, worker_class: type, worker_args: tuple[Any, ...], run: RunDirectory, options: PoolOptions
    ) -> None:
        self.ray = ray
        self.run = run
        self.options = options
        self.at_once: int = getattr(worker_class, "shards_at_once", 1)
        # Restarts are ours: a restarted actor of Ray's would take its old calls again, without a count.
        remote = ray.remote(
            num_cpus=options.cpus_per_actor,
            num_gpus=options.gpus_per_actor,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=self.at_once,
            **({"runtime_env": {"env_vars": dict(options.environment)}} if options.environment else {}),
        )(worker_class)
        self._start = lambda: remote.remote(*worker_args)
        self.actors: list[_Actor] = []
        self.waiting: deque[_Task] = deque()
        self.splits: dict[int, _Split] = {}
        self.worker_notes: Any = None
        self.profiles: list[Any] = []  # what the workers that were there at the end say of their time
        self.num_failed_starts = 0  # in a row
        self.none_ready_since = 0.0

    def label(self, shards: Iterable[Shard], on_tick: Callable[[], None] = lambda: None) -> None:
        """Label every shard that is not committed.

        Raises RunError when no actor starts in time, or when actors cannot be built at all; what is committed stays.
        """
        committed = self.run.committed()
        todo = (shard for shard in shards if shard.index not in committed)
        first = next(todo, None)
        if first is None:
            return
        source: Iterator[Shard] = iter(todo)
        self.waiting.append(_Task(first))
        self.actors = [self._new_actor() for _ in range(self.options.num_actors)]
        try:
            self.none_ready_since = time.monotonic()
            exhausted = False
            while True:
                exhausted = self._feed(source, exhausted)
                if exhausted and not self.waiting and not any(actor.in_flight for actor in self.actors):
                    break
                self._wait()
                on_tick()
            if self.options.profile:
                self.profiles = self._ask_for_profiles()
        finally:
            for actor in self.actors:
                self._kill(actor)

    def _feed(self, source: Iterator[Shard], exhausted: bool) -> bool:
        """Fill the windows of the actors that are ready; return whether the source is exhausted."""
        # One more than are in work waits at the actor, which is also the backpressure on the driver.
        # Breadth first: no actor gets a second shard before each has one.
        for depth in range(self.at_once + 1):
            for actor in self.actors:
                if not actor.is_ready or len(actor.in_flight) > depth:
                    continue
                if not self.waiting and not exhausted:
                    shard = next(source, None)
                    exhausted = shard is None
                    if shard is not None:
                        self.waiting.append(_Task(shard))
                if self.waiting and not (actor.in_flight and self._must_be_alone(actor, self.waiting[0])):
                    self._submit(actor, self.waiting.popleft())
        return exhausted

    def _must_be_alone(self, actor: _Actor, task: _Task) -> bool:
        return task.is_suspect or any(other.is_suspect for other in actor.in_flight.values())

    def _submit(self, actor: _Actor, task: _Task) -> None:
        method = actor.handle.label_and_commit if task.part is None else actor.handle.label_only
        if not actor.in_flight:
            actor.head_since = time.monotonic()
        shard = task.shard if task.part is None else image_shard(task.shard, task.part)
        actor.in_flight[method.remote(shard)] = task

    def _wait(self) -> None:
        pending = [ref for actor in self.actors for ref in actor.in_flight] + [
            actor.ready for actor in self.actors if not actor.is_ready
        ]
        done, _ = self.ray.wait(pending, num_returns=1, timeout=_POLL_S)
        now = time.monotonic()
        for ref in done:
            actor = next(
                actor for actor in self.actors if ref in actor.in_flight or ref is actor.ready or ref == actor.ready
            )
            if ref in actor.in_flight:
                self._take(actor, ref)
            else:
                self._take_ready(actor)
        for actor in list(self.actors):
            late = actor.in_flight and now - actor.head_since > self.options.shard_timeout_s
            if late and not self.ray.wait([next(iter(actor.in_flight))], timeout=0)[0]:
                self._lost(actor, f"no answer within {self.options.shard_timeout_s:g} s", next(iter(actor.in_flight)))
        if any(actor.is_ready for actor in self.actors):
            self.none_ready_since = now
        elif now - self.none_ready_since > self.options.wait_for_actors_s:
            raise RunError(
                f"Ray: no actor with {self.options.cpus_per_actor} CPU and {self.options.gpus_per_actor:g} GPU could start within "
                f"{self.options.wait_for_actors_s:g} s. The cluster has {_resources(self.ray)}. "
                "Lower --gpus-per-actor or --cpus-per-actor, add nodes, or raise --wait-for-actors-s; what is done stays."
            )

    def _take_ready(self, actor: _Actor) -> None:
        try:
            self.worker_notes = self.ray.get(actor.ready)
        except Exception as error:
            self.num_failed_starts += 1
            # A constructor that raises will raise again; one that was killed may not.
            if (
                getattr(error, "actor_init_failed", False)
                or self.num_failed_starts > self.options.max_attempts * self.options.num_actors
            ):
                raise RunError(f"Ray: a labeling actor cannot start: {_last_line(error)}") from error
            self._replace(actor)
        else:
            self.num_failed_starts = 0
            actor.is_ready = True

    def _take(self, actor: _Actor, ref: Any) -> None:
        try:
            value = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            # Raised by the worker, which lives. Only errors of ours leave it whole for certain: a GPU may be unusable after another.
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, RlabelError):
                self._again(self._done(actor, ref), in_words(cause))
            else:
                self._lost(actor, in_words(cause), ref)
        except (
            Exception
        ) as error:  # died, unreachable, killed for its memory, its result lost with a node: of many kinds
            self._lost(actor, f"the worker died ({in_words(error)[:200]})")
        else:
            self._finish(self._done(actor, ref), value)

    def _done(self, actor: _Actor, ref: Any) -> _Task:
        actor.head_since = time.monotonic()
        return actor.in_flight.pop(ref)

    def _finish(self, task: _Task, value: Any) -> None:
        if task.part is not None:
            self._take_part(task, value)

    def _lost(self, actor: _Actor, reason: str, culprit: Any = None) -> None:
        """Replace an actor. Only the shard that ended it is to blame; the others go back without a count.

        culprit: the call that did it. None where that cannot be known: where several were in work, each of them is tried again alone.
        """
        # What it finished before may not have been taken yet. (A reply may also die with its worker; `_again` looks at the commit.)
        for ref in list(actor.in_flight):
            if ref == culprit or not self.ray.wait([ref], timeout=0)[0]:
                continue
            try:
                value = self.ray.get(ref)
            except Exception:
                continue
            self._finish(actor.in_flight.pop(ref), value)
        in_work = list(actor.in_flight)[: self.at_once]
        blamed = [culprit] if culprit is not None else in_work
        suspects = [actor.in_flight.pop(ref) for ref in blamed]
        untouched = list(actor.in_flight.values())
        actor.in_flight.clear()
        self._replace(actor)
        self.waiting.extendleft(reversed(untouched))
        if len(suspects) == 1:
            self._again(suspects[0], reason)
            return
        for task in suspects:
            if not self._is_done(task):
                task.must_be_alone = True
                self.waiting.append(task)
        if suspects:
            names = " and ".join(_task_name(task) for task in suspects)
            print(f"rlabel: {names}: {reason}; each is tried again, alone", file=sys.stderr, flush=True)

    def _again(self, task: _Task, reason: str) -> None:
        if self._is_done(task):
            return
        task.attempts += 1
        print(
            f"rlabel: {_task_name(task)}: attempt {task.attempts} of {self.options.max_attempts} failed: {reason}",
            file=sys.stderr,
            flush=True,
        )
        if task.attempts < self.options.max_attempts:
            self.waiting.append(task)
        elif task.part is None and len(task.shard.images) > 1:
            self.splits[task.shard.index] = _Split(task.shard)
            self.waiting.extend(_Task(task.shard, part=part) for part in range(len(task.shard.images)))
        elif task.part is None:
            self.run.commit(failed_shard(task.shard, reason, task.attempts))
        else:
            self._take_part(task, failed_shard(image_shard(task.shard, task.part), reason, task.attempts))

    def _is_done(self, task: _Task) -> bool:
        """Return whether a task is committed all the same: its worker died between the commit and the reply, or another driver was faster."""
        return task.part is None and self.run.is_committed(task.shard.index)

    def _take_part(self, task: _Task, result: ShardResult) -> None:
        split = self.splits[task.shard.index]
        assert task.part is not None
        split.results[task.part] = result
        if len(split.results) == len(split.shard.images):
            self.run.commit(joined(split.shard, split.results))
            del self.splits[task.shard.index]

    def _ask_for_profiles(self) -> list[Any]:
        try:
            asked = [actor.handle.profile.remote() for actor in self.actors if actor.is_ready]
            return [profile for profile in self.ray.get(asked, timeout=_PROFILES_S) if profile is not None]
        except Exception as error:  # the labels are there; a profile is not worth a failed run
            print(f"rlabel: no profile: {in_words(error)}", file=sys.stderr, flush=True)
            return []

    def _new_actor(self) -> _Actor:
        handle = self._start()
        return _Actor(handle=handle, ready=handle.describe.remote())

    def _replace(self, actor: _Actor) -> None:
        self._kill(actor)
        self.actors[self.actors.index(actor)] = self._new_actor()

    def _kill(self, actor: _Actor) -> None:
        try:
            self.ray.kill(actor.handle, no_restart=True)
        except Exception as error:  # a handle of an actor that never started, or a cluster that is gone
            print(f"rlabel: an actor could not be ended: {in_words(error)}", file=sys.stderr, flush=True)


def _task_name(task: _Task) -> str:
    return f"shard {task.shard.index}" + ("" if task.part is None else f", image {task.part}")


def _last_line(error: Exception) -> str:
    """Return the cause of a constructor's error: Ray gives its whole traceback as the message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [in_words(error)])[-1][:600]


def _resources(ray: Any) -> str:
    found = {name: amount for name, amount in sorted(ray.cluster_resources().items()) if name in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {name}" for name, amount in found.items()) or "no CPUs"


def choose_actors(ray: Any, num_actors: int, gpus_per_actor: float, cpus_per_actor: int) -> tuple[int, float]:
    """Return (number of actors, GPUs of each) for the connected cluster, where the settings leave them open."""
    resources = ray.cluster_resources()
    num_gpus = resources.get("GPU", 0.0)
    gpus = gpus_per_actor if gpus_per_actor >= 0 else (1.0 if num_gpus >= 1 else 0.0)
    if num_actors:
        return num_actors, gpus
    if gpus > 0:
        return max(1, int(num_gpus / gpus)), gpus
    return max(1, min(4, int(resources.get("CPU", 1.0)) // cpus_per_actor)), gpus
