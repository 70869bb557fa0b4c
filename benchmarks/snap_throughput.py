"""Measures how fast a run's answers are snapped anew: seconds and peak memory, with a vocabulary and a run made up from a seed.

    python benchmarks/snap_throughput.py [--answers 1000000] [--unique 50000] [--names 13204] [--thesaurus none] [--folder DIR] \
        [--embedder-dtype float32 --embedder-dtype bfloat16] [--rounds 3]

Prints, in Markdown, (a) the Snapper alone over all answers and (b) the whole command `rlabel snap`, each in a process of its
own, so that its memory is its own. Several dtypes alternate, round by round; then it prints the median of the ratios of their times to those
of the first, and how many regions another one labels otherwise. Names are words that no dictionary has, half of them behind an English adjective; every other
category has a synonym. Of the distinct answers as many as there are names are names; the rest are synonyms, inflections, phrases, sentences,
denials and, above all, words that only the embedding can place. Every distinct answer occurs, names far more often.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from rlabel.config import EmbedderDtype
from rlabel.corpus.masks import mask_to_rle
from rlabel.records import Abstention, Evidence, Failure, JsonObject, Label, Region, Snap
from rlabel.run.canonical import canonical_bytes
from rlabel.run.directory import RunDirectory
from rlabel.run.manifest import CorpusSummary, Manifest, PlanSummary
from rlabel.run.records_io import Footer, outcome_to_line
from rlabel.storage import Store


def word_list(words: str) -> list[str]:
    """Return the words of a text."""
    return words.split()


ADJECTIVES = word_list("red old small striped wild common great northern golden sea mountain black giant dwarf spotted")
ONSETS = word_list("b br c cl d dr f fl g gr h k l m n p pl qu r s sh st t tr v w z")
VOWELS = word_list("a e i o u ai ea oo ou")
CODAS = word_list("b ck d g l ll m n nd ng p r rt st t x")
REGIONS_PER_IMAGE, IMAGES_PER_SHARD = 16, 16
# How often each kind of answer is drawn, beyond once for each distinct one.
SHARES = {"name": 0.75, "synonym": 0.08, "inflection": 0.07, "phrase": 0.05, "unknown": 0.05}


def made_up_words(dice: random.Random, number: int) -> list[str]:
    """Return so many different words of two syllables or three."""
    words: dict[str, None] = {}
    while len(words) < number:
        syllables = [dice.choice(ONSETS) + dice.choice(VOWELS) for _ in range(dice.choice((1, 1, 2)))]
        words["".join(syllables) + dice.choice(ONSETS) + dice.choice(VOWELS) + dice.choice(CODAS)] = None
    return list(words)


def made_up_vocabulary(dice: random.Random, num_names: int) -> list[JsonObject]:
    words = made_up_words(dice, 2 * num_names)
    rows: list[JsonObject] = []
    for index in range(num_names):
        name = words[index] if index % 2 else f"{dice.choice(ADJECTIVES)} {words[index]}"
        row: JsonObject = {"id": index + 1, "name": name}
        if index % 2:
            row["synonyms"] = [words[num_names + index]]
        rows.append(row)
    return rows


def made_up_answers(dice: random.Random, rows: list[JsonObject], num_unique: int) -> dict[str, list[str]]:
    """Return the distinct answers by kind."""
    names = [str(row["name"]) for row in rows]
    synonyms = [str(synonym) for row in rows for synonym in row.get("synonyms") or ()]  # type: ignore[union-attr]
    answers: dict[str, list[str]] = {"name": names[:num_unique], "synonym": synonyms}
    left = max(0, num_unique - len(names) - len(synonyms))
    inflections = dict.fromkeys(
        dice.choice(("A {}.", "The {}s", "{}S", "an {}!")).format(dice.choice(names)) for _ in range(left)
    )
    answers["inflection"] = list(inflections)[: left // 4]
    patterns = (
        "a rusty {}", "the object is a {} on a table", "a picture of two {}s", "a {} with a {}", "a {} and a {}",
        "not a {}", "there is a broken {} here",
    )  # fmt: skip
    phrases = dict.fromkeys(
        dice.choice(patterns).format(dice.choice(names), dice.choice(names)) for _ in range(2 * left)
    )
    answers["phrase"] = list(phrases)[: left // 4]
    rest = left - len(answers["inflection"]) - len(answers["phrase"])
    unknown = made_up_words(random.Random(2), rest)
    answers["unknown"] = [
        word if index % 2 else f"{dice.choice(ADJECTIVES)} {word}" for index, word in enumerate(unknown)
    ]
    return answers


def drawn(dice: random.Random, answers: dict[str, list[str]], number: int) -> list[str]:
    """Return so many answers: every distinct one once, the rest drawn by SHARES, all in random order."""
    texts = [text for own in answers.values() for text in own][:number]
    kinds = [kind for kind in SHARES if answers[kind]]
    for kind in dice.choices(kinds, [SHARES[kind] for kind in kinds], k=number - len(texts)):
        texts.append(dice.choice(answers[kind]))
    dice.shuffle(texts)
    return texts


def write_run(folder: Path, rows: list[JsonObject], texts: list[str]) -> None:
    """Write a finished run with one region an answer, of every 50th a failure, of every 9th an abstention."""
    per_shard = REGIONS_PER_IMAGE * IMAGES_PER_SHARD
    num_shards = -(-len(texts) // per_shard)
    num_images = -(-len(texts) // REGIONS_PER_IMAGE)
    plan = PlanSummary(num_shards=num_shards, num_images=num_images, num_regions=len(texts), sha256="b" * 64)
    corpus = CorpusSummary(sha256="a" * 64, num_images=num_images, num_regions=len(texts))
    settings: JsonObject = {"task": "classify", "threshold": 0.6, "margin": 0.02}
    run = RunDirectory.create_or_resume(
        Store.open(folder),
        Manifest(rlabel_version="0", settings=settings, corpus=corpus, plan=plan, categories=tuple(rows[:10])),
    )
    templates = _templates()
    for index in range(num_shards):
        own = range(index * per_shard, min((index + 1) * per_shard, len(texts)))
        images = range(own.start // REGIONS_PER_IMAGE, (own.stop - 1) // REGIONS_PER_IMAGE + 1)
        lines = [
            canonical_bytes(
                {
                    "kind": "image",
                    "row": {"id": image + 1, "file_name": f"{image:09d}.jpg", "height": 480, "width": 640},
                }
            )
            for image in images
        ]
        counts = [0, 0, 0]
        for number in own:
            kind = 2 if number % 50 == 7 else 1 if number % 9 == 3 else 0
            counts[kind] += 1
            line = templates[kind][number % len(templates[kind])]
            line = line.replace(b"900000001", b"%d" % (number // REGIONS_PER_IMAGE + 1))
            line = line.replace(b"900000002", b"%d" % (number + 1))
            lines.append(line.replace(b'"TEXT"', canonical_bytes(texts[number])))
        footer = Footer(
            shard=index,
            fingerprint="",
            rows=0,
            sha256="",
            images=len(images),
            labels=counts[0],
            abstentions=counts[1],
            failures_by_kind={"image": counts[2]} if counts[2] else {},
            largest_annotation_id=own.stop,
        )
        run.commit_body(b"".join(line + b"\n" for line in lines), footer)


def _templates() -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return lines of labels, abstentions and failures; 900000001 stands for the image's id, 900000002 for the region's."""
    dice = random.Random(3)
    labels, abstentions, failures = [], [], []
    snap = Snap(category_id=3, nearest_name="red bear", similarity=0.731234, margin=0.112345, decided_by="embedding")
    evidence = Evidence(num_tokens=4, mean_logprob=-0.112345, min_logprob=-0.412345)
    y, x = np.mgrid[:480, :640]
    for _ in range(64):
        left, top, width, height = (
            dice.randrange(400),
            dice.randrange(300),
            dice.randrange(20, 200),
            dice.randrange(20, 150),
        )
        middle_x, middle_y = left + width / 2, top + height / 2
        mask = ((x - middle_x) / width * 2) ** 2 + ((y - middle_y) / height * 2) ** 2 <= 1
        segmentation = mask_to_rle(mask)
        box = (float(left), float(top), float(width), float(height))
        region = Region(
            key="900000002", region_id=900000002, annotation_id=900000002, segmentation=segmentation, box_xywh=box
        )
        label = Label(
            region=region, image_id=900000001, category_id=3, score=0.412345, text="TEXT", text_score=0.512345, snap=snap,
            box_xywh=box, area_px=float(mask.sum()), segmentation=segmentation, evidence=evidence,
        )  # fmt: skip
        abstention = Abstention(
            region=region, image_id=900000001, text="TEXT", text_score=0.512345, box_xywh=box, area_px=float(mask.sum()),
            snap=replace(snap, category_id=None, decided_by=None, reason="less similar than 0.6"), evidence=evidence,
        )  # fmt: skip
        failure = Failure(region=region, image_id=900000001, kind="image", reason="000000001.jpg: cut off")
        for lines, outcome in ((labels, label), (abstentions, abstention), (failures, failure)):
            lines.append(outcome_to_line(outcome))
    return labels, abstentions, failures


def snapper_alone(folder: Path, threads: int, dtype: EmbedderDtype) -> None:
    """Snap all answers of a file in one call, and print what came of it."""
    from collections import Counter

    from rlabel.cli.options import share_cores
    from rlabel.vocabulary.embedding import MiniLmEmbedder
    from rlabel.vocabulary.snapping import Snapper
    from rlabel.vocabulary.vocabulary import load_vocabulary

    texts = json.loads((folder / "answers.json").read_bytes())
    share_cores()
    started = time.perf_counter()
    vocabulary = load_vocabulary(str(folder / "vocabulary.json"))
    snaps = Snapper(vocabulary, MiniLmEmbedder(threads=threads, dtype=dtype)).snap(texts)
    seconds = time.perf_counter() - started
    by_text = dict(zip(texts, snaps, strict=True))
    steps = Counter(str(snap.decided_by) for snap in by_text.values())
    print(json.dumps({"seconds": seconds, "steps": dict(sorted(steps.items()))}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a command took. cpu_s: of all its threads together."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    last_line: str

    def row(self, label: str, num_answers: int) -> str:
        return (
            f"| {label} | {self.wall_s:.1f} | {self.cpu_s:.1f} | {self.peak_mb:.0f} | {num_answers / self.wall_s:.0f} |"
        )


def cost_of(command: list[str]) -> Cost:
    """Run a command and return what it took."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    lines = child.stdout.read().splitlines()
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with status {status}")
    return Cost(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss / 1024,
        last_line=lines[-1],
    )


@click.command()
@click.option("--answers", "num_answers", default=1_000_000)
@click.option("--unique", "num_unique", default=50_000)
@click.option("--names", "num_names", default=13_204)
@click.option("--threads", default=len(os.sched_getaffinity(0)))
@click.option("--thesaurus", default="none", show_default=True, help="As of `rlabel snap`; the Snapper alone has none.")
@click.option("--folder", type=click.Path(path_type=Path), help="Kept afterwards; a temporary one if left out.")
@click.option(
    "--embedder-dtype", "dtypes", multiple=True, default=["float32"], show_default=True, help="May be repeated."
)
@click.option("--rounds", default=1, show_default=True)
@click.option("--alone-only", is_flag=True, hidden=True)
def main(
    num_answers: int,
    num_unique: int,
    num_names: int,
    threads: int,
    thesaurus: str,
    folder: Path | None,
    dtypes: tuple[EmbedderDtype, ...],
    rounds: int,
    alone_only: bool,
) -> None:
    """Snap the answers of a made-up run and print what it took."""
    if alone_only:
        assert folder is not None
        snapper_alone(folder, threads, dtypes[0])
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "answers.json").exists():
            dice = random.Random(1)
            rows = made_up_vocabulary(dice, num_names)
            answers = made_up_answers(dice, rows, num_unique)
            texts = drawn(dice, answers, num_answers)
            write_run(folder / "run", rows, texts)
            (folder / "vocabulary.json").write_text(json.dumps({"name": "made up", "categories": rows}))
            (folder / "answers.json").write_text(json.dumps(texts))
        else:
            texts = json.loads((folder / "answers.json").read_bytes())
        num_answers, num_distinct = len(texts), len(set(texts))
        print(
            f"{num_answers} answers, {num_distinct} distinct, {num_names} names, {threads} threads, peak memory of "
            f"this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB (not counted below)\n"
        )
        del texts
        print("| what | wall s | CPU s | peak MB | answers/s |")
        print("| --- | --- | --- | --- | --- |")
        walls: dict[tuple[str, str], list[float]] = {}
        labels: dict[str, dict[int, int]] = {}
        last_lines = []
        common = ["--threads", str(threads)]
        for _ in range(rounds):
            for dtype in dtypes:
                own = [*common, "--embedder-dtype", dtype]
                alone = cost_of([sys.executable, __file__, "--alone-only", "--folder", str(folder), *own])
                print(alone.row(f"Snapper alone, start to end, {dtype}", num_answers), flush=True)
                out = Path(tempfile.mkdtemp(prefix="out-", dir=folder))
                command = [sys.executable, "-m", "rlabel.cli.main", "snap", str(folder / "run"), "--out", str(out)]
                command += ["--vocabulary", str(folder / "vocabulary.json"), "--thesaurus", thesaurus, *own]
                whole = cost_of(command)
                print(whole.row(f"rlabel snap, start to end, {dtype}", num_answers), flush=True)
                walls.setdefault(("alone", dtype), []).append(alone.wall_s)
                walls.setdefault(("whole", dtype), []).append(whole.wall_s)
                labels[dtype] = category_of_regions(out)
                last_lines += [f"Snapper alone, {dtype}: {alone.last_line}", f"rlabel snap, {dtype}: {whole.last_line}"]
                shutil.rmtree(out)
        print()
        for dtype in dtypes[1:]:
            for what in ("alone", "whole"):
                pairs = zip(walls[what, dtype], walls[what, dtypes[0]], strict=True)
                print(
                    f"{what}: {dtype} takes {statistics.median(one / other for one, other in pairs):.2f} of {dtypes[0]}'s time"
                )
            first, second = labels[dtypes[0]], labels[dtype]
            changed = [region for region in first.keys() | second.keys() if first.get(region) != second.get(region)]
            both = sum(region in first and region in second for region in changed)
            print(
                f"{dtype}: {len(changed)} of {num_answers} regions otherwise than {dtypes[0]}, {both} of them labels in both"
            )
        print("\n".join(last_lines[-2 * len(dtypes) :]))


def category_of_regions(run: Path) -> dict[int, int]:
    """Return the category of each labeled region, by the id of its annotation."""
    category_of: dict[int, int] = {}
    for path in sorted((run / "shards").iterdir()):
        for outcome in map(json.loads, path.read_bytes().splitlines()):
            if outcome["kind"] == "label":
                category_of[outcome["region"]["annotation_id"]] = outcome["category_id"]
    return category_of


if __name__ == "__main__":
    main()
