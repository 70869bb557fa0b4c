"""A labeled COCO-like file as a `LabeledSource`: checked as a whole before the first image comes out.

LVIS, V3Det and RefCOCO's instances are this layout and more; what they add comes in as `adapt`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from rlabel.corpus.coco import LabeledCorpus, Problem
from rlabel.corpus.labeled import Format, LabeledCategory, LabeledImage, LabeledRegion, categories_of, why_unusable
from rlabel.errors import InputError
from rlabel.records import ImageRecord

_MAX_PROBLEMS = 1000


class ProblemList:
    """Problems for a person: the first thousand, then a count. num_skipped: rows left out, listed or not."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.listed: list[Problem] = []
        self.num_unlisted = 0
        self.num_skipped = 0

    def skip(self, where: str, what: str, num_rows: int = 1) -> None:
        """Note rows that are left out."""
        self.num_skipped += num_rows
        if len(self.listed) < _MAX_PROBLEMS:
            self.listed.append(Problem(where=where, what=f"{what}; left out"))
        else:
            self.num_unlisted += 1

    def all(self) -> list[Problem]:
        if not self.num_unlisted:
            return self.listed
        return [*self.listed, Problem(where=self.where, what=f"{self.num_unlisted} more problems, not listed")]


class CocoSource:
    """The images of one COCO-like file with their usable regions; see `LabeledSource`. Crowd regions are kept, and say so."""

    def __init__(
        self,
        labeled: LabeledCorpus,
        where: str,
        file_format: Format = "coco",
        guess: str | None = None,
        adapt: Callable[[LabeledImage], LabeledImage] | None = None,
    ) -> None:
        """Take over `labeled`, and read it once from end to end.

        where: the file, for messages. adapt: makes of an image what the layout has beyond COCO; it may raise InputError.

        Raises InputError, after closing `labeled`, when a category is unusable, an annotation has one that does not
        exist, or no region at all is usable.
        """
        self.format, self.guess = file_format, guess
        self.where = where
        self._labeled, self._adapt = labeled, adapt
        try:
            self.categories: dict[int, LabeledCategory] = categories_of(labeled.categories, where)
            own = self._check()
        except BaseException:
            labeled.close()
            raise
        self.problems = [*labeled.corpus.problems, *own.all()]
        self.num_skipped = own.num_skipped + labeled.corpus.num_stray_regions

    def images(self, limit: int | None = None) -> Iterator[LabeledImage]:
        """Return the images that have a file name, in file order, with their usable regions; the first `limit` of them."""
        return islice(self._usable_images(), limit)

    def close(self) -> None:
        self._labeled.close()

    def __enter__(self) -> CocoSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _usable_images(self) -> Iterator[LabeledImage]:
        for image in self._adapted():
            if image.record.file_name is not None:
                yield keep_labels(image, tuple(label for label in image.labels if why_unusable(label) is None))

    def _adapted(self) -> Iterator[LabeledImage]:
        return self._labeled.images() if self._adapt is None else map(self._adapt, self._labeled.images())

    def _check(self) -> ProblemList:
        problems = ProblemList(self.where)
        num_usable = num_crowds = 0
        for image in self._adapted():
            if image.record.file_name is None:
                problems.skip(image_where(image.record), "it has no usable file_name or coco_url", len(image.labels))
                continue
            for label in image.labels:
                self._check_category(label)
                reason = why_unusable(label)
                if reason is None:
                    num_crowds += label.region.is_crowd
                    num_usable += not label.region.is_crowd
                elif label.region.problem is None:
                    problems.skip(f"annotations, region {label.region.key[:80]}", reason)
                else:
                    problems.num_skipped += 1  # the corpus has told why, once for the image
        if not num_usable:
            first = next(iter([*problems.all(), *self._labeled.corpus.problems]), None)
            raise InputError(
                f"{self.where}: expected at least one usable region, got none of {self._labeled.corpus.num_regions} "
                f"annotations{f' ({num_crowds} are crowds)' if num_crowds else ''}"
                f"{f'; first, {first.where}: {first.what}' if first else ''}. Check image_id, bbox and category_id of the annotations."
            )
        return problems

    def _check_category(self, label: LabeledRegion) -> None:
        if label.category_id is not None and label.category_id not in self.categories:
            raise InputError(
                f"{self.where}, annotation {label.region.region_id}: expected a category_id that the file's categories define, "
                f"got {label.category_id}. Add the category, or drop the annotation."
            )


def keep_labels(image: LabeledImage, labels: tuple[LabeledRegion, ...]) -> LabeledImage:
    """Return the image with these labels, and the regions of its record to match."""
    record = replace(image.record, regions=tuple(label.region for label in labels))
    return replace(image, record=record, labels=labels)


def image_where(record: ImageRecord) -> str:
    return f"images, id {str(record.row.get('id'))[:80]}"
