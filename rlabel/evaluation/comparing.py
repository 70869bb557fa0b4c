"""Compares two runs on the same regions, paired: with a truth which is right more often, without one how far they agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rlabel.errors import InputError
from rlabel.evaluation.bootstrap import NUM_RESAMPLES, bootstrap_interval95, image_indices
from rlabel.evaluation.categories import match_categories
from rlabel.evaluation.judging import Judged, RegionKey, judge_run, outcomes_by_key, read_origins
from rlabel.evaluation.paired import mcnemar_p, sign_flip_p
from rlabel.evaluation.reading import LABELS, Origin, RunOutcome, read_categories, read_truth
from rlabel.evaluation.records import Interval
from rlabel.evaluation.run_files import run_with_answers
from rlabel.records import JsonObject

ABSTAINED, FAILED, MISSING = "(abstained)", "(failed)", "(missing)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRow:
    """A group of regions under both runs: how many both have right, A alone, B alone, and neither.

    difference: accuracy of B less that of A, in [-1, 1]; interval95 of it over images; None without regions.
    mcnemar_p takes the regions as independent, sign_flip_p only the images.
    """

    name: str
    num_regions: int
    both: int
    only_a: int
    only_b: int
    neither: int
    interval95: Interval | None
    mcnemar_p: float
    sign_flip_p: float

    @property
    def accuracy_a(self) -> float | None:
        return (self.both + self.only_a) / self.num_regions if self.num_regions else None

    @property
    def accuracy_b(self) -> float | None:
        return (self.both + self.only_b) / self.num_regions if self.num_regions else None

    @property
    def difference(self) -> float | None:
        return (self.only_b - self.only_a) / self.num_regions if self.num_regions else None

    def to_json(self) -> JsonObject:
        plain: JsonObject = {
            **asdict(self),
            "accuracy_a": self.accuracy_a,
            "accuracy_b": self.accuracy_b,
            "difference": self.difference,
        }
        plain["interval95"] = None if self.interval95 is None else list(self.interval95)
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryChange:
    """A true category of num_regions regions, of which A has right_a right and B right_b."""

    name: str
    num_regions: int
    right_a: int
    right_b: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedRegion:
    """A region that the runs name differently. true_name: None without a truth. name_a, name_b: (abstained) and its like where there is no label."""

    image_id: str
    region_id: str
    true_name: str | None
    name_a: str
    name_b: str
    is_right_a: bool | None
    is_right_b: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs on the same regions.

    num_regions: with a truth its non-crowd regions, else the runs' own. num_same: same category, or neither has a label.
    num_both_labeled, num_same_label: labeled by both, and alike. kappa: Cohen's, over all regions, no label being a category of
    its own; None where both put all regions into one. num_not_in_truth: regions of the runs that the truth lacks.
    rows: all regions first, then groups of pictures; empty without a truth, as are per_supercategory and categories.
    changed: in the order of the file.
    """

    run_a: str
    run_b: str
    num_regions: int
    num_same: int
    num_both_labeled: int
    num_same_label: int
    kappa: float | None
    num_not_in_truth: int
    rows: tuple[PairedRow, ...]
    per_supercategory: tuple[PairedRow, ...]
    categories: tuple[CategoryChange, ...]
    changed: tuple[ChangedRegion, ...]

    def to_json(self) -> JsonObject:
        return {
            "run_a": self.run_a,
            "run_b": self.run_b,
            "num_regions": self.num_regions,
            "num_same": self.num_same,
            "agreement": self.num_same / self.num_regions if self.num_regions else None,
            "num_both_labeled": self.num_both_labeled,
            "num_same_label": self.num_same_label,
            "kappa": self.kappa,
            "num_not_in_truth": self.num_not_in_truth,
            "num_resamples": NUM_RESAMPLES,
            "rows": [row.to_json() for row in self.rows],
            "per_supercategory": [row.to_json() for row in self.per_supercategory],
            "categories": [asdict(row) for row in self.categories],
            "changed": [asdict(row) for row in self.changed],
        }


def compare_runs(run_a: str, run_b: str, truth_url: str | None = None, provenance_url: str | None = None) -> Comparison:
    """Return how two runs differ on the same regions, by image id and region id.

    Raises InputError for files that are missing or damaged, runs of different regions, a truth of other ones.
    """
    if truth_url is None:
        return _agreement(run_a, run_b)
    truth = read_truth(truth_url)
    judged_a, judged_b = judge_run(run_a, truth, truth_url), judge_run(run_b, truth, truth_url)
    origins = read_origins(provenance_url, truth, truth_url)
    crowds = {(region.image_id, region.region_id) for region in truth.regions if region.is_crowd}
    outcomes_a = {key: o for key, o in judged_a.outcomes.items() if key not in crowds}
    outcomes_b = {key: o for key, o in judged_b.outcomes.items() if key not in crowds}
    _check_same_regions(run_a, run_b, outcomes_a, outcomes_b)
    of_b = {_key(j): j for j in judged_b.judged}
    pairs = [(j, of_b[_key(j)]) for j in judged_a.judged if _key(j) in of_b]

    names = {category.category_id: category.name for category in truth.categories}
    names_a = {category.category_id: category.name for category in judged_a.categories}
    names_b = {category.category_id: category.name for category in judged_b.categories}
    # a category that the truth lacks is compared by its own name
    answers = [
        (_answer(a.outcome, a.predicted_id, names_a, names), _answer(b.outcome, b.predicted_id, names_b, names))
        for a, b in pairs
    ]
    changed = tuple(
        ChangedRegion(
            image_id=a.region.image_id,
            region_id=a.region.region_id,
            true_name=names[a.region.category_id],
            name_a=name_a,
            name_b=name_b,
            is_right_a=a.is_correct,
            is_right_b=b.is_correct,
        )
        for (a, b), (name_a, name_b) in zip(pairs, answers, strict=True)
        if name_a != name_b
    )
    group_of = {category.category_id: category.supercategory or "(none)" for category in truth.categories}
    groups: defaultdict[str, list[tuple[Judged, Judged]]] = defaultdict(list)
    for pair in pairs:
        groups[group_of[pair[0].region.category_id]].append(pair)
    judged_keys = {_key(a) for a, _ in pairs}
    return _comparison(
        (run_a, run_b),
        answers,
        num_not_in_truth=sum(key not in judged_keys for key in outcomes_a),
        rows=tuple(_rows(pairs, origins)),
        per_supercategory=tuple(
            paired_row(name, rows) for name, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
        ),
        categories=_category_changes(pairs, names),
        changed=changed,
    )


def _agreement(run_a: str, run_b: str) -> Comparison:
    stores = run_with_answers(run_a, LABELS), run_with_answers(run_b, LABELS)
    categories_a, categories_b = read_categories(stores[0], LABELS), read_categories(stores[1], LABELS)
    outcomes_a, outcomes_b = outcomes_by_key(stores[0], categories_a), outcomes_by_key(stores[1], categories_b)
    _check_same_regions(run_a, run_b, outcomes_a, outcomes_b)
    names_a = {category.category_id: category.name for category in categories_a}
    names_b = {category.category_id: category.name for category in categories_b}
    b_to_a, _ = match_categories(categories_b, categories_a)
    answers = []
    changed = []
    for key, a in outcomes_a.items():
        b = outcomes_b[key]
        in_a = b_to_a.get(b.category_id) if b.category_id is not None else None
        pair = (_answer(a, a.category_id, names_a, names_a), _answer(b, in_a, names_b, names_a))
        answers.append(pair)
        if pair[0] != pair[1]:
            changed.append(
                ChangedRegion(
                    image_id=key[0],
                    region_id=key[1],
                    true_name=None,
                    name_a=pair[0],
                    name_b=pair[1],
                    is_right_a=None,
                    is_right_b=None,
                )
            )
    return _comparison((run_a, run_b), answers, changed=tuple(changed))


def _comparison(
    runs: tuple[str, str],
    answers: Sequence[tuple[str, str]],
    *,
    num_not_in_truth: int = 0,
    rows: tuple[PairedRow, ...] = (),
    per_supercategory: tuple[PairedRow, ...] = (),
    categories: tuple[CategoryChange, ...] = (),
    changed: tuple[ChangedRegion, ...] = (),
) -> Comparison:
    none = {ABSTAINED, FAILED, MISSING}
    labels = [("" if a in none else a, "" if b in none else b) for a, b in answers]
    both = [(a, b) for a, b in labels if a and b]
    return Comparison(
        run_a=runs[0],
        run_b=runs[1],
        num_regions=len(labels),
        num_same=sum(a == b for a, b in labels),
        num_both_labeled=len(both),
        num_same_label=sum(a == b for a, b in both),
        kappa=cohen_kappa(labels),
        num_not_in_truth=num_not_in_truth,
        rows=rows,
        per_supercategory=per_supercategory,
        categories=categories,
        changed=changed,
    )


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return the agreement beyond chance, at most 1 (Cohen 1960); None where chance alone agrees always.

    Counted, since the usual table of all categories by all categories has 174 million cells for V3Det's 13,204.
    """
    total = len(pairs)
    count_a, count_b = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    by_chance = sum(count * count_b[name] for name, count in count_a.items())
    if by_chance == total * total:
        return None
    chance = by_chance / total**2
    return (sum(a == b for a, b in pairs) / total - chance) / (1 - chance)


def paired_row(name: str, pairs: Sequence[tuple[Judged, Judged]]) -> PairedRow:
    """Return a group of regions, each as A and as B has it, counted and tested."""
    right_a = np.asarray([a.is_correct for a, _ in pairs], dtype=np.int64)
    right_b = np.asarray([b.is_correct for _, b in pairs], dtype=np.int64)
    image_R, num_images = image_indices([a.region.image_id for a, _ in pairs])
    difference_I = np.zeros(num_images, dtype=np.int64)
    np.add.at(difference_I, image_R, right_b - right_a)
    only_a, only_b = int((right_a > right_b).sum()), int((right_b > right_a).sum())
    return PairedRow(
        name=name,
        num_regions=len(pairs),
        both=int((right_a & right_b).sum()),
        only_a=only_a,
        only_b=only_b,
        neither=int(((1 - right_a) & (1 - right_b)).sum()),
        interval95=bootstrap_interval95(difference_I, np.bincount(image_R, minlength=num_images)),
        mcnemar_p=mcnemar_p(only_a, only_b),
        sign_flip_p=sign_flip_p(difference_I),
    )


def _rows(pairs: Sequence[tuple[Judged, Judged]], origins: Mapping[str, Origin] | None) -> list[PairedRow]:
    rows = [paired_row("all regions", pairs)]
    kinds: tuple[tuple[str, Callable[[Origin], bool]], ...] = (
        ("pictures seen in training", lambda origin: origin.seen_in_train),
        ("unseen pictures", lambda origin: not origin.seen_in_train),
        ("unseen photographs", lambda origin: not origin.seen_in_train and origin.kind == "photo"),
        ("unseen drawings", lambda origin: not origin.seen_in_train and origin.kind == "drawing"),
    )
    if origins is not None:
        for name, chosen in kinds:
            kept = [p for p in pairs if (o := origins.get(p[0].region.region_id)) is not None and chosen(o)]
            rows.append(paired_row(name, kept))
    return rows


def _category_changes(pairs: Sequence[tuple[Judged, Judged]], names: Mapping[int, str]) -> tuple[CategoryChange, ...]:
    """Return the categories that changed, the greatest gain of B first, the greatest loss last."""
    groups: defaultdict[int, list[tuple[Judged, Judged]]] = defaultdict(list)
    for pair in pairs:
        groups[pair[0].region.category_id].append(pair)
    changes = [
        CategoryChange(
            name=names[category_id],
            num_regions=len(rows),
            right_a=sum(a.is_correct for a, _ in rows),
            right_b=sum(b.is_correct for _, b in rows),
        )
        for category_id, rows in groups.items()
    ]
    moved = [change for change in changes if change.right_a != change.right_b]
    return tuple(sorted(moved, key=lambda c: (c.right_a - c.right_b, c.name)))


def _key(judged: Judged) -> RegionKey:
    return judged.region.image_id, judged.region.region_id


def _answer(
    outcome: RunOutcome | None, shared_id: int | None, own_names: Mapping[int, str], shared_names: Mapping[int, str]
) -> str:
    if outcome is None:
        return MISSING
    if outcome.category_id is None:
        return ABSTAINED if outcome.outcome == "abstention" else FAILED
    return shared_names[shared_id] if shared_id is not None else own_names[outcome.category_id]


def _check_same_regions(
    run_a: str, run_b: str, outcomes_a: Mapping[RegionKey, RunOutcome], outcomes_b: Mapping[RegionKey, RunOutcome]
) -> None:
    only_a = [key for key in outcomes_a if key not in outcomes_b]
    only_b = [key for key in outcomes_b if key not in outcomes_a]
    if not outcomes_a and not outcomes_b:
        raise InputError(f"{run_a} and {run_b}: neither run has a region. There is nothing to compare.")
    if not only_a and not only_b:
        return
    parts = [
        f"{len(keys)} of {len(all_)} are in {run} alone (region {keys[0][1]} of image {keys[0][0]}, ...)"
        for run, keys, all_ in ((run_a, only_a, outcomes_a), (run_b, only_b, outcomes_b))
        if keys
    ]
    raise InputError(
        f"the runs are not of the same regions: {'; '.join(parts)}. A paired comparison needs the same --images, "
        "--regions and --limit for both; label one of them again."
    )
