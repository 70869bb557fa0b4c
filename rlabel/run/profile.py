"""Where a run's time went, for people: RUN/profile.json with seconds and shares, RUN/trace.json for chrome://tracing or ui.perfetto.dev.

Not part of the run's results: nothing reads them, and the next labeling with --profile writes them anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from rlabel.records import JsonObject, JsonValue
from rlabel.spans import Profile
from rlabel.storage import Store

PROFILE, TRACE = "profile.json", "trace.json"
# What a stage is made of, in the order of the way. The names are those of the spans.
STAGES = (
    "read and decode", "masks", "model inputs", "tower", "prefill", "decode steps", "model", "snap", "commit", "wait for inputs", "wait for snapping",
)  # fmt: skip
_AT_THE_MODEL = ("tower", "prefill", "decode steps", "model")


def profile_to_json(profiles: Sequence[Profile]) -> JsonObject:
    """Return the table of each process and of all together: seconds, and shares of the wall time.

    Stages run beside each other, so shares do not add up to 1. idle: the model had nothing to do, whatever the reason.
    """
    workers: list[JsonValue] = [_table([profile]) for profile in profiles]
    return {"workers": workers, "all": _table(profiles)}


def _table(profiles: Sequence[Profile]) -> JsonObject:
    wall_s = sum(profile.wall_s for profile in profiles)
    stages: JsonObject = {}
    names = [*STAGES, *sorted({name for profile in profiles for name in profile.own_s} - set(STAGES))]
    for name in names:
        seconds = sum(profile.own_s.get(name, 0.0) for profile in profiles)
        count = sum(profile.counts.get(name, 0) for profile in profiles)
        if count:
            stages[name] = _row(seconds, wall_s, count)
    at_the_model = sum(profile.own_s.get(name, 0.0) for profile in profiles for name in _AT_THE_MODEL)
    stages["idle"] = _row(max(0.0, wall_s - at_the_model), wall_s, None)
    return {"wall_s": round(wall_s, 3), "stages": stages}


def _row(seconds: float, wall_s: float, count: int | None) -> JsonObject:
    return {"seconds": round(seconds, 3), "share": round(seconds / wall_s, 4) if wall_s else 0.0, "count": count}


def trace_to_json(profiles: Sequence[Profile]) -> JsonObject:
    """Return the spans in Chrome's trace event format ("JSON Object Format", phases X and M): a process a worker, a lane a thread."""
    events: list[JsonValue] = []
    for process, profile in enumerate(profiles):
        events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": f"worker {process}"}})
        lanes: dict[str, int] = {}
        for span in profile.spans:
            if span.lane not in lanes:
                lanes[span.lane] = len(lanes)
                name: JsonObject = {"name": span.lane}
                events.append({"ph": "M", "name": "thread_name", "pid": process, "tid": lanes[span.lane], "args": name})
            events.append(
                {
                    "ph": "X",
                    "name": span.name,
                    "pid": process,
                    "tid": lanes[span.lane],
                    "ts": round(span.start_s * 1e6, 1),
                    "dur": round(span.duration_s * 1e6, 1),
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_profile(store: Store, profiles: Sequence[Profile]) -> None:
    """Replace RUN/profile.json and RUN/trace.json. Raises StorageError."""
    store.put(PROFILE, (json.dumps(profile_to_json(profiles), indent=1) + "\n").encode("ascii"))
    store.put(TRACE, json.dumps(trace_to_json(profiles)).encode("ascii"))


def profile_text(profiles: Sequence[Profile]) -> str:
    """Return the table of all workers together."""
    total = _table(profiles)
    stages = total["stages"]
    assert isinstance(stages, dict)
    lines = [f"{'':18} {'seconds':>9} {'share':>7} {'times':>7}"]
    for name, row in stages.items():
        assert isinstance(row, dict)
        count = "" if row["count"] is None else str(row["count"])
        lines.append(f"{name:18} {row['seconds']:9.2f} {row['share']:7.1%} {count:>7}".rstrip())
    return "\n".join([*lines, f"of {total['wall_s']:.2f} s of {len(profiles)} workers"])
