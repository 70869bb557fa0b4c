"""Applies what a person decided about a run's labels: labels.reviewed.json beside labels.json, and a line on each decision. Shards stay as they are.

Made from labels.json and the shards each time, so that the same decisions give the same bytes however often they are applied.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from rlabel.corpus.limits import WIDEST
from rlabel.corpus.masks import BadRegion, rasterise
from rlabel.errors import InputError, RunError, UsageError
from rlabel.records import Abstention, Evidence, Failure, JsonObject, JsonValue, Label, Outcome, Snap
from rlabel.run.canonical import canonical_bytes, canonical_sha256, json_safe, object_of
from rlabel.run.coco import label_to_annotation
from rlabel.run.directory import RunDirectory
from rlabel.run.merge import LABELS
from rlabel.schema_files import validate
from rlabel.storage import MissingFile, open_url

REVIEWED, REVIEWED_LINES = "labels.reviewed.json", "reviewed.jsonl"
_MAX_FILE_BYTES = 256 * 1024 * 1024
_MAX_NAMED = 5
_RUN_ID_LENGTH = 12
DecisionKind = Literal["accept", "category", "abstain"]
_KINDS: tuple[DecisionKind, ...] = ("accept", "category", "abstain")
_EMPTY_REVIEW: JsonObject = {"format": "rlabel-review", "version": 1, "decisions": []}
_DECISION_KEYS = ("region_key", "decision", "category_id")
_MAKE_ANEW = "Delete the file, and apply the decisions again with `rlabel review`."
_INFO, _ANNOTATIONS = b'{"info":', b'"annotations":['


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a person says of a region. category_id: of "category" only."""

    region_key: str
    kind: DecisionKind
    category_id: int | None = None

    def to_json(self) -> JsonObject:
        more: JsonObject = {} if self.category_id is None else {"category_id": self.category_id}
        return {"region_key": self.region_key, "decision": self.kind, **more}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewCounts:
    """What an application of decisions came to. labels: in labels.reviewed.json. changed: given another category, or one at all.

    dropped: regions decided in the review before, and no longer: each application starts anew from labels.json.
    """

    labels: int
    accepted: int
    changed: int
    abstained: int
    undecided: int
    dropped: int


def read_decisions(urls: Sequence[str], run: RunDirectory) -> dict[str, Decision]:
    """Return the decisions of all files, by region. Several people may have a file each.

    Raises InputError naming the file for one that is no review of this run, a category the run has not, or two decisions on one region.
    """
    categories = {row.get("id") for row in run.manifest.categories}
    found: dict[str, tuple[Decision, str]] = {}
    for url in urls:
        document = object_of(_loaded(url))
        validate(document, "review", url)
        if document["run"] != run.fingerprint:
            raise InputError(
                f"{url}: expected decisions on the run {run.fingerprint[:12]} ({run.store.url}), got some on the run "
                f"{str(document['run'])[:12]}. Name the run whose page was reviewed."
            )
        rows = document["decisions"]
        decisions = [_decision(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        unknown = [one for one in decisions if one.category_id is not None and one.category_id not in categories]
        if unknown:
            named = ", ".join(f"{one.category_id} (region {one.region_key[:80]})" for one in unknown[:_MAX_NAMED])
            raise InputError(
                f"{url}: expected ids of the run's {len(categories)} categories, got {len(unknown)} others: {named}. "
                "Review the page of this run, or correct the ids."
            )
        for decision in decisions:
            earlier, where = found.get(decision.region_key, (decision, url))
            if decision.region_key in found and (earlier != decision or where == url):
                raise InputError(
                    f"{url}: region {decision.region_key[:80]}: expected one decision on a region, got {_words(earlier)} ({where}) "
                    f"and {_words(decision)}. Keep one of the two."
                )
            found[decision.region_key] = (decision, url)
    return {key: decision for key, (decision, _) in found.items()}


def former_decisions(run: RunDirectory) -> list[Decision]:
    """Return the decisions that were applied to the run last, in its order; none where nothing was reviewed.

    Raises InputError for a reviewed.jsonl that is not what an application writes.
    """
    where = run.store.join(REVIEWED_LINES)
    try:
        with closing(run.store.open_read(REVIEWED_LINES)) as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
    except MissingFile:
        return []
    if len(data) > _MAX_FILE_BYTES:
        raise InputError(f"{where}: expected at most {_MAX_FILE_BYTES} bytes, got more. {_MAKE_ANEW}")
    try:
        lines = [object_of(json.loads(line)) for line in data.splitlines()]
        rows: list[JsonObject] = [{key: line[key] for key in _DECISION_KEYS if key in line} for line in lines]
        validate({**_EMPTY_REVIEW, "run": run.fingerprint, "decisions": list[JsonValue](rows)}, "review", where)
    except (ValueError, RecursionError, InputError) as error:
        raise InputError(
            f"{where}: expected a decision in each line, got something else ({error}). {_MAKE_ANEW}"
        ) from error
    return [_decision(row) for row in rows]


def apply_decisions(run: RunDirectory, decisions: dict[str, Decision]) -> ReviewCounts:
    """Write labels.reviewed.json and reviewed.jsonl into the run's folder and return what is in them.

    A label that a person decided has `decided_by` "review", a score of 1, and what it was before as `former_...`; all other
    rows are those of labels.json, byte for byte.

    Raises UsageError for a run of another task, InputError for decisions on regions that the run has not or that cannot be
    taken, or a damaged reviewed.jsonl of an earlier review, RunError where labels.json and the shards are not of one run.
    """
    if run.manifest.task != "classify":
        raise UsageError(f"{run.store.url}: expected a run of --task classify, got one of {run.manifest.task}.")
    before = _look(run, decisions)
    former = {decision.region_key for decision in former_decisions(run)}
    counts: Counter[str] = Counter(decision.kind for decision in decisions.values())
    lines: list[bytes] = []
    work = _Work(run, decisions, before, lines)
    run.store.put_stream(REVIEWED, work.chunks(counts))
    run.store.put_stream(REVIEWED_LINES, lines)
    return ReviewCounts(
        labels=work.num_labels,
        accepted=counts["accept"],
        changed=counts["category"],
        abstained=counts["abstain"],
        undecided=before.num_regions - len(decisions),
        dropped=len(former - decisions.keys()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """What a first look at the shards tells. next_id: above every id of labels.json and of the corpus."""

    num_regions: int
    num_labels: int
    next_id: int
    keeps_ids: bool


def _look(run: RunDirectory, decisions: dict[str, Decision]) -> _Before:
    """Check that every decision can be taken, before anything is written."""
    unseen = dict.fromkeys(decisions)
    num_regions = num_labels = num_without_id = largest = 0
    for result in run.results():
        for outcome in result.outcomes:
            if not isinstance(outcome, Label | Abstention | Failure):
                continue
            num_regions += 1
            own_id = outcome.region.annotation_id
            largest = max(largest, own_id or 0)
            if isinstance(outcome, Label):
                num_labels += 1
                num_without_id += own_id is None
            decision = decisions.get(outcome.key)
            if decision is None:
                continue
            unseen.pop(outcome.key, None)
            if decision.kind == "accept" and not isinstance(outcome, Label):
                raise InputError(
                    f"region {outcome.key[:80]}: expected a label to accept, got {_STATUS[type(outcome)]} region. "
                    "Decide a category for it, or abstain."
                )
    if unseen:
        named = ", ".join(key[:80] for key in list(unseen)[:_MAX_NAMED])
        raise InputError(
            f"{run.store.url}: {len(unseen)} decisions are on regions that the run has not: {named}. "
            "Take these rows out, or name the run that was reviewed."
        )
    return _Before(
        num_regions=num_regions,
        num_labels=num_labels,
        next_id=largest + num_without_id + 1,
        keeps_ids=num_without_id == 0,
    )


_STATUS: dict[type[Outcome], str] = {Label: "a labeled", Abstention: "an abstained", Failure: "a failed"}


class _Work:
    """One pass over labels.json and the shards, side by side: both are in the same order."""

    def __init__(self, run: RunDirectory, decisions: dict[str, Decision], before: _Before, lines: list[bytes]) -> None:
        self.run, self.decisions, self.before, self.lines = run, decisions, before, lines
        self.next_id, self.num_labels = before.next_id, 0

    def chunks(self, counts: Counter[str]) -> Iterator[bytes]:
        try:
            stream = self.run.store.open_read(LABELS)
        except MissingFile as error:
            raise self._not_merged("there is none") from error
        with closing(stream):
            yield from self._head(stream.readline(), counts)
            for line in stream:
                if line.startswith(_ANNOTATIONS):
                    break
                yield line
            else:
                raise self._not_merged("it has no annotations")
            yield _ANNOTATIONS
            rows = iter(()) if line.rstrip() == _ANNOTATIONS + b"]}" else iter(stream)
            for row in self._rows(rows):
                yield (b",\n" if self.num_labels else b"\n") + row
                self.num_labels += 1
            yield b"\n]}\n" if self.num_labels else b"]}\n"

    def _head(self, line: bytes, counts: Counter[str]) -> Iterator[bytes]:
        try:
            info = object_of(json.loads(line[len(_INFO) :].rstrip().removesuffix(b",")))
        except (ValueError, RecursionError) as error:
            raise self._not_merged("its first line is not what a merge writes") from error
        if not line.startswith(_INFO) or object_of(info.get("rlabel")).get("run") != self.run.fingerprint:
            raise self._not_merged("it is of another run")
        decided = [self.decisions[key].to_json() for key in sorted(self.decisions)]
        info["rlabel_review"] = {
            "decisions_sha256": canonical_sha256(list[JsonValue](decided)),
            "accepted": counts["accept"],
            "changed": counts["category"],
            "abstained": counts["abstain"],
        }
        yield _INFO + canonical_bytes(info) + b",\n"

    def _rows(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the rows of labels.reviewed.json, in the order of the shards."""
        for result in self.run.results():
            for outcome in result.outcomes:
                row = self._next_row(lines) if isinstance(outcome, Label) else None
                decision = self.decisions.get(outcome.key)
                if decision is None:
                    if row is not None:
                        yield row
                elif isinstance(outcome, Label | Abstention | Failure):
                    reviewed = self._reviewed(outcome, row, decision, result.images)
                    if reviewed is not None:
                        yield canonical_bytes(reviewed)
        if next(lines, b"]}").rstrip() != b"]}":
            raise self._not_merged("it has more labels than the shards")

    def _next_row(self, lines: Iterator[bytes]) -> bytes:
        line = next(lines, b"]}").rstrip(b"\n").removesuffix(b",")
        if not line.startswith(b'{"'):
            raise self._not_merged("it has fewer labels than the shards")
        return line

    def _reviewed(
        self, outcome: Label | Abstention | Failure, row: bytes | None, decision: Decision, images: Sequence[JsonObject]
    ) -> JsonObject | None:
        """Return the row of a decided region, None where the decision is to have none; put what was decided on record."""
        former = _former(outcome)
        self.lines.append(
            canonical_bytes(
                {
                    **decision.to_json(),
                    "image_id": json_safe(outcome.image_id),
                    "region_id": outcome.region.region_id,
                    **former,
                }
            )
            + b"\n"
        )
        if decision.kind == "abstain":
            return None
        if row is not None:
            annotation = object_of(json.loads(row))
        else:
            own_id = outcome.region.annotation_id if self.before.keeps_ids else None
            if own_id is None:
                own_id, self.next_id = self.next_id, self.next_id + 1
            label = _as_label(outcome, images)
            annotation = label_to_annotation(label, own_id, self.run.fingerprint[:_RUN_ID_LENGTH])
        attributes = object_of(annotation.get("attributes"))
        if attributes.get("region_id") != outcome.region.region_id:
            raise self._not_merged(f"a label is not that of region {outcome.key[:80]}")
        if decision.category_id is not None:
            annotation["category_id"] = decision.category_id
        annotation["score"] = 1.0
        annotation["attributes"] = {**attributes, **former, "decided_by": "review"}
        return annotation

    def _not_merged(self, why: str) -> RunError:
        return RunError(
            f"{self.run.store.join(LABELS)}: expected the labels merged from this run's shards, but {why}. "
            "Run the run's label command again: it merges what is there."
        )


def _former(outcome: Label | Abstention | Failure) -> JsonObject:
    """Return what a region was before the review, as scalars, which CVAT and datumaro keep."""
    if isinstance(outcome, Failure):
        return {"former_status": "failed"}
    if isinstance(outcome, Abstention):
        return {"former_status": "abstained"}
    return {
        "former_status": "labeled",
        "former_category_id": outcome.category_id,
        "former_score": outcome.score,
        "former_decided_by": outcome.snap.decided_by,
    }


def _as_label(outcome: Label | Abstention | Failure, images: Sequence[JsonObject]) -> Label:
    """Return a region without a label as one with its outline; category, score and step are yet to be set."""
    if isinstance(outcome, Label):
        return outcome
    region = outcome.region
    if isinstance(outcome, Abstention):
        text, text_score, evidence = outcome.text, outcome.text_score, outcome.evidence
        snap, box_xywh, area_px = outcome.snap, outcome.box_xywh, outcome.area_px
    else:
        row = next((row for row in images if row.get("id") == outcome.image_id), {})
        height_px, width_px = row.get("height"), row.get("width")
        try:
            if not isinstance(height_px, int) or not isinstance(width_px, int):
                raise BadRegion("its image row states no width and height")
            mask = rasterise(region.segmentation, region.box_xywh, height_px, width_px, WIDEST)
        except BadRegion as error:
            raise InputError(
                f"region {outcome.key[:80]}: expected an outline to label, but {error}. Take its decision out of the file."
            ) from error
        text, text_score, evidence = "", 0.0, Evidence()
        snap = Snap(category_id=None, nearest_name=None, similarity=0.0, margin=0.0, decided_by=None)
        box_xywh, area_px = mask.box_xywh, mask.area_px
    return Label(
        region=region,
        image_id=json_safe(outcome.image_id),
        category_id=0,
        score=1.0,
        text=text,
        text_score=text_score,
        snap=snap,
        box_xywh=box_xywh,
        area_px=area_px,
        segmentation=json_safe(region.segmentation),
        evidence=evidence,
    )


def _decision(row: JsonObject) -> Decision:
    category_id = row.get("category_id")
    kind = next(kind for kind in _KINDS if kind == row["decision"])  # one of them, by the schema
    return Decision(
        region_key=str(row["region_key"]),
        kind=kind,
        category_id=int(category_id) if isinstance(category_id, int | float) else None,
    )


def _words(decision: Decision) -> str:
    return decision.kind if decision.category_id is None else f"category {decision.category_id}"


def _loaded(url: str) -> JsonValue:
    try:
        with closing(open_url(url)) as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
    except MissingFile as error:
        raise InputError(f"{url}: there is no such file. Name the decisions.json that the page downloaded.") from error
    if len(data) > _MAX_FILE_BYTES:
        raise InputError(f"{url}: expected at most {_MAX_FILE_BYTES} bytes of decisions, got more. Split the file.")
    try:
        loaded: JsonValue = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{url}: expected JSON, got something else ({error}). Download the decisions again."
        ) from error
    return loaded
