"""The result of an evaluation as plain frozen records, and as one JSON object. No I/O and no arithmetic beyond shares.

All shares, accuracies and average precisions are in [0, 1]; None where nothing was there to measure.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rlabel.evaluation.bootstrap import NUM_RESAMPLES
from rlabel.evaluation.reliability import Reliability
from rlabel.records import JsonObject, JsonValue

Interval = tuple[float, float]  # low and high bound of a 95 % bootstrap interval over images


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """num_correct of num_regions, with the bounds of a 95 % bootstrap interval over images; None without regions."""

    num_correct: int
    num_regions: int
    low95: float | None = None
    high95: float | None = None

    @property
    def share(self) -> float | None:
        return self.num_correct / self.num_regions if self.num_regions else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """A group of regions (a supercategory, a size); num_labeled of them got a label, num_correct the right one."""

    name: str
    num_regions: int
    num_labeled: int
    num_correct: int

    @property
    def top1(self) -> float | None:
        return self.num_correct / self.num_regions if self.num_regions else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryRow:
    """A category of the truth: num_regions of it, num_labeled with any label, num_correct with this one; num_said: labels of it on regions of any category."""

    name: str
    supercategory: str
    num_regions: int
    num_labeled: int
    num_correct: int
    num_said: int

    @property
    def top1(self) -> float | None:
        return self.num_correct / self.num_regions if self.num_regions else None

    @property
    def precision(self) -> float | None:
        return self.num_correct / self.num_said if self.num_said else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskPoint:
    """Of the num_labels surest labels, a share of all of them (coverage), the share that is wrong (risk)."""

    num_labels: int
    coverage: float
    risk: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreWorth:
    """What the scores of a run's labels are worth as they are. curve: from the surest labels to all, at most 100 points."""

    reliability: Reliability
    curve: tuple[RiskPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedRow:
    """Labels that one snapping step decided, and how many of them are right."""

    step: str
    num_labeled: int
    num_correct: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """A region of category `true_name` was labeled `predicted_name`, num_regions times."""

    true_name: str
    predicted_name: str
    num_regions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmatchedText:
    """An answer that was snapped to no category. nearest_name and true_name: the most frequent ones of its regions."""

    text: str
    num_regions: int
    nearest_name: str | None
    true_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePrecision:
    """COCO box AP of the labels put on the truth's boxes: at IoU 0.50:0.95, 0.50 and 0.75. None without truth boxes.

    interval95: of ap, by resampling images.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    interval95: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LvisPrecision:
    """LVIS's federated AP with the labels' own scores, at IoU 0.50:0.95; r, c and f: over rare, common and frequent categories.

    A label counts only where the truth says whether its category is in the image: num_ignored of num_labels did not.
    None where there is no category of the kind.
    """

    ap: float | None
    ap_rare: float | None
    ap_common: float | None
    ap_frequent: float | None
    num_labels: int
    num_ignored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticRow:
    """Means over num_regions regions: similarity, a cosine in [-1, 1], and iou in [0, 1]; None without regions.

    Intervals are over resampled images. name: which texts, and of which regions.
    """

    name: str
    num_regions: int
    similarity: float | None
    similarity_interval95: Interval | None
    iou: float | None
    iou_interval95: Interval | None

    def to_json(self) -> JsonObject:
        pairs = {
            "similarity_interval95": _pair(self.similarity_interval95),
            "iou_interval95": _pair(self.iou_interval95),
        }
        return {**asdict(self), **pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryMatching:
    """How the run's categories were found in the truth's.

    method: "id" if all that were found have the same id and name on both sides; "name" if some have another id.
    names_missing: categories that truth regions have and the vocabulary does not: they cannot be answered rightly.
    """

    method: str
    names_missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A run against a truth file.

    num_regions: the truth's non-crowd regions of the images that the run covers; the denominator of top1 and of all
        rates. It is num_labeled + num_abstained + num_failed + num_missing; everything but a right label is wrong.
    num_missing: regions of the truth that the run has no outcome for.
    num_crowd: crowd regions of those images, not asked for.
    num_images_left_out: the truth's images that the run does not cover (--limit). num_regions_left_out: their
        non-crowd regions.
    num_ambiguous: truth regions whose id occurs twice in the truth file; left out.
    num_not_in_truth: outcomes of the run that no region of the truth belongs to.
    num_without_box: regions without a box that has an area: left out of the average precisions only.
    macro: mean over the truth's categories of their accuracies. when_labeled: accuracy of the labeled regions alone.
    top1_seen ... top1_unseen_drawing: None unless a provenance file was given.
    tied, scored: average precision with score 1.0 for every label, and with the labels' own scores.
    per_category: the truth's categories with regions or labels, by name. scores: None without labels.
    lvis: of a truth with LVIS's fields. semantic: where it was asked for.
    """

    num_images: int
    num_regions: int
    num_labeled: int
    num_abstained: int
    num_failed: int
    num_missing: int
    num_crowd: int
    num_images_left_out: int
    num_regions_left_out: int
    num_ambiguous: int
    num_not_in_truth: int
    num_without_box: int
    top1: Accuracy
    when_labeled: Accuracy
    coverage_interval95: Interval | None
    macro: float | None
    macro_interval95: Interval | None
    top1_seen: Accuracy | None
    top1_unseen: Accuracy | None
    top1_unseen_photo: Accuracy | None
    top1_unseen_drawing: Accuracy | None
    tied: AveragePrecision
    scored: AveragePrecision
    matching: CategoryMatching
    per_supercategory: tuple[GroupRow, ...]
    per_size: tuple[GroupRow, ...]
    decided_by: tuple[DecidedRow, ...]
    confusions: tuple[Confusion, ...]
    unmatched_texts: tuple[UnmatchedText, ...]
    failures_by_kind: tuple[tuple[str, int], ...]
    per_category: tuple[CategoryRow, ...] = ()
    scores: ScoreWorth | None = None
    lvis: LvisPrecision | None = None
    semantic: tuple[SemanticRow, ...] = ()

    @property
    def coverage(self) -> float | None:
        return self.num_labeled / self.num_regions if self.num_regions else None

    @property
    def abstention_rate(self) -> float | None:
        return self.num_abstained / self.num_regions if self.num_regions else None

    def to_json(self) -> JsonObject:
        """Return one plain object: `top1` and its like are numbers; `top1_interval95` holds their bounds."""
        accuracies: dict[str, Accuracy | None] = {
            "top1": self.top1,
            "top1_seen": self.top1_seen,
            "top1_unseen": self.top1_unseen,
            "top1_unseen_photo": self.top1_unseen_photo,
            "top1_unseen_drawing": self.top1_unseen_drawing,
            "accuracy_when_labeled": self.when_labeled,
        }
        plain: JsonObject = {}
        for key, accuracy in accuracies.items():
            plain[key] = None if accuracy is None else accuracy.share
            plain[f"{key}_num_regions"] = None if accuracy is None else accuracy.num_regions
            if accuracy is not None and accuracy.low95 is not None:
                plain[f"{key}_interval95"] = [accuracy.low95, accuracy.high95]
            else:
                plain[f"{key}_interval95"] = None
        plain |= {
            "macro_accuracy": self.macro,
            "macro_accuracy_interval95": _pair(self.macro_interval95),
            "coverage": self.coverage,
            "coverage_interval95": _pair(self.coverage_interval95),
            "abstention_rate": self.abstention_rate,
            "num_resamples": NUM_RESAMPLES,
            "num_images": self.num_images,
            "num_regions": self.num_regions,
            "num_labeled": self.num_labeled,
            "abstentions": self.num_abstained,
            "failures": self.num_failed,
            "missing": self.num_missing,
            "num_crowd": self.num_crowd,
            "num_images_left_out": self.num_images_left_out,
            "num_regions_left_out": self.num_regions_left_out,
            "num_ambiguous": self.num_ambiguous,
            "num_not_in_truth": self.num_not_in_truth,
            "num_without_box": self.num_without_box,
            "map_tied": self.tied.ap,
            "ap50_tied": self.tied.ap50,
            "ap75_tied": self.tied.ap75,
            "map_tied_interval95": _pair(self.tied.interval95),
            "map_scored": self.scored.ap,
            "ap50_scored": self.scored.ap50,
            "ap75_scored": self.scored.ap75,
            "map_scored_interval95": _pair(self.scored.interval95),
            "categories_matched_by": self.matching.method,
            "categories_missing": list(self.matching.names_missing),
            "per_supercategory": [_group_to_json(row) for row in self.per_supercategory],
            "per_category": [
                {**asdict(row), "top1": row.top1, "precision": row.precision} for row in self.per_category
            ],
            "scores": None if self.scores is None else _scores_to_json(self.scores),
            "per_size": [_group_to_json(row) for row in self.per_size],
            "decided_by": [asdict(row) for row in self.decided_by],
            "confusions": [asdict(row) for row in self.confusions],
            "unmatched_texts": [asdict(row) for row in self.unmatched_texts],
            "failures_by_kind": dict(self.failures_by_kind),
            "lvis": None if self.lvis is None else asdict(self.lvis),
            "semantic": [row.to_json() for row in self.semantic],
        }
        return plain


def _group_to_json(row: GroupRow) -> JsonValue:
    return {**asdict(row), "top1": row.top1}


def _scores_to_json(scores: ScoreWorth) -> JsonValue:
    return {**scores.reliability.to_json(), "risk_coverage": [asdict(point) for point in scores.curve]}


def _pair(interval: Interval | None) -> JsonValue:
    return None if interval is None else list(interval)
