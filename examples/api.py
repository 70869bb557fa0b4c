"""The three calls of the Python API, on the bundled sample: python examples/api.py"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from rlabel import Labeler

SAMPLE = Path(__file__).parent / "things-sample" / "val"


def main() -> None:
    """Label a few regions of two pictures: one given as a file, one as an array."""
    corpus = json.loads((SAMPLE / "proposals.json").read_text())
    first, second = corpus["images"][:2]
    regions = [
        [row for row in corpus["annotations"] if row["image_id"] == image["id"]][:3] for image in (first, second)
    ]

    labeler = Labeler.from_pretrained("embedded", vocabulary=SAMPLE.parent / "vocabulary.json")
    pixels = np.asarray(Image.open(SAMPLE / "images" / second["file_name"]).convert("RGB"))
    for image in labeler.label([SAMPLE / "images" / first["file_name"], pixels], regions):
        for region in image:
            said = f"{region.category}, {region.score:.2f}" if region.outcome == "label" else region.reason
            print(f"image {region.image_id}, region {region.region_id}: {region.outcome}, {said}")

    # The same answers, other names: the model is not loaded again.
    for region in labeler.label([pixels], [[regions[1][0]["bbox"]]], vocabulary=["animal", "vehicle", "tool"])[0]:
        print(f"text {region.text!r}: {region.outcome}, {region.category or region.nearest}")


if __name__ == "__main__":
    main()
