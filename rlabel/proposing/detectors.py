"""Boxes by detectors: Grounding DINO and OWLv2, which look for names, and RT-DETR, which knows its own classes. The class is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlabel.corpus.picture import PixelsHWC
from rlabel.errors import InputError
from rlabel.proposing.found import Found, box_found
from rlabel.proposing.models import ProposerPlan
from rlabel.proposing.settings import ProposeSettings
from rlabel.records import ImageRecord
from rlabel.vlm.loading import first_line, load_processor


class DetectorProposer:
    """Proposes boxes. Of names, so many are looked for at once as `names_per_query`; the same thing found under two names is one region later."""

    def __init__(self, model: Any, plan: ProposerPlan, settings: ProposeSettings, device: torch.device) -> None:
        """Raises InputError where the processor's files are missing or damaged."""
        self.name, self.kind = plan.name, plan.kind
        self.model, self.device = model, device
        self.min_score = plan.keeping.min_score
        self.dtype = next(model.parameters()).dtype
        folder = Path(str(plan.folder))
        if plan.names:
            self.processor: Any = load_processor(folder)
            self.images = self.processor.image_processor
            size = settings.names_per_query
            chunks = [plan.names[start : start + size] for start in range(0, len(plan.names), size)]
            self.texts = [_texts(self.processor.tokenizer, self.kind, chunk).to(device) for chunk in chunks]
        else:
            self.images = _image_processor(folder)
            self.texts = []

    @torch.inference_mode()
    def propose(self, picture_HWC: PixelsHWC, record: ImageRecord) -> list[Found]:
        """Return every box above the least score."""
        height, width = picture_HWC.shape[:2]
        pixels = dict(self.images(images=picture_HWC, return_tensors="pt"))
        inputs = {name: value.to(self.device) for name, value in pixels.items() if isinstance(value, torch.Tensor)}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        # OWLv2 pads a picture to a square on the right and below, and its boxes are shares of that.
        sides = (max(height, width),) * 2 if self.kind == "owlv2" else (width, height)
        found: list[Found] = []
        for texts in self.texts or [{}]:
            outputs = self.model(**inputs, **texts)
            scores_Q = outputs.logits[0].float().sigmoid().amax(dim=-1)
            boxes_Q4 = outputs.pred_boxes[0].float()
            good = scores_Q >= self.min_score
            for box, score in zip(boxes_Q4[good].tolist(), scores_Q[good].tolist(), strict=True):
                one = box_found(corners_of(box, *sides), score, height, width)
                if one is not None:
                    found.append(one)
        return found


def corners_of(box: list[float], width_px: float, height_px: float) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom in pixels of a box given as its centre and sides, each a share of the picture's."""
    x, y, width, height = box
    return (
        (x - width / 2) * width_px,
        (y - height / 2) * height_px,
        (x + width / 2) * width_px,
        (y + height / 2) * height_px,
    )


def _texts(tokenizer: Any, kind: str, names: tuple[str, ...]) -> Any:
    """Return some names as a detector reads them: one sentence of all (Grounding DINO), or a row each (OWLv2)."""
    if kind == "grounding-dino":
        return tokenizer([". ".join(names) + "."], truncation=True, max_length=256, return_tensors="pt")
    rows = [f"a photo of a {name}" for name in names]
    # OWL's text tower has 16 places.
    return tokenizer(rows, padding="max_length", truncation=True, max_length=16, return_tensors="pt")


def _image_processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(
            str(folder), backend="pil", trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers and json each have their own kinds
        if isinstance(error, MemoryError):
            raise
        raise InputError(
            f"--proposer {folder}: expected a preprocessor_config.json that transformers reads, got {type(error).__name__}: {first_line(error)}. "
            "Copy or download the folder again."
        ) from error
