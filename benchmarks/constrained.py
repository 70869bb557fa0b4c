"""Counts answers outside the vocabulary in constrained decoding: a model of random weights, asked about random regions.

    python benchmarks/constrained.py --vocabulary names.json [--decodes 100000] [--batch 500] [--seed 0]

Random weights say anything: what comes out are names only because nothing else can. Each answer is compared with the names and synonyms as texts.
"""

from __future__ import annotations

import time

import click
import torch

from rlabel.labeling.engine import Engine, EngineOptions
from rlabel.run.job import embedded_model_folder
from rlabel.vocabulary.likelihood import Choosing
from rlabel.vocabulary.vocabulary import load_vocabulary


@click.command()
@click.option("--vocabulary", required=True)
@click.option("--decodes", default=100_000)
@click.option("--batch", default=500)
@click.option("--seed", default=0)
@torch.inference_mode()
def main(vocabulary: str, decodes: int, batch: int, seed: int) -> None:
    """Print how many answers were given, how many different ones, and how many are not in the vocabulary."""
    from rlabel.regiongpt.assembly import load_processor
    from rlabel.regiongpt.quantization import Precision, load_model

    torch.manual_seed(seed)
    folder = str(embedded_model_folder())
    model, processor = load_model(folder, Precision(dtype="float32"), "cpu"), load_processor(folder)
    names = Choosing(load_vocabulary(vocabulary, keep_zero_ids=True)).names
    engine = Engine(model, processor, EngineOptions(names=names))
    for weight in model.language_model.parameters():
        weight.normal_(0, 0.05 if weight.dim() > 1 else 1.0)
    width = model.config.text_config.hidden_size
    tokens = processor.tokens_per_region
    started = time.perf_counter()
    said: dict[str, int] = {}
    while (done := sum(said.values())) < decodes:
        count = min(batch, decodes - done)
        image_1TD = torch.randn(1, processor.num_image_tokens, width)
        regions_NKD = torch.randn(count, tokens, width) * torch.rand(count, 1, 1) * 10
        for answer in engine.decode(image_1TD, regions_NKD, torch.zeros(count, dtype=torch.long)):
            said[answer.text] = said.get(answer.text, 0) + 1
    known = {processor.decode_answer(processor.answer_ids(name)[:-1]) for name in names}
    outside = sum(number for text, number in said.items() if text not in known)
    print(
        f"{len(names):,} names; {sum(said.values()):,} answers, {len(said):,} different ones, in {time.perf_counter() - started:.0f} s"
    )
    print(f"outside the vocabulary: {outside}")
    raise SystemExit(1 if outside else 0)


if __name__ == "__main__":
    main()
