"""How long the page takes to make and to show, and how large it is, for a run of drawn pictures.

    python benchmarks/report.py --regions 10000
    python benchmarks/report.py --regions 100000 --thumbnails all --folder page-100k

Makes pictures (gradients, shapes and grain, 640 x 480, 8 regions each) and a run of made-up labels, then the page, and opens it in
headless Chromium where there is one. The last line is JSON. `--folder` keeps all of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from chromium import CHROMIUM, Browser  # noqa: E402
from rlabel.records import Abstention, Evidence, Failure, JsonObject, Label, Outcome, Region, ShardResult, Snap  # noqa: E402
from rlabel.report.gallery import DEFAULT_MAX_THUMBS  # noqa: E402
from rlabel.report.page import write_report  # noqa: E402
from rlabel.run.directory import RunDirectory  # noqa: E402
from rlabel.run.manifest import CorpusSummary, Manifest, PlanSummary  # noqa: E402
from rlabel.storage import Store  # noqa: E402

WIDTH, HEIGHT, PER_IMAGE, PER_SHARD = 640, 480, 8, 50
NAMES = [f"thing {number}" for number in range(200)]


def draw_picture(path: Path, dice: np.random.Generator) -> list[list[float]]:
    """Save a picture and return the polygon of each of its shapes, in pixels."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    slope = dice.uniform(-0.3, 0.3, (2, 3))
    paper = dice.uniform(60, 200, 3) + rows[..., None] * slope[0] + columns[..., None] * slope[1]
    picture = Image.fromarray(np.clip(paper, 0, 255).astype(np.uint8))
    brush, outlines = ImageDraw.Draw(picture), []
    for _ in range(PER_IMAGE):
        x, y, radius = dice.uniform(60, WIDTH - 60), dice.uniform(60, HEIGHT - 60), dice.uniform(15, 90)
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radii = radius * (1 + 0.25 * np.sin(angles * dice.integers(2, 7)))
        xs = np.clip(x + radii * np.cos(angles), 0, WIDTH - 1)
        ys = np.clip(y + radii * np.sin(angles), 0, HEIGHT - 1)
        brush.polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill=tuple(dice.integers(0, 256, 3).tolist()))
        outlines.append(np.stack([xs, ys], 1).ravel().round(1).tolist())
    grain = np.asarray(picture).astype(np.int16) + dice.normal(0, 12, (HEIGHT, WIDTH, 1)).astype(np.int16)
    Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(path, quality=85)
    return outlines


def outcome_of(key: int, image_id: int, polygon: list[float], dice: np.random.Generator) -> Outcome:
    xs, ys = polygon[0::2], polygon[1::2]
    box = (min(xs), min(ys), max(1.0, max(xs) - min(xs)), max(1.0, max(ys) - min(ys)))
    region = Region(key=str(key), region_id=key, annotation_id=key, segmentation=[polygon], box_xywh=box)
    chance, category_id = dice.random(), int(dice.integers(1, len(NAMES) + 1))
    if chance < 0.01:
        return Failure(region=region, image_id=image_id, kind="region", reason="made up")
    snap = Snap(category_id=category_id, nearest_name=NAMES[0], similarity=1.0, margin=0.5, decided_by="exact")
    if chance < 0.06:
        none = Snap(category_id=None, nearest_name=NAMES[1], similarity=0.4, margin=0.1, decided_by=None, reason="far")
        return Abstention(
            region=region, image_id=image_id, text="what", text_score=0.2, snap=none, box_xywh=box, area_px=9.0
        )
    return Label(
        region=region,
        image_id=image_id,
        category_id=category_id,
        score=round(float(dice.beta(3, 1)), 6),
        text=NAMES[category_id - 1],
        text_score=0.9,
        snap=snap,
        box_xywh=box,
        area_px=box[2] * box[3],
        segmentation=[polygon],
        evidence=Evidence(),
    )


def make_run(folder: Path, num_regions: int) -> None:
    """Make folder/images, folder/run and folder/truth.json; 8 of 10 labels are right. At most 500 different pictures are drawn."""
    dice = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    num_images = -(-num_regions // PER_IMAGE)
    num_shards = -(-num_images // PER_SHARD)
    plan = PlanSummary(
        num_shards=num_shards, num_images=num_images, num_regions=num_images * PER_IMAGE, sha256="b" * 64
    )
    categories: tuple[JsonObject, ...] = tuple({"id": i, "name": name} for i, name in enumerate(NAMES, start=1))
    manifest = Manifest(
        rlabel_version="0",
        settings={"made": "up"},
        corpus=CorpusSummary(sha256="a" * 64, num_images=num_images, num_regions=plan.num_regions),
        plan=plan,
        categories=categories,
    )
    run = RunDirectory.create_or_resume(Store.open(folder / "run"), manifest)
    outlines: list[list[list[float]]] = []
    truth: list[JsonObject] = []
    rows: list[JsonObject] = []
    for shard in range(num_shards):
        images: list[JsonObject] = []
        outcomes: list[Outcome] = []
        for image_id in range(shard * PER_SHARD + 1, min((shard + 1) * PER_SHARD, num_images) + 1):
            path = folder / "images" / f"{image_id:06d}.jpg"
            if len(outlines) < 500:
                outlines.append(draw_picture(path, dice))
            else:
                path.hardlink_to(folder / "images" / f"{(image_id - 1) % 500 + 1:06d}.jpg")
            images.append({"id": image_id, "file_name": path.name, "width": WIDTH, "height": HEIGHT})
            for number, polygon in enumerate(outlines[(image_id - 1) % 500]):
                key = (image_id - 1) * PER_IMAGE + number + 1
                outcome = outcome_of(key, image_id, polygon, dice)
                outcomes.append(outcome)
                is_right = isinstance(outcome, Label) and dice.random() < 0.8
                category_id = (
                    outcome.category_id
                    if is_right and isinstance(outcome, Label)
                    else int(dice.integers(1, len(NAMES) + 1))
                )
                box = list(outcome.region.box_xywh or ())
                truth.append(
                    {
                        "id": key,
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": box,
                        "area": 900.0,
                        "iscrowd": 0,
                    }
                )
        rows += images
        run.commit(ShardResult(index=shard, images=tuple(images), outcomes=tuple(outcomes)))
    run.merge()
    (folder / "truth.json").write_text(
        json.dumps({"images": rows, "categories": list(categories), "annotations": truth})
    )


def show(page: Path, profile: Path) -> dict[str, object]:
    """Open the page and return its first contentful paint, when all records were there, and how long a filter and a frame of scrolling take."""
    with Browser(profile) as browser:
        browser.open(page.as_uri())
        browser.wait("document.getElementById('gallery')?.dataset.ready === 'true'", 120)
        paint = browser.run(
            "performance.getEntriesByType('paint').find((e) => e.name === 'first-contentful-paint').startTime"
        )
        ready = browser.run("performance.getEntriesByName('gallery-ready')[0].startTime")
        script = (
            "(async () => { const from = performance.now(); const box = document.getElementById('f-text'); box.value = 'thing 7';"
            " box.dispatchEvent(new Event('input', {bubbles: true})); const old = document.getElementById('g-count').textContent;"
            " while (document.getElementById('g-count').textContent === old) await new Promise(requestAnimationFrame);"
            " return performance.now() - from - 120; })()"  # 120 ms of waiting for the next letter are meant
        )
        filter_ms = browser.run(script)
        scroll = (
            "(async () => { const list = document.getElementById('g-list'), took = []; document.getElementById('f-text').value = '';"
            " document.getElementById('f-text').dispatchEvent(new Event('input', {bubbles: true}));"
            " await new Promise((done) => setTimeout(done, 1000)); let last = performance.now();"
            " for (let i = 0; i < 120; i++) { list.scrollTop += 100; await new Promise(requestAnimationFrame);"
            " const now = performance.now(); took.push(now - last); last = now; }"
            " took.sort((a, b) => a - b); return [took[60], took[114]]; })()"
        )
        frame_ms, slow_frame_ms = browser.run(scroll)
        heap = browser.run("performance.memory.usedJSHeapSize")
        return {
            "first_paint_s": paint / 1000,
            "all_records_s": ready / 1000,
            "filter_ms": filter_ms,
            "scroll_frame_ms": frame_ms,
            "scroll_frame_p95_ms": slow_frame_ms,
            "heap_mb": heap / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regions", type=int, default=10_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--truth", action="store_true", help="also evaluate against a made-up truth")
    parser.add_argument("--words-only", action="store_true", help="no thumbnails: what records alone cost the browser")
    parser.add_argument("--thumbnails", default=str(DEFAULT_MAX_THUMBS), help="a number, or all")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch) / "made"
        if not (folder / "truth.json").exists():
            make_run(folder, given.regions)
        print("benchmark: the run is there", file=sys.stderr)
        started_s = time.monotonic()
        truth = str(folder / "truth.json") if given.truth else None
        images = None if given.words_only else str(folder / "images")
        max_thumbs = None if given.thumbnails == "all" else int(given.thumbnails)
        write_report(str(folder / "run"), images, truth, max_regions=given.regions, max_thumbs=max_thumbs)
        result: dict[str, object] = {"regions": given.regions, "make_s": round(time.monotonic() - started_s, 1)}
        result["make_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        files = [folder / "run" / "report.html", *(folder / "run" / "report").iterdir()]
        result["size_mb"] = round(sum(path.stat().st_size for path in files) / 1e6, 1)
        result["files"] = len(files)
        if CHROMIUM is not None:
            result |= show(folder / "run" / "report.html", Path(scratch) / "profile")
        print(json.dumps(result))


if __name__ == "__main__":
    main()
