"""Readers of Visual Genome and RefCOCO: captions, relationships and referring expressions."""

from __future__ import annotations

import json
import math
import pickle
from contextlib import redirect_stdout
from io import StringIO

import pytest
from pycocotools.coco import COCO

from dataset_factories import (
    refcoco_folder,
    refcoco_instances,
    refcoco_refs,
    reference,
    vg_description,
    visual_genome_folder,
    visual_genome_rows,
    write_json,
)
from rlabel.corpus.labeled import LabeledImage, LabeledSource, Relation
from rlabel.corpus.limits import Limits
from rlabel.corpus.open import open_labeled
from rlabel.errors import InputError, UsageError
from rlabel.storage import Store


def read(source: LabeledSource) -> list[LabeledImage]:
    with source:
        return list(source.images())


def boxes(image: LabeledImage) -> dict[str, tuple[float, ...] | None]:
    return {label.region.key: label.region.box_xywh for label in image.labels}


# Visual Genome.


def test_descriptions_are_captions_and_objects_have_names(tmp_path):
    first, second = read(open_labeled("visual_genome", visual_genome_folder(tmp_path)))
    assert [first.record.file_name, second.record.file_name] == ["VG_100K_2/1.jpg", "VG_100K/2.jpg"]
    assert (first.record.width_px, first.record.height_px, first.record.row["id"]) == (800, 600, 1)
    assert boxes(first) == {
        "1382": (421, 57, 82, 139),
        "1383": (194, 372, 362, 52),
        "object 1058498": (421, 91, 79, 339),
        "object 1058508": (77, 328, 714, 262),
        "object 5045": (119, 338, 274, 192),
    }
    assert [(label.region.region_id, label.caption, label.names) for label in first.labels] == [
        (1382, "the clock is green in colour", ()),
        (1383, "shade is along the street", ()),
        (1058498, None, ("clock",)),
        (1058508, None, ("street", "road")),
        (5045, None, ("shade",)),
    ]
    assert [label.caption for label in second.labels] == ["road with a yellow line"]
    assert all(label.category_id is None and label.region.extra == {} for label in first.labels)
    assert first.record.regions == tuple(label.region for label in first.labels)


def test_relationships_join_objects_also_where_one_was_merged_into_another(tmp_path):
    # objects.json has street 5046 under 1058508, and has no shade 5045.
    first, second = read(open_labeled("visual_genome", visual_genome_folder(tmp_path)))
    assert first.relations == (
        Relation(subject_key="object 5045", predicate="ON", object_key="object 1058508"),
        Relation(subject_key="object 1058508", predicate="next to", object_key="object 1058498"),
    )
    assert second.relations == ()


def test_a_relationship_may_name_the_objects_merged_into_its_own(tmp_path):
    files = visual_genome_rows()
    end = files["relationships.json"][0]["relationships"][0]["object"]
    end.update(object_id=4, merged_object_ids=[3, 1058508])  # version 1.4
    first, _ = read(open_labeled("visual_genome", visual_genome_folder(tmp_path, files)))
    assert first.relations[0].object_key == "object 1058508" and "object 4" not in boxes(first)


def test_an_image_whose_id_is_used_twice_has_neither_regions_nor_relations(tmp_path):
    files = visual_genome_rows()
    files["image_data.json"].append(files["image_data.json"][0])
    first, second = read(open_labeled("visual_genome", visual_genome_folder(tmp_path, files)))
    assert (first.labels, first.relations) == ((), ()) and len(second.labels) == 1


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("region_descriptions.json", ["1382", "1383"]),
        ("objects.json", ["object 1058498", "object 1058508"]),
        ("relationships.json", ["object 5045", "object 5046", "object 1058498"]),
    ],
)
def test_one_file_is_read_alone_when_it_is_named(tmp_path, name, keys):
    images = read(open_labeled("visual_genome", visual_genome_folder(tmp_path) / name))
    assert [label.region.key for label in images[0].labels] == keys
    assert len(images[0].relations) == (2 if name == "relationships.json" else 0)


def test_the_first_releases_of_visual_genome_have_id_for_image_id_and_region_id(tmp_path):
    files = visual_genome_rows()
    images, described = files["image_data.json"], files["region_descriptions.json"]
    for row in images:
        row["id"] = row.pop("image_id")
    for row in described:
        for region in row["regions"]:
            region["id"] = region.pop("region_id")
            region["image"] = region.pop("image_id")
    only = {"image_data.json": images, "region_descriptions.json": described}
    found = read(open_labeled("visual_genome", visual_genome_folder(tmp_path, only)))
    assert [label.region.key for image in found for label in image.labels] == ["1382", "1383", "4091"]


def test_keys_stay_unique_when_an_id_is_used_again(tmp_path):
    files = visual_genome_rows()
    files["region_descriptions.json"][1]["regions"].append(vg_description(1382, 2, "a wheel", 1, 2, 3, 4))
    files["objects.json"][1]["objects"] = [{**files["objects.json"][0]["objects"][0], "names": ["wheel"]}]
    clock, wheel = (
        files["objects.json"][0]["objects"][0],
        {"object_id": 9, "x": 1, "y": 2, "w": 3, "h": 4, "name": "car"},
    )
    files["relationships.json"][1]["relationships"] = [{"predicate": "of", "subject": clock, "object": wheel}]
    first, second = read(open_labeled("visual_genome", visual_genome_folder(tmp_path, files)))
    assert list(boxes(first))[:3] == ["1382", "1383", "object 1058498"]
    assert list(boxes(second)) == ["4091", "1382#2", "object 1058498#2", "object 9"]
    # Neither of two regions with one id may keep it as an annotation's own.
    assert first.labels[0].region.annotation_id is None and first.labels[1].region.annotation_id == 1383
    assert second.relations == (Relation(subject_key="object 1058498#2", predicate="of", object_key="object 9"),)


def test_bad_rows_of_visual_genome_are_left_out_and_counted(tmp_path):
    files = visual_genome_rows()
    files["region_descriptions.json"][0]["regions"] += [
        vg_description(1, 1, "no width", 1, 2, 0, 4),
        vg_description(2, 1, "no place", math.nan, 2, 3, 4),
        vg_description(3, 1, "  ", 1, 2, 3, 4),
        17,  # type: ignore[list-item]
    ]
    files["region_descriptions.json"].append(
        {"id": 99, "regions": [vg_description(4, 99, "of no image", 1, 2, 3, 4)] * 5}
    )
    files["image_data.json"].append({"image_id": 3, "width": 5, "height": 5})
    files["objects.json"][0]["objects"] += [
        {"object_id": 8, "names": [], "x": 1, "y": 1, "w": 1, "h": 1},
        {"object_id": None},
    ]
    files["objects.json"] += [5]  # type: ignore[list-item]
    good = files["relationships.json"][0]["relationships"][0]
    files["relationships.json"][0]["relationships"] += [
        {**good, "predicate": ""},
        {**good, "relationship_id": 21, "subject": {**good["subject"], "object_id": 6, "w": 0}},
        {**good, "relationship_id": 22, "subject": good["object"]},
        {**good, "relationship_id": 23, "object": None},
    ]
    with open_labeled("visual_genome", visual_genome_folder(tmp_path, files)) as source:
        first, _ = source.images()
        found = {problem.where: problem.what for problem in source.problems}
        assert source.num_skipped == 4 + 5 + 1 + 2 + 1 + 4 and source.num_skipped == len(source.problems) + 4
    assert len(first.labels) == 5 and len(first.relations) == 2
    assert "no positive width" in found["region_descriptions.json, region 1"]
    assert "not four finite" in found["region_descriptions.json, region 2"]
    assert "image_data.json" in found["region_descriptions.json, row 3"]
    assert "image_id and url" in found["image_data.json, row 3"]
    assert (
        "subject" in found["relationships.json, relationship 21"]
        and "one" in found["relationships.json, relationship 22"]
    )


def test_an_image_has_no_more_regions_than_the_limit(tmp_path):
    with open_labeled(
        "visual_genome", visual_genome_folder(tmp_path), limits=Limits(max_regions_per_image=1)
    ) as source:
        first, _ = source.images()
        assert "1382" in boxes(first) and "1383" not in boxes(first) and len(first.relations) == 1
        assert source.num_skipped == 3 and "max_regions_per_image" in source.problems[0].what


def test_wrong_files_of_visual_genome_are_one_clear_error(tmp_path):
    files = visual_genome_rows()
    without = visual_genome_folder(tmp_path / "a", {name: files[name] for name in files if name != "image_data.json"})
    with pytest.raises(InputError, match=r"image_data.json: there is no such file.*Put it beside"):
        open_labeled("visual_genome", without)
    swapped = visual_genome_folder(tmp_path / "b", {**files, "objects.json": files["relationships.json"]})
    with pytest.raises(InputError, match="objects.json, row 1: expected Visual Genome's layout"):
        open_labeled("visual_genome", swapped)
    strange = visual_genome_folder(
        tmp_path / "c", {**files, "image_data.json": [{**files["image_data.json"][0], "image_id": 77}]}
    )
    with pytest.raises(InputError, match="at least one usable region") as caught:
        open_labeled("visual_genome", strange)
    assert "region_descriptions.json, row 1: its image is not in image_data.json" in str(caught.value)
    twins = visual_genome_folder(tmp_path / "d", {**files, "image_data.json": files["image_data.json"] * 2})
    with pytest.raises(InputError, match="at least one usable region"):
        open_labeled("visual_genome", twins)


# RefCOCO.


def expressions(images: list[LabeledImage]) -> dict[str, tuple[str, ...]]:
    return {label.region.key: label.expressions for image in images for label in image.labels}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_expressions_join_their_regions_beside_the_others_of_the_image(tmp_path, protocol):
    folder = refcoco_folder(tmp_path, protocol=protocol)
    with open_labeled("refcoco", folder / "refs(unc).p", "train") as source:
        images = list(source.images())
        assert source.problems == [] and source.categories[18].name == "dog"
    with redirect_stdout(StringIO()):
        coco = COCO(str(folder / "instances.json"))
    (image,) = images
    assert image.record.file_name == coco.imgs[581857]["file_name"] == "COCO_train2014_000000581857.jpg"
    assert {key: list(box or ()) for key, box in boxes(image).items()} == {
        str(row["id"]): row["bbox"] for row in coco.loadAnns(coco.getAnnIds(imgIds=581857))
    }
    assert expressions(images) == {
        "1719310": ("the lady with the blue shirt", "lady w back to us"),
        "489046": ("boy",),
        "77": (),
    }


@pytest.mark.parametrize(
    ("split", "keys"), [("train", ["1719310", "489046"]), ("val", ["3007"]), ("testA", ["1719310"])]
)
def test_a_split_has_its_own_expressions_only(tmp_path, split, keys):
    folder = refcoco_folder(tmp_path)
    found = expressions(read(open_labeled("refcoco", folder, split)))
    assert [key for key in found if found[key]] == keys
    # What pickle itself gives, joined by hand.
    by_hand: dict[str, list[str]] = {}
    for ref in pickle.loads((folder / "refs(unc).p").read_bytes()):
        if ref["split"] == split:
            by_hand.setdefault(str(ref["ann_id"]), []).extend(sentence["sent"] for sentence in ref["sentences"])
    assert {key: list(texts) for key, texts in found.items() if texts} == by_hand


def test_references_as_json_are_the_same(tmp_path):
    images = read(open_labeled("refcoco", refcoco_folder(tmp_path), "train"))
    for number, content in enumerate([refcoco_refs(), {"refs": refcoco_refs()}]):
        path = write_json(tmp_path / f"refs{number}.json", content)
        assert read(open_labeled("refcoco", path, "train")) == images == read(open_labeled("auto", path, "train"))


def test_a_pickle_of_python_2_with_texts_in_bytes_is_read(tmp_path):
    # As cPickle.dumps([{'split': 'val', ..., 'raw': 'caf\xc3\xa9'}], 0) wrote it.
    refcoco_folder(tmp_path)
    (tmp_path / "refs(google).p").write_bytes(
        b"(lp1\n(dp2\nS'split'\np3\nS'val'\np4\nsS'ann_id'\np5\nL3007L\nsS'ref_id'\np6\nI7\nsS'image_id'\nI98304\n"
        b"sS'sentences'\np8\n(lp9\n(dp10\nS'raw'\nS'caf\\xc3\\xa9'\nsasa."
    )
    assert expressions(read(open_labeled("refcoco", tmp_path / "refs(google).p", "val")))["3007"] == ("café",)


@pytest.mark.parametrize("split", ["test", "testB", "Train", ""])
def test_a_split_that_is_missing_is_an_error_that_names_those_there_are(tmp_path, split):
    with pytest.raises(InputError, match=r"refs\(unc\).p: expected the split") as caught:
        open_labeled("refcoco", refcoco_folder(tmp_path), split)
    assert "train (2 references), testA (1 references), val (1 references)" in str(caught.value)


def test_no_split_at_all_is_a_usage_error_that_names_them(tmp_path):
    with pytest.raises(UsageError, match="Name one of: train"):
        open_labeled("refcoco", refcoco_folder(tmp_path))


def test_references_that_do_not_join_are_left_out_and_counted(tmp_path):
    instances = refcoco_instances()
    instances["annotations"] += [
        {**instances["annotations"][0], "id": 500, "segmentation": [], "bbox": [1, 1, 0, 1]},
        {**instances["annotations"][0], "id": 501},
        {**instances["annotations"][0], "id": 501},
    ]
    odd = [
        reference(10, 4, 98304, "val", ["gone"]),
        reference(11, 500, 98304, "val", ["flat"]),
        reference(12, 501, 98304, "val", ["twice"]),
        reference(13, 3007, 581857, "val", ["elsewhere"]),
        reference(14, 3007, 98304, "val", ["", "x" * 5000]),
        {"split": "val"},
        5,
    ]
    with open_labeled("refcoco", refcoco_folder(tmp_path, refcoco_refs() + odd, instances), "val") as source:
        found = {problem.where.split(", ")[-1]: problem.what for problem in source.problems}
        labels = [label for image in source.images() for label in image.labels if label.expressions]
        assert source.num_skipped == 7 + 1  # and the flat annotation itself
    assert [(label.region.key, label.expressions) for label in labels] == [("3007", ("dog on left",))]
    assert "no annotations" in found["ref 10"] and "no positive width" in found["ref 11"]
    assert "several annotations" in found["ref 12"] and "image_id" in found["ref 13"]
    assert "no sentence" in found["ref 14"] and "row 10" in found and "row 11" in found


def test_wrong_files_of_refcoco_are_one_clear_error(tmp_path):
    alone = refcoco_folder(tmp_path / "a")
    (alone / "instances.json").unlink()
    with pytest.raises(InputError, match=r"instances.json: there is no such file.*Put it beside"):
        open_labeled("refcoco", alone, "val")
    several = refcoco_folder(tmp_path / "b")
    (several / "refs(google).p").write_bytes(b"")
    with pytest.raises(InputError, match=r"got refs\(google\).p, refs\(unc\).p. Name the file itself"):
        open_labeled("refcoco", several, "val")
    instances = refcoco_instances()
    instances["annotations"] = instances["annotations"][1:]
    with pytest.raises(
        InputError, match="split val: expected at least one usable region, got none of 1 references"
    ) as caught:
        open_labeled("refcoco", refcoco_folder(tmp_path / "c", instances=instances), "val")
    assert "ref 3: no annotations of instances.json have its ann_id 3007" in str(caught.value)
    instances["categories"].pop()
    with pytest.raises(InputError, match="instances.json, annotation 77: expected a category_id"):
        open_labeled("refcoco", refcoco_folder(tmp_path / "d", instances=instances), "train")
    for number, refs in enumerate(([], {"a": 1}, [{"ann_id": 5}], [5], "text")):
        with pytest.raises(InputError, match="expected|looks like"):
            open_labeled("refcoco", refcoco_folder(tmp_path / f"e{number}", refs=refs, protocol=2), "val")


def test_a_cut_pickle_is_a_broken_one(tmp_path):
    folder = refcoco_folder(tmp_path)
    (folder / "refs(unc).p").write_bytes((folder / "refs(unc).p").read_bytes()[:-20])
    with pytest.raises(InputError, match="a broken pickle"):
        open_labeled("refcoco", folder, "val")


def test_references_shared_inside_a_pickle_cannot_go_on_for_ever(tmp_path):
    one = reference(0, 3007, 98304, "val", ["dog"] * 2000)
    folder = refcoco_folder(tmp_path, [one] * 20_000)  # 40 million expressions in some hundred kilobytes
    with pytest.raises(InputError, match="repeats its values"):
        open_labeled("refcoco", folder, "val")


def test_a_pickle_beyond_the_limit_is_refused(tmp_path):
    with pytest.raises(InputError, match="at most 100 bytes"):
        open_labeled("refcoco", refcoco_folder(tmp_path), "val", limits=Limits(max_file_bytes=100))


def test_a_folder_at_a_url_is_read_like_a_local_one(tmp_path):
    local = refcoco_folder(tmp_path)
    remote = Store.open("memory://readers/refcoco")
    for name in ("instances.json", "refs(unc).p"):
        remote.put(name, (local / name).read_bytes())
    for url in ("memory://readers/refcoco", "memory://readers/refcoco/refs(unc).p"):
        assert read(open_labeled("auto", url, "train")) == read(open_labeled("auto", local, "train"))
    genome = Store.open("memory://readers/vg")
    for name, rows in visual_genome_rows().items():
        genome.put(name, json.dumps(rows).encode())
    assert read(open_labeled("auto", "memory://readers/vg")) == read(
        open_labeled("auto", visual_genome_folder(tmp_path / "vg"))
    )
