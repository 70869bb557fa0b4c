"""`rlabel ablate`: patches of pictures are exact, cells are kept, and tables say what the paper found beside what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import model_factories
from rlabel.cli.ablate import AblateJob, _trained_for, run_ablate
from rlabel.cli.main import main
from rlabel.corpus.inputs import prepare_image
from rlabel.corpus.limits import Limits
from rlabel.errors import InputError, UsageError
from rlabel.evaluation.ablations import (
    Claim,
    Row,
    Table,
    modes_to_markdown,
    summarise,
    table_to_markdown,
    told,
    variants_of,
)
from rlabel.evaluation.evaluate import evaluate_run
from rlabel.storage import Store
from rlabel.training.ablation import AblationOptions, SeenTower, build, measure
from rlabel.training.cells import GIVEN, Cell, Variant, append_cells, read_cells
from rlabel.training.parts import load_corpus
from rlabel.training.patches import Scenes, changed_mask, cut_patches, lay_sheets, look
from train_factories import COLOURS, Files, edit, labeled_corpus

MASK = Variant()


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder of a small tower with maps of 8 x 8 cells."""
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(2)
    from transformers import AutoModel

    AutoModel.from_config(model_factories.vision_config("dinov2", 64)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return labeled_corpus(tmp_path_factory.mktemp("corpus"), num_images=6, regions_per_image=3)


def options(tower: str, **more: Any) -> AblationOptions:
    return AblationOptions(**{"vision": tower, "epochs": 2.0, "images_per_batch": 4, **more})


def seen(files: Files, tower: str, folder: Path, variant: Variant = MASK) -> tuple[Any, Any, Any, Scenes]:
    """Return (corpus, model, processor, scenes)."""
    corpus = load_corpus(str(files.images), str(files.annotations))
    model, processor = build(variant, options(tower), corpus.all_names)
    return corpus, model, processor, look(corpus, model, processor, folder / "maps.npy", print)


# Patches


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize(("refine", "tokens"), [(True, 1), (False, 1), (True, 4)])
def test_region_tokens_of_patches_are_those_of_whole_pictures(
    files: Files, tower: str, tmp_path: Path, refine: bool, tokens: int, given: Any
) -> None:
    corpus, model, processor, scenes = seen(files, tower, tmp_path, Variant(refine=refine, tokens_per_region=tokens))
    assert model.config.refine is refine and processor.image_processor.mask_side == (32 if refine else 8)
    wanted = []
    for image in corpus.images:
        prepared = prepare_image(Store.open(str(files.images)), image.record, Limits())
        assert prepared.pixels_HWC is not None
        masks = [changed_mask(region.mask, given) for region in prepared.regions]
        inputs = processor.image_processor.prepare(prepared.pixels_HWC, masks)
        with torch.no_grad():
            maps_1CHW = model.coarse_maps(inputs.pixels_3SS[None]).half().float()
            refined = model.refine_maps(maps_1CHW)[0]
            wanted.append(
                model.encode_regions(refined, inputs.region_masks_RGG, torch.zeros(len(masks), dtype=torch.long))
            )
    patches = [patch for own in cut_patches(scenes, given, processor.image_processor.mask_side) for patch in own]
    order = torch.tensor(sorted(range(len(patches)), key=lambda i: -patches[i].map_CHW.shape[1]))
    sheets = lay_sheets(patches, 8, 4 if refine else 1)
    assert 1 < len(sheets) < len(patches)
    model.vision_tower = SeenTower()
    with torch.no_grad():
        got = []
        for sheet in sheets:
            maps = model.refine_maps(model.coarse_maps(sheet.inputs.pixels_3SS[None]))[0]
            masks_RGG = sheet.inputs.region_masks_RGG
            got.append(model.encode_regions(maps, masks_RGG, torch.zeros(len(masks_RGG), dtype=torch.long)))
    assert [name for sheet in sheets for name in sheet.names] == [patches[i].name for i in order]
    torch.testing.assert_close(torch.cat(got), torch.cat(wanted)[order], rtol=1e-4, atol=1e-5)


def test_maps_that_are_kept_are_read_back_and_those_of_another_corpus_refused(
    files: Files, tower: str, tmp_path: Path
) -> None:
    corpus, model, processor, scenes = seen(files, tower, tmp_path)
    assert scenes.maps_NCHW.dtype == np.float16 and scenes.maps_NCHW.shape == (6, 32, 8, 8)
    model.vision_tower = None  # it is not asked again
    again = look(corpus, model, processor, tmp_path / "maps.npy", print)
    assert np.array_equal(again.maps_NCHW, scenes.maps_NCHW) and np.abs(again.maps_NCHW).sum() > 0
    np.save(tmp_path / "maps.npy", np.zeros((5, 32, 8, 8), np.float16))
    with pytest.raises(InputError, match="maps of 6 pictures"):
        look(corpus, model, processor, tmp_path / "maps.npy", print)


def test_an_unreadable_picture_has_no_regions_and_the_others_keep_theirs(tmp_path: Path, tower: str) -> None:
    files = labeled_corpus(tmp_path, num_images=3)
    (files.images / "1.png").write_bytes(b"no picture")
    _, _, _, scenes = seen(files, tower, tmp_path)
    assert [len(scene.names) for scene in scenes.scenes] == [2, 0, 2]
    assert [len(own) for own in cut_patches(scenes, "mask", 32)] == [2, 0, 2]
    assert np.abs(scenes.maps_NCHW[[0, 2]]).sum() > 0 and not scenes.maps_NCHW[1].any()


@pytest.mark.parametrize(("side", "reach"), [(336, 2), (672, 4), (100, 1)])
def test_masks_move_by_a_kernel_of_5_at_336_pixels(side: int, reach: int) -> None:
    mask_HW = np.zeros((side - 20, side), np.bool_)
    mask_HW[10:34, 20:60] = True
    mask_HW[10, 20] = False  # not its own box
    region = model_factories.mask_of(mask_HW)
    assert changed_mask(region, "mask") is region
    assert changed_mask(region, "box").mask_HW.sum() == 24 * 40
    grown, shrunk = changed_mask(region, "dilated"), changed_mask(region, "eroded")
    assert grown.crop_HW.shape == (24 + 2 * reach, 40 + 2 * reach)
    assert shrunk.crop_HW.shape == (24 - 2 * reach, 40 - 2 * reach)


# Training


def test_a_variant_learns_to_name_and_the_same_seed_gives_the_same_cells(tower: str, tmp_path: Path) -> None:
    files = labeled_corpus(tmp_path, num_images=8, regions_per_image=3)
    corpus, _, _, scenes = seen(files, tower, tmp_path)
    unseen = frozenset({"1", "2", "3", "4"})
    long = options(tower, epochs=40.0)

    def cells(variant: Variant) -> list[Cell]:
        measured = measure(variant, long, corpus, scenes, scenes, unseen, torch.device("cpu"), print)
        return [replace(cell, seconds=0.0) for cell in measured]

    first = cells(MASK)
    assert [cell.given for cell in first] == list(GIVEN)
    assert {(cell.num_regions, cell.num_unseen, cell.num_trained_on, cell.num_steps) for cell in first} == {
        (24, 4, 24, 80)
    }
    assert first[0].num_right >= 20  # by chance 6
    assert 0 < first[0].num_right_unseen <= 4
    assert cells(MASK) == first


def test_all_amounts_of_data_take_the_same_steps(files: Files, tower: str, tmp_path: Path) -> None:
    corpus, _, _, scenes = seen(files, tower, tmp_path)
    of_two = Variant(per_category=2, trained_on="box")
    (cell,) = measure(of_two, options(tower), corpus, scenes, scenes, None, torch.device("cpu"), print)
    assert (cell.given, cell.num_trained_on, cell.num_steps) == (
        "box",
        2 * len(COLOURS),
        2,
    )  # 6 pictures, 4 a step, 2 epochs
    assert (cell.num_unseen, cell.top1_unseen) == (0, None)


def test_a_name_that_training_lacks_counts_as_wrong(files: Files, tower: str, tmp_path: Path) -> None:
    corpus, model, processor, scenes = seen(files, tower, tmp_path)
    other = edit(
        labeled_corpus(tmp_path / "other", num_images=2, regions_per_image=2),
        lambda content: [row.update(name=f"no {row['name']}") for row in content["categories"]],
    )
    unknown = load_corpus(str(other.images), str(other.annotations))
    val = look(unknown, model, processor, tmp_path / "val.npy", print)
    cells = measure(MASK, options(tower), corpus, scenes, val, None, torch.device("cpu"), print)
    assert {(cell.num_right, cell.num_regions) for cell in cells} == {(0, 4)}


# The folder of cells


def job(files: Files, tower: str, out: Path, **more: Any) -> AblateJob:
    fields: dict[str, Any] = {
        "images": str(files.images),
        "annotations": str(files.annotations),
        "val_images": str(files.images),
        "val_annotations": str(files.annotations),
        "out": str(out),
        "vision": tower,
        "epochs": 1.0,
        "num_seeds": 1,
    }
    return AblateJob(**{**fields, **more})


def test_a_second_call_trains_only_what_is_missing(
    files: Files, tower: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run_ablate(job(files, tower, out, tables=("masks",)))
    kept = (out / "cells.jsonl").read_text()
    assert "1 of 1" in capsys.readouterr().err and kept.count("\n") == 4
    with (out / "cells.jsonl").open("a") as stream:
        stream.write('{"variant": {"refine": fal')  # killed while it wrote
    run_ablate(job(files, tower, out, tables=("masks", "refinement")))
    printed = capsys.readouterr()
    assert "3 of 3" in printed.err and "4 of" not in printed.err
    assert (out / "cells.jsonl").read_text().startswith(kept)
    assert printed.out == (out / "tables.md").read_text()
    assert printed.out.index("Masks that are off") < printed.out.index("### Refinement")
    run_ablate(job(files, tower, out, tables=("masks", "refinement")))
    assert " of " not in capsys.readouterr().err


def test_other_settings_on_the_same_folder_are_refused_by_name(files: Files, tower: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    first = job(files, tower, out, tables=())
    run_ablate(first)
    with pytest.raises(UsageError, match="epochs 1.0, now it is 2.0"):
        run_ablate(replace(first, epochs=2.0))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "photo.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="other files"):
        run_ablate(replace(first, out=str(tmp_path / "foreign")))


def test_cells_come_back_as_they_were_kept(tmp_path: Path) -> None:
    cells = [cell(0.5), cell(0.25, Variant(per_category=5, seed=2), given="eroded")]
    append_cells(tmp_path, cells[:1])
    append_cells(tmp_path, cells[1:])
    assert read_cells(tmp_path) == cells
    text = (tmp_path / "cells.jsonl").read_text()
    (tmp_path / "cells.jsonl").write_text("spoilt\n" + text)
    with pytest.raises(InputError, match="line 1"):
        read_cells(tmp_path)


def test_an_unknown_table_is_a_wrong_call() -> None:
    arguments = "ablate --images i --annotations a --val-images v --val-annotations w --out o --tables masks,shapes"
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 2 and "'shapes'" in result.output


# Tables


def cell(share: float, variant: Variant = MASK, given: Any = "mask", unseen: float = 0.0) -> Cell:
    return Cell(
        variant=variant,
        given=given,
        num_right=round(1000 * share),
        num_regions=1000,
        num_right_unseen=round(100 * unseen),
        num_unseen=100,
        num_trained_on=40,
    )


TABLE = Table(
    title="Boxes",
    paper="mAP",
    rows=(Row(name="mask", variant=MASK, paper="70.0"), Row(name="box", variant=MASK, given="box", paper="69.3")),
    claims=(Claim(better="mask", worse="box", points=0.7),),
)


def lines(*cells: Cell) -> list[str]:
    return table_to_markdown(TABLE, cells).splitlines()


def test_a_cell_shows_mean_and_spread_of_its_seeds() -> None:
    # 0.30, 0.32 and 0.40: mean 0.34, deviations -4, -2 and 6 points: sqrt(56 / 2) = 5.29
    shares = [0.30, 0.32, 0.40]
    cells = [cell(share, MASK.with_seed(seed), unseen=share / 2) for seed, share in enumerate(shares)]
    assert "| mask | 34.0 ± 5.3 | 17.0 ± 2.6 | 40 | 3 | 70.0 |" in lines(*cells)
    assert "| box | - | - | - | 0 | 69.3 |" in lines(*cells)
    assert told(summarise([0.5])) == "50.0" and told(summarise([None])) == "-"


@pytest.mark.parametrize(
    ("masks", "boxes", "verdict"),
    [
        ([0.40], [0.35], "ours +5.0 (1 seed): holds"),
        ([0.40], [0.45], "ours -5.0 (1 seed): does not hold"),
        # Differences 4, 5 and 6 points: mean 5, standard error 1 / sqrt(3).
        ([0.40, 0.41, 0.42], [0.36, 0.36, 0.36], "ours +5.0 ± 0.6: holds"),
        ([0.36, 0.36, 0.36], [0.40, 0.41, 0.42], "ours -5.0 ± 0.6: does not hold"),
        # Differences 0 and 2: mean 1, standard error 1, which is less than two of them.
        ([0.40, 0.42], [0.40, 0.40], "ours +1.0 ± 1.0: not told apart from chance"),
        ([], [0.4], "not measured"),
        # Seed 1 has no mate.
        ([0.40, 0.90], [0.35], "ours +5.0 (1 seed): holds"),
    ],
)
def test_a_direction_holds_where_seeds_agree(masks: list[float], boxes: list[float], verdict: str) -> None:
    cells = [cell(share, MASK.with_seed(seed)) for seed, share in enumerate(masks)]
    cells += [cell(share, MASK.with_seed(seed), "box") for seed, share in enumerate(boxes)]
    assert f"- mask above box (paper +0.7): {verdict}" in lines(*cells)


def test_every_variant_is_trained_once_and_first_seeds_come_first() -> None:
    wanted = variants_of(["refinement", "masks", "tokens", "data"], 2)
    assert len(wanted) == len(set(wanted)) == 2 * 10
    assert [variant.seed for variant in wanted] == [0] * 10 + [1] * 10


def test_modes_stand_beside_the_papers_with_what_the_model_was_trained_for(tmp_path: Path) -> None:
    rows = [
        {"id": i, "image_id": 1, "category_id": 1 + i % 2, "bbox": [0, 0, 9, 9], "iscrowd": 0} for i in (1, 2, 3, 4)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    images = [{"id": 1, "file_name": "1.png", "width": 9, "height": 9}]
    truth = {"images": images, "annotations": rows, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    labels = [
        {**row, "category_id": 1, "score": 1.0, "attributes": {"region_id": row["id"], "text": "cat"}} for row in rows
    ]
    (tmp_path / "labels.json").write_text(json.dumps({**truth, "annotations": labels}))
    half = evaluate_run(str(tmp_path), str(tmp_path / "truth.json"))
    text = modes_to_markdown({"one_turn": half, "separate": half}, {"one_turn": 61.7, "separate": None}, ("separate",))
    assert "| one_turn | 50.0 | - | 62 | no | 70.0 |" in text
    assert "| separate | 50.0 | - | - | yes | 71.5 |" in text
    assert "| not known |" in modes_to_markdown({"multi_turn": half}, {}, None)


def test_which_modes_a_model_was_trained_for_is_read_from_its_recipe(tmp_path: Path) -> None:
    assert _trained_for("embedded") == ("separate",)
    assert _trained_for(str(tmp_path)) is None
    stages = [
        {"objective": "align", "conversation": "separate"},
        {"objective": "instruct", "conversation": "multi_turn"},
    ]
    (tmp_path / "training.json").write_text(json.dumps({"recipe": {"stages": stages}}))
    assert _trained_for(str(tmp_path)) == ("multi_turn",)
