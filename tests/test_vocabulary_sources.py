"""Vocabularies that are no JSON of categories: tables and label maps."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rlabel.errors import InputError
from rlabel.vocabulary import reading
from rlabel.vocabulary.vocabulary import Vocabulary, load_vocabulary


def load(folder: Path, content: str | bytes, name: str, *, keep_zero_ids: bool = False) -> Vocabulary:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_vocabulary(str(path), keep_zero_ids=keep_zero_ids)


def ids_and_names(vocabulary: Vocabulary) -> list[tuple[int, str]]:
    return [(category.category_id, category.name) for category in vocabulary.categories]


def test_table_gives_every_column_its_meaning(tmp_path: Path) -> None:
    text = '\ufeffid,name,synonyms,definition,supercategory,note\r\n7,"dog, big",hound| cur ;tyke,"a ""pet""",animal,x\r\n\r\n9,cat,,,,\r\n'
    dog, cat = load(tmp_path, text, "v.csv").categories
    assert (dog.category_id, dog.name, dog.synonyms) == (7, "dog, big", ("hound", "cur", "tyke"))
    assert (dog.definition, dog.supercategory, dog.extra["note"]) == ('a "pet"', "animal", "x")
    assert (cat.category_id, cat.name, cat.synonyms, cat.definition, cat.supercategory) == (9, "cat", (), None, None)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("name\ncat\nhot dog\n", "v.csv"),
        ("cat\nhot dog\n", "v.csv"),
        ("Name\tdef\ncat\tsmall; soft\nhot dog\t\n", "v.tsv"),
        ("def;LABEL\nx;cat\ny, z;hot dog\n", "v.csv"),
        (gzip.compress(b"name,def\ncat,x\nhot dog,y\n", mtime=0), "v.csv.gz"),
    ],
)
def test_table_without_ids_is_numbered_from_one(tmp_path: Path, content: str | bytes, name: str) -> None:
    assert ids_and_names(load(tmp_path, content, name)) == [(1, "cat"), (2, "hot dog")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected categories, got none"),
        ("name,def\n", "expected categories, got none"),
        ("/m/01,cat\n/m/02,dog\n", "line 1: expected a header with a column `name`"),
        ("name,label\na,b\n", "expected columns that differ, got 'name'"),
        ("id,name\n1,cat\nx,dog\n", "line 3: expected a whole number in the column `id`, got 'x'"),
        ("id,name\n-1,cat\n", "expected a whole number"),
        ("id,name\n\u0661,cat\n", "expected a whole number"),
        ("id,name\n1,\n", "line 2: expected a name, got an empty cell"),
        ("name,def\ncat,a,b\n", "line 2: expected at most 2 columns as in the header, got 3"),
        ('name\n"cat\n', "does not parse"),
        ("name\ncat\nc\x00t\n", "line 3: expected a name, got control characters"),
        ("id,name\n0,cat\n", "--keep-zero-ids"),
        ("id,name\n1,cat\n1,dog\n", "expected unique ids"),
        ("name\n" + "x" * 600 + "\n", "expected at most 500 character(s)"),
        ("name\n" + "x" * 200_000 + "\n", "field larger than field limit"),
    ],
)
def test_unusable_table_is_refused_with_its_line(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, content, "v.csv")
    assert str(caught.value).startswith(str(tmp_path / "v.csv"))
    assert expected in str(caught.value)


@pytest.mark.parametrize("content", ["name\na\nb\nc\n", "a\nb\nc\n"])
def test_more_rows_than_allowed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(reading, "MAX_CATEGORIES", 2)
    for name in ("v.csv", "v.txt"):
        with pytest.raises(InputError, match="expected at most 2 "):
            load(tmp_path, content, name)


LABEL_MAPS: list[dict[str, Any]] = [
    {"id2label": {"0": "tench", "1": "goldfish"}, "label2id": {"tench": 0, "goldfish": 1}, "hidden_size": 8},
    {"label2id": {"tench": 0, "goldfish": 1}},
    {"0": "tench", "1": "goldfish"},
    {"names": ["tench", "goldfish"]},
    {
        "default": {
            "features": {"label": {"names": ["tench", "goldfish"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        }
    },
]


@pytest.mark.parametrize("document", LABEL_MAPS)
def test_label_map_keeps_its_ids_and_refuses_zero_unless_it_is_asked_for(
    tmp_path: Path, document: dict[str, Any]
) -> None:
    content = json.dumps(document)
    assert ids_and_names(load(tmp_path, content, "config.json", keep_zero_ids=True)) == [(0, "tench"), (1, "goldfish")]
    with pytest.raises(InputError, match="Label maps of Hugging Face count from 0.*--keep-zero-ids"):
        load(tmp_path, content, "config.json")


def test_label_of_several_names_stays_whole_and_its_parts_are_synonyms(tmp_path: Path) -> None:
    category = load(tmp_path, '{"1": "tench, Tinca tinca"}', "m.json").categories[0]
    assert (category.name, category.synonyms) == ("tench, Tinca tinca", ("tench", "Tinca tinca"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"id2label": {"1": 5}}', "expected a text for each whole number"),
        ('{"id2label": {"one": "cat"}}', "expected a text for each whole number"),
        ('{"label2id": {"cat": 1.5}}', "expected a text for each whole number"),
        ('{"label2id": {"cat": true}}', "expected a text for each whole number"),
        ('{"1": "cat", "1": "dog"}', "expected unique ids"),
        ('{"id2label": {"1": "cat", "2": "Cat"}}', "expected names that differ"),
        ('{"1": " "}', "categories[0].name"),
        (
            '{"a": {"names": ["x"], "_type": "ClassLabel"}, "b": {"names": ["y"], "_type": "ClassLabel"}}',
            "2 different ones",
        ),
        ('{"id2label": {}}', "expected at least one category, got none|expected categories, got none"),
        ('{"1": "cat", "two": "dog"}', "expected categories, got none"),
        ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested at most 1000 deep"),
    ],
)
def test_unusable_label_map_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, content, "config.json", keep_zero_ids=True)
    assert any(part in str(caught.value) for part in expected.split("|")), caught.value


def test_two_features_with_the_same_labels_are_one_map(tmp_path: Path) -> None:
    feature = '{"names": ["cat", "dog"], "_type": "ClassLabel"}'
    vocabulary = load(tmp_path, f'{{"train": {feature}, "test": {feature}}}', "i.json", keep_zero_ids=True)
    assert ids_and_names(vocabulary) == [(0, "cat"), (1, "dog")]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 2**20])
def test_brackets_and_quotes_inside_texts_are_no_nesting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(reading, "MAX_DEPTH", 4)
    monkeypatch.setattr(reading, "_CHUNK_BYTES", chunk_bytes)
    odd = ['[[[["', "\\", '\\"{{{{', "]]]]"]
    rows = [{"id": number, "name": f"n{number}", "def": text} for number, text in enumerate(odd, start=1)]
    vocabulary = load(tmp_path, json.dumps({"categories": rows, "name": "{{{{{"}), "v.json")
    assert [category.definition for category in vocabulary.categories] == odd
    with pytest.raises(InputError, match="nested at most 4 deep"):
        load(tmp_path, json.dumps({"categories": rows, "x": [[[[]]]]}), "v.json")


def test_deep_nesting_costs_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="nested at most 1000 deep"):
            load(tmp_path, '{"categories": ' + "[" * 30_000 + "]" * 30_000 + "}", "v.json")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10_000_000
