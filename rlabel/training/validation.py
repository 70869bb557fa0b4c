"""How well a model in training names the validation regions."""

from __future__ import annotations

import torch

from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.training.corpus import TrainCorpus
from rlabel.training.dataset import BatchDataset, Sample
from rlabel.training.objectives import TrainingStep

_IMAGES_AT_ONCE = 8


@torch.inference_mode()
def validate(step: TrainingStep, corpus: TrainCorpus) -> float:
    """Return top-1 over the validation regions: nearest name while aligning, else the free greedy answer. Every rank computes the same."""
    model, processor = step.model, step.processor
    model.eval()
    dataset = BatchDataset(corpus, processor, step.stage, 0, 0, 1)
    engine = Engine(model, processor, EngineOptions())
    right = total = 0
    pending: list[Sample] = []

    def flush() -> None:
        nonlocal right, total
        if not pending:
            return
        total += sum(name is not None for sample in pending for name in sample.names)
        if step.stage.objective == "align":
            training = step.training
            step.eval()
            known = [sample for sample in pending if all(name in step.name_index for name in sample.names)]
            if known:
                right += step(known).num_right
            step.train(training)
        else:
            answers = engine.answer([sample.inputs for sample in pending])
            right += sum(
                name is not None and decoded.text.lower() == name.lower()
                for sample, image in zip(pending, answers, strict=True)
                for name, decoded in zip(sample.names, image, strict=True)
            )
        pending.clear()

    for index in range(len(corpus.images)):
        sample = dataset.sample(index, 0, None)
        if sample is not None:
            pending.append(sample)
        if len(pending) == _IMAGES_AT_ONCE:
            flush()
    flush()
    return right / max(total, 1)
