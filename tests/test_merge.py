"""labels.json, abstained.jsonl and failures.jsonl: every image and every region once, the same bytes in any order."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlabel.errors import InputError, RunError
from rlabel.records import JsonObject, JsonValue, Outcome, ShardResult
from rlabel.run.directory import RunDirectory
from rlabel.run.merge import MergeCounts
from rlabel.schema_files import validate
from rlabel.storage import Store
from run_factories import (
    CATEGORIES,
    abstention,
    begin_run,
    box_polygon,
    box_rle,
    committed_run,
    failure,
    image_row,
    label,
    manifest,
    region,
    shard_result,
)

FILES = ("labels.json", "abstained.jsonl", "failures.jsonl", "labels.bbox.json", "labels.segm.json")
RESULTS = [shard_result(index) for index in range(4)]


def one_shard(*outcomes: Outcome, images: tuple[JsonObject, ...] = (image_row(1),)) -> ShardResult:
    return ShardResult(index=0, images=images, outcomes=outcomes)


def merged(folder: Path, *results: ShardResult) -> dict[str, Any]:
    committed_run(folder, results).merge()
    document: dict[str, Any] = json.loads((folder / "labels.json").read_bytes())
    return document


def labels_made(folder: Path, *outcomes: Outcome) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = merged(folder, one_shard(*outcomes))["annotations"]
    return rows


def lines(path: Path) -> list[JsonObject]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_every_region_ends_in_exactly_one_file(tmp_path: Path) -> None:
    counts = committed_run(tmp_path, RESULTS).merge()
    document = json.loads((tmp_path / "labels.json").read_bytes())
    abstained, failures = lines(tmp_path / "abstained.jsonl"), lines(tmp_path / "failures.jsonl")
    assert counts == MergeCounts(
        images=12,
        regions=32,
        labels=len(document["annotations"]),
        abstentions=len(abstained),
        failures=len(failures),
        failures_by_kind=dict(Counter(str(line["kind"]) for line in failures)),
    )
    assert min(counts.labels, counts.abstentions, counts.failures) > 0
    assert counts.labels + counts.abstentions + counts.failures == 32
    expected = Counter(o.region.region_id for result in RESULTS for o in result.outcomes)
    got = Counter(a["attributes"]["region_id"] for a in document["annotations"])
    got.update(line["region_id"] for line in abstained + failures)
    assert got == expected
    validate(document, "labels", "labels.json")


def test_image_rows_come_back_verbatim_in_order_also_without_regions(tmp_path: Path) -> None:
    rows: tuple[JsonObject, ...] = (
        image_row(1, neg_category_ids=[3], coco_url="http://x/1.jpg"),
        {"id": "x", "file_name": None},
        image_row(0),
    )
    document = merged(tmp_path, one_shard(images=rows), ShardResult(index=1, images=(image_row(1),), outcomes=()))
    assert document["images"] == [*rows, image_row(1)]
    assert document["annotations"] == []


def test_a_run_of_no_shards_is_an_empty_coco_file(tmp_path: Path) -> None:
    assert begin_run(tmp_path, 0).merge(results_files=True) == MergeCounts(
        images=0, regions=0, labels=0, abstentions=0, failures=0
    )
    document = json.loads((tmp_path / "labels.json").read_bytes())
    assert (document["images"], document["annotations"]) == ([], [])
    assert (tmp_path / "failures.jsonl").read_bytes() == b""
    assert json.loads((tmp_path / "labels.segm.json").read_bytes()) == []


def test_categories_and_header_are_kept_and_info_tells_what_made_the_labels(tmp_path: Path) -> None:
    document = merged(tmp_path, one_shard())
    assert document["categories"] == list(CATEGORIES)
    assert document["licenses"] == [{"id": 1, "name": "CC0"}]
    made_by = manifest(1)
    assert document["info"] == {
        "description": "made up",
        "rlabel": {
            "version": "0.1.0",
            "run": made_by.fingerprint,
            "settings": made_by.settings,
            "input": {"sha256": "a" * 64, "num_images": 3, "num_regions": 12},
        },
    }


def test_a_header_of_any_shape_does_no_harm(tmp_path: Path) -> None:
    header: JsonObject = {"info": [1], "images": "no", "annotations": 1, "type": "instances", "x": float("inf")}
    store = Store.open(tmp_path)
    run = RunDirectory.create_or_resume(store, manifest(1, header=header))
    run.commit(one_shard())
    run.merge()
    document = json.loads(store.read("labels.json"))
    assert (document["images"], document["type"], document["x"]) == ([image_row(1)], "instances", "inf")
    assert set(document["info"]) == {"rlabel"}


def test_an_annotation_says_what_was_seen_and_how_sure_it_is(tmp_path: Path) -> None:
    polygon = box_polygon(4, 6, 20, 10)
    (annotation,) = labels_made(tmp_path, label(region("r", 5), segmentation=polygon, score=0.125))
    assert annotation == {
        "id": 5,
        "image_id": 1,
        "category_id": 7,
        "bbox": [4.0, 6.0, 20.0, 10.0],
        "area": 200.0,
        "iscrowd": 0,
        "segmentation": polygon,
        "score": 0.125,
        "attributes": {
            "region_id": 5,
            "status": "labeled",
            "text": "a cat",
            "text_score": 0.75,
            "similarity": 0.875,
            "margin": 0.25,
            "decided_by": "embedding",
            "num_tokens": 3,
            "mean_logprob": -0.25,
            "min_logprob": -0.5,
            "agreement": 0.75,
            # exp(-0.5) of exp(-0.5) + exp(-1.25)
            "candidate_share": 0.679179,
            "runner_up_id": 2,
            "run_id": manifest(1).fingerprint[:12],
        },
    }


def test_the_inputs_other_keys_are_kept_where_they_do_not_collide(tmp_path: Path) -> None:
    extra: JsonObject = {
        "track": 3,
        "area": 1,
        "id": 9,
        "score": 1,
        "caption": "a cat",
        "label": "cat",
        "attributes": {"occluded": True, "text": "theirs", "label": "cat"},
    }
    (annotation,) = labels_made(tmp_path, label(region("r", 5, extra=extra)))
    assert (annotation["track"], annotation["area"], annotation["id"], annotation["score"]) == (3, 200.0, 5, 0.5)
    assert not {"caption", "label"} & annotation.keys()
    attributes = annotation["attributes"]
    assert isinstance(attributes, dict)
    assert (attributes["occluded"], attributes["text"]) == (True, "a cat")
    assert "label" not in attributes


def test_a_kept_id_stays_and_a_new_one_comes_after_the_largest_of_all_regions(tmp_path: Path) -> None:
    outcomes: list[Outcome] = [
        label(region("a", None, region_id="a")),
        label(region("b", 70)),
        abstention(region("c", 500)),
        label(region("d", None, region_id=-3)),
        failure(region("e", 90)),
    ]
    rows = labels_made(tmp_path, *outcomes)
    got = [(row["id"], row["attributes"]["region_id"]) for row in rows]
    assert got == [(501, "a"), (70, 70), (502, -3)], "500 stays free for the region that abstained"


def test_new_ids_start_at_1(tmp_path: Path) -> None:
    assert [row["id"] for row in labels_made(tmp_path, label(region("a")), label(region("b")))] == [1, 2]


def test_what_was_a_crowd_is_written_as_no_crowd_and_says_so(tmp_path: Path) -> None:
    (annotation,) = labels_made(tmp_path, label(region("a", is_crowd=True), segmentation=box_rle(4, 6, 20, 10)))
    assert annotation["iscrowd"] == 0
    assert annotation["attributes"]["was_crowd"] is True


@pytest.mark.parametrize("nothing", [None, []])
def test_a_region_of_only_a_box_gets_its_corners_and_says_so(tmp_path: Path, nothing: JsonValue) -> None:
    (annotation,) = labels_made(tmp_path, label(region("a"), box=(4, 6, 20, 10), segmentation=nothing))
    assert annotation["segmentation"] == [[4.0, 6.0, 4.0, 16.0, 24.0, 16.0, 24.0, 6.0]]
    assert annotation["attributes"]["segmentation_from"] == "box"


def test_abstentions_and_failures_name_region_picture_and_reason(tmp_path: Path) -> None:
    odd_image = failure(region("stray", 4), image_id=[1], kind="region", reason="no image row has this id")
    merged(tmp_path, one_shard(abstention(region("a", 2)), failure(region("b#2", None, region_id="b")), odd_image))
    assert lines(tmp_path / "abstained.jsonl") == [
        {
            "kind": "abstention",
            "region_id": 2,
            "region_key": "a",
            "image_id": 1,
            "file_name": "1.jpg",
            "reason": "similarity 0.875 is below 0.9",
            "text": "a thing",
            "text_score": 0.3,
            "nearest_name": "cat",
            "similarity": 0.875,
            "margin": 0.25,
            "num_tokens": 0,
            "mean_logprob": 0.0,
            "min_logprob": 0.0,
            "bbox": [1.0, 2.0, 3.0, 4.0],
            "area": 12.0,
        }
    ]
    common = {"image_id": 1, "file_name": "1.jpg", "kind": "image", "reason": "1.jpg: cut off"}
    assert lines(tmp_path / "failures.jsonl") == [
        {"region_id": "b", "region_key": "b#2", **common},
        {
            "region_id": 4,
            "region_key": "stray",
            "image_id": [1],
            "file_name": None,
            "kind": "region",
            "reason": "no image row has this id",
        },
    ]


def test_an_image_id_that_two_rows_share_names_no_single_file(tmp_path: Path) -> None:
    rows = (image_row(1), image_row(1, file_name="twin.jpg"))
    document = merged(tmp_path, one_shard(failure(region("a")), images=rows))
    assert document["images"] == list(rows)
    assert lines(tmp_path / "failures.jsonl")[0]["file_name"] is None


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(order=st.permutations(RESULTS))
def test_the_order_of_commits_does_not_change_a_byte(
    order: list[ShardResult], tmp_path_factory: pytest.TempPathFactory
) -> None:
    reference, other = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    for folder, results in ((reference, RESULTS), (other, order)):
        committed_run(folder, results).merge(results_files=True)
    for name in FILES:
        assert (reference / name).read_bytes() == (other / name).read_bytes(), name


def test_merging_again_gives_the_same_bytes(tmp_path: Path) -> None:
    run = committed_run(tmp_path, RESULTS)
    run.merge(results_files=True)
    before = [(tmp_path / name).read_bytes() for name in FILES]
    run.merge(results_files=True)
    assert [(tmp_path / name).read_bytes() for name in FILES] == before


def test_the_bytes_are_the_same_in_an_object_store(tmp_path: Path) -> None:
    committed_run(tmp_path, RESULTS).merge()
    run = committed_run(f"memory://{tmp_path.name}", RESULTS)
    run.merge()
    for name in FILES[:3]:
        assert run.store.read(name) == (tmp_path / name).read_bytes()


def test_a_missing_shard_stops_the_merge_unless_a_partial_one_is_asked_for(tmp_path: Path) -> None:
    run = begin_run(tmp_path, 3)
    for index in (0, 2):
        run.commit(RESULTS[index])
    with pytest.raises(RunError, match="expected 3 committed shards, got 2; the first missing one is 1"):
        run.merge()
    assert not (tmp_path / "labels.json").exists()
    counts = run.merge(partial=True)
    assert counts.regions == len(RESULTS[0].outcomes) + len(RESULTS[2].outcomes)


def test_a_shard_damaged_after_the_first_look_leaves_the_old_labels(tmp_path: Path) -> None:
    run = committed_run(tmp_path, RESULTS)
    run.merge()
    before = (tmp_path / "labels.json").read_bytes()
    path = tmp_path / "shards" / "000003.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"area":', b'"arex":', 1))
    with pytest.raises(RunError, match="000003"):
        run.merge()
    assert (tmp_path / "labels.json").read_bytes() == before


def test_memory_stays_flat_when_the_corpus_grows(tmp_path: Path) -> None:
    def peak_bytes(num_shards: int) -> int:
        folder = tmp_path / str(num_shards)
        run = begin_run(folder, num_shards)
        for index in range(num_shards):
            run.commit(shard_result(index, num_images=6, num_regions=10))
        tracemalloc.start()
        run.merge(results_files=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1)  # imports and caches
    assert peak_bytes(40) < 1.5 * peak_bytes(4)


def test_results_files_hold_boxes_and_masks_apart(tmp_path: Path) -> None:
    outcomes: list[Outcome] = [
        label(region("a"), box=(4, 6, 20, 10), segmentation=box_polygon(4, 6, 20, 10), score=0.25),
        label(region("b"), box=(4, 6, 20, 10), segmentation=box_rle(4, 6, 20, 10)),
        label(region("c"), box=(4, 6, 20, 10)),
        abstention(region("d")),
    ]
    counts = committed_run(tmp_path, [one_shard(*outcomes)]).merge(results_files=True)
    boxes, masks = (json.loads((tmp_path / name).read_bytes()) for name in FILES[3:])
    assert boxes[0] == {"image_id": 1, "category_id": 7, "bbox": [4.0, 6.0, 20.0, 10.0], "score": 0.25}
    assert [row["segmentation"] for row in masks] == [box_rle(4, 6, 20, 10)] * 3
    assert all("bbox" not in row for row in masks)
    assert (len(boxes), counts.without_segm_result) == (3, 0)


def test_a_mask_that_cannot_be_drawn_is_left_out_of_its_results_file_and_counted(tmp_path: Path) -> None:
    rows: tuple[JsonObject, ...] = ({"id": 1, "file_name": "1.jpg"},)
    outcomes = [label(region("a"), segmentation=box_polygon(4, 6, 20, 10))]
    counts = committed_run(tmp_path, [one_shard(*outcomes, images=rows)]).merge(results_files=True)
    assert counts.without_segm_result == 1
    assert json.loads((tmp_path / "labels.segm.json").read_bytes()) == []


@pytest.mark.parametrize("change", [{"id": 0}, {"iscrowd": 1}, {"score": 2}, {"area": 0}, {"bbox": [1, 2, 3]}])
def test_the_labels_schema_refuses_what_readers_stumble_over(tmp_path: Path, change: JsonObject) -> None:
    document = merged(tmp_path, one_shard(label(region("a"))))
    validate(document, "labels", "labels.json")
    document["annotations"][0].update(change)
    with pytest.raises(InputError, match=r"annotations\[0\]"):
        validate(document, "labels", "labels.json")


def test_a_lone_surrogate_in_a_text_does_not_spoil_the_file(tmp_path: Path) -> None:
    (annotation,) = labels_made(tmp_path, label(region("a"), text="\ud83d cat \u2028"))
    assert annotation["attributes"]["text"] == "\ud83d cat \u2028"


def test_merge_counts_are_plain_data() -> None:
    counts = MergeCounts(images=1, regions=1, labels=1, abstentions=0, failures=0)
    assert dataclasses.asdict(counts)["failures_by_kind"] == {}
