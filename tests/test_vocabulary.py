"""Vocabulary files: what is read, what is kept, what is refused and in which words."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from rlabel.errors import InputError
from rlabel.records import JsonValue
from rlabel.schema_files import load_schema, validate
from rlabel.vocabulary.vocabulary import (
    Category,
    category_to_row,
    load_vocabulary,
    make_vocabulary,
    vocabulary_to_json,
)

TWO_ROWS: list[dict[str, Any]] = [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog", "synonyms": ["dog", "hound"]}]


def write(folder: Path, content: object, name: str = "vocabulary.json") -> str:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def refusal(url: str) -> str:
    with pytest.raises(InputError) as caught:
        load_vocabulary(url)
    return str(caught.value)


def test_own_json_gives_categories_in_file_order_with_ids_untouched(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(write(tmp_path, {"name": "pets", "categories": TWO_ROWS}))
    assert vocabulary.name == "pets"
    assert [(category.category_id, category.name) for category in vocabulary.categories] == [(3, "cat"), (9, "dog")]
    assert vocabulary.by_id()[9].synonyms == ("dog", "hound")


def test_lvis_category_keeps_its_definition_and_unknown_keys_on_a_round_trip(tmp_path: Path) -> None:
    row = {
        "id": 5,
        "name": "aerosol_can",
        "synonyms": ["aerosol_can", "spray_can"],
        "def": "a dispenser",
        "synset": "aerosol.n.02",
        "frequency": "c",
        "image_count": 64,
        "ratio": 0.5,
        "skeleton": [[1, 2]],
        "nothing": None,
    }
    vocabulary = load_vocabulary(write(tmp_path, {"images": [], "annotations": [], "categories": [row]}))
    assert vocabulary.categories[0].definition == "a dispenser"
    assert category_to_row(vocabulary.categories[0]) == row


def test_v3det_category_takes_its_definition_from_cat_info_and_writes_it_back_under_that_key(tmp_path: Path) -> None:
    row = {"id": 1, "name": "jack", "name_zh": "\u5343\u65a4\u9876", "cat_info": "a lifting tool", "novel": True}
    category = load_vocabulary(write(tmp_path, {"categories": [row]})).categories[0]
    assert category.definition == "a lifting tool"
    assert category_to_row(category) == row


@pytest.mark.parametrize("categories_first", [True, False])
def test_categories_are_found_wherever_they_stand_in_a_coco_file(tmp_path: Path, categories_first: bool) -> None:
    parts = [
        ("categories", TWO_ROWS),
        ("annotations", [{"id": 1, "bbox": [0.5, 1e400, -3, 10**30], "categories": [7]}]),
    ]
    content = dict(parts if categories_first else parts[::-1])
    vocabulary = load_vocabulary(write(tmp_path, json.dumps(content).replace("Infinity", "1e400"), "instances.json"))
    assert [category.name for category in vocabulary.categories] == ["cat", "dog"]
    assert vocabulary.name == "instances"


def test_whole_number_written_with_a_point_is_an_integer_id(tmp_path: Path) -> None:
    vocabulary = load_vocabulary(write(tmp_path, b'{"categories": [{"id": 9007199254740991.0, "name": "cat"}]}'))
    assert vocabulary.categories[0].category_id == 9007199254740991


def test_bare_list_of_categories_is_read(tmp_path: Path) -> None:
    assert len(load_vocabulary(write(tmp_path, TWO_ROWS)).categories) == 2


def test_annotations_beside_the_categories_are_not_kept_in_memory(tmp_path: Path) -> None:
    annotation = json.dumps({"id": 1, "segmentation": {"size": [480, 640], "counts": "0" * 5000}})
    path = tmp_path / "instances.json"
    with path.open("w") as file:
        file.write(
            '{"annotations": [' + ",".join([annotation] * 3000) + '], "categories": ' + json.dumps(TWO_ROWS) + "}"
        )
    assert path.stat().st_size > 15_000_000
    tracemalloc.start()
    try:
        load_vocabulary(str(path))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 6_000_000


def test_text_file_numbers_its_names_from_one_and_skips_comments_and_blank_lines(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf# pets\r\ncat\r\n\r\n  hot dog \r\n\t# not this\r\nna\xc3\xafve"
    vocabulary = load_vocabulary(write(tmp_path, content, "names.txt"))
    names = [(category.category_id, category.name) for category in vocabulary.categories]
    assert names == [(1, "cat"), (2, "hot dog"), (3, "na\u00efve")]
    assert vocabulary.name == "names"


def test_vocabulary_is_read_from_any_fsspec_url_and_compressed() -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/test-vocabulary/v.json.gz", gzip.compress(json.dumps({"categories": TWO_ROWS}).encode()))
    assert len(load_vocabulary("memory://test-vocabulary/v.json.gz").categories) == 2


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (b"", "v.json", "expected JSON"),
        (b"", "v.txt", "expected categories, got none"),
        (b"# only a comment\n", "v.txt", "expected categories, got none"),
        (b"<html></html>", "v.json", "expected JSON"),
        (b'{"categories": [{"id": 1, "name": "cat"}', "v.json", "Check that the file is whole"),
        (b'{"categories": [{"id": 1, "name": "cat"}]} {}', "v.json", "does not parse"),
        (b'{"categories": NaN}', "v.json", "does not parse"),
        (b'{"name": "x"}', "v.json", "expected categories, got none"),
        (b'{"categories": []}', "v.json", "expected categories, got none"),
        (b'{"categories": {"1": "cat"}}', "v.json", "expected categories, got none"),
        (b'["cat", "dog"]', "v.json", 'categories[0]: expected a value of type "object", got "cat"'),
        (b'{"categories": [{"name": "cat"}]}', "v.json", "categories[0]: 'id' is a required property"),
        (b'{"categories": [{"id": 1}]}', "v.json", "categories[0]: 'name' is a required property"),
        (b'{"categories": [{"id": 1, "name": "cat"}, {"id": "2", "name": "d"}]}', "v.json", "categories[1].id"),
        (b'{"categories": [{"id": true, "name": "cat"}]}', "v.json", "categories[0].id"),
        (b'{"categories": [{"id": 1.5, "name": "cat"}]}', "v.json", "categories[0].id"),
        (b'{"categories": [{"id": -1, "name": "cat"}]}', "v.json", "expected at least 0, got -1"),
        (b'{"categories": [{"id": 1e400, "name": "cat"}]}', "v.json", "got one too large"),
        (b'{"categories": [{"id": 123456789012345678901234567890, "name": "cat"}]}', "v.json", "categories[0].id"),
        (b'{"categories": [{"id": 1, "name": "  "}]}', "v.json", "categories[0].name"),
        (b'{"categories": [{"id": 1, "name": 5}]}', "v.json", "categories[0].name"),
        (b'{"categories": [{"id": 1, "name": "cat", "synonyms": "kitty"}]}', "v.json", "categories[0].synonyms"),
        (b'{"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}', "v.json", "expected unique ids"),
        (b'{"categories": [{"id": 0, "name": "cat"}]}', "v.json", "set keep_zero_ids to keep it"),
        (b'{"categories": [{"id": 1, "name": "hot dog"}, {"id": 2, "name": "Hot-Dog"}]}', "v.json", "Merge the two"),
        (b"cat\nCAT\n", "v.txt", "expected names that differ"),
        (b"cat\nd\xe9j\xe0\n", "v.txt", "line 2: expected UTF-8"),
        (b"\x7fELF\x00\x00", "v.txt", "control characters"),
        (b"not a gzip file", "v.json.gz", "expected a readable vocabulary file"),
        (
            b'{"categories": [' + b'{"id": 1, "name": "cat", "x": ' + b"[" * 3_000 + b"]" * 3_000 + b"}]}",
            "v.json",
            "nested",
        ),
    ],
)
def test_unusable_file_is_refused_with_its_path_and_the_reason(
    tmp_path: Path, content: bytes, name: str, expected: str
) -> None:
    url = write(tmp_path, content, name)
    message = refusal(url)
    assert message.startswith(url)
    assert expected in message
    assert len(message) < len(url) + 400


def test_missing_file_folder_and_unknown_protocol_are_refused_with_a_next_step(tmp_path: Path) -> None:
    assert "there is no such file. Check the path." in refusal(str(tmp_path / "none.json"))
    assert "got a folder" in refusal(str(tmp_path))
    assert "no-such-protocol" in refusal("no-such-protocol://bucket/v.json")
    assert "expected a readable vocabulary file" in refusal("v\0.json")


def test_id_zero_is_kept_when_asked_for(tmp_path: Path) -> None:
    url = write(tmp_path, {"categories": [{"id": 0, "name": "tench"}]})
    assert load_vocabulary(url, keep_zero_ids=True).categories[0].category_id == 0


@pytest.mark.parametrize("key", ["def", "supercategory", "synset", "cat_info"])
def test_equal_names_told_apart_by_their_sense_are_kept_and_noted(tmp_path: Path, key: str) -> None:
    rows = [{"id": 1, "name": "crane", key: "a bird"}, {"id": 2, "name": "Crane", key: "a machine"}]
    vocabulary = load_vocabulary(write(tmp_path, {"categories": rows}))
    assert len(vocabulary.categories) == 2
    assert len(vocabulary.notes) == 1
    assert "'Crane' of id 2" in vocabulary.notes[0]


def test_sha256_follows_what_decides_a_snap_and_nothing_else(tmp_path: Path) -> None:
    def digest(rows: list[dict[str, Any]], **others: Any) -> str:
        return load_vocabulary(write(tmp_path, {"categories": rows, **others})).sha256

    base = digest(TWO_ROWS)
    assert len(base) == 64
    assert base == digest(TWO_ROWS, name="other", images=[{"id": 1}])
    assert base == digest([{**TWO_ROWS[0], "frequency": "r"}, TWO_ROWS[1]])
    changed = [
        digest([{**TWO_ROWS[0], **change}, TWO_ROWS[1]])
        for change in (
            {"id": 4},
            {"name": "Cat"},
            {"synonyms": ["kitty"]},
            {"def": "a feline"},
            {"supercategory": "a feline"},
        )
    ]
    assert len({base, digest(TWO_ROWS[::-1]), *changed}) == 7


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() != ""
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Category,
            category_id=st.integers(min_value=1, max_value=2**53 - 1),
            name=texts,
            synonyms=st.lists(texts, max_size=3).map(tuple),
            definition=st.none() | texts,
            supercategory=st.none() | texts,
            extra=st.dictionaries(
                st.sampled_from(["frequency", "x"]), st.none() | st.booleans() | st.integers() | texts
            ),
        ),
        min_size=1,
        max_size=5,
        unique_by=(lambda category: category.category_id, lambda category: category.name),
    )
)
def test_vocabulary_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Category]
) -> None:
    try:
        vocabulary = make_vocabulary("v", rows)
    except InputError:
        return  # names that say the same, which have a test of their own
    url = write(tmp_path_factory.mktemp("round"), vocabulary_to_json(vocabulary))
    assert load_vocabulary(url) == vocabulary


def test_schema_is_itself_valid() -> None:
    Draft202012Validator.check_schema(load_schema("vocabulary"))


def test_schema_accepts_a_full_example_and_refuses_two_wrong_ones() -> None:
    judge = Draft202012Validator(load_schema("vocabulary"))
    full = {"id": 1, "name": "cat", "synonyms": None, "def": "a feline", "supercategory": "animal", "frequency": "f"}
    assert judge.is_valid({"name": "pets", "categories": [full]})
    assert not judge.is_valid({"categories": [{"id": 1, "name": ""}]})
    assert not judge.is_valid({"categories": [{"id": 1, "name": "cat", "synonyms": [5]}]})


def test_schema_message_names_the_first_wrong_place_and_stays_short() -> None:
    rows: list[JsonValue] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "x" * 5000}, {"id": "z", "name": "dog"}]
    with pytest.raises(InputError) as caught:
        validate({"categories": rows}, "vocabulary", "v.json")
    assert str(caught.value).startswith('v.json: categories[1].name: expected at most 500 character(s), got "xxx')
    assert "schemas/vocabulary.schema.json" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_valid_instance_passes_and_a_missing_schema_is_a_broken_installation() -> None:
    validate({"categories": [{"id": 1, "name": "cat"}]}, "vocabulary", "v.json")
    with pytest.raises(InputError, match="install rlabel again"):
        load_schema("no-such-thing")
