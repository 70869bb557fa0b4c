"""V3Det files: COCO's layout, boxes without masks, 13,204 categories whose names repeat across senses.

Facts of the layout: the dataset's README (categories have name_zh, cat_info, cat_info_gpt and novel; file names begin with
"images/", so that pictures are looked for beside that folder).
"""

from __future__ import annotations

from rlabel.corpus.coco import LabeledCorpus
from rlabel.corpus.coco_source import CocoSource
from rlabel.errors import InputError

CATEGORY_KEY = "cat_info"


def v3det_source(labeled: LabeledCorpus, where: str, guess: str | None = None) -> CocoSource:
    """Return the source of a V3Det file that was read as a labeled corpus, which it takes over.

    Definitions are the first text of cat_info; the other keys of a category are in its `extra`.

    Raises InputError, after closing `labeled`, when a category has no cat_info, and as `CocoSource` does.
    """
    rows = labeled.categories if isinstance(labeled.categories, list) else []
    lacking = [row for row in rows if isinstance(row, dict) and CATEGORY_KEY not in row]
    if lacking or not rows:
        labeled.close()
        record = f"category {lacking[0].get('id')} ({lacking[0].get('name')!r})" if lacking else "categories"
        raise InputError(
            f"{where}, {record}: expected {CATEGORY_KEY}, as V3Det has it, got no such key. Take the file as V3Det publishes "
            "it (v3det_2023_v1_train.json), or read this one as coco."
        )
    return CocoSource(labeled, where, "v3det", guess)
