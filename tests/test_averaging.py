"""`rlabel average`: the mean of weights, and what cannot be averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from rlabel.cli.main import main
from rlabel.errors import InputError
from rlabel.regiongpt.assembly import save
from rlabel.regiongpt.averaging import averaged
from train_factories import tiny, tiny_folder, weights


def test_the_mean_of_three_models(tmp_path: Path) -> None:
    folders = [tiny_folder(tmp_path / str(seed), seed=seed) for seed in range(3)]
    result = CliRunner().invoke(main, ["average", *map(str, folders), "--out", str(tmp_path / "mean")])
    assert result.exit_code == 0, result.output
    own = [weights(folder) for folder in folders]
    mean = weights(tmp_path / "mean")
    assert set(mean) == set(own[0])
    changed = 0
    for name, value in mean.items():
        wanted = torch.stack([one[name].float() for one in own]).mean(0)
        assert torch.allclose(value.float(), wanted, atol=1e-6), name
        changed += not torch.equal(value, own[0][name])
    assert changed > 10


def test_models_of_other_shapes_or_parts_are_refused(tmp_path: Path) -> None:
    first = str(tiny_folder(tmp_path / "a"))
    with pytest.raises(InputError, match="only one of both has refinement"):
        averaged([first, str(tiny_folder(tmp_path / "b", refine=False))])
    model, processor = tiny(name_memory=0)
    for name, count in (("c", 2), ("d", 3)):
        model.set_name_memory(torch.eye(32)[:count])
        save(model, processor, tmp_path / name)
    with pytest.raises(InputError, match=r"d: name_memory: expected what .*c has, \(2, 32\), got \(3, 32\)"):
        averaged([str(tmp_path / "c"), str(tmp_path / "d")])


def test_wrong_calls_say_what_is_wrong(tmp_path: Path) -> None:
    first = str(tiny_folder(tmp_path / "a"))
    one = CliRunner().invoke(main, ["average", first, "--out", str(tmp_path / "mean")])
    assert one.exit_code == 2 and "two model folders or more, got 1" in one.output
    taken = CliRunner().invoke(main, ["average", first, first, "--out", first])
    assert taken.exit_code == 2 and "new or empty folder" in taken.output
