"""rlabel from Python: a model, pictures with regions in, one result a region out; and the results of a run.

    from rlabel import Labeler, read_labels

    labeler = Labeler.from_pretrained("embedded", vocabulary=["cat", "dog"])
    for image in labeler.label(["photo.jpg"], [[(10, 20, 64, 48)]]):
        for region in image:
            print(region.outcome, region.category, region.score)

    for region in read_labels("run/"):
        ...

In one process, for a notebook or a service. Corpora are labeled by `rlabel label`: on many GPUs, and with nothing lost when something
dies. Both use the same code: the same pictures and regions get the same texts, categories and scores.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from rlabel.config import LabelSettings, load_settings
from rlabel.errors import InputError, UsageError
from rlabel.records import Abstention, BoxXywh, Caption, Failure, JsonObject, JsonValue, Label, Outcome
from rlabel.storage import Store, read_url

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from rlabel.vocabulary.vocabulary import Vocabulary

    Picture: TypeAlias = str | os.PathLike[str] | Image | NDArray[np.uint8]
    GivenRegion: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | Mapping[str, Any] | NDArray[np.bool_]
    Names: TypeAlias = str | os.PathLike[str] | Sequence[str] | Vocabulary

OutcomeKind: TypeAlias = Literal["label", "caption", "abstention", "failure"]
# Given by the arguments of `label`, or of a run of many processes.
_NOT_OPTIONS = frozenset({"images", "regions", "out", "model", "vocabulary", "task", "no_ray", "num_actors", "address"})
_TASKS = ("classify", "caption", "describe")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionResult:
    """What became of one region.

    image_id, region_id: as in the corpus; from `Labeler.label` the places in the lists that were given, from 0.
    file_name: of the picture; None where there is none.
    category_id, category: of labels. score: of labels and captions, in [0, 1]; raw_score: before it was calibrated, if it was.
    text, text_score: the model's own answer and its probability; None of failures.
    decided_by: the step of snapping that decided. nearest: the name nearest to the text, also of abstentions. reason: of abstentions and failures.
    box_xywh: left, top, width, height in upright image pixels; area_px: of the mask; segmentation: COCO's polygons or RLE. None of failures.
    """

    outcome: OutcomeKind
    image_id: JsonValue
    region_id: JsonValue
    file_name: str | None = None
    category_id: int | None = None
    category: str | None = None
    score: float | None = None
    raw_score: float | None = None
    text: str | None = None
    text_score: float | None = None
    decided_by: str | None = None
    nearest: str | None = None
    reason: str | None = None
    box_xywh: BoxXywh | None = None
    area_px: float | None = None
    segmentation: JsonValue = None


class Labeler:
    """A loaded model that labels regions of pictures. Made by `from_pretrained`. Not for several threads at once."""

    def __init__(self, settings: LabelSettings, vocabulary: Vocabulary | None, folder: Path) -> None:
        self._settings = settings
        self._vocabulary = vocabulary
        self._folder = folder
        self._embedder: Any = None
        # Without names an answer is kept as it is; any name will do until some are given.
        self._worker = _worker(settings, vocabulary or _vocabulary(["thing"]))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "embedded",
        *,
        vocabulary: Names | None = None,
        task: Literal["classify", "caption", "describe"] = "classify",
        **options: Any,
    ) -> Labeler:
        """Return a labeler with its model loaded.

        model: "embedded", a folder, or a hub id. vocabulary: names, a file or URL of any kind that `rlabel label` takes, or a `Vocabulary`; it may
        also be given to each `label`. options: those of `rlabel label` with underscores, such as device="cuda", dtype="bfloat16",
        quantization="nf4", decoding="constrained", threshold=0.5, cpus_per_actor=4 (threads); `rlabel label --help` lists them.

        Raises UsageError for settings that do not go together, InputError for a model or a vocabulary that cannot be read.
        """
        wrong = sorted(_NOT_OPTIONS & options.keys())
        if wrong or task not in _TASKS:
            what = f"option {wrong[0]}" if wrong else f"task {task!r}"
            raise UsageError(
                f"Labeler.from_pretrained: {what}: expected a setting of one process and one of the tasks {', '.join(_TASKS)}. "
                "Use `rlabel label` for corpora, clusters and questions about several regions."
            )
        folder = Path(tempfile.mkdtemp(prefix="rlabel-"))
        try:
            own = {
                "images": str(folder),
                "regions": str(folder / "regions.json"),
                "out": str(folder / "out"),
                "model": os.fspath(model),
                "vocabulary": "given to Labeler.from_pretrained",
                "task": task,
                "no_ray": True,
            }
            settings = load_settings(LabelSettings, None, {**own, **options})
            if vocabulary is None and settings.decoding != "free":
                raise UsageError(
                    f"Labeler.from_pretrained: decoding={settings.decoding!r} chooses among names: give a vocabulary."
                )
            return cls(settings, None if vocabulary is None else _vocabulary(vocabulary), folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def label(
        self,
        images: Sequence[Picture],
        regions: Sequence[Sequence[GivenRegion]],
        vocabulary: Names | None = None,
    ) -> list[list[RegionResult]]:
        """Return what became of every region: a list an image, a result a region, in the order given.

        images: paths or URLs, PIL pictures, or uint8 arrays (H, W, 3) in RGB. Files are turned upright as EXIF says; pictures are taken as they are.
        regions: of each image: a box (left, top, width, height), polygons [[x, y, ...], ...], a COCO RLE, a bool mask (H, W), or an annotation
        with "segmentation" and/or "bbox"; in upright pixels. vocabulary: other names for this call; the model's answers are the same.

        A picture or a region that cannot be used ends as a failure with its reason. Raises UsageError for lists that do not fit together.
        """
        is_one = isinstance(images, str | os.PathLike)
        if is_one or len(images) != len(regions) or any(_is_number(own) for own in regions):
            raise UsageError(
                "Labeler.label: expected a list of images and a list of regions for each image, as in label([photo], [[box, box]]), "
                f"got {'one path' if is_one else f'{len(images)} images'} and {len(regions)} lists."
            )
        names = self._vocabulary if vocabulary is None else _vocabulary(vocabulary)
        if vocabulary is not None and self._settings.decoding != "free":
            raise UsageError(
                f"Labeler.label: decoding={self._settings.decoding!r} was prepared for the vocabulary of from_pretrained. "
                "Make another Labeler for other names, or use decoding='free'."
            )
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            file_names = [_placed(image, Path(folder), number) for number, image in enumerate(images)]
            rows = [
                {"id": f"{number}/{place}", "image_id": number, **_row(region, number, place)}
                for number, own in enumerate(regions)
                for place, region in enumerate(own)
            ]
            corpus = {
                "images": [{"id": number, "file_name": name} for number, name in enumerate(file_names)],
                "annotations": rows,
            }
            (Path(folder) / "regions.json").write_text(json.dumps(corpus))
            outcomes = self._outcomes(Path(folder))
        if vocabulary is not None and names is not None:
            outcomes = self._snapped(outcomes, names)
        if names is None:
            outcomes = [_as_caption(outcome) for outcome in outcomes]
        results = iter(outcomes)
        category_names = {} if names is None else {one.category_id: one.name for one in names.categories}
        sources = [os.fspath(image) if isinstance(image, str | os.PathLike) else None for image in images]
        return [
            [_result(next(results), category_names, sources[number], number, place) for place in range(len(own))]
            for number, own in enumerate(regions)
        ]

    def _outcomes(self, folder: Path) -> list[Outcome]:
        from rlabel.corpus.coco import read_corpus
        from rlabel.corpus.sharding import plan_shards

        self._worker.images = Store.open(folder)
        with read_corpus(folder / "regions.json") as corpus:
            shards = plan_shards(corpus, self._settings.images_per_shard, self._settings.max_regions_per_shard)
            return [outcome for shard in shards for outcome in self._worker.label_only(shard).outcomes]

    def _snapped(self, outcomes: Sequence[Outcome], vocabulary: Vocabulary) -> list[Outcome]:
        from rlabel.run.snap_lines import snapped
        from rlabel.vocabulary.embedding import MiniLmEmbedder
        from rlabel.vocabulary.snapping import Snapper
        from rlabel.vocabulary.thesaurus import load_thesaurus

        settings = self._settings
        self._embedder = self._embedder or MiniLmEmbedder(settings.embedder, dtype=settings.embedder_dtype)
        snapper = Snapper(
            vocabulary,
            self._embedder,
            settings.threshold,
            settings.margin,
            thesaurus=load_thesaurus(settings.thesaurus),
            fallback=settings.fallback,
        )
        answered = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
        snaps = iter(snapper.snap([cast("Caption", outcome).text for outcome in answered]))
        return [outcome if isinstance(outcome, Failure) else snapped(outcome, next(snaps), {}) for outcome in outcomes]


def _as_caption(outcome: Outcome) -> Outcome:
    if not isinstance(outcome, Label | Abstention):
        return outcome
    return Caption(
        region=outcome.region,
        image_id=outcome.image_id,
        text=outcome.text,
        score=outcome.text_score,
        box_xywh=outcome.box_xywh,
        area_px=outcome.area_px,
        segmentation=outcome.segmentation if isinstance(outcome, Label) else outcome.region.segmentation,
    )


def read_labels(run: str | os.PathLike[str]) -> Iterator[RegionResult]:
    """Yield what became of every region of a run of classify, caption or describe, in the order of the corpus; of an unfinished run what is done.

    run: the directory or URL that `rlabel label` wrote. One shard is in memory at a time.
    Raises UsageError where there is no such run, RunError naming the file where one is damaged.
    """
    from rlabel.run.directory import RunDirectory

    directory = RunDirectory.open(Store.open(run))
    if directory.manifest.task not in _TASKS:
        raise UsageError(
            f"{os.fspath(run)}: expected a run of one of the tasks {', '.join(_TASKS)}, got one of {directory.manifest.task}. "
            "Read its relations.json or referred.json."
        )
    return _read(directory)


def _read(directory: Any) -> Iterator[RegionResult]:
    names = {row["id"]: str(row["name"]) for row in directory.manifest.categories}
    for result in directory.results():
        files: dict[str, str | None] = {}
        for row in result.images:
            name = row.get("file_name")
            files[repr(row.get("id"))] = name if isinstance(name, str) else None
        for outcome in result.outcomes:
            file_name = files.get(repr(outcome.image_id))
            yield _result(outcome, names, file_name, outcome.image_id, outcome.region.region_id)


def _result(
    outcome: Outcome, names: Mapping[int, str], file_name: str | None, image_id: JsonValue, region_id: JsonValue
) -> RegionResult:
    common: dict[str, Any] = {"image_id": image_id, "region_id": region_id, "file_name": file_name}
    if isinstance(outcome, Failure):
        return RegionResult(outcome="failure", reason=outcome.reason, **common)
    assert isinstance(outcome, Label | Abstention | Caption)
    common |= {"text": outcome.text, "box_xywh": outcome.box_xywh, "area_px": outcome.area_px}
    if isinstance(outcome, Caption):
        score, shape = outcome.score, outcome.segmentation
        return RegionResult(outcome="caption", score=score, text_score=score, segmentation=shape, **common)
    common |= {
        "text_score": outcome.text_score,
        "decided_by": outcome.snap.decided_by,
        "nearest": outcome.snap.nearest_name,
    }
    if isinstance(outcome, Abstention):
        return RegionResult(outcome="abstention", reason=outcome.snap.reason, **common)
    return RegionResult(
        outcome="label",
        category_id=outcome.category_id,
        category=names.get(outcome.category_id),
        score=outcome.score,
        raw_score=outcome.raw_score,
        segmentation=outcome.segmentation,
        **common,
    )


def _worker(settings: LabelSettings, vocabulary: Vocabulary | None) -> Any:
    """Return the worker of a run that has no directory."""
    from rlabel.run.job import resolve_any
    from rlabel.run.questions import task_question
    from rlabel.run.worker import LabelWorker, WorkerSpec
    from rlabel.vocabulary.calibration import load_calibrator, threshold_for

    calibrator = None if settings.calibrator is None else load_calibrator(settings.calibrator)
    min_score = settings.min_score
    if calibrator is not None and settings.precision is not None:
        min_score = threshold_for(calibrator, settings.precision, str(settings.calibrator))
    model, plain = resolve_any(settings)
    return LabelWorker(
        WorkerSpec(
            settings=settings,
            model=str(model),
            question=task_question(settings) if plain is None else plain.prompt,
            vocabulary=vocabulary if settings.task == "classify" else None,
            run=None,
            calibrator=calibrator,
            min_score=min_score,
            plain=plain,
        )
    )


def _vocabulary(names: Names) -> Vocabulary:
    from rlabel.vocabulary.vocabulary import Vocabulary, load_vocabulary

    if isinstance(names, Vocabulary):
        return names
    if isinstance(names, str | os.PathLike):
        return load_vocabulary(os.fspath(names))
    own = list(names) if isinstance(names, Iterable) else []
    if not own or not all(isinstance(name, str) and name.strip() for name in own) or len(set(own)) != len(own):
        raise InputError(
            "vocabulary: expected a list of distinct, non-empty names, a file, or a Vocabulary; "
            f"got {len(own)} entries, {len(set(map(repr, own)))} of them distinct. Name each category once."
        )
    with tempfile.TemporaryDirectory(prefix="rlabel-") as folder:
        file = Path(folder) / "given.json"
        file.write_text(
            json.dumps({"categories": [{"id": number, "name": name} for number, name in enumerate(own, start=1)]})
        )
        return load_vocabulary(str(file))


def _placed(image: Picture, folder: Path, number: int) -> str:
    """Put a picture into the folder and return its name there. What is wrong with its bytes is found when it is decoded."""
    import numpy as np
    from PIL import Image as pillow

    if isinstance(image, str | os.PathLike):
        place = os.fspath(image)
        name = f"{number:06d}{Path(place).suffix[:12]}"
        if "://" in place:
            (folder / name).write_bytes(read_url(place))
            return name
        source = Path(place).absolute()
        if not source.is_file():
            return f"{number:06d}-is-not-there"  # ends as failures of its regions
        try:
            os.link(source.resolve(), folder / name)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, folder / name)
        return name
    picture = image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UsageError(
                f"Labeler.label: image {number}: expected a uint8 array (height, width, 3) in RGB, got {image.dtype} {image.shape}."
            )
        picture = pillow.fromarray(image)
    if not isinstance(picture, pillow.Image):
        raise UsageError(
            f"Labeler.label: image {number}: expected a path, a PIL picture or an array, got {type(image).__name__}."
        )
    picture.convert("RGB").save(folder / f"{number:06d}.png", compress_level=1)
    return f"{number:06d}.png"


def _row(region: GivenRegion, number: int, place: int) -> JsonObject:
    """Return the annotation of a region as it is given. What is wrong with its shape is found when it is drawn."""
    with suppress(TypeError, ValueError, KeyError):
        if (row := _annotation(region)) is not None:
            return row
    raise UsageError(
        f"Labeler.label: image {number}, region {place}: expected a box (left, top, width, height), polygons, an RLE, a bool mask or an annotation, "
        f"got {type(region).__name__} {str(region)[:80]}."
    )


def _annotation(region: GivenRegion) -> JsonObject | None:
    """Return the annotation, None for what is no region; raises Python's own errors where its values are none."""
    import numpy as np

    from rlabel.corpus.masks import mask_to_rle

    if isinstance(region, np.ndarray) and region.ndim == 2 and region.dtype == np.bool_:
        return {"segmentation": cast("JsonValue", mask_to_rle(region))}
    if isinstance(region, Mapping):
        if "counts" in region:
            counts = region["counts"]
            text = counts.decode("ascii") if isinstance(counts, bytes) else counts  # as pycocotools encodes them
            return {"segmentation": {"size": [int(side) for side in region["size"]], "counts": text}}
        return {key: region[key] for key in ("segmentation", "bbox", "iscrowd") if region.get(key) is not None}
    values: list[Any] = region.tolist() if isinstance(region, np.ndarray) else list(region)
    if len(values) == 4 and all(_is_number(value) for value in values):
        return {"bbox": [float(value) for value in values]}
    if values and all(isinstance(part, Iterable) and not isinstance(part, str) for part in values):
        return {"segmentation": [[float(value) for value in part] for part in values]}
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or hasattr(value, "__float__")
