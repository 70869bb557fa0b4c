"""Visual Genome: region descriptions, objects and relationships of its images, as published since version 1.

Facts of the layout: the dataset's Python driver and its public examples. Each file is a list with one element an image;
boxes are x, y, width, height (descriptions) or x, y, w, h (objects), in pixels. Ids of descriptions and of objects are
counted apart, so an object's key is "object 1058498" and a description's "1382". The objects of relationships.json may be
missing from objects.json, or be merged there into another (`merged_object_ids`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from rlabel.corpus.coco import LabeledCorpus, Problem
from rlabel.corpus.coco_source import keep_labels
from rlabel.corpus.labeled import (
    Format,
    LabeledCategory,
    LabeledImage,
    LabeledRegion,
    Relation,
    why_unusable,
)
from rlabel.corpus.limits import Limits
from rlabel.corpus.rows import image_key
from rlabel.corpus.spool import Spool
from rlabel.corpus.visual_genome_rows import RELATIONS_OF, GenomeReading
from rlabel.errors import InputError
from rlabel.records import JsonValue


class VisualGenomeSource:
    """Visual Genome's images; see `LabeledSource`. It has no categories: descriptions are captions, objects have `names`."""

    format: Format = "visual_genome"

    def __init__(self, labeled: LabeledCorpus, spool: Spool, problems: list[Problem], num_skipped: int) -> None:
        self.guess: str | None = None
        self.categories: dict[int, LabeledCategory] = {}
        self.problems, self.num_skipped = problems, num_skipped
        self._labeled, self._spool = labeled, spool

    def images(self, limit: int | None = None) -> Iterator[LabeledImage]:
        """Return the images of image_data.json in its order, with descriptions first, then objects; the first `limit`."""
        return islice(self._images(), limit)

    def close(self) -> None:
        self._labeled.close()

    def __enter__(self) -> VisualGenomeSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _images(self) -> Iterator[LabeledImage]:
        for image in self._labeled.images():
            if image.record.file_name is None:
                continue
            labels = tuple(label for label in map(_with_names, image.labels) if why_unusable(label) is None)
            rows = self._spool.database.execute(RELATIONS_OF, (image_key(image.record.row.get("id")),))
            relations = tuple(
                Relation(subject_key=str(subject), predicate=predicate, object_key=str(object_))
                for subject, predicate, object_ in rows
            )
            # Without labels the image's id is not its own alone, and its relations may be another picture's.
            yield replace(keep_labels(image, labels), relations=relations if labels else ())


def open_visual_genome(
    url: str, spool_dir: str | None = None, limits: Limits | None = None, guess: str | None = None
) -> VisualGenomeSource:
    """Return Visual Genome's images from a folder of its files, or from one of its files with image_data.json beside it.

    In a folder region_descriptions.json, objects.json and relationships.json are read, whichever are there. The temporary
    file takes about as much space as the files. limits: of an image's regions those beyond max_regions_per_image are
    left out.

    Raises InputError when a file is missing or of another layout, or no region is usable.
    """
    reading = GenomeReading(url, spool_dir, limits if limits is not None else Limits())
    with reading.closing_on_error():
        reading.read()
        labeled = LabeledCorpus(reading.corpus())
        source = VisualGenomeSource(
            labeled, reading.spool, [*reading.problems.all(), *labeled.corpus.problems], reading.problems.num_skipped
        )
        source.guess = guess
        if not any(image.labels for image in source.images()):
            first = f"; first, {source.problems[0].where}: {source.problems[0].what}" if source.problems else ""
            raise InputError(
                f"{url}: expected at least one usable region, got none{first}. Check that {' and '.join(reading.files)} "
                "belong together and are whole."
            )
    return source


def _with_names(label: LabeledRegion) -> LabeledRegion:
    """Return an object's label with its names and its own id where they belong; a description's as it is."""
    extra = label.region.extra
    if "object_id" not in extra:
        return label
    object_id: JsonValue = extra["object_id"]
    names = extra["names"]
    region = replace(
        label.region, region_id=object_id if isinstance(object_id, int | str) else None, annotation_id=None, extra={}
    )
    return replace(label, region=region, names=tuple(map(str, names)) if isinstance(names, list) else ())
