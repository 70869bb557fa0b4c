"""What a dataset says of its images, in one form for every layout: the records of training, and the Protocol of their readers.

Holds no reading. Nothing here reaches a labeler: a `Region` has no category, caption or expression in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from rlabel.errors import InputError
from rlabel.records import ImageRecord, JsonObject, JsonValue, Region

if TYPE_CHECKING:
    from rlabel.corpus.coco import Problem

Format = Literal["coco", "lvis", "v3det", "visual_genome", "refcoco"]

_OWN_CATEGORY_KEYS = frozenset({"id", "name", "synonyms", "def", "frequency"})
# LVIS describes a category under def, V3Det under cat_info: a text, or a list of texts (V3Det's README).
_DEFINITION_KEYS = ("def", "definition", "cat_info")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledRegion:
    """A region with what a truth file says of it.

    category_id: None where the row has no whole number. caption: a description of the region, stripped; None where it
    has none. expressions: referring expressions, which tell it from the other regions of its image. names: what the
    object is called where the dataset has names instead of categories (Visual Genome).
    """

    region: Region
    category_id: int | None
    caption: str | None
    expressions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One statement about two regions of an image, both of which are among its labels: "subject predicate object"."""

    subject_key: str
    predicate: str
    object_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Federated:
    """What LVIS states of categories in one image; a category in neither tuple and without a region there is unknown, not absent.

    negative_ids: categories that are certainly not in the image. not_exhaustive_ids: categories of which the image may
    have more objects than its regions say.
    """

    negative_ids: tuple[int, ...]
    not_exhaustive_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledImage:
    """An image and its labeled regions: labels[i].region is record.regions[i]. federated: None outside LVIS."""

    record: ImageRecord
    labels: tuple[LabeledRegion, ...]
    relations: tuple[Relation, ...] = ()
    federated: Federated | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledCategory:
    """One category of a dataset.

    category_id: as the file has it, never renumbered. name, synonyms: verbatim; several categories may share a name
    (V3Det). definition: what the file says it means. frequency: LVIS's "f", "c" or "r". extra: the row's other keys,
    verbatim.
    """

    category_id: int
    name: str
    synonyms: tuple[str, ...] = ()
    definition: str | None = None
    frequency: str | None = None
    extra: JsonObject = field(default_factory=dict)


class LabeledSource(Protocol):
    """A labeled dataset that was read and checked. Close it, or use it in a `with`, to free its temporary file.

    format: the layout it was read as. guess: why "auto" took that layout; None where it was told. categories: by id,
    in file order; empty for Visual Genome. problems: single rows that were left out or are odd, at most a thousand or
    two. num_skipped: how many rows were left out, listed or not.
    """

    @property
    def format(self) -> Format: ...

    @property
    def guess(self) -> str | None: ...

    @property
    def categories(self) -> Mapping[int, LabeledCategory]: ...

    @property
    def problems(self) -> list[Problem]: ...

    @property
    def num_skipped(self) -> int: ...

    def images(self, limit: int | None = None) -> Iterator[LabeledImage]:
        """Return the images in file order, each with its usable regions only; the first `limit` of them.

        May be called again. One image is in memory at a time.
        """

    def close(self) -> None: ...

    def __enter__(self) -> LabeledSource: ...

    def __exit__(self, *_: object) -> None: ...


def why_unusable(label: LabeledRegion) -> str | None:
    """Return why nothing can be learned from a region, in words for a person; None if something can.

    A segmentation is only looked for: whether its runs or polygons fit the picture is for `masks.rasterise` to say.
    """
    region = label.region
    if region.problem is not None:
        return region.problem
    if not region.segmentation:
        if region.box_xywh is None:
            return "it has no segmentation, and its box is not four finite numbers"
        if region.box_xywh[2] <= 0 or region.box_xywh[3] <= 0:
            return f"it has no segmentation, and its box {list(region.box_xywh)} has no positive width and height"
    if label.category_id is None and not (label.caption or label.expressions or label.names):
        return "it has neither a category_id that is a whole number nor a caption"
    return None


def categories_of(rows: JsonValue, where: str) -> dict[int, LabeledCategory]:
    """Return the categories of a file's `categories`, by id, in file order; {} where there is no such list.

    where: the file, for messages. Raises InputError for a row without a whole id or a name, and for an id used twice.
    """
    found: dict[int, LabeledCategory] = {}
    for number, row in enumerate(rows if isinstance(rows, list) else [], start=1):
        category = _category(row) if isinstance(row, dict) else None
        if category is None:
            raise InputError(
                f"{where}, categories row {number}: expected an object with a whole number as id and a text as name, got "
                f"{str(row)[:80]}. Give it both, or drop it and its annotations."
            )
        earlier = found.get(category.category_id)
        if earlier is not None:
            raise InputError(
                f"{where}, categories row {number}: expected an id of its own, got {category.category_id}, the id of "
                f"{earlier.name!r}, too. Renumber one of the two and its annotations."
            )
        found[category.category_id] = category
    return found


def _category(row: JsonObject) -> LabeledCategory | None:
    category_id, name = row.get("id"), row.get("name")
    if type(category_id) is not int or not isinstance(name, str) or not name.strip():
        return None
    synonyms, frequency = row.get("synonyms"), row.get("frequency")
    return LabeledCategory(
        category_id=category_id,
        name=name.strip(),
        synonyms=tuple(item for item in synonyms if isinstance(item, str)) if isinstance(synonyms, list) else (),
        definition=next((text for text in (_text(row.get(key)) for key in _DEFINITION_KEYS) if text), None),
        frequency=frequency if isinstance(frequency, str) else None,
        extra={key: value for key, value in row.items() if key not in _OWN_CATEGORY_KEYS},
    )


def _text(value: JsonValue) -> str | None:
    """Return a text, or the first of a list of texts; None without one."""
    texts = value if isinstance(value, list) else [value]
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), None)
