"""A labeling job before any model is loaded: the corpus is read, the vocabulary checked, the shards planned, the run directory opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import rlabel
from rlabel.config import EMBEDDED_MODEL, LabelSettings
from rlabel.corpus.coco import Corpus, read_corpus
from rlabel.corpus.sharding import plan_shards
from rlabel.errors import InputError, UsageError
from rlabel.prompts.instructions import CLASSIFY
from rlabel.records import JsonObject, Shard
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import CorpusSummary, Manifest, PlanSummary, plan_summary
from rlabel.storage import Store
from rlabel.vocabulary.vocabulary import Vocabulary, category_to_row, load_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelJob:
    """A planned job. model: the resolved folder, absolute. Close the corpus when done; its temporary file goes then."""

    settings: LabelSettings
    model: Path
    corpus: Corpus
    vocabulary: Vocabulary
    plan: PlanSummary
    manifest: Manifest

    @property
    def question(self) -> str:
        return self.settings.question or CLASSIFY[0]

    def shards(self) -> Iterator[Shard]:
        """Return the shards of the plan one at a time, the same at every call."""
        settings = self.settings
        return plan_shards(self.corpus, settings.images_per_shard, settings.max_regions_per_shard, settings.limit)


def embedded_model_folder() -> Path:
    """Return the folder of the labeler that ships with rlabel.

    Raises InputError where the installation lacks it.
    """
    folder = Path(rlabel.__file__).resolve().parent / "embedded"
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: the embedded labeler is not in this installation. Install rlabel again, or pass --model."
        )
    return folder


def resolve(model: str) -> Path:
    """Return the folder of a model given as `embedded`, a folder or a hub id."""
    from rlabel.regiongpt.quantization import resolve_model

    return embedded_model_folder() if model == EMBEDDED_MODEL else resolve_model(model).absolute()


def plan_job(settings: LabelSettings) -> LabelJob:
    """Return the planned job; everything that can be wrong with its files is found here, before a model is loaded.

    Raises InputError, UsageError or StorageError.
    """
    from rlabel.regiongpt.assembly import load_processor
    from rlabel.regiongpt.quantization import model_fingerprint

    question = settings.question or CLASSIFY[0]
    vocabulary = load_vocabulary(settings.vocabulary, keep_zero_ids=settings.keep_zero_ids)
    _check_folder(settings.images)
    embedder = _embedder_name(settings.embedder)
    model = resolve(settings.model)
    model_sha256 = model_fingerprint(model)
    load_processor(str(model)).prompt(question)
    corpus = read_corpus(settings.regions)
    try:
        plan = plan_summary(
            plan_shards(corpus, settings.images_per_shard, settings.max_regions_per_shard, settings.limit)
        )
    except BaseException:
        corpus.close()
        raise
    deciding: JsonObject = {
        **settings.deciding(),
        "question": question,
        "model_sha256": model_sha256,
        "embedder": embedder,
        "vocabulary": vocabulary.name,
        "vocabulary_sha256": vocabulary.sha256,
    }
    manifest = Manifest(
        rlabel_version=rlabel.__version__,
        settings=deciding,
        corpus=CorpusSummary(sha256=corpus.sha256, num_images=corpus.num_images, num_regions=corpus.num_regions),
        plan=plan,
        categories=tuple(category_to_row(category) for category in vocabulary.categories),
        header={"info": corpus.info, "licenses": corpus.licenses},
    )
    return LabelJob(settings=settings, model=model, corpus=corpus, vocabulary=vocabulary, plan=plan, manifest=manifest)


def check_files(settings: LabelSettings) -> None:
    """Check the files of a job whose model is not there yet: vocabulary, pictures, regions, embedder.

    Raises InputError, UsageError or StorageError.
    """
    load_vocabulary(settings.vocabulary, keep_zero_ids=settings.keep_zero_ids)
    _check_folder(settings.images)
    _embedder_name(settings.embedder)
    with read_corpus(settings.regions):
        pass


def open_run(job: LabelJob, *, under_ray: bool) -> RunDirectory:
    """Return the job's run directory, begun or continued.

    Raises UsageError for other settings, and under Ray for a store that only this process can see.
    """
    store = Store.open(job.settings.out)
    if under_ray and store.is_process_private:
        raise UsageError(
            f"--out {job.settings.out}: a store that lives in one process cannot hold a run of several. Use a disk or an object store."
        )
    return RunDirectory.create_or_resume(store, job.manifest)


def _embedder_name(embedder: str | None) -> str:
    """Return what the manifest calls an embedder: never a path, since the same model may lie elsewhere at the next start.

    Raises InputError for a folder that is not there.
    """
    if embedder is None:
        return "all-MiniLM-L6-v2 (bundled)"
    folder = Path(embedder)
    if not folder.is_dir():
        if folder.exists() or embedder.startswith(("/", ".", "~")) or embedder.count("/") > 1:
            raise InputError(
                f"--embedder {embedder}: expected a folder that SentenceTransformer.save wrote, or a model id; got no such folder. Check the path."
            )
        return embedder
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"folder with sha256 {digest.hexdigest()}"


def _check_folder(images: str) -> None:
    store = Store.open(images)
    folder = store.local_path("")
    if folder is not None and not folder.is_dir():
        raise InputError(
            f"--images {images}: no such folder. Give the folder that the file names of --regions are relative to."
        )
