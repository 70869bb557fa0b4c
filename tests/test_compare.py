"""Two runs on the same regions, judged by hand arithmetic, scipy and scikit-learn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import cohen_kappa_score

from rlabel.cli.main import main
from rlabel.errors import InputError
from rlabel.evaluation.comparing import ABSTAINED, FAILED, MISSING, cohen_kappa, compare_runs
from rlabel.evaluation.comparing_text import comparison_to_text
from rlabel.evaluation.paired import mcnemar_p, sign_flip_p
from test_evaluation import CAT, CUP, DOG, abstention, annotation, failure, label, write_run, write_truth

TRUTH = [
    annotation(11, 1, CAT),
    annotation(12, 1, CAT),
    annotation(13, 1, DOG),
    annotation(14, 1, DOG, iscrowd=1),
    annotation(21, 2, CUP),
    annotation(22, 2, CUP),
]
IMAGES = [1, 2]


@pytest.fixture
def three(tmp_path: Path) -> tuple[str, str, str]:
    """A has 11 and 12 right; B has 11, 13 and 21 right. 22: A abstains, B fails."""
    a = write_run(
        tmp_path / "a",
        IMAGES,
        [label(11, 1, CAT), label(12, 1, CAT), label(13, 1, CAT), label(21, 2, DOG)],
        [abstention(22, 2, "thing")],
    )
    b = write_run(
        tmp_path / "b",
        IMAGES,
        [label(11, 1, CAT), label(12, 1, DOG), label(13, 1, DOG), label(21, 2, CUP)],
        None,
        [failure(22, 2)],
    )
    return a, b, write_truth(tmp_path / "truth.json", IMAGES, TRUTH)


def test_regions_are_paired_and_counted_four_ways(three: tuple[str, str, str]) -> None:
    row = compare_runs(*three).rows[0]
    assert (row.num_regions, row.both, row.only_a, row.only_b, row.neither) == (5, 1, 1, 2, 1)
    assert (row.accuracy_a, row.accuracy_b) == (2 / 5, 3 / 5)
    assert row.difference == pytest.approx(1 / 5)
    assert row.mcnemar_p == 1.0  # of 3 regions, 1 or 2 on one side: every split is as likely as this one or likelier
    # two images with differences 0 and +1: both draws of the one that moved give 1 of 2 regions, 0 of 3 the other
    assert row.interval95 == (0.0, 0.5)


def test_the_other_way_round_everything_turns_its_sign(three: tuple[str, str, str]) -> None:
    a, b, truth = three
    there, back = compare_runs(a, b, truth).rows[0], compare_runs(b, a, truth).rows[0]
    assert (back.only_a, back.only_b, back.both) == (there.only_b, there.only_a, there.both)
    assert back.difference == -(there.difference or 0)
    assert (back.mcnemar_p, back.sign_flip_p) == (there.mcnemar_p, there.sign_flip_p)


def test_changed_regions_and_categories_are_named(three: tuple[str, str, str]) -> None:
    comparison = compare_runs(*three)
    changed = [(c.region_id, c.true_name, c.name_a, c.name_b) for c in comparison.changed]
    assert changed == [
        ("12", "cat", "cat", "dog"),
        ("13", "dog", "cat", "dog"),
        ("21", "cup", "dog", "cup"),
        ("22", "cup", ABSTAINED, FAILED),
    ]
    assert [(c.is_right_a, c.is_right_b) for c in comparison.changed[:2]] == [(True, False), (False, True)]
    assert [(c.name, c.right_b - c.right_a) for c in comparison.categories] == [("cup", 1), ("dog", 1), ("cat", -1)]
    assert [(r.name, r.num_regions, r.only_a, r.only_b) for r in comparison.per_supercategory] == [
        ("animal", 3, 1, 1),
        ("vessel", 2, 0, 1),
    ]


def test_without_a_truth_the_agreement_is_counted_by_hand(three: tuple[str, str, str]) -> None:
    comparison = compare_runs(three[0], three[1])
    # no label in both counts as the same answer: neither says anything of 22
    assert (comparison.num_regions, comparison.num_same) == (5, 2)
    assert (comparison.num_both_labeled, comparison.num_same_label) == (4, 1)
    # A: cat 3, dog 1, none 1; B: cat 1, dog 2, cup 1, none 1. By chance (3*1 + 1*2 + 0 + 1*1) / 25 = 6/25
    assert comparison.kappa == pytest.approx((2 / 5 - 6 / 25) / (1 - 6 / 25))
    assert comparison.rows == ()
    assert {c.is_right_a for c in comparison.changed} == {None}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kappa_is_scikit_learns(seed: int) -> None:
    generator = random.Random(seed)
    pairs = [(generator.choice("abcd"), generator.choice("abce")) for _ in range(60)]
    assert cohen_kappa(pairs) == pytest.approx(cohen_kappa_score([a for a, _ in pairs], [b for _, b in pairs]))


def test_kappa_is_nothing_where_chance_alone_agrees_always() -> None:
    assert cohen_kappa([("a", "a"), ("a", "a")]) is None


def test_mcnemar_by_hand() -> None:
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar_p(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)


def test_sign_flips_of_few_images_are_all_tried() -> None:
    assert sign_flip_p(np.array([], dtype=np.int64)) == 1.0
    assert sign_flip_p(np.array([0, 3, 0])) == 1.0  # one image says nothing, whatever its size
    assert sign_flip_p(np.array([2, 2, 2, 2])) == 2 / 2**4
    # +3 and -1: the sums are 2, 4, -4, -2: all as far as 2
    assert sign_flip_p(np.array([3, -1])) == 1.0


def test_sign_flips_of_many_images_come_close_to_the_exact_test() -> None:
    # differences of one region each: flips of images are those of regions, so the exact p is McNemar's
    difference = np.array([1] * 30 + [-1] * 15)
    assert sign_flip_p(difference) == pytest.approx(mcnemar_p(30, 15), abs=0.006)


def test_regions_of_one_picture_are_no_independent_proof() -> None:
    # ten regions gained, all in one picture: McNemar is sure, the picture alone is not
    assert mcnemar_p(0, 10) < 0.01
    assert sign_flip_p(np.array([10, 0, 0])) == 1.0


def test_seen_and_unseen_pictures_have_rows_of_their_own(three: tuple[str, str, str], tmp_path: Path) -> None:
    origins = {str(i): {"seen_in_train": i < 20, "kind": "photo"} for i in (11, 12, 13, 21, 22)}
    path = tmp_path / "provenance.json"
    path.write_text(json.dumps({"annotations": origins}))
    rows = {r.name: (r.num_regions, r.only_a, r.only_b) for r in compare_runs(*three, str(path)).rows}
    assert rows["pictures seen in training"] == (3, 1, 1)
    assert rows["unseen photographs"] == (2, 0, 1)
    assert rows["unseen drawings"] == (0, 0, 0)


def test_runs_of_other_regions_are_refused_with_an_example(three: tuple[str, str, str], tmp_path: Path) -> None:
    fewer = write_run(tmp_path / "fewer", IMAGES, [label(11, 1, CAT), label(99, 2, CAT)])
    for truth in (None, three[2]):
        with pytest.raises(
            InputError, match=r"not of the same regions.*4 of 5.*region 12 of image 1.*1 of 2.*region 99"
        ):
            compare_runs(three[0], fewer, truth)


def test_crowds_that_only_one_run_labeled_do_not_matter(three: tuple[str, str, str], tmp_path: Path) -> None:
    rows = json.loads(Path(three[1], "labels.json").read_text())["annotations"]
    with_crowd = write_run(tmp_path / "c", IMAGES, [*rows, label(14, 1, CUP)], None, [failure(22, 2)])
    assert compare_runs(three[0], with_crowd, three[2]).rows == compare_runs(*three).rows


def test_a_region_without_outcome_in_both_runs_is_wrong_in_both(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / n, [1], [label(11, 1, CAT)]) for n in "ab"]
    truth = write_truth(tmp_path / "truth.json", [1], TRUTH[:2])
    comparison = compare_runs(*runs, truth)
    assert (comparison.rows[0].both, comparison.rows[0].neither) == (1, 1)
    assert comparison.changed == ()  # both are MISSING
    assert MISSING not in comparison_to_text(comparison)


def test_vocabularies_that_number_differently_are_compared_by_name(three: tuple[str, str, str], tmp_path: Path) -> None:
    other = [{"id": 1, "name": "Dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "yak"}]
    rows = [label(11, 1, 2), label(12, 1, 1), label(13, 1, 1), label(21, 2, 3)]
    run = write_run(tmp_path / "o", IMAGES, rows, [abstention(22, 2, "x")], categories=other)
    comparison = compare_runs(three[0], run, three[2])
    assert (comparison.rows[0].both, comparison.rows[0].only_a, comparison.rows[0].only_b) == (1, 1, 1)
    assert [c.name_b for c in comparison.changed] == ["dog", "dog", "yak"]
    assert compare_runs(three[0], run).num_same_label == 1


def test_empty_runs_are_refused(tmp_path: Path) -> None:
    empty = write_run(tmp_path / "e", IMAGES, [])
    with pytest.raises(InputError, match="nothing to compare"):
        compare_runs(empty, empty)


def run_command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["compare", *arguments])


def test_the_command_prints_tables_and_json(three: tuple[str, str, str]) -> None:
    a, b, truth = three
    shown = run_command(a, b, "--truth", truth)
    assert shown.exit_code == 0, shown.output
    assert "McNemar" in shown.output and "by image" in shown.output
    assert max(len(line) for line in shown.output.splitlines() if not line.startswith(("A: ", "B: "))) <= 100
    plain = json.loads(run_command(a, b, "--truth", truth, "--json").stdout.splitlines()[-1])
    assert plain["rows"][0]["only_b"] == 2
    assert plain["rows"][0]["difference"] == pytest.approx(0.2)
    assert len(plain["changed"]) == 4


def test_provenance_without_truth_is_a_wrong_call(three: tuple[str, str, str]) -> None:
    refused = run_command(three[0], three[1], "--provenance", "x.json")
    assert (refused.exit_code, "--truth" in refused.output) == (2, True)


def test_a_missing_run_ends_with_one_sentence(three: tuple[str, str, str], tmp_path: Path) -> None:
    refused = run_command(three[0], str(tmp_path / "nowhere"))
    assert refused.exit_code == 1
    assert "there is no such file" in refused.output and "Traceback" not in refused.output
