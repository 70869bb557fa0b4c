"""Settings of the jobs: one validated record a job, from flags and a YAML file, flags winning. Knows nothing of click, Ray or torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlabel.errors import UsageError
from rlabel.pool_settings import Gpus, PoolSettings
from rlabel.records import JsonObject, JsonValue
from rlabel.settings_files import SettingsRecord
from rlabel.settings_files import load_settings as load_settings
from rlabel.settings_files import settings_schema as settings_schema

Quantization = Literal["none", "int8", "nf4"]
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs"]
# What training reads itself, then what is converted for it; as rlabel.corpus.open.FORMATS and RegionsFormat below; a test compares them.
DatasetFormat = Literal[
    "coco", "lvis", "v3det", "visual_genome", "refcoco", "auto", "panoptic", "masks", "sa1b", "labelme", "yolo", "voc", "labelstudio", "cvat",
    "huggingface", "webdataset",
]  # fmt: skip
Parallel = Literal["ddp", "fsdp"]
Decoding = Literal["free", "constrained", "hybrid"]
RankBy = Literal["total", "per_token", "prior"]
Search = Literal["greedy", "exact"]
PrefixSharing = Literal["auto", "packed", "expanded", "none"]
LabelTask = Literal["classify", "caption", "describe", "relate", "refer"]
LabelMode = Literal["separate", "one_turn", "multi_turn"]
RelationKind = Literal["free", "left_right", "above_below", "size", "overlap"]
ReferBy = Literal["likelihood", "mixture", "number"]
Fallback = Literal["abstain", "parent"]
EmbedderDtype = Literal["float32", "bfloat16"]
LabelViews = Literal["plain", "flip", "box", "both"]
RegionAs = Literal["auto", "box", "crop", "outline", "marks"]
# As rlabel.formats.guess.SOURCE_FORMATS, which imports more than settings may; a test compares them.
RegionsFormat = Literal[
    "auto", "coco", "lvis", "panoptic", "masks", "sa1b", "labelme", "yolo", "voc", "labelstudio", "cvat", "huggingface", "webdataset"
]  # fmt: skip
RegionsBoxes = Literal["xywh", "xyxy"]
EMBEDDED_MODEL = "embedded"


class LabelSettings(PoolSettings):
    """Settings of `rlabel label`. Paths may be any fsspec URL."""

    schema_name: ClassVar[str] = "label-settings"

    images: str = Field(
        description="folder of the pictures; of --regions in parquet or tar, which hold theirs, a new folder to write them into"
    )
    regions: str | None = Field(
        None,
        description="class-agnostic masks or boxes: COCO JSON, or a file or folder of another layout; needed unless --propose finds them",
    )
    regions_format: RegionsFormat = Field(
        "auto", description="layout of --regions; what is not COCO is converted once, into OUT-regions/regions.json"
    )
    regions_boxes: RegionsBoxes = Field(
        "xywh", description="of --regions in parquet or tar: how it means four numbers, corner and sides or two corners"
    )
    propose: str | None = Field(
        None,
        description="instead of --regions: find them first, into OUT-regions/regions.json; embedded, which needs no model, or a model that "
        "`rlabel propose` takes",
    )
    max_proposals: int = Field(
        100,
        ge=1,
        le=2000,
        description="of --propose: the best so many regions of a picture, before max_regions_per_image",
    )
    vocabulary: str | None = Field(
        None, description="target names: JSON, COCO or LVIS categories, or a text file; classify needs them"
    )
    also_vocabulary: tuple[str, ...] = Field(
        (), description="of classify: a further vocabulary; the same answers snapped to it go into OUT/also/NAME"
    )
    tree: str | None = Field(
        None,
        description="of classify: V3Det's category tree; gives the vocabulary's categories their parents, for --fallback parent",
    )
    out: str = Field(description="run directory, made or continued")
    task: LabelTask = Field(
        "classify",
        description="classify: a category of the vocabulary a region; caption, describe: a short or long text a region; "
        "relate: a predicate a pair of regions; refer: the region that an expression means",
    )
    mode: LabelMode = Field(
        "separate",
        description="of classify: a conversation a region; one question about all regions of an image; one conversation an image, a question a region",
    )
    pairs: str | None = Field(
        None,
        description="of relate: JSON list of {image_id, subject, object}; if left out, each region and its nearest",
    )
    max_pairs_per_image: int = Field(20, ge=1, description="of relate, without --pairs")
    relation: RelationKind = Field("free", description="of relate: what is asked")
    expressions: str | None = Field(None, description="of refer: JSON list of {image_id, expression, id?, region_ids?}")
    refer_by: ReferBy = Field(
        "likelihood",
        description="of refer: the region that the expression is the likeliest caption of; caption or name; or the model is asked for a number",
    )
    views: LabelViews = Field(
        "plain", description="look at each region mirrored, or with its box for a mask, as well, and take the mean"
    )
    num_questions: int = Field(
        1,
        ge=1,
        le=16,
        description="of classify: wordings of the question that are asked; the answer is the one that all of them together find likeliest",
    )
    decoding: Decoding = Field(
        "free",
        description="of classify: free text; only the vocabulary's names and synonyms, token by token the likeliest; or free text, and the category whose "
        "names the model finds likeliest",
    )
    num_candidates: int = Field(
        5, ge=1, le=256, description="of hybrid decoding: names whose probability is worked out for each region"
    )
    search: Search = Field(
        "greedy",
        description="of constrained and hybrid decoding: token by token the likeliest (hybrid: a beam of so many), or the likeliest names of all",
    )
    rank_by: RankBy = Field(
        "total",
        description="of hybrid decoding: names are compared by their probability, by its mean over their tokens, or by how far it exceeds that of a "
        "blank region",
    )
    vocabulary_name: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="of classify: what training called the vocabulary (a mixture's `vocabulary`), named in the question",
    )
    model: str = Field(
        EMBEDDED_MODEL,
        description="RegionGPT or any image-text-to-text model that transformers loads: folder or hub id; the embedded labeler if left out",
    )
    region_as: RegionAs = Field(
        "auto",
        description="of a model that is no RegionGPT: how it is shown a region: its box as text, a crop, an outline or numbered marks on the picture; "
        "auto: as suits its family (`rlabel doctor MODEL`)",
    )
    family: str | None = Field(
        None,
        description="of a model that is no RegionGPT: whose way of writing boxes it follows, if config.json does not say",
    )
    picture_px: int = Field(
        1024, ge=64, le=8192, description="of a model that is no RegionGPT: longest side of a whole picture"
    )
    crop_px: int = Field(384, ge=32, le=4096, description="of --region-as crop: side of a crop")
    crop_context: float = Field(
        0.25, ge=0, le=4, description="of --region-as crop: margin on each side, share of the box's longer side"
    )
    trust_remote_code: bool = Field(
        False,
        description="of a model that transformers does not know: run the Python code in its repository, with your rights, on every node; read it first",
    )
    embedder: str | None = Field(
        None, description="sentence-transformers folder or id for snapping; the bundled MiniLM if left out"
    )
    embedder_dtype: EmbedderDtype = Field(
        "float32",
        description="in which the embedder multiplies; bfloat16 takes half the time on processors that know it, and moves similarities by a few thousandths",
    )

    question: str | None = Field(
        None,
        description="asked instead of the task's own; holds <region> (relate: <region1>, <region2>; one_turn: {choices}; "
        "refer by number: {choices}, {expression})",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=1024, description="of an answer; if left out 24, caption 48, describe 192, refer 8"
    )
    threshold: float = Field(0.6, ge=-1, le=1, description="least cosine for the embedding step of snapping")
    margin: float = Field(0.02, ge=0, le=2, description="least lead of the nearest category over the next")
    fallback: Fallback = Field(
        "abstain",
        description="of classify: what an answer gets that fits several categories alike: nothing, or the parent that all of them share, where the "
        "vocabulary has one",
    )
    thesaurus: str = Field(
        "wordnet",
        min_length=1,
        description="of classify: words that mean the same as a name, or a kind of it, come nearer to it: wordnet, the nouns that rlabel carries; none; "
        "or a folder with WordNet's index.noun and data.noun",
    )
    calibrator: str | None = Field(
        None, description="of classify: file that `rlabel calibrate` wrote; scores say how often labels are right"
    )
    min_score: float | None = Field(
        None, ge=0, le=1, description="of classify: labels with a lower score become abstentions"
    )
    precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of --calibrator: label only what is right so often, by the calibrator's threshold",
    )
    include_crowds: bool = True
    keep_zero_ids: bool = False
    limit: int | None = Field(None, ge=0, description="only the first N images")

    quantization: Quantization = "none"
    double_quantization: bool = True
    dtype: Dtype = "float32"
    compute_dtype: Dtype | None = Field(None, description="of quantized layers; dtype if left out")
    attention: Attention = Field("auto", description="of the language model, by transformers' names")
    compile: bool = Field(False, description="torch.compile the layers: a minute at the start; needs g++ or Triton")
    compile_mode: CompileMode = Field(
        "default",
        description="of --compile, by torch's names; reduce-overhead: CUDA graphs, one for each number of tokens that comes up, and on a CPU the same as "
        "default",
    )

    images_per_shard: int = Field(16, ge=1)
    max_regions_per_shard: int = Field(512, ge=1)
    max_regions_per_batch: int = Field(192, ge=1)
    max_batch_tokens: int = Field(
        16384,
        ge=1,
        description="of prompts and answers that go through the language model at once; a fixed number, not what memory is free, since a shard is to "
        "give the same bytes on every machine; what does not fit after all is halved",
    )
    prefix_sharing: PrefixSharing = Field(
        "auto",
        description="the prompt up to the region is kept once an image, copied for each region, or computed anew for each (to compare)",
    )
    max_regions_per_image: int = Field(10_000, ge=1, le=100_000, description="those after it become failures")
    max_polygon_points: int = Field(200_000, ge=1, description="of one region")
    results_files: bool = Field(False, description="also write labels.bbox.json and labels.segm.json")
    profile: bool = Field(False, description="write where the time went into OUT/profile.json and OUT/trace.json")

    def deciding(self) -> JsonObject:
        """Return the settings that decide what is written; where work runs, and how often it is tried, does not."""
        names = (
            "task", "views", "threshold", "margin", "include_crowds", "limit", "quantization", "double_quantization", "dtype",
            "compute_dtype", "device", "images_per_shard", "max_regions_per_shard", "max_regions_per_batch", "cpus_per_actor",
            "max_batch_tokens", "prefix_sharing",
        )  # fmt: skip
        values: dict[str, JsonValue] = {name: getattr(self, name) for name in names}
        for name, task in _OF_ONE_TASK.items():  # what another task asks for says nothing of this one
            if name not in (
                "pairs",
                "expressions",
                "results_files",
                "calibrator",
                "precision",
                "also_vocabulary",
                "thesaurus",
                "tree",
            ):
                values[name] = getattr(self, name) if task == self.task else None
        if self.task != "classify":
            values["threshold"] = values["margin"] = None
        if self.pairs is not None:
            values["max_pairs_per_image"] = None
        values["max_new_tokens"] = self.answer_tokens
        if self.quantization == "none":  # these two say nothing then, so they must not refuse a resume
            values["double_quantization"] = values["compute_dtype"] = None
        if self.attention != "auto":  # runs that were begun before there were these two go on
            values["attention"] = self.attention
        for name in ("compile", "trust_remote_code"):
            if getattr(self, name):
                values[name] = True
        if self.compile_mode != "default":
            values["compile_mode"] = self.compile_mode
        for name in ("max_pixels", "max_file_bytes", "max_regions_per_image", "max_polygon_points"):
            if getattr(self, name) != type(self).model_fields[name].default:
                values[name] = getattr(self, name)
        return values

    @property
    def answer_tokens(self) -> int:
        """Return the longest answer in tokens, end token included."""
        own = {"caption": 48, "describe": 192, "refer": 8}
        return self.max_new_tokens or own.get(self.task, 24)

    @property
    def regions_file(self) -> str:
        """Return the regions' path or URL; of a run that finds them itself, the place where it puts them."""
        return f"{self.proposals_out}/regions.json" if self.regions is None else self.regions

    @property
    def proposals_out(self) -> str:
        """Return the run directory of --propose, or the folder of converted --regions, beside that of the labels."""
        return f"{self.out.rstrip('/')}-regions"

    def _check_regions(self) -> None:
        if self.propose is not None and self.regions is not None:
            raise UsageError(f"--regions {self.regions}: got --propose, which finds them, as well. Give one of them.")
        if self.propose is None and self.regions is None:
            raise UsageError(
                "--regions: missing. Give it as a flag, or as `regions:` in the file of --config; or --propose, which finds regions."
            )
        if self.propose is None and self.max_proposals != type(self).model_fields["max_proposals"].default:
            raise UsageError("--max-proposals: it is of --propose, got --regions. Leave one of the two out.")

    def check(self) -> None:
        """Raise UsageError for settings that do not go together."""
        self._check_regions()
        for name, task, what in (
            ("vocabulary", "classify", "the names that answers are snapped to"),
            ("expressions", "refer", "a JSON list of {image_id, expression}"),
        ):
            if self.task == task and getattr(self, name) is None:
                raise UsageError(
                    f"--{name}: missing. Give it as a flag, or as `{name}:` in the file of --config: {what}, which --task {task} needs."
                )
        for name, task in _OF_ONE_TASK.items():
            if self.task != task and getattr(self, name) != type(self).model_fields[name].default:
                flag = name.replace("_", "-")
                raise UsageError(
                    f"--{flag}: it is of --task {task}, got --task {self.task}. Leave it out, or give --task {task}."
                )
        if (
            self.pairs is not None
            and self.max_pairs_per_image != type(self).model_fields["max_pairs_per_image"].default
        ):
            raise UsageError(
                "--max-pairs-per-image: it bounds the pairs that rlabel chooses, got --pairs. Leave one of them out."
            )
        if self.views != "plain" and (self.mode != "separate" or self.refer_by == "number"):
            raise UsageError(
                f"--views {self.views}: conversations about many regions take the plain look only. Leave it out, or ask one region at a time."
            )
        if self.decoding != "free" and self.mode != "separate":
            raise UsageError(
                f"--decoding {self.decoding}: conversations about many regions are in free text, got --mode {self.mode}. Leave one of the two out."
            )
        if self.search == "exact" and self.decoding == "free":
            raise UsageError(
                "--search exact: free text has no names to search among, got --decoding free. Leave it out, or give --decoding constrained or hybrid."
            )
        for name in ("num_candidates", "rank_by"):
            if self.decoding != "hybrid" and getattr(self, name) != type(self).model_fields[name].default:
                flag = name.replace("_", "-")
                raise UsageError(
                    f"--{flag}: it is of --decoding hybrid, got --decoding {self.decoding}. Leave it out, or give --decoding hybrid."
                )
        if self.compile_mode != "default" and not self.compile:
            raise UsageError(f"--compile-mode {self.compile_mode}: it is of --compile. Give that too, or leave it out.")
        if self.compile and self.quantization != "none":
            raise UsageError(f"--compile: not for --quantization {self.quantization}. Leave one of the two out.")
        if self.precision is not None and (self.calibrator is None or self.min_score is not None):
            raise UsageError(
                f"--precision {self.precision:g}: the threshold is the calibrator's. Give --calibrator, and leave out --min-score."
            )
        if self.num_questions > 1 and (self.mode != "separate" or self.question is not None):
            raise UsageError(
                f"--num-questions {self.num_questions}: the wordings are rlabel's own, in a conversation a region. "
                "Leave it out, or leave out --question and --mode."
            )
        self._check_question()

    def _check_question(self) -> None:
        marks = {"relate": ("<region1>", "<region2>")}.get(self.task, ("<region>",))
        if self.mode == "one_turn":
            marks = ("{choices}",)
        elif self.refer_by == "number":
            marks = ("{choices}", "{expression}")
        if self.question is not None and any(self.question.count(mark) != 1 for mark in marks):
            raise UsageError(
                f"--question: expected {' and '.join(marks)} in it, once each, for what is asked about, got {self.question!r}."
            )


# Settings that only one task knows.
_OF_ONE_TASK = {
    "mode": "classify", "num_questions": "classify", "vocabulary_name": "classify", "decoding": "classify", "results_files": "classify",
    "num_candidates": "classify", "search": "classify", "rank_by": "classify", "fallback": "classify", "thesaurus": "classify",
    "calibrator": "classify", "min_score": "classify", "precision": "classify", "also_vocabulary": "classify", "tree": "classify",
    "pairs": "relate", "max_pairs_per_image": "relate", "relation": "relate",
    "expressions": "refer", "refer_by": "refer",
}  # fmt: skip


class TrainSettings(SettingsRecord):
    """Settings of `rlabel train`."""

    schema_name: ClassVar[str] = "train-settings"

    images: str | None = Field(None, description="folder of the pictures; of parquet or tar, a new one for them")
    annotations: str | None = Field(None, description="COCO JSON with categories, or what --format says")
    mixture: str | None = Field(None, description="YAML file of several labeled datasets, instead of these two")
    format: DatasetFormat = Field("coco", description="layout of the annotations; auto: told by a look at them")
    boxes: RegionsBoxes = Field("xywh", description="of annotations in parquet or tar: how they mean four numbers")
    split: str | None = Field(None, description="RefCOCO: train, val, test, testA or testB")
    out: str = Field(description="model folder to write; its checkpoints lie in OUT/checkpoints")
    model: str = Field(EMBEDDED_MODEL, description="model folder or hub id to start from")
    recipe: str = Field("fine-tune", description="name of a shipped recipe, or a YAML file")
    stages: str | None = Field(None, description="only these stages of the recipe, by their names, separated by commas")
    seed: int = Field(0, ge=0, lt=2**31)
    limit: int | None = Field(None, ge=1, description="only the first N images")
    epochs: float | None = Field(None, gt=0, description="instead of the recipe's, for every stage")
    val_images: str | None = None
    val_annotations: str | None = None
    val_split: str | None = None
    val_limit: int = Field(100, ge=1)
    storage: str | None = Field(None, description="where checkpoints go, any fsspec URL; OUT/checkpoints if left out")
    save_dtype: Dtype = "float32"
    num_workers: int = Field(1, ge=1)
    parallel: Parallel = Field("ddp", description="ddp: every worker holds the model; fsdp: a share of it")
    gpus_per_worker: Gpus = Field(-1.0, description="-1: 1 where the cluster has GPUs, else 0")
    cpus_per_worker: int = Field(1, ge=1)
    num_loader_workers: int = Field(1, ge=0)
    max_failures: int = Field(3, ge=0)
    tensorboard: bool = Field(False, description="also write OUT/tensorboard, beside progress.jsonl and curves.png")
    address: str | None = None
    no_ray: bool = False

    def deciding(self) -> JsonObject:
        """Return the settings that decide the weights that are written."""
        names = ("images", "annotations", "format", "split", "seed", "limit", "epochs", "num_workers", "save_dtype")
        return {name: getattr(self, name) for name in names}
