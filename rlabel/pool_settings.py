"""Settings that every job on a pool of workers has: where it runs, how often a shard is tried, and what of a stranger's picture is read."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from rlabel.settings_files import SettingsRecord


def _whole_above_one(gpus: float) -> float:
    if gpus != -1 and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
        raise ValueError("a share of one GPU, a whole number of GPUs, or -1")
    return gpus


# Ray takes no 1.5 GPUs.
Gpus = Annotated[
    float,
    Field(
        ge=-1,
        le=1024,
        allow_inf_nan=False,
        json_schema_extra={"anyOf": [{"minimum": 0, "maximum": 1}, {"multipleOf": 1}]},
    ),
    AfterValidator(_whole_above_one),
]


class PoolSettings(SettingsRecord):
    """Settings of a job whose shards are done by a pool of workers. None of them decides what is written, but for the limits."""

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$",
        description="auto: the GPU that Ray gave the actor, else the CPU",
    )
    num_actors: int = Field(
        0, ge=0, description="0: one a GPU of the cluster, or up to 4 on the CPUs of each node; more when nodes join"
    )
    gpus_per_actor: Gpus = Field(-1.0, description="-1: 1 where the cluster has GPUs and they are used, else 0")
    cpus_per_actor: int = Field(
        1, ge=1, description="CPUs and torch threads of each actor, and of this process under --no-ray"
    )
    address: str | None = Field(
        None, description="Ray cluster; a private local Ray if left out and RAY_ADDRESS is unset"
    )
    no_ray: bool = Field(False, description="work in this process")
    max_attempts: int = Field(3, ge=1, le=20)
    shard_timeout_s: float = Field(3600.0, gt=0)
    wait_for_actors_s: float = Field(600.0, gt=0)
    max_failure_rate: float = Field(0.5, ge=0, le=1, description="a larger share of failures ends with exit code 3")
    max_pixels: int = Field(
        100_000_000, ge=1, le=178_956_970, description="a picture of more, by its header, is not decoded"
    )
    max_file_bytes: int = Field(2**28, ge=1, description="a picture's file of more is not read")
    isolate_decoders: bool = Field(
        True,
        description="decode pictures in a process of their own: one that crashes its decoder costs that picture alone",
    )
    heartbeat_s: float = Field(10.0, gt=0)
    driver_expiry_s: float = Field(
        60.0,
        ge=1,
        le=3600,
        description="a run whose driver gave no sign of life for so long may be taken over by another one",
    )
