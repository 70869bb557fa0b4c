"""`rlabel ask`: free questions about the regions of one picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlabel.cli.options import ends_cleanly, print_json
from rlabel.config import EMBEDDED_MODEL
from rlabel.errors import InputError, UsageError

if TYPE_CHECKING:
    from rlabel.corpus.limits import Limits
    from rlabel.corpus.masks import RegionMask


@click.command()
@click.argument("image")
@click.argument("questions", nargs=-1, required=True)
@click.option(
    "--region", "regions", multiple=True, required=True, help="X,Y,W,H in pixels, or a mask picture of the same size."
)
@click.option("--model", default=EMBEDDED_MODEL, show_default=True, help="Model folder or hub id.")
@click.option("--max-new-tokens", type=click.IntRange(1, 4096), default=64, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@ends_cleanly
def ask(
    image: str, questions: tuple[str, ...], regions: tuple[str, ...], model: str, max_new_tokens: int, as_json: bool
) -> None:
    """Ask about regions of one picture; several questions are the turns of one conversation.

    \b
    Example:
      rlabel ask photo.jpg --region 10,20,64,48 --region mask.png \\
        "Name the object in <region1>." "Which of <region1> and <region2> is larger?"
    """
    from rlabel.corpus.images import BadImage, open_image
    from rlabel.corpus.isolation import shared_decoders
    from rlabel.corpus.limits import Limits
    from rlabel.prompts.questions import parse_question
    from rlabel.storage import split_url

    for question in questions:  # wrong ones are told before a model is loaded
        parse_question(question, len(regions))
    limits = Limits()
    if not image or Path(image).is_dir():
        raise UsageError(
            f"IMAGE {image}: expected the file of a picture, got {'a folder' if image else 'an empty text'}. Name a file."
        )
    try:
        pixels_HWC = open_image(*split_url(image), limits, decoder=shared_decoders())
    except BadImage as error:
        raise InputError(f"{image}: {error}") from error
    masks = [read_region(text, pixels_HWC.shape[0], pixels_HWC.shape[1], limits) for text in regions]

    from rlabel.labeling.conversation import converse
    from rlabel.run.job import resolve
    from rlabel.vocabulary.scores import text_score

    conversation = converse(str(resolve(model)), pixels_HWC, masks, max_new_tokens)
    answers = [conversation.ask(question) for question in questions]
    if as_json:
        turns = [
            {"question": question, "answer": answer.text, "score": round(text_score(answer.token_logprobs), 4)}
            for question, answer in zip(questions, answers, strict=True)
        ]
        print_json({"image": image, "regions": list(regions), "turns": turns})
        return
    for question, answer in zip(questions, answers, strict=True):
        print(f"> {question}\n{answer.text}")


def read_region(text: str, height_px: int, width_px: int, limits: Limits) -> RegionMask:
    """Return the region that `X,Y,W,H` or a mask picture means: non-zero pixels are inside.

    Raises UsageError for what is neither, InputError for a region that is empty or lies outside, or a mask of another size.
    """
    from rlabel.corpus.images import BadImage, open_image
    from rlabel.corpus.isolation import shared_decoders
    from rlabel.corpus.masks import BadRegion, mask_to_rle, rasterise
    from rlabel.storage import Store

    parts = text.split(",")
    try:
        if len(parts) == 4:
            x, y, w, h = (float(part) for part in parts)
            if not all(math.isfinite(value) for value in (x, y, w, h)):
                raise ValueError
            return rasterise(None, (x, y, w, h), height_px, width_px, limits)
        path = Path(text)
        if not path.is_file():
            raise ValueError
        mask_HW = open_image(Store.open(str(path.parent)), path.name, limits, shared_decoders()).any(-1)
        if mask_HW.shape != (height_px, width_px):
            raise InputError(
                f"--region {text}: expected a mask of the picture's {width_px} x {height_px} px, got {mask_HW.shape[1]} x {mask_HW.shape[0]}."
            )
        return rasterise(mask_to_rle(mask_HW), None, height_px, width_px, limits)
    except ValueError:
        raise UsageError(
            f"--region {text}: expected X,Y,W,H in pixels or the file of a mask picture, got neither."
        ) from None
    except (BadRegion, BadImage) as error:
        raise InputError(f"--region {text}: {error}") from error
