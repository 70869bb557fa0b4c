"""Places shards on a pool of actors: one actor call is one shard, committed by the actor. Knows nothing of models or COCO.

A shard is tried a few times, each within a deadline; one that keeps failing is split into its images, and the image that fails even
alone is recorded as a failure with the reason. Actors that die are replaced, on another node where theirs is gone; those that wait for room hold
nothing up, and get work as soon as a node has it. Old attempts may still write: a commit takes the first.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import rlabel
from rlabel.cluster.nodes import ActorPlace, choose_actors, cluster_in_words, introduce
from rlabel.errors import RlabelError, RunError
from rlabel.records import Shard, ShardResult
from rlabel.run.attempts import failed_shard, image_shard, in_words, joined
from rlabel.run.directory import RunDirectory
from rlabel.run.status import ActorStatus
from rlabel.storage import StoreDown

_POLL_S = 1.0
_PROFILES_S = 60.0
# How often to look for room on new nodes; how long an actor that cannot start is left out; when to say that none is ready.
_GROW_S, _LEFT_OUT_S, _TELL_WAIT_S = 10.0, 60.0, 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """num_actors: at the start. most_actors: so many where nodes that join later have room for them; no more than num_actors where left out."""

    num_actors: int
    most_actors: int = 0
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
    place: ActorPlace | None = None  # once it is ready
    in_flight: dict[Any, _Task] = field(default_factory=dict)
    head_since: float = 0.0

    @property
    def is_ready(self) -> bool:
        return self.place is not None


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
        # Spread, since actors on one node share its memory and its pictures' way in.
        remote = ray.remote(
            scheduling_strategy="SPREAD",
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
        self.told_of_waiting = False
        self.looked_for_room = 0.0

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
            self.none_ready_since = self.looked_for_room = time.monotonic()
            exhausted = False
            while True:
                if not exhausted:
                    self._grow()
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

    def status(self) -> tuple[ActorStatus, ...]:
        """Return where the actors are and what they have in flight, for status.json."""
        return tuple(_actor_status(actor) for actor in self.actors)

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
            self.none_ready_since, self.told_of_waiting = now, False
        else:
            self._wait_for_actors(now - self.none_ready_since)

    def _wait_for_actors(self, waited_s: float) -> None:
        """Say once that no actor is ready; raise RunError when that lasts too long."""
        options = self.options
        wanted = f"{options.cpus_per_actor} CPU and {options.gpus_per_actor:g} GPU"
        if waited_s > options.wait_for_actors_s:
            raise RunError(
                f"Ray: no actor with {wanted} could start within {options.wait_for_actors_s:g} s. {self._cluster_in_words()} "
                "Lower --gpus-per-actor or --cpus-per-actor, add nodes, or raise --wait-for-actors-s; what is done stays."
            )
        if waited_s > _TELL_WAIT_S and not self.told_of_waiting:
            self.told_of_waiting = True
            print(
                f"rlabel: no actor with {wanted} is ready after {waited_s:.0f} s; giving up after {options.wait_for_actors_s:g} s. "
                f"{self._cluster_in_words()}",
                file=sys.stderr,
                flush=True,
            )

    def _cluster_in_words(self) -> str:
        return cluster_in_words(self.ray, self.options.gpus_per_actor, self.options.cpus_per_actor)

    def _grow(self) -> None:
        """Start actors that were left out, and more of them where nodes have joined that have room."""
        options, now = self.options, time.monotonic()
        wanted = max(options.num_actors, options.most_actors)
        if len(self.actors) >= wanted or now - self.looked_for_room < _GROW_S:
            return
        self.looked_for_room = now
        if options.most_actors > options.num_actors:
            room, _ = choose_actors(self.ray, 0, options.gpus_per_actor, options.cpus_per_actor)
            wanted = max(options.num_actors, min(room, wanted))
        more = wanted - len(self.actors)
        if more > 0:
            print(f"rlabel: starting {more} more actor{'s' * (more > 1)}", file=sys.stderr, flush=True)
            self.actors += [self._new_actor() for _ in range(more)]

    def _take_ready(self, actor: _Actor) -> None:
        try:
            notes, place = self.ray.get(actor.ready)
        except Exception as error:
            # A constructor that raises will raise again; one that was killed may not.
            self._failed_start(actor, _last_line(error), is_final=getattr(error, "actor_init_failed", False))
            return
        if place.version != rlabel.__version__:
            what = f"node {place.node} has rlabel {place.version}, this command is {rlabel.__version__}: labels may differ. Install the same on all nodes."
            self._failed_start(actor, what, is_final=True)
            return
        self.num_failed_starts = 0
        self.worker_notes, actor.place = notes, place

    def _failed_start(self, actor: _Actor, reason: str, *, is_final: bool) -> None:
        """Try again. Where that is in vain, leave the actor out for a while: others may stand on better nodes. Raises RunError where there are none."""
        self.num_failed_starts += 1
        if not is_final and self.num_failed_starts <= self.options.max_attempts * self.options.num_actors:
            self._replace(actor)
            return
        if len(self.actors) == 1:
            raise RunError(f"Ray: a labeling actor cannot start: {reason}")
        print(f"rlabel: an actor cannot start: {reason} The others go on.", file=sys.stderr, flush=True)
        self._kill(actor)
        self.actors.remove(actor)
        self.looked_for_room = time.monotonic() + _LEFT_OUT_S - _GROW_S

    def _take(self, actor: _Actor, ref: Any) -> None:
        try:
            value = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            # Raised by the worker, which lives. Only errors of ours leave it whole for certain: a GPU may be unusable after another.
            cause = getattr(error, "cause", None) or error
            if isinstance(
                cause, StoreDown
            ):  # says nothing of the shard: the run stops, and goes on when the store is there again
                raise cause from error
            if isinstance(cause, RlabelError):
                self._again(self._done(actor, ref), in_words(cause))
            else:
                self._lost(actor, in_words(cause), ref)
        except (
            Exception
        ) as error:  # died, unreachable, killed for its memory, its result lost with a node: of many kinds
            self._lost(actor, _end_in_words(error))
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
        return _Actor(handle=handle, ready=handle.__ray_call__.remote(introduce))

    def _replace(self, actor: _Actor) -> None:
        self._kill(actor)
        self.actors[self.actors.index(actor)] = self._new_actor()

    def _kill(self, actor: _Actor) -> None:
        try:
            self.ray.kill(actor.handle, no_restart=True)
        except Exception as error:  # a handle of an actor that never started, or a cluster that is gone
            print(f"rlabel: an actor could not be ended: {in_words(error)}", file=sys.stderr, flush=True)


def _actor_status(actor: _Actor) -> ActorStatus:
    if actor.place is None:
        return ActorStatus(node="", pid=None, gpu_ids=(), state="starting", in_flight=0)
    place = actor.place
    return ActorStatus(
        node=place.node, pid=place.pid, gpu_ids=place.gpu_ids, state="ready", in_flight=len(actor.in_flight)
    )


def _task_name(task: _Task) -> str:
    return f"shard {task.shard.index}" + ("" if task.part is None else f", image {task.part}")


def _end_in_words(error: Exception) -> str:
    """Return how a worker ended, in words without ids or kinds of Ray's errors: they go into failures, which must be the same for the same corpus."""
    if "node has died" in str(error) or "node was terminated" in str(error):
        return "the worker's node died"
    if type(error).__name__ == "OutOfMemoryError":
        return "the worker was ended by Ray, since the node's memory was used up"
    return "the worker died"


def _last_line(error: Exception) -> str:
    """Return the cause of a constructor's error: Ray gives its whole traceback as the message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [in_words(error)])[-1][:600]
