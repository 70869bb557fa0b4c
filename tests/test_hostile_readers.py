"""Pictures that crash their decoder cost themselves alone wherever pictures are read: training, validate, reports, ask."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.data import DataLoader

from label_factories import ROOT
from rlabel.corpus import isolation
from rlabel.corpus.decoding import IN_PROCESS
from rlabel.corpus.isolation import shared_decoders
from rlabel.corpus.limits import Limits
from rlabel.corpus.validate import validate_corpus
from rlabel.errors import InputError, RunError
from rlabel.report.sheet import draw_pictures
from rlabel.training.dataset import BatchDataset, keep_samples
from rlabel.training.journal import read_progress
from rlabel.training.loop import train
from rlabel.training.parts import load_corpus
from rlabel.training.progress import append_progress, progress_text
from test_hostile_decoders import NIGHTMARES
from train_factories import labeled_corpus, largest_difference, place, recipe, stage, tiny, weights

CRASHES = "its decoder did not survive it in 3 attempts: the process was ended by SIGSEGV"


@pytest.fixture
def nightmares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let decoder processes that start from now on die of bytes that begin with `crash`; none of before is used."""
    path, _, rest = isolation._START.partition("; from")
    monkeypatch.setattr(isolation, "_START", f"{path}\n{NIGHTMARES}\nfrom{rest}")
    monkeypatch.setattr(isolation, "_shared", {})


def test_a_picture_that_crashes_its_decoder_costs_training_that_picture_and_is_named_once(
    tmp_path: Path, model: Path, nightmares: None
) -> None:
    files = labeled_corpus(tmp_path, num_images=4)
    course = recipe(stage("align", epochs=2, images_per_batch=1, checkpoint_every=4))
    (files.images / "2.png").write_bytes(b"no picture")
    without, _ = train(files.job(model, course), place(tmp_path / "without"))
    (files.images / "2.png").write_bytes(b"crash")
    watched = place(tmp_path / "run")
    made, _ = train(files.job(model, course), watched)
    assert [line.num_unusable for line in watched.progress] == [1, 1]
    assert [line.unusable for line in watched.progress] == [(f"2.png: {CRASHES}.",), ()]
    assert f"1 pictures unusable: 2.png: {CRASHES}." in progress_text(watched.progress[0])
    assert progress_text(watched.progress[1]).endswith("1 pictures unusable")
    # The rest is trained on as if the picture were unreadable in any other way.
    assert largest_difference(weights(made), weights(without)) == 0
    log = tmp_path / "progress.jsonl"
    for line in watched.progress:
        append_progress(log, line)
    assert json.loads(log.read_text().splitlines()[0])["unusable"] == [f"2.png: {CRASHES}."]
    assert [line.step for line in read_progress(log)["align"]] == [4, 8]


def test_weights_are_those_of_decoding_in_the_training_process(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = labeled_corpus(tmp_path, num_images=3)
    for number, kind in ((0, "jpeg"), (1, "gif")):
        path = files.images / f"{number}.png"
        Image.open(path).convert("RGB").save(path, kind)
    augment = {"paste": 1.0, "mirror": 0.5}
    course = recipe(stage("instruct", epochs=2, augment=augment))
    apart, _ = train(files.job(model, course), place(tmp_path / "apart"))
    asked = []
    monkeypatch.setattr("rlabel.training.dataset.shared_decoders", lambda: asked.append(1) or IN_PROCESS)
    here, _ = train(files.job(model, course), place(tmp_path / "here"))
    assert asked and largest_difference(weights(here), weights(apart)) == 0


def test_loader_processes_have_decoders_of_their_own_and_leave_those_of_their_parent_alone(
    tmp_path: Path, nightmares: None
) -> None:
    files = labeled_corpus(tmp_path, num_images=4)
    (files.images / "1.png").write_bytes(b"crash")
    corpus, processor = load_corpus(str(files.images), str(files.annotations)), tiny()[1]
    data = BatchDataset(corpus, processor, stage(images_per_batch=2), 5, 0, 1)
    mine = shared_decoders()
    here = [data[0], data[1]]
    loader = DataLoader(data, batch_size=None, collate_fn=keep_samples, num_workers=2, multiprocessing_context="fork")
    there = list(loader)
    assert [batch.unusable for batch in there] == [batch.unusable for batch in here]
    assert sum((list(batch.unusable) for batch in there), []) == [f"1.png: {CRASHES}."]
    for batch, other in zip(here, there, strict=True):
        for sample, again in zip(batch, other, strict=True):
            assert torch.equal(sample.inputs.pixels_3SS, again.inputs.pixels_3SS)
    del loader
    assert shared_decoders() is mine
    picture = mine.decode((files.images / "0.png").read_bytes(), Limits())
    assert isinstance(picture, np.ndarray) and picture.shape == (64, 64, 3)


def test_training_whose_pictures_vanish_ends_instead_of_training_on_nothing(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlabel.training.loop._MAX_EMPTY", 3)
    files = labeled_corpus(tmp_path, num_images=40)
    for number in range(1, 40):
        (files.images / f"{number}.png").unlink()
    course = recipe(stage("align", epochs=1, images_per_batch=1))
    with pytest.raises(
        RunError, match=r"got none in 3 batches; the last: \d+.png: there is no such file.*last checkpoint"
    ):
        train(files.job(model, course), place(tmp_path / "run"))


def test_validate_names_a_picture_that_crashes_its_decoder_and_goes_on(tmp_path: Path, nightmares: None) -> None:
    files = labeled_corpus(tmp_path, num_images=3)
    (files.images / "0.png").write_bytes(b"crash")
    (files.images / "2.png").write_bytes(b"no picture")
    told = [
        problem.what
        for problem in validate_corpus(files.images, files.annotations, True)
        if problem.severity == "error"
    ]
    assert [what.partition(" Regions")[0] for what in told] == [
        f"0.png: {CRASHES}.",
        "2.png: the file is not a picture in a format that can be read.",
    ]


def test_a_sheet_leaves_a_picture_out_that_crashes_its_decoder(tmp_path: Path, nightmares: None) -> None:
    files = labeled_corpus(tmp_path, num_images=2)
    content = json.loads(files.annotations.read_text())
    for row in content["annotations"]:
        row["attributes"] = {"region_id": row["id"]}
    run = tmp_path / "run"
    run.mkdir()
    (run / "labels.json").write_text(json.dumps(content))
    for name in ("abstained.jsonl", "failures.jsonl"):
        (run / name).write_text("")
    (files.images / "0.png").write_bytes(b"crash")
    assert [picture.file_name for picture in draw_pictures(str(run), str(files.images), None, 2)] == ["1.png"]
    (files.images / "1.png").write_bytes(b"crash")
    with pytest.raises(InputError, match=CRASHES):
        draw_pictures(str(run), str(files.images), None, 2)


def test_ask_refuses_a_picture_or_mask_that_crashes_its_decoder(tmp_path: Path, nightmares: None) -> None:
    from rlabel.cli.ask import ask

    bad, good = tmp_path / "bad.png", tmp_path / "good.png"
    bad.write_bytes(b"crash")
    Image.new("RGB", (9, 8), "red").save(good)
    for image, region in ((bad, "1,1,4,4"), (good, str(bad))):
        result = CliRunner().invoke(ask, [str(image), "--region", region, "What is <region1>?"])
        assert result.exit_code == 1 and CRASHES in result.output and "bad.png" in result.output


def test_no_module_opens_a_picture_without_saying_where_it_is_decoded() -> None:
    places = {"open_image": 3, "open_picture": 4, "prepare_image": 99}  # of the decoder among positional arguments
    found = []
    for path in (ROOT / "rlabel").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in places:
                continue
            is_said = len(node.args) > places[node.func.id] or any(one.arg == "decoder" for one in node.keywords)
            found.append((str(path.relative_to(ROOT)), node.lineno, is_said))
    assert len(found) > 8 and [place for *place, is_said in found if not is_said] == []
