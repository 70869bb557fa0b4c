"""`rlabel calibrate`: scores that say how often labels are right."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from rlabel.cli.options import ends_cleanly, print_json
from rlabel.errors import UsageError

if TYPE_CHECKING:
    from rlabel.evaluation.calibrating import GroupBy

CALIBRATOR, PICTURE = "calibrator.json", "reliability.png"


@click.command(context_settings={"max_content_width": 110})
@click.argument("run")
@click.option("--truth", required=True, help="COCO JSON with categories for the same regions.")
@click.option("--out", help="Where the calibrator goes; RUN/calibrator.json if left out. Its picture goes beside it.")
@click.option(
    "--half", type=click.Choice(["0", "1"]), help="Save a calibrator of this part of the images; of all if left out."
)
@click.option("--fraction", type=click.FloatRange(0.1, 0.9), default=0.5, help="Share of the images in part 0.")
@click.option("--images-split", type=int, default=0, help="Another number parts the images in another way.")
@click.option("--target-precision", type=float, default=0.95, help="Share of labels that shall be right.")
@click.option(
    "--confidence", type=float, default=0.95, help="Of the saved threshold: 0 takes it as seen. [default: 0.95]"
)
@click.option(
    "--method",
    type=click.Choice(["auto", "isotonic", "logistic_score", "logistic", "logistic_isotonic"]),
    default="auto",
    help="auto: the simplest whose cross-validated log loss is as good as the best one's.",
)
@click.option("--provenance", help="JSON that says of each region whether training showed its picture.")
@click.option("--unseen-only", is_flag=True, help="Fit and measure on pictures that training did not show.")
@click.option(
    "--group-by",
    type=click.Choice(["image", "source"]),
    default="image",
    help="What is never parted between fitting and measuring: an image, or (by the provenance) a source that several images show.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@ends_cleanly
def calibrate(
    run: str,
    truth: str,
    out: str | None,
    half: str | None,
    fraction: float,
    images_split: int,
    target_precision: float,
    confidence: float,
    method: str,
    provenance: str | None,
    unseen_only: bool,
    group_by: GroupBy,
    as_json: bool,
) -> None:
    """Fit scores to how often labels are right, save them as data, and say what they are worth on held-out images.

    \b
    Example:
      rlabel calibrate run/ --truth instances.json --out calibrator.json
      rlabel label --calibrator calibrator.json --precision 0.95 --images photos/ --regions masks.json --vocabulary names.txt --out next/
    """
    # Not the types' own ranges: NaN is within none, and click lets it through.
    for flag, value, least in (("--target-precision", target_precision, 0.01), ("--confidence", confidence, 0.0)):
        if not least <= value <= 0.9999:
            raise UsageError(f"{flag} {value}: expected a share from {least:g} to 0.9999.")
    if not 0.1 <= fraction <= 0.9:
        raise UsageError(f"--fraction {fraction}: expected a share from 0.1 to 0.9.")
    from rlabel.evaluation.calibrating import calibrate as calibrated
    from rlabel.evaluation.fitting import METHODS
    from rlabel.evaluation.judged_labels import read_scored_run
    from rlabel.report.reliability import calibration_to_text, draw_calibration
    from rlabel.storage import Store, split_url
    from rlabel.vocabulary.calibration import calibrator_to_bytes

    calibration = calibrated(
        read_scored_run(run, truth, provenance),
        half=None if half is None else int(half),
        fraction=fraction,
        seed=images_split,
        precision=target_precision,
        confidence=confidence,
        methods=METHODS if method == "auto" else [one for one in METHODS if one == method],
        unseen_only=unseen_only,
        group_by=group_by,
    )
    store, name = (Store.open(run), CALIBRATOR) if out is None else split_url(out)
    store.put(name, calibrator_to_bytes(calibration.calibrator))
    picture = PICTURE if name == CALIBRATOR else f"{name.removesuffix('.json')}.png"
    store.put(picture, draw_calibration(calibration))
    if as_json:
        print_json({**calibration.to_json(), "file": store.join(name), "picture": store.join(picture)})
    else:
        print(calibration_to_text(calibration), end="")
    for path in (name, picture):
        print(f"rlabel: wrote {store.join(path)}", file=sys.stderr)
