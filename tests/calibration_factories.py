"""Runs whose labels are right as often as a known function of their score says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rlabel.records import Evidence, JsonObject, Label, LikelyCategory, Outcome, ShardResult
from rlabel.storage import Store
from run_factories import CATEGORIES, abstention, image_row, label, manifest, region, snap

RIGHT, WRONG = 7, 3
SETTINGS: JsonObject = {
    "task": "classify",
    "model_sha256": "m" * 8,
    "decoding": "free",
    "question": "Name <region>.",
    "vocabulary": "few",
    "vocabulary_sha256": "v" * 8,
    "threshold": 0.6,
    "margin": 0.02,
    "quantization": "none",
}


def scored_label(key: int, image_id: int, score: float, category_id: int = RIGHT, **evidence: object) -> Label:
    """A label of the region `key`, decided by words, with the evidence given."""
    made = label(region(str(key), key), image_id, category_id=category_id, score=score)
    return replace(
        made,
        text_score=score,
        snap=snap(category_id, decided_by="exact", similarity=1.0, margin=1.0),
        evidence=Evidence(**evidence),  # type: ignore[arg-type]
    )


def save_run(
    folder: Path,
    chance_of: Callable[[float], float],
    num_images: int = 60,
    per_image: int = 5,
    seed: int = 1,
    settings: JsonObject | None = None,
    with_evidence: bool = False,
    abstain_every: int = 0,
) -> tuple[str, str]:
    """Write a merged run and its truth; return their paths. A label of score s is right with the chance chance_of(s).

    with_evidence: minimal log-probabilities that tell right from wrong labels far better than scores do, in half of the labels.
    """
    from rlabel.run.directory import RunDirectory

    dice = random.Random(seed)
    outcomes: list[Outcome] = []
    truth: list[JsonObject] = []
    key = 0
    for image_id in range(1, num_images + 1):
        for _ in range(per_image):
            key += 1
            score = round(dice.uniform(0.02, 0.98), 6)
            is_right = dice.random() < chance_of(score)
            truth.append({"id": key, "image_id": image_id, "category_id": RIGHT, "bbox": [1, 1, 9, 9], "area": 81})
            if abstain_every and key % abstain_every == 0:
                outcomes.append(abstention(region(str(key), key), image_id))
                continue
            more: dict[str, object] = {}
            if with_evidence and key % 2:
                low = dice.gauss(-0.5 if is_right else -3.0, 0.5)
                more = {"num_tokens": 3, "mean_logprob": min(low / 2, 0.0), "min_logprob": min(low, 0.0)}
            outcomes.append(scored_label(key, image_id, score, RIGHT if is_right else WRONG, **more))
    rows = tuple(image_row(image_id) for image_id in range(1, num_images + 1))
    run = RunDirectory.create_or_resume(Store.open(folder), manifest(1, {**SETTINGS, **(settings or {})}))
    run.commit(ShardResult(index=0, images=rows, outcomes=tuple(outcomes)))
    run.merge()
    truth_path = folder.parent / f"{folder.name}-truth.json"
    content = {"images": [{"id": row["id"]} for row in rows], "annotations": truth, "categories": list(CATEGORIES)}
    truth_path.write_text(json.dumps(content))
    return str(folder), str(truth_path)


def likely(*pairs: tuple[int, float]) -> tuple[LikelyCategory, ...]:
    return tuple(LikelyCategory(category_id=category_id, logprob=logprob) for category_id, logprob in pairs)
