"""Settings: flags win over the file, the file is judged by its JSON Schema, and every refusal names the field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from rlabel.config import LabelSettings, TrainSettings, load_settings, settings_schema
from rlabel.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
NEEDED = {"images": "i", "regions": "r", "vocabulary": "v", "out": "o"}
KINDS = pytest.mark.parametrize("kind", [LabelSettings, TrainSettings])


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@KINDS
def test_the_schema_file_is_that_of_the_settings(kind):
    path = ROOT / "schemas" / f"{kind.schema_name}.schema.json"
    expected = json.dumps(settings_schema(kind), indent=2, ensure_ascii=False) + "\n"
    assert path.read_text(encoding="utf-8") == expected, (
        f"write {path.name} anew: python -c 'import json, rlabel.config as c; "
        f"print(json.dumps(c.settings_schema(c.{kind.__name__}), indent=2, ensure_ascii=False))' > schemas/{path.name}"
    )


@KINDS
def test_the_schema_is_a_schema_and_asks_for_nothing_that_a_flag_may_give(kind):
    schema = settings_schema(kind)
    Draft202012Validator.check_schema(schema)
    assert "required" not in schema and schema["additionalProperties"] is False
    Draft202012Validator(schema).validate({})


@KINDS
def test_every_default_is_a_valid_setting(kind):
    needed = {name: "x" for name, field in kind.model_fields.items() if field.is_required()}
    Draft202012Validator(settings_schema(kind)).validate(kind(**needed).model_dump(mode="json"))


@pytest.mark.parametrize(
    "text",
    [
        "threshold: 0.5\nlimit: 10\nquantization: nf4\nno_ray: true\n",
        "gpus_per_actor: 0.5\ndevice: cuda:1\nlimit: null\nembedder: null\n",
        "threshold: 1\ngpus-per-actor: 2\n",
        "# nothing but a comment\n",
        "",
    ],
)
def test_good_files_are_taken(tmp_path, text):
    given = {name.replace("-", "_"): value for name, value in (yaml.safe_load(text) or {}).items()}
    settings = load_settings(LabelSettings, config(tmp_path, text), NEEDED)
    assert {name: getattr(settings, name) for name in given} == given


# Each is refused by the schema alone too, so that an editor shows what the program would say.
BAD = [
    ("threshhold: 0.5", "threshhold"),
    ("threshold: 7", "threshold: expected at most 1, got 7"),
    ("threshold: high", "threshold"),
    ("limit: '5'", "limit"),
    ("limit: -1", "limit"),
    ("limit: 1.5", "limit"),
    ("images_per_shard: true", "images_per_shard"),
    ("quantization: int4", "quantization"),
    ("vocabulary: [a, b]", "vocabulary"),
    ("question: 2020-01-01", "question"),
    ("device: tpu", "device"),
    ("gpus_per_actor: 1.5", "gpus_per_actor"),
    ("gpus_per_actor: -0.5", "gpus_per_actor"),
    ("heartbeat_s: 0", "heartbeat_s"),
    ("1: 2", '"1"'),
]


@pytest.mark.parametrize("text, named", BAD)
def test_bad_files_are_refused_with_the_file_and_the_field(tmp_path, text, named):
    path = config(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_settings(LabelSettings, path, NEEDED)
    assert path in str(caught.value) and named in str(caught.value)


@pytest.mark.parametrize("text", [text for text, _ in BAD if not text.startswith(("1:", "question"))])
def test_editors_refuse_the_same_files(text):
    assert not Draft202012Validator(settings_schema(LabelSettings)).is_valid(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "just words", "a: [1\n", "a: !!python/object/apply:os.getcwd []\n", "\x00"]
)
def test_files_that_are_no_mapping_are_refused(tmp_path, text):
    with pytest.raises(UsageError, match=r"--config .*settings\.yaml: expected a"):
        load_settings(LabelSettings, config(tmp_path, text), NEEDED)


def test_missing_and_binary_files_are_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    for name in ("gone.yaml", "picture.png"):
        with pytest.raises(UsageError, match=name):
            load_settings(LabelSettings, str(tmp_path / name), NEEDED)


def test_flags_win_over_the_file_and_flags_not_given_do_not(tmp_path):
    path = config(tmp_path, "images: theirs\nthreshold: 0.25\nno_ray: true\ninclude_crowds: true\n")
    settings = load_settings(
        LabelSettings, path, {**NEEDED, "threshold": None, "no_ray": False, "include_crowds": False}
    )
    assert (settings.images, settings.threshold, settings.no_ray, settings.include_crowds) == ("i", 0.25, False, False)


def test_what_neither_gives_is_asked_for_in_both_ways(tmp_path):
    with pytest.raises(
        UsageError, match=r"--vocabulary: missing. Give it as a flag, or as `vocabulary:` in the file of --config"
    ):
        load_settings(LabelSettings, config(tmp_path, "images: i\nregions: r\n"), {"out": "o"})


@pytest.mark.parametrize(
    "name, value",
    [
        ("threshold", 7.0),
        ("threshold", float("nan")),
        ("max_new_tokens", 0),
        ("gpus_per_actor", 1.5),
        ("gpus_per_actor", float("inf")),
    ],
)
def test_bad_flags_are_refused_by_name(name, value):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: "):
        load_settings(LabelSettings, None, {**NEEDED, name: value})


@pytest.mark.parametrize("gpus", [-1, 0, 0.25, 1, 2, 8])
def test_gpus_of_an_actor_are_what_ray_takes(gpus):
    assert load_settings(LabelSettings, None, {**NEEDED, "gpus_per_actor": gpus}).gpus_per_actor == gpus


def test_what_decides_the_labels_is_without_paths_and_without_where_work_runs():
    here = LabelSettings(**NEEDED).deciding()
    there = LabelSettings(
        images="/a",
        regions="/b",
        vocabulary="/c",
        out="/d",
        num_actors=9,
        gpus_per_actor=1,
        address="ray://x",
        no_ray=True,
        max_attempts=1,
    )
    assert there.deciding() == here
    assert LabelSettings(**NEEDED, threshold=0.1).deciding() != here
    assert LabelSettings(**NEEDED, compute_dtype="bfloat16").deciding() == here, "says nothing without quantization"
    assert (
        LabelSettings(**NEEDED, quantization="nf4", compute_dtype="bfloat16").deciding()
        != LabelSettings(**NEEDED, quantization="nf4").deciding()
    )
