"""What flows between the stages: plain frozen records, no arrays, no torch, no I/O.

Field values that come from a corpus file verbatim (segmentations, extra keys) are `JsonValue`: whatever `json.loads` may give.
They are parsed where they are used and written back unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

JsonValue: TypeAlias = "None | bool | int | float | str | list[JsonValue] | dict[str, JsonValue]"
JsonObject: TypeAlias = "dict[str, JsonValue]"
RegionId: TypeAlias = "int | str | None"
BoxXywh: TypeAlias = "tuple[float, float, float, float]"

DecidedBy = Literal["exact", "synonym", "inflection", "phrase", "embedding", "likelihood", "parent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One class-agnostic mask or box of an image, as the corpus file gives it.

    key: unique within the corpus: the id as text, with "#2", "#3" ... appended for later rows of a repeated id, or "row N".
    region_id: the id verbatim; None where the row has none.
    annotation_id: the id to keep in labels.json: set only where it is a positive integer that no other row uses.
    segmentation: verbatim polygons or RLE; None where the row has none.
    box_xywh: left, top, width, height in upright image pixels, verbatim; None where the row has none.
    extra: the row's other keys, verbatim; never holds category_id, caption or score (they must not reach a labeler).
    problem: why this region cannot be labeled, found while reading (an orphan, an ambiguous image id); None if it can.
    """

    key: str
    region_id: RegionId
    annotation_id: int | None
    segmentation: JsonValue = None
    box_xywh: tuple[float, float, float, float] | None = None
    is_crowd: bool = False
    extra: JsonObject = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two regions of one image whose relation is asked for.

    key: unique within the run: "row N" of the file that names the pair, or the two regions' keys where rlabel chose it.
    image_id: as the row says it. subject, object: keys of regions of that image.
    problem: why this cannot be asked, found while reading (an unknown id); then subject and object may be empty.
    """

    key: str
    image_id: JsonValue
    subject: str
    object: str
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """Words that mean one region of an image.

    key: unique within the run: "row N" of the file. image_id, expression_id: as the row says them, None where it says none.
    candidates: keys of the regions to choose from, in the order they are listed.
    problem: why this cannot be asked, found while reading.
    """

    key: str
    image_id: JsonValue
    expression_id: RegionId
    text: str
    candidates: tuple[str, ...]
    problem: str | None = None


Query: TypeAlias = "Pair | Expression"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One image row with its regions in file order.

    row: the COCO image row verbatim (id, file_name, width, height and whatever else it had).
    file_name: path relative to the image root; None where the row has none usable.
    width_px, height_px: the size the row states, of the upright picture (EXIF applied); None where it states none.
    queries: what is asked of several regions at once; None where each region is asked about by itself.
    """

    row: JsonObject
    file_name: str | None
    width_px: int | None
    height_px: int | None
    regions: tuple[Region, ...]
    queries: tuple[Query, ...] | None = None

    @property
    def keys(self) -> list[str]:
        """Return the keys of what ends with one outcome each: regions, or queries where there are some."""
        return [item.key for item in (self.regions if self.queries is None else self.queries)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The unit of placing, retrying, resuming and determinism.

    index: 0-based position in the plan. content_sha256: hex digest of the canonical JSON of images and stray regions.
    stray_regions, stray_queries: rows whose image_id no image row has; each carries its `problem` and ends as a failure.
    """

    index: int
    content_sha256: str
    images: tuple[ImageRecord, ...]
    stray_regions: tuple[Region, ...] = ()
    stray_queries: tuple[Query, ...] = ()

    @property
    def keys(self) -> list[str]:
        """Return the keys of all that ends with one outcome each, in the order of the outcomes."""
        strays = [item.key for item in (*self.stray_regions, *self.stray_queries)]
        return [key for image in self.images for key in image.keys] + strays

    @property
    def num_images(self) -> int:
        return len(self.images)

    @property
    def num_regions(self) -> int:
        """Return how many outcomes the shard ends with: one a region, or one a pair or expression where those are asked."""
        return len(self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model said of one region.

    text: stripped free text. token_logprobs: natural-log probability of each generated token, end token included; where several wordings were asked,
    one number, the mean of theirs for the whole answer.
    """

    region_key: str
    text: str
    token_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A region that could not be labeled. reason names the file and the cause, in words for a person.

    kind: a short stable word for counting: image, region, model, answer (the model gave no usable one), attempts.
    """

    region: Region
    image_id: JsonValue
    kind: str
    reason: str

    @property
    def key(self) -> str:
        return self.region.key


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryFailure:
    """A pair or an expression without an answer. kind: as of a Failure, or "query" where its own row cannot be used."""

    query: Query
    image_id: JsonValue
    kind: str
    reason: str

    @property
    def key(self) -> str:
        return self.query.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Snap:
    """The outcome of snapping one text to a vocabulary.

    category_id: None when it abstains; then `reason` says why and the nearest name is still on record.
    similarity: cosine in [-1, 1] of the text and the nearest category (1.0 for the lexical steps).
    margin: similarity minus that of the best other category, in [0, 2].
    decided_by: the step that decided; None when it abstains.
    """

    category_id: int | None
    nearest_name: str | None
    similarity: float
    margin: float
    decided_by: DecidedBy | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelyCategory:
    """A category with the natural-log probability that the model gives to its names, each as a whole answer, added up."""

    category_id: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a score may be made of, beside the probability of the whole answer and how the text was snapped.

    num_tokens: of the answer, end token included. mean_logprob, min_logprob: of these tokens, natural logarithms, at least -1000.
    candidates: the likeliest categories that the model was asked about, best first; empty where only free text was asked for.
    agreement: share of the wordings that gave this answer; None where there was one wording.
    """

    num_tokens: int = 0
    mean_logprob: float = 0.0
    min_logprob: float = 0.0
    candidates: tuple[LikelyCategory, ...] = ()
    agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A region with its category. score in [0, 1]; text_score in [0, 1]; area in pixels of the mask; box in upright image pixels.

    raw_score: the score before it was calibrated; None where it was not.
    """

    region: Region
    image_id: JsonValue
    category_id: int
    score: float
    text: str
    text_score: float
    snap: Snap
    box_xywh: BoxXywh
    area_px: float
    segmentation: JsonValue
    evidence: Evidence = field(default_factory=Evidence)
    raw_score: float | None = None

    @property
    def key(self) -> str:
        return self.region.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Abstention:
    """A region whose answer no category is near enough to."""

    region: Region
    image_id: JsonValue
    text: str
    text_score: float
    snap: Snap
    box_xywh: BoxXywh
    area_px: float
    evidence: Evidence = field(default_factory=Evidence)

    @property
    def key(self) -> str:
        return self.region.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A region with a text about it, brief or detailed. score: the text's probability, in [0, 1]. The rest is as of a Label."""

    region: Region
    image_id: JsonValue
    text: str
    score: float
    box_xywh: BoxXywh
    area_px: float
    segmentation: JsonValue

    @property
    def key(self) -> str:
        return self.region.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A region as a relation or a choice names it. box_xywh: upright image pixels; area_px: of its mask."""

    key: str
    region_id: RegionId
    box_xywh: BoxXywh
    area_px: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """What the subject of a pair has to do with its object. score: the predicate's probability, in [0, 1]."""

    pair: Pair
    image_id: JsonValue
    predicate: str
    score: float
    subject: Place
    object: Place

    @property
    def key(self) -> str:
        return self.pair.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of the regions to choose from. score: its share of the probability of all, in [0, 1]; None where they are not compared."""

    key: str
    region_id: RegionId
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Referral:
    """The region that an expression means. score in [0, 1]. text: the model's own words where it was asked for a number, else None.

    candidates: the regions that could be chosen; those of the expression that cannot be read are not among them.
    """

    expression: Expression
    image_id: JsonValue
    chosen: Place
    score: float
    candidates: tuple[Candidate, ...]
    text: str | None = None

    @property
    def key(self) -> str:
        return self.expression.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """One region that was found in a picture. segmentation: a compressed RLE of the picture, None for a box alone. score in [0, 1]."""

    box_xywh: BoxXywh
    area_px: float
    segmentation: JsonValue
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposals:
    """The regions that were found in a picture, best first. region: the whole picture, which a run of this task has one outcome for."""

    region: Region
    image_id: JsonValue
    proposer: str
    height_px: int
    width_px: int
    found: tuple[Proposed, ...]

    @property
    def key(self) -> str:
        return self.region.key


Outcome: TypeAlias = "Label | Caption | Relation | Referral | Proposals | Abstention | Failure | QueryFailure"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What became of one shard: its image rows (also those without regions) and one outcome a region, in shard order."""

    index: int
    images: tuple[JsonObject, ...]
    outcomes: tuple[Outcome, ...]
