"""Labels a corpus by masks that are not right: boxes alone, masks grown and shrunk; and shows accuracy by the size of regions.

    python benchmarks/masks.py --images DIR --regions FILE --vocabulary FILE --truth FILE [--provenance FILE] [--model DIR] [--reach 5]

Masks grow or shrink by `reach` pixels of a picture whose longer side is 336 (RegionGPT's ablation takes a kernel of 5 there, a reach of 2). A mask that
would shrink to nothing stays as it is.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageFilter

from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import BadRegion, mask_to_rle, rasterise
from rlabel.evaluation.evaluate import evaluate_run


@click.command()
@click.option("--images", required=True)
@click.option("--regions", required=True)
@click.option("--vocabulary", required=True)
@click.option("--truth", required=True)
@click.option("--provenance")
@click.option("--model", default="embedded")
@click.option("--reach", default=5.0)
@click.option("--threads", default=2)
def main(
    images: str,
    regions: str,
    vocabulary: str,
    truth: str,
    provenance: str | None,
    model: str,
    reach: float,
    threads: int,
) -> None:
    """Accuracy by masks, boxes alone, masks grown and shrunk."""
    from rlabel.cli.label import run_label
    from rlabel.config import LabelSettings

    corpus = json.loads(Path(regions).read_text())
    print(f"{'':22}{'top-1':>8}{'unseen':>8}  by size of the mask")
    with tempfile.TemporaryDirectory() as folder:
        for way in ("mask", "box", "grown", "shrunk"):
            file, out = Path(folder) / f"{way}.json", str(Path(folder) / way)
            file.write_text(json.dumps(changed(corpus, way, reach)))
            run_label(
                LabelSettings(
                    images=images,
                    regions=str(file),
                    vocabulary=vocabulary,
                    out=out,
                    model=model,
                    no_ray=True,
                    cpus_per_actor=threads,
                )
            )
            evaluation = evaluate_run(out, truth, provenance)
            unseen = evaluation.top1_unseen.share if evaluation.top1_unseen else None
            sizes = "  ".join(
                f"{row.name} {100 * (row.top1 or 0):.1f} ({row.num_regions})" for row in evaluation.per_size
            )
            name = f"{way} by {reach:g} px" if way in ("grown", "shrunk") else way
            print(
                f"{name:22}{100 * (evaluation.top1.share or 0):>7.1f}%{100 * (unseen or 0):>7.1f}%  {sizes}", flush=True
            )


def changed(corpus: dict[str, Any], way: str, reach: float) -> dict[str, Any]:
    """Return the corpus with its masks taken away, grown or shrunk. Crowds and unusable rows stay as they are."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in corpus["images"]}
    rows = []
    for row in corpus["annotations"]:
        if way == "box" and row.get("bbox") and not row.get("iscrowd"):
            row = {key: value for key, value in row.items() if key != "segmentation"}
        elif way in ("grown", "shrunk") and not row.get("iscrowd"):
            row = {**row, "segmentation": _moved(row, *sizes[row["image_id"]], way, reach)}
        rows.append(row)
    return {**corpus, "annotations": rows}


def _moved(row: dict[str, Any], height: int, width: int, way: str, reach: float) -> Any:
    pixels = max(1, round(reach * max(height, width) / 336))
    kernel = 2 * pixels + 1
    try:
        mask_HW = rasterise(row.get("segmentation"), row.get("bbox"), height, width, Limits()).mask_HW
    except BadRegion:
        return row.get("segmentation")
    # Nothing lies outside of the picture: a border of zeros, or masks at the edge would not shrink there.
    picture = Image.fromarray(np.pad(mask_HW.astype(np.uint8) * 255, pixels))
    moved = picture.filter(ImageFilter.MaxFilter(kernel) if way == "grown" else ImageFilter.MinFilter(kernel))
    moved_HW = np.asarray(moved)[pixels:-pixels, pixels:-pixels] > 0
    return mask_to_rle(moved_HW if moved_HW.any() else mask_HW)


if __name__ == "__main__":
    main()
