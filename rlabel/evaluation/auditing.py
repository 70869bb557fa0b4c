"""Finds human labels that a labeler contradicts with confidence. Knows nothing of pictures, and changes no file.

Suspects are ordered by how likely the human label is wrong (`rlabel.evaluation.suspicion`). Beside that, confident learning's mark (Northcutt, Jiang and Chuang
2021, arXiv 1911.00068, section 3): another category's probability reaches that category's own threshold, the mean probability that the labeler gives to the
category on regions which people gave it. A run of hybrid decoding has the probabilities of the likeliest categories; of other runs only the answer's score is
at hand, and every other category has probability 0.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rlabel.errors import InputError, UsageError
from rlabel.evaluation.judged_labels import read_labels
from rlabel.evaluation.judging import Judged, RegionKey, judge_run
from rlabel.evaluation.reading import id_to_text, read_truth, stream_rows
from rlabel.evaluation.suspicion import NOT_RANKED, mistake_probabilities
from rlabel.records import JsonObject, JsonValue, Label
from rlabel.run.directory import MANIFEST, RunDirectory
from rlabel.storage import Store, split_url
from rlabel.vocabulary.calibration import apply, check_fits, load_calibrator


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A human label that the labeler contradicts.

    human_id, labeler_id: of the human file's categories. score: the labeler's label's, calibrated where there is a calibrator.
    probability: of the labeler's category, its share among the candidates, else the score. threshold: of that category; is_confident: the probability
    reaches it. human_probability: of the people's category; 0 where it is not among the candidates, None where there are no candidates.
    margin: probability less human_probability. All in [0, 1], but margin may be below 0.
    expected_precision: how likely the human label is wrong, an estimate in [0, 1], by which suspects are ordered.
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
    num_contradicted: of num_judged. has_candidates: the run is of hybrid decoding. noise: estimated share of wrong human labels;
    without candidates rather too high. suspects: all contradicted ones, the likeliest to be wrong first. is_calibrated: the scores
    say how often answers are right. warnings: where the calibrator was fitted on a run that differs a little.
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
    is_calibrated: bool = False
    warnings: tuple[str, ...] = ()

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
            "is_calibrated": self.is_calibrated,
            "suspects": [asdict(s) for s in listed],
        }


def audit_run(run_url: str, truth_url: str, calibrator_url: str | None = None) -> Audit:
    """Return the human labels that a run contradicts, those that are likeliest to be wrong first.

    calibrator_url: says how often answers are right; without it that is read off from how often people agree.
    Raises InputError for files that are missing or damaged, a file of other regions or other categories, a calibrator of another kind of run.
    """
    truth = read_truth(truth_url)
    run = judge_run(run_url, truth, truth_url)
    calibrated, is_calibrated, warnings = _calibrated(run_url, calibrator_url)
    names = {category.category_id: category.name for category in truth.categories}
    answerable = set(run.to_truth_id.values())
    unknown = [j for j in run.judged if j.region.category_id not in answerable]
    known = [j for j in run.judged if j.region.category_id in answerable]
    labeled = [j for j in known if j.is_labeled]
    comparable = [j for j in labeled if j.predicted_id is not None]
    candidates = read_candidates(run_url)
    score_R = np.asarray([calibrated.get(_key(j), _score(j)) for j in comparable], dtype=np.float64)
    views = [_view(j, float(s), candidates, run.to_truth_id) for j, s in zip(comparable, score_R, strict=True)]
    threshold_of = class_thresholds(
        [(j.region.category_id, view.human) for j, view in zip(comparable, views, strict=True)]
    )
    threshold_R = np.asarray([threshold_of.get(_answer(j), 1.0) for j in comparable])
    noise, wrong_R = mistake_probabilities(
        score_R if is_calibrated else np.asarray([view.probability for view in views], dtype=np.float64),
        np.asarray([j.is_correct for j in comparable], dtype=bool),
        np.asarray([view.human_rank for view in views], dtype=np.int64),
        max(map(len, candidates.values())) if candidates else 0,
        len(answerable),
        is_calibrated=is_calibrated,
    )
    suspects = [
        Suspect(
            image_id=j.region.image_id,
            region_id=j.region.region_id,
            human_id=j.region.category_id,
            human_name=names[j.region.category_id],
            labeler_id=_answer(j),
            labeler_name=names[_answer(j)],
            text=j.outcome.text if j.outcome is not None else "",
            score=float(score_R[i]),
            probability=views[i].probability,
            human_probability=views[i].human if candidates is not None else None,
            threshold=float(threshold_R[i]),
            margin=views[i].probability - views[i].human,
            is_confident=bool(views[i].probability >= threshold_R[i]),
            expected_precision=float(wrong_R[i]),
        )
        for i, j in enumerate(comparable)
        if not j.is_correct
    ]
    suspects.sort(key=lambda s: (-s.expected_precision, -s.margin, -s.probability, s.image_id, s.region_id))
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
        is_calibrated=is_calibrated,
        warnings=warnings,
    )


def _calibrated(run_url: str, calibrator_url: str | None) -> tuple[dict[RegionKey, float], bool, tuple[str, ...]]:
    """Return the calibrated scores that a calibrator gives, whether scores are calibrated at all (the run may have been labeled so), and warnings."""
    store = Store.open(run_url)
    if calibrator_url is None:
        is_so = store.exists(MANIFEST) and bool(RunDirectory.open(store).manifest.settings.get("calibrator_sha256"))
        return {}, is_so, ()
    calibrator = load_calibrator(calibrator_url)
    run = RunDirectory.open(store)
    warnings = check_fits(calibrator, run.manifest.settings, run.manifest.categories, calibrator_url)
    return {key: apply(calibrator, features) for key, (_, features) in read_labels(run).items()}, True, tuple(warnings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What the labeler thinks of a region: the probability of its own category and of the people's, which may be the same one.

    human_rank: how many candidates are likelier than the people's category; NOT_RANKED where it is none of them.
    """

    probability: float
    human: float
    human_rank: int = NOT_RANKED


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
    judged: Judged,
    score: float,
    candidates: Mapping[RegionKey, Mapping[int, float]] | None,
    to_truth_id: Mapping[int, int],
) -> _View:
    answer, human = _answer(judged), judged.region.category_id
    own = (candidates or {}).get(_key(judged))
    if not own:
        return _View(probability=score, human=score if judged.is_correct else 0.0)
    # What people have no category for keeps an own key: it competes, too.
    likely = {to_truth_id.get(category_id, ("run", category_id)): logprob for category_id, logprob in own.items()}
    total = float(np.logaddexp.reduce(list(likely.values())))

    def share(category_id: int) -> float:
        return math.exp(likely[category_id] - total) if category_id in likely else 0.0

    rank = sum(value > likely[human] for value in likely.values()) if human in likely else NOT_RANKED
    return _View(probability=share(answer), human=share(human), human_rank=rank)


def class_thresholds(probabilities: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Return {category: mean probability} of (category that people gave to a region, probability that the labeler gives to it)."""
    total: defaultdict[int, float] = defaultdict(float)
    count: Counter[int] = Counter()
    for category_id, probability in probabilities:
        count[category_id] += 1
        total[category_id] += probability
    return {category_id: total[category_id] / count[category_id] for category_id in count}


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
        "info": {"description": "human labels that a labeler contradicts, the likeliest to be wrong first"},
        "images": images,
        "categories": categories,
        "annotations": [found[rank] for rank in sorted(found)],
    }


def _key(judged: Judged) -> RegionKey:
    return judged.region.image_id, judged.region.region_id


def _text(value: JsonValue) -> str:
    return id_to_text(value) or ""


def _score(judged: Judged) -> float:
    return judged.outcome.score if judged.outcome is not None else 0.0


def _answer(judged: Judged) -> int:
    assert judged.predicted_id is not None
    return judged.predicted_id
