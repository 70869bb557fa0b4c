"""What preparing large pictures with many masks costs: processor time by part, and memory above that of the process.

    python benchmarks/prepare.py [--width 4000] [--height 3000] [--regions 100] [--base DIR]

Makes JPEG pictures and regions of all sizes, and prepares them as labeling does, up to what the model is given. With --base, the
root of another working tree of rlabel (`git worktree add DIR COMMIT`), both take turns, in processes of their own with one
thread, and the ratio is the median over the rounds.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.random import Generator
from PIL import Image

KINDS = ("polygons", "uncompressed", "compressed", "boxes")
_MIB = 1024.0


@click.command()
@click.option("--width", default=4000)
@click.option("--height", default=3000)
@click.option("--regions", default=100, help="Regions a picture.")
@click.option("--pictures", default=4, help="Pictures a round.")
@click.option("--rounds", default=3)
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, default=KINDS)
@click.option("--least", default=40.0, help="Side of the smallest region in pixels.")
@click.option(
    "--most", default=1600.0, help="Side of the largest; sides lie evenly between them on a logarithmic scale."
)
@click.option("--image-size", "image_size_px", default=336, help="Side of the model's picture.")
@click.option("--zoom", "zooms", type=click.Choice(["off", "small", "all"]), multiple=True, default=("off", "all"))
@click.option("--zoom-size", "zoom_size_px", default=160)
@click.option("--batch", default=192, help="Regions that are prepared at once.")
@click.option("--base", type=click.Path(exists=True, file_okay=False), help="Another working tree, to take turns with.")
@click.option("--worker", hidden=True)
def main(worker: str | None, base: str | None, kinds: tuple[str, ...], zooms: tuple[str, ...], **options: Any) -> None:
    """Measure the preparation of large pictures."""
    if worker is not None:
        print(json.dumps(_measured(**json.loads(worker))))
        return
    with tempfile.TemporaryDirectory() as folder:
        made = {kind: str(_corpus(Path(folder) / kind, kind, **options)) for kind in kinds}
        size_mb = (Path(folder) / kinds[0] / "images" / "0.jpg").stat().st_size / 1e6
        print(
            f"{options['width']} x {options['height']} pixels ({size_mb:.1f} MB JPEG), {options['regions']} regions of "
            f"{options['least']:g} to {options['most']:g} px; milliseconds of processor an image, median of {options['rounds']} rounds"
        )
        parts = ("open", "masks", "whole", "cells", "crops", "rest")
        print(f"{'':28}" + "".join(f"{name:>8}" for name in ("all", *parts)) + f"{'MiB':>8}")
        for zoom in zooms:
            for kind in kinds:
                asked = {key: options[key] for key in ("image_size_px", "zoom_size_px", "batch")} | {
                    "zoom": zoom,
                    "folder": made[kind],
                }
                trees = {"now": str(Path(__file__).resolve().parent.parent), **({"base": base} if base else {})}
                rounds = [{name: _run(tree, asked) for name, tree in trees.items()} for _ in range(options["rounds"])]
                for name in trees:
                    middle = {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
                    numbers = "".join(f"{middle[key]:8.1f}" for key in ("all", *parts, "peak_mib"))
                    print(f"zoom {zoom:6}{kind:13}{name:4}{numbers}", flush=True)
                if base:
                    ratio = statistics.median(one["base"]["all"] / one["now"]["all"] for one in rounds)
                    print(f"{'':24}base / now {ratio:.2f}", flush=True)


def _run(tree: str, asked: dict[str, Any]) -> dict[str, float]:
    """Measure the rlabel of a working tree in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": tree, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--worker", json.dumps(asked)]
    # Not in this tree's root, from which python would import first.
    done = subprocess.run(command, env=environment, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{tree}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measured(folder: str, image_size_px: int, zoom: str, zoom_size_px: int, batch: int) -> dict[str, float]:
    """Return processor milliseconds an image, whole and by part, and the most memory above the process's before, in MiB."""
    import rlabel.corpus.inputs as inputs
    import rlabel.regiongpt.processing as processing
    from rlabel.corpus.coco import read_corpus
    from rlabel.corpus.limits import Limits
    from rlabel.corpus.masks import RegionMask
    from rlabel.memory import reuse_freed_memory
    from rlabel.storage import Store

    reuse_freed_memory(in_new_threads=True)  # as workers on CPUs do
    images = processing.RegionGPTImageProcessor(
        image_size_px=image_size_px,
        mask_side=56,
        zoom=zoom,
        zoom_size_px=zoom_size_px,  # type: ignore[arg-type]
    )
    spent: dict[str, float] = {}
    sight = getattr(images, "sight", None)  # a base may not know it
    more = {} if sight is None else {"sight": sight}
    opener = "open_image" if sight is None else "open_picture"
    places: list[tuple[Any, str, str]] = [(inputs, opener, "open"), (inputs, "rasterise", "masks")]
    places += [(processing, "zoom_crop", "crops"), (RegionMask, "resample", "cells")]
    if sight is None:
        places.append((processing, "resize_square", "whole"))
    with read_corpus(str(Path(folder) / "regions.json")) as corpus:
        records = list(corpus.images())
    store = Store.open(str(Path(folder) / "images"))

    def prepared(record: Any) -> None:
        image = inputs.prepare_image(store, record, Limits(), **more)
        picture = image.pixels_HWC if sight is None else image.picture
        for start in range(0, len(image.regions), batch):
            images.prepare(picture, [item.mask for item in image.regions[start : start + batch]])  # type: ignore[arg-type]

    Image.init()
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB
    prepared(records[0])  # first of all, outside the clock
    started = time.process_time()
    for record in records:
        prepared(record)
    whole_ms = 1000 * (time.process_time() - started) / len(records)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB - before_mib
    for owner, name, part in places:
        setattr(owner, name, _clocked(getattr(owner, name), part, spent))
    if sight is not None:
        from rlabel.corpus.picture import LargePicture

        # Called while opening, so it is counted there and shown again by itself.
        LargePicture.see = _clocked(LargePicture.see, "whole", spent)  # type: ignore[method-assign]
    started = time.process_time()
    for record in records:
        prepared(record)
    clocked_ms = 1000 * (time.process_time() - started) / len(records)
    found = {part: spent.get(part, 0.0) / len(records) for part in ("open", "masks", "whole", "cells", "crops")}
    if sight is not None:
        found["open"] -= found["whole"]
    return {"all": whole_ms, **found, "rest": clocked_ms - sum(found.values()), "peak_mib": peak_mib}


def _clocked(call: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    def clocked(*arguments: Any, **more: Any) -> Any:
        started = time.process_time()
        try:
            return call(*arguments, **more)
        finally:
            spent[part] = spent.get(part, 0.0) + 1000 * (time.process_time() - started)

    return clocked


def _corpus(
    folder: Path, kind: str, width: int, height: int, regions: int, pictures: int, least: float, most: float, **_: Any
) -> Path:
    """Write pictures and regions of one kind, of the same places whatever the kind; return the folder."""
    random = np.random.default_rng(11)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(pictures):
        name = f"{number}.jpg"
        _picture(random, height, width).save(folder / "images" / name, quality=90)
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        for _number in range(regions):
            shape = _region(random, kind, height, width, least, most)
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **shape})
    (folder / "regions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


def _picture(random: Generator, height: int, width: int) -> Image.Image:
    """Return patches of colour with noise on them: about as many bytes a pixel as photographs have at this quality."""
    patches = Image.fromarray(random.integers(0, 256, (height // 40 + 1, width // 40 + 1, 3), dtype=np.uint8))
    pixels = np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += random.integers(-10, 11, (height, width, 1), dtype=np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _region(random: Generator, kind: str, height: int, width: int, least: float, most: float) -> dict[str, Any]:
    """Return a ragged shape of 40 points, as a corpus row gives it."""
    from pycocotools import mask as coco_mask

    from rlabel.corpus.rle import rle_counts

    reach = np.exp(random.uniform(np.log(least), np.log(most))) / 2 * random.uniform(0.6, 1.0, 40)
    angles = np.sort(random.uniform(0, 2 * np.pi, 40))
    middle = random.uniform(0, (width, height))
    points = (middle + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)).round(1)
    polygon = points.ravel().tolist()
    rle = coco_mask.merge(coco_mask.frPyObjects([polygon], height, width))
    bbox = [float(side) for side in coco_mask.toBbox(rle)]
    if not bbox[2]:
        bbox = [min(float(middle[0]), width - 2.0), min(float(middle[1]), height - 2.0), 2.0, 2.0]
    if kind == "boxes":
        return {"bbox": bbox}
    if kind == "polygons":
        return {"bbox": bbox, "segmentation": [polygon]}
    text = {"size": [height, width], "counts": rle["counts"].decode()}
    if kind == "compressed":
        return {"bbox": bbox, "segmentation": text}
    return {"bbox": bbox, "segmentation": {**text, "counts": rle_counts(text, height, width).tolist()}}


if __name__ == "__main__":
    main()
