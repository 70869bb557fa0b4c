"""Calibrated scores: what a label's features say of how often such labels are right, fitted elsewhere, kept as data and applied here.

A calibrator is a JSON file (schemas/calibrator.schema.json): weights of features, then steps, either of them alone or both. No pickle and no library
is needed to apply it. Fitting and measuring are `rlabel.evaluation`'s business.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from rlabel.errors import InputError, UsageError
from rlabel.records import Abstention, JsonObject, JsonValue, Label
from rlabel.schema_files import validate
from rlabel.storage import MissingFile, split_url
from rlabel.vocabulary.scores import SCORE_DECIMALS

FORMAT_VERSION = 1
Features = Mapping[str, "float | None"]
# Scores carry 6 decimals: nothing nearer to 0 or 1 can be told from them.
_LEAST = 10.0**-SCORE_DECIMALS
_LEAST_LOGPROB = -20.0
# Settings of a run that decide what its scores mean. With another one of these a calibrator is refused.
_MUST_AGREE = (
    "model_sha256", "decoding", "num_candidates", "rank_by", "mode", "views", "num_questions", "question", "vocabulary_name",
    "search",
)  # fmt: skip
# Settings that move scores a little, or only which labels there are. With another one a warning is given.
_SHOULD_AGREE = ("quantization", "threshold", "margin", "embedder", "fallback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A feature's part: weight x (value - mean) / scale, or weight_missing where the feature is missing."""

    name: str
    mean: float
    scale: float
    weight: float
    weight_missing: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The score from which on labels are right at least `precision` of the time, as certain as `confidence` says.

    score: None where no score promises that. Of the labels that it was read off, num_labels reached it and num_right of them are right;
    coverage: num_labels of all regions, also those without a label.
    """

    precision: float
    confidence: float
    score: float | None
    num_labels: int
    num_right: int
    coverage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrator:
    """Turns the features of a label into the probability that it is right.

    weights, intercept: a logistic regression; without weights the uncalibrated score goes on as it is.
    starts, values: ascending, as many of each: what is at least starts[i] becomes values[i] (below the first, too); none leaves it as it is.
    made_for: settings of the run that it was fitted on (with the digest of its vocabulary), which a run that uses it must share.
    fitted_on, measured: for people. sha256: hex digest of what decides the scores.
    """

    method: str
    weights: tuple[Weight, ...] = ()
    intercept: float = 0.0
    starts: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    made_for: JsonObject = field(default_factory=dict)
    thresholds: tuple[Threshold, ...] = ()
    fitted_on: JsonObject = field(default_factory=dict)
    measured: JsonObject = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        document = calibrator_to_json(self)
        deciding = {name: document[name] for name in ("method", "features", "intercept", "steps", "thresholds")}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True, allow_nan=False).encode("ascii")).hexdigest()


def raw_score(label: Label) -> float:
    """Return the score of a label before any calibration, in [0, 1]."""
    return label.score if label.raw_score is None else label.raw_score


def features_of(label: Label) -> dict[str, float | None]:
    """Return what a calibrator may look at, by name; None where a run of that kind has no such thing. All numbers are finite.

    The logarithms of a score and of what is missing to 1 are beta calibration's features: Kull, Silva Filho and Flach, AISTATS 2017.
    """
    evidence, snap, score = label.evidence, label.snap, raw_score(label)
    has_tokens = evidence.num_tokens > 0
    features: dict[str, float | None] = {
        "log_score": math.log(_inside(score)),
        "log_rest": math.log(1.0 - _inside(score)),
        "text_logprob": math.log(_inside(label.text_score)),
        "similarity": snap.similarity,
        "margin": snap.margin,
        "mean_logprob": max(evidence.mean_logprob, _LEAST_LOGPROB) if has_tokens else None,
        "min_logprob": max(evidence.min_logprob, _LEAST_LOGPROB) if has_tokens else None,
        "log_num_tokens": math.log(evidence.num_tokens) if has_tokens else None,
        "agreement": evidence.agreement,
        **_candidate_features(label),
        f"decided_by={snap.decided_by}": 1.0,
    }
    return {name: value if value is None or math.isfinite(value) else None for name, value in features.items()}


def _candidate_features(label: Label) -> dict[str, float | None]:
    """Return how likely the model finds the category, beside the others that it was asked about. Logarithms are natural, entropy in nats."""
    names = ("candidate_logprob", "candidate_share", "candidate_lead", "candidate_entropy")
    candidates = label.evidence.candidates
    if not candidates:
        return dict.fromkeys(names)
    most = max(one.logprob for one in candidates)  # not always the first: candidates may be ranked otherwise
    weights = {one.category_id: math.exp(one.logprob - most) for one in candidates}
    total = math.fsum(weights.values())
    entropy = -math.fsum(weight / total * math.log(weight / total) for weight in weights.values() if weight > 0)
    own = next((one.logprob for one in candidates if one.category_id == label.category_id), _LEAST_LOGPROB)
    others = [one.logprob for one in candidates if one.category_id != label.category_id]
    lead = max(own, _LEAST_LOGPROB) - max([*others, _LEAST_LOGPROB])
    share = _inside(weights.get(label.category_id, 0.0) / total)
    return dict(zip(names, (max(own, _LEAST_LOGPROB), math.log(share / (1.0 - share)), lead, entropy), strict=True))


def _inside(score: float) -> float:
    """Return a score within (0, 1); one that is not a number says nothing for the label."""
    return min(max(score, _LEAST), 1.0 - _LEAST) if math.isfinite(score) else _LEAST


def apply(calibrator: Calibrator, features: Features) -> float:
    """Return the probability that a label of these features (see `features_of`) is right, in [0, 1], to 6 decimals.

    The same features give the same number on every machine. A feature that the calibrator does not know says nothing.
    """
    if calibrator.weights:
        parts = [calibrator.intercept]
        for one in calibrator.weights:
            # What decided is one of several: that another one did is no missing feature.
            value = features.get(one.name, 0.0 if one.name.startswith("decided_by=") else None)
            parts.append(one.weight_missing if value is None else one.weight * (value - one.mean) / one.scale)
        score = _sigmoid(math.fsum(parts))
    else:
        log_score = features.get("log_score")
        score = 0.0 if log_score is None else math.exp(log_score)
    if calibrator.starts:
        # Rounded first: a value that a step begins with must not fall below it by the last bit of another machine's exp.
        score = calibrator.values[max(bisect_right(calibrator.starts, round(score, SCORE_DECIMALS)) - 1, 0)]
    return round(min(max(score, 0.0), 1.0), SCORE_DECIMALS)


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))


def calibrated_label(label: Label, calibrator: Calibrator) -> Label:
    """Return the label with its calibrated score; the score that it had without is its raw_score."""
    return replace(label, score=apply(calibrator, features_of(label)), raw_score=raw_score(label))


def abstain_below(label: Label, min_score: float) -> Label | Abstention:
    """Return the label where its score is at least min_score, else the abstention that takes its place."""
    if label.score >= min_score:
        return label
    reason = f"the score of {label.snap.nearest_name!r}, {label.score:g}, is below {min_score:g}"
    return Abstention(
        region=label.region,
        image_id=label.image_id,
        text=label.text,
        text_score=label.text_score,
        snap=replace(label.snap, category_id=None, decided_by=None, reason=reason),
        box_xywh=label.box_xywh,
        area_px=label.area_px,
        evidence=label.evidence,
    )


def finished(label: Label, calibrator: Calibrator | None, min_score: float | None) -> Label | Abstention:
    """Return what becomes of a label: its score calibrated, where there is a calibrator, and an abstention where it is below min_score."""
    scored = label if calibrator is None else calibrated_label(label, calibrator)
    return scored if min_score is None else abstain_below(scored, min_score)


def threshold_for(calibrator: Calibrator, precision: float, where: str) -> float:
    """Return the least score of labels of which a wanted share is right.

    Raises UsageError where the calibrator holds no threshold for that precision, or no score of it promises that.
    """
    known = [one for one in calibrator.thresholds if math.isclose(one.precision, precision, abs_tol=1e-9)]
    if not known:
        shown = ", ".join(f"{one.precision:g}" for one in calibrator.thresholds) or "none"
        raise UsageError(
            f"--precision {precision:g}: {where} holds thresholds for {shown}. Fit it with `rlabel calibrate --target-precision {precision:g}`."
        )
    if known[0].score is None:
        raise UsageError(
            f"--precision {precision:g}: no score promises it on the labels that {where} was fitted on. "
            "Ask for less, fit on more labels, or give --min-score."
        )
    return known[0].score


def check_fits(calibrator: Calibrator, settings: JsonObject, categories: Sequence[JsonObject], where: str) -> list[str]:
    """Return warnings, a sentence each, where a calibrator was fitted on a run that differs a little from the one it is to be used in.

    settings, categories: of the run's manifest. Raises InputError for another model, vocabulary or way of asking: its scores mean something else.
    """
    theirs, ours, warnings = calibrator.made_for, made_for(settings, categories), []
    for name in _MUST_AGREE:
        if theirs.get(name) != ours[name]:
            raise InputError(
                f"{where}: fitted for {name} {_shown(theirs.get(name))}, this run has {_shown(ours[name])}. "
                "Fit another with `rlabel calibrate` on a run made as this one."
            )
    if theirs.get("vocabulary_sha256") != ours["vocabulary_sha256"]:
        if theirs.get("categories_sha256") != ours["categories_sha256"]:
            raise InputError(
                f"{where}: fitted for the vocabulary {_shown(theirs.get('vocabulary'))} "
                f"({_shown(theirs.get('num_categories'))} categories), this run has {_shown(ours['vocabulary'])} "
                f"({len(categories)} categories). Fit another with `rlabel calibrate` on a run with this vocabulary."
            )
        warnings.append(
            f"{where}: the vocabulary has the same ids and names as the one it was fitted for, but other synonyms or definitions."
        )
    for name in _SHOULD_AGREE:
        if theirs.get(name) != ours[name]:
            warnings.append(
                f"{where}: fitted for {name} {_shown(theirs.get(name))}, this run has {_shown(ours[name])}."
            )
    return warnings


def made_for(settings: JsonObject, categories: Sequence[JsonObject]) -> JsonObject:
    """Return what `check_fits` compares, from a run's manifest."""
    names = (*_MUST_AGREE, *_SHOULD_AGREE, "vocabulary", "vocabulary_sha256")
    silent = set() if settings.get("decoding") == "hybrid" else {"num_candidates", "rank_by"}
    if settings.get("search") == "greedy":  # as all runs were before there was another search
        silent.add("search")
    return {
        **{name: None if name in silent else settings.get(name) for name in names},
        "num_categories": len(categories),
        "categories_sha256": categories_sha256(categories),
    }


def categories_sha256(categories: Sequence[JsonObject]) -> str:
    """Return the hex digest of the ids and names of a vocabulary's rows, whatever their order."""
    pairs = sorted(json.dumps([row.get("id"), row.get("name")]) for row in categories)
    return hashlib.sha256("\n".join(pairs).encode("ascii")).hexdigest()


def calibrator_to_json(calibrator: Calibrator) -> JsonObject:
    """Return the object of a calibrator file."""
    features: list[JsonValue] = [asdict(one) for one in calibrator.weights]
    thresholds: list[JsonValue] = [asdict(one) for one in calibrator.thresholds]
    return {
        "format_version": FORMAT_VERSION,
        "method": calibrator.method,
        "features": features,
        "intercept": calibrator.intercept,
        "steps": {"starts": list(calibrator.starts), "values": list(calibrator.values)},
        "thresholds": thresholds,
        "made_for": calibrator.made_for,
        "fitted_on": calibrator.fitted_on,
        "measured": calibrator.measured,
    }


def calibrator_to_bytes(calibrator: Calibrator) -> bytes:
    """Return a calibrator file, indented for people. It holds no clock and no path: the same fit gives the same bytes."""
    return (json.dumps(calibrator_to_json(calibrator), indent=1, sort_keys=True, allow_nan=False) + "\n").encode(
        "ascii"
    )


def load_calibrator(url: str) -> Calibrator:
    """Return the calibrator of a file. Raises InputError for one that is missing, no JSON, or not of the schema."""
    store, name = split_url(url)
    try:
        document = json.loads(store.read(name), parse_constant=_refuse_constant)
    except MissingFile as error:
        raise InputError(f"{url}: there is no such file. `rlabel calibrate RUN --truth T` writes one.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{url}: not readable as JSON ({error}). Name a file that `rlabel calibrate` wrote."
        ) from error
    validate(document, "calibrator", url)
    steps = document["steps"]
    starts, values = tuple(map(float, steps["starts"])), tuple(map(float, steps["values"]))
    if len(starts) != len(values) or list(starts) != sorted(set(starts)) or list(values) != sorted(values):
        raise InputError(f"{url}: steps: expected as many values as starts, both ascending. Fit it again.")
    return Calibrator(
        method=document["method"],
        weights=tuple(Weight(**one) for one in document["features"]),
        intercept=float(document["intercept"]),
        starts=starts,
        values=values,
        made_for=document["made_for"],
        thresholds=tuple(Threshold(**one) for one in document["thresholds"]),
        fitted_on=document["fitted_on"],
        measured=document["measured"],
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _shown(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
