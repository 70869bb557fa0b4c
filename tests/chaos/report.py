"""RELIABILITY.md from the lines of the bench: the newest line of each test, with its day, machine and size."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")
_COLUMNS = ("test", "faults", "lost", "duplicated", "redone", "seconds", "ok", "what was seen")


def machine() -> str:
    """Return the machine in words."""
    import os

    import psutil

    model = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores ({model}), {psutil.virtual_memory().total / 2**30:.0f} GiB, no GPU, Python {platform.python_version()}, {platform.system()}"


def keep(case: str, size: str, lines: Iterable[Mapping[str, Any]], path: Path = RESULTS) -> None:
    """Put a case's lines in the place of those that it left before."""
    day, where = datetime.now(UTC).date().isoformat(), machine()
    kept = [row for row in read(path) if row["case"] != case]
    kept += [{"case": case, "day": day, "machine": where, "size": size, **line} for line in lines]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return all kept lines."""
    return [json.loads(line) for line in _lines(path)]


def page(rows: list[dict[str, Any]], cases: Iterable[str]) -> str:
    """Return RELIABILITY.md. cases: all there are, in order; those without a line are named as not run."""
    order = list(cases)
    rows = sorted((row for row in rows if row["case"] in order), key=lambda row: order.index(row["case"]))
    missing = [case for case in order if case not in {row["case"] for row in rows}]
    text = (
        "# Reliability\n\nWritten by `make chaos`; not by hand. Each line is a test of whole runs with faults injected, judged against an undisturbed run.\n\n"
        "faults: injected. lost: regions without an outcome. duplicated: outcomes too many. redone: shards put through the labeler again\n"
        "(- where that cannot be counted, or there are no shards). One case alone: `python -m tests.chaos NAME`; all names: `python -m tests.chaos --list`.\n"
    )
    for where in dict.fromkeys(row["machine"] for row in rows):
        own = [row for row in rows if row["machine"] == where]
        text += f"\nMachine: {where}.\n\n| {' | '.join(_COLUMNS)} | day |\n|{' --- |' * (len(_COLUMNS) + 1)}\n"
        text += "".join(f"| {' | '.join(_cells(row))} |\n" for row in own)
        sizes = dict.fromkeys(f"`python -m tests.chaos {row['case']}{row['size']}`" for row in own)
        text += f"\nCommands: {', '.join(sizes)}.\n"
    if missing:
        text += f"\nNot run: {', '.join(missing)}.\n"
    return text


def _cells(row: Mapping[str, Any]) -> list[str]:
    counts = ["-" if row[name] is None else str(row[name]) for name in ("faults", "lost", "duplicated", "redone")]
    test, notes = (" ".join(row[name].replace("|", "/").split()) for name in ("test", "notes"))
    return [test, *counts, f"{row['seconds']:g}", "yes" if row["ok"] else "**NO**", notes, row["day"]]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
