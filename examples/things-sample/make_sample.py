"""Make this folder again from the whole things corpora: `python make_sample.py CORPUS_DIR OUT_DIR`.

CORPUS_DIR holds things-train, things-val, vocab/things-250.json and LICENSES.md. The same corpora give the same bytes.
Val scenes are drawn by hash, so nobody picked them. Train scenes are picked greedily so that the val scenes' categories
are covered, since with 80 scenes a blind draw would miss a third of them. README.md is not made here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

NUM_TRAIN = 80
NUM_VAL = 30
SEED = "things-sample-1"

Json = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    arguments = parser.parse_args()
    corpus: Path = arguments.corpus_dir
    out: Path = arguments.out_dir

    val = _read(corpus / "things-val" / "instances.json")
    train = _read(corpus / "things-train" / "instances.json")
    val_ids = draw_images([image["id"] for image in val["images"]], NUM_VAL)
    wanted = {a["category_id"] for a in val["annotations"] if a["image_id"] in val_ids and not a["iscrowd"]}
    train_ids = cover_categories(train, wanted, NUM_TRAIN)

    for split, instances, image_ids in (("train", train, train_ids), ("val", val, val_ids)):
        source, target = corpus / f"things-{split}", out / split
        (target / "images").mkdir(parents=True, exist_ok=True)
        chosen = _subset(instances, image_ids)
        _write(target / "instances.json", chosen)
        for image in chosen["images"]:
            shutil.copyfile(source / "images" / image["file_name"], target / "images" / image["file_name"])
    _write(out / "val" / "proposals.json", _subset(_read(corpus / "things-val" / "proposals.json"), val_ids))

    provenance = _read(corpus / "things-val" / "provenance.json")
    annotation_ids = {str(a["id"]) for a in val["annotations"] if a["image_id"] in val_ids}
    provenance["annotations"] = {k: v for k, v in provenance["annotations"].items() if k in annotation_ids}
    provenance["backgrounds"] = {k: v for k, v in provenance["backgrounds"].items() if int(k) in val_ids}
    _write(out / "val" / "provenance.json", provenance)

    _write(out / "vocabulary.json", _read(corpus / "vocab" / "things-250.json"))
    shutil.copyfile(corpus / "LICENSES.md", out / "LICENSES.md")


def draw_images(image_ids: list[int], count: int) -> set[int]:
    """Return `count` of the ids: those whose hash with the seed is lowest (the same on every Python)."""
    return set(sorted(image_ids, key=lambda i: hashlib.sha256(f"{SEED}:{i}".encode()).hexdigest())[:count])


def cover_categories(instances: Json, wanted: set[int], count: int) -> set[int]:
    """Return `count` image ids, each the one that adds most to `wanted`; the n-th example of a category counts 2**-n.

    Ties go to the lower image id.
    """
    categories_of: dict[int, Counter[int]] = {image["id"]: Counter() for image in instances["images"]}
    for annotation in instances["annotations"]:
        if annotation["category_id"] in wanted and not annotation["iscrowd"]:
            categories_of[annotation["image_id"]][annotation["category_id"]] += 1
    seen: Counter[int] = Counter()
    chosen: set[int] = set()

    def gain(image_id: int) -> float:
        return sum(2.0 ** -(seen[c] + k) for c, n in categories_of[image_id].items() for k in range(n))

    for _ in range(count):
        best = min((i for i in categories_of if i not in chosen), key=lambda i: (-gain(i), i))
        chosen.add(best)
        seen.update(categories_of[best])
    return chosen


def _subset(instances: Json, image_ids: set[int]) -> Json:
    kept = dict(instances)
    kept["images"] = [image for image in instances["images"] if image["id"] in image_ids]
    kept["annotations"] = [a for a in instances["annotations"] if a["image_id"] in image_ids]
    return kept


def _read(path: Path) -> Json:
    loaded: Json = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _write(path: Path, value: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
