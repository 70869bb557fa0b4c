"""`rlabel label --task ...` and `--mode ...`: the files they write, the same bytes wherever they run, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from label_factories import Outcome, Setup, outputs, rlabel_here, save_model
from rlabel.errors import InputError
from rlabel.schema_files import validate

NUM_IMAGES = 4
FILES = {"caption": "captions", "describe": "captions", "relate": "relations", "refer": "referred"}


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A corpus of 4 pictures with 2 regions each (ids 1 to 8), pairs and expressions about them, some of which cannot be asked."""
    folder = tmp_path_factory.mktemp("tasks")
    made = Setup(folder, save_model(folder / "model"), NUM_IMAGES)
    pairs = [
        {"image_id": 1, "subject": 2, "object": 1},
        {"image_id": 3, "subject": 5, "object": 6},
        {"image_id": 3, "subject": 5, "object": 7},
        {"image_id": 77, "subject": 1, "object": 2},
    ]
    said = [
        {"image_id": 2, "expression": "a cat", "id": 40},
        {"image_id": 2, "expression": "a dog", "region_ids": [4]},
        {"image_id": 4, "expression": ""},
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    (folder / "said.json").write_text(json.dumps(said))
    return made


def called(setup: Setup, out: Path, task: str, **more: object) -> Outcome:
    own: dict[str, object] = {"refer": {"expressions": setup.folder / "said.json"}}.get(task, {})
    common = {"vocabulary": None, "threshold": None, "margin": None, "images_per_shard": 2, "no_ray": True}
    return rlabel_here("label", setup.arguments(out, task=task, **{**common, **own, **more}))


def read(
    setup: Setup, out: Path, task: str, **more: object
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Run a task; return its file, checked against its schema, the last line of stdout, and the failures."""
    result = called(setup, out, task, **more)
    assert result.returncode == 0, result.stderr
    path = out / f"{FILES[task]}.json"
    document = json.loads(path.read_text())
    validate(document, FILES[task], path.name)
    said = json.loads(result.stdout)
    assert (said["task"], said["file"]) == (task, str(path))
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert said["labels"] + len(failures) == said["regions"] and said["failures"] == len(failures)
    status = json.loads((out / "status.json").read_text())
    validate(status, "status", "status.json")
    assert status["unit"] == said["unit"] and status["regions_done"] == status["regions_total"] == said["regions"]
    assert status["labels"] == said["labels"]
    return document, said, failures


# ---- captions


@pytest.mark.parametrize("task", ["caption", "describe"])
def test_captions_are_read_by_pycocotools_with_their_regions(setup: Setup, tmp_path: Path, task: str) -> None:
    document, said, failures = read(setup, tmp_path / "out", task)
    assert said["unit"] == "regions" and said["regions"] == 2 * NUM_IMAGES and len(document["images"]) == NUM_IMAGES
    coco = COCO(str(tmp_path / "out" / "captions.json"))
    given = {row["id"]: row for row in json.loads((setup.corpus / "regions.json").read_text())["annotations"]}
    rows = coco.loadAnns(coco.getAnnIds())
    assert {row["id"] for row in rows} | {row["region_id"] for row in failures} == set(given)
    for row in rows:
        assert row["image_id"] == given[row["region_id"]]["image_id"] and row["caption"].strip()
        assert coco.annToMask(row).sum() > 0
        assert row["attributes"]["run_id"] == document["info"]["rlabel"]["run"][:12]
    begins = {"caption": "Describe <region> in a few", "describe": "Describe <region> in detail"}[task]
    assert document["info"]["rlabel"]["settings"]["question"].startswith(begins)
    assert "categories" not in document and not (tmp_path / "out" / "labels.json").exists()


def test_an_answer_without_words_is_a_failure_never_an_empty_caption(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlabel.regiongpt.processing import RegionGPTProcessor

    monkeypatch.setattr(RegionGPTProcessor, "decode_answer", lambda self, ids: "")
    document, _, failures = read(setup, tmp_path / "out", "caption", max_failure_rate=1)
    assert document["annotations"] == [] and len(failures) == 2 * NUM_IMAGES
    assert {row["kind"] for row in failures} == {"answer"} and "the answer is empty" in failures[0]["reason"]


# ---- relations


def test_pairs_of_a_file_become_relations_and_wrong_rows_failures(setup: Setup, tmp_path: Path) -> None:
    document, said, failures = read(setup, tmp_path / "out", "relate", pairs=setup.folder / "pairs.json")
    assert (said["regions"], said["unit"]) == (4, "pairs")
    named = [
        (row["image_id"], row["subject"]["region_id"], row["object"]["region_id"]) for row in document["relations"]
    ]
    assert named == [(1, 2, 1), (3, 5, 6)]
    assert [row["id"] for row in document["relations"]] == [1, 2]
    reasons = [row["reason"] for row in failures]
    assert reasons == [
        "0003.png, pair row 3: object: no region of the image has the id 7.",
        "no image, pair row 4: its image_id 77 is in no image row.",
    ]


def test_without_a_file_neighbours_are_related_by_the_question_of_the_relation(setup: Setup, tmp_path: Path) -> None:
    document, said, _ = read(setup, tmp_path / "out", "relate", relation="size")
    assert said["regions"] == NUM_IMAGES
    assert "larger or smaller" in document["info"]["rlabel"]["settings"]["question"]


def test_relating_without_two_regions_in_any_image_is_a_wrong_call(setup: Setup, tmp_path: Path) -> None:
    regions = json.loads((setup.corpus / "regions.json").read_text())
    regions["annotations"] = regions["annotations"][::2]
    (tmp_path / "one.json").write_text(json.dumps(regions))
    result = called(setup, tmp_path / "out", "relate", regions=tmp_path / "one.json")
    assert result.returncode == 2 and "at least two regions" in result.stderr and not (tmp_path / "out").exists()


# ---- expressions


@pytest.mark.parametrize("refer_by", ["likelihood", "mixture"])
def test_expressions_choose_a_region_with_a_share_for_each_candidate(
    setup: Setup, tmp_path: Path, refer_by: str
) -> None:
    document, said, failures = read(setup, tmp_path / "out", "refer", refer_by=refer_by)
    assert (said["regions"], said["unit"]) == (3, "expressions")
    cat, dog = document["referrals"]
    assert (cat["expression"], cat["expression_id"], dog["expression_id"]) == ("a cat", 40, None)
    shares = {row["region_id"]: row["score"] for row in cat["candidates"]}
    assert set(shares) == {3, 4} and sum(shares.values()) == pytest.approx(1, abs=2e-6)
    assert shares[cat["region_id"]] == max(shares.values()) == cat["score"]
    assert (dog["region_id"], dog["score"]) == (4, 1.0)
    assert [row["reason"] for row in failures] == [
        '0004.png, expression row 3: expected an expression in words, got "".'
    ]


def test_numbers_that_the_model_does_not_say_are_failures(setup: Setup, tmp_path: Path) -> None:
    document, _, failures = read(setup, tmp_path / "out", "refer", refer_by="number", max_failure_rate=1)
    assert len(document["referrals"]) + len(failures) == 3
    assert all("expected one number" in row["reason"] or row["kind"] == "query" for row in failures)


# ---- the schemas


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("caption", {"caption": " "}),
        ("caption", {"score": 1.5}),
        ("relate", {"predicate": ""}),
        ("relate", {"subject": {"region_id": 1}}),
        ("refer", {"candidates": []}),
        ("refer", {"colour": "red"}),
    ],
)
def test_schemas_refuse_records_that_say_nothing_or_something_else(
    setup: Setup, tmp_path: Path, task: str, change: dict[str, Any]
) -> None:
    document, _, _ = read(setup, tmp_path / "out", task)
    rows = next(document[name] for name in ("annotations", "relations", "referrals") if name in document)
    rows[0].update(change)
    with pytest.raises(InputError, match=f"{next(iter(change))}"):
        validate(document, FILES[task], "changed")


# ---- the same bytes


@pytest.mark.parametrize(
    ("task", "actors", "more"),
    [("relate", 2, {}), ("refer", 1, {})],
    ids=["relations by two actors", "choices by one"],
)
def test_actors_write_what_one_process_writes(
    setup: Setup, local_ray: Any, tmp_path: Path, task: str, actors: int, more: dict[str, object]
) -> None:
    if task == "relate":
        more = {"pairs": setup.folder / "pairs.json"}
    for out, where in ((tmp_path / "here", {}), (tmp_path / "there", {"no_ray": None, "num_actors": actors})):
        result = called(setup, out, task, **{**more, **where, "max_failure_rate": 1})
        assert result.returncode == 0, result.stderr
    assert outputs(tmp_path / "here") == outputs(tmp_path / "there")


def test_a_run_goes_on_where_it_stopped_and_refuses_other_rows(setup: Setup, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.json"
    rows = json.loads((setup.folder / "pairs.json").read_text())
    pairs.write_text(json.dumps(rows))
    out = tmp_path / "out"
    assert called(setup, out, "relate", pairs=pairs).returncode == 0
    before = outputs(out)
    (out / "shards" / "000001.jsonl").unlink()
    (out / "relations.json").unlink()
    assert called(setup, out, "relate", pairs=pairs).returncode == 0
    assert outputs(out) == before
    pairs.write_text(json.dumps([*rows[:1], {**rows[1], "object": 5, "subject": 6}, *rows[2:]]))
    other = called(setup, out, "relate", pairs=pairs)
    assert other.returncode == 2 and "settings.pairs_sha256" in other.stderr
    task = called(setup, out, "caption")
    assert task.returncode == 2 and 'settings.task: "relate" -> "caption"' in task.stderr
    assert outputs(out) == before


# ---- modes of classify


@pytest.mark.parametrize("mode", ["separate", "multi_turn", "one_turn"])
def test_every_mode_ends_with_one_outcome_a_region(setup: Setup, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "out"
    arguments = setup.arguments(out, mode=mode, no_ray=True, images_per_shard=2, max_failure_rate=1)
    result = rlabel_here("label", arguments)
    assert result.returncode == 0, result.stderr
    document = json.loads((out / "labels.json").read_text())
    validate(document, "labels", "labels.json")
    said = json.loads(result.stdout)
    assert said["labels"] + said["abstentions"] + said["failures"] == said["regions"] == 2 * NUM_IMAGES
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert all(row["kind"] == "answer" and "names none for number" in row["reason"] for row in failures)
    assert (mode == "one_turn") or not failures
    assert document["info"]["rlabel"]["settings"]["mode"] == mode


@pytest.mark.parametrize("more", [{"decoding": "constrained"}, {"decoding": "constrained", "num_questions": 3}])
def test_answers_kept_inside_the_vocabulary_are_all_labels_by_name(
    setup: Setup, tmp_path: Path, more: dict[str, object]
) -> None:
    out = tmp_path / "out"
    names = ["cat", "fire hydrant", "dining table"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    result = rlabel_here("label", setup.arguments(out, no_ray=True, vocabulary=tmp_path / "names.txt", **more))
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert (said["labels"], said["abstentions"], said["failures"]) == (2 * NUM_IMAGES, 0, 0)
    for row in json.loads((out / "labels.json").read_text())["annotations"]:
        assert row["attributes"]["text"] in names and row["attributes"]["decided_by"] == "exact"
        assert 0 <= row["score"] <= 1
    other = rlabel_here("label", setup.arguments(out, no_ray=True, vocabulary=tmp_path / "names.txt"))
    assert other.returncode == 2 and "settings.decoding" in other.stderr


@pytest.mark.parametrize("rank_by", ["total", "per_token", "prior"])
def test_hybrid_decoding_keeps_the_free_text_and_chooses_the_likeliest_name(
    setup: Setup, tmp_path: Path, rank_by: str
) -> None:
    names = ["cat", "fire hydrant", "dining table"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    few = {"no_ray": True, "vocabulary": tmp_path / "names.txt"}
    for out, more in (("free", {}), ("hybrid", {"decoding": "hybrid", "rank_by": rank_by})):
        result = rlabel_here("label", setup.arguments(tmp_path / out, **few, **more))
        assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "hybrid" / "labels.json").read_text())
    validate(document, "labels", "labels.json")
    texts = {
        (row["image_id"], row["attributes"]["region_id"]): row["attributes"]["text"]
        for row in json.loads((tmp_path / "free" / "labels.json").read_text())["annotations"]
    }
    # Random weights may say nothing that has a word in it, which stays an abstention.
    abstained = [json.loads(line) for line in (tmp_path / "hybrid" / "abstained.jsonl").read_text().splitlines()]
    assert all(row["reason"].startswith("the answer ") for row in abstained)
    assert len(document["annotations"]) + len(abstained) == 2 * NUM_IMAGES and len(document["annotations"]) > NUM_IMAGES
    for row in document["annotations"]:
        attributes = row["attributes"]
        assert texts[row["image_id"], attributes["region_id"]] == attributes["text"]
        # Three names: all of them are scored, and their shares are of one.
        assert 1 / 3 <= attributes["candidate_share"] <= 1 or rank_by != "total"
        assert attributes["runner_up_id"] != row["category_id"] and 0 <= row["score"] <= 1
    for line in (tmp_path / "hybrid" / "shards" / "000000.jsonl").read_text().splitlines():
        record = json.loads(line)
        validate(record, "shard-record", "line")
        if record["kind"] == "label":
            assert {row[0] for row in record["evidence"]["candidates"]} == {1, 2, 3}


# ---- wrong calls


WRONG: list[tuple[str, Callable[[Setup], dict[str, object]], tuple[str, ...]]] = [
    ("classify without names", lambda s: {"task": "classify"}, ("--vocabulary: missing", "--task classify needs")),
    ("refer without expressions", lambda s: {"expressions": None}, ("--expressions: missing", "--task refer needs")),
    (
        "expressions of another task",
        lambda s: {"task": "caption", "expressions": s.folder / "said.json"},
        ("--expressions: it is of --task refer", "got --task caption"),
    ),
    ("pairs of another task", lambda s: {"pairs": "p.json"}, ("--pairs: it is of --task relate",)),
    ("a relation of another task", lambda s: {"relation": "size"}, ("--relation: it is of --task relate",)),
    ("a mode of another task", lambda s: {"mode": "one_turn"}, ("--mode: it is of --task classify",)),
    (
        "a search in free text",
        lambda s: {"task": "classify", "vocabulary": s.vocabulary, "search": "exact"},
        ("--search exact", "--decoding constrained or hybrid"),
    ),
    (
        "hybrid in one turn",
        lambda s: {"task": "classify", "vocabulary": s.vocabulary, "decoding": "hybrid", "mode": "one_turn"},
        ("--decoding hybrid", "--mode one_turn"),
    ),
    (
        "candidates of free text",
        lambda s: {"task": "classify", "vocabulary": s.vocabulary, "num_candidates": 3},
        ("--num-candidates: it is of --decoding hybrid",),
    ),
    ("results of another task", lambda s: {"results_files": True}, ("--results-files: it is of --task classify",)),
    (
        "pairs and a bound on pairs",
        lambda s: {"task": "relate", "expressions": None, "pairs": "p.json", "max_pairs_per_image": 3},
        ("--max-pairs-per-image", "got --pairs"),
    ),
    (
        "a relation's question about one region",
        lambda s: {"task": "relate", "expressions": None, "question": "What of <region1>?"},
        ("--question", "<region1> and <region2>"),
    ),
    ("a choice without choices", lambda s: {"refer_by": "number", "question": "Which is {expression}?"}, ("--question", "{choices}")),
    ("no such file", lambda s: {"expressions": s.folder / "gone.json"}, ("--expressions", "gone.json", "no such file")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "words"), WRONG, ids=[case[0] for case in WRONG])
def test_a_call_that_does_not_go_together_is_told_before_a_model_is_loaded(
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    change: Callable[[Setup], dict[str, object]],
    words: tuple[str, ...],
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("rlabel.regiongpt.quantization.load_model", loaded)
    result = called(setup, tmp_path / "out", **{"task": "refer", **change(setup)})  # type: ignore[arg-type]
    assert result.returncode == (1 if "no such file" in name else 2), result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr and not (tmp_path / "out").exists()


def test_names_that_a_task_does_not_use_are_told(setup: Setup, tmp_path: Path) -> None:
    result = called(setup, tmp_path / "out", "caption", vocabulary=setup.vocabulary, limit=1)
    assert result.returncode == 0 and "--vocabulary is not used by --task caption" in result.stderr


@pytest.mark.parametrize(
    ("task", "unit", "prompt"),
    [("relate", "pairs", "How is <region> related to <region>?"), ("refer", "expressions", "few words")],
)
def test_the_dry_run_counts_what_will_be_asked(setup: Setup, tmp_path: Path, task: str, unit: str, prompt: str) -> None:
    result = called(setup, tmp_path / "out", task, dry_run=True)
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines[unit] == {"pairs": "4", "expressions": "3"}[unit] and prompt in result.stdout
    assert not (tmp_path / "out").exists()
