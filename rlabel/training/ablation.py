"""Trains small variants of plain RegionGPT beside each other: frozen tower, align objective, nearest-name accuracy.

Masks, poolings and losses are those of the rest of rlabel; only the tower is replaced, by one that hands on the maps it is given (`patches`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from rlabel.regiongpt.assembly import AssemblyOptions, assemble
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor
from rlabel.training.cells import Cell, Variant, append_cells, name_of
from rlabel.training.corpus import TrainCorpus
from rlabel.training.freezing import parameter_groups
from rlabel.training.objectives import TrainingStep, learning_rate_share
from rlabel.training.patches import Patch, Scenes, cut_patches, lay_sheets, look
from rlabel.training.progress import Meter, progress_text
from rlabel.training.recipe import Stage
from rlabel.training.sampling import cap_per_category

_JUDGED_TOGETHER = 64
_SAY_EVERY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationOptions:
    """What all variants share. learning_rate: of refinement, queries and connector; the connector's last, small layer takes a twentieth of it."""

    vision: str = "efficientnet-lite2"
    image_size_px: int | None = None
    epochs: float = 4.0
    images_per_batch: int = 16
    learning_rate: float = 3e-3

    def stage(self) -> Stage:
        rate = self.learning_rate
        return Stage(
            name="ablation",
            objective="align",
            epochs=self.epochs,
            images_per_batch=self.images_per_batch,
            decorrelate=True,
            learning_rates={"refinement": rate, "connector": rate, "connector.3": rate / 20, "region_queries": rate},
            weight_decay=0.05,
            warmup=0.1,
            clip_norm=5.0,
        )


class SeenTower(nn.Module):
    """A tower that has seen every picture: what it is given as pixels are its own maps."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype_of = nn.Parameter(torch.zeros(()), requires_grad=False)

    def feature_maps(self, maps_BCHW: Tensor, layers: list[int]) -> dict[int, Tensor]:
        return dict.fromkeys(layers, maps_BCHW)


def build(
    variant: Variant, options: AblationOptions, names: Sequence[str]
) -> tuple[RegionGPTForConditionalGeneration, RegionGPTProcessor]:
    """Return the fresh model of a variant: the tower with its weights, everything else drawn by the variant's seed."""
    assembly = AssemblyOptions(
        refine=variant.refine,
        tokens_per_region=variant.tokens_per_region,
        region_pooling=variant.region_pooling,
        image_size_px=options.image_size_px,
        name_map=True,  # without it the names alone keep apart too little
        image_tokens_per_side=1,  # aligning does not read them
        seed=variant.seed,
    )
    return assemble(options.vision, "tiny", assembly, names)


def measure_here(
    variants: Sequence[Variant],
    options: AblationOptions,
    corpus: TrainCorpus,
    judged: TrainCorpus,
    unseen: frozenset[str] | None,
    folder: Path,
    num_threads: int,
    say: Callable[[str], None],
) -> None:
    """Measure variants one after the other, in this process, on its GPU if it has one; the cells of each are kept in `folder` before the next begins."""
    logging.disable_progress_bar()  # bars would flood a job's log
    torch.set_num_threads(num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = build(variants[0], options, corpus.all_names)
    model.to(device)  # type: ignore[arg-type]
    train = look(corpus, model, processor, folder / "maps-train.npy", say)
    val = look(judged, model, processor, folder / "maps-val.npy", say)
    del model, processor
    for number, variant in enumerate(variants, 1):
        cells = measure(variant, options, corpus, train, val, unseen, device, say)
        append_cells(folder, cells)
        shown = ", ".join(f"{cell.given} {100 * (cell.top1 or 0):.1f} %" for cell in cells)
        say(f"{number} of {len(variants)}  {name_of(variant)} {shown}; {cells[0].seconds:.0f} s")


def measure(
    variant: Variant,
    options: AblationOptions,
    corpus: TrainCorpus,
    train: Scenes,
    val: Scenes,
    unseen: frozenset[str] | None,
    device: torch.device,
    say: Callable[[str], None],
) -> list[Cell]:
    """Train one variant on `train` (the scenes of `corpus`) and return its cells, one for each kind of masks that it is judged on.

    All variants take the same number of steps, whatever share of the regions they learn from. unseen: keys of the regions of val whose picture
    training never showed; None: not known.
    """
    since = time.monotonic()
    names = corpus.all_names
    model, processor = build(variant, options, names)
    model.vision_tower = SeenTower()
    model.to(device)  # type: ignore[arg-type]
    step = TrainingStep(model, processor, options.stage(), names)
    mask_side = processor.image_processor.mask_side
    capped = cap_per_category(corpus, variant.per_category, variant.seed)
    keys = {label.region.key for image in capped.images for label in image.labels if capped.parts[0].name_of(label)}
    pictures = [
        [patch for patch in own if patch.key in keys] for own in cut_patches(train, variant.trained_on, mask_side)
    ]
    num_pictures = sum(bool(scene.names) for scene in train.scenes)
    num_steps = _train(step, variant, [own for own in pictures if own], num_pictures, train, say)
    seconds = time.monotonic() - since
    cells = []
    for given in variant.judged_on:
        judged = [patch for own in cut_patches(val, given, mask_side) for patch in own]
        right, total = _judge(step, val, judged)
        right_unseen, total_unseen = _judge(step, val, [patch for patch in judged if patch.key in (unseen or ())])
        cells.append(
            Cell(
                variant=variant,
                given=given,
                num_right=right,
                num_regions=total,
                num_right_unseen=right_unseen,
                num_unseen=total_unseen,
                num_trained_on=sum(len(own) for own in pictures),
                num_steps=num_steps,
                seconds=round(seconds, 1),
            )
        )
    return cells


def _train(
    step: TrainingStep,
    variant: Variant,
    pictures: list[list[Patch]],
    num_pictures: int,
    train: Scenes,
    say: Callable[[str], None],
) -> int:
    """Train for as many steps as all pictures of the corpus would take; return how many. Deterministic by the variant's seed."""
    stage = step.stage
    groups = parameter_groups(step.model, stage)
    trained = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(groups, weight_decay=stage.weight_decay, betas=(0.9, 0.98))
    num_steps = stage.num_steps(num_pictures, 1)
    random = np.random.default_rng(variant.seed)
    order: list[int] = []
    meter = Meter()
    step.train()
    for number in range(num_steps):
        while len(order) < stage.images_per_batch:
            order += random.permutation(len(pictures)).tolist()
        batch = [patch for index in order[: stage.images_per_batch] for patch in pictures[index]]
        order = order[stage.images_per_batch :]
        share = learning_rate_share(number, num_steps, stage.warmup)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share
        result = step(lay_sheets(batch, *_sides(step, train)))
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, stage.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.add(float(result.loss.detach()), result.num_right, result.num_regions)
        if meter.age_s > _SAY_EVERY_S:
            say(progress_text(meter.progress(name_of(variant), number + 1, num_steps, None)))
    return num_steps


def _sides(step: TrainingStep, scenes: Scenes) -> tuple[int, int]:
    """Return (side of the coarse maps, how many times finer the refined ones are)."""
    side = scenes.maps_NCHW.shape[-1]
    return side, step.processor.image_processor.mask_side // side


@torch.inference_mode()
def _judge(step: TrainingStep, val: Scenes, patches: Sequence[Patch]) -> tuple[int, int]:
    """Return (regions whose nearest name is their own, regions with a name). A name that training lacks cannot be hit: it counts as wrong."""
    step.eval()
    right = 0
    known = [patch for patch in patches if patch.name in step.name_index]
    for start in range(0, len(known), _JUDGED_TOGETHER):
        right += step(lay_sheets(known[start : start + _JUDGED_TOGETHER], *_sides(step, val))).num_right
    return right, sum(patch.name is not None for patch in patches)
