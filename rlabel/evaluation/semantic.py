"""How near answers are in meaning to the true names: semantic similarity and semantic IoU by Osprey's protocol.

Osprey, arXiv 2312.10032, section 5; the cleaning of answers as in its public code. Its tables have no abstentions: here these and
failures count as 0 over all regions, and the answered ones are shown apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlabel.evaluation.bootstrap import bootstrap_interval95, image_indices
from rlabel.evaluation.judging import judge_run
from rlabel.evaluation.reading import read_truth
from rlabel.evaluation.records import Interval, SemanticRow
from rlabel.vocabulary.embedding import TextEmbedder


def evaluate_semantic(run_url: str, truth_url: str, embedder: TextEmbedder) -> tuple[SemanticRow, ...]:
    """Return similarity and IoU to the true names, of the raw texts and of the snapped names, over all regions and the answered.

    Raw texts count for all regions where they became a label; for the answered ones, as in Osprey, wherever there is a text.
    Raises InputError as `evaluate_run`.
    """
    truth = read_truth(truth_url)
    run = judge_run(run_url, truth, truth_url)
    names = {category.category_id: category.name for category in truth.categories}
    own_names = {category.category_id: category.name for category in run.categories}
    wanted = [names[j.region.category_id] for j in run.judged]
    images = [j.region.image_id for j in run.judged]
    raw = [j.outcome.text if j.outcome is not None else "" for j in run.judged]
    snapped = [
        own_names[j.outcome.category_id] if j.outcome is not None and j.outcome.category_id is not None else ""
        for j in run.judged
    ]
    is_labeled = np.asarray([j.is_labeled for j in run.judged], dtype=bool)
    rows: list[SemanticRow] = []
    for name, texts in (("raw text", raw), ("snapped name", snapped)):
        similarity_R, iou_R = osprey_by_region(texts, wanted, embedder)
        has_text = np.asarray([bool(text.strip()) for text in texts], dtype=bool)
        rows.append(_row(f"{name}, all regions", images, similarity_R * is_labeled, iou_R * is_labeled))
        kept = np.flatnonzero(has_text)
        rows.append(_row(f"{name}, answered", [images[i] for i in kept], similarity_R[kept], iou_R[kept]))
    return tuple(rows)


def osprey_by_region(
    answers: Sequence[str], truths: Sequence[str], embedder: TextEmbedder
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return float64 (texts,) twice: similarity and IoU of each answer to its truth; both 0 for an answer of nothing.

    Similarity: cosine of the sentence embeddings. IoU: words in both texts by words in either, split at white space, in lower case.
    """
    cleaned = [clean_answer(text) for text in answers]
    wanted = [text.replace("_", " ").replace(":", " ") for text in truths]
    index = {text: i for i, text in enumerate(dict.fromkeys([*cleaned, *wanted]))}
    if not index:
        return np.zeros(0), np.zeros(0)
    embedded = embedder.embed(list(index))
    of_answers = embedded[[index[text] for text in cleaned]]
    cosines = (of_answers * embedded[[index[text] for text in wanted]]).sum(1).astype(np.float64)
    # The embedding of nothing is near to everything: no answer is worth 0.
    is_said = np.asarray([bool(text.strip()) for text in cleaned], dtype=bool)
    ious = [_word_iou(answer, truth) for answer, truth in zip(cleaned, wanted, strict=True)]
    return cosines * is_said, np.asarray(ious)


def osprey_scores(answers: Sequence[str], truths: Sequence[str], embedder: TextEmbedder) -> tuple[float, float]:
    """Return the means of semantic similarity and semantic IoU over at least one pair of texts."""
    similarity, iou = osprey_by_region(answers, truths, embedder)
    return float(similarity.mean()), float(iou.mean())


def clean_answer(text: str) -> str:
    """Return an answer as Osprey's code compares it: what follows a colon, and full stops, colons and commas as spaces."""
    text = text.strip()
    if ":" in text:
        text = text.split(":", 1)[1]
    return text.replace(".", " ").replace(":", " ").replace(",", " ")


def _word_iou(answer: str, truth: str) -> float:
    one, other = set(answer.lower().split()), set(truth.lower().split())
    return len(one & other) / len(one | other) if one | other else 0.0


def _row(
    name: str, images: Sequence[str], similarity_R: NDArray[np.float64], iou_R: NDArray[np.float64]
) -> SemanticRow:
    image_R, num_images = image_indices(images)
    total_I = np.bincount(image_R, minlength=num_images)

    def measured(value_R: NDArray[np.float64]) -> tuple[float | None, Interval | None]:
        mean = float(value_R.mean()) if value_R.size else None
        return mean, bootstrap_interval95(np.bincount(image_R, value_R, minlength=num_images), total_I)

    similarity, similarity_interval = measured(similarity_R)
    iou, iou_interval = measured(iou_R)
    return SemanticRow(
        name=name,
        num_regions=len(images),
        similarity=similarity,
        similarity_interval95=similarity_interval,
        iou=iou,
        iou_interval95=iou_interval,
    )
