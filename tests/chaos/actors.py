"""Actors and nodes that die, pictures that kill or starve their worker, and any number of actors in any order. Workers without a model (pool_factories.py)."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster_factories import Nodes
from label_factories import Setup, save_model, shard_files, wait_until
from pool_factories import BAD_IMAGE, Place, failures, in_process, merged, regions_of_image, sent_to_workers
from rlabel.records import Outcome
from rlabel.run.directory import RunDirectory
from tests.chaos.bench import ended, finished, judge, loopback_ray, num_redone, start_driver
from tests.chaos.line import Clock, Line, Options

# Of an actor that has one shard in work: that one. What waits behind it has not begun.
_IN_WORK = 1
_SIZE: dict[str, Any] = {"cpus_per_actor": 6}
_WAIT_S = 40


def actor_kill(folder: Path, options: Options) -> Iterator[Line]:
    """Kill actors at seeded points of one run."""
    num_shards, dice = 4 * options.points, random.Random(options.seed)
    undisturbed = _undisturbed(folder, num_shards)
    # A shard is small: each is made to last, so that kills meet work.
    trouble = {image: f"sleeps {dice.uniform(0.02, 0.08):.3f}" for image in range(1, 2 * num_shards + 1)}
    points = sorted(dice.sample(range(num_shards - 4), options.points))
    killed: list[int] = []
    with loopback_ray() as (ray, _):
        sent_to_workers(ray)
        place, clock = Place(ray, folder / "place", num_shards), Clock()

        def kill() -> None:
            if points and len(place.run.committed()) >= points[0]:
                pids = [
                    actor.pid
                    for actor in place.pool.status()
                    if actor.pid and actor.pid not in killed and actor.in_flight
                ]
                if pids:
                    points.pop(0)
                    killed.append(dice.choice(pids))
                    threading.Timer(dice.uniform(0, 0.08), _kill, [killed[-1]]).start()

        place.label(trouble, num_actors=2, on_tick=kill, max_attempts=5)
        merged(place.run)
    verdict = judge(place.folder / "run", undisturbed)
    redone = place.calls().total() - num_shards
    yield Line(
        test="actor kill -9", faults=len(killed), lost=verdict.lost, duplicated=verdict.duplicated, redone=redone, seconds=clock.seconds,
        ok=verdict.is_same and redone <= 2 * _IN_WORK * len(killed) and not points,
        notes=f"{verdict.note}; {num_shards} shards, 2 actors, {place.num_actors_made()} made",
    )  # fmt: skip


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def killer_image(folder: Path, options: Options) -> Iterator[Line]:
    """Meet an image that kills its worker, and one that takes more memory than its worker may have."""
    undisturbed = _undisturbed(folder, 12)
    with loopback_ray() as (ray, _):
        sent_to_workers(ray)
        for name, trouble, says in (
            ("an image that kills its worker", "dies", r"the worker died"),
            ("an image that exceeds memory (RLIMIT_AS)", "eats memory", r"MemoryError.*|the worker died"),
        ):
            place, clock = Place(ray, folder / trouble, 12), Clock()
            place.label({BAD_IMAGE: trouble}, num_actors=2)
            merged(place.run)
            found, calls = failures(place.run), place.calls()
            verdict = judge(place.folder / "run", undisturbed)
            is_bad = {failure.region.key for failure in found} == regions_of_image(BAD_IMAGE)
            shard, alone = (BAD_IMAGE - 1) // 2, 1  # its other image is labeled alone, too, and well
            num_deaths = calls[f"{shard}-2"] + calls[f"{shard}-1"] - alone
            reason = rf"{BAD_IMAGE}\.jpg: not labeled in 3 attempts: ({says})\."
            others = _others(place.run) == _others(RunDirectory.open(_store(undisturbed)))
            yield Line(
                test=name, faults=num_deaths, lost=verdict.lost, duplicated=verdict.duplicated, redone=calls.total() - 12, seconds=clock.seconds,
                ok=is_bad and others and all(re.fullmatch(reason, failure.reason) for failure in found) and num_deaths >= 6,
                notes=f"{num_deaths} workers lost; all else labeled alike; recorded as: {found[0].reason if found else 'nothing'}",
            )  # fmt: skip


def _others(run: RunDirectory) -> list[Outcome]:
    bad = regions_of_image(BAD_IMAGE)
    return [outcome for result in run.results() for outcome in result.outcomes if outcome.region.key not in bad]  # type: ignore[union-attr]


def _store(folder: Path) -> Any:
    from rlabel.storage import Store

    return Store.open(folder)


def any_order(folder: Path, options: Options) -> Iterator[Line]:
    """Label with 1, 2 and 4 actors that take other times for each shard."""
    num_shards = 24
    undisturbed = _undisturbed(folder, num_shards)
    with loopback_ray() as (ray, _):
        sent_to_workers(ray)
        for num_actors in (1, 2, 4):
            dice = random.Random(options.seed + num_actors)
            trouble = {image: f"sleeps {dice.choice((0, 0.01, 0.1)):.3f}" for image in range(3, 2 * num_shards + 1)}
            trouble |= {1: f"waits for {num_actors}"}
            order: list[int] = []
            place, clock = Place(ray, folder / f"of {num_actors}", num_shards), Clock()

            def seen(order: list[int] = order, place: Place = place) -> None:
                order += sorted(place.run.committed() - set(order))

            place.label(trouble, num_actors=num_actors, on_tick=seen)
            merged(place.run)
            verdict = judge(place.folder / "run", undisturbed)
            redone = place.calls().total() - num_shards
            out_of_order = sum(later < earlier for earlier, later in zip(order, order[1:], strict=False))
            yield Line(
                test=f"{num_actors} actor{'s' * (num_actors > 1)}, shuffled completion", faults=0, lost=verdict.lost,
                duplicated=verdict.duplicated, redone=redone, seconds=clock.seconds,
                ok=verdict.is_same and redone == 0 and place.num_actors_made() == num_actors,
                notes=f"{verdict.note}; {out_of_order} of {num_shards} shards ended before an earlier one",
            )  # fmt: skip


def _undisturbed(folder: Path, num_shards: int) -> Path:
    in_process(folder / "in-process", num_shards=num_shards)
    return folder / "in-process" / "run"


def raylet_spare(folder: Path, options: Options) -> Iterator[Line]:
    """Kill the raylet of one of three nodes, of which one is free."""
    num_shards = 24
    undisturbed = _undisturbed(folder, num_shards)
    with loopback_ray() as (ray, _), Nodes(ray) as nodes:
        sent_to_workers(ray)
        place = Place(ray, folder / "place", num_shards)
        joined = [nodes.join() for _ in range(3)]
        killed: list[str] = []
        clock = Clock()

        def kill() -> None:
            if not killed and len(place.run.committed()) >= 2:
                used = {actor.node.rpartition("/")[2] for actor in place.pool.status() if actor.in_flight}
                node = next(node for node in joined if node.node_id[:8] in used)
                killed.append(node.node_id)
                nodes.kill_raylet(node)

        # The cluster needs 13 s to find out (5 missed health checks); until then the node's worker goes on as if nothing was.
        trouble = {image: "sleeps 0.8" for image in range(1, 2 * num_shards + 1)}
        place.label(trouble, num_actors=2, on_tick=kill, **_SIZE)
        merged(place.run)
    verdict = judge(place.folder / "run", undisturbed)
    redone = place.calls().total() - num_shards
    yield Line(
        test="raylet killed, with a spare node", faults=len(killed), lost=verdict.lost, duplicated=verdict.duplicated, redone=redone,
        seconds=clock.seconds, ok=verdict.is_same and len(killed) == 1 and place.num_actors_made() == 3,
        notes=f"{verdict.note}; 3 nodes, 2 actors, {place.num_actors_made()} made; its worker lives on and commits until it is found dead",
    )  # fmt: skip


def raylet_alone(folder: Path, options: Options) -> Iterator[Line]:
    """Kill the only raylet with room: the command ends by its deadline, and goes on when a node has joined."""
    setup, num_images = Setup(folder, save_model(folder / "model"), 24), 24
    undisturbed, out = folder / "undisturbed", folder / "run"
    code, errors = finished(start_driver(setup.arguments(undisturbed, no_ray=True, cpus_per_actor=6), "trivial"))
    assert code == 0, errors
    with loopback_ray() as (ray, address), Nodes(ray) as nodes:
        node = nodes.join()
        more = {"address": address, "num_actors": 1, "cpus_per_actor": 6}
        clock, hold = Clock(), Path(f"{out}.hold")
        hold.touch()  # its worker, which lives on for a while, could finish everything
        with ended(start_driver(setup.arguments(out, wait_for_actors_s=_WAIT_S, **more), "trivial")) as process:
            wait_until(lambda: len(shard_files(out)) >= 4, process)
            nodes.kill_raylet(node)
            killed = Clock()
            code, errors = finished(process)
        after_s = killed.seconds
        is_clear = code == 1 and "no actor with 6 CPU" in errors and "no node is large enough" in errors
        is_clear = is_clear and "Traceback" not in errors
        hold.unlink()
        nodes.join()
        again, said = finished(start_driver(setup.arguments(out, **more), "trivial"))
    if again != 0:
        notes = f"exit {code}; again: {said[-300:]}"
        yield Line(test="raylet killed, no spare", faults=1, seconds=clock.seconds, ok=False, notes=notes)
        return
    verdict = judge(out, undisturbed)
    yield Line(
        test="raylet killed, no spare", faults=1, lost=verdict.lost, duplicated=verdict.duplicated, redone=num_redone(out, num_images),
        seconds=clock.seconds, ok=verdict.is_same and is_clear,
        notes=f"exit {code} {after_s:g} s after the kill, --wait-for-actors-s {_WAIT_S}; then with a new node {verdict.note}"
        + ("" if is_clear else f"; said: {errors[-300:]}"),
    )  # fmt: skip


CASES: dict[str, Callable[[Path, Options], Iterator[Line]]] = {
    "actor_kill": actor_kill,
    "killer_image": killer_image,
    "any_order": any_order,
    "raylet_spare": raylet_spare,
    "raylet_alone": raylet_alone,
}
