"""Families that came later: each loads by the generic path, says what transformers' own `generate` says, and finds names as probable as its forward does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from rlabel.errors import InputError
from rlabel.vlm import loading
from rlabel.vlm.decoding import stop_ids
from rlabel.vlm.describer import PlainDescriber
from rlabel.vlm.examining import examine
from rlabel.vlm.families import UNKNOWN, family_of
from rlabel.vlm.inputs import PlainInputs, PlainProcessor
from rlabel.vlm.naming import AnswerTokens, NameOptions
from vlm_factories import loaded, plan, regions, save
from vlm_judges import NEW_TOKENS, agree, forward_logprob
from vlm_newer import NEEDS_TORCHVISION, NEWER

PICTURE, MASKS = regions()
NAMES = ("cat", "cart", "dog")
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None


@torch.inference_mode()
@pytest.mark.parametrize("kind", NEWER)
def test_a_later_family_says_and_names_what_transformers_does(tmp_path: Path, kind: str) -> None:
    if kind in NEEDS_TORCHVISION and not HAS_TORCHVISION:
        pytest.skip("its processor needs torchvision")
    model = loaded(save(tmp_path, kind, makers=NEWER))
    processor = loading.load_processor(tmp_path)
    family = family_of(model.config.model_type)
    assert family.name != UNKNOWN and family.default in family.ways
    for way in ("crop", "box" if "box" in family.ways else "marks"):
        shown = PlainProcessor(processor, plan(model.config.model_type, region_as=way))
        inputs = shown.prepare(PICTURE, MASKS[:2])
        made = PlainDescriber(model, shown, max_new_tokens=NEW_TOKENS)
        assert len(inputs.looks) == (2 if way == "crop" else 1)
        agree(model, made, inputs, made.describe([inputs])[0])
    if kind == "mllama":  # each step has to be told which tiles are padding
        with pytest.raises(InputError, match="--decoding constrained: not with models of type 'mllama': probabilities"):
            PlainDescriber(model, shown, names=NameOptions(names=NAMES))
        return
    hybrid = PlainDescriber(model, shown, max_new_tokens=2, names=NameOptions(names=NAMES, hybrid=True))
    ids_of = AnswerTokens(shown, stop_ids(model, shown.tokenizer))
    look = inputs.looks[0]
    some = PlainInputs(looks=(type(look)(picture=look.picture, rows=look.rows[:2]),))
    for answer, row in zip(hybrid.describe([some])[0], look.rows, strict=False):
        wanted = {name: sum(forward_logprob(model, look, row, ids_of(name))) for name in NAMES}
        assert {one.name: one.logprob for one in answer.likely_names} == pytest.approx(wanted, abs=1e-4)


@pytest.mark.skipif(HAS_TORCHVISION, reason="what is said where torchvision is missing")
@pytest.mark.parametrize("kind", ["mistral3", "image processor"])
def test_a_processor_that_needs_torchvision_says_so(tmp_path: Path, kind: str) -> None:
    save(tmp_path, "mistral3" if kind == "mistral3" else "ovis2", makers=NEWER)
    if kind != "mistral3":  # of the processors that ask for it only when they are made
        (tmp_path / "processor_config.json").write_text('{"processor_class": "Lfm2VlProcessor"}')
        (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Lfm2VlImageProcessor"}')
    with pytest.raises(InputError, match="of transformers needs torchvision, which is not installed. Install"):
        loading.load_processor(tmp_path)
    checks = {check["name"]: check for check in examine(str(tmp_path))["machine"]}
    assert checks["torchvision"]["ok"] is False and "this model's processor needs it" in checks["torchvision"]["says"]
    assert checks["processor"]["ok"] is False


def test_a_family_whose_pixels_the_processor_does_not_tell_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "idefics2", makers=NEWER)
    shown = PlainProcessor(loading.load_processor(tmp_path), plan("idefics2", family="qwen2_5_vl", region_as="box"))
    with pytest.raises(InputError, match="--family qwen2_5_vl: .*does not say to what size.*--region-as crop"):
        shown.prepare(PICTURE, MASKS[:1])
