"""Freed memory is used again in training and on CPUs, and given back now and then; judged by the page faults and the size that the kernel counts."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from rlabel.memory import MemoryKeeper, reuse_freed_memory_environment

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")

CODE = """
import resource, sys, threading
sys.path.insert(0, {root!r})
from rlabel.memory import return_freed_memory, reuse_freed_memory
{tell}

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for turn in range(12):
        if turn == 2:
            before = pages()
        block = b"x" * {size}
        del block
    print(pages() - before)

{run}
"""
SIZE = 20 << 20
TURNS = 10  # counted


def new_pages(tell: str, run: str = "work()", environment: dict[str, str] | None = None) -> int:
    """Return how many pages ten blocks of 20 MiB, one after the other, asked of the kernel."""
    code = CODE.format(root=str(ROOT), tell=tell, run=run, size=SIZE)
    env = {**os.environ, **(environment or {})}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=env)
    return int(done.stdout.splitlines()[-1])


IN_A_THREAD = "thread = threading.Thread(target=work); thread.start(); thread.join()"


def test_memory_that_was_freed_is_used_again_in_training() -> None:
    assert new_pages("assert reuse_freed_memory()") < SIZE // 4096 / 10


def test_memory_that_was_freed_is_used_again_in_the_threads_of_a_worker() -> None:
    assert new_pages("", IN_A_THREAD, reuse_freed_memory_environment()) < SIZE // 4096 / 10


def test_memory_that_was_freed_is_used_again_in_threads_that_are_started_later() -> None:
    assert new_pages("assert reuse_freed_memory(in_new_threads=True)", IN_A_THREAD) < SIZE // 4096 / 10


def test_idle_memory_is_given_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    now = [100.0]
    monkeypatch.setattr("rlabel.memory.time.monotonic", lambda: now[0])
    monkeypatch.setattr("rlabel.memory.give_idle_memory_back", lambda: given.append(now[0]))
    keeper = MemoryKeeper(every_s=10.0)
    for now[0] in (105.0, 110.0, 111.0, 119.9, 120.0):
        keeper.tidy()
    assert given == [110.0, 120.0]


def test_memory_that_was_freed_goes_back_beside_a_gpu() -> None:
    """A block that was given back is mapped anew, so the kernel counts its pages each time, be they huge or not."""
    assert new_pages("assert return_freed_memory()") > new_pages("assert reuse_freed_memory()") + TURNS
