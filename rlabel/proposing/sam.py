"""Masks by SAM, SAM 2 and SAM 3's tracker: from a grid of points, or from prompts that a person gave.

After the automatic mask generator of Segment Anything (Kirillov et al., ICCV 2023, section 4 and appendix B): a grid of points, three masks each,
kept by predicted IoU and stability, also on overlapping crops. This leaves out the smoothing of small holes and islands.

B 1, P points, N points of one prompt, K masks of a prompt, h w of the decoder's masks, H W of the picture or crop.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn import functional

from rlabel.corpus.picture import PixelsHWC
from rlabel.errors import InputError
from rlabel.proposing.found import Found, mask_found
from rlabel.proposing.models import ProposerPlan
from rlabel.proposing.prompts import Prompt, prompts_of
from rlabel.proposing.settings import ProposeSettings
from rlabel.records import ImageRecord, JsonValue

# Masks of full size that are held at once, in pixels of float32.
MOST_PIXELS = 32_000_000
# Of the logits: a mask is stable if it hardly differs at a threshold so much higher and lower (the reference's stability_score_offset).
_OFFSET = 1.0
_OVERLAP = (
    512 / 1500
)  # of neighbouring crops, share of the picture's shorter side in layer 0 (the reference's crop_overlap_ratio)
_EDGE_PX = 20  # a box so near to a crop's edge, and not to the picture's, is cut off by it
# Where the folder does not say: of the first two, ImageNet's; of SAM 3, one half (as transformers' own processors).
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A crop of the picture. step: its grid has this share of the points of a side."""

    left_px: int
    top_px: int
    right_px: int
    bottom_px: int
    step: int


def views_of(height_px: int, width_px: int, layers: int) -> list[View]:
    """Return the whole picture and, for layer n, 2^n x 2^n overlapping crops that cover it."""
    views = [View(left_px=0, top_px=0, right_px=width_px, bottom_px=height_px, step=1)]
    for layer in range(1, layers + 1):
        side = 2**layer
        overlap = int(_OVERLAP * min(height_px, width_px) * 2 / side)
        crop_w = -(-(overlap * (side - 1) + width_px) // side)
        crop_h = -(-(overlap * (side - 1) + height_px) // side)
        views += [
            View(
                left_px=(crop_w - overlap) * column,
                top_px=(crop_h - overlap) * row,
                right_px=min((crop_w - overlap) * column + crop_w, width_px),
                bottom_px=min((crop_h - overlap) * row + crop_h, height_px),
                step=side,
            )
            for row in range(side)
            for column in range(side)
        ]
    return [view for view in views if view.right_px > view.left_px and view.bottom_px > view.top_px]


def grid(points_per_side: int, height_px: int, width_px: int) -> npt.NDArray[np.float64]:
    """Return the middles of a grid of cells: float64 (n * n, 2), x and y in pixels, row by row."""
    middles = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(middles * width_px, middles * height_px)
    return np.stack([x.ravel(), y.ravel()], axis=-1)


class SamProposer:
    """Proposes masks by one SAM. Without prompts: of the whole picture; with them: one mask a prompt."""

    def __init__(self, model: Any, plan: ProposerPlan, settings: ProposeSettings, device: torch.device) -> None:
        """Raises InputError for a preprocessor_config.json that cannot be used."""
        self.name = plan.name
        self.model, self.settings, self.device = model, settings, device
        self.prompts = plan.prompts
        self.dtype = next(model.parameters()).dtype
        # The first SAM keeps a picture's proportions and pads it; the later ones stretch it to a square.
        self.is_padded = plan.kind == "sam"
        self.side_px = int(model.config.vision_config.image_size if self.is_padded else _side(model))
        self.mean, self.std = normalisation(Path(str(plan.folder)), plan.kind)

    @torch.inference_mode()
    def propose(self, picture_HWC: PixelsHWC, record: ImageRecord) -> list[Found]:
        """Return masks of the picture; those of prompts in their order."""
        height, width = picture_HWC.shape[:2]
        if self.prompts is not None:
            prompts = prompts_of(record, self.prompts)
            seen = self._seen(picture_HWC) if prompts else None
            answers = [self._of_prompt(seen, prompt, height, width) for prompt in prompts]
            return [one for one in answers if one is not None]
        found: list[Found] = []
        for view in views_of(height, width, self.settings.crop_layers):
            found += self._of_view(picture_HWC, view)
        return found

    def prepared(self, picture_HWC: PixelsHWC) -> tuple[torch.Tensor, float, float]:
        """Return pixel values (1, 3, S, S), and what x and y in pixels are multiplied by to be points of the model."""
        height, width = picture_HWC.shape[:2]
        new_h = new_w = self.side_px
        if self.is_padded:
            scale = self.side_px / max(height, width)
            new_h, new_w = int(height * scale + 0.5), int(width * scale + 0.5)
        pixels = prepared(picture_HWC, self.side_px, new_h, new_w, self.mean, self.std)
        return pixels.to(self.device, self.dtype), new_w / width, new_h / height

    def _seen(self, picture_HWC: PixelsHWC) -> tuple[Any, float, float]:
        pixels, scale_x, scale_y = self.prepared(picture_HWC)
        return self.model.get_image_embeddings(pixels), scale_x, scale_y

    def _of_view(self, picture_HWC: PixelsHWC, view: View) -> list[Found]:
        height, width = picture_HWC.shape[:2]
        crop = np.ascontiguousarray(picture_HWC[view.top_px : view.bottom_px, view.left_px : view.right_px])
        seen, scale_x, scale_y = self._seen(crop)
        points = grid(max(1, self.settings.points_per_side // view.step), *crop.shape[:2]) * [scale_x, scale_y]
        found: list[Found] = []
        for start in range(0, len(points), self.settings.points_per_batch):
            batch = torch.tensor(points[start : start + self.settings.points_per_batch], dtype=self.dtype)
            outputs = self.model(
                image_embeddings=seen,
                input_points=batch[None, :, None].to(self.device),
                input_labels=torch.ones(1, len(batch), 1, dtype=torch.int64, device=self.device),
                multimask_output=True,
            )
            scores_N = outputs.iou_scores.float().flatten()
            logits_Nhw = outputs.pred_masks.float().flatten(0, 2)
            good = scores_N >= self.settings.min_predicted_iou
            found += self._drawn(logits_Nhw[good], scores_N[good], crop.shape[:2], view, (height, width))
        return found

    def _drawn(
        self,
        logits_Nhw: torch.Tensor,
        scores_N: torch.Tensor,
        crop_size: tuple[int, int],
        view: View,
        size: tuple[int, int],
    ) -> list[Found]:
        """Return the stable ones of some masks of a view, drawn in the picture."""
        found = []
        at_once = max(1, MOST_PIXELS // (crop_size[0] * crop_size[1]))
        for start in range(0, len(logits_Nhw), at_once):
            full_NHW = self.enlarged(logits_Nhw[start : start + at_once], *crop_size)
            stable_N = stability(full_NHW)
            inside_NHW = (full_NHW > 0).cpu().numpy()
            for inside_HW, score, stable in zip(
                inside_NHW, scores_N[start : start + at_once].tolist(), stable_N.tolist(), strict=True
            ):
                if stable < self.settings.min_stability or _is_cut_off(inside_HW, view, size):
                    continue
                whole = np.zeros(size, dtype=np.uint8, order="F")
                whole[view.top_px : view.bottom_px, view.left_px : view.right_px] = inside_HW
                one = mask_found(coco_mask.encode(whole), score)
                if one is not None:
                    found.append(one)
        return found

    def enlarged(self, logits_Nhw: torch.Tensor, height_px: int, width_px: int) -> torch.Tensor:
        """Return the decoder's logits at the size of the picture that was prepared: (N, H, W)."""
        logits = logits_Nhw[:, None]
        if self.is_padded:
            side = self.side_px
            scale = side / max(height_px, width_px)
            logits = functional.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
            logits = logits[..., : int(height_px * scale + 0.5), : int(width_px * scale + 0.5)]
        return functional.interpolate(logits, (height_px, width_px), mode="bilinear", align_corners=False)[:, 0]

    def _of_prompt(self, seen: Any, prompt: Prompt, height_px: int, width_px: int) -> Found | None:
        embeddings, scale_x, scale_y = seen
        inputs: dict[str, torch.Tensor] = {}
        if prompt.points_xy:
            points = torch.tensor(prompt.points_xy, dtype=self.dtype) * torch.tensor(
                [scale_x, scale_y], dtype=self.dtype
            )
            inputs["input_points"] = points[None, None].to(self.device)
            inputs["input_labels"] = torch.tensor(prompt.labels, device=self.device)[None, None]
        if prompt.box_xyxy is not None:
            box = torch.tensor(prompt.box_xyxy, dtype=self.dtype)
            box = box * torch.tensor([scale_x, scale_y, scale_x, scale_y], dtype=self.dtype)
            inputs["input_boxes"] = box[None, None].to(self.device)
        # One point may mean a part or the whole: three masks, and the one that the model finds best.
        is_vague = len(prompt.points_xy) == 1 and prompt.box_xyxy is None
        outputs = self.model(image_embeddings=embeddings, multimask_output=is_vague, **inputs)
        scores_K = outputs.iou_scores.float().flatten()
        best = int(scores_K.argmax())
        logits = outputs.pred_masks.float().flatten(0, 2)[best][None]
        inside_HW = (self.enlarged(logits, height_px, width_px)[0] > 0).cpu().numpy()
        return mask_found(coco_mask.encode(np.asfortranarray(inside_HW, dtype=np.uint8)), float(scores_K[best]))


def stability(logits_NHW: torch.Tensor) -> torch.Tensor:
    """Return the IoU of each mask at a higher and at a lower threshold, (N,) in [0, 1]; the one lies within the other."""
    inner = (logits_NHW > _OFFSET).flatten(1).sum(-1)
    outer = (logits_NHW > -_OFFSET).flatten(1).sum(-1)
    return inner.float() / outer.clamp(min=1).float()


def _is_cut_off(inside_HW: npt.NDArray[np.bool_], view: View, size: tuple[int, int]) -> bool:
    """Return whether a mask reaches an edge of its crop that is not the picture's: another crop shows more of it."""
    rows, columns = np.flatnonzero(inside_HW.any(axis=1)), np.flatnonzero(inside_HW.any(axis=0))
    if not len(rows):
        return True
    height, width = inside_HW.shape
    return bool(
        (view.left_px > 0 and columns[0] < _EDGE_PX)
        or (view.top_px > 0 and rows[0] < _EDGE_PX)
        or (view.right_px < size[1] and columns[-1] >= width - _EDGE_PX)
        or (view.bottom_px < size[0] and rows[-1] >= height - _EDGE_PX)
    )


def _side(model: Any) -> int:
    side = model.config.prompt_encoder_config.image_size
    return int(side[0] if isinstance(side, list | tuple) else side)


def prepared(
    picture_HWC: PixelsHWC,
    side_px: int,
    new_height_px: int,
    new_width_px: int,
    mean: npt.NDArray[np.float32],
    std: npt.NDArray[np.float32],
) -> torch.Tensor:
    """Return a picture at another size, its channels normalised, in the upper left of a square of zeros: float32 (1, 3, side, side)."""
    size = (max(new_width_px, 1), max(new_height_px, 1))
    small = Image.fromarray(picture_HWC).resize(size, Image.Resampling.BILINEAR)
    values = (np.asarray(small, dtype=np.float32) / 255.0 - mean) / std
    square = np.zeros((side_px, side_px, 3), dtype=np.float32)
    square[: values.shape[0], : values.shape[1]] = values
    return torch.from_numpy(square).permute(2, 0, 1)[None]


def normalisation(folder: Path, kind: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and standard deviation of the channels: those of the folder's processor, or the kind's own where it has none.

    Raises InputError for a file that says something else.
    """
    mean, std = (_HALF, _HALF) if kind.startswith("sam3") else (_MEAN, _STD)
    path, config = _processor_config(folder)
    values = []
    for name, default in (("image_mean", mean), ("image_std", std)):
        got = config.get(name, default) if isinstance(config, dict) else None
        numbers = [n for n in got if isinstance(n, int | float)] if isinstance(got, list | tuple) else []
        if len(numbers) != 3 or (name == "image_std" and not all(n > 0 for n in numbers)):
            raise InputError(
                f"{path}: {name}: expected three numbers, got {str(got)[:80]}. Copy or download the folder again."
            )
        values.append(np.asarray(numbers, dtype=np.float32))
    return values[0], values[1]


def _processor_config(folder: Path) -> tuple[Path, JsonValue]:
    """Return what is known of the image processor, and the file that says it: of its own, or in that of the whole processor, as transformers 5 saves it."""
    own = folder / "preprocessor_config.json"
    for path in (own, folder / "processor_config.json"):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: expected JSON, got: {str(error)[:200]}. Copy or download the folder again."
            ) from error
        if path == own:
            return path, config
        return path, config.get("image_processor", {}) if isinstance(config, dict) else None
    return own, {}
