"""Asks of pairs of regions: left or right, above or below, larger or smaller, overlapping or not; the truth is worked out from the masks.

    python benchmarks/places.py --images DIR --truth instances.json [--model DIR] [--num-images 200] [--seed 0]

Pairs and answers are those of training's `place` task (rlabel/prompts/tasks.py): each region with another one of its picture, drawn by the seed; what
boxes and areas do not decide clearly is not asked. The baseline is to give the most common answer of each kind, always.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter, defaultdict
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import numpy as np

from rlabel.corpus.limits import Limits
from rlabel.corpus.masks import BadRegion, rasterise
from rlabel.prompts import instructions
from rlabel.prompts.tasks import RegionFacts, places

KINDS = {
    instructions.HORIZONTAL: "left or right",
    instructions.VERTICAL: "above or below",
    instructions.SIZE: "larger or smaller",
    instructions.OVERLAP: "overlap",
}


@click.command()
@click.option("--images", required=True)
@click.option("--truth", required=True)
@click.option("--model", default="embedded")
@click.option("--num-images", default=10**9)
@click.option("--seed", default=0)
@click.option("--threads", default=2)
def main(images: str, truth: str, model: str, num_images: int, seed: int, threads: int) -> None:
    """Accuracy a kind of question, and that of the most common answer."""
    corpus = json.loads(Path(truth).read_text())
    wanted = ask_of(corpus, num_images, seed)
    print("| | questions | right | most common answer |\n| --- | --- | --- | --- |")
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, (question, answers) in enumerate(wanted.items()):
            said = answered(question, answers, images, truth, model, threads, Path(folder) / str(number))
            right = sum(matches(said.get(pair, ""), answer, answers) for pair, answer in answers.items())
            common = Counter(answers.values()).most_common(1)[0][1]
            total.update(questions=len(answers), right=right, common=common)
            print(row(KINDS[texts_of(question)], len(answers), right, common), flush=True)
    print(row("all", total["questions"], total["right"], total["common"]))


Pair = tuple[str, str]


def ask_of(corpus: dict[str, Any], num_images: int, seed: int) -> dict[str, dict[Pair, str]]:
    """Return {question: {(subject, object): answer}}, the questions being the first of each kind."""
    random = np.random.default_rng(seed)
    wanted: dict[str, dict[Pair, str]] = {texts[0]: {} for texts in KINDS}
    for regions in list(facts_of(corpus).values())[:num_images]:
        ids = list(regions)
        for i, subject in enumerate(ids if len(ids) > 1 else []):
            other = ids[(i + 1 + int(random.integers(len(ids) - 1))) % len(ids)]
            for texts, answer in places(regions[subject], regions[other]):
                wanted[texts[0]][subject, other] = answer
    return {question: answers for question, answers in wanted.items() if answers}


def facts_of(corpus: dict[str, Any]) -> dict[Any, dict[str, RegionFacts]]:
    """Return {image id: {region id: facts}} of all regions that are no crowds."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in corpus["images"]}
    found: dict[Any, dict[str, RegionFacts]] = defaultdict(dict)
    for one in corpus["annotations"]:
        if one.get("iscrowd"):
            continue
        try:
            mask = rasterise(one.get("segmentation"), one.get("bbox"), *sizes[one["image_id"]], Limits())
        except BadRegion:
            continue
        found[one["image_id"]][str(one["id"])] = RegionFacts(box_xywh=mask.box_xywh, area_px=mask.area_px)
    return found


def answered(
    question: str, answers: dict[Pair, str], images: str, truth: str, model: str, threads: int, folder: Path
) -> dict[Pair, str]:
    """Return what the model says of each pair."""
    from rlabel.cli.label import run_label
    from rlabel.config import LabelSettings

    image_of = {str(one["id"]): one["image_id"] for one in json.loads(Path(truth).read_text())["annotations"]}
    folder.mkdir()
    rows = [{"image_id": image_of[one], "subject": one, "object": other} for one, other in answers]
    (folder / "pairs.json").write_text(json.dumps(rows))
    with redirect_stdout(sys.stderr):  # the run's own last line
        run_label(
            LabelSettings(
                images=images,
                regions=truth,
                task="relate",
                pairs=str(folder / "pairs.json"),
                question=question,
                out=str(folder / "run"),
                model=model,
                max_new_tokens=8,
                max_failure_rate=1.0,
                no_ray=True,
                cpus_per_actor=threads,
            )
        )
    relations = json.loads((folder / "run" / "relations.json").read_text())["relations"]
    return {(str(one["subject"]["region_id"]), str(one["object"]["region_id"])): one["predicate"] for one in relations}


def matches(said: str, answer: str, answers: dict[Pair, str]) -> bool:
    """Return whether the right answer, and no other of its kind, is among the words of what was said."""
    words = set(said.lower().replace(".", " ").replace(",", " ").split())
    return words & set(answers.values()) == {answer}


def texts_of(question: str) -> tuple[str, ...]:
    return next(texts for texts in KINDS if question in texts)


def row(name: str, questions: int, right: int, common: int) -> str:
    return f"| {name} | {questions} | {100 * right / questions:.1f} % | {100 * common / questions:.1f} % |"


if __name__ == "__main__":
    main()
