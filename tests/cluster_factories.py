"""More nodes for the Ray that a test is connected to: raylets on this machine, on loopback addresses, with logical CPUs and GPUs."""

from __future__ import annotations

import os
import signal
import time
from types import TracebackType
from typing import Any


class Nodes:
    """Raylets that join the connected Ray, and are all ended at the end of a `with`."""

    def __init__(self, ray: Any) -> None:
        from ray._private import worker
        from ray.cluster_utils import Cluster

        self.ray = ray
        self.cluster = Cluster(initialize_head=False, shutdown_at_exit=True)
        # What Cluster would set if it had started the head itself. It would also write the head's address where every other Ray looks for one.
        head = worker._global_node
        self.cluster.head_node = head
        self.cluster.redis_address, self.cluster.redis_username, self.cluster.redis_password = (
            head.redis_address,
            "",
            "",
        )

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in list(self.cluster.worker_nodes):
            self.leave(node, gracefully=True)

    def join(self, num_cpus: int = 8, num_gpus: int = 2) -> Any:
        """Return a new node, once the cluster knows it."""
        return self.cluster.add_node(
            num_cpus=num_cpus, num_gpus=num_gpus, object_store_memory=80 * 2**20, node_ip_address="127.0.0.1"
        )

    def leave(self, node: Any, *, gracefully: bool) -> None:
        """End a node; gracefully it tells the cluster, else its processes are killed and the cluster finds out."""
        self.cluster.remove_node(node, allow_graceful=gracefully)
        end = time.monotonic() + 30
        while gracefully and node.node_id in self.alive():
            assert time.monotonic() < end, "the cluster has not noticed in 30 s that a node has left"
            time.sleep(0.05)

    def kill_raylet(self, node: Any) -> None:
        """Kill the node's raylet alone, as the kernel would; its workers live on for a while."""
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def alive(self) -> set[str]:
        """Return the ids of the living nodes."""
        return {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
