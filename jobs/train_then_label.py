"""`python -m jobs.train_then_label`: fine-tune on labeled images, then label a corpus with the result, in one job."""

from __future__ import annotations

from typing import Any

import click

from rlabel.cli.label import run_label
from rlabel.cli.options import ends_cleanly, settings_options
from rlabel.cli.train import run_train
from rlabel.config import LabelSettings, TrainSettings, load_settings
from rlabel.run.job import check_files


@click.command()
@settings_options(LabelSettings)
@click.option("--train-images", required=True, help="Folder of the labeled pictures.")
@click.option("--annotations", required=True, help="COCO JSON with categories to fine-tune on.")
@click.option("--tuned", required=True, help="Model folder to write, then to label with.")
@click.option("--recipe", help="Recipe of the training [default: fine-tune].")
@click.option("--num-workers", type=int, help="Training workers.")
@ends_cleanly
def train_then_label(
    config: str | None,
    train_images: str,
    annotations: str,
    tuned: str,
    recipe: str | None,
    num_workers: int | None,
    **flags: Any,
) -> None:
    """Fine-tune, then label.

    \b
    Example:
      python -m jobs.train_then_label --train-images labeled/ --annotations instances.json --tuned /data/tuned \\
        --images photos/ --regions masks.json --vocabulary names.txt --out /data/run
    """
    begin = load_settings(LabelSettings, config, flags)
    label_settings = begin.model_copy(update={"model": tuned})
    train_flags = {
        "images": train_images, "annotations": annotations, "out": tuned, "model": begin.model, "recipe": recipe, "num_workers": num_workers,
        "address": label_settings.address, "no_ray": label_settings.no_ray or None,
    }  # fmt: skip
    check_files(label_settings)  # not after an hour of training
    run_train(load_settings(TrainSettings, None, train_flags))
    run_label(label_settings)


if __name__ == "__main__":
    train_then_label()
