"""What captions of regions are worth against a truth file with human captions: CIDEr-D, the true name in them, and Osprey's two measures.

The denominator is the truth's: a region without a caption scores 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np

from rlabel.errors import InputError
from rlabel.evaluation.bootstrap import NUM_RESAMPLES, bootstrap_interval95, image_indices
from rlabel.evaluation.caption_metrics import CocoScores, coco_scores
from rlabel.evaluation.cider import cider_d, words
from rlabel.evaluation.reading import (
    LABELS,
    NamedCategory,
    id_to_text,
    read_categories,
    read_outcomes,
    stream_rows,
)
from rlabel.evaluation.records import Interval
from rlabel.evaluation.run_files import run_with_answers
from rlabel.evaluation.semantic import osprey_scores
from rlabel.records import JsonObject, JsonValue
from rlabel.storage import Store, split_url
from rlabel.vocabulary.embedding import TextEmbedder
from rlabel.vocabulary.lexicon import surface_forms
from rlabel.vocabulary.vocabulary import Category
from rlabel.vocabulary.words import fold, inflect_module, stems

CAPTIONS = "captions.json"
RegionKey = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionTruth:
    """A region that a person captioned."""

    image_id: str
    region_id: str
    caption: str
    category: NamedCategory


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionScores:
    """Means over the regions, all in [0, 1] but cider_d in [0, 10]; its interval is over resampled images, document frequencies left as they are.

    holds_name: share of captions in which the true name or a synonym stands, whatever its number or spelling. similarity, iou: Osprey's measures
    against the human caption; name_similarity, name_iou: against the true name, as Osprey's tables have them.
    """

    num_regions: int
    num_captioned: int
    cider_d: float
    cider_d_interval95: Interval | None
    coco: CocoScores
    holds_name: float
    similarity: float
    iou: float
    name_similarity: float
    name_iou: float
    mean_words: float
    num_distinct: int

    def to_json(self) -> JsonObject:
        pair = self.cider_d_interval95
        plain: JsonObject = {
            **asdict(self),
            **self.coco.to_json(),
            "cider_d_interval95": None if pair is None else list(pair),
            "num_resamples": NUM_RESAMPLES,
        }
        del plain["coco"]
        return plain


def read_caption_truth(truth_url: str) -> list[CaptionTruth]:
    """Return the captioned, non-crowd regions of a COCO file whose annotations have `caption` beside `category_id`.

    Raises InputError when there is none, or a captioned region's category is not listed.
    """
    store, name = split_url(truth_url)
    categories = {category.category_id: category for category in read_categories(store, name)}
    truth = []
    for row in stream_rows(store, name, "annotations"):
        caption, category_id = row.get("caption"), row.get("category_id")
        image_id, region_id = id_to_text(row.get("image_id")), id_to_text(row.get("id"))
        if not isinstance(caption, str) or not caption.strip() or row.get("iscrowd") or None in (image_id, region_id):
            continue
        category = categories.get(category_id) if isinstance(category_id, int) else None
        if category is None:
            raise InputError(
                f"{truth_url}, annotation {region_id}: expected a category_id of the file's categories, got {category_id!r}. Correct the row."
            )
        truth.append(
            CaptionTruth(image_id=str(image_id), region_id=str(region_id), caption=caption.strip(), category=category)
        )
    if not truth:
        raise InputError(
            f"{truth_url}: expected annotations with a caption, got none. Name a file with human captions."
        )
    return truth


def read_captions(run_url: str) -> dict[RegionKey, str]:
    """Return {(image id, region id): caption} of a run of `rlabel label --task caption`.

    Raises InputError for a run of another task, a file that is missing or no JSON, and a row without caption.
    """
    store = run_with_answers(run_url, CAPTIONS)
    captions: dict[RegionKey, str] = {}
    for position, row in enumerate(stream_rows(store, CAPTIONS, "annotations")):
        image_id, region_id, caption = id_to_text(row.get("image_id")), id_to_text(_region_id(row)), row.get("caption")
        if not isinstance(caption, str):
            raise InputError(
                f"{store.join(CAPTIONS)}, annotations[{position}]: expected a caption, got {str(caption)[:80]!r}. "
                "Is this the captions.json of a run of rlabel?"
            )
        if image_id is not None and region_id is not None:
            captions[image_id, region_id] = caption
    return captions


def check_captioned(
    captions: Mapping[RegionKey, str], truth: Sequence[CaptionTruth], run_url: str, truth_url: str
) -> None:
    """Raise InputError where no region of a truth is among those that a run captioned: it belongs to another corpus."""
    if captions and not any((region.image_id, region.region_id) in captions for region in truth):
        raise InputError(
            f"{truth_url}: expected regions of the run {run_url}, got none of its {len(captions)} captioned ones. "
            "Name the truth of the corpus that was captioned."
        )


def _region_id(row: JsonObject) -> JsonValue:
    attributes = row.get("attributes")
    inner = attributes.get("region_id") if isinstance(attributes, dict) else None
    return row.get("region_id", inner)


def template_captions(run_url: str, template: str = "{a} {name}.") -> dict[RegionKey, str]:
    """Return captions made of the names that a run of `rlabel label` gave: "An elephant."; nothing for regions without a label.

    template: holds {name}, and may hold {a} for "A" or "An".
    """
    store = Store.open(run_url)
    names = {category.category_id: category.name for category in read_categories(store, LABELS)}
    return {
        (outcome.image_id, outcome.region_id): template.format(
            a=_article(names[outcome.category_id]), name=names[outcome.category_id]
        )
        for outcome in read_outcomes(store)
        if outcome.category_id in names and outcome.category_id is not None
    }


@cache
def _article(name: str) -> str:
    return str(inflect_module().engine().a(name)).split(" ")[0].capitalize()


def score_captions(
    captions: Mapping[RegionKey, str], truth: Sequence[CaptionTruth], embedder: TextEmbedder
) -> CaptionScores:
    """Return how captions do against the truth, which holds at least one region. Captions of other regions are left out."""
    assert truth
    said = [captions.get((region.image_id, region.region_id), "") for region in truth]
    human = [region.caption for region in truth]
    similarity, iou = osprey_scores(said, human, embedder)
    name_similarity, name_iou = osprey_scores(said, [region.category.name for region in truth], embedder)
    cider_R = np.asarray(cider_d(said, [[text] for text in human]))
    image_R, num_images = image_indices([region.image_id for region in truth])
    totals = np.bincount(image_R, cider_R, minlength=num_images), np.bincount(image_R, minlength=num_images)
    return CaptionScores(
        num_regions=len(truth),
        num_captioned=sum(bool(text.strip()) for text in said),
        cider_d=float(cider_R.mean()),
        cider_d_interval95=bootstrap_interval95(*totals),
        coco=coco_scores(said, [[text] for text in human]),
        holds_name=float(
            np.mean([holds_name(text, region.category) for text, region in zip(said, truth, strict=True)])
        ),
        similarity=similarity,
        iou=iou,
        name_similarity=name_similarity,
        name_iou=name_iou,
        mean_words=float(np.mean([len(words(text)) for text in said])),
        num_distinct=len({text for text in said if text.strip()}),
    )


def holds_name(text: str, category: NamedCategory) -> bool:
    """Return whether a category's name or a synonym stands in a text as whole words, in whatever number, case or spelling."""
    said = stems(fold(text))
    return any(
        form and any(said[i : i + len(form)] == form for i in range(len(said) - len(form) + 1))
        for form in _forms(category.name, category.synonyms)
    )


@cache
def _forms(name: str, synonyms: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    category = Category(category_id=1, name=name, synonyms=synonyms)
    return tuple(dict.fromkeys(stems(fold(form)) for form, _ in surface_forms(category)))


def scores_to_text(rows: Mapping[str, CaptionScores]) -> str:
    """Return scores beside each other as Markdown tables, one line a file of captions, shares in percent."""
    lines = [
        "| | regions | captioned | CIDEr-D (95 %) | name in it | similarity / IoU to caption | to name | words | different |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in rows.items():
        pair = one.cider_d_interval95
        shown = "" if pair is None else f" ({pair[0]:.3f} to {pair[1]:.3f})"
        lines.append(
            f"| {name} | {one.num_regions} | {one.num_captioned} | {one.cider_d:.3f}{shown} | {100 * one.holds_name:.1f} % | "
            f"{100 * one.similarity:.1f} / {100 * one.iou:.1f} | {100 * one.name_similarity:.1f} / {100 * one.name_iou:.1f} | "
            f"{one.mean_words:.1f} | {one.num_distinct} |"
        )
    if any(one.coco.bleu is not None for one in rows.values()):
        lines += ["", "| | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | ROUGE-L | METEOR |", "| --- " * 7 + "|"]
        for name, one in rows.items():
            values = [*(one.coco.bleu or (None,) * 4), one.coco.rouge_l, one.coco.meteor]
            lines.append(f"| {name} | {' | '.join('-' if v is None else f'{100 * v:.1f}' for v in values)} |")
    missing = dict.fromkeys(one.coco.why for one in rows.values() if one.coco.why is not None)
    lines += [f"\n{why}" for why in missing]
    return "\n".join(lines) + "\n"
