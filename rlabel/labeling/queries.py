"""The labeler of pairs and expressions: one shard in, one outcome a query out. What `labeler` is for single regions.

Only regions that a query names are drawn and encoded. Batches form inside the shard, in its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from rlabel.corpus.decoding import IN_PROCESS, Decoder
from rlabel.corpus.inputs import PreparedImage, PreparedRegion, prepare_image, query_failure
from rlabel.corpus.limits import Limits
from rlabel.labeling.askers import Asked, Asker, Chosen
from rlabel.labeling.describer import sight_of
from rlabel.labeling.engine import Decoded
from rlabel.labeling.labeler import image_name, model_failure, rounded_box, unusable
from rlabel.labeling.stages import ShardWork, Stages, Step
from rlabel.records import (
    Candidate,
    Expression,
    Failure,
    ImageRecord,
    Outcome,
    Pair,
    Place,
    Query,
    QueryFailure,
    Referral,
    Relation,
    Shard,
    ShardResult,
)
from rlabel.spans import span
from rlabel.storage import Store
from rlabel.vocabulary.scores import text_score


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Some queries about one image, with the model inputs of the regions that they name. asked: by the places of `regions`."""

    record: ImageRecord
    regions: tuple[PreparedRegion, ...]
    queries: tuple[Query, ...]
    asked: tuple[Asked, ...]
    inputs: Any


# A piece with the answers to its queries, or with the cause why the model gave none, as in `labeler`.
_Answered: TypeAlias = tuple[_Piece, Sequence[Decoded | Chosen] | str]


class QueryLabeler:
    """Answers the queries of shards with one asker. max_regions_per_batch bounds the regions, and the queries, that go through the model at once;
    an expression alone may have more candidates."""

    def __init__(
        self,
        asker: Asker,
        *,
        max_regions_per_batch: int = 64,
        limits: Limits | None = None,
        include_crowds: bool = True,
        num_prepare: int = 1,
    ) -> None:
        self.asker = asker
        self.max_regions_per_batch = max_regions_per_batch
        self.limits = limits or Limits()
        self.decoder: Decoder = IN_PROCESS  # a worker sets its own
        self.include_crowds = include_crowds
        self.stages = Stages(num_prepare)

    def label(self, shard: Shard, images: Store) -> ShardResult:
        """Return what became of every query of the shard.

        Raises StorageError when the image store cannot be read now; the shard may be tried again.
        """
        with self.begin(shard, images) as work:
            work.answer()
            return work.result()

    def begin(self, shard: Shard, images: Store) -> ShardWork[_Piece, list[_Answered]]:
        """Return the shard in work, its first pictures being prepared; several shards may be in work at once."""
        return ShardWork(
            shard,
            self.stages,
            images=(self._steps(record, images) for record in shard.images),
            fits=self._fits,
            answered=self._answered,
            finished=_finished,
            outcomes={query.key: query_failure(query) for query in shard.stray_queries},
        )

    def _fits(self, batch: Sequence[_Piece]) -> bool:
        size = self.max_regions_per_batch
        return max(sum(len(item.regions) for item in batch), sum(len(item.queries) for item in batch)) <= size

    def _steps(self, record: ImageRecord, images: Store) -> Iterator[Step[_Piece]]:
        """Yield the model inputs of an image, so many queries at a time as a batch takes, and the failures met on the way."""
        queries = record.queries or ()
        failures = [query_failure(query, image_name(record)) for query in queries if query.problem is not None]
        named = {key for query in queries if query.problem is None for key in regions_of(query)}
        wanted = replace(record, regions=tuple(region for region in record.regions if region.key in named))
        image: PreparedImage | None = prepare_image(
            images,
            wanted,
            self.limits,
            include_crowds=self.include_crowds,
            sight=sight_of(self.asker),
            decoder=self.decoder,
        )
        assert image is not None
        prepared = {item.region.key: item for item in image.regions}
        lost = {failure.region.key: failure for failure in image.failures}
        usable: list[Query] = []
        for query in queries:
            if query.problem is not None:
                continue
            cause = _lost(query, lost)
            if cause is not None:
                failures.append(_failed(query, record, cause.kind, cause.reason.rstrip(".")))
            else:
                usable.append(query)
        groups = list(self._groups(usable, prepared))
        if not groups:
            yield Step(outcomes=_by_key(failures))
        for number, group in enumerate(groups, start=1):
            keys = [key for key in prepared if any(key in regions_of(query) for query in group)]
            place = {key: i for i, key in enumerate(keys)}
            asked = tuple(_asked(query, place) for query in group)
            regions = tuple(prepared[key] for key in keys)
            piece = None
            assert image is not None
            try:
                with span("model inputs"):
                    inputs = self.asker.prepare(image, regions)
                piece = _Piece(record=record, regions=regions, queries=tuple(group), asked=asked, inputs=inputs)
            except Exception as error:
                failures += [_failed(query, record, "model", model_failure(error)) for query in group]
            if number == len(groups):
                image = None  # a step that waits to be taken holds no pixels
            yield Step(outcomes=_by_key(failures), piece=piece, is_last=number == len(groups))
            failures = []

    def _groups(self, queries: Sequence[Query], prepared: dict[str, PreparedRegion]) -> Iterator[list[Query]]:
        """Yield the queries in their order, so many at a time that neither they nor their regions are more than a batch."""
        group: list[Query] = []
        keys: set[str] = set()
        for query in queries:
            own = {key for key in regions_of(query) if key in prepared}
            if group and max(len(keys | own), len(group) + 1) > self.max_regions_per_batch:
                yield group
                group, keys = [], set()
            group.append(query)
            keys |= own
        if group:
            yield group

    def _answered(self, batch: Sequence[_Piece]) -> list[_Answered]:
        """Answer a batch. What the model cannot do is told of the one query that it cannot do."""
        try:
            answers = self.asker.ask([piece.inputs for piece in batch], [piece.asked for piece in batch])
        except torch.AcceleratorError:
            # After one of these a process can do nothing more on its GPU. The driver takes a new one.
            raise
        except Exception as error:
            if len(batch) == 1 and len(batch[0].queries) == 1:
                return [(batch[0], model_failure(error))]
        else:
            return list(zip(batch, answers, strict=True))
        alone = batch
        if len(batch) == 1:
            queries = zip(batch[0].queries, batch[0].asked, strict=True)
            alone = [replace(batch[0], queries=(query,), asked=(asked,)) for query, asked in queries]
        return [answered for one in alone for answered in self._answered([one])]


def _finished(answered: Sequence[_Answered]) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for piece, told in answered:
        if isinstance(told, str):
            outcomes.update((query.key, _failed(query, piece.record, "model", told)) for query in piece.queries)
            continue
        for query, asked, answer in zip(piece.queries, piece.asked, told, strict=True):
            outcomes[query.key] = _outcome(piece, query, asked, answer)
    return outcomes


def _by_key(failures: Sequence[QueryFailure]) -> dict[str, Outcome]:
    return {failure.key: failure for failure in failures}


def regions_of(query: Query) -> tuple[str, ...]:
    """Return the keys of the regions that a query names."""
    return (query.subject, query.object) if isinstance(query, Pair) else query.candidates


def _failed(query: Query, record: ImageRecord, kind: str, cause: str) -> QueryFailure:
    reason = f"{image_name(record)}, {_what(query)}: {cause}."
    return QueryFailure(query=query, image_id=record.row.get("id"), kind=kind, reason=reason)


def _what(query: Query) -> str:
    return f"{'pair' if isinstance(query, Pair) else 'expression'} {query.key}"


def _lost(query: Query, lost: dict[str, Failure]) -> Failure | None:
    """Return the failure of a region without which a query cannot be asked: one of a pair, or the last of all candidates."""
    missing = [lost[key] for key in regions_of(query) if key in lost]
    if isinstance(query, Expression) and len(missing) < len(query.candidates):
        return None
    return missing[0] if missing else None


def _asked(query: Query, place: dict[str, int]) -> Asked:
    mentions = tuple(place[key] for key in regions_of(query) if key in place)
    return Asked(mentions=mentions, text=query.text if isinstance(query, Expression) else "")


def _outcome(piece: _Piece, query: Query, asked: Asked, answer: Decoded | Chosen) -> Outcome:
    record = piece.record
    places = [_place(piece.regions[i]) for i in asked.mentions]
    if isinstance(query, Pair):
        assert isinstance(answer, Decoded)
        problem = unusable(answer, may_be_empty=False)
        if problem is not None:
            return _failed(query, record, problem[1], problem[0])
        return Relation(
            pair=query,
            image_id=record.row.get("id"),
            predicate=answer.text,
            score=text_score(answer.token_logprobs),
            subject=places[0],
            object=places[1],
        )
    assert isinstance(answer, Chosen)
    if answer.place is None:
        return _failed(query, record, "model" if answer.text is None else "answer", str(answer.problem))
    scores: Sequence[float | None] = answer.scores or [None] * len(places)
    return Referral(
        expression=query,
        image_id=record.row.get("id"),
        chosen=places[answer.place],
        score=answer.score,
        candidates=tuple(
            Candidate(key=place.key, region_id=place.region_id, score=score)
            for place, score in zip(places, scores, strict=True)
        ),
        text=answer.text,
    )


def _place(prepared: PreparedRegion) -> Place:
    region = prepared.region
    return Place(
        key=region.key,
        region_id=region.region_id,
        box_xywh=rounded_box(prepared.mask),
        area_px=prepared.mask.area_px,
    )
