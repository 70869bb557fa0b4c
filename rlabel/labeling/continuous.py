"""Continuous batching: regions of the next images join while the answers of those before them still grow ("iteration-level scheduling", Yu et al. 2022,
Orca, OSDI).

Regions that joined together are a cohort. A step feeds one token to the rows of all cohorts at once; only the attention, which looks at prefixes and a
row's own tokens, goes cohort by cohort. Who joins when follows from the inputs and the lengths of the answers alone, so a shard gives the same bytes
wherever it is labeled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, TypeVar

import torch

from rlabel.labeling.engine import Decoded, Engine
from rlabel.labeling.growing import Growing, pick
from rlabel.labeling.rows import CascadeRows, feed_together
from rlabel.regiongpt.processing import RegionInputs
from rlabel.spans import span

# So much of the room has to be free before more is let in: a few large prefills cost less than many small ones.
_FREE_SHARE = 0.5
# Regions of images without all their answers, for each that may grow: their crops are held, in case they have to be asked again.
_HELD_SHARE = 4
_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Cohort(Generic[_T]):
    """items: one an image, with the numbers of their regions."""

    items: tuple[_T, ...]
    counts: tuple[int, ...]
    growing: Growing[CascadeRows]


class ContinuousBatch(Generic[_T]):
    """Answers the regions of images in free text, by one engine; those of several calls grow together.

    Each answer is the one of `Engine.answer`, up to the rounding of sums in another order. most_regions: that grow at once; tokens are bounded by the
    engine's options. An item of its own stands for each image, and comes back with its answers.
    """

    def __init__(self, engine: Engine, most_regions: int) -> None:
        self._engine = engine
        self._most_regions = most_regions
        self._most_tokens = engine.options.max_batch_tokens
        self._cohorts: list[_Cohort[_T]] = []
        self._waiting: dict[int, _T] = {}  # by identity: items need not be comparable
        self._answered: list[tuple[_T, list[Decoded]]] = []

    def fits(self, inputs: Sequence[RegionInputs]) -> bool:
        """Return whether some images may join now. Where nothing grows, a single one always may."""
        return (len(inputs) == 1 and not self._cohorts) or self._has_room(len(inputs), _num_regions(inputs))

    def add(self, items: Sequence[_T], inputs: Sequence[RegionInputs]) -> None:
        """Let images join, as soon as there is room for them, and go on until there is room for more.

        Raises what the model raises; `give_up` tells then what has no answer yet.
        """
        self._waiting.update((id(item), item) for item in items)
        while not self.fits(inputs) and self._cohorts:
            self._step()
        if _num_regions(inputs) and self._has_room(len(inputs), _num_regions(inputs)):
            self._join(items, inputs)
        else:  # nothing to ask, or more than is to be worked on at once: the engine parts it
            answers = self._engine.answer(inputs)
            self._keep(items, [len(own) for own in answers], chain.from_iterable(answers))
        free_regions = max(1, int(_FREE_SHARE * self._most_regions))
        while self._cohorts and not self._has_room(1, free_regions):
            self._step()

    def finish(self) -> None:
        """Go on until everything that joined is answered. Raises as `add` does."""
        while self._cohorts:
            self._step()

    def take(self) -> list[tuple[_T, list[Decoded]]]:
        """Return what was answered since it was asked last, in no order that says anything."""
        answered, self._answered = self._answered, []
        return answered

    def give_up(self) -> list[_T]:
        """Return the items that have no answer yet, in the order of their joining, and forget them."""
        waiting, self._waiting, self._cohorts = list(self._waiting.values()), {}, []
        return waiting

    def take_less(self) -> None:
        """Let half as much go on at once from here on, in the end image by image."""
        self._most_regions, self._most_tokens = self._most_regions // 2, self._most_tokens // 2

    def _has_room(self, num_images: int, num_regions: int) -> bool:
        prompt = self._engine.prompt
        num_held = num_regions + sum(sum(cohort.counts) for cohort in self._cohorts)
        num_images += sum(cohort.growing.rows.num_prefixes for cohort in self._cohorts)
        num_regions += sum(cohort.growing.num_rows for cohort in self._cohorts)
        a_region = len(prompt.suffix_ids) + self._engine.options.max_new_tokens
        num_tokens = num_images * len(prompt.prefix_ids) + num_regions * a_region
        return (
            num_regions <= self._most_regions
            and num_held <= _HELD_SHARE * self._most_regions
            and num_tokens <= self._most_tokens
        )

    @torch.inference_mode()
    def _join(self, items: Sequence[_T], inputs: Sequence[RegionInputs]) -> None:
        engine = self._engine
        encoded = engine.encode(inputs)
        rows, logits_NV = engine.ask(encoded.image_tokens_BTD, encoded.regions_RKD, encoded.image_index_R)
        if not isinstance(rows, CascadeRows):  # every row holds its prefix: their steps cannot be taken together
            self._keep(items, encoded.counts, engine.go_on(rows, logits_NV))
            return
        growing = Growing(rows, len(logits_NV), engine.options.max_new_tokens, engine.device)
        pick([growing], logits_NV, engine.stop_ids)
        self._cohorts.append(_Cohort(items=tuple(items), counts=encoded.counts, growing=growing))
        self._take_out()

    @torch.inference_mode()
    def _step(self) -> None:
        with span("decode steps", device=True):
            growing = [cohort.growing for cohort in self._cohorts]
            embed = self._engine.model.get_input_embeddings()
            token_R = torch.cat([one.token_R for one in growing])
            logits_RV = feed_together([one.rows for one in growing], embed(token_R[:, None]))
            pick(growing, logits_RV, self._engine.stop_ids)
        self._take_out()

    def _take_out(self) -> None:
        done = [cohort for cohort in self._cohorts if cohort.growing.is_done]
        self._cohorts = [cohort for cohort in self._cohorts if not cohort.growing.is_done]
        for cohort in done:
            self._keep(cohort.items, cohort.counts, self._engine.decoded(cohort.growing.answers()))

    def _keep(self, items: Sequence[_T], counts: Sequence[int], answers: Iterable[Decoded]) -> None:
        """Keep the answers to so many regions of each item until they are taken."""
        following = iter(answers)
        for item, count in zip(items, counts, strict=True):
            self._answered.append((item, list(islice(following, count))))
            del self._waiting[id(item)]


def _num_regions(inputs: Sequence[RegionInputs]) -> int:
    return sum(len(item.region_masks_RGG) for item in inputs)
