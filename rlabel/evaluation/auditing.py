"""Finds human labels that a labeler contradicts with confidence. Knows nothing of pictures, and changes no file.

Confident learning (Northcutt, Jiang and Chuang 2021, arXiv 1911.00068, section 3): a label is suspect when another category's
probability reaches that category's own threshold, the mean probability that the labeler gives to the category on regions which
people gave it. A run of hybrid decoding has the probabilities of the likeliest categories; of other runs only the answer's score
is at hand, and every other category has probability 0.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from rlabel.errors import InputError, UsageError
from rlabel.evaluation.judging import Judged, RegionKey, judge_run
from rlabel.evaluation.reading import id_to_text, read_truth, stream_rows
from rlabel.records import JsonObject, JsonValue, Label
from rlabel.run.directory import MANIFEST, RunDirectory
from rlabel.storage import Store, split_url

_SUREST_SHARE = 0.2  # of the judged labels: those whose contradictions are taken for the people's mistakes


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A human label that the labeler contradicts.

    human_id, labeler_id: of the human file's categories. score: the labeler's label's. probability: of the labeler's category,
    its share among the candidates, else the score. threshold: of that category; is_confident: the probability reaches it.
    human_probability: of the people's category; 0 where it is not among the candidates, None where there are no candidates.
    margin: probability less human_probability, by which suspects are ordered. All in [0, 1], but margin may be below 0.
    expected_precision: share of truly wrong human labels that is expected at this probability, an estimate in [0, 1].
    """

    image_id: str
    region_id: str
    human_id: int
    human_name: str
    labeler_id: int
    labeler_name: str
    text: str
    score: float
    probability: float
    human_probability: float | None
    threshold: float
    margin: float
    is_confident: bool
    expected_precision: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Human labels beside a run.

    num_regions: non-crowd regions of the human file in the run's images: num_judged of them compared, num_unlabeled without a
    label by the run, num_unknown_to_labeler with a human category that the vocabulary lacks (the labeler cannot but contradict),
    num_unknown_to_humans labeled with a category that the human file lacks (nobody can say whether it contradicts).
    num_contradicted: of num_judged. has_candidates: the run is of hybrid decoding. noise: estimated share of wrong human labels, rather too high than too low.
    suspects: all contradicted ones, most confident first.
    """

    num_regions: int
    num_judged: int
    num_unlabeled: int
    num_unknown_to_labeler: int
    num_unknown_to_humans: int
    num_contradicted: int
    noise: float | None
    has_candidates: bool
    suspects: tuple[Suspect, ...]

    def to_json(self, listed: Sequence[Suspect]) -> JsonObject:
        """Return one plain object with the suspects in `listed`."""
        return {
            "num_regions": self.num_regions,
            "num_judged": self.num_judged,
            "num_unlabeled": self.num_unlabeled,
            "num_unknown_to_labeler": self.num_unknown_to_labeler,
            "num_unknown_to_humans": self.num_unknown_to_humans,
            "num_contradicted": self.num_contradicted,
            "num_confident": sum(s.is_confident for s in self.suspects),
            "noise": self.noise,
            "has_candidates": self.has_candidates,
            "suspects": [asdict(s) for s in listed],
        }


def audit_run(run_url: str, truth_url: str) -> Audit:
    """Return the human labels that a run contradicts, most confidently contradicted first.

    Raises InputError for files that are missing or damaged, a file of other regions or other categories.
    """
    truth = read_truth(truth_url)
    run = judge_run(run_url, truth, truth_url)
    names = {category.category_id: category.name for category in truth.categories}
    answerable = set(run.to_truth_id.values())
    unknown = [j for j in run.judged if j.region.category_id not in answerable]
    known = [j for j in run.judged if j.region.category_id in answerable]
    labeled = [j for j in known if j.is_labeled]
    comparable = [j for j in labeled if j.predicted_id is not None]
    candidates = read_candidates(run_url)
    views = [_view(j, candidates, run.to_truth_id) for j in comparable]
    threshold_of = class_thresholds(
        [(j.region.category_id, view.human) for j, view in zip(comparable, views, strict=True)]
    )
    threshold_R = np.asarray([threshold_of.get(_answer(j), 1.0) for j in comparable])
    agrees_R = np.asarray([j.is_correct for j in comparable], dtype=bool)
    noise, expected_R = expected_precisions(np.asarray([view.probability for view in views]), agrees_R)
    suspects = [
        Suspect(
            image_id=j.region.image_id,
            region_id=j.region.region_id,
            human_id=j.region.category_id,
            human_name=names[j.region.category_id],
            labeler_id=_answer(j),
            labeler_name=names[_answer(j)],
            text=j.outcome.text if j.outcome is not None else "",
            score=_score(j),
            probability=views[i].probability,
            human_probability=views[i].human if candidates is not None else None,
            threshold=float(threshold_R[i]),
            margin=views[i].probability - views[i].human,
            is_confident=bool(views[i].probability >= threshold_R[i]),
            expected_precision=float(expected_R[i]),
        )
        for i, j in enumerate(comparable)
        if not j.is_correct
    ]
    suspects.sort(key=lambda s: (-s.margin, -s.probability, s.image_id, s.region_id))
    return Audit(
        num_regions=len(run.judged),
        num_judged=len(comparable),
        num_unlabeled=len(known) - len(labeled),
        num_unknown_to_labeler=len(unknown),
        num_unknown_to_humans=len(labeled) - len(comparable),
        num_contradicted=len(suspects),
        noise=noise,
        has_candidates=candidates is not None,
        suspects=tuple(suspects),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What the labeler thinks of a region: the probability of its own category and of the people's, which may be the same one."""

    probability: float
    human: float


def read_candidates(run_url: str) -> dict[RegionKey, dict[int, float]] | None:
    """Return {region: {the run's category id: natural-log probability}} of a run of hybrid decoding, None of any other.

    Raises RunError for a damaged run.
    """
    store = Store.open(run_url)
    if not store.exists(MANIFEST):
        return None
    run = RunDirectory.open(store)
    if run.manifest.settings.get("decoding") != "hybrid":
        return None
    found: dict[RegionKey, dict[int, float]] = {}
    for result in run.results():
        for outcome in result.outcomes:
            if isinstance(outcome, Label) and outcome.evidence.candidates:
                key = (id_to_text(outcome.image_id) or "", id_to_text(outcome.region.region_id) or "")
                found[key] = {one.category_id: one.logprob for one in outcome.evidence.candidates}
    return found or None


def _view(
    judged: Judged, candidates: Mapping[RegionKey, Mapping[int, float]] | None, to_truth_id: Mapping[int, int]
) -> _View:
    answer, human = _answer(judged), judged.region.category_id
    own = (candidates or {}).get((judged.region.image_id, judged.region.region_id))
    if not own:
        score = _score(judged)
        return _View(probability=score, human=score if judged.is_correct else 0.0)
    likely = {to_truth_id.get(category_id, -1): logprob for category_id, logprob in own.items()}
    total = float(np.logaddexp.reduce(list(likely.values())))

    def share(category_id: int) -> float:
        return math.exp(likely[category_id] - total) if category_id in likely else 0.0

    return _View(probability=share(answer), human=share(human))


def class_thresholds(probabilities: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Return {category: mean probability} of (category that people gave to a region, probability that the labeler gives to it)."""
    total: defaultdict[int, float] = defaultdict(float)
    count: Counter[int] = Counter()
    for category_id, probability in probabilities:
        count[category_id] += 1
        total[category_id] += probability
    return {category_id: total[category_id] / count[category_id] for category_id in count}


def expected_precisions(
    probability_R: NDArray[np.float64], agrees_R: NDArray[np.bool_]
) -> tuple[float | None, NDArray[np.float64]]:
    """Return the estimated share of wrong human labels, and for each region how likely its human label is wrong if contradicted.

    Of a contradiction either the person or the labeler is wrong. The labeler is taken to be right on its surest fifth, so
    contradictions there measure the people's mistakes: `noise`. At a probability where the labeler agrees with a share a of the
    people (isotonic regression), it is right for a / (1 - noise) of the regions, and people are wrong for noise of these.
    The surest answers are not all right: the estimate is too high by as much.
    """
    if not probability_R.size:
        return None, np.zeros(0)
    from sklearn.isotonic import IsotonicRegression

    num_surest = max(1, round(_SUREST_SHARE * probability_R.size))
    surest = np.argsort(-probability_R, kind="stable")[:num_surest]
    noise = float(1 - agrees_R[surest].mean())
    agreement_R = IsotonicRegression(y_min=0, y_max=1).fit_transform(probability_R, agrees_R.astype(float))
    right_R = np.minimum(1.0, agreement_R / max(1 - noise, 1e-9))
    contradicted_R = np.maximum(1 - agreement_R, 1e-9)
    return noise, np.minimum(1.0, right_R * noise / contradicted_R)


def choose_suspects(audit: Audit, top: int | None = None, precision: float | None = None) -> tuple[Suspect, ...]:
    """Return the suspects to list: the confident ones, or the first `top`, or the most for which `precision` is expected.

    Raises UsageError for both at once or values out of range.
    """
    if top is not None and precision is not None:
        raise UsageError("--top and --precision both say how many to list: give one of them.")
    if top is not None:
        if top < 1:
            raise UsageError(f"--top {top}: expected 1 or more.")
        return audit.suspects[:top]
    if precision is None:
        return tuple(s for s in audit.suspects if s.is_confident)
    if not 0 < precision <= 1:
        raise UsageError(f"--precision {precision}: expected a share above 0 and up to 1, as in 0.5.")
    if not audit.suspects:
        return ()
    expected = np.asarray([s.expected_precision for s in audit.suspects])
    reached = np.flatnonzero(np.cumsum(expected) / np.arange(1, len(expected) + 1) >= precision)
    return audit.suspects[: int(reached[-1]) + 1] if reached.size else ()


def suspects_document(truth_url: str, suspects: Sequence[Suspect]) -> JsonObject:
    """Return a COCO object of the human annotations under suspicion: as the file has them, and `suspect` with the case against.

    Raises InputError when the file cannot be read, or no longer has one of them.
    """
    store, name = split_url(truth_url)
    by_key = {(s.image_id, s.region_id): (rank, s) for rank, s in enumerate(suspects, start=1)}
    found: dict[int, JsonObject] = {}
    for row in stream_rows(store, name, "annotations"):
        ranked = by_key.get((_text(row.get("image_id")), _text(row.get("id"))))
        if ranked is not None:
            rank, suspect = ranked
            case = {key: value for key, value in asdict(suspect).items() if key not in ("image_id", "region_id")}
            found[rank] = {**row, "score": suspect.score, "suspect": {"rank": rank, **case}}
    if len(found) != len(by_key):
        raise InputError(
            f"{store.join(name)}: {len(by_key) - len(found)} of the suspects are no longer in it. Run it again."
        )
    image_ids = {s.image_id for s in suspects}
    images: list[JsonValue] = [r for r in stream_rows(store, name, "images") if _text(r.get("id")) in image_ids]
    categories: list[JsonValue] = list(stream_rows(store, name, "categories"))
    return {
        "info": {"description": "human labels that a labeler contradicts, the most confidently contradicted first"},
        "images": images,
        "categories": categories,
        "annotations": [found[rank] for rank in sorted(found)],
    }


def _text(value: JsonValue) -> str:
    return id_to_text(value) or ""


def _score(judged: Judged) -> float:
    return judged.outcome.score if judged.outcome is not None else 0.0


def _answer(judged: Judged) -> int:
    assert judged.predicted_id is not None
    return judged.predicted_id
