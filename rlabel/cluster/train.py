"""Runs the training loop on Ray Train workers. Knows nothing of models or losses: it gives the plain loop its surroundings."""

from __future__ import annotations

import json
import pickle
import re
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlabel.errors import RlabelError, RunError
from rlabel.memory import reuse_freed_memory_environment
from rlabel.storage import Store

if TYPE_CHECKING:
    import torch

    from rlabel.config import Parallel
    from rlabel.training.loop import TrainJob
    from rlabel.training.progress import Progress


ATTEMPT = ".attempt"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlacement:
    """Where training runs.

    name carries the fingerprint of the settings: Ray would silently continue an old run of the same name.
    log_path: a local file for progress lines; None where the output is an object store, which cannot append. tensorboard: event files beside it.
    parallel: whether every worker holds the whole model (ddp) or a part of it (fsdp).
    out, attempt: this driver's id lies in out, under ATTEMPT. Workers outlive a killed driver by up to half a minute; they stop when they find
    another's id there, before they spoil the checkpoints of the one that goes on.
    """

    name: str
    storage: str
    num_workers: int
    gpus_per_worker: float
    cpus_per_worker: int
    max_failures: int
    save_dtype: str
    log_path: Path | None
    out: Store
    attempt: str
    parallel: Parallel = "ddp"
    tensorboard: bool = False


class RaySurroundings:
    """What the loop sees of Ray Train: its rank, DDP or shards, and checkpoints that Ray keeps in the storage path."""

    def __init__(
        self, log_path: Path | None, out: Store, attempt: str, parallel: Parallel = "ddp", tensorboard: bool = False
    ) -> None:
        import ray.train
        import ray.train.torch

        from rlabel.training.journal import Journal

        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self.sharded = parallel == "fsdp"
        self.journal = Journal(log_path, tensorboard=tensorboard) if log_path is not None else None
        self.out = out
        self.attempt = attempt
        self._folder = tempfile.TemporaryDirectory(prefix="rlabel-checkpoint-")

    def wrap(self, step: Any) -> Any:
        from ray.train.torch import prepare_model

        from rlabel.training.sharding import ShardedStep

        if self.sharded:
            return ShardedStep(step, self.device)
        # A batch without zoomed crops leaves the zoom connector without gradients.
        return prepare_model(step, parallel_strategy_kwargs={"find_unused_parameters": True})

    def restore(self) -> Path | None:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        return Path(checkpoint.to_directory(str(Path(self._folder.name) / "restored"))) if checkpoint else None

    def report(self, progress: Progress, write_checkpoint: Callable[[Path], None] | None) -> None:
        import ray.train

        if self.rank == 0:
            self._refuse_if_superseded()
            if self.journal is not None:
                self.journal.add(progress)
        if write_checkpoint is None:
            return  # Ray's report blocks all ranks; plain progress goes to the log alone
        if self.rank != 0:
            ray.train.report(asdict(progress))
            return
        with tempfile.TemporaryDirectory(prefix="rlabel-checkpoint-") as folder:
            write_checkpoint(Path(folder))
            ray.train.report(asdict(progress), checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _refuse_if_superseded(self) -> None:
        if self.out.read(ATTEMPT).decode() != self.attempt:
            raise RunError(
                f"{self.out.url}: another `rlabel train` has taken this folder over. Stop one of the two; the newer goes on."
            )


def _loop(config: dict[str, Any]) -> None:
    """The function each Ray Train worker runs."""
    import ray.train
    import torch

    from rlabel.training.checkpoint import save_weights
    from rlabel.training.loop import train, write_model

    torch.set_num_threads(config["threads"])
    surroundings = RaySurroundings(
        config["log_path"], config["out"], config["attempt"], config["parallel"], config["tensorboard"]
    )
    job: TrainJob = pickle.loads(config["job"])
    model, processor = train(job, surroundings)
    if surroundings.rank != 0:
        ray.train.report({"finished": True})
        return
    with tempfile.TemporaryDirectory(prefix="rlabel-model-") as folder:
        write_model(model, processor, Path(folder) / "model", getattr(torch, config["save_dtype"]))
        (Path(folder) / "trainer.json").write_text(json.dumps({"stage": len(job.recipe.stages), "step": 0}))
        save_weights(model.float().state_dict(), Path(folder) / "weights.safetensors")
        ray.train.report({"finished": True}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def train_on_ray(job: TrainJob, placement: TrainPlacement, take_model: Callable[[Path], None]) -> None:
    """Train on the connected cluster and hand the finished model folder to `take_model`.

    A killed worker goes on from the last checkpoint; the same call after a killed driver does too.
    Raises RunError when training fails more often than allowed.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    placement.out.put(ATTEMPT, placement.attempt.encode())
    resources = {"CPU": float(placement.cpus_per_worker)}
    if placement.gpus_per_worker > 0:
        resources["GPU"] = placement.gpus_per_worker
    trainer = _interruptible()(
        _loop,
        train_loop_config={
            # Ray Train's controller unpickles this too, before any worker starts: as bytes it costs that process none of the loop's imports.
            "job": pickle.dumps(job),
            "threads": placement.cpus_per_worker,
            "log_path": placement.log_path,
            "out": placement.out,
            "attempt": placement.attempt,
            "save_dtype": placement.save_dtype,
            "parallel": placement.parallel,
            "tensorboard": placement.tensorboard,
        },
        scaling_config=ScalingConfig(
            num_workers=placement.num_workers, use_gpu=placement.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # its second version, which TorchTrainer takes, has the field
            name=placement.name,
            storage_path=placement.storage,
            failure_config=FailureConfig(max_failures=placement.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            # The function of a worker runs in a thread, where the heap cannot be told any more.
            worker_runtime_env={} if placement.gpus_per_worker > 0 else {"env_vars": reuse_freed_memory_environment()},
        ),
    )
    try:
        result = _fit(trainer)
    except Exception as error:
        raise RunError(
            f"training {placement.name} failed: {_cause(error)} The same command goes on from the last checkpoint."
        ) from error
    if result.checkpoint is None:
        raise RunError(
            f"training {placement.name}: ended without a checkpoint. Delete its folder in {placement.storage} and train again."
        )
    with result.checkpoint.as_directory() as folder:
        take_model(Path(folder) / "model")


def _interruptible() -> type[Any]:
    """Return a TorchTrainer that leaves Ctrl-C alone: Ray 2.60 takes it, and ends the process with exit code 0 as if it had finished."""
    from ray.train.torch import TorchTrainer

    class Interruptible(TorchTrainer):
        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

    return Interruptible


def _fit(trainer: Any) -> Any:
    """Return trainer.fit(). SIGTERM raises KeyboardInterrupt meanwhile: the only exception of a signal that Ray's waiting lets through."""
    import ray

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        return trainer.fit()
    except KeyboardInterrupt:
        if trainer.controller is not None:
            ray.kill(trainer.controller)  # in a session that goes on, training must not
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _cause(error: BaseException) -> str:
    """Return the innermost reason in one sentence: an error of our own as it is, of another its kind and the last line."""
    while True:
        failures = getattr(error, "worker_failures", None) or {}
        inside = [
            *failures.values(),
            getattr(error, "controller_failure", None),
            getattr(error, "cause", None),
            error.__cause__,
        ]
        inner = next((one for one in inside if isinstance(one, BaseException)), None)
        if inner is None:
            break
        error = inner
    if isinstance(error, RlabelError):
        return str(error)
    # Ray's own errors are whole tracebacks, coloured; what happened stands at their end.
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()[:400].rstrip('.')}."
