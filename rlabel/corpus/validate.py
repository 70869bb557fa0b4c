"""Says what is wrong with a corpus before a run spends anything on it. It changes nothing and labels nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

from jsonschema import Draft202012Validator

from rlabel.corpus.coco import Corpus, Problem, read_corpus
from rlabel.corpus.inputs import prepare_image
from rlabel.corpus.isolation import shared_decoders
from rlabel.corpus.json_stream import Member, stream_members
from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import BadRegion, rasterise
from rlabel.corpus.rows import row_text
from rlabel.records import ImageRecord, JsonObject, JsonValue
from rlabel.schema_files import load_schema
from rlabel.storage import Store, open_url

_ROW_SCHEMAS = {"images": "image", "annotations": "annotation"}
_LONGEST_SHOWN = 160


def validate_corpus(
    images_url: str | os.PathLike[str],
    regions_url: str | os.PathLike[str],
    check_pixels: bool,
    limits: Limits | None = None,
) -> Iterator[Problem]:
    """Return what is wrong with a corpus, one problem at a time: what is wrong with the file first, then image by
    image.

    check_pixels: True opens every picture, as a run would; False reads only the JSON file and checks masks against the
    sizes stated in it. "error": an image or region that a run would end as a failure. "warning": worth knowing; a run
    labels it all the same.

    Raises InputError when the file cannot be read at all, StorageError when the store cannot.
    """
    bounds = limits if limits is not None else Limits()
    with read_corpus(regions_url) as corpus:
        yield from corpus.problems
        yield from _row_problems(os.fspath(regions_url), corpus.categories)
        yield from _image_problems(Store.open(images_url) if check_pixels else None, corpus, bounds)


def _row_problems(regions_url: str, categories: JsonValue) -> Iterator[Problem]:
    """Return what in single rows is not as the schema says, and categories that are not listed."""
    schema = load_schema("corpus")
    validators = {
        member: Draft202012Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{name}"})
        for member, name in _ROW_SCHEMAS.items()
    }
    rows = categories if isinstance(categories, list) else []
    listed = {row["id"] for row in rows if isinstance(row, dict) and type(row.get("id")) is int}
    with open_url(regions_url) as stream:
        for member in stream_members(stream, regions_url):
            if member.index is None or member.name not in validators:
                continue
            where = _where(member)
            # Masks are checked by drawing them, with better words and much faster than number by number.
            row = _without_segmentation(member.value)
            if row_text(row) is None:  # the messages below print it
                yield Problem(where=where, what="nested too deeply", severity="warning")
                continue
            for error in validators[member.name].iter_errors(row):
                path = ".".join(str(step) for step in error.absolute_path)
                what = f"{path}: {error.message}" if path else error.message
                yield Problem(where=where, what=_shortened(what), severity="warning")
            if (
                listed
                and isinstance(row, dict)
                and type(row.get("category_id")) is int
                and row["category_id"] not in listed
            ):
                what = (
                    f"category_id {row['category_id']} is not in categories; labeling does not need it, training does"
                )
                yield Problem(where=where, what=what, severity="warning")


def _image_problems(store: Store | None, corpus: Corpus, limits: Limits) -> Iterator[Problem]:
    for record in corpus.images():
        if store is None:
            yield from _stated_size_problems(record, limits)
            continue
        prepared = prepare_image(store, record, limits, decoder=shared_decoders())
        if record.regions and all(failure.kind == "image" for failure in prepared.failures) and not prepared.regions:
            # One line an image, not one a region.
            what = f"{prepared.failures[0].reason} Regions that cannot be labeled: {len(record.regions)}."
            yield Problem(where=_image_where(record), what=what)
            continue
        for failure in prepared.failures:
            if failure.region.problem is None:  # else the corpus has told it
                yield Problem(where=f"annotations, region {failure.region.key}", what=failure.reason)
        for region in prepared.regions:
            if region.mask.note is not None:
                what = f"{record.file_name}: {region.mask.note}"
                yield Problem(where=f"annotations, region {region.region.key}", what=what, severity="warning")


def _stated_size_problems(record: ImageRecord, limits: Limits) -> Iterator[Problem]:
    if record.file_name is None:
        yield Problem(where=_image_where(record), what="no usable file_name")
    if record.width_px is None or record.height_px is None:
        what = "no usable width and height; masks are checked only when the picture is opened"
        yield Problem(where=_image_where(record), what=what, severity="warning")
        return
    for region in record.regions:
        if region.problem is not None:
            continue
        try:
            mask = rasterise(region.segmentation, region.box_xywh, record.height_px, record.width_px, limits)
        except BadRegion as error:
            yield Problem(where=f"annotations, region {region.key}", what=f"{record.file_name}: {error}")
        else:
            if mask.note is not None:
                what = f"{record.file_name}: {mask.note}"
                yield Problem(where=f"annotations, region {region.key}", what=what, severity="warning")


def _without_segmentation(row: JsonValue) -> JsonValue:
    return {**row, "segmentation": None} if isinstance(row, dict) and "segmentation" in row else row


def _where(member: Member) -> str:
    row: JsonObject = member.value if isinstance(member.value, dict) else {}
    shown = f" (id {str(row['id'])[:80]})" if "id" in row else ""
    return f"{member.name} row {cast(int, member.index) + 1}{shown}"


def _image_where(record: ImageRecord) -> str:
    return f"images, id {str(record.row.get('id'))[:80]}"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
