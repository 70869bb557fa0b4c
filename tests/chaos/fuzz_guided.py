"""The fuzzer that is guided by the coverage of one reader: atheris, which is libFuzzer for Python.

pip install 'rlabel[fuzz]'
python -m tests.chaos.fuzz --only guided-rle --seconds 60
"""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.fuzz_inputs import NAMES, corpus_file

GUIDED = ("guided-rle", "guided-polygons", "guided-coco")
_RAISED = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception|Bad\w+)\b.*)$|^(.*libFuzzer: .*)$", re.MULTILINE)


def guided(process: subprocess.Popen[bytes], limit_s: float, folder: Path) -> tuple[int, list[str], str]:
    """Return how many inputs a child of `guided_child` has run, what is wrong, and notes."""
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    text = output.decode("utf-8", "replace")
    executed = re.findall(r"number_of_executed_units:\s*(\d+)", text)
    covered = (re.findall(r"cov: (\d+)", text) or ["0"])[-1]
    bad = []
    if process.returncode or not executed:
        raised = _RAISED.findall(text)
        shown = " ".join(filter(None, raised[0]))[:200] if raised else text[-300:]
        inputs = [path.read_bytes()[:400] for path in sorted(folder.glob("found-*"))]
        bad.append(f"exit {process.returncode}: {shown}; input {inputs[:1]}")
    return int(executed[-1]) if executed else 0, bad, f"atheris; {covered} points covered"


def guided_child(kind: str, seconds: float, folder: Path, memory: int, limit_s: float) -> int:
    """Fuzz one reader for so long; libFuzzer ends the process."""
    try:
        import atheris
    except ImportError:
        print("ImportError: atheris is not installed: pip install 'rlabel[fuzz]'")
        return 1

    with atheris.instrument_imports(include=["rlabel.corpus"]):
        from rlabel.corpus import coco, json_stream, polygons, rle  # noqa: F401
    test = {"guided-rle": _try_rle, "guided-polygons": _try_polygons, "guided-coco": _try_coco}[kind]()
    seeds = folder / "seeds"
    seeds.mkdir()
    samples = {
        "guided-rle": [b"\x09\x08" + b'"<5n1"', b"\x09\x08[10, 5, 57]"],
        "guided-polygons": [b"\x09\x08[[1, 1, 7, 1, 7, 6], [1e9, 0, 0, 5, 3, -4.5]]"],
        "guided-coco": [corpus_file(seed, NAMES) for seed in range(40)],
    }[kind]
    for number, sample in enumerate(samples):
        (seeds / str(number)).write_bytes(sample)
    atheris.Setup(
        [
            "fuzz", str(seeds), f"-max_total_time={max(1, int(seconds))}", f"-rss_limit_mb={memory >> 20}", f"-timeout={int(limit_s)}",
            "-print_final_stats=1", "-max_len=4096", "-seed=1", f"-artifact_prefix={folder}/found-",
        ],
        test,
    )  # fmt: skip
    atheris.Fuzz()  # ends the process
    return 0


def _try_rle() -> Callable[[bytes], None]:
    from rlabel.corpus.rle import BadRle, counts_to_mask, counts_to_rle, mask_to_rle, rle_counts

    def test(data: bytes) -> None:
        height, width = _size(data)
        value = _json(data[2:])
        for counts in (value, data[2:].decode("latin-1")):
            try:
                runs = rle_counts({"size": [height, width], "counts": counts}, height, width)
            except BadRle:
                continue
            assert runs.min(initial=0) >= 0 and int(runs.sum()) == height * width
            mask = counts_to_mask(runs, height, width)
            assert counts_to_rle(runs, height, width)["counts"] and mask.shape == (height, width)
            assert (counts_to_mask(rle_counts(mask_to_rle(mask), height, width), height, width) == mask).all()

    return test


def _try_polygons() -> Callable[[bytes], None]:
    from rlabel.corpus.limits import Limits
    from rlabel.corpus.masks import BadRegion, rasterise

    limits = Limits(max_polygon_points=2000, max_polygon_outline_px=100_000)

    def test(data: bytes) -> None:
        height, width = _size(data)
        try:
            mask = rasterise(_json(data[2:]), (0.0, 0.0, 3.0, 3.0), height, width, limits)
        except BadRegion:
            return
        assert mask.mask_HW.shape == (height, width) and mask.mask_HW.sum() == mask.area_px > 0

    return test


def _try_coco() -> Callable[[bytes], None]:
    from rlabel.corpus.coco import Reading
    from rlabel.corpus.json_stream import stream_members
    from rlabel.corpus.spool import Spool
    from rlabel.errors import InputError

    def test(data: bytes) -> None:
        spool = Spool(None)
        reading = Reading(spool, "fuzzed", False)
        try:
            for member in stream_members(io.BytesIO(data), "fuzzed"):
                reading.take(member)
            corpus = reading.corpus()
        except InputError:
            spool.close()
            return
        with corpus:
            keys = [region.key for image in corpus.images() for region in image.regions]
            keys += [region.key for region in corpus.stray_regions()]
            assert len(keys) == len(set(keys)) == corpus.num_regions

    return test


def _size(data: bytes) -> tuple[int, int]:
    return (data[0] % 40 + 1, data[1] % 40 + 1) if len(data) > 1 else (1, 1)


def _json(data: bytes) -> Any:
    from rlabel.corpus.json_stream import parse_row

    try:
        return parse_row(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
