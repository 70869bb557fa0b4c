"""`rlabel snap`: a run's answers snapped to another vocabulary, without the model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from rlabel.cli.numbers import FiniteRange
from rlabel.cli.options import INTERRUPTED, Stopped, ends_cleanly, print_json, stop_on_sigterm
from rlabel.errors import RlabelError

if TYPE_CHECKING:
    from rlabel.config import EmbedderDtype, Fallback
    from rlabel.run.directory import RunDirectory
    from rlabel.run.lease import Lease
    from rlabel.run.resnap import SnapJob
    from rlabel.vocabulary.embedding import TextEmbedder
    from rlabel.vocabulary.thesaurus import Thesaurus


@click.command(context_settings={"max_content_width": 110})
@click.argument("run")
@click.option("--vocabulary", required=True, help="Target names: JSON, COCO or LVIS categories, or a text file.")
@click.option("--out", required=True, help="Run directory of the new labels, made or continued; not inside RUN.")
@click.option(
    "--also", multiple=True, metavar="VOCABULARY", help="A further vocabulary, into OUT/also/NAME. May be repeated."
)
@click.option(
    "--tree", metavar="FILE", help="V3Det's category tree: parents for --fallback parent, of the first vocabulary."
)
@click.option("--threshold", type=float, help="Least cosine for the embedding step.  [default: as in RUN, else 0.6]")
@click.option("--margin", type=float, help="Least lead over the next category.  [default: as in RUN, else 0.02]")
@click.option("--embedder", help="sentence-transformers folder or id; the bundled MiniLM if left out.")
@click.option(
    "--embedder-dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="bfloat16: half the time on processors that know it; similarities move by a few thousandths.",
)
@click.option(
    "--fallback",
    type=click.Choice(["abstain", "parent"]),
    default="abstain",
    help="What becomes of a text that several categories with one parent fit alike.",
)
@click.option(
    "--thesaurus",
    default="wordnet",
    show_default=True,
    help="wordnet: the nouns that rlabel carries; none; or a folder with WordNet's index.noun and data.noun.",
)
@click.option(
    "--calibrator",
    metavar="FILE",
    help="Calibrate the scores by what `rlabel calibrate` wrote, of the first vocabulary. It must fit.",
)
@click.option("--min-score", type=FiniteRange(0.0, 1.0), help="Labels below it become abstentions.")
@click.option("--keep-zero-ids", is_flag=True, help="Accept categories of id 0.")
@click.option("--partial", is_flag=True, help="Take what an unfinished run has; the same command later adds the rest.")
@click.option("--results-files", is_flag=True, help="Also write labels.bbox.json and labels.segm.json.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the embedder.  [default: one a core]")
@click.option(
    "--driver-expiry-s",
    type=FiniteRange(1.0, 3600.0),
    default=60.0,
    show_default=True,
    help="A run whose driver gave no sign of life for so long may be taken over by another one.",
)
@ends_cleanly
def snap(
    run: str,
    vocabulary: str,
    out: str,
    also: tuple[str, ...],
    tree: str | None,
    threshold: float | None,
    margin: float | None,
    embedder: str | None,
    embedder_dtype: EmbedderDtype,
    fallback: Fallback,
    thesaurus: str,
    calibrator: str | None,
    min_score: float | None,
    keep_zero_ids: bool,
    partial: bool,
    results_files: bool,
    threads: int | None,
    driver_expiry_s: float,
) -> None:
    """Snap the answers of a run of classify, caption or describe to another vocabulary, without the model.

    \b
    Example:
      rlabel snap run/ --vocabulary lvis.json --out run-lvis/
      rlabel snap captions/ --vocabulary names.txt --threshold 0.5 --out labels/

    Writes a run directory of its own; RUN stays as it is. Run it again to continue where it stopped.
    """
    from rlabel.run.job import embedder_name
    from rlabel.run.resnap import SnapJob, also_folders, open_source, refuse_overlap, thresholds_of
    from rlabel.vocabulary.calibration import load_calibrator
    from rlabel.vocabulary.thesaurus import thesaurus_digest
    from rlabel.vocabulary.tree import load_with_tree

    stop_on_sigterm()
    refuse_overlap(run, out)
    with_trees = [(vocabulary, tree), *((url, None) for url in also)]
    vocabularies = [load_with_tree(url, own_tree, keep_zero_ids=keep_zero_ids) for url, own_tree in with_trees]
    for one in vocabularies:
        for note in one.notes:
            print(f"rlabel: vocabulary {one.name}: {note}", file=sys.stderr)
    source = open_source(run, partial=partial)
    fitted = None if calibrator is None else load_calibrator(calibrator)
    least_cosine, least_lead = thresholds_of(source, threshold, margin)
    jobs = [
        SnapJob(
            vocabulary=one,
            where=where,
            threshold=least_cosine,
            margin=least_lead,
            embedder=embedder_name(embedder, embedder_dtype),
            fallback=fallback,
            thesaurus_sha256=thesaurus_digest(thesaurus),
            calibrator=fitted if where == out else None,
            min_score=min_score if where == out else None,
        )
        for one, where in zip(vocabularies, [out, *also_folders(out, vocabularies[1:])], strict=True)
    ]
    documents = snap_jobs(
        source,
        jobs,
        embedder,
        embedder_dtype=embedder_dtype,
        thesaurus=thesaurus,
        threads=threads,
        partial=partial,
        results_files=results_files,
        driver_expiry_s=driver_expiry_s,
    )
    first, further = documents[0], documents[1:]
    print_json({**first, **({"also": further} if further else {})})


def snap_jobs(
    source: RunDirectory,
    jobs: list[SnapJob],
    embedder: str | None,
    *,
    embedder_dtype: EmbedderDtype = "float32",
    thesaurus: str = "none",
    threads: int | None = None,
    partial: bool = False,
    results_files: bool = False,
    heartbeat_s: float = 10.0,
    driver_expiry_s: float = 60.0,
) -> list[dict[str, Any]]:
    """Snap a run to several vocabularies, one after the other, and return what the last line of the command says of each."""
    from rlabel.run.lease import driving
    from rlabel.run.resnap import open_snapped, scores_of
    from rlabel.vocabulary.snapping import Snapper
    from rlabel.vocabulary.thesaurus import load_thesaurus

    @cache
    def tools() -> tuple[TextEmbedder, Thesaurus | None]:
        # Loading them takes seconds: not before all new runs are open, and once for all of them.
        return _embedder(embedder, threads, embedder_dtype), load_thesaurus(thesaurus)

    for job in jobs:
        # Refuses impossible thresholds, and parents that are no tree, first.
        Snapper(job.vocabulary, None, job.threshold, job.margin, fallback=job.fallback)
        for note in scores_of(source, job):
            print(f"rlabel: {job.where}: {note}", file=sys.stderr)
    runs = [open_snapped(source, job) for job in jobs]
    documents = []
    for run, job in zip(runs, jobs, strict=True):
        with driving(run, driver_expiry_s) as lease:
            documents.append(_snap_one(source, run, job, tools, partial, results_files, heartbeat_s, lease))
    return documents


def _snap_one(
    source: RunDirectory,
    run: RunDirectory,
    job: SnapJob,
    tools: Callable[[], tuple[TextEmbedder, Thesaurus | None]],
    partial: bool,
    results_files: bool,
    heartbeat_s: float,
    lease: Lease | None,
) -> dict[str, Any]:
    from rlabel.cli.live import shown_live
    from rlabel.run.lease import LeaseLost
    from rlabel.run.merge import LABELS
    from rlabel.run.progress import RunProgress
    from rlabel.run.resnap import carried_to, snap_run
    from rlabel.vocabulary.snapping import Snapper

    def make_snapper() -> Snapper:
        embedder, thesaurus = tools()
        return Snapper(job.vocabulary, embedder, job.threshold, job.margin, thesaurus=thesaurus, fallback=job.fallback)

    progress = RunProgress(run, heartbeat_s, lease)
    if lease is None:
        print(f"rlabel: {job.where}: all shards are there already; writing the labels again", file=sys.stderr)
    else:
        progress.write("running")
    try:
        if source.committed() - run.committed():
            with shown_live(progress):
                snap_run(source, run, make_snapper, progress.beat, carried_to(source, job))
        progress.check()
        counts = run.merge(partial=partial, results_files=results_files)
    except (KeyboardInterrupt, Stopped):
        progress.write("stopped", INTERRUPTED, "interrupted; the same command goes on")
        raise
    except LeaseLost:  # the run is another driver's now, and so is its status
        progress.give_up()
        raise
    except Exception as error:
        progress.write("failed", error.exit_code if isinstance(error, RlabelError) else 1, str(error))
        raise
    missing = run.num_shards - len(run.committed())
    if not missing:
        run.tidy()
    file = run.store.join(LABELS)
    message = (
        f"{counts.labels} labels, {counts.abstentions} abstentions, {counts.failures} failures of {counts.regions} regions "
        f"in {counts.images} images: {file}"
    )
    if missing:
        message += f"; {missing} of {run.num_shards} shards are not there yet"
    progress.write("stopped" if missing else "done", 0, message)
    print(f"rlabel: {message}", file=sys.stderr)
    return {
        "run": job.where,
        "from": source.store.url,
        "vocabulary": job.vocabulary.name,
        "calibrated": job.calibrator is not None,
        "state": "stopped" if missing else "done",
        "exit_code": 0,
        "labels": counts.labels,
        "abstentions": counts.abstentions,
        "failures": counts.failures,
        "regions": counts.regions,
        "images": counts.images,
        "file": file,
    }


def _embedder(embedder: str | None, threads: int | None, dtype: EmbedderDtype) -> Any:
    import os

    from rlabel.vocabulary.embedding import MiniLmEmbedder

    return MiniLmEmbedder(embedder, threads=threads or len(os.sched_getaffinity(0)), dtype=dtype)
