"""Reading COCO files: order, ids, what is wrong, what is kept, and how much memory it takes."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rlabel.corpus.coco import read_corpus, read_labeled
from rlabel.corpus.json_stream import stream_members
from rlabel.corpus.spool import JOINED, Spool
from rlabel.errors import InputError
from rlabel.records import JsonValue

from factories import annotation, coco_file, image_row  # isort: skip


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.json"
    path.write_text(text, encoding="utf-8")
    return path


def by_key(path: Path) -> dict:
    with read_corpus(path) as corpus:
        found = {region.key: region for image in corpus.images() for region in image.regions}
        return found | {region.key: region for region in corpus.stray_regions()}


def test_images_and_their_regions_come_in_file_order_whatever_the_order_of_the_file(tmp_path):
    images = [image_row(image_id, f"{image_id}.png") for image_id in (5, 2, 9)]
    regions = [annotation(key, image_id) for key, image_id in ((8, 9), (7, 2), (1, 9), (3, 2))]
    for order in (("images", "annotations"), ("annotations", "images")):
        parts = {
            "images": images,
            "annotations": regions,
            "info": {"year": 1},
            "categories": [{"id": 4, "name": "cat"}],
        }
        path = written(tmp_path, json.dumps({name: parts[name] for name in (*order, "info", "categories")}))
        with read_corpus(path) as corpus:
            found = [(image.row["id"], [region.key for region in image.regions]) for image in corpus.images()]
            assert found == [(5, []), (2, ["7", "3"]), (9, ["8", "1"])]
            assert (corpus.num_images, corpus.num_regions, corpus.problems) == (3, 4, [])
            assert corpus.info == {"year": 1} and corpus.categories == [{"id": 4, "name": "cat"}]
            assert [image.row["id"] for image in corpus.images(limit=2)] == [5, 2]
            assert list(corpus.images(limit=0)) == []


def test_numbers_and_unknown_keys_are_kept_as_they_were(tmp_path):
    row = image_row(7, date="2020", nested={"a": [1, 2.0, None, True]}, big=2**70, third=0.1)
    region = annotation(3, 7, bbox=[1, 2.0, 3.5, 4], segmentation=[[1, 2.0, 3, 4, 5, 6.25]], attributes={"who": "me"})
    with read_corpus(coco_file(tmp_path / "c.json", [row], [region])) as corpus:
        (image,) = corpus.images()
    (found,) = image.regions
    assert json.dumps(image.row) == json.dumps(row)
    assert json.dumps(found.box_xywh) == "[1, 2.0, 3.5, 4]"
    assert json.dumps(found.segmentation) == "[[1, 2.0, 3, 4, 5, 6.25]]"
    assert found.extra == {"attributes": {"who": "me"}}


def test_a_caption_a_category_or_a_score_never_reaches_a_region(tmp_path):
    secret = annotation(1, 1, category_id=77, caption="a secret", category_name="secret", score=0.5, area=9)
    with read_corpus(coco_file(tmp_path / "c.json", [image_row()], [secret])) as corpus:
        (image,) = corpus.images()
        assert "secret" not in repr(image) and "77" not in repr(image)
        assert "secret" not in "".join(str(row) for row in corpus._spool.joined())


def test_a_corpus_with_and_without_its_truth_has_the_same_fingerprint(tmp_path):
    bare = coco_file(tmp_path / "a.json", [image_row()], [annotation()])
    text = json.dumps({"annotations": [annotation(caption="x", category_id=3)], "images": [image_row()]}, indent=3)
    full = written(tmp_path, text)
    moved = coco_file(tmp_path / "b.json", [image_row()], [annotation(bbox=[2, 3, 6, 5])])
    with read_corpus(bare) as one, read_corpus(full) as two, read_corpus(moved) as three:
        assert one.sha256 == two.sha256 != three.sha256


def test_labels_are_read_for_training_only(tmp_path):
    rows = [
        annotation(1, category_id=4, caption=" a cat "),
        annotation(2, category_id="4", caption=""),
        annotation(3, 99, category_id=4),
    ]
    with read_labeled(coco_file(tmp_path / "c.json", [image_row()], rows, {"categories": [{"id": 4}]})) as labeled:
        (image,) = labeled.images()
        assert [(item.region.key, item.category_id, item.caption) for item in image.labels] == [
            ("1", 4, "a cat"),
            ("2", None, None),
        ]
        assert tuple(item.region for item in image.labels) == image.record.regions
        assert list(labeled.regions()) == list(image.labels) and labeled.categories == [{"id": 4}]


def test_ids_that_are_not_positive_whole_numbers_are_kept_as_names_only(tmp_path):
    ids: list[JsonValue] = [0, -3, True, 5.0, "abc", "17", 2**64]
    found = by_key(coco_file(tmp_path / "c.json", [image_row()], [annotation(value) for value in ids]))
    assert {key: (region.region_id, region.annotation_id) for key, region in found.items()} == {
        "0": (0, None),
        "-3": (-3, None),
        "true": ("true", None),
        "5.0": ("5.0", None),
        "abc": ("abc", None),
        "17": ("17", None),
        str(2**64): (2**64, None),
    }


def test_rows_that_share_an_id_get_keys_of_their_own_and_none_keeps_the_id(tmp_path):
    ids: list[JsonValue] = [900393, 5, 900393, "900393", "900393#2", None, [1], "row 6"]
    path = coco_file(tmp_path / "c.json", [image_row()], [annotation(value) for value in ids])
    with read_corpus(path) as corpus:
        (image,) = corpus.images()
        (problem,) = corpus.problems
    assert [(region.key, region.region_id, region.annotation_id) for region in image.regions] == [
        ("900393", 900393, None),
        ("5", 5, 5),
        ("900393#3", 900393, None),
        ("900393#4", "900393", None),
        ("900393#2", "900393#2", None),
        ("row 6#", None, None),
        ("row 7", None, None),
        ("row 6", "row 6", None),
    ]
    assert "900393" in problem.where and "rows 1, 3, 4" in problem.what


def test_keys_are_unique_whatever_the_ids(tmp_path):
    rng = random.Random(3)
    pool: list[JsonValue] = ["a", "a#2", "a#2#2", "row 3", "row 3#", 7, "7", 7.0, None, True, "true", "07", "-0", "--1"]
    ids = [rng.choice(pool) for _ in range(200)]
    with read_corpus(coco_file(tmp_path / "c.json", [image_row()], [annotation(value) for value in ids])) as corpus:
        (image,) = corpus.images()
    assert len({region.key for region in image.regions}) == 200
    kept = [region.annotation_id for region in image.regions if region.annotation_id is not None]
    assert len(set(kept)) == len(kept)


def test_image_rows_that_share_an_id_make_its_regions_unlabelable_naming_both_files(tmp_path):
    images = [image_row(1, "a.png"), image_row(2, "b.png"), image_row(1.0, "c.png")]
    with read_corpus(coco_file(tmp_path / "c.json", images, [annotation(4, 1), annotation(5, 2)])) as corpus:
        first, second = corpus.images()
        assert corpus.num_images == 2 and len(corpus.problems) == 1
        assert "'a.png'" in corpus.problems[0].what and "'c.png'" in corpus.problems[0].what
    assert first.file_name == "a.png" and second.file_name == "b.png"
    assert "'a.png'" in str(first.regions[0].problem) and "'c.png'" in str(first.regions[0].problem)
    assert second.regions[0].problem is None


def test_regions_of_no_image_are_strays_that_say_why(tmp_path):
    rows: list[JsonValue] = [annotation(1, 99), annotation(2, "1"), annotation(3, None), 17, None, [], annotation(4, 1)]
    with read_corpus(coco_file(tmp_path / "c.json", [image_row()], rows)) as corpus:
        strays = {region.key: region.problem for region in corpus.stray_regions()}
        assert corpus.num_regions == 7 and corpus.num_stray_regions == 6 and len(corpus.problems) == 6
        assert [region.key for image in corpus.images() for region in image.regions] == ["4"]
    assert list(strays) == ["1", "2", "3", "row 4", "row 5", "row 6"]
    assert "99 is in no image row" in str(strays["1"]) and '"1" is in no image row' in str(strays["2"])
    assert "no usable image_id" in str(strays["3"]) and "not a JSON object but 17" in str(strays["row 4"])


def test_image_rows_without_an_id_are_left_out_and_reported(tmp_path):
    images: list[JsonValue] = [
        {"file_name": "a.png"},
        image_row(None),
        image_row(True),
        image_row([1]),
        5,
        image_row(2),
    ]
    with read_corpus(coco_file(tmp_path / "c.json", images, [])) as corpus:
        assert [image.row["id"] for image in corpus.images()] == [2]
        assert corpus.num_images == 1 and len(corpus.problems) == 5


@pytest.mark.parametrize(
    "bbox", [[1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, True], [1, 2, 3, None], [1, 2, 3, 10**400], "box", {}]
)
def test_a_bbox_that_is_not_four_numbers_is_no_box_but_stays_on_record(tmp_path, bbox):
    (found,) = by_key(coco_file(tmp_path / "c.json", [image_row()], [annotation(bbox=bbox)])).values()
    assert found.box_xywh is None and found.extra == {"bbox": bbox}


@pytest.mark.parametrize(
    ("width", "expected"), [(640, 640), (640.0, 640), (0, None), (-5, None), (True, None), ("640", None), (640.5, None)]
)
def test_a_size_is_a_positive_whole_number_or_not_stated(tmp_path, width, expected):
    with read_corpus(coco_file(tmp_path / "c.json", [{**image_row(), "width": width}], [])) as corpus:
        assert [image.width_px for image in corpus.images()] == [expected]


def test_an_lvis_row_finds_its_file_by_the_end_of_its_url(tmp_path):
    row = {"id": 1, "coco_url": "http://images.example.org/val2017/000000397133.jpg"}
    with read_corpus(coco_file(tmp_path / "c.json", [row], [])) as corpus:
        assert [image.file_name for image in corpus.images()] == ["val2017/000000397133.jpg"]


def test_numbers_that_json_does_not_have_cost_their_row_at_most(tmp_path):
    digits = "9" * 5000
    text = """{"images": [{"id": 1, "file_name": "a.png", "quality": NaN}], "annotations": [
        {"id": 1, "image_id": 1, "bbox": [NaN, 0, Infinity, 4]},
        {"id": 2, "image_id": 1, "bbox": [1e400, 0, 5, 4]},
        {"id": 3, "image_id": 1, "bbox": [DIGITS, 0, 5, 4], "x": -1e400},
        {"id": 4, "image_id": 1, "bbox": [1, 2, 3, 4], "note": "NaN"}]}""".replace("DIGITS", digits)
    with read_corpus(written(tmp_path, text)) as corpus:
        (image,) = corpus.images()
    assert image.row["quality"] is None
    assert [region.box_xywh for region in image.regions] == [None, None, None, (1, 2, 3, 4)]
    assert image.regions[3].extra == {"note": "NaN"}


def test_odd_texts_survive(tmp_path):
    # A lone surrogate is legal in a JSON escape and has no UTF-8.
    text = r"""{"images": [{"id": "\ud800", "file_name": "\ud800 \u0000.png"}],
        "annotations": [{"id": "\udfff", "image_id": "\ud800"}]}"""
    with read_corpus(written(tmp_path, text)) as corpus:
        (image,) = corpus.images()
    assert image.file_name == "\ud800 \0.png" and image.regions[0].region_id == "\udfff"


def test_a_row_nested_beyond_all_sense_is_a_stray_and_the_rest_is_read(tmp_path):
    deep = "[" * 200 + "]" * 200
    text = f'{{"images":[{{"id":1}}],"annotations":[{{"id":1,"image_id":1,"x":{deep}}},{{"id":2,"image_id":1}}]}}'
    found = by_key(written(tmp_path, text))
    assert found["2"].problem is None and found["row 1"].problem is not None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "expected a JSON object"),
        ("[]", "expected a JSON object"),
        ('[{"image_id": 1}]', "expected a JSON object"),
        ("{", "expected a key"),
        ('{"images": [], "annotations": [}', "line 1: not valid JSON"),
        ('{"images": [],\n\n"annotations": [{"id": 1,}]}', "line 3: not valid JSON"),
        ('{"images": [], "annotations": [{"id": 1} {"id": 2}]}', "expected ',' or ']'"),
        ('{"images": [], "annotations": [{"id": 1}', "got the end of the file"),
        ('{"images": [], "annotations": [{"id": "never closed', "Unterminated string"),
        ('{"images": [], "annotations": []} extra', "expected the end of the file"),
        ('{"images": [], "annotations": []', "expected"),
        ('{"images": {}, "annotations": []}', "images is not a list"),
        ('{"images": []}', "no list of annotations"),
        ("{}", "no list of annotations or images"),
        ('{"images": [], "annotations": [' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_corpus_is_one_clear_error_naming_the_file(tmp_path, text, match):
    with pytest.raises(InputError, match=match) as caught:
        read_corpus(written(tmp_path, text))
    assert "c.json" in str(caught.value)


def test_a_missing_or_binary_file_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_corpus(tmp_path / "missing.json")
    (tmp_path / "c.json").write_bytes(b'{"images": ["\xff\xfe"]}')
    with pytest.raises(InputError, match="UTF-8"):
        read_corpus(tmp_path / "c.json")
    with pytest.raises(InputError, match="temporary"):
        read_corpus(coco_file(tmp_path / "d.json", [], []), spool_dir=str(tmp_path / "not there"))


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + b'{"images": [], "annotations": []}')
    with read_corpus(tmp_path / "c.json") as corpus:
        assert (corpus.num_images, corpus.num_regions) == (0, 0)


class Dripping(io.BytesIO):
    """A stream that gives a few bytes at a time, as a slow connection does."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.step)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64])
def test_where_a_stream_is_cut_into_pieces_changes_nothing(step):
    content = {
        "a": [1, -2.5e-3, 123456, None, True, False, 'x\\"é☂\U0001f600', {"k": [1.5, {"z": []}]}, [], {}],
        "empty": [],
        "whole": {"b": [1, 2]},
        "number": 12345,
        "nan": [1],
    }
    for text in (json.dumps(content), json.dumps(content, ensure_ascii=False, indent=2)):
        found: dict[str, JsonValue] = {}
        for member in stream_members(Dripping(text.encode(), step), "x"):  # type: ignore[arg-type]
            if member.index is None:
                found[member.name] = member.value
            else:
                values = found.setdefault(member.name, [])
                assert isinstance(values, list) and len(values) == member.index
                values.append(member.value)
        assert found == content


def test_the_temporary_file_is_where_it_is_wanted_and_never_stays(tmp_path):
    spool_dir = tmp_path / "spool"
    spool_dir.mkdir()
    path = coco_file(tmp_path / "c.json", [image_row()], [annotation()])
    corpus = read_corpus(path, spool_dir=str(spool_dir))
    if Path("/proc/self/fd").exists():
        links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        assert any(link.startswith(str(spool_dir)) for link in links)
        assert list(spool_dir.iterdir()) == []  # without a name already: even kill -9 leaves nothing
    corpus.close()
    assert list(spool_dir.iterdir()) == []
    with pytest.raises(InputError):
        read_corpus(written(tmp_path, "{"), spool_dir=str(spool_dir))
    assert list(spool_dir.iterdir()) == []


def test_the_join_needs_no_sorting():
    # A sort would hold every row before the first comes out.
    spool = Spool(None)
    spool.finish()
    plan = " ".join(str(row) for row in spool.database.execute("EXPLAIN QUERY PLAN " + JOINED))
    spool.close()
    assert "TEMP B-TREE" not in plan and "regions_image" in plan


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_times_the_corpus_takes_no_more_memory(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from rlabel.corpus.coco import read_corpus
        from rlabel.corpus.sharding import plan_shards
        with read_corpus(sys.argv[1]) as corpus:
            num_regions = sum(shard.num_regions for shard in plan_shards(corpus, 8, 100))
        status = open("/proc/self/status").read()
        print(num_regions, status.split("VmHWM:")[1].split()[0])  # ru_maxrss would count the parent's, too
        """
    )
    peaks = []
    for num_images in (800, 8000):
        images = [image_row(number) for number in range(num_images)]
        polygon: list[JsonValue] = [[float(number) for number in range(200)]]
        regions = [annotation(n, n % num_images, segmentation=polygon) for n in range(4 * num_images)]
        path = coco_file(tmp_path / f"{num_images}.json", images, regions)
        run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
        num_regions, peak_kib = map(int, run.stdout.split())
        assert num_regions == 4 * num_images
        peaks.append(peak_kib)
    # 42 MB of JSON: held as objects they would take several times that; SQLite's page cache may grow to its 32 MiB.
    assert path.stat().st_size > 35_000_000
    assert peaks[1] - peaks[0] < 34 * 1024 + 8 * 1024
