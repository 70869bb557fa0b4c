"""The files in examples/cluster: they parse, and every option, setting and variable in them is one that is read."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlabel
from guards import ROOT, rlabel_arguments, shell_commands, wrong_call

CLUSTER = ROOT / "examples" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
# What transformers, tokenizers, Ray and srun read; a misspelled one would do nothing, silently.
VARIABLES = {"HF_HUB_OFFLINE", "HF_HOME", "TOKENIZERS_PARALLELISM", "RAY_USAGE_STATS_ENABLED", "SRUN_CPUS_PER_TASK"}


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    document = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def calls(script: Path) -> Iterator[list[str]]:
    """Give the arguments of every `rlabel` in a script, its variables replaced by words."""
    code = "\n".join(line for line in script.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    plain = re.sub(r'"?\$\{?[@A-Za-z_][^" ]*"?', "WORD", code.replace('"$@"', ""))
    for command in shell_commands(f"```bash\n{plain}\n```"):
        words = rlabel_arguments(command)
        if words is not None:
            yield words


def values(words: list[str]) -> dict[str, str]:
    """Return the options of a call with their values."""
    return {one: other for one, other in zip(words, words[1:], strict=False) if one.startswith("--")}


def test_the_ray_job_is_one_that_kuberay_takes(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    # Fields of RayJobSpec, RayClusterSpec and WorkerGroupSpec of ray.io/v1.
    assert set(spec) <= {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "runtimeEnvYAML", "rayClusterSpec"}  # fmt: skip
    cluster = spec["rayClusterSpec"]
    assert set(cluster) == {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
    # Ray's version is that of the image, which is the one that was tested.
    assert cluster["rayVersion"] == version("ray")
    (workers,) = cluster["workerGroupSpecs"]
    assert set(workers) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    for group, share in ((cluster["headGroupSpec"], {}), (workers, {"nvidia.com/gpu": "1"})):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].endswith(f"/rlabel:{rlabel.__version__}")
        resources = container["resources"]
        assert resources["requests"] == resources["limits"] and resources["limits"].items() >= share.items()


def test_the_ray_job_runs_a_command_that_parses(job: dict[str, Any]) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["rlabel", "label"] and wrong_call(words[1:]) is None
    options = values(words)
    assert "://" in options["--out"]  # a Ray job's folder is thrown away
    # As many workers as actors, a GPU each: fewer and some actors wait for ever.
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert options["--gpus-per-actor"] == "1" and int(options["--num-actors"]) == workers["maxReplicas"]
    # The driver, on the head, reads the model's folder as the actors do.
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        mounted = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert options["--model"].startswith(tuple(mounted))
        assert set(mounted.values()) == {volume["name"] for volume in pod["volumes"]}


def test_variables_reach_the_actors_as_text(job: dict[str, Any]) -> None:
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert set(environment) == {"env_vars"} and set(environment["env_vars"]) <= VARIABLES
    assert all(isinstance(value, str) for value in environment["env_vars"].values())  # Ray refuses numbers
    assert environment["env_vars"]["HF_HUB_OFFLINE"] == "1"
    exported = {
        name
        for script in SCRIPTS
        for line in re.findall(r"^export (.+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
        for name in re.findall(r"\b([A-Z_]+)=", line)
    }
    assert exported and exported <= VARIABLES


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_scripts_are_sound_and_call_rlabel_rightly(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, timeout=30).stderr == b""
    assert (
        text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text and script.stat().st_mode & 0o100
    )
    found = list(calls(script))
    assert found and found[0][0] == "label" and [problem for words in found if (problem := wrong_call(words))] == []


def test_slurm_asks_ray_for_what_slurm_gives() -> None:
    text = (CLUSTER / "slurm.sh").read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    (words,) = calls(CLUSTER / "slurm.sh")
    # The actors of a node may not ask for more CPUs than Slurm gives it: Ray would leave GPUs idle.
    cpus = int(values(words)["--cpus-per-actor"]) * int(asked["gpus-per-node"])
    assert cpus <= int(asked["cpus-per-task"]) and asked["signal"].startswith("B:TERM@") and "requeue" in asked
    assert int(asked["nodes"]) > 1 and int(asked["ntasks-per-node"]) == 1


FAKES = {
    "scontrol": "echo n1; echo n2",
    "srun": 'echo "srun $*" >> "$LOG"; case "$*" in *hostname*) echo 10.0.0.1 10.0.0.2;; *--block*) exit 0;; esac',
    "sleep": "exit 0",
    "rlabel": 'trap "exit 130" TERM; echo "rlabel $*" >> "$LOG"; [ "$WAITS" = 1 ] || exit 3; echo on >&2; while :; do /bin/sleep 0.05; done',
}


@pytest.mark.parametrize(("signalled", "code"), [(False, 3), (True, 130)])
def test_slurm_script_starts_ray_on_each_node_and_ends_as_rlabel_does(
    tmp_path: Path, signalled: bool, code: int
) -> None:
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/activate").write_text("")
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "USER": "u", "ENVIRONMENT": str(tmp_path / "env"), "LOG": str(tmp_path / "log"),
        "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32", "WAITS": str(int(signalled)),
    }  # fmt: skip
    script = subprocess.Popen([str(CLUSTER / "slurm.sh")], env=variables, stderr=subprocess.PIPE, text=True)
    assert script.stderr is not None
    if signalled:
        assert script.stderr.readline() == "on\n"
        script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=30) == code, script.stderr.read()
    log = (tmp_path / "log").read_text()
    assert log.count("ray start --head") == 1 and "-w n1 ray start --head --node-ip-address=10.0.0.1 --port=6379" in log
    assert "-w n2 ray start --address=10.0.0.1:6379 --num-cpus=32 --num-gpus=4" in log
    assert "rlabel label --address 10.0.0.1:6379" in log and "--out /scratch/u/run" in log


def test_a_script_runs_what_it_is_given(tmp_path: Path) -> None:
    fake = tmp_path / "rlabel"
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@"; echo\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [str(CLUSTER / "one_machine.sh"), "my photos", "m.json", "n.json", "my run", "--limit", "3"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first.split("|")[:-1] == [
        "label", "--images", "my photos", "--regions", "m.json", "--vocabulary", "n.json", "--out", "my run",
        "--dtype", "bfloat16", "--limit", "3",
    ]  # fmt: skip
    assert second == "status|my run|" and done.returncode == 0
    too_few = subprocess.run([str(CLUSTER / "one_machine.sh"), "photos"], capture_output=True, text=True, timeout=30)
    assert too_few.returncode != 0


def test_a_wrong_option_in_an_example_is_found(tmp_path: Path) -> None:
    script = tmp_path / "x.sh"
    script.write_text('#!/bin/bash\n# rlabel label --no\nrlabel label --images "$a/b" \\\n  --colour "$c" "$@" &\n')
    (words,) = calls(script)
    assert wrong_call(words) == "no such option: --colour"
