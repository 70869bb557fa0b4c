"""What a stage takes of a corpus: at most so many regions a category, and how often each image comes in an epoch.

Everything is drawn from seeds, so that any process at any time draws the same. Works on numbers alone; no row is read.

Legend: as in `corpus`; T draws of an epoch.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlabel.errors import InputError
from rlabel.training.corpus import Cap, Indices, Numbers, Part, Reals, TrainCorpus
from rlabel.training.recipe import Stage


def for_stage(corpus: TrainCorpus, stage: Stage, seed: int) -> TrainCorpus:
    """Return what a stage draws from: its datasets, capped a category, with how often each image comes.

    Raises InputError as `check_stage` does.
    """
    check_stage(corpus, stage)
    weights = np.array([weight_of(part, stage) for part in corpus.parts])
    if not weights.all():
        corpus = replace(corpus, numbers=corpus.numbers[weights[corpus.parts_of_images()] > 0])
    corpus = cap_per_category(corpus, stage.per_category, seed)
    repeats = weights[corpus.parts_of_images()]
    if stage.balance:
        repeats = repeats * balance_factors(corpus, repeats, stage.balance)
    return replace(corpus, repeats=None if (repeats == 1).all() else repeats)


def weight_of(part: Part, stage: Stage) -> float:
    """Return how often an image of a part comes in an epoch of a stage on average."""
    return stage.weights.get(part.name, part.weight)


def check_stage(corpus: TrainCorpus, stage: Stage) -> None:
    """Raise InputError for weights of a dataset that there is not, no dataset left, or one with nothing to ask by its tasks."""
    known = [part.name for part in corpus.parts]
    if unknown := [name for name in stage.weights if name not in known]:
        raise InputError(
            f"recipe, stage {stage.name}, weights: expected names of the datasets ({', '.join(known)}), got {unknown[0]!r}. "
            "Correct it, or take it out."
        )
    used = [part for part in corpus.parts if weight_of(part, stage) > 0]
    if not used:
        raise InputError(
            f"recipe, stage {stage.name}, weights: expected one above 0, got 0 for every dataset ({', '.join(known)}). Raise one."
        )
    if stage.objective != "instruct":
        return
    for part in used:
        tasks = [task for task, share in (part.tasks or stage.tasks).items() if share > 0]
        if not part.askable.intersection(tasks):
            whose = f"dataset {part.name}" if part.tasks else f"recipe, stage {stage.name}"
            raise InputError(
                f"{part.where}: expected something to ask by the tasks of {whose} ({', '.join(tasks) or 'none'}), got nothing; there is "
                f"something for {', '.join(sorted(part.askable)) or 'no task'}. Change the tasks, or leave the dataset out (weight 0)."
            )


def cap_per_category(corpus: TrainCorpus, per_category: int | None, seed: int) -> TrainCorpus:
    """Return the corpus with at most `per_category` randomly chosen regions of each category; images left empty are dropped (RegionGPT's sampling).

    A part's own cap wins. Each part is capped for itself. Regions without a category, known by a caption or expressions
    only, all stay.
    """
    caps: list[Cap | None] = [part.per_category or per_category for part in corpus.parts]
    if all(cap in (None, "all") for cap in caps):
        return corpus
    kept = np.ones(int(corpus.first_region[-1]), np.bool_) if corpus.kept is None else corpus.kept.copy()
    for place, (part, cap) in enumerate(zip(corpus.parts, caps, strict=True)):
        if isinstance(cap, int):
            first, last = corpus.first_region[corpus.first_image[place : place + 2]]
            _cap(part.category_index, kept[first:last], cap, np.random.default_rng((seed, place) if place else seed))
    capped = replace(corpus, kept=kept)
    return replace(capped, numbers=corpus.numbers[capped.regions_of_images() > 0])


def _cap(category_index: Indices, kept: np.ndarray, cap: int, random: np.random.Generator) -> None:
    """Set False, in place, what is over the cap of its category among the regions that are kept."""
    among = np.flatnonzero(kept & (category_index >= 0))
    if not len(among):
        return
    by_category = among[np.argsort(category_index[among], kind="stable")]  # in file order in each category
    starts = np.flatnonzero(np.diff(category_index[by_category], prepend=-1))
    for found in np.split(by_category, starts[1:]):
        kept[found[random.permutation(len(found))[cap:]]] = False


def balance_factors(corpus: TrainCorpus, weights: Reals, balance: float) -> Reals:
    """Return factors_K: float64, by how much more often each image comes so that rare categories come more often; their mean in a part is 1.

    That of the image's rarest category, (1 / f) ** balance, f being how many images with it an epoch has without balance:
    LVIS's repeat factor sampling, max(1, sqrt(t / f)), is balance 0.5 with t the largest f (Gupta, Dollar and Girshick 2019,
    arXiv 1908.03195, section 5). At 1 categories that never share an image come equally often. An epoch stays as long as it
    was. Images without a name come as often as the average of their part. weights: float64 (K), draws without balance.
    """
    counts = np.diff(corpus.first_region)
    in_use = np.full(len(counts), -1, np.int64)
    in_use[corpus.numbers] = np.arange(len(corpus.numbers))
    images = np.repeat(in_use, counts)
    wanted = (images >= 0) & (corpus.name_index >= 0)
    if corpus.kept is not None:
        wanted &= corpus.kept
    num_names = len(corpus.all_names)
    pairs = np.unique(images[wanted] * num_names + corpus.name_index[wanted])  # each name once an image, by image
    of_image, name = np.divmod(pairs, max(num_names, 1))
    often = np.bincount(name, weights[of_image], num_names)
    factors = np.full(len(corpus.numbers), np.nan)
    if len(pairs):
        firsts = np.flatnonzero(np.diff(of_image, prepend=-1))
        rarest = np.minimum.reduceat(often[name], firsts)
        factors[of_image[firsts]] = (often.max() / rarest) ** balance
    parts = corpus.parts_of_images()
    for part in np.unique(parts):
        own = factors[parts == part]
        named = ~np.isnan(own)
        factors[parts == part] = np.where(named, own / own[named].mean(), 1.0) if named.any() else 1.0
    return factors


def epoch_order(corpus: TrainCorpus, seed: int, epoch: int) -> tuple[Numbers, Numbers]:
    """Return (images_T, again_T), int64: the images of an epoch in order, and how often each came before in it.

    Without repeats each image once. With them image k comes repeats[k] times, rounded up or down by the epoch's luck:
    systematic sampling, whose number of draws is the same in every epoch. Images of one part that come equally often lie side
    by side while it draws, so that it takes as many of them as it should, to within one.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(corpus.numbers)).astype(np.int64)
    if corpus.repeats is None:
        return order, np.zeros(len(order), np.int64)
    size = corpus.epoch_size
    order = order[np.lexsort((corpus.repeats[order], corpus.parts_of_images()[order]))]
    up_to = np.cumsum(corpus.repeats[order])
    marks = (random.random() + np.arange(size)) * (up_to[-1] / size)
    drawn = order[np.minimum(np.searchsorted(up_to, marks, side="right"), len(order) - 1)]
    drawn = drawn[random.permutation(size)]
    by_image = np.argsort(drawn, kind="stable")
    starts = np.flatnonzero(np.diff(drawn[by_image], prepend=-1))
    again = np.zeros(size, np.int64)
    again[by_image] = np.arange(size) - np.repeat(starts, np.diff(np.append(starts, size)))
    return drawn, again
