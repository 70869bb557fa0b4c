"""A labeling job before any model is loaded: the corpus is read, the vocabulary checked, the shards planned, the run directory opened."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import rlabel
from rlabel.config import EMBEDDED_MODEL, EmbedderDtype, LabelSettings
from rlabel.corpus.coco import Corpus, read_corpus
from rlabel.corpus.sharding import plan_contents, plan_shards
from rlabel.errors import InputError, UsageError
from rlabel.records import JsonObject, Shard
from rlabel.run.beside import apart
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import CorpusSummary, Manifest, PlanSummary, plan_summary
from rlabel.run.query_rows import NearestPairs, Queries, QueryFile, with_queries
from rlabel.run.questions import example_question, task_question
from rlabel.storage import Store
from rlabel.vlm.families import PlainModel, plan_plain, refuse_what_is_plain
from rlabel.vocabulary.calibration import Calibrator, check_fits, load_calibrator, threshold_for
from rlabel.vocabulary.thesaurus import thesaurus_digest
from rlabel.vocabulary.tree import load_with_tree
from rlabel.vocabulary.vocabulary import Vocabulary, category_to_row, load_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelJob:
    """A planned job. model: the resolved folder, absolute. Close the corpus when done; its temporary file goes then.

    vocabulary: of classify, else None. also: further vocabularies that the same answers are snapped to. queries: of relate and refer, else None.
    calibrator: of the scores, None where they stay as they are; calibrator_notes: what a user should know of it. min_score: given, or by --precision.
    plain: how regions are shown to a model that is no RegionGPT, else None.
    """

    settings: LabelSettings
    model: Path
    corpus: Corpus
    vocabulary: Vocabulary | None
    queries: Queries | None
    plan: PlanSummary
    manifest: Manifest
    calibrator: Calibrator | None = None
    calibrator_notes: tuple[str, ...] = ()
    min_score: float | None = None
    also: tuple[Vocabulary, ...] = ()
    plain: PlainModel | None = None

    @property
    def question(self) -> str:
        return task_question(self.settings) if self.plain is None else self.plain.prompt

    def shards(self) -> Iterator[Shard]:
        """Return the shards of the plan one at a time, the same at every call."""
        return _shards(self.settings, self.corpus, self.queries)


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


def resolve_any(settings: LabelSettings) -> tuple[Path, PlainModel | None]:
    """Return the folder of the settings' model, and how regions are shown to it where it is no RegionGPT.

    Raises InputError where there is no such model, UsageError for settings that do not go with its kind.
    """
    if settings.model == EMBEDDED_MODEL:
        refuse_what_is_plain(settings)
        return embedded_model_folder(), None
    from rlabel.vlm.loading import find_model, is_regiongpt, model_type_of

    # What another kind of model cannot do is said before its weights are looked for or downloaded.
    trusted = settings.trust_remote_code
    kind = model_type_of(find_model(settings.model, weights=False, trust_remote_code=trusted))
    if is_regiongpt(kind):
        refuse_what_is_plain(settings)
        return resolve(settings.model), None
    plain = plan_plain(settings, kind)
    return find_model(settings.model, trust_remote_code=trusted).absolute(), plain


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedModel:
    """A model whose files can be used. folder: absolute. sha256: of its deciding files. plain: as in `LabelJob`."""

    folder: Path
    sha256: str
    plain: PlainModel | None


def check_model(settings: LabelSettings) -> CheckedModel:
    """Return the settings' model, its files looked at and a prompt made with its processor; its weights are not loaded.

    Raises InputError or UsageError.
    """
    from rlabel.regiongpt.quantization import model_fingerprint

    folder, plain = resolve_any(settings)
    checked = CheckedModel(
        folder=folder, sha256=model_fingerprint(folder, with_code=settings.trust_remote_code), plain=plain
    )
    if plain is None:
        from rlabel.regiongpt.assembly import load_processor

        load_processor(str(folder)).prompt(example_question(settings))
    else:
        from rlabel.vlm.inputs import open_processor

        open_processor(folder, plain, trust_remote_code=settings.trust_remote_code)
    return checked


def check_model_apart(settings: LabelSettings) -> None:
    """Check the model as `check_model` does, in a process of its own where torch is not loaded here: for who has other work before labeling."""
    if "torch" in sys.modules:
        check_model(settings)
        return
    with apart(check_model, settings) as checked:
        checked()


def plan_job(settings: LabelSettings, *, meanwhile: Callable[[], object] | None = None) -> LabelJob:
    """Return the planned job; everything that can be wrong with its files is found here, before a model is loaded.

    meanwhile: for who loads no model: the model is checked in a process of its own, and here meanwhile the corpus is read and this is done.
    Torch and transformers would be most of the memory of a driver under Ray. Where torch is loaded already, the model is checked here.

    Raises InputError, UsageError or StorageError.
    """
    settings.check()
    question = task_question(settings)
    vocabulary = _vocabulary(settings)
    also = _also(settings)
    _check_folder(settings)
    embedder = embedder_name(settings.embedder, settings.embedder_dtype) if vocabulary is not None else None
    queries = _queries(settings)
    calibrator, min_score = _calibrator(settings)
    model, corpus = _model_and_corpus(settings, meanwhile)
    plain = model.plain
    if plain is not None:
        question = plain.prompt
    try:
        plan = _plan(settings, corpus, queries)
        if isinstance(queries, NearestPairs) and not plan.num_regions:
            raise UsageError(
                f"--task relate: {settings.regions_file}: expected an image with at least two regions, got none. "
                "Give such regions, or name the pairs with --pairs."
            )
    except BaseException:
        corpus.close()
        raise
    deciding: JsonObject = {
        **settings.deciding(),
        "question": question,
        "model_sha256": model.sha256,
        "embedder": embedder,
        "thesaurus_sha256": _thesaurus_sha256(settings),
        "calibrator_sha256": None if calibrator is None else calibrator.sha256,
        "min_score": min_score,
        "vocabulary": None if vocabulary is None else vocabulary.name,
        "vocabulary_sha256": None if vocabulary is None else vocabulary.sha256,
        "also_vocabularies_sha256": [one.sha256 for one in also],
        "pairs_sha256": queries.sha256 if queries is not None and settings.task == "relate" else None,
        "expressions_sha256": queries.sha256 if queries is not None and settings.task == "refer" else None,
    }
    if plain is not None:
        deciding |= asdict(plain)
    categories = () if vocabulary is None else vocabulary.categories
    rows = tuple(category_to_row(category) for category in categories)
    notes: list[str] = []
    if calibrator is not None:
        try:
            notes = check_fits(calibrator, deciding, rows, f"--calibrator {settings.calibrator}")
        except InputError:
            corpus.close()
            raise
    manifest = Manifest(
        rlabel_version=rlabel.__version__,
        settings=deciding,
        corpus=CorpusSummary(sha256=corpus.sha256, num_images=corpus.num_images, num_regions=corpus.num_regions),
        plan=plan,
        categories=rows,
        header={"info": corpus.info, "licenses": corpus.licenses},
    )
    return LabelJob(
        settings=settings,
        model=model.folder,
        corpus=corpus,
        vocabulary=vocabulary,
        queries=queries,
        plan=plan,
        manifest=manifest,
        calibrator=calibrator,
        calibrator_notes=tuple(notes),
        min_score=min_score,
        also=also,
        plain=plain,
    )


def _model_and_corpus(settings: LabelSettings, meanwhile: Callable[[], object] | None) -> tuple[CheckedModel, Corpus]:
    """Check the model and read the corpus. Where both are wrong, the model's error is the one that is raised, in whatever order they are looked at."""
    checking: AbstractContextManager[Callable[[], CheckedModel]]
    if meanwhile is not None and "torch" not in sys.modules:
        checking = apart(check_model, settings)
    else:
        here = check_model(settings)
        checking = nullcontext(lambda: here)
    with checking as checked:
        try:
            corpus = read_corpus(settings.regions_file)
        except Exception:
            checked()
            raise
        try:
            if meanwhile is not None:
                meanwhile()
            return checked(), corpus
        except BaseException:
            corpus.close()
            raise


def check_files(settings: LabelSettings) -> None:
    """Check the files of a job whose model is not there yet: vocabulary, pictures, regions if they are given, pairs, expressions, embedder.

    Raises InputError, UsageError or StorageError.
    """
    settings.check()
    _vocabulary(settings)
    _also(settings)
    _queries(settings)
    _calibrator(settings)
    _thesaurus_sha256(settings)
    _check_folder(settings)
    embedder_name(settings.embedder)
    if settings.regions is not None:
        with read_corpus(settings.regions_file):
            pass


def open_run(job: LabelJob, *, under_ray: bool) -> RunDirectory:
    """Return the job's run directory, begun or continued.

    Raises UsageError for other settings, and under Ray for a store that only this process can see; StorageError for one that cannot hold a run.
    """
    store = Store.open(job.settings.out)
    if under_ray and store.is_process_private:
        raise UsageError(
            f"--out {job.settings.out}: a store that lives in one process cannot hold a run of several. Use a disk or an object store."
        )
    store.check_can_commit()
    return RunDirectory.create_or_resume(store, job.manifest)


def _vocabulary(settings: LabelSettings) -> Vocabulary | None:
    if settings.task != "classify":
        return None
    assert settings.vocabulary is not None  # checked with the settings
    return load_with_tree(settings.vocabulary, settings.tree, keep_zero_ids=settings.keep_zero_ids)


def _also(settings: LabelSettings) -> tuple[Vocabulary, ...]:
    return tuple(load_vocabulary(url, keep_zero_ids=settings.keep_zero_ids) for url in settings.also_vocabulary)


def _thesaurus_sha256(settings: LabelSettings) -> str | None:
    return thesaurus_digest(settings.thesaurus) if settings.task == "classify" else None


def _calibrator(settings: LabelSettings) -> tuple[Calibrator | None, float | None]:
    """Return the calibrator, if one is asked for, and the least score of a label, if there is one."""
    if settings.calibrator is None:
        return None, settings.min_score
    calibrator = load_calibrator(settings.calibrator)
    if settings.precision is None:
        return calibrator, settings.min_score
    return calibrator, threshold_for(calibrator, settings.precision, settings.calibrator)


def _queries(settings: LabelSettings) -> Queries | None:
    """Return what is asked of several regions at once, if the task asks that."""
    if settings.expressions is not None:
        return QueryFile(settings.expressions, "expression", include_crowds=settings.include_crowds)
    if settings.pairs is not None:
        return QueryFile(settings.pairs, "pair", include_crowds=settings.include_crowds)
    if settings.task == "relate":
        return NearestPairs(settings.max_pairs_per_image, include_crowds=settings.include_crowds)
    return None


def _plan(settings: LabelSettings, corpus: Corpus, queries: Queries | None) -> PlanSummary:
    if queries is not None:
        return plan_summary(_shards(settings, corpus, queries))
    return plan_summary(
        plan_contents(corpus, settings.images_per_shard, settings.max_regions_per_shard, settings.limit)
    )


def _shards(settings: LabelSettings, corpus: Corpus, queries: Queries | None) -> Iterator[Shard]:
    shards = plan_shards(corpus, settings.images_per_shard, settings.max_regions_per_shard, settings.limit)
    if queries is None:
        return shards
    return with_queries(shards, queries, settings.max_regions_per_shard, with_strays=settings.limit is None)


def embedder_name(embedder: str | None, dtype: EmbedderDtype = "float32") -> str:
    """Return what the manifest calls an embedder: never a path, since the same model may lie elsewhere at the next start.

    Another dtype than float32 is part of the name, so that runs from before there was a choice go on.

    Raises InputError for a folder that is not there.
    """
    in_dtype = "" if dtype == "float32" else f", {dtype}"
    if embedder is None:
        return f"all-MiniLM-L6-v2 (bundled){in_dtype}"
    folder = Path(embedder)
    if not folder.is_dir():
        if folder.exists() or embedder.startswith(("/", ".", "~")) or embedder.count("/") > 1:
            raise InputError(
                f"--embedder {embedder}: expected a folder that SentenceTransformer.save wrote, or a model id; got no such folder. Check the path."
            )
        return f"{embedder}{in_dtype}"
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"folder with sha256 {digest.hexdigest()}{in_dtype}"


def _check_folder(settings: LabelSettings) -> None:
    folder = Store.open(settings.images).local_path("")
    if folder is not None and not folder.is_dir():
        which = "of the pictures" if settings.regions is None else "that the file names of --regions are relative to"
        raise InputError(f"--images {settings.images}: no such folder. Give the folder {which}.")
