"""`rlabel vocabulary check`: every fault of a file is found, in one go, and what answers would miss."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rlabel.cli.vocabulary import vocabulary as command
from rlabel.errors import InputError
from rlabel.vocabulary.check import Check, check_vocabulary
from rlabel.vocabulary.embedding import Rows
from rlabel.vocabulary.vocabulary import load_vocabulary

CLEAN = [{"id": 1, "name": "cat", "synonyms": ["kitten"]}, {"id": 2, "name": "hot dog"}]


def write(folder: Path, rows: object, name: str = "v.json") -> str:
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else json.dumps({"categories": rows}), encoding="utf-8")
    return str(path)


def found(check: Check, kind: str) -> list[str]:
    return [problem.message for problem in check.problems if problem.kind == kind]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, ["check", *arguments])
    return result.exit_code, result.output


def test_clean_file_has_no_problem_and_ends_with_zero(tmp_path: Path) -> None:
    url = write(tmp_path, CLEAN)
    assert check_vocabulary(url).problems == ()
    code, output = run(url)
    assert code == 0
    assert "2 categories, 1 synonyms" in output
    assert output.endswith("usable: 0 errors, 0 notes\n")


BROKEN: list[Any] = [
    {"id": 0, "name": "cat"},
    {"id": 5, "name": "dog"},
    {"id": 5, "name": "cow"},
    {"id": 6, "name": "hot dog"},
    {"id": 7, "name": "Hot-Dog"},
    {"id": "8", "name": "bee"},
    {"name": "ant"},
    "not a row",
    {"id": 9, "name": ""},
    {"id": 10, "name": "ox", "synonyms": "bull"},
]


def test_all_that_the_loader_would_refuse_is_reported_at_once(tmp_path: Path) -> None:
    url = write(tmp_path, BROKEN)
    check = check_vocabulary(url)
    fatal = [(problem.kind, problem.category_indices) for problem in check.problems if problem.fatal]
    assert sorted(fatal) == [
        ("equal names", (3, 4)),
        ("repeated id", (1, 2)),
        ("row", (5,)),
        ("row", (6,)),
        ("row", (7,)),
        ("row", (8,)),
        ("row", (9,)),
        ("zero id", (0,)),
    ]
    assert "categories[6]: 'id' is a required property" in " ".join(found(check, "row"))
    code, output = run(url)
    assert code == 2
    assert "not usable: 8 errors" in output


@pytest.mark.parametrize(
    "rows",
    [
        CLEAN,
        BROKEN,
        *[[row, {"id": 77, "name": "zebra"}] for row in BROKEN],
        BROKEN[1:3],
        BROKEN[3:5],
        [{"id": 1, "name": "\U0001f600"}],
    ],
)
@pytest.mark.parametrize("keep_zero_ids", [False, True])
def test_usable_means_that_the_loader_takes_it(tmp_path: Path, rows: list[Any], keep_zero_ids: bool) -> None:
    url = write(tmp_path, rows)
    try:
        load_vocabulary(url, keep_zero_ids=keep_zero_ids)
        loads = True
    except InputError:
        loads = False
    assert check_vocabulary(url, keep_zero_ids=keep_zero_ids).usable == loads


def test_name_with_two_senses_is_a_note_and_without_them_an_error(tmp_path: Path) -> None:
    rows = [{"id": 1, "name": "crane", "def": "a bird"}, {"id": 2, "name": "Crane", "def": "a machine"}]
    check = check_vocabulary(write(tmp_path, rows))
    assert check.usable
    assert found(check, "homonyms") == [
        "'crane' (id 1) and 'Crane' (id 2) differ in sense only: answers go to the first"
    ]
    three = [*rows, {"id": 3, "name": "crane", "def": "a bird"}]
    check = check_vocabulary(write(tmp_path, three))
    assert not check.usable
    assert [problem.category_indices for problem in check.problems if problem.fatal] == [(0, 2)]


def test_names_alike_but_for_plural_spelling_or_spaces_are_noted(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "name": "tire"},
        {"id": 2, "name": "tyres"},
        {"id": 3, "name": "hotdog"},
        {"id": 4, "name": "hot dog"},
    ]
    check = check_vocabulary(write(tmp_path, rows))
    assert check.usable
    assert [problem.category_indices for problem in check.problems if problem.kind == "alike names"] == [(0, 1), (2, 3)]


def test_synonym_that_another_category_takes_is_told_with_the_taker(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "name": "ruffed grouse", "synonyms": ["partridge", "bird"]},
        {"id": 2, "name": "partridge"},
        {"id": 3, "name": "sparrow", "synonyms": ["bird"]},
    ]
    check = check_vocabulary(write(tmp_path, rows))
    assert found(check, "never reached") == ["'partridge' of 'ruffed grouse' goes to 'partridge'"]
    assert found(check, "shared synonym") == [
        "'bird' is a synonym of 'ruffed grouse' (id 1) and 'sparrow' (id 3): such an answer abstains"
    ]


def test_name_that_a_sentence_reads_otherwise_is_noted(tmp_path: Path) -> None:
    rows = [{"id": 1, "name": "pair of"}, {"id": 2, "name": "dog"}]
    check = check_vocabulary(write(tmp_path, rows))
    assert check.usable
    missed = {problem.category_indices for problem in check.problems if problem.kind == "missed in a sentence"}
    assert (1,) not in missed


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("\U0001f600", "has no word"),
        ("747", "is only digits"),
        ("one two three four five six seven eight nine ten eleven", "has 11 words"),
        ("no entry", "denies"),
        ("hot\ndog", "control character"),
    ],
)
def test_name_that_language_trips_on_is_noted(tmp_path: Path, name: str, what: str) -> None:
    check = check_vocabulary(write(tmp_path, [*CLEAN[:1], {"id": 3, "name": name}]))
    assert check.usable
    (message,) = found(check, "odd name")
    assert what in message


def test_wrong_parent_is_noted(tmp_path: Path) -> None:
    check = check_vocabulary(write(tmp_path, [{"id": 1, "name": "dog", "parent": "beast"}]))
    assert check.usable
    assert "expected `parent`" in found(check, "parents")[0]


class Letters:
    """Embeds a text by its letters; "xx" as not a number."""

    def embed(self, texts: Sequence[str]) -> Rows:
        rows = np.array([[text.count(chr(97 + place)) for place in range(26)] for text in texts], dtype=np.float32)
        rows[[text == "xx" for text in texts]] = np.nan
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_near_names_are_listed_nearest_first_and_equal_ones_left_to_their_own_note(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "name": "abc", "def": "x"},
        {"id": 2, "name": "abd"},
        {"id": 3, "name": "xyz"},
        {"id": 4, "name": "cba"},
        {"id": 5, "name": "ABC", "def": "y"},
        {"id": 6, "name": "xx"},
    ]
    check = check_vocabulary(write(tmp_path, rows), embedder=Letters(), near=0.6)
    pairs = [problem.category_indices for problem in check.problems if problem.kind == "near names"]
    assert pairs == [(0, 3), (3, 4), (0, 1), (1, 3), (1, 4)]
    assert "cosine 0.667" in found(check, "near names")[2]


def test_json_lists_every_problem_on_the_last_line(tmp_path: Path) -> None:
    rows = [{"id": number + 1, "name": str(number)} for number in range(30)]
    url = write(tmp_path, rows)
    code, output = run(url, "--json")
    document = json.loads(output.splitlines()[-1])
    assert code == 0
    assert (document["usable"], document["num_categories"], document["counts"]["odd name"]) == (True, 30, 30)
    assert len(document["problems"]) == sum(document["counts"].values())
    assert "and 10 more; --json lists them all" in run(url)[1]


def test_file_that_does_not_parse_ends_with_two_and_a_message(tmp_path: Path) -> None:
    code, output = run(write(tmp_path, '{"categories": [', "v.json"))
    assert code == 2
    assert "Check that the file is whole" in output


def test_zero_id_is_an_error_unless_it_is_kept(tmp_path: Path) -> None:
    url = write(tmp_path, '{"0": "tench", "1": "goldfish"}', "config.json")
    assert run(url)[0] == 2
    assert run(url, "--keep-zero-ids")[0] == 0


def test_as_many_names_as_v3det_are_checked_in_time(tmp_path: Path) -> None:
    rows = [{"id": number, "name": f"thing {number}", "synonyms": [f"object {number}"]} for number in range(1, 13_205)]
    url = write(tmp_path, rows)
    started = time.process_time()
    assert check_vocabulary(url).usable
    assert time.process_time() - started < 30.0
