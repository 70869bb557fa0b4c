"""A finished run's answers snapped to another vocabulary, or with other thresholds, without the model: a run directory of its own.

Every shard of the old run gives one of the new run, under a manifest that says from which run it is, with which vocabulary
and thresholds. So the new run is resumed, merged, counted and evaluated like any other. The old run is only read.
Texts are snapped once each, many together; a text's category does not depend on the others (`vocabulary.snapping`), so the
bytes are the same however often the work was stopped. Of what the model found of the old vocabulary's names, that stays which the
new one has too (`carried`); scores are calibrated where a calibrator fits the new run.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import rlabel
from rlabel.config import Fallback
from rlabel.errors import RunError, UsageError
from rlabel.records import JsonObject
from rlabel.run.beside import Beside
from rlabel.run.carried import NOTHING_CARRIED, Carried, carried_over
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import Manifest
from rlabel.run.snap_lines import NewSnap, distinct_texts_of, snap_body
from rlabel.storage import Store
from rlabel.vocabulary.calibration import Calibrator, check_fits
from rlabel.vocabulary.snapping import DEFAULT_MARGIN, DEFAULT_THRESHOLD, Snapper
from rlabel.vocabulary.vocabulary import Vocabulary, category_to_row

TASKS = ("classify", "caption", "describe")
# Distinct texts that are held at once, with what they are snapped to: about 50 MB in each of two processes.
_MAX_TEXTS = 100_000
# Fewer are not begun with while there may be more: batches of the embedder would be half empty.
_FEW_TEXTS = 2048
_WRITERS = 4
_SHARDS_AT_ONCE = 8
# Settings of the old run that say nothing of the new one.
_NOT_TAKEN_OVER = ("calibrator_sha256", "min_score", "also_vocabularies_sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapJob:
    """What a run is snapped to. where: the folder or URL of the new run. embedder: what the manifest calls it.

    calibrator, min_score: of the new labels' scores, as of a labeling run.
    """

    vocabulary: Vocabulary
    where: str
    threshold: float
    margin: float
    embedder: str
    fallback: Fallback = "abstain"
    thesaurus_sha256: str | None = None
    calibrator: Calibrator | None = None
    min_score: float | None = None


def open_source(url: str, *, partial: bool = False) -> RunDirectory:
    """Return the run whose answers are to be snapped.

    Raises UsageError when there is none or its task gives no texts of regions; RunError when it is damaged, or is not
    finished and `partial` is not set.
    """
    source = RunDirectory.open(Store.open(url))
    if source.manifest.task not in TASKS:
        raise UsageError(
            f"{url}: expected a run of --task {', '.join(TASKS)}, got one of {source.manifest.task}: its answers name no "
            "regions' categories. Give another run."
        )
    missing = source.num_shards - len(source.committed())
    if missing and not partial:
        raise RunError(
            f"{url}: expected a finished run, got one with {missing} of {source.num_shards} shards missing. "
            "Run its label command again to finish it, or pass --partial to snap what is there."
        )
    return source


def thresholds_of(source: RunDirectory, threshold: float | None, margin: float | None) -> tuple[float, float]:
    """Return threshold and margin as given, else those of the run, else the defaults."""
    settings = source.manifest.settings
    pairs = (
        (threshold, settings.get("threshold"), DEFAULT_THRESHOLD),
        (margin, settings.get("margin"), DEFAULT_MARGIN),
    )
    first, second = (
        given if given is not None else float(own) if isinstance(own, int | float) else default
        for given, own, default in pairs
    )
    return first, second


def snapped_manifest(source: Manifest, source_fingerprint: str, job: SnapJob) -> Manifest:
    """Return the manifest of a run's answers snapped anew. Corpus, plan and header are those of the old run."""
    kept: JsonObject = {name: value for name, value in source.settings.items() if name not in _NOT_TAKEN_OVER}
    return replace(
        source,
        rlabel_version=rlabel.__version__,
        settings={
            **kept,
            "task": "classify",
            "threshold": job.threshold,
            "margin": job.margin,
            "embedder": job.embedder,
            "fallback": job.fallback,
            "thesaurus_sha256": job.thesaurus_sha256,
            "vocabulary": job.vocabulary.name,
            "vocabulary_sha256": job.vocabulary.sha256,
            "snapped_from": source_fingerprint,
            "snapped_task": source.task,
            **({} if job.calibrator is None else {"calibrator_sha256": job.calibrator.sha256}),
            **({} if job.min_score is None else {"min_score": job.min_score}),
        },
        categories=tuple(category_to_row(category) for category in job.vocabulary.categories),
    )


def open_snapped(source: RunDirectory, job: SnapJob) -> RunDirectory:
    """Return the new run, begun or continued. Raises UsageError as `RunDirectory.create_or_resume`."""
    manifest = snapped_manifest(source.manifest, source.fingerprint, job)
    return RunDirectory.create_or_resume(Store.open(job.where), manifest)


def scores_of(source: RunDirectory, job: SnapJob, where: str = "--calibrator") -> list[str]:
    """Return what a user should know of the scores of the new labels, a sentence each.

    where: the calibrator's file, for messages. Raises InputError where the calibrator was fitted on a run of another kind.
    """
    if job.calibrator is not None:
        manifest = snapped_manifest(source.manifest, source.fingerprint, job)
        return check_fits(job.calibrator, manifest.settings, manifest.categories, where)
    digest = source.manifest.settings.get("calibrator_sha256")
    if digest is None:
        return []
    is_same = source.manifest.settings.get("vocabulary_sha256") == job.vocabulary.sha256
    remedy = (
        f"Pass that calibrator ({str(digest)[:12]}) with --calibrator to have them calibrated again."
        if is_same
        else "Its calibrator was fitted for another vocabulary; `rlabel calibrate` on this run fits one."
    )
    return [f"the scores are not calibrated, as those of {source.store.url} are. {remedy}"]


def carried_to(source: RunDirectory, job: SnapJob) -> Carried:
    """Return what of the old run's answers, beside their texts, goes into the new one."""
    return carried_over(source.manifest.categories, job.vocabulary, job.calibrator, job.min_score)


def snap_run(
    source: RunDirectory,
    run: RunDirectory,
    make_snapper: Callable[[], Snapper],
    beat: Callable[[], None],
    carried: Carried = NOTHING_CARRIED,
) -> None:
    """Snap and commit every shard of the old run that the new one lacks. beat: called after each shard. carried: see `carried_to`.

    make_snapper: called once, while the first texts are being read: it takes seconds to load an embedder.
    Raises RunError naming the file when a shard of the old run is damaged; StorageError when one cannot be written. What
    is committed stays.
    """
    missing = sorted(source.committed() - run.committed())
    num_regions = source.manifest.plan.num_regions * len(missing) // max(1, source.num_shards)
    beside = Beside(num_regions, source.store, run.store)
    with beside, ThreadPoolExecutor(1, thread_name_prefix="texts") as reader:
        groups = _Groups(source, missing, beside)
        upcoming = groups.begin(reader)
        snapper = make_snapper()
        while True:
            new_snaps: dict[str, NewSnap] = {}
            for texts in groups.texts_as_they_come():
                if upcoming.done():
                    upcoming.result()  # a damaged shard is told of before the rest is embedded
                new_snaps.update(zip(texts, map(NewSnap.of, snapper.snap(texts)), strict=True))
            indexes = upcoming.result()
            if not indexes:
                return
            work = _SnapShards(source=source, run=run, new_snaps=new_snaps, carried=carried)
            together = [(None, indexes[at : at + _SHARDS_AT_ONCE]) for at in range(0, len(indexes), _SHARDS_AT_ONCE)]
            for _, num_shards in beside.map(work, together):
                for _ in range(num_shards):
                    beat()
            upcoming = groups.begin(reader)


class _Groups:
    """Shards in order, so many together that their distinct texts are few enough to be held; read in another thread than the one that snaps."""

    def __init__(self, source: RunDirectory, indexes: Sequence[int], beside: Beside) -> None:
        self._found = beside.chain(_TextsOf(source), indexes, _SHARDS_AT_ONCE)
        # The texts of one shard that none before it in the group has; None where a group ends.
        self._new: SimpleQueue[list[str] | None] = SimpleQueue()

    def begin(self, reader: Executor) -> Future[list[int]]:
        """Begin to read the next group; gives its shards, [] where there are no more. Raises RunError there for a damaged one."""
        upcoming = reader.submit(self._read_group)
        upcoming.add_done_callback(lambda _: self._new.put(None))
        return upcoming

    def texts_as_they_come(self) -> Iterator[list[str]]:
        """Yield the distinct texts of the group that is being read, as many at a time as were read meanwhile."""
        texts: list[str] = []
        while (own := self._new.get()) is not None:
            texts += own
            if len(texts) >= _FEW_TEXTS and self._new.empty():
                yield texts
                texts = []
        if texts:
            yield texts

    def _read_group(self) -> list[int]:
        indexes: list[int] = []
        texts: set[str] = set()
        for index, own in self._found:
            self._new.put([text for text in own if text not in texts])
            texts.update(own)
            indexes.append(index)
            if len(texts) >= _MAX_TEXTS:
                break
        return indexes


@dataclass(frozen=True, slots=True)
class _TextsOf:
    """Yields some shards, in order, with their distinct texts."""

    source: RunDirectory

    def __call__(self, indexes: Sequence[int]) -> Iterator[tuple[int, list[str]]]:
        """Raises RunError naming the file of a shard that cannot be read."""
        for index, (body, _) in self.source.read_bodies(indexes):
            try:
                texts = distinct_texts_of(body)
            except ValueError as error:
                raise _unreadable(self.source, index, error) from error
            yield index, texts


@dataclass(frozen=True, slots=True, kw_only=True)
class _SnapShards:
    """Reads some shards, snaps them and commits them; all of it, so that two processes share all of the work."""

    source: RunDirectory
    run: RunDirectory
    new_snaps: dict[str, NewSnap]
    carried: Carried

    def __call__(self, indexes: Sequence[int]) -> int:
        """Return how many shards were committed. Raises RunError and StorageError as `snap_run`."""
        # A write waits for the disk, not for the processor.
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="commit") as pool:
            written = []
            for index, (body, footer) in self.source.read_bodies(indexes):
                try:
                    new_body, num_labels, num_abstentions = snap_body(body, self.new_snaps, self.carried)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise _unreadable(self.source, index, error) from error
                new_footer = replace(footer, labels=num_labels, abstentions=num_abstentions)
                written.append(pool.submit(self.run.commit_body, new_body, new_footer))
            for future in written:
                future.result()
        return len(indexes)


def _unreadable(source: RunDirectory, index: int, error: Exception) -> RunError:
    return RunError(
        f"{source.store.join(source.shard_path(index))}: expected the records of a labeling run, got something else "
        f"({type(error).__name__}: {error}). Make the shard anew: delete the file and run its label command again."
    )


def also_folders(out: str, vocabularies: Sequence[Vocabulary]) -> list[str]:
    """Return where the labels of further vocabularies go: OUT/also/NAME, with a number behind a name that several share."""
    folders: list[str] = []
    for vocabulary in vocabularies:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", vocabulary.name).strip(".-")[:80] or "vocabulary"
        names = [name, *(f"{name}-{number}" for number in range(2, len(vocabularies) + 1))]
        places = [f"{out.rstrip('/')}/also/{one}" for one in names]
        folders.append(next(place for place in places if place not in folders))
    return folders


def refuse_overlap(run: str, out: str) -> None:
    """Raise UsageError where the new run would lie in the old one, be it, or hold it."""
    old, new = _parts(run), _parts(out)
    shorter = min(len(old), len(new))
    if old[:shorter] == new[:shorter]:
        raise UsageError(
            f"--out {out}: expected a folder apart from the run {run}, which stays as it is. Give a folder beside it."
        )


def _parts(url: str) -> list[str]:
    store = Store.open(url)
    folder = store.local_path("")
    path = Path(folder).as_posix() if folder is not None else posixpath.normpath(store.url.rstrip("/"))
    return path.split("/")
