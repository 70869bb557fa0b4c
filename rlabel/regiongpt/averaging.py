"""The mean of several models' weights (model soups, Wortsman et al. 2022, arXiv 2203.05482): as good as an ensemble of them, at the cost of one.

It holds for models that were fine-tuned from one start, whose weights lie in one valley; others have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.utils import logging

from rlabel.errors import InputError
from rlabel.regiongpt.assembly import load_processor, save
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.quantization import Precision, load_model


@torch.no_grad()
def averaged(folders: Sequence[str]) -> RegionGPTForConditionalGeneration:
    """Return the model whose weights are the mean of those of two or more folders, float32. One model besides the mean is in memory at a time.

    Raises InputError where their parts, vocabularies or shapes differ, or tensors of whole numbers.
    """
    model = load_model(folders[0], Precision(dtype="float32"), "cpu")
    state = model.state_dict()
    words = load_processor(folders[0]).tokenizer.get_vocab()
    for number, folder in enumerate(folders[1:], start=2):
        if load_processor(folder).tokenizer.get_vocab() != words:
            raise InputError(
                f"{folder}: expected the vocabulary of {folders[0]}, got another. Average models of one start."
            )
        other = load_model(folder, Precision(dtype="float32"), "cpu").state_dict()
        if odd := sorted(set(state) ^ set(other)):
            raise InputError(
                f"{folder}: expected the weights of {folders[0]}, but only one of both has {odd[0]}. Average models of one start."
            )
        for name, value in state.items():
            own = other[name]
            if own.shape != value.shape or (not value.is_floating_point() and not torch.equal(own, value)):
                raise InputError(
                    f"{folder}: {name}: expected what {folders[0]} has, {tuple(value.shape)}, got {tuple(own.shape)} or other numbers. "
                    "Average models of one start."
                )
            if value.is_floating_point():
                value.lerp_(own, 1 / number)
    return model


def write_average(folders: Sequence[str], out: str, dtype: str) -> None:
    """Write the folder of the model that `averaged` returns, with the processor of the first."""
    logging.disable_progress_bar()
    save(averaged(folders).to(getattr(torch, dtype)), load_processor(folders[0]), out)
