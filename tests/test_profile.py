"""Where time goes: spans of threads, the table and the trace made of them, and a run that writes both without changing its labels."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

import rlabel.spans as spans
from label_factories import Setup, outputs, rlabel_here, save_model
from rlabel.run.profile import profile_text, profile_to_json, trace_to_json
from rlabel.spans import Profile, Span, recorded, span, start_recording, stop_recording


@pytest.fixture
def recording():
    start_recording()
    yield
    stop_recording()


def test_nothing_is_kept_while_nothing_records() -> None:
    with span("tower"):
        pass
    assert recorded() is None


def test_an_inner_span_is_taken_out_of_the_outer_one_and_threads_are_apart(recording, monkeypatch) -> None:
    clock = iter([1.0, 2.0, 5.0, 9.0])
    monkeypatch.setattr(spans.time, "perf_counter", lambda: next(clock, 9.0))
    with span("model"), span("prefill"):
        pass
    monkeypatch.undo()

    def elsewhere() -> None:
        with span("snap"):
            time.sleep(0.01)

    with span("model"):
        thread = threading.Thread(target=elsewhere, name="finish_0")
        thread.start()
        thread.join()
    found = recorded()
    assert found is not None
    assert found.own_s["prefill"] == 3.0 and 5.0 <= found.own_s["model"] < 10.0
    assert found.own_s["snap"] >= 0.01 and found.counts == {"model": 2, "prefill": 1, "snap": 1}
    assert {item.lane for item in found.spans if item.name == "snap"} == {"finish_0"}


def test_a_span_that_raises_is_counted_and_waits_for_no_device() -> None:
    waited: list[int] = []
    start_recording(lambda: waited.append(1))
    try:
        with pytest.raises(ValueError), span("tower", device=True):
            raise ValueError("no")
        with span("tower", device=True):
            pass
        with span("snap"):
            pass
        found = recorded()
    finally:
        stop_recording()
    assert found is not None and found.counts == {"tower": 2, "snap": 1}
    assert len(waited) == 3, "at both ends of what ended well, at the beginning of what did not"


def test_spans_behind_the_bound_stay_in_the_sums(recording) -> None:
    start_recording(num_kept=2)
    for _ in range(5):
        with span("masks"):
            pass
    found = recorded()
    assert found is not None and (found.counts["masks"], len(found.spans), found.dropped) == (5, 2, 3)


def test_the_table_sums_workers_and_idle_is_what_the_model_did_not_do() -> None:
    one = Profile(
        wall_s=10.0,
        own_s={"tower": 2.0, "prefill": 3.0, "snap": 4.0},
        counts={"tower": 2, "prefill": 2, "snap": 1},
        spans=(),
    )
    two = Profile(wall_s=10.0, own_s={"tower": 10.0}, counts={"tower": 1}, spans=())
    table = profile_to_json([one, two])
    assert [worker["stages"]["idle"]["seconds"] for worker in table["workers"]] == [5.0, 0.0]
    assert table["all"]["wall_s"] == 20.0
    assert table["all"]["stages"]["tower"] == {"seconds": 12.0, "share": 0.6, "count": 3}
    assert table["all"]["stages"]["idle"] == {"seconds": 5.0, "share": 0.25, "count": None}
    assert "tower" in profile_text([one, two]) and "60.0%" in profile_text([one, two])


def test_a_trace_has_microseconds_a_process_a_worker_and_a_lane_a_thread() -> None:
    made = Span(name="snap", lane="finish_0", start_s=2.0, duration_s=0.5)
    events = trace_to_json([Profile(wall_s=1.0, own_s={}, counts={}, spans=(made,))] * 2)["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == [
        "worker 0",
        "finish_0",
        "worker 1",
        "finish_0",
    ]
    assert [event for event in events if event["ph"] == "X"] == [
        {"ph": "X", "name": "snap", "pid": pid, "tid": 0, "ts": 2e6, "dur": 5e5} for pid in (0, 1)
    ]


def test_a_profiled_run_has_the_bytes_of_another_and_says_where_its_time_went(tmp_path: Path) -> None:
    setup = Setup(tmp_path, save_model(tmp_path / "model"), 3)
    assert rlabel_here("label", setup.arguments(tmp_path / "plain", no_ray=True)).returncode == 0
    assert not (tmp_path / "plain" / "profile.json").exists()
    result = rlabel_here("label", setup.arguments(tmp_path / "run", no_ray=True, profile=True))
    assert result.returncode == 0, result.stderr
    assert outputs(tmp_path / "run") == outputs(tmp_path / "plain")
    stages = json.loads((tmp_path / "run" / "profile.json").read_text())["all"]["stages"]
    expected = {"read and decode": 3, "masks": 6, "tower": 3, "prefill": 3, "decode steps": 9, "snap": 3, "commit": 3}
    assert {name: stages[name]["count"] for name in expected} == expected
    assert json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    assert "decode steps" in result.stderr and recorded() is None
    # Where work is measured does not refuse a resume.
    assert rlabel_here("label", setup.arguments(tmp_path / "run", no_ray=True)).returncode == 0
