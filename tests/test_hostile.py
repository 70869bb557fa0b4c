"""Files of strangers: what must be refused or cost one item, with the exact input. Decoders are in test_hostile_decoders."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from rlabel.cli.options import ends_cleanly
from rlabel.cli.plain_streams import plain
from rlabel.config import LabelSettings, load_settings
from rlabel.corpus import spool
from rlabel.corpus.coco import read_corpus
from rlabel.corpus.open import open_labeled
from rlabel.corpus.plain_pickle import load_plain
from rlabel.corpus.validate import validate_corpus
from rlabel.errors import InputError, UsageError
from rlabel.records import ShardResult
from rlabel.regiongpt.sizes import check_outline, check_sizes
from rlabel.run.records_io import DamagedShard, close_body, footer_from_tail, result_from_bytes, result_to_bytes
from rlabel.yaml_files import BadYaml, load_yaml

ROOT = Path(__file__).resolve().parent.parent


def corpus_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Corpus files


def test_a_long_image_row_is_held_once_however_many_regions_it_has(tmp_path: Path) -> None:
    # 1 MB of image row with each of 3000 regions would be 3 GB; the child may have 1 GB for everything.
    text = json.dumps({"id": 1, "file_name": "a" * 1_000_000})
    regions = ",".join('{"image_id": 1}' for _ in range(3000))
    path = corpus_text(tmp_path / "c.json", f'{{"images": [{text}], "annotations": [{regions}]}}')
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); from rlabel.corpus.coco import read_corpus\n"
        "with read_corpus(sys.argv[1]) as corpus:\n"
        "    (image,) = corpus.images()\n"
        "    print(len(image.regions), len(image.file_name), len(list(corpus.contents())[0][1]))\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, env=environment, timeout=60
    )
    assert child.stdout == "3000 1000000 3000\n", child.stderr[-500:]


def test_rows_that_share_an_id_do_not_put_their_long_names_into_every_reason(tmp_path: Path) -> None:
    rows = [{"id": 1, "file_name": letter * 50_000} for letter in "ab"]
    path = corpus_text(tmp_path / "c.json", json.dumps({"images": rows, "annotations": [{"id": 1, "image_id": 1}]}))
    with read_corpus(path) as corpus:
        (image,) = corpus.images()
    assert image.file_name == "a" * 50_000
    assert image.regions[0].problem is not None and len(image.regions[0].problem) < 400


def test_regions_beyond_what_an_image_can_hold_are_failures_that_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MOST_REGIONS_READ", 5)
    images = [{"id": number, "file_name": "a.png"} for number in (1, 2)]
    annotations = [{"id": number, "image_id": 1 + (number in (3, 4))} for number in range(1, 12)]
    path = corpus_text(tmp_path / "c.json", json.dumps({"images": images, "annotations": annotations}))
    with read_corpus(path) as corpus:
        kept = [[region.key for region in image.regions] for image in corpus.images()]
        strays = [(region.key, region.problem) for region in corpus.stray_regions()]
    assert kept == [["1", "2", "5", "6", "7"], ["3", "4"]]
    why = "its image has more regions than the 5 that are read"
    assert strays == [(str(number), why) for number in (8, 9, 10, 11)] and corpus.num_stray_regions == 4


def test_members_that_nobody_needs_are_not_kept(tmp_path: Path) -> None:
    extra = ",".join(f'"key {number}": {{"a": [1, 2]}}' for number in range(500))
    path = corpus_text(tmp_path / "c.json", f'{{{extra}, "images": [], "annotations": [], "info": {{"a": 1}}}}')
    with read_corpus(path) as corpus:
        assert corpus.info == {"a": 1} and corpus.num_images == 0
    with pytest.raises(InputError) as told:
        read_corpus(corpus_text(path, f"{{{extra}}}"))
    assert len(str(told.value)) < 600


def test_categories_beyond_any_use_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlabel.corpus.coco._LONGEST_WHOLE", 20_000)
    path = corpus_text(tmp_path / "c.json", json.dumps({"images": [], "annotations": [], "categories": [{}] * 200}))
    with pytest.raises(InputError, match="expected at most 20000 characters of info, licenses, categories"):
        read_corpus(path)


@pytest.mark.parametrize("where", ["info", "categories", "licenses"])
def test_a_member_nested_too_deeply_is_left_out_and_told_of(tmp_path: Path, where: str) -> None:
    text = f'{{"{where}": [{"[" * 700}{"]" * 700}], "images": [], "annotations": []}}'
    with read_corpus(corpus_text(tmp_path / "c.json", text)) as corpus:
        assert [problem.where for problem in corpus.problems] == [where] or where == "info"
        assert not getattr(corpus, where)


def test_validate_survives_rows_nested_deeper_than_python_can_print(tmp_path: Path) -> None:
    deep = "[" * 800 + "]" * 800
    path = corpus_text(tmp_path / "c.json", f'{{"images": [{{"id": {deep}}}], "annotations": [{{"id": {deep}}}]}}')
    told = [problem.what for problem in validate_corpus(tmp_path, path, False)]
    assert told.count("nested too deeply") == 2


def test_one_value_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlabel.corpus.json_stream._LONGEST_VALUE", 1 << 21)
    path = tmp_path / "c.json"
    path.write_text('{"images": ["' + "a" * (1 << 23))
    with pytest.raises(InputError, match="one value is longer than"):
        read_corpus(path)


# Pickles


def test_ids_of_a_pickle_that_hold_themselves_a_billion_times_are_told_of_briefly(tmp_path: Path) -> None:
    bomb: object = ["x"]
    for _ in range(40):
        bomb = [bomb] * 10
    refs = [
        {"ann_id": ann_id, "ref_id": bomb, "image_id": bomb, "split": "val", "sentences": [{"sent": "a cat"}]}
        for ann_id in (bomb, 1)
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    rows = {
        "images": [{"id": 1, "file_name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [1, 1, 2, 2], "category_id": 1}],
    }
    corpus_text(tmp_path / "instances.json", json.dumps({**rows, "categories": [{"id": 1, "name": "a"}]}))
    source = open_labeled("refcoco", tmp_path, "val")
    with source:
        assert [problem.where.rsplit(", ", 1)[1] for problem in source.problems if "ref " in problem.where] == [
            "ref a list"
        ]
        assert source.problems[-1].what.endswith("have its ann_id a list; left out")


def test_keys_that_take_forever_to_hash_are_refused() -> None:
    # An empty dict; 1; a hundred times: remember it, take it again, make a pair of both; and the pair as a key.
    deep = b"\x80\x02}K\x01" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(100)) + b"K\x01s."
    with pytest.raises(InputError, match="a dict with a tuple for a key"):
        load_plain(deep, "refs.p")
    assert load_plain(pickle.dumps({1: "a", "b": (2, 3)}, 2), "refs.p") == {1: "a", "b": (2, 3)}


# Vocabularies


@pytest.mark.parametrize("before", [0, (1 << 20) - 3000])
def test_a_number_that_crashes_the_parser_of_vocabularies_is_refused_first(tmp_path: Path, before: int) -> None:
    # In a child: without the look at its digits ijson ends the process with SIGSEGV. The second one lies across two pieces.
    path = corpus_text(tmp_path / "v.json", f'{{"categories":{" " * before}[{{"id":{"9" * 5000},"name":"a"}}]}}')
    code = "import sys; from rlabel.vocabulary.reading import read_vocabulary_rows; read_vocabulary_rows(sys.argv[1])"
    child = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert child.returncode == 1 and "expected numbers of at most 4000 digits" in child.stderr


# Run directories


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind":"image","row":' + b"[" * 50_000 + b"}",
        b"[]",
        b"9",
        b'{"kind":"label"}',
        b'{"kind":"image","row":' + b"9" * 6000 + b"}",
    ],
)
def test_a_shard_that_a_stranger_wrote_with_the_right_hash_is_damaged_and_not_a_crash(line: bytes) -> None:
    footer = footer_from_tail(result_to_bytes(ShardResult(index=0, images=(), outcomes=()), "f"))
    with pytest.raises(DamagedShard, match="a record cannot be read"):
        result_from_bytes(close_body(line + b"\n", footer), 0, "f")
    with pytest.raises(DamagedShard, match="its last line is no footer"):
        result_from_bytes(line + b"\n", 0, "f")


# YAML


def test_anchors_that_stand_for_a_billion_values_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(BadYaml, match="anchors stand for more than"):
        load_yaml("\n".join(lines))
    assert load_yaml("a: &a {x: 1}\nb: *a\nc:\n  <<: *a\n  y: 2") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("&a [*a]", "holds itself"),
        ("!!python/object/apply:os.system ['id']", "could not determine a constructor"),
        ("[" * 50_000, "nested too deeply"),
        ("2001-99-99", "month must be"),
        ("a: 0x" + "f" * 5000, "more digits"),
        ("? {a: 1}\n: 2", "unhashable"),
        ("a: b: c", "mapping values"),
        ("x" * (1 << 21), "longer than"),
        ("a: \x07", "special characters"),
    ],
)
def test_yaml_that_is_no_plain_values_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadYaml, match=words):
        load_yaml(text)


def test_settings_in_hostile_yaml_are_one_message(tmp_path: Path) -> None:
    path = tmp_path / "label.yaml"
    for data in (b"&a [*a]", b"\xff\xfe\x00", b"out: 0x" + b"f" * 9000):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"label\.yaml: expected a readable YAML file"):
            load_settings(LabelSettings, str(path), {})


# Models


def model_folder(folder: Path, config: object, **files: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({f"layer{n}": np.zeros((50, 40), dtype=np.float32) for n in range(4)}, folder / "model.safetensors")
    for name, content in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"text_config": {"hidden_size": 10**9}}, "text_config.hidden_size"),
        ({"text_config": {"vocab_size": 1e300}}, "text_config.vocab_size"),
        ({"text_config": {"num_hidden_layers": 65}}, "text_config.num_hidden_layers"),
        ({"vision_config": {"stages": [[1, 3, 1, 1, 16], [10**6, 3, 1, 1, 16]]}}, "vision_config.stages.1.0"),
        ({"vision_config": {"layers_block_type": [{"repeats": 10**5}]}}, "vision_config.layers_block_type.0.repeats"),
        ({"image_size_px": 10**5}, "image_size_px"),
        ({"name_memory": -(10**8)}, "name_memory"),
    ],
)
def test_sizes_that_the_weights_do_not_bear_out_are_refused(tmp_path: Path, config: object, field: str) -> None:
    with pytest.raises(InputError, match=rf"--model m: config\.json, {field}: expected at most"):
        check_sizes(model_folder(tmp_path / "m", config), "--model m")


def test_sizes_of_real_models_are_taken(tmp_path: Path) -> None:
    config = {
        "image_token_id": 151655, "vision_config": {"depth": 32, "image_size": 448, "stages": [[4, 5, 2, 6, 192]]},
        "text_config": {"max_position_embeddings": 1 << 30, "rope_theta": 1e9, "sliding_window": 1 << 30, "num_hidden_layers": 28, "vocab_size": 151936},
    }  # fmt: skip
    folder = model_folder(
        tmp_path / "m", config, preprocessor_config={"max_pixels": 12845056, "size": {"longest_edge": 12845056}}
    )
    check_sizes(folder, "m")
    check_sizes(ROOT / "rlabel" / "embedded", "embedded")


def test_a_side_in_the_processor_is_bounded_as_well(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", {}, processor_config={"image_processor": {"zoom_size_px": 10**6}})
    with pytest.raises(
        InputError, match=r"processor_config\.json, image_processor\.zoom_size_px: expected at most 8192"
    ):
        check_sizes(folder, "--model m")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "9" * 6000, "\ufeff\x00"])
def test_json_of_a_model_that_cannot_be_read_is_one_message(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"config\.json: expected JSON"):
        check_sizes(model_folder(tmp_path / "m", text), "--model m")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 1 << 63),
        struct.pack("<Q", 10**9) + b"{}",
        struct.pack("<Q", 90)
        + b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}'.ljust(90)
        + b"abcd",
        struct.pack("<Q", 200) + b"[" * 200,
    ],
)
def test_safetensors_whose_header_lies_are_refused(tmp_path: Path, content: bytes) -> None:
    folder = model_folder(tmp_path / "m", {})
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="expected whole safetensors"):
        check_sizes(folder, "--model m")


def test_a_model_far_larger_than_its_weights_is_refused_without_memory_for_it(tmp_path: Path) -> None:
    import torch

    folder = model_folder(tmp_path / "m", {})
    with torch.device("meta"):
        small, huge = torch.nn.Linear(90, 90), torch.nn.Linear(1 << 20, 1 << 20)
    check_outline(small, folder, "--model m")
    with pytest.raises(InputError, match="describes a model of 1.1e\\+12 numbers, and its safetensors hold 8000"):
        check_outline(huge, folder, "--model m")


# The terminal


def test_control_characters_are_printed_as_text() -> None:
    assert (
        plain("a\x1b[2Jb\r\x07\x9b\x7f\u202ec\ud800\u2028") == r"a\u001b[2Jb\u000d\u0007\u009b\u007f\u202ec\ud800\u2028"
    )
    assert plain("tab\tline\nümläut ☂ 猫") == "tab\tline\nümläut ☂ 猫"
    assert json.loads(plain(json.dumps({"a": "\x1b\x9b\u202e"}, ensure_ascii=False))) == {"a": "\x1b\x9b\u202e"}


def test_what_a_command_prints_of_a_stranger_steers_no_terminal() -> None:
    @click.command()
    @ends_cleanly
    def command() -> None:
        print("label \x1b]0;title\x07")
        raise InputError("file \u202egnp.exe\x1b[1A: bad \udcff.")

    result = CliRunner().invoke(command)
    assert result.stdout == "label \\u001b]0;title\\u0007\n"
    assert result.stderr == "rlabel: file \\u202egnp.exe\\u001b[1A: bad \\udcff.\n"
    before = sys.stdout, sys.stderr
    CliRunner().invoke(command)
    assert (sys.stdout, sys.stderr) == before


# The fuzzer, a little of it


@pytest.mark.parametrize("kind", ["coco", "images"])
def test_fuzzed_files_end_as_outcomes_or_errors_of_ours(kind: str) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.chaos.fuzz",
        "--only",
        kind,
        "--first",
        "20000",
        "--files",
        "150",
        "--seconds",
        "0",
    ]
    told = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300).stdout)
    assert told["ok"] and told["faults"] == 150, told["notes"]
