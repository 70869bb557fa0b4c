"""RegionGPT as a transformers model: tower -> refinement -> mask pooling -> connector -> `<region>` tokens of a language model.

Legend: B images or prompts, R regions, K tokens a region (what it shows, then its place where the
model tells it), Z zoomed crops, S x S pixels, G x G cells of the (refined) map, C channels, D width of the
language model, T tokens. Regions are numbered through the batch: those of image 0 first, in the order of their `<region>` tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from rlabel.errors import InputError
from rlabel.regiongpt.configuration import RegionGPTConfig
from rlabel.regiongpt.places import PlaceConnector, place_of_masks
from rlabel.regiongpt.pooling import RegionQueries, pool, split_masks
from rlabel.regiongpt.portions import in_portions

# Modules that bitsandbytes must leave alone; the language model's head is added by name in `quantization`.
NEVER_QUANTIZED = ("vision_tower", "refinement", "connector", "region_connector", "zoom_connector", "place_connector")


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) map."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Refinement(nn.Sequential):
    """Two stride-2 deconvolutions, 4x finer (RegionGPT, section 3.2; layer order as in SpatialRGPT's extractor)."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            ChannelNorm(channels, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            nn.GELU(),
        )


class Connector(nn.Sequential):
    """Features (..., C) to language-model embeddings (..., D): norm, linear, GELU, linear."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.LayerNorm(channels), nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))

    @torch.no_grad()
    def scale_output(self, rms: float) -> None:
        """Draw the last layer anew so that outputs start with this root mean square: a fresh connector must not shout down the word embeddings."""
        last = self[3]
        assert isinstance(last, nn.Linear)
        # GELU of unit normals has a root mean square of 0.65.
        nn.init.normal_(last.weight, std=rms / (0.65 * math.sqrt(last.in_features)))
        nn.init.zeros_(last.bias)


def _layer_channels(config: Any, layers: list[int]) -> list[int]:
    """Channels of the hidden states `layers` of a vision config."""
    if hasattr(config, "layer_channels"):
        return [config.layer_channels[layer] for layer in layers]
    if getattr(config, "hidden_sizes", None):  # convolutional towers: (stem, stage 1, ...)
        sizes = list(config.hidden_sizes)
        sizes = [getattr(config, "embedding_size", sizes[0]), *sizes]
        return [sizes[layer] for layer in layers]
    return [config.hidden_size] * len(layers)


def _grid_side(config: Any, image_size_px: int, layer: int) -> int | None:
    """Side of the tower's own grid, where the config tells it."""
    patch = getattr(config, "patch_size", None)
    return image_size_px // int(patch) if patch else None


class RegionGPTForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Describes regions of images in free text. See `forward` for the shapes and `generate` for plain, one-prompt-at-a-time use."""

    config_class = RegionGPTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: RegionGPTConfig) -> None:
        super().__init__(config)
        vision = config.vision_config
        channels = _layer_channels(vision, [config.vision_feature_layer])[0]
        width = config.text_config.hidden_size
        self.vision_tower = AutoModel.from_config(vision)
        self.refinement = Refinement(channels) if config.refine else nn.Identity()
        self.connector = Connector(channels * config.merge_size**2, width)
        own = {"shared": None, "separate": Connector, "separate-linear": nn.Linear}[config.connector]
        self.region_connector: nn.Module | None = own(channels, width) if own is not None else None
        if config.zoom:
            self.zoom_connector: nn.Module | None = Connector(
                sum(_layer_channels(vision, config.zoom_feature_layers)), width
            )
        else:
            self.zoom_connector = None
        self.region_queries: nn.Module | None = None
        self.zoom_queries: nn.ModuleList | None = None
        if config.region_pooling == "attention":
            self.region_queries = RegionQueries(channels, config.tokens_per_region)
            zoomed = _layer_channels(vision, config.zoom_feature_layers)
            self.zoom_queries = nn.ModuleList(RegionQueries(each, config.tokens_per_region) for each in zoomed)
        self.place_connector = PlaceConnector(width) if config.place_token else None
        if config.name_map:
            self.register_buffer("name_map", torch.eye(width))
        if config.name_memory:
            self.register_buffer("name_memory", torch.zeros(config.name_memory, width))
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        std = getattr(self.config.text_config, "initializer_range", 0.02)
        if isinstance(module, nn.Linear | nn.ConvTranspose2d):
            # The towers initialise their own layers; what reaches here is the connectors and the refinement.
            nn.init.trunc_normal_(module.weight, std=1.0 / math.sqrt(module.weight.shape[1]))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, RegionQueries):
            module.reset()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.language_model.get_output_embeddings()

    @property
    def _connector_dtype(self) -> torch.dtype:
        return next(self.connector.parameters()).dtype

    # ---- images and regions to embeddings -------------------------------------------------------------------------

    def _tower_maps(self, pixels_BCSS: Tensor, layers: list[int]) -> dict[int, Tensor]:
        """Return {layer: map (B, C, H, W)} of the vision tower; tokens of a ViT are laid out as their grid, class and register tokens left out."""
        pixels_BCSS = pixels_BCSS.to(next(self.vision_tower.parameters()).dtype)
        if torch.is_grad_enabled() or self.vision_tower.training:
            return self._maps_at_once(pixels_BCSS, layers)
        return in_portions(lambda portion_BCSS: self._maps_at_once(portion_BCSS, layers), pixels_BCSS)

    def _maps_at_once(self, pixels_BCSS: Tensor, layers: list[int]) -> dict[int, Tensor]:
        if hasattr(self.vision_tower, "feature_maps"):
            return self.vision_tower.feature_maps(pixels_BCSS, layers)
        states = self.vision_tower(pixel_values=pixels_BCSS, output_hidden_states=True).hidden_states
        maps: dict[int, Tensor] = {}
        for layer in layers:
            state = states[layer]
            if state.ndim == 3:
                side = _grid_side(self.config.vision_config, pixels_BCSS.shape[-1], layer) or math.isqrt(state.shape[1])
                tokens_BLC = state[:, state.shape[1] - side * side :]
                state = tokens_BLC.transpose(1, 2).unflatten(2, (side, side))
            maps[layer] = state
        return maps

    def coarse_maps(self, pixel_values_BCSS: Tensor) -> Tensor:
        """Return coarse_BCHW: the tower's feature maps of normalised pixels, before refinement."""
        layer = self.config.vision_feature_layer
        return self._tower_maps(pixel_values_BCSS, [layer])[layer].to(self._connector_dtype)

    def encode_images(self, pixel_values_BCSS: Tensor) -> tuple[Tensor, Tensor]:
        """Return (maps_BCGG: refined feature maps, image_tokens_BTD) of normalised pixels."""
        return self.refine_maps(self.coarse_maps(pixel_values_BCSS))

    def refine_maps(self, coarse_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return (maps_BCGG, image_tokens_BTD) of the tower's maps."""
        maps_BCGG = self.refinement(coarse_BCHW)
        side = self.config.image_tokens_per_side or coarse_BCHW.shape[-1]
        merged_BCHW = F.adaptive_avg_pool2d(maps_BCGG, side)
        if (merge := self.config.merge_size) > 1:
            pad = -side % merge
            merged_BCHW = F.pixel_unshuffle(F.pad(merged_BCHW, (0, pad, 0, pad)), merge)
        if self.config.image_token_order == "columns":
            merged_BCHW = merged_BCHW.transpose(2, 3)
        return maps_BCGG, self.connector(merged_BCHW.flatten(2).transpose(1, 2))

    def encode_regions(
        self,
        maps_BCGG: Tensor,
        region_masks_RGG: Tensor,
        region_image_index_R: Tensor,
        zoom_pixels_ZCSS: Tensor | None = None,
        zoom_masks_ZSS: Tensor | None = None,
        zoom_region_index_Z: Tensor | None = None,
    ) -> Tensor:
        """Return region_tokens_RKD as the language model takes them: drawn to the names they recall, the place token last, where the model has these.

        The arguments are those of `show_regions`.
        """
        shown_RKD = self.show_regions(
            maps_BCGG, region_masks_RGG, region_image_index_R, zoom_pixels_ZCSS, zoom_masks_ZSS, zoom_region_index_Z
        )
        return self.finish_regions(shown_RKD, place_of_masks(region_masks_RGG))

    def show_regions(
        self,
        maps_BCGG: Tensor,
        region_masks_RGG: Tensor,
        region_image_index_R: Tensor,
        zoom_pixels_ZCSS: Tensor | None = None,
        zoom_masks_ZSS: Tensor | None = None,
        zoom_region_index_Z: Tensor | None = None,
    ) -> Tensor:
        """Return shown_RKD: what the regions show.

        region_masks_RGG: float in [0, 1], the share of each map cell inside the region.
        Zoomed crops join the tokens of the regions they name, several crops of a region by their mean.
        """
        if region_masks_RGG.shape[-1] != maps_BCGG.shape[-1]:
            raise InputError(
                f"region masks: expected {maps_BCGG.shape[-1]} cells a side, the side of this model's feature map, got {region_masks_RGG.shape[-1]}. "
                "Use the processor that was saved with the model."
            )
        pooled_RKC = self._pool(self.region_queries, maps_BCGG, region_masks_RGG.float(), region_image_index_R)
        connector = self.region_connector if self.region_connector is not None else self.connector
        tokens_RKD = connector(pooled_RKC)
        if zoom_pixels_ZCSS is not None and len(zoom_pixels_ZCSS):
            if self.zoom_connector is None:
                raise InputError(
                    f"zoomed crops: expected none, since this model has no zoom tokens, got {len(zoom_pixels_ZCSS)}. "
                    "Use the processor that was saved with the model."
                )
            assert zoom_masks_ZSS is not None and zoom_region_index_Z is not None
            zoomed_ZKD = self.encode_zooms(zoom_pixels_ZCSS, zoom_masks_ZSS)
            pooled_weight_R = torch.ones(len(tokens_RKD), dtype=tokens_RKD.dtype, device=tokens_RKD.device)
            pooled_weight_R[zoom_region_index_Z] = self.config.zoom_pooled_weight
            tokens_RKD = tokens_RKD * pooled_weight_R[:, None, None]
            # A region that is cropped at several scales shows their mean.
            num_crops_R = torch.bincount(zoom_region_index_Z, minlength=len(tokens_RKD)).to(zoomed_ZKD.dtype)
            zoomed_ZKD = zoomed_ZKD / num_crops_R[zoom_region_index_Z][:, None, None]
            tokens_RKD = tokens_RKD.index_add(0, zoom_region_index_Z, zoomed_ZKD.to(tokens_RKD.dtype))
        return tokens_RKD

    def _pool(
        self, queries: nn.Module | None, maps_BCHW: Tensor, masks_RHW: Tensor, image_index_R: Tensor | None
    ) -> Tensor:
        """Return pooled_RKC by the grid of parts of each mask, or by what the queries look at inside it."""
        if queries is not None:
            return pool(maps_BCHW, queries(maps_BCHW, masks_RHW, image_index_R), image_index_R)
        return pool(maps_BCHW, split_masks(masks_RHW, self.config.tokens_per_region), image_index_R)

    def set_name_memory(self, names_ND: Tensor) -> None:
        """Remember these unit directions instead of those of before."""
        table = self.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        self.config.name_memory = len(names_ND)
        self.register_buffer("name_memory", names_ND.to(table.device, torch.float32))

    def recall(self, shown_RKD: Tensor) -> Tensor:
        """Return the tokens drawn to the names that they recall; as they are where nothing is remembered.

        A step of a modern Hopfield network (Ramsauer et al. 2020, arXiv 2008.02217) whose patterns are names: what is recalled is the mean of the names,
        each as likely as its cosine says. It joins the token, which keeps its length.
        """
        if not self.config.name_memory:
            return shown_RKD
        names_ND = self.get_buffer("name_memory").float()
        mean_RD = shown_RKD.float().mean(1)
        unit_RD = F.normalize(mean_RD, dim=-1)
        likely_RN = (unit_RD @ names_ND.T / self.config.name_memory_temperature).softmax(-1)
        recalled_RD = F.normalize(likely_RN @ names_ND, dim=-1)
        drawn_RD = F.normalize(unit_RD + self.config.name_memory_weight * recalled_RD, dim=-1)
        moved_RD = drawn_RD * mean_RD.norm(dim=-1, keepdim=True) - mean_RD
        return shown_RKD + moved_RD[:, None].to(shown_RKD.dtype)

    def finish_regions(self, shown_RKD: Tensor, boxes_R5: Tensor) -> Tensor:
        """Return what regions show, drawn to the names they recall, with the tokens of their places behind, where the model has these.

        boxes_R5: see `place_of_masks`.
        """
        shown_RKD = self.recall(shown_RKD)
        if self.place_connector is None:
            return shown_RKD
        return torch.cat([shown_RKD, self.place_connector(boxes_R5)[:, None].to(shown_RKD.dtype)], 1)

    def encode_zooms(self, zoom_pixels_ZCSS: Tensor, zoom_masks_ZSS: Tensor) -> Tensor:
        """Return zoomed_ZKD: pooled features of the crops at every zoom layer, joined along the channels, through the zoom connector."""
        assert self.zoom_connector is not None
        layers = self.config.zoom_feature_layers
        maps = self._tower_maps(zoom_pixels_ZCSS, layers)
        pooled = []
        for place, layer in enumerate(layers):
            queries = self.zoom_queries[place] if self.zoom_queries is not None else None
            height, width = maps[layer].shape[-2:]
            masks_ZHW = F.adaptive_avg_pool2d(zoom_masks_ZSS[:, None].float(), (height, width))[:, 0]
            pooled.append(self._pool(queries, maps[layer], masks_ZHW, None))
        return self.zoom_connector(torch.cat(pooled, dim=-1).to(self._connector_dtype))

    def embed_prompt(
        self, input_ids_BT: Tensor, image_tokens_BTD: Tensor | None, region_tokens_RKD: Tensor | None
    ) -> Tensor:
        """Return embeddings_BTD with the image's and the regions' features in the places of their tokens.

        Raises InputError when the prompt asks for more or fewer of them than are given: none is dropped, none is left as a bare token.
        """
        embeddings_BTD = self.get_input_embeddings()(input_ids_BT)
        for token_id, features, what in (
            (self.config.image_token_id, image_tokens_BTD, "image"),
            (self.config.region_token_id, region_tokens_RKD, "region"),
        ):
            places_BT = input_ids_BT == token_id
            num_places = int(places_BT.sum())
            num_features = 0 if features is None else features.shape[0] * features.shape[1]
            if num_places != num_features:
                each = (
                    self.config.prompt_tokens_per_region
                    if what == "region"
                    else (features.shape[1] if features is not None else 1)
                )
                raise InputError(
                    f"prompt: {num_places} <{what}> tokens (a {what} takes {each}), but {num_features} {what} features were given. "
                    f"Give one {what} for each one that the prompt names."
                )
            if features is not None and num_places:
                embeddings_BTD = embeddings_BTD.masked_scatter(places_BT[..., None], features.to(embeddings_BTD.dtype))
        return embeddings_BTD

    # ---- transformers' entry points --------------------------------------------------------------------------------

    def _inputs_embeds(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        region_masks: Tensor | None,
        region_image_index: Tensor | None,
        zoom_pixels: Tensor | None,
        zoom_masks: Tensor | None,
        zoom_region_index: Tensor | None,
    ) -> Tensor:
        if pixel_values is None:
            if region_masks is not None and len(region_masks):
                raise InputError(
                    f"prompt: {len(region_masks)} region masks were given without pixel_values. Give the images they lie in."
                )
            return self.embed_prompt(input_ids, None, None)
        maps_BCGG, image_tokens_BTD = self.encode_images(pixel_values)
        regions_RKD = None
        if region_masks is not None and len(region_masks):
            if region_image_index is None:
                region_image_index = torch.zeros(len(region_masks), dtype=torch.long, device=region_masks.device)
            self._check_owners(input_ids, region_image_index)
            regions_RKD = self.encode_regions(
                maps_BCGG, region_masks, region_image_index, zoom_pixels, zoom_masks, zoom_region_index
            )
        return self.embed_prompt(input_ids, image_tokens_BTD, regions_RKD)

    def _check_owners(self, input_ids_BT: Tensor, region_image_index_R: Tensor) -> None:
        """Raise InputError unless each prompt names as many regions as its image has: features are laid in order, so a surplus would go to the next prompt."""
        named_B = (input_ids_BT == self.config.region_token_id).sum(1) // self.config.prompt_tokens_per_region
        given_B = torch.bincount(region_image_index_R, minlength=len(input_ids_BT))
        if not torch.equal(region_image_index_R, region_image_index_R.sort().values) or not torch.equal(
            named_B, given_B
        ):
            raise InputError(
                f"region_image_index: expected the regions that each prompt names, in order ({named_B.tolist()} regions a prompt), "
                f"got {region_image_index_R.tolist()}. Give each prompt its image's regions, those of image 0 first."
            )

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        region_masks: Tensor | None = None,
        region_image_index: Tensor | None = None,
        zoom_pixels: Tensor | None = None,
        zoom_masks: Tensor | None = None,
        zoom_region_index: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the language model's output for prompts with images and regions.

        input_ids: int64 (B, T) with image and region tokens; pixel_values: float (B, 3, S, S) normalised; region_masks: float (R, G, G) in [0, 1];
        region_image_index: int64 (R,); zoom_pixels: float (Z, 3, s, s); zoom_masks: float (Z, s, s) in [0, 1]; zoom_region_index: int64 (Z,).
        labels: int64 (B, T), -100 where no loss is taken.
        """
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self._inputs_embeds(
                input_ids, pixel_values, region_masks, region_image_index, zoom_pixels, zoom_masks, zoom_region_index
            )
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(self, input_ids: Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return new token ids (B, T_new) for prompts: transformers' own generate over the prompt's embeddings. The reference for the fast engine."""
        names = ("pixel_values", "region_masks", "region_image_index", "zoom_pixels", "zoom_masks", "zoom_region_index")
        inputs = [kwargs.pop(name, None) for name in names]
        kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
        return self.language_model.generate(inputs_embeds=self._inputs_embeds(input_ids, *inputs), **kwargs)
