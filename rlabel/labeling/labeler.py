"""The Labeler: one shard in, one outcome a region out. The whole product without Ray or a run directory.

Batches form inside the shard, in its order, so that a shard gives the same bytes wherever and whenever it is labeled. Pictures are
decoded and masks drawn on threads ahead of the model, texts snapped on one behind it (`stages`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from rlabel.corpus.decoding import IN_PROCESS, Decoder
from rlabel.corpus.inputs import PreparedImage, PreparedRegion, prepare_image, stray_failure
from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import RegionMask
from rlabel.labeling.budget import is_out_of_memory
from rlabel.labeling.continuous import ContinuousBatch
from rlabel.labeling.describer import Describer, JoinableDescriber, sight_of
from rlabel.labeling.engine import Decoded
from rlabel.labeling.stages import ShardWork, Stages, Step
from rlabel.records import (
    Abstention,
    BoxXywh,
    Caption,
    Failure,
    ImageRecord,
    JsonValue,
    Label,
    LikelyCategory,
    Outcome,
    Region,
    Shard,
    ShardResult,
    Snap,
)
from rlabel.spans import span
from rlabel.storage import Store
from rlabel.vocabulary.calibration import Calibrator, finished
from rlabel.vocabulary.likelihood import Choosing, likelihood_score
from rlabel.vocabulary.scores import evidence_of, label_score, text_score
from rlabel.vocabulary.snapping import Snapper

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Some regions of one image with their model inputs; an image with more regions than a batch gives several.

    Holds no pixels: a batch may be made of as many large pictures as it has regions.
    """

    record: ImageRecord
    regions: tuple[PreparedRegion, ...]
    inputs: Any


# A piece with the answers to its regions, or with the cause why the model gave none: no error, whose frames hold what was on the device.
_Answered: TypeAlias = tuple[_Piece, list[Decoded] | str]


class Labeler:
    """Labels shards with one describer and one vocabulary. max_regions_per_batch bounds the regions that go through the model at once.

    snapper: None keeps every answer as it is, as a caption. choosing: decides by likelihoods, where the describer gives some.
    calibrator: turns the scores of labels into how often such labels are right. min_score: labels below it, calibrated, become abstentions.
    num_prepare: threads that prepare pictures.
    """

    def __init__(
        self,
        describer: Describer,
        snapper: Snapper | None,
        *,
        max_regions_per_batch: int = 64,
        limits: Limits | None = None,
        include_crowds: bool = True,
        choosing: Choosing | None = None,
        calibrator: Calibrator | None = None,
        min_score: float | None = None,
        num_prepare: int = 1,
    ) -> None:
        self.describer = describer
        self.snapper = snapper
        self.choosing = choosing
        self.calibrator = calibrator
        self.min_score = min_score
        self.max_regions_per_batch = max_regions_per_batch
        self.limits = limits or Limits()
        self.decoder: Decoder = IN_PROCESS  # a worker sets its own
        self.include_crowds = include_crowds
        self.stages = Stages(num_prepare)

    def label(self, shard: Shard, images: Store) -> ShardResult:
        """Return what became of every region of the shard.

        Raises StorageError when the image store cannot be read now; the shard may be tried again.
        """
        with self.begin(shard, images) as work:
            work.answer()
            return work.result()

    def begin(self, shard: Shard, images: Store) -> ShardWork[_Piece, list[_Answered]]:
        """Return the shard in work, its first pictures being prepared; several shards may be in work at once."""
        joined = None
        if isinstance(self.describer, JoinableDescriber):
            joined = self.describer.continuous(self.max_regions_per_batch)
        joining = None if joined is None else _Joining(joined, self._answered)
        return ShardWork(
            shard,
            self.stages,
            images=(self._steps(record, images) for record in shard.images),
            fits=self._fits if joining is None else joining.fits,
            answered=self._answered if joining is None else joining.answered,
            rest=None if joining is None else joining.rest,
            forget=None if joining is None else joining.forget,
            finished=self._finished,
            outcomes={region.key: stray_failure(region) for region in shard.stray_regions},
        )

    def _steps(self, record: ImageRecord, images: Store) -> Iterator[Step[_Piece]]:
        """Yield the model inputs of an image, so many regions at a time as a batch takes, and the failures met on the way."""
        size = self.max_regions_per_batch
        image: PreparedImage | None = prepare_image(
            images,
            record,
            self.limits,
            include_crowds=self.include_crowds,
            sight=sight_of(self.describer),
            decoder=self.decoder,
        )
        assert image is not None
        lost: dict[str, Outcome] = {failure.region.key: failure for failure in image.failures}
        regions = image.regions
        if not regions:
            yield Step(outcomes=lost)
        for start in range(0, len(regions), size):
            group, is_last = regions[start : start + size], start + size >= len(regions)
            piece = None
            assert image is not None
            try:
                with span("model inputs"):
                    piece = _Piece(record=record, regions=group, inputs=self.describer.prepare(image, group))
            except Exception as error:
                lost.update(_model_failures(record, group, model_failure(error)))
            if is_last:
                image = None  # a step that waits to be taken holds no pixels
            yield Step(outcomes=lost, piece=piece, is_last=is_last)
            lost = {}

    def _fits(self, batch: Sequence[_Piece]) -> bool:
        return sum(len(piece.regions) for piece in batch) <= self.max_regions_per_batch

    def _answered(self, batch: Sequence[_Piece]) -> list[_Answered]:
        """Answer a batch. What the model cannot do is told of the one image that it cannot do."""
        try:
            answers = self.describer.describe([piece.inputs for piece in batch])
        except torch.AcceleratorError:
            # Not the picture's fault: after one of these a process can do nothing more on its GPU. The driver takes a new one.
            raise
        except Exception as error:
            if len(batch) == 1:
                return [(batch[0], model_failure(error))]
        else:
            return list(zip(batch, answers, strict=True))
        return [answered for piece in batch for answered in self._answered([piece])]

    def _finished(self, answered: Sequence[_Answered]) -> dict[str, Outcome]:
        """Snap the texts of a batch."""
        texts = list(dict.fromkeys(answer.text for _, told in answered if not isinstance(told, str) for answer in told))
        # Together: the sentence encoder takes many texts at once.
        with span("snap"):
            snaps = {} if self.snapper is None else dict(zip(texts, self.snapper.snap(texts), strict=True))
        outcomes: dict[str, Outcome] = {}
        for piece, told in answered:
            if isinstance(told, str):
                outcomes.update(_model_failures(piece.record, piece.regions, told))
                continue
            for region, answer in zip(piece.regions, told, strict=True):
                outcomes[region.region.key] = self._outcome(piece.record, region, answer, snaps.get(answer.text))
        return outcomes

    def _outcome(self, record: ImageRecord, prepared: PreparedRegion, answer: Decoded, snap: Snap | None) -> Outcome:
        problem = unusable(answer, may_be_empty=self.snapper is not None)
        if problem is not None:
            return _failure(prepared.region, record, *problem)
        if snap is None:
            return _caption(record, prepared, answer)
        candidates: tuple[LikelyCategory, ...] = ()
        if self.choosing is not None:
            snap, candidates = self.choosing.choose(snap, answer.likely_names)
        outcome = _label(record, prepared, answer, snap, candidates)
        return finished(outcome, self.calibrator, self.min_score) if isinstance(outcome, Label) else outcome


class _Joining:
    """The pieces of one shard in a batch that they join and leave one by one. apart: answers a piece that the batch could not."""

    def __init__(self, batch: ContinuousBatch[_Piece], apart: Callable[[Sequence[_Piece]], list[_Answered]]) -> None:
        self._batch = batch
        self._apart = apart

    def fits(self, pieces: Sequence[_Piece]) -> bool:
        return self._batch.fits([piece.inputs for piece in pieces])

    def answered(self, pieces: Sequence[_Piece]) -> list[_Answered]:
        """Let pieces join; return what was answered meanwhile, theirs or those of others."""
        return self._tried(lambda: self._batch.add(pieces, [piece.inputs for piece in pieces]))

    def rest(self) -> list[_Answered]:
        return self._tried(self._batch.finish)

    def forget(self) -> None:
        self._batch.give_up()

    def _tried(self, go_on: Callable[[], None]) -> list[_Answered]:
        try:
            go_on()
        except torch.AcceleratorError:
            raise  # as in Labeler._answered
        except Exception as error:
            log.warning(
                "the model failed while it answered images together: %r; those without answers are asked apart", error
            )
            is_full = is_out_of_memory(error)
        else:
            return list(self._batch.take())
        # Outside the handler: the error holds what the failed try had allocated.
        if is_full:
            self._batch.take_less()
        return [*self._batch.take(), *(told for piece in self._batch.give_up() for told in self._apart([piece]))]


def unusable(answer: Decoded, *, may_be_empty: bool) -> tuple[str, str] | None:
    """Return (cause, kind of failure) of an answer that cannot be kept, or None. may_be_empty: whether one without a letter or digit may."""
    if answer.problem is not None:
        return answer.problem, "answer"
    if not all(math.isfinite(value) for value in answer.token_logprobs):
        return "the model gave no finite probabilities", "model"
    if not may_be_empty and not any(character.isalnum() for character in answer.text):
        return (f"the answer has no words: {answer.text[:80]!r}" if answer.text else "the answer is empty"), "answer"
    return None


def rounded_box(mask: RegionMask) -> BoxXywh:
    """Return the box of a mask as it is written: pixels, to 3 decimals."""
    x, y, width, height = (round(float(value), 3) for value in mask.box_xywh)
    return x, y, width, height


def _caption(record: ImageRecord, prepared: PreparedRegion, answer: Decoded) -> Caption:
    return Caption(
        region=prepared.region,
        image_id=record.row.get("id"),
        text=answer.text,
        score=text_score(answer.token_logprobs),
        box_xywh=rounded_box(prepared.mask),
        area_px=prepared.mask.area_px,
        segmentation=segmentation_to_write(prepared.region, prepared.mask),
    )


def _label(
    record: ImageRecord, prepared: PreparedRegion, answer: Decoded, snap: Snap, candidates: tuple[LikelyCategory, ...]
) -> Label | Abstention:
    region, mask, image_id = prepared.region, prepared.mask, record.row.get("id")
    probability = text_score(answer.token_logprobs)
    box_xywh = rounded_box(mask)
    evidence = replace(evidence_of(answer.token_logprobs, answer.agreement), candidates=candidates)
    if snap.category_id is None:
        return Abstention(
            region=region,
            image_id=image_id,
            text=answer.text,
            text_score=probability,
            snap=snap,
            box_xywh=box_xywh,
            area_px=mask.area_px,
            evidence=evidence,
        )
    return Label(
        region=region,
        image_id=image_id,
        category_id=snap.category_id,
        score=likelihood_score(candidates, snap.category_id) if candidates else label_score(probability, snap),
        text=answer.text,
        text_score=probability,
        snap=snap,
        box_xywh=box_xywh,
        area_px=mask.area_px,
        segmentation=segmentation_to_write(region, mask),
        evidence=evidence,
    )


def segmentation_to_write(region: Region, mask: RegionMask) -> JsonValue:
    """Return the input's segmentation verbatim where every reader takes it, else the mask as compressed RLE; None for boxes.

    Polygons that had to be mended are not passed on: pycocotools takes a part of four numbers for a box.
    """
    if mask.source == "box":
        return None
    given = region.segmentation
    if mask.source == "polygons" and mask.note is None:
        return given
    if isinstance(given, dict) and isinstance(given.get("counts"), str):
        return given
    return mask.to_rle()


def _failure(region: Region, record: ImageRecord, cause: str, kind: str = "model") -> Failure:
    reason = f"{image_name(record)}, region {region.key}: {cause}."
    return Failure(region=region, image_id=record.row.get("id"), kind=kind, reason=reason)


def image_name(record: ImageRecord) -> str:
    return record.file_name or f"image id {record.row.get('id')}"


def _model_failures(record: ImageRecord, regions: tuple[PreparedRegion, ...], cause: str) -> dict[str, Outcome]:
    log.warning("%s: %s", record.file_name, cause)
    return {region.region.key: _failure(region.region, record, cause) for region in regions}


def model_failure(error: Exception) -> str:
    return f"the model failed ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
