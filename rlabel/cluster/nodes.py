"""What a pool sees of a cluster: how many actors its nodes have room for, and where an actor runs. Knows nothing of shards."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rlabel

# Where there are no GPUs to count: more processes than this on one node are for the user to ask for.
_MOST_ON_CPUS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorPlace:
    """Where an actor runs. node_id: Ray's, hex. gpu_ids: of those that Ray gave it, as CUDA_VISIBLE_DEVICES names them; version: of its rlabel."""

    node_id: str
    host: str
    pid: int
    gpu_ids: tuple[str, ...]
    version: str

    @property
    def node(self) -> str:
        """Return the host's name and the beginning of Ray's node id, which tells several nodes of one host apart."""
        return f"{self.host}/{self.node_id[:8]}"


def introduce(worker: Any) -> tuple[Any, ActorPlace]:
    """Return what a worker says of itself, and where it is. Runs in its actor, once the worker is made."""
    import ray

    context = ray.get_runtime_context()
    place = ActorPlace(
        node_id=context.get_node_id(),
        host=socket.gethostname(),
        pid=os.getpid(),
        gpu_ids=tuple(context.get_accelerator_ids().get("GPU", ())),
        version=rlabel.__version__,
    )
    return worker.describe(), place


def choose_actors(ray: Any, num_actors: int, gpus_per_actor: float, cpus_per_actor: int) -> tuple[int, float]:
    """Return (number of actors, GPUs of each) for the connected cluster, where the settings leave them open.

    The number is what the nodes that are there have room for, each by itself: an actor cannot take half of two nodes.
    """
    nodes = _nodes(ray)
    gpus = gpus_per_actor if gpus_per_actor >= 0 else (1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0)
    if num_actors:
        return num_actors, gpus
    return max(1, sum(_room(node, gpus, cpus_per_actor) for node in nodes)), gpus


def cluster_in_words(ray: Any, gpus: float, cpus: int) -> str:
    """Return what the cluster has and why an actor of this size may not start on it."""
    nodes = _nodes(ray)
    if not nodes:
        return "The cluster has no living node."
    totals = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    text = f"The cluster has {_amounts(totals)}"
    if len(nodes) > 1:
        largest = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)))
        text += f" on {len(nodes)} nodes, the largest of them {_amounts(largest)}"
    if any(node.get("CPU", 0.0) >= cpus and node.get("GPU", 0.0) >= gpus for node in nodes):
        return f"{text}: enough, so other work holds it, or loading the model takes longer than that."
    return f"{text}: no node is large enough."


def _room(node: Mapping[str, float], gpus: float, cpus: int) -> int:
    on_cpus = int(node.get("CPU", 0.0)) // cpus
    if gpus > 0:
        return min(on_cpus, int(node.get("GPU", 0.0) / gpus + 1e-9))  # 0.3 / 0.1 is a little less than 3
    return min(on_cpus, _MOST_ON_CPUS)


def _nodes(ray: Any) -> list[dict[str, float]]:
    """Return the resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)) or "no CPUs"
