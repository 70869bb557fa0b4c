"""What a training step computes: the alignment warm-up and the instruction loss, over one batch of prepared images.

Legend: B images, R regions of all of them, K tokens a region, D width, N names of the corpus, T packed tokens, P prefix tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlabel.labeling.engine import DeviceBatch, to_device_batch
from rlabel.prompts.instructions import CLASSIFY
from rlabel.prompts.templates import Turn
from rlabel.regiongpt.modeling import RegionGPTForConditionalGeneration
from rlabel.regiongpt.processing import RegionGPTProcessor
from rlabel.training.dataset import Sample, fade_keeps
from rlabel.training.packing import IGNORED, Row, Script, attention_bias, pack, script, stack
from rlabel.training.recipe import Stage
from rlabel.training.spelling import Bank, EncodedPicture, disturb, make_up

# Names in one packed row of `spell`.
_ROW_NAMES = 16
# How far made-up tokens lie from names at the beginning of `spell`, as a share of the farthest, and when the farthest are reached.
_EASIEST, _HARD_AFTER = 0.25, 0.5


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
        self.scripts: dict[tuple[str, str], Script] = {}
        self.bank = Bank()
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
            image_tokens_BTD, regions_RKD = self._encode(batch)
            names = [name for sample in samples for name in sample.names]
            named = [i for i, name in enumerate(names) if name is not None]
            target_R = torch.tensor([self.name_index[name] for name in names if name is not None], device=device)
            if self.stage.objective == "align":
                return self._align(regions_RKD[named], target_R) if named else self._nothing()
            result = self._instruct(samples, image_tokens_BTD, regions_RKD)
            if self.stage.align_weight and named:
                aligned = self._align(regions_RKD[named], target_R)
                return StepResult(
                    loss=result.loss + self.stage.align_weight * aligned.loss,
                    num_right=result.num_right,
                    num_regions=result.num_regions,
                )
            return result

    def _nothing(self) -> StepResult:
        """A loss of 0 that reaches every trained parameter: a worker whose whole batch is unusable must still meet the others' gradients."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return StepResult(
            loss=torch.stack([parameter.flatten()[:0].sum() for parameter in trained]).sum(), num_right=0, num_regions=0
        )

    def _device_batch(self, samples: list[Sample], device: torch.device) -> DeviceBatch:
        inputs = [sample.inputs for sample in samples]
        keep = self.stage.augment.keep if self.training else None
        if keep is None or all(item.zoom_crops_Z4SS is None for item in inputs):
            return to_device_batch(inputs, self.processor, device)
        return to_device_batch(inputs, self.processor, device, fade_keeps(samples, keep).to(device))

    def _encode(self, batch: DeviceBatch) -> tuple[Tensor, Tensor]:
        """Return (image_tokens_BTD, region_tokens_RKD); how far gradients and batch statistics reach into the tower is the stage's choice."""
        tower = self.model.vision_tower
        trains_tower = any(parameter.requires_grad for parameter in tower.parameters())
        tower.eval()  # statistics of whole pictures are not those of crops: only crops may change them
        with torch.set_grad_enabled(trains_tower and self.stage.tower_through_image):
            coarse_BCHW = self.model.coarse_maps(batch.pixels_B3SS)
        maps_BCGG, image_tokens_BTD = self.model.refine_maps(coarse_BCHW)
        tower.train(self.training and trains_tower and self.stage.batch_norm == "trained")
        pooled_keep_Z = None
        if self.training and self.stage.pooled_dropout and batch.zoom_region_index_Z is not None:
            draws_Z = torch.rand(len(batch.zoom_region_index_Z), device=maps_BCGG.device)
            pooled_keep_Z = (draws_Z >= self.stage.pooled_dropout).float()
        regions_RKD = self.model.encode_regions(
            maps_BCGG,
            batch.region_masks_RGG,
            batch.region_image_index_R,
            batch.zoom_pixels_Z3SS,
            batch.zoom_masks_ZSS,
            batch.zoom_region_index_Z,
            pooled_keep_Z,
        )
        return image_tokens_BTD, regions_RKD

    def name_embeddings(self) -> Tensor:
        """Return names_ND: the mean input embedding of each name's tokens, without gradient."""
        table = self.model.get_input_embeddings()
        device = next(table.parameters()).device
        with torch.no_grad():
            rows = [table(torch.tensor(ids[:-1], device=device)).mean(0) for ids in self.answer_ids.values()]
        return torch.stack(rows).float()

    def _align(self, regions_RKD: Tensor, target_R: Tensor) -> StepResult:
        """Contrastive over the corpus's names, and squared error relative to the embedding's length."""
        names_ND = self.name_embeddings()
        regions_RD = regions_RKD.float().mean(1)
        logits_RN = F.normalize(regions_RD, dim=-1) @ F.normalize(names_ND, dim=-1).T / self.stage.temperature
        wanted_RD = names_ND[target_R]
        distance = (regions_RD - wanted_RD).square().sum(-1) / wanted_RD.square().sum(-1)
        loss = F.cross_entropy(logits_RN, target_R, label_smoothing=0.05) + 0.2 * distance.mean()
        return StepResult(loss=loss, num_right=int((logits_RN.argmax(-1) == target_R).sum()), num_regions=len(target_R))

    def _spell(self, names: list[str]) -> StepResult:
        """Loss of saying the names that region tokens are nearest to; the tokens are made up around `names`, or real ones of the bank.

        So a small language model learns to say every name, also those with few pictures, and to take region tokens that are off the mark.
        """
        names_ND = self.name_embeddings()
        said = list(self.name_index)
        rows = []
        # A packed row holds as many names as if they were regions of one picture.
        for start in range(0, len(names), _ROW_NAMES):
            # The labeling question at least every other time.
            question = CLASSIFY[int(torch.randint(2, ())) * int(torch.randint(len(CLASSIFY), ()))]
            noise_1TD = torch.randn(1, self.processor.num_image_tokens, names_ND.shape[1], device=names_ND.device)
            noise_1TD *= names_ND.square().mean().sqrt()
            picture = self.bank.draw()
            real = picture.names if picture is not None else ()
            around = names[start : start + _ROW_NAMES - len(real)]
            index_R = torch.tensor([self.name_index[name] for name in around], device=names_ND.device, dtype=torch.long)
            misses_RD = self.bank.draw_misses(len(around), names_ND)
            tokens_RD, nearest_R = make_up(index_R, names_ND, misses_RD, self._hardness())
            if picture is not None:
                tokens_RD = torch.cat([disturb(picture.regions_RD, names_ND), tokens_RD])
                noise_1TD = picture.image_1TD + noise_1TD * max(0.0, float(torch.rand(())) - 0.5)
            row_names = [*real, *(said[i] for i in nearest_R.tolist())]
            regions_RKD = tokens_RD[:, None].expand(-1, self.processor.tokens_per_region, -1)
            scripts = [replace(self._naming(question, name), mentions=(index,)) for index, name in enumerate(row_names)]
            rows.append((pack(scripts, self.processor.region_token_id), noise_1TD, regions_RKD))
        return self._answer_loss(rows)

    def _hardness(self) -> float:
        """Tokens near their names first: a fresh language model that starts with far ones does not find out that they matter at all."""
        return min(1.0, _EASIEST + self.progress / _HARD_AFTER)

    def _naming(self, question: str, name: str) -> Script:
        """Return the tokens of one question and a name; kept, since names come again and again."""
        if (question, name) not in self.scripts:
            turn = Turn(question=question, mentions=(0,), answer=name)
            self.scripts[question, name] = script(self.processor, [turn])
        return self.scripts[question, name]

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
                image_tokens_BTD, regions_RKD = self._encode(
                    to_device_batch([sample.inputs for sample in samples], self.processor, device)
                )
                start = 0
                for sample, image_TD in zip(samples, image_tokens_BTD.float(), strict=True):
                    named = [(start + i, name) for i, name in enumerate(sample.names) if name is not None][:most]
                    picture = EncodedPicture(
                        image_1TD=image_TD[None],
                        regions_RD=regions_RKD.float().mean(1)[[i for i, _ in named]],
                        names=tuple(name for _, name in named),
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
                rows.append((pack(scripts, self.processor.region_token_id), image_TD[None], regions_RKD[start:stop]))
            start = stop
        return self._answer_loss(rows) if rows else self._nothing()

    def _answer_loss(self, rows: list[tuple[Row, Tensor, Tensor]]) -> StepResult:
        """Next-token loss on the answers of packed rows, each with its image_1TD and regions_RKD."""
        embedded = []
        for row, image_1TD, regions_RKD in rows:
            ids_1T = torch.tensor([row.ids], device=regions_RKD.device)
            embedded.append(self.model.embed_prompt(ids_1T, image_1TD, regions_RKD[list(row.mentions)])[0])
        embeddings_BTD = stack(embedded)
        packed = [row for row, _, _ in rows]
        bias_B1TT, labels_BT, positions_BT = attention_bias(packed, embeddings_BTD.dtype, embeddings_BTD.device)
        logits_BTV = self.model.language_model(
            inputs_embeds=embeddings_BTD, attention_mask=bias_B1TT, position_ids=positions_BT, use_cache=False
        ).logits
        taken_BT = labels_BT != IGNORED
        loss = F.cross_entropy(logits_BTV[taken_BT].float(), labels_BT[taken_BT])
        wrong_BT = (logits_BTV.argmax(-1) != labels_BT) & taken_BT
        wrong = {(b, packed[b].owners[t]) for b, t in wrong_BT.nonzero().tolist()}
        num_conversations = sum(row.owners[-1] + 1 for row in packed)
        return StepResult(loss=loss, num_right=num_conversations - len(wrong), num_regions=num_conversations)


def learning_rate_share(step: int, num_steps: int, warmup: float) -> float:
    """Return the share of the peak learning rate: linear warm-up, then a cosine down to zero."""
    num_warmup = max(1, round(num_steps * warmup))
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return float(0.5 * (1 + np.cos(np.pi * min(progress, 1.0))))
