"""One benchmark from its settings to its numbers: what `rlabel bench` does once its options are read."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from rlabel.bench.corpus import draw_corpus
from rlabel.bench.measure import arithmetic, document, measure, table
from rlabel.bench.models import SHAPES, ShapeName, make_model
from rlabel.bench.pipeline import in_process, plan
from rlabel.bench.prefill import measure_prefill, prefill_text
from rlabel.bench.rows import RowName, engine_of, make_rows, prepare, shortened
from rlabel.config import Attention, CompileMode, Dtype
from rlabel.regiongpt.assembly import save
from rlabel.regiongpt.devices import usable_device
from rlabel.run.job import LabelJob, open_run
from rlabel.run.profile import profile_text, profile_to_json
from rlabel.run.worker import LabelWorker, worker_spec
from rlabel.spans import Profile, recorded, start_recording, stop_recording


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """model: a folder, a hub id or `embedded`; None: of `shape`, from random weights. only: the rows that are measured; () for all.

    profile: the pipeline in this process is run once more at the end, its time taken apart. prefill: nothing but the share of the peak that it reaches.
    """

    model: str | None
    shape: ShapeName
    num_images: int
    regions_per_image: int
    rounds: int
    only: tuple[RowName, ...]
    plain_regions: int
    max_new_tokens: int
    dtype: Dtype
    attention: Attention
    compile: bool
    compile_mode: CompileMode
    device: str
    threads: int
    max_regions_per_batch: int
    seed: int
    profile: bool = False
    prefill: bool = False


def run_bench(options: BenchOptions, say: Callable[[str], None]) -> tuple[str, dict[str, object]]:
    """Return the table and the numbers. Model, corpus and runs lie in a folder that is gone at the end, however it comes. say: takes progress.

    Raises UsageError for a GPU that is not there, and what a labeling job raises.
    """
    usable_device(options.device)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="rlabel-bench-") as folder:
        return _run_in(Path(folder), options, say)


def _run_in(folder: Path, options: BenchOptions, say: Callable[[str], None]) -> tuple[str, dict[str, object]]:
    corpus = draw_corpus(folder / "corpus", options.num_images, options.regions_per_image, options.seed)
    model = options.model
    if model is None:
        say(f"making a model of shape {options.shape} from random weights")
        save(*make_model(SHAPES[options.shape], corpus.names, options.seed), folder / "model")
        model = str(folder / "model")
    job = plan(
        corpus,
        folder,
        model=model,
        max_new_tokens=options.max_new_tokens,
        dtype=options.dtype,
        attention=options.attention,
        compile=options.compile,
        compile_mode=options.compile_mode,
        device=options.device,
        cpus_per_actor=options.threads,
        max_regions_per_batch=options.max_regions_per_batch,
    )
    about = {**asdict(options), "machine": _machine(options.device), "torch": torch.__version__}
    with job.corpus:
        worker = LabelWorker(worker_spec(job, open_run(job, under_ray=False)))
        prepared = prepare(job, worker)
        if options.prefill:
            share = measure_prefill(engine_of(worker), prepared, options.rounds, say)
            return prefill_text(share), {**about, "prefill": asdict(share)}
        rows = make_rows(job, worker, prepared, corpus.names, options.plain_regions, folder)
        results = measure([row for row in rows if not options.only or row.name in options.only], options.rounds, say)
        engine = engine_of(worker)
        found = arithmetic(engine, shortened(engine), prepared, options.rounds)
        own = _profiled(job, worker, folder) if options.profile else None
    text, numbers = table(results, found), document(results, found, about)
    if own is None:
        return text, numbers
    return f"{text}\n\n{profile_text([own])}", {**numbers, "stages": profile_to_json([own])["all"]}


def _profiled(job: LabelJob, worker: LabelWorker, folder: Path) -> Profile | None:
    start_recording(torch.cuda.synchronize if torch.cuda.is_available() else None)
    try:
        in_process(job, worker, folder)
        return recorded()
    finally:
        stop_recording()


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
