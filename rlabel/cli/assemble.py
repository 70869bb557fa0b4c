"""`rlabel assemble`: a fresh RegionGPT from pre-trained parts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from rlabel.cli.numbers import FiniteRange
from rlabel.cli.options import ends_cleanly
from rlabel.errors import UsageError


@click.command(context_settings={"max_content_width": 110})
@click.option(
    "--vision",
    required=True,
    help="Folder or hub id of a vision model (SigLIP, CLIP, DINOv2, ...), or efficientnet-lite0 to -lite2.",
)
@click.option("--llm", required=True, help="Folder or hub id of a causal language model, smollm2-135m, or tiny.")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Model folder to write.")
@click.option("--image-size-px", type=int, help="Side the picture is squeezed to [default: the tower's own].")
@click.option(
    "--vision-feature-layer", type=int, help="Hidden state to pool [default: -2; stride 16 for the Lite tower]."
)
@click.option("--refine/--no-refine", default=True, help="Deconvolutional feature refinement.")
@click.option("--image-tokens-per-side", type=int, help="Side of the grid of image tokens [default: the tower's own].")
@click.option("--merge-size", type=int, default=1, help="m x m image tokens become one.")
@click.option("--connector", type=click.Choice(["shared", "separate"]), help="[default: shared, separate if merged]")
@click.option("--tokens-per-region", type=click.IntRange(1), default=1)
@click.option(
    "--region-pooling",
    type=click.Choice(["grid", "attention"]),
    default="grid",
    help="How several tokens a region are made: parts of its mask, or learned queries.",
)
@click.option(
    "--place-token/--no-place-token",
    default=False,
    help="One more token a region tells where it lies and how large it is.",
)
@click.option(
    "--name-map/--no-name-map",
    default=False,
    help="Keep a map of name embeddings, for recipes that decorrelate names.",
)
@click.option(
    "--name-memory/--no-name-memory",
    default=False,
    help="Remember the names of the training data, and draw region tokens to those they recall.",
)
@click.option(
    "--zoom",
    type=click.Choice(["off", "all", "small"]),
    default="off",
    help="Which regions are also cropped and encoded.",
)
@click.option("--zoom-size-px", type=int, help="Side of the crops.")
@click.option(
    "--zoom-below-px",
    type=FiniteRange(min=0),
    default=64.0,
    help="With --zoom small: longer side, in the squeezed picture.",
)
@click.option(
    "--zoom-context",
    type=FiniteRange(0, 10),
    default=0.1,
    help="Margin of a crop, as a share of the box's longer side.",
)
@click.option(
    "--zoom-more-contexts",
    type=FiniteRange(0, 10),
    multiple=True,
    help="Further crops of each region, at other margins; their mean is taken.",
)
@click.option("--zoom-keep", type=FiniteRange(0, 1), default=0.0, help="How much of a crop's outside stays visible.")
@click.option(
    "--zoom-pooled-weight",
    type=FiniteRange(0, 1),
    default=1.0,
    help="Weight of the mask-pooled part in zoomed regions.",
)
@click.option(
    "--tokenizer-text", multiple=True, help="Vocabulary files whose names the tokenizer of --llm tiny is learned from."
)
@click.option("--seed", type=int, default=0)
@ends_cleanly
def assemble(vision: str, llm: str, out: str, tokenizer_text: tuple[str, ...], **options: Any) -> None:
    """Build a RegionGPT: pre-trained tower and language model, fresh refinement and connectors, to be trained.

    \b
    Example:
      rlabel assemble --vision google/siglip-so400m-patch14-384 --llm Qwen/Qwen2.5-7B-Instruct --out fresh/
    """
    from pathlib import Path

    from rlabel.regiongpt.assembly import AssemblyOptions, save
    from rlabel.regiongpt.assembly import assemble as build

    if Path(out).exists() and any(Path(out).iterdir()):
        raise UsageError(f"--out {out}: expected a new or empty folder, got one with files. Give another name.")
    model, processor = build(vision, llm, AssemblyOptions(**options), _names(tokenizer_text))
    save(model, processor, out)
    for name, child in model.named_children():
        if child is not None:
            print(
                f"rlabel: {name}: {sum(parameter.numel() for parameter in child.parameters()) / 1e6:.2f} M parameters",
                file=sys.stderr,
            )
    print(f"rlabel: wrote {out}; train it: rlabel train --model {out} ...", file=sys.stderr)


def _names(files: tuple[str, ...]) -> Iterator[str]:
    from rlabel.vocabulary.vocabulary import load_vocabulary

    for file in files:
        for category in load_vocabulary(file, keep_zero_ids=True).categories:
            yield category.name
            yield from category.synonyms
