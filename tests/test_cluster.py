"""The actor pool on several nodes: raylets on this machine, each with room for one actor of the size that is asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

import rlabel
from cluster_factories import Nodes
from pool_factories import (
    BAD_IMAGE,
    BAD_REGIONS,
    NUM_REGIONS,
    Place,
    all_regions,
    failures,
    in_process,
    merged,
    sent_to_workers,
)
from rlabel.cluster.nodes import choose_actors
from rlabel.errors import RunError

# Starts processes; on a machine with more to do than it has cores each takes many times its seconds.
pytestmark = pytest.mark.timeout(400)
# The head has 4 CPUs: no room for these.
SIZE: dict[str, Any] = {"cpus_per_actor": 6, "gpus_per_actor": 1.0}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[bytes, ...]:
    return in_process(tmp_path_factory.mktemp("undisturbed") / "in-process")


@pytest.fixture(scope="module")
def nodes(local_ray) -> Iterator[Nodes]:
    """Two nodes beside the head."""
    with Nodes(local_ray) as made:
        made.join()
        made.join()
        yield made


@pytest.fixture
def place(nodes, local_ray, tmp_path) -> Place:
    sent_to_workers(local_ray)
    return Place(local_ray, tmp_path)


def pids_made(place: Place) -> set[int]:
    return {int(path.name.partition(".")[0]) for path in (place.folder / "made").iterdir()}


def test_actors_stand_on_all_nodes_with_a_gpu_each_and_one_without_room_holds_nothing_up(place, nodes, undisturbed):
    seen = []
    place.label(
        {1: "waits for 2", 3: "waits for 2"}, num_actors=3, on_tick=lambda: seen.append(place.pool.status()), **SIZE
    )
    assert merged(place.run) == undisturbed
    full = next(status for status in reversed(seen) if sum(actor.state == "ready" for actor in status) == 2)
    ready = [actor for actor in full if actor.state == "ready"]
    assert len({actor.node for actor in ready}) == 2 and {actor.pid for actor in ready} == pids_made(place)
    ids = [node_id[:8] for node_id in nodes.alive()]
    assert all(actor.node.rpartition("/")[2] in ids for actor in ready)
    assert [actor.gpu_ids for actor in ready] == [("0",), ("0",)], "the first GPU of each node"
    (waiting,) = [actor for actor in full if actor.state == "starting"]
    assert (waiting.node, waiting.pid, waiting.in_flight) == ("", None, 0)
    assert max(actor.in_flight for status in seen for actor in status) == 2


def test_node_that_joins_in_the_middle_gets_work_and_one_that_leaves_costs_nothing(
    place, nodes, undisturbed, monkeypatch
):
    monkeypatch.setattr("rlabel.cluster.pool._GROW_S", 0.2)
    joined = []

    def on_tick() -> None:
        if not joined and place.run.committed():
            joined.append(nodes.join())
        elif joined and len(pids_made(place)) == 3 and joined[0] in nodes.cluster.worker_nodes:
            nodes.leave(joined[0], gracefully=True)

    # The last shard waits until an actor has begun on the new node, and for the one that takes its place when that is gone again.
    place.label({11: "waits for 3"}, on_tick=on_tick, num_actors=2, most_actors=9, **SIZE)
    assert merged(place.run) == undisturbed and joined
    assert len(place.pool.actors) == 3, "two nodes, and one more"


def test_image_that_kills_its_workers_is_found_on_several_nodes(place):
    place.label({BAD_IMAGE: "dies"}, num_actors=2, max_attempts=2, **SIZE)
    assert len(all_regions(place.run)) == NUM_REGIONS
    found = failures(place.run)
    assert {failure.region.key for failure in found} == BAD_REGIONS
    # Not which process died, nor where: the same corpus gives the same words.
    assert {failure.reason for failure in found} == {f"{BAD_IMAGE}.jpg: not labeled in 2 attempts: the worker died."}


def test_image_that_takes_all_memory_fails_alone(place):
    place.label({BAD_IMAGE: "eats memory"}, num_actors=2, max_attempts=1, **SIZE)
    assert len(all_regions(place.run)) == NUM_REGIONS
    found = failures(place.run)
    assert {failure.region.key for failure in found} == BAD_REGIONS
    assert re.fullmatch(r"7\.jpg: not labeled in 1 attempts: (MemoryError|the worker died)\.", found[0].reason)


def test_small_actors_are_spread_over_the_nodes_though_one_had_room_for_all(place, undisturbed):
    seen = []
    place.label({1: "waits for 2", 3: "waits for 2"}, num_actors=2, on_tick=lambda: seen.append(place.pool.status()))
    assert merged(place.run) == undisturbed
    full = next(status for status in seen if all(actor.state == "ready" for actor in status))
    assert len({actor.node for actor in full}) == 2


def test_size_that_fits_no_single_node_is_told_so_before_the_wait_is_over_and_at_its_end(place, monkeypatch, capsys):
    monkeypatch.setattr("rlabel.cluster.pool._TELL_WAIT_S", 0.5)
    has = r"The cluster has 20 CPU, 6 GPU on 3 nodes, the largest of them 8 CPU, 2 GPU: no node is large enough\."
    with pytest.raises(RunError, match=rf"no actor with 10 CPU and 0 GPU could start within 2 s\. {has} Lower --gpus"):
        place.label(cpus_per_actor=10, wait_for_actors_s=2.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert "no actor with 10 CPU and 0 GPU is ready after" in line and "giving up after 2 s" in line


def test_room_is_counted_node_by_node(nodes, local_ray):
    assert choose_actors(local_ray, 0, 1.0, 6) == (2, 1.0), "20 CPUs, but only two nodes with 6"
    assert choose_actors(local_ray, 0, 0.0, 1) == (12, 0.0), "four a node"
    assert choose_actors(local_ray, 0, 0.1, 1)[0] == 4 + 8 + 8, "by the CPUs, where those are fewer"


def test_other_version_of_rlabel_on_the_nodes_is_refused(place, monkeypatch):
    monkeypatch.setattr(rlabel, "__version__", "0.0.0")
    with pytest.raises(
        RunError, match=r"node .*/.* has rlabel .*, this command is 0\.0\.0: .* Install the same on all nodes"
    ):
        place.label(**SIZE)
    assert not place.run.committed()


def test_node_on_which_no_actor_can_start_is_left_out_while_others_go_on(place, undisturbed, capsys):
    place.label({1: "waits for 2"}, at_start="raises once", num_actors=2, **SIZE)
    assert merged(place.run) == undisturbed
    assert "an actor cannot start: ValueError: no such weights" in capsys.readouterr().err
    assert len(pids_made(place)) == 2 and os.getpid() not in pids_made(place)
