"""Drivers that die, meet, fall asleep and come back with other settings or damaged shards."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from label_factories import NAMES, Setup, rlabel_here, save_model, save_vocabulary, shard_files, wait_until
from tests.chaos.bench import ended, finished, judge, loopback_ray, num_redone, prepared, start_driver
from tests.chaos.line import Clock, Line, Options

# Shards that a driver has begun and not committed: one whose answers are finished, one at the model. An actor may hold one more, which waits.
IN_FLIGHT, IN_FLIGHT_OF_AN_ACTOR = 2, 3
_LEASE_S = 6


def driver_kill(folder: Path, options: Options) -> Iterator[Line]:
    """Kill a driver without Ray, with the real labeler, and start it again at once."""
    setup, undisturbed = prepared(folder, max(12, 3 * options.points))
    yield _killed_again_and_again("driver kill -9", setup, undisturbed, folder / "run", options, IN_FLIGHT, no_ray=True)


def driver_kill_ray(folder: Path, options: Options) -> Iterator[Line]:
    """Kill a driver of two actors on a cluster that outlives it, and start it again at once."""
    setup = Setup(folder, save_model(folder / "model"), max(12, 3 * options.points))
    undisturbed = folder / "undisturbed"
    code, errors = finished(start_driver(setup.arguments(undisturbed, no_ray=True), "trivial"))
    assert code == 0, errors
    with loopback_ray() as (_, address):
        yield _killed_again_and_again(
            "driver kill -9, 2 actors on a cluster", setup, undisturbed, folder / "run", options,
            2 * IN_FLIGHT_OF_AN_ACTOR, "trivial", address=address, num_actors=2,
        )  # fmt: skip


def _killed_again_and_again(
    name: str,
    setup: Setup,
    undisturbed: Path,
    out: Path,
    options: Options,
    in_flight: int,
    worker: str = "counting",
    **more: Any,
) -> Line:
    clock, dice = Clock(), random.Random(options.seed)
    num_shards = len(shard_files(undisturbed))
    arguments = setup.arguments(out, **more)
    # The first is killed while it starts, the last while it merges.
    points = [0, *sorted(dice.sample(range(1, num_shards), options.points - 2)), num_shards]
    kills = 0
    for point in points:
        delay_s = dice.uniform(0.5, 4) if point == 0 else dice.uniform(0, 0.02 if point == num_shards else 0.2)
        least = min(num_shards, max(point, len(shard_files(out)) + 1)) if point else 0
        with ended(start_driver(arguments, worker)) as process:
            wait_until(lambda least=least: len(shard_files(out)) >= least or process.poll() is not None)
            time.sleep(delay_s)
            if process.poll() is None:
                process.kill()
                kills += 1
    code, errors = finished(start_driver(arguments, worker))
    if code != 0:
        return Line(test=name, faults=kills, seconds=clock.seconds, ok=False, notes=f"exit {code}: {errors[-300:]}")
    verdict, redone = judge(out, undisturbed), num_redone(out, num_shards)
    return Line(
        test=name, faults=kills, lost=verdict.lost, duplicated=verdict.duplicated, redone=redone, seconds=clock.seconds,
        ok=verdict.is_same and redone <= in_flight * kills and kills >= options.points - 1,
        notes=f"{verdict.note}; {num_shards} shards, at most {in_flight} in flight",
    )  # fmt: skip


def two_drivers(folder: Path, options: Options) -> Iterator[Line]:
    """Start a second driver while one works; then stop one in its sleep, let another take over, and wake it."""
    setup, undisturbed = prepared(folder, 24)
    clock, out = Clock(), folder / "two"
    hold = Path(f"{out}.hold")
    hold.touch()
    first = start_driver(setup.arguments(out, no_ray=True))
    with ended(first):
        wait_until(lambda: len(shard_files(out)) >= 2, first)
        code, errors = finished(start_driver(setup.arguments(out, no_ray=True)))
        hold.unlink()
        first_code, first_errors = finished(first)
    verdict, redone = judge(out, undisturbed), num_redone(out, 24)
    refused = code == 2 and "another driver" in errors and str(first.pid) in errors
    yield Line(
        test="two drivers at once", faults=1, lost=verdict.lost, duplicated=verdict.duplicated, redone=redone, seconds=clock.seconds,
        ok=verdict.is_same and refused and first_code == 0 and redone == 0,
        notes=f"{verdict.note}; the second is refused with exit {code}" + ("" if refused else f": {errors[-200:]} {first_errors[-200:]}"),
    )  # fmt: skip
    yield _zombie(setup, undisturbed, folder / "zombie")


def _zombie(setup: Setup, undisturbed: Path, out: Path) -> Line:
    clock = Clock()
    arguments = [*setup.arguments(out, no_ray=True), *_lease_arguments(_LEASE_S)]
    zombie = start_driver(arguments)
    with ended(zombie):
        wait_until(lambda: len(shard_files(out)) >= 3, zombie)
        os.kill(zombie.pid, signal.SIGSTOP)
        code, errors = finished(start_driver(arguments))
        before = judge(out, undisturbed) if code == 0 else None
        os.kill(zombie.pid, signal.SIGCONT)
        zombie_code, zombie_errors = finished(zombie)
    if before is None:
        return Line(test="zombie that commits late", faults=1, seconds=clock.seconds, ok=False, notes=errors[-300:])
    verdict, redone = judge(out, undisturbed), num_redone(out, 24)
    stopped = zombie_code == 1 and "Traceback" not in zombie_errors and "drive" in zombie_errors
    return Line(
        test="zombie that commits late", faults=1, lost=verdict.lost, duplicated=verdict.duplicated, redone=redone, seconds=clock.seconds,
        ok=before.is_same and verdict.is_same and stopped and redone <= IN_FLIGHT + 1,
        notes=f"{verdict.note} before and after it woke; it ends with exit {zombie_code}" + ("" if stopped else f": {zombie_errors[-300:]}"),
    )  # fmt: skip


def _lease_arguments(seconds: float) -> list[str]:
    """Return the option that makes a silent driver count as dead soon, where this rlabel has it."""
    from rlabel.config import LabelSettings

    return ["--driver-expiry-s", str(seconds)] if "driver_expiry_s" in LabelSettings.model_fields else []


def changed_settings(folder: Path, options: Options) -> Iterator[Line]:
    """Kill a run in the middle and go on with something changed that decides labels: refused, the field named, nothing touched."""
    setup, undisturbed = prepared(folder, 12)
    clock, out = Clock(), folder / "run"
    with ended(start_driver(setup.arguments(out, no_ray=True))) as process:
        wait_until(lambda: len(shard_files(out)) >= 3, process)
        process.kill()
    other = Setup(folder / "other", _seeded_model(save_model(folder / "other-model")), 12)
    regions = json.loads((setup.corpus / "regions.json").read_text())
    regions["annotations"][5]["bbox"] = [0, 0, 3, 3]
    (folder / "moved.json").write_text(json.dumps(regions))
    changes: list[tuple[str, dict[str, Any]]] = [
        ("threshold", {"threshold": 0.5}),
        ("images_per_shard", {"images_per_shard": 2}),
        ("question", {"question": "What is in <region>?"}),
        ("max_new_tokens", {"max_new_tokens": 5}),
        ("vocabulary_sha256", {"vocabulary": save_vocabulary(folder / "more.json", [*NAMES, "tuba"])}),
        ("model_sha256", {"model": other.model}),
        ("corpus", {"regions": folder / "moved.json"}),
    ]
    wrong: list[str] = []
    for field, change in changes:
        before = _snapshot(out)
        result = rlabel_here("label", setup.arguments(out, **{"no_ray": True, **change}))
        if result.returncode != 2 or field not in result.stderr or _snapshot(out) != before:
            wrong.append(f"{field}: exit {result.returncode}")
    code, errors = finished(start_driver(setup.arguments(out, no_ray=True)))
    verdict = judge(out, undisturbed) if code == 0 else None
    yield Line(
        test="settings, vocabulary, weights or corpus changed before a resume", faults=len(changes), seconds=clock.seconds,
        lost=verdict.lost if verdict else 0, duplicated=verdict.duplicated if verdict else 0, redone=num_redone(out, 12),
        ok=not wrong and verdict is not None and verdict.is_same,
        notes=f"refused, the field named, nothing touched; {verdict.note if verdict else errors[-200:]}" + "".join(f"; WRONG {line}" for line in wrong),
    )  # fmt: skip


def _seeded_model(model: Path) -> Path:
    """Change one weight of a model by a last digit."""
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    return model


def _snapshot(out: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(out)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def flipped_bit(folder: Path, options: Options) -> Iterator[Line]:
    """Flip one bit of one shard of a finished run: merging refuses and names it, repair removes it, the same command makes only it anew."""
    setup, undisturbed = prepared(folder, 12)
    clock, dice = Clock(), random.Random(options.seed)
    wrong: list[str] = []
    redone = 0
    out = folder / "run"
    for _ in range(options.points):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(undisturbed, out)
        (out / "labels.json").unlink()
        shard = dice.choice(sorted((out / "shards").iterdir()))
        data = bytearray(shard.read_bytes())
        bit = dice.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(data)
        wrong += _mended(setup, out, shard, f"bit {bit} of {shard.name}")
        verdict = judge(out, undisturbed)
        if not verdict.is_same:
            wrong.append(f"bit {bit} of {shard.name}: {verdict.note}")
        redone += 1
    yield Line(
        test="a bit flipped in a shard", faults=options.points, redone=redone, seconds=clock.seconds, ok=not wrong,
        notes="merge refuses and names it; repair and the same command redo only it; identical bytes" if not wrong else "; ".join(wrong)[:400],
    )  # fmt: skip


def _mended(setup: Setup, out: Path, shard: Path, name: str) -> list[str]:
    """Refuse, repair and redo; return what was not as it should be."""
    wrong = []
    others = {name: mark for name, mark in shard_files(out).items() if name != shard.name}
    arguments = setup.arguments(out, no_ray=True)
    refused = rlabel_here("label", arguments)
    if refused.returncode != 1 or str(shard) not in refused.stderr or (out / "labels.json").exists():
        wrong.append(f"{name}: exit {refused.returncode}, not named")
    repaired = rlabel_here("repair", [str(out), "--delete"])
    if shard.exists() or shard.name not in repaired.stdout + repaired.stderr:
        wrong.append(f"{name}: repair: exit {repaired.returncode}: {repaired.stderr[-100:]}")
        shard.unlink(missing_ok=True)
    done = rlabel_here("label", arguments)
    if done.returncode != 0:
        wrong.append(f"{name}: exit {done.returncode} after repair")
    if {name: mark for name, mark in shard_files(out).items() if name != shard.name} != others:
        wrong.append(f"{name}: other shards were written again")
    return wrong


CASES: dict[str, Callable[[Path, Options], Iterator[Line]]] = {
    "driver_kill": driver_kill,
    "driver_kill_ray": driver_kill_ray,
    "two_drivers": two_drivers,
    "changed_settings": changed_settings,
    "flipped_bit": flipped_bit,
}
