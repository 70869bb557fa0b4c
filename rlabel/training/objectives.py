"""What a training step computes: the alignment warm-up and the instruction loss, over one batch of prepared images.

Legend: B images, R regions of all of them, K tokens a region, D width, N names of the corpus, T packed tokens, P prefix tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from rlabel.labeling.engine import DeviceBatch, to_device_batch
from rlabel.prompts.instructions import CLASSIFY
from rlabel.prompts.tasks import RegionFacts, Task, draw_turns
from rlabel.prompts.templates import Turn
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.places import place_of_masks
from rlabel.regiongpt.processing import RegionGPTProcessor
from rlabel.training.dataset import PLAIN_FIRST, Sample, fade_keeps
from rlabel.training.deciding import NamePaths, ShownRow
from rlabel.training.names import learn_name_map, name_embeddings
from rlabel.training.packing import IGNORED, Script, attention_bias, pack, script, stack
from rlabel.training.recipe import Stage
from rlabel.training.spelling import Bank, EncodedPicture, disturb, make_up, make_up_boxes, place_facts

# Names in one packed row of `spell`.
_ROW_NAMES = 16
# How far made-up tokens lie from names at the beginning of `spell`, as a share of the farthest, and when the farthest are reached.
_EASIEST, _HARD_AFTER = 0.25, 0.5
# Of align: the share of a name's probability that is given to all names, and the weight of the tokens' length.
_SMOOTHING, _LENGTH_WEIGHT = 0.1, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """loss: scalar with gradient. num_right of num_regions: nearest name (align), or conversations whose answers are all right by teacher forcing."""

    loss: Tensor
    num_right: int
    num_regions: int


class TrainingStep(nn.Module):
    """One forward pass of a stage; a module, so that DistributedDataParallel can wrap it. names: every category name of the corpus."""

    def __init__(
        self,
        model: RegionGPTForConditionalGeneration,
        processor: RegionGPTProcessor,
        stage: Stage,
        names: Sequence[str],
    ) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.stage = stage
        self.name_index = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self.answer_ids = {name: processor.answer_ids(name) for name in self.name_index}
        self.paths = NamePaths(self.answer_ids)
        self.scripts: dict[tuple[str, str], Script] = {}
        self.bank = Bank()
        if stage.decorrelate:
            learn_name_map(model, self.answer_ids, stage.name)
        # Share of the stage's steps that are done; the loop keeps it.
        self.progress = 0.0

    def forward(self, samples: list[Sample] | list[str]) -> StepResult:
        """Return the loss of one batch: prepared images, or names for `spell`."""
        device = next(self.model.parameters()).device
        if not samples:
            return self._nothing()
        if self.stage.objective == "spell":
            with torch.autocast(device.type, torch.bfloat16, enabled=self.stage.dtype == "bfloat16"):
                return self._spell([name for name in samples if isinstance(name, str)])
        return self._see([sample for sample in samples if isinstance(sample, Sample)], device)

    def _see(self, samples: list[Sample], device: torch.device) -> StepResult:
        with torch.autocast(device.type, torch.bfloat16, enabled=self.stage.dtype == "bfloat16"):
            batch = self._device_batch(samples, device)
            names = [name for sample in samples for name in sample.names]
            named = [i for i, name in enumerate(names) if name is not None]
            target_R = torch.tensor([self.name_index[name] for name in names if name is not None], device=device)
            if self.stage.objective == "align":
                teaches_pooled = any(sample.teaches_pooled for sample in samples)
                return self._align_parts(batch, named, target_R, teaches_pooled) if named else self._nothing()
            image_tokens_BTD, shown_RKD = self._encode(batch)
            regions_RKD = self.model.finish_regions(shown_RKD, place_of_masks(batch.region_masks_RGG))
            result = self._instruct(samples, image_tokens_BTD, regions_RKD)
            if self.stage.align_weight and named:
                aligned = self._align(shown_RKD[named], target_R)
                return StepResult(
                    loss=result.loss + self.stage.align_weight * aligned.loss,
                    num_right=result.num_right,
                    num_regions=result.num_regions,
                )
            return result

    def _nothing(self) -> StepResult:
        """A loss of 0 that reaches every trained parameter: a worker whose whole batch is unusable must still meet the others' gradients."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # What lies in shards now is gathered for its own passes only: `sharding` sees to it.
        reached = [parameter.flatten()[:0].sum() for parameter in trained if not isinstance(parameter, DTensor)]
        loss = torch.stack(reached).sum() if reached else torch.zeros((), device=trained[0].device)
        return StepResult(loss=loss, num_right=0, num_regions=0)

    def _device_batch(self, samples: list[Sample], device: torch.device) -> DeviceBatch:
        inputs = [sample.inputs for sample in samples]
        keep = self.stage.augment.keep if self.training else None
        if keep is None or all(item.zoom_crops_Z4SS is None for item in inputs):
            return to_device_batch(inputs, self.processor, device)
        return to_device_batch(inputs, self.processor, device, fade_keeps(samples, keep).to(device))

    def _encode(self, batch: DeviceBatch) -> tuple[Tensor, Tensor]:
        """Return (image_tokens_BTD, shown_RKD); how far gradients and batch statistics reach into the tower is the stage's choice."""
        tower = self.model.vision_tower
        trains_tower = any(parameter.requires_grad for parameter in tower.parameters())
        tower.eval()  # statistics of whole pictures are not those of crops: only crops may change them
        with torch.set_grad_enabled(trains_tower and self.stage.tower_through_image):
            coarse_BCHW = self.model.coarse_maps(batch.pixels_B3SS)
        maps_BCGG, image_tokens_BTD = self.model.refine_maps(coarse_BCHW)
        self._set_tower_mode()
        shown_RKD = self.model.show_regions(
            maps_BCGG,
            batch.region_masks_RGG,
            batch.region_image_index_R,
            batch.zoom_pixels_Z3SS,
            batch.zoom_masks_ZSS,
            batch.zoom_region_index_Z,
        )
        return image_tokens_BTD, shown_RKD

    def _set_tower_mode(self) -> None:
        """Let crops change batch statistics, where the stage trains them."""
        tower = self.model.vision_tower
        trains_tower = any(parameter.requires_grad for parameter in tower.parameters())
        tower.train(self.training and trains_tower and self.stage.batch_norm == "trained")

    def name_embeddings(self) -> Tensor:
        """Return names_ND: what region tokens are drawn to, without gradient."""
        return name_embeddings(self.model, self.answer_ids)

    def _align_parts(self, batch: DeviceBatch, named: list[int], target_R: Tensor, teaches_pooled: bool) -> StepResult:
        """Align the regions of a batch. While training, a zoomed region's crop and its mask-pooled part are each taught to name it alone.

        Taught together, the pooled part would learn the training pictures by heart and spare the crop the work.
        """
        crops = batch.zoom_region_index_Z
        if not self.training or crops is None or not len(crops):
            return self._align(self._encode(batch)[1][named], target_R)
        assert batch.zoom_pixels_Z3SS is not None and batch.zoom_masks_ZSS is not None
        target_by_region = dict(zip(named, target_R.tolist(), strict=True))
        zoomed = [i for i, region in enumerate(crops.tolist()) if region in target_by_region]
        alone = sorted(set(target_by_region) - set(crops.tolist()))
        parts: list[tuple[Tensor, list[int]]] = []
        pooled_RKD = None
        if teaches_pooled or alone:
            bare = replace(batch, zoom_pixels_Z3SS=None, zoom_masks_ZSS=None, zoom_region_index_Z=None)
            pooled_RKD = self._encode(bare)[1]
        self._set_tower_mode()
        if zoomed:
            tokens_ZKD = self.model.encode_zooms(batch.zoom_pixels_Z3SS, batch.zoom_masks_ZSS)
            parts.append((tokens_ZKD[zoomed], [target_by_region[int(crops[i])] for i in zoomed]))
        if alone:
            assert pooled_RKD is not None
            parts.append((pooled_RKD[alone], [target_by_region[i] for i in alone]))
        shown_RKD = torch.cat([tokens for tokens, _ in parts])
        result = self._align(shown_RKD, target_R.new_tensor([target for _, targets in parts for target in targets]))
        if not teaches_pooled or pooled_RKD is None or not zoomed:
            return result
        both = [int(crops[i]) for i in zoomed]
        pooled = self._align(pooled_RKD[both], target_R.new_tensor([target_by_region[i] for i in both]))
        return replace(result, loss=result.loss + pooled.loss)

    def _align(self, shown_RKD: Tensor, target_R: Tensor) -> StepResult:
        """Contrastive over the corpus's names; the length is held near that of the names' embeddings."""
        names_ND = self.name_embeddings()
        regions_RD = shown_RKD.float().mean(1)
        logits_RN = F.normalize(regions_RD, dim=-1) @ F.normalize(names_ND, dim=-1).T / self.stage.temperature
        lengths_R = regions_RD.norm(dim=-1) / names_ND[target_R].norm(dim=-1)
        loss = F.cross_entropy(logits_RN, target_R, label_smoothing=_SMOOTHING)
        loss = loss + _LENGTH_WEIGHT * lengths_R.clamp_min(1e-6).log().square().mean()
        return StepResult(loss=loss, num_right=int((logits_RN.argmax(-1) == target_R).sum()), num_regions=len(target_R))

    def _spell(self, names: list[str]) -> StepResult:
        """Loss of naming what region tokens are nearest to, and of the stage's other tasks; tokens are made up around `names`, or real ones of the bank.

        So a small language model learns to say every name, also those with few pictures, and to take region tokens that are off the mark.
        """
        names_ND = self.name_embeddings()
        said = list(self.name_index)
        rows = []
        # A packed row holds as many regions as if they were those of one picture.
        for start in range(0, len(names), _ROW_NAMES):
            noise_1TD = torch.randn(1, self.processor.num_image_tokens, names_ND.shape[1], device=names_ND.device)
            noise_1TD *= names_ND.square().mean().sqrt()
            picture = self.bank.draw()
            facts = list(picture.facts) if picture is not None else []
            around = names[start : start + _ROW_NAMES - len(facts)]
            index_R = torch.tensor([self.name_index[name] for name in around], device=names_ND.device, dtype=torch.long)
            misses_RD = self.bank.draw_misses(len(around), names_ND)
            tokens_RD, nearest_R = make_up(index_R, names_ND, misses_RD, self._hardness())
            boxes_R5 = make_up_boxes(len(around), names_ND.device)
            for i, box in zip(nearest_R.tolist(), boxes_R5.tolist(), strict=True):
                made_up = RegionFacts(
                    box_xywh=(0, 0, 0, 0), area_px=0, name=said[i], caption=self.bank.draw_caption(said[i])
                )
                facts.append(place_facts(made_up, box))
            if picture is not None:
                tokens_RD = torch.cat([disturb(picture.regions_RD, names_ND), tokens_RD])
                boxes_R5 = torch.cat([picture.boxes_R5, boxes_R5])
                noise_1TD = picture.image_1TD + noise_1TD * max(0.0, float(torch.rand(())) - 0.5)
            shown_RKD = tokens_RD[:, None].expand(-1, self.model.config.tokens_per_region, -1)
            turns = self._draw_turns(facts)
            scripts, decided_S = self._scripts(turns, facts)
            cosines_RN = F.normalize(tokens_RD, dim=-1) @ F.normalize(names_ND, dim=-1).T
            rows.append(
                ShownRow(
                    row=pack(scripts, self.processor.region_token_id),
                    image_1TD=noise_1TD,
                    regions_RKD=self.model.finish_regions(shown_RKD, boxes_R5),
                    decided_S=decided_S,
                    likely_RN=(cosines_RN.float() / self.stage.temperature).softmax(-1),
                )
            )
        return self._answer_loss(rows)

    def _scripts(
        self, turns: Sequence[Turn], facts: Sequence[RegionFacts]
    ) -> tuple[list[Script], tuple[tuple[int, int] | None, ...]]:
        """Return the conversations of a row and what is known of each one's names: a question each, or all questions in one."""
        if self.stage.multi_turn_share and float(torch.rand(())) < self.stage.multi_turn_share:
            return [script(self.processor, turns)], (None,)
        return [self._one_turn(turn) for turn in turns], tuple(self.paths.decided(turn, facts) for turn in turns)

    def _draw_turns(self, facts: Sequence[RegionFacts]) -> list[Turn]:
        """Return questions about regions, drawn as the stage's tasks say; where none is drawn, the name of the first is asked."""
        random = np.random.default_rng(int(torch.randint(2**31, ())))
        tasks: dict[Task, float] = {**self.stage.tasks, "classify_all": 0.0}
        turns = draw_turns(facts, (), tasks, random, plain_first=PLAIN_FIRST)
        if random.random() < self.stage.tasks.get("classify_all", 0.0):
            # Of any number of them: asked of a full row always, the language model takes few regions for choices to refer to.
            chosen = set(random.permutation(len(facts))[: 1 + int(random.integers(len(facts)))].tolist())
            names = [fact.name if i in chosen else None for i, fact in enumerate(facts)]
            turns += draw_turns(
                [replace(fact, name=name) for fact, name in zip(facts, names, strict=True)],
                (),
                {"classify_all": 1.0},
                random,
                plain_first=PLAIN_FIRST,
            )
        if not turns:
            turns = [Turn(question=CLASSIFY[0], mentions=(0,), answer=facts[0].name)]
        return turns

    def _hardness(self) -> float:
        """Tokens near their names first: a fresh language model that starts with far ones does not find out that they matter at all."""
        return min(1.0, _EASIEST + self.progress / _HARD_AFTER)

    def _one_turn(self, turn: Turn) -> Script:
        """Return the tokens of one question and its answer; kept where they come again and again."""
        if len(turn.mentions) > 2:
            return script(self.processor, [turn])
        known = (turn.question, str(turn.answer))
        if known not in self.scripts:
            self.scripts[known] = script(self.processor, [turn])
        return replace(self.scripts[known], mentions=turn.mentions)

    def fill_bank(self, batches: Iterable[list[Sample]]) -> None:
        """Keep the image and region tokens of pictures for `spell`: made-up ones alone would leave the language model helpless before real ones."""
        training = self.training
        self.eval()
        most = _ROW_NAMES // 2
        with torch.no_grad():
            for samples in batches:
                if not samples:
                    continue
                device = next(self.model.parameters()).device
                image_tokens_BTD, shown_RKD = self._encode(
                    to_device_batch([sample.inputs for sample in samples], self.processor, device)
                )
                shown_RD = shown_RKD.float().mean(1)
                start = 0
                for sample, image_TD in zip(samples, image_tokens_BTD.float(), strict=True):
                    named = [i for i, name in enumerate(sample.names) if name is not None][:most]
                    boxes_R5 = place_of_masks(sample.inputs.region_masks_RGG[named])
                    picture = EncodedPicture(
                        image_1TD=image_TD[None],
                        regions_RD=shown_RD[[start + i for i in named]],
                        boxes_R5=boxes_R5.to(device),
                        facts=tuple(
                            place_facts(sample.facts[i], box) for i, box in zip(named, boxes_R5.tolist(), strict=True)
                        ),
                    )
                    self.bank.pictures.append(picture)
                    start += len(sample.names)
            self.bank.finish(self.name_index)
        self.train(training)

    def _instruct(self, samples: list[Sample], image_tokens_BTD: Tensor, regions_RKD: Tensor) -> StepResult:
        """Next-token loss on the answers. Conversations about an image share its prefix: one packed row, where each sees the prefix and itself only."""
        rows = []
        start = 0
        for sample, image_TD in zip(samples, image_tokens_BTD, strict=True):
            stop = start + len(sample.names)
            if sample.conversations:
                scripts = [script(self.processor, turns) for turns in sample.conversations]
                rows.append(
                    ShownRow(
                        row=pack(scripts, self.processor.region_token_id),
                        image_1TD=image_TD[None],
                        regions_RKD=regions_RKD[start:stop],
                    )
                )
            start = stop
        return self._answer_loss(rows) if rows else self._nothing()

    def _answer_loss(self, rows: Sequence[ShownRow]) -> StepResult:
        """Next-token loss on the answers of packed rows; where a row knows how likely names are, on those probabilities."""
        embedded = []
        for shown in rows:
            ids_1T = torch.tensor([shown.row.ids], device=shown.regions_RKD.device)
            regions_MKD = shown.regions_RKD[list(shown.row.mentions)]
            embedded.append(self.model.embed_prompt(ids_1T, shown.image_1TD, regions_MKD)[0])
        embeddings_BTD = stack(embedded)
        packed = [shown.row for shown in rows]
        bias_B1TT, labels_BT, positions_BT = attention_bias(packed, embeddings_BTD.dtype, embeddings_BTD.device)
        taken_BT = labels_BT != IGNORED
        logits_NV = self._logits_at(taken_BT, embeddings_BTD, bias_B1TT, positions_BT).float()
        labels_N = labels_BT[taken_BT]
        places = taken_BT.nonzero().tolist()
        loss_N = F.cross_entropy(logits_NV, labels_N, reduction="none")
        loss_N = self.paths.put_in(loss_N, logits_NV, rows, places)
        owners = [(b, packed[b].owners[t]) for b, t in places]
        wrong = {owners[i] for i in (logits_NV.argmax(-1) != labels_N).nonzero()[:, 0].tolist()}
        num_conversations = sum(row.owners[-1] + 1 for row in packed)
        return StepResult(loss=loss_N.mean(), num_right=num_conversations - len(wrong), num_regions=num_conversations)

    def _logits_at(self, taken_BT: Tensor, embeddings_BTD: Tensor, bias_B1TT: Tensor, positions_BT: Tensor) -> Tensor:
        """Return logits_NV of the N taken places in row order. The head sees these only: over all places its work would exceed a small model's."""
        head = self.model.get_output_embeddings()
        assert head is not None
        hook = head.register_forward_pre_hook(lambda _, states: (states[0][taken_BT],))
        try:
            output = self.model.language_model(
                inputs_embeds=embeddings_BTD, attention_mask=bias_B1TT, position_ids=positions_BT, use_cache=False
            )
        finally:
            hook.remove()
        return output.logits


def learning_rate_share(step: int, num_steps: int, warmup: float) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine down to zero."""
    num_warmup = max(1, round(num_steps * warmup))
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return float(0.5 * (1 + np.cos(np.pi * min(progress, 1.0))))
