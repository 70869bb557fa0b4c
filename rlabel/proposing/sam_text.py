"""Masks by SAM 3 of what a text names: every name of a vocabulary is looked for in every picture.

After SAM 3 (Carion et al., 2025, section 3): one look at the picture; for each name, queries that each give a score and a mask, and a score of
whether the name is there at all. The picture's features are computed once, the names' texts once a run; what is left costs each name in each
picture about 0.4 TFLOP at the published size, a fourteenth of the look at the picture (`flop_of_names`).

N names at once, Q queries, C channels, h w of the masks' logits, H W of the picture.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rlabel.corpus.picture import PixelsHWC
from rlabel.errors import InputError
from rlabel.proposing.found import Found, mask_found
from rlabel.proposing.models import ProposerPlan
from rlabel.proposing.sam import MOST_PIXELS, normalisation, prepared
from rlabel.proposing.settings import ProposeSettings
from rlabel.records import ImageRecord
from rlabel.vlm.loading import first_line

# Names at once, whatever is asked for: at 200 queries and 288 x 288 each takes about 0.3 GB.
_MOST_NAMES = 8
_MANY_NAMES = 100


class SamTextProposer:
    """Proposes masks by SAM 3. The same thing found under two names is one region later, by the overlap of the masks."""

    def __init__(self, model: Any, plan: ProposerPlan, settings: ProposeSettings, device: torch.device) -> None:
        """Raises InputError where the tokenizer's files, or a preprocessor_config.json, cannot be used."""
        self.name = plan.name
        self.model, self.device = model, device
        self.min_score = plan.keeping.min_score
        self.dtype = next(model.parameters()).dtype
        self.side_px = int(model.config.vision_config.image_size)
        self.mean, self.std = normalisation(Path(str(plan.folder)), plan.kind)
        at_once = min(settings.names_per_query, _MOST_NAMES)
        tokenizer = _tokenizer(Path(str(plan.folder)))
        self.texts = [
            self._text(tokenizer, plan.names[start : start + at_once]) for start in range(0, len(plan.names), at_once)
        ]
        if len(plan.names) > _MANY_NAMES:
            print(
                f"rlabel: {plan.name}: looks for each of {len(plan.names)} names in each picture, about "
                f"{flop_of_names(model, len(plan.names)) / 1e12:.3g} TFLOP a picture",
                file=sys.stderr,
                flush=True,
            )

    @torch.inference_mode()
    def propose(self, picture_HWC: PixelsHWC, record: ImageRecord) -> list[Found]:
        """Return every mask above the least score, name by name."""
        height, width = picture_HWC.shape[:2]
        pixels = prepared(picture_HWC, self.side_px, self.side_px, self.side_px, self.mean, self.std)
        seen = self.model.get_vision_features(pixels.to(self.device, self.dtype))
        maps, places = seen.fpn_hidden_states, seen.fpn_position_encoding
        found: list[Found] = []
        for features_NTC, mask_NT in self.texts:
            count = len(features_NTC)
            seen.fpn_hidden_states = tuple(one.expand(count, -1, -1, -1) for one in maps)
            seen.fpn_position_encoding = tuple(one.expand(count, -1, -1, -1) for one in places)
            outputs = self.model(
                vision_embeds=seen,
                text_embeds=BaseModelOutputWithPooling(pooler_output=features_NTC),
                attention_mask=mask_NT,
            )
            found += self._drawn(outputs, height, width)
        return found

    def _drawn(self, outputs: Any, height_px: int, width_px: int) -> list[Found]:
        """Return the masks of some names, as transformers' post_process_instance_segmentation makes them: scores of queries times that of the name,
        probabilities enlarged, inside above one half.
        """
        scores_NQ = outputs.pred_logits.float().sigmoid() * outputs.presence_logits.float().sigmoid()
        good_NQ = scores_NQ > self.min_score
        scores = scores_NQ[good_NQ].tolist()
        logits_Khw = outputs.pred_masks[good_NQ]
        at_once = max(1, MOST_PIXELS // (height_px * width_px))
        found = []
        for start in range(0, len(scores), at_once):
            shares_Khw = logits_Khw[start : start + at_once].float().sigmoid()
            shares_KHW = functional.interpolate(
                shares_Khw[None], (height_px, width_px), mode="bilinear", align_corners=False
            )[0]
            for inside_HW, score in zip((shares_KHW > 0.5).cpu().numpy(), scores[start : start + at_once], strict=True):
                one = mask_found(coco_mask.encode(np.asfortranarray(inside_HW, dtype=np.uint8)), score)
                if one is not None:
                    found.append(one)
        return found

    @torch.inference_mode()
    def _text(self, tokenizer: Any, names: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features (N, T, C) of some names' texts, and which of them are there, (N, T)."""
        length = int(self.model.config.text_config.max_position_embeddings)
        texts = tokenizer(list(names), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids, mask = texts["input_ids"].to(self.device), texts["attention_mask"].to(self.device)
        if int(ids.max()) >= self.model.config.text_config.vocab_size:
            raise InputError(
                f"--proposer {self.name}: the tokenizer has more tokens than the model knows. They are of two models: copy or download the folder again."
            )
        features_NTC = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return features_NTC, mask


def flop_of_names(model: Any, num_names: int) -> float:
    """Return about how many floating point operations so many names take in one picture, beside those of the picture itself.

    Of the encoder that reads the picture with a name, and of the convolutions of the masks; the decoder's few queries are left out.
    """
    encoder = model.config.detr_encoder_config
    sides = [int(size[0]) for size in model.config.vision_config.backbone_feature_sizes]
    width, inner, tokens = encoder.hidden_size, encoder.intermediate_size, sides[-1] ** 2
    layer = 2 * tokens * (6 * width * width + 2 * width * inner) + 4 * tokens * tokens * width
    convolutions = sum(2 * 9 * side * side * width * width for side in sides[:-1])
    return float(num_names * (encoder.num_layers * layer + convolutions))


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    # Without them transformers makes a tokenizer that knows no word, and says nothing.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise InputError(
            f"--proposer {folder}: expected a tokenizer (tokenizer.json, or vocab.json and merges.txt), got none. Copy or download the folder again."
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers, tokenizers and json each have their own kinds
        if isinstance(error, MemoryError):
            raise
        raise InputError(
            f"--proposer {folder}: expected a tokenizer that transformers reads, got {type(error).__name__}: {first_line(error)}. "
            "Copy or download the folder again."
        ) from error
