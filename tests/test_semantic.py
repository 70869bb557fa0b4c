"""Osprey's two measures of a run, by hand: an embedder that counts letters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rlabel.evaluation.evaluate import evaluate_run
from rlabel.evaluation.semantic import evaluate_semantic, osprey_by_region
from rlabel.evaluation.text import evaluation_to_text
from rlabel.vocabulary.embedding import Rows
from test_evaluation import CAT, DOG, abstention, annotation, failure, label, write_run, write_truth


class Letters:
    """Unit rows of how often each letter stands in a text; texts without letters all get the first axis."""

    def __init__(self) -> None:
        self.num_texts = 0

    def embed(self, texts: Sequence[str]) -> Rows:
        self.num_texts += len(texts)
        rows = np.zeros((len(texts), 26), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for letter in text.lower():
                if "a" <= letter <= "z":
                    row[ord(letter) - ord("a")] += 1
            if not row.any():
                row[0] = 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def with_text(row: dict, text: str) -> dict:
    return row | {"attributes": row["attributes"] | {"text": text}}


@pytest.fixture
def run_and_truth(tmp_path: Path) -> tuple[str, str]:
    """Image 1: "a big cat" snapped to cat, right. "dog" abstained from, wrongly. Image 2: a failure, and a cat that is a dog."""
    labels = [with_text(label(11, 1, CAT), "It is: a big cat."), with_text(label(21, 2, CAT), "cat")]
    run = write_run(tmp_path / "run", [1, 2], labels, [abstention(12, 1, "dog")], [failure(22, 2)])
    truth = [annotation(11, 1, CAT), annotation(12, 1, DOG), annotation(21, 2, DOG), annotation(22, 2, DOG)]
    return run, write_truth(tmp_path / "truth.json", [1, 2], truth)


def test_abstentions_and_failures_count_as_nothing_over_all_regions(run_and_truth: tuple[str, str]) -> None:
    rows = {row.name: row for row in evaluate_semantic(*run_and_truth, Letters())}
    # words: {a, big, cat} and {cat}: 1/3; abstained 0; "cat" and "dog": 0; failed 0
    assert rows["raw text, all regions"].iou == pytest.approx((1 / 3) / 4)
    # as Osprey counts: every text, also the abstained "dog", which is right
    assert rows["raw text, answered"].num_regions == 3
    assert rows["raw text, answered"].iou == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert rows["snapped name, all regions"].iou == pytest.approx(1 / 4)
    assert (rows["snapped name, answered"].num_regions, rows["snapped name, answered"].iou) == (2, 1 / 2)


def test_similarity_is_the_cosine_by_hand(run_and_truth: tuple[str, str]) -> None:
    rows = {row.name: row for row in evaluate_semantic(*run_and_truth, Letters())}
    # "cat" and "dog" share no letter: the snapped names' cosines are 1 (cat, cat) and 0
    assert rows["snapped name, answered"].similarity == pytest.approx(1 / 2)
    # "a big cat": a 2, b, i, g, c, t; with cat: (2 + 1 + 1) / (sqrt(9) sqrt(3))
    assert rows["raw text, answered"].similarity == pytest.approx((4 / np.sqrt(27) + 1 + 0) / 3)


def test_intervals_are_of_whole_images(run_and_truth: tuple[str, str]) -> None:
    rows = {row.name: row for row in evaluate_semantic(*run_and_truth, Letters())}
    # image 1 has snapped IoU 1 and 0 (abstained), image 2 has 0 and 0: drawn alone, 1/2 or 0
    assert rows["snapped name, all regions"].iou_interval95 == (0.0, 0.5)


def test_each_text_is_embedded_once() -> None:
    embedder = Letters()
    similarity, iou = osprey_by_region(["cat"] * 50, ["cat"] * 50, embedder)
    assert embedder.num_texts == 1
    assert similarity.tolist() == pytest.approx([1.0] * 50) and iou.tolist() == [1.0] * 50


def test_the_numbers_stand_in_the_text_and_the_json(run_and_truth: tuple[str, str]) -> None:
    from dataclasses import replace

    evaluation = replace(evaluate_run(*run_and_truth), semantic=evaluate_semantic(*run_and_truth, Letters()))
    text = evaluation_to_text(evaluation)
    assert "meaning (Osprey)" in text and max(map(len, text.splitlines())) <= 100
    plain = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert [row["name"] for row in plain["semantic"]][0] == "raw text, all regions"
    assert plain["semantic"][2]["iou_interval95"] == [0.0, 0.5]


def test_a_truth_of_crowds_alone_gives_nothing_to_measure(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1], [label(11, 1, CAT)])
    truth = write_truth(tmp_path / "truth.json", [1], [annotation(11, 1, CAT, iscrowd=1)])
    assert {row.similarity for row in evaluate_semantic(run, truth, Letters())} == {None}
