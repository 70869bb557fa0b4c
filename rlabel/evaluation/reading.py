"""Reads what an evaluation compares: a run directory, a truth file, a provenance file. Streams; keeps no outlines.

Ids are compared as text, since one side may have 7 and the other "7". Knows nothing of metrics.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from rlabel.corpus.json_stream import Member, stream_members
from rlabel.errors import InputError
from rlabel.records import BoxXywh, JsonObject, JsonValue
from rlabel.storage import MissingFile, Store, read_url, split_url

LABELS = "labels.json"
ABSTAINED = "abstained.jsonl"
FAILURES = "failures.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCategory:
    """A category as a file lists it."""

    category_id: int
    name: str
    synonyms: tuple[str, ...] = ()
    supercategory: str | None = None
    frequency: str | None = None  # of LVIS: r, c or f; of other files None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """What became of one region in a run.

    category_id, score, decided_by: of labels. detail: of failures, their kind.
    text: the model's answer, of labels and abstentions. nearest_name: of abstentions.
    """

    image_id: str
    region_id: str
    outcome: Literal["label", "abstention", "failure"]
    category_id: int | None = None
    score: float = 0.0
    decided_by: str = ""
    text: str = ""
    nearest_name: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthRegion:
    """An annotation of the truth.

    area_px: of its mask as the file states it, else of its box; None where it has neither.
    box_xywh: left, top, width, height in pixels, finite, width and height above 0; None where the file has no such box.
    """

    image_id: str
    region_id: str
    category_id: int
    is_crowd: bool
    area_px: float | None
    box_xywh: tuple[float, float, float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthImage:
    """An image of the truth. LVIS's fields: categories that are surely not in it, and those of which not every region is outlined.

    is_federated: the file has one of these fields, were they empty.
    """

    image_id: str
    is_federated: bool = False
    neg_category_ids: tuple[int, ...] = ()
    not_exhaustive_category_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """A truth file. regions: in file order, without those whose id occurs more than once (num_ambiguous of them)."""

    images: tuple[TruthImage, ...]
    categories: tuple[NamedCategory, ...]
    regions: tuple[TruthRegion, ...]
    num_ambiguous: int

    @property
    def image_ids(self) -> tuple[str, ...]:
        return tuple(image.image_id for image in self.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a region's object comes from. kind: photo or drawing, or whatever else the file says.

    source: of the picture that shows the object; regions of several images may have one source. None where the file does not say.
    """

    seen_in_train: bool
    kind: str | None
    source: str | None = None


def id_to_text(value: JsonValue) -> str | None:
    """Return an id as text: 7, 7.0 and "7" are the same; None for what is no id."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float | str) else None


def stream_rows(store: Store, name: str, array: str) -> Iterator[JsonObject]:
    """Yield the objects of one top-level array of a JSON file, in flat memory; nothing where there is no such array.

    Raises InputError for a file that is missing or no JSON, or a row that is no object.
    """
    where = store.join(name)
    for member in read_members(store, name):
        if member.name != array or member.value == []:
            continue
        if member.index is None:
            raise InputError(f"{where}: {array!r} is {type(member.value).__name__}, expected an array of objects.")
        if not isinstance(member.value, dict):
            kind = type(member.value).__name__
            raise InputError(f"{where}, {array}[{member.index}]: expected an object, got {kind}. Correct the row.")
        yield member.value


def read_members(store: Store, name: str) -> Iterator[Member]:
    """Yield the members of a JSON file's top-level object. Raises InputError for a file that is missing or no JSON."""
    where = store.join(name)
    try:
        stream = store.open_read(name)
    except MissingFile as error:
        ends = "; a run has its labels once `rlabel label` ended" if name == LABELS else ""
        raise InputError(f"{where}: there is no such file. Check the path{ends}.") from error
    with closing(stream):
        yield from stream_members(stream, where)


def read_categories(store: Store, name: str) -> tuple[NamedCategory, ...]:
    """Return a COCO file's categories. Raises InputError for a row without integer id and name, or a repeated id."""
    categories: dict[int, NamedCategory] = {}
    for row in stream_rows(store, name, "categories"):
        category_id, category_name = row.get("id"), row.get("name")
        where = f"{store.join(name)}, categories: {json.dumps(row)[:200]}"
        if isinstance(category_id, bool) or not isinstance(category_id, int) or not isinstance(category_name, str):
            raise InputError(f"{where}: expected an integer id and a name. Correct the row.")
        if category_id in categories:
            raise InputError(f"{where}: the id {category_id} occurs twice. Give each category an id of its own.")
        synonyms, supercategory, frequency = row.get("synonyms"), row.get("supercategory"), row.get("frequency")
        categories[category_id] = NamedCategory(
            category_id=category_id,
            name=category_name,
            synonyms=tuple(s for s in synonyms if isinstance(s, str)) if isinstance(synonyms, list) else (),
            supercategory=supercategory if isinstance(supercategory, str) else None,
            frequency=frequency if isinstance(frequency, str) and frequency in ("r", "c", "f") else None,
        )
    return tuple(categories.values())


def read_run_image_ids(store: Store) -> frozenset[str]:
    """Return the ids of all images that a run covers, also those without regions."""
    return frozenset(i for row in stream_rows(store, LABELS, "images") if (i := id_to_text(row.get("id"))) is not None)


def read_outcomes(store: Store) -> Iterator[RunOutcome]:
    """Yield a run's labels, abstentions and failures. Regions without an id are left out: no truth can match them."""
    for row in stream_rows(store, LABELS, "annotations"):
        attributes = row.get("attributes")
        category_id, score = row.get("category_id"), row.get("score")
        if (
            not isinstance(attributes, dict)
            or isinstance(category_id, bool)
            or not isinstance(category_id, int)
            or not isinstance(score, int | float)
        ):
            raise InputError(
                f"{store.join(LABELS)}, annotation {row.get('id')!r}: expected an integer category_id, a score and "
                "attributes.region_id. Is this the labels.json of a run of rlabel?"
            )
        yield from _outcome(
            row.get("image_id"),
            attributes.get("region_id"),
            "label",
            category_id=category_id,
            score=float(score),
            decided_by=str(attributes.get("decided_by", "")),
            text=str(attributes.get("text", "")),
        )
    for row in read_lines(store, ABSTAINED):
        nearest = row.get("nearest_name")
        yield from _outcome(
            row.get("image_id"),
            row.get("region_id"),
            "abstention",
            text=str(row.get("text", "")),
            nearest_name=nearest if isinstance(nearest, str) else None,
        )
    for row in read_lines(store, FAILURES):
        yield from _outcome(row.get("image_id"), row.get("region_id"), "failure", detail=str(row.get("kind", "")))


def _outcome(
    image_id: JsonValue,
    region_id: JsonValue,
    outcome: Literal["label", "abstention", "failure"],
    *,
    category_id: int | None = None,
    score: float = 0.0,
    decided_by: str = "",
    text: str = "",
    nearest_name: str | None = None,
    detail: str = "",
) -> Iterator[RunOutcome]:
    image_text, region_text = id_to_text(image_id), id_to_text(region_id)
    if image_text is None or region_text is None:
        return
    yield RunOutcome(
        image_id=image_text,
        region_id=region_text,
        outcome=outcome,
        category_id=category_id,
        score=score,
        decided_by=decided_by,
        text=text,
        nearest_name=nearest_name,
        detail=detail,
    )


def read_lines(store: Store, name: str) -> Iterator[JsonObject]:
    """Yield the objects of a JSON-lines file; nothing for a file that is not there (a run without such outcomes)."""
    try:
        stream = store.open_read(name)
    except MissingFile:
        return
    with closing(stream):
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{store.join(name)}, line {number}: no JSON ({error}). Merge again.") from error
            if not isinstance(row, dict):
                raise InputError(f"{store.join(name)}, line {number}: expected an object, got {type(row).__name__}")
            yield row


def read_truth(truth_url: str) -> Truth:
    """Return a COCO or LVIS file's categories and regions.

    Raises InputError for a file without categories, or with an annotation whose category is missing or not listed.
    """
    store, name = split_url(truth_url)
    where = store.join(name)
    categories = read_categories(store, name)
    if not categories:
        raise InputError(
            f"{where}: it lists no categories, so it cannot be a truth. Name the file with the categories "
            "(a COCO instances.json), not the proposals that were labeled."
        )
    known = {category.category_id for category in categories}
    images = tuple(
        TruthImage(
            image_id=i,
            is_federated="neg_category_ids" in row or "not_exhaustive_category_ids" in row,
            neg_category_ids=_ids(row.get("neg_category_ids")),
            not_exhaustive_category_ids=_ids(row.get("not_exhaustive_category_ids")),
        )
        for row in stream_rows(store, name, "images")
        if (i := id_to_text(row.get("id"))) is not None
    )
    regions: list[TruthRegion] = []
    for position, row in enumerate(stream_rows(store, name, "annotations")):
        image_id, region_id = id_to_text(row.get("image_id")), id_to_text(row.get("id"))
        category_id = row.get("category_id")
        if image_id is None or region_id is None:
            raise InputError(f"{where}, annotations[{position}]: expected an id and an image_id. Correct the row.")
        if isinstance(category_id, bool) or not isinstance(category_id, int) or category_id not in known:
            raise InputError(
                f"{where}, annotation {region_id}: category_id {category_id!r} is not among the file's "
                f"{len(known)} categories. Name a file whose annotations carry the true categories."
            )
        box_xywh = read_box(row.get("bbox"))
        regions.append(
            TruthRegion(
                image_id=image_id,
                region_id=region_id,
                category_id=category_id,
                is_crowd=bool(row.get("iscrowd", 0)),
                area_px=_area(row.get("area"), box_xywh),
                box_xywh=box_xywh,
            )
        )
    count = Counter(region.region_id for region in regions)
    unique = tuple(region for region in regions if count[region.region_id] == 1)
    return Truth(images=images, categories=categories, regions=unique, num_ambiguous=len(regions) - len(unique))


def _ids(value: JsonValue) -> tuple[int, ...]:
    return tuple(i for i in value if isinstance(i, int) and not isinstance(i, bool)) if isinstance(value, list) else ()


def read_box(value: JsonValue) -> BoxXywh | None:
    """Return left, top, width and height, finite, the sides above 0; None for what is no such box."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    numbers = [float(v) for v in value if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) != 4 or numbers[2] <= 0 or numbers[3] <= 0:
        return None
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def _area(value: JsonValue, box_xywh: tuple[float, float, float, float] | None) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return box_xywh[2] * box_xywh[3] if box_xywh is not None else None


def read_provenance(provenance_url: str) -> dict[str, Origin]:
    """Return the origin of each region, by the region's id as text.

    Expects {"annotations": {id: {"seen_in_train": bool, "kind": "photo" | "drawing", "source": text}}}. Raises InputError otherwise.
    """
    try:
        loaded = json.loads(read_url(provenance_url))
    except MissingFile as error:
        raise InputError(f"{provenance_url}: there is no such file. Check the path given as --provenance.") from error
    except ValueError as error:
        raise InputError(f"{provenance_url}: not readable as JSON ({error}). Name a provenance.json.") from error
    rows = loaded.get("annotations") if isinstance(loaded, dict) else None
    if not isinstance(rows, dict):
        raise InputError(
            f'{provenance_url}: expected an object "annotations" from annotation id to origin. Name a provenance.json.'
        )
    origins: dict[str, Origin] = {}
    for region_id, row in rows.items():
        seen = row.get("seen_in_train") if isinstance(row, dict) else None
        if not isinstance(seen, bool):
            raise InputError(
                f"{provenance_url}, annotation {region_id}: expected seen_in_train true or false, got {str(row)[:200]}"
            )
        kind = row.get("kind")
        origins[region_id] = Origin(
            seen_in_train=seen, kind=kind if isinstance(kind, str) else None, source=id_to_text(row.get("source"))
        )
    return origins
