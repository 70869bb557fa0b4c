"""The engine against one plain `generate` a region: are the texts the same, and how much faster is it?

    python benchmarks/engine.py --images DIR --regions FILE.json [--model DIR] [--num-images N] [--rounds K]

Both get the same prepared inputs, float32, greedy, one thread count; they alternate, and the ratio is the median over the rounds.
"""

from __future__ import annotations

import statistics
import time

import click
import torch
from transformers.utils import logging

from rlabel.corpus.coco import read_corpus
from rlabel.corpus.inputs import prepare_image
from rlabel.corpus.limits import Limits
from rlabel.labeling.engine import Engine, EngineOptions, to_device_batch
from rlabel.regiongpt.assembly import load_processor
from rlabel.regiongpt.processing import RegionInputs
from rlabel.regiongpt.quantization import Precision, load_model
from rlabel.run.job import resolve
from rlabel.storage import Store


@click.command()
@click.option("--images", required=True)
@click.option("--regions", required=True)
@click.option("--model", default="embedded")
@click.option("--num-images", default=200)
@click.option("--rounds", default=3)
@click.option("--threads", default=2)
def main(images: str, regions: str, model: str, num_images: int, rounds: int, threads: int) -> None:
    """Compare the engine with plain generate."""
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    folder = str(resolve(model))
    processor = load_processor(folder)
    loaded = load_model(
        folder, Precision(quantization="none", double_quantization=False, dtype="float32", compute_dtype=None), "cpu"
    )
    engine = Engine(loaded, processor, EngineOptions())
    inputs = _inputs(images, regions, num_images, processor)
    num_regions = sum(len(item.region_masks_RGG) for item in inputs)
    print(f"{len(inputs)} images, {num_regions} regions, {threads} threads, float32")
    ratios = []
    for number in range(rounds):
        started = time.perf_counter()
        fast = [
            decoded.text
            for start in range(0, len(inputs), 8)
            for image in engine.answer(inputs[start : start + 8])
            for decoded in image
        ]
        fast_s = time.perf_counter() - started
        started = time.perf_counter()
        plain = [text for item in inputs for text in _plain(engine, item)]
        plain_s = time.perf_counter() - started
        ratios.append(plain_s / fast_s)
        same = sum(a == b for a, b in zip(fast, plain, strict=True))
        print(
            f"round {number + 1}: engine {num_regions / fast_s:.1f} regions/s, generate {num_regions / plain_s:.1f} regions/s, "
            f"ratio {ratios[-1]:.1f}, {same} of {num_regions} texts the same"
        )
    print(f"median ratio {statistics.median(ratios):.1f}")


def _inputs(images: str, regions: str, num_images: int, processor: object) -> list[RegionInputs]:
    store = Store.open(images)
    found = []
    with read_corpus(regions) as corpus:
        for record in corpus.images(num_images):
            prepared = prepare_image(store, record, Limits())
            if prepared.pixels_HWC is not None:
                found.append(
                    processor.image_processor.prepare(prepared.pixels_HWC, [region.mask for region in prepared.regions])
                )  # type: ignore[attr-defined]
    return found


@torch.inference_mode()
def _plain(engine: Engine, item: RegionInputs) -> list[str]:
    """One prompt, one region, one call of transformers' generate."""
    texts = []
    ids = torch.tensor([[*engine.prompt.prefix_ids, *engine.prompt.suffix_ids]])
    for number in range(len(item.region_masks_RGG)):
        zoomed = item.zoom_region_index_Z is not None and (item.zoom_region_index_Z == number)
        crops = item.zoom_crops_Z4SS[zoomed] if item.zoom_crops_Z4SS is not None and zoomed is not False else None
        has_crop = crops is not None and len(crops) > 0
        one = RegionInputs(
            pixels_3SS=item.pixels_3SS,
            region_masks_RGG=item.region_masks_RGG[number : number + 1],
            zoom_crops_Z4SS=crops if has_crop else None,
            zoom_region_index_Z=torch.zeros(1, dtype=torch.long) if has_crop else None,
        )
        batch = to_device_batch([one], engine.processor, engine.device)
        new = engine.model.generate(
            ids,
            pixel_values=batch.pixels_B3SS,
            region_masks=batch.region_masks_RGG,
            region_image_index=batch.region_image_index_R,
            zoom_pixels=batch.zoom_pixels_Z3SS,
            zoom_masks=batch.zoom_masks_ZSS,
            zoom_region_index=batch.zoom_region_index_Z,
            do_sample=False,
            max_new_tokens=engine.options.max_new_tokens,
            eos_token_id=list(engine.processor.stop_ids),
            pad_token_id=engine.processor.tokenizer.pad_token_id,
        )[0]
        stop = set(engine.processor.stop_ids)
        texts.append(engine.processor.decode_answer([token for token in new.tolist() if token not in stop]))
    return texts


if __name__ == "__main__":
    main()
