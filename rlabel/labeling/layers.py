"""The layers of a Llama-like language model on a CPU, in as few calls of torch as give the same.

transformers writes a layer as some forty small operations, each of which makes a new array; in bfloat16 these, not the matrix products, take most of a
prompt's time. Here sums go into what they are added to, one fused attention reads the few heads of keys as they lie, and what nobody asks for (the last
layer of a prefix, whose keys alone are looked at) is left out. The weights are the modules' own, read at each call: nothing is copied, changed or saved.

Legend: B images, P prefix tokens, N tokens that are fed, X positions whose logits are wanted, H heads, E width of a head, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlabel.labeling.cascade import Beginnings, Feed, attend_rows

# Models of transformers whose layers are: norm, attention, sum, norm, gated feed-forward part, sum; by the names of their classes.
_KNOWN = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
_DTYPES = (torch.float32, torch.bfloat16)
# Of an array, worked on at a time; a quarter to a half of a megabyte.
_BLOCK_NUMBERS = 1 << 17
# Of a prompt whose tokens look at each other, at a time.
_BLOCK_ROWS = 64


@cache
def _has_tiles() -> bool:
    """Return whether the processor multiplies small bfloat16 matrices at once (AMX), which torch's fused attention is made for."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


class Layers:
    """Computes what a language model of transformers does, for the rows of `rows.CascadeRows`."""

    def __init__(self, language_model: Any) -> None:
        self._model = language_model.model
        self._head = language_model.lm_head

    @classmethod
    def of(cls, language_model: Any) -> Layers | None:
        """Return the layers of a language model, or None where it is computed as transformers does.

        That is: models of other families, on GPUs, quantized, compiled, with adapters or hooks, or in a precision that CPUs are slow in.
        """
        config = language_model.config
        if (
            type(language_model).__name__ not in _KNOWN
            or not type(language_model).__module__.startswith("transformers.")
            or getattr(config, "hidden_act", None) != "silu"
            or config.num_hidden_layers != len(language_model.model.layers)
        ):
            return None
        dtype = language_model.lm_head.weight.dtype
        if dtype not in _DTYPES or any(
            weight.dtype != dtype or weight.device.type != "cpu" for weight in language_model.parameters()
        ):
            return None
        # An adapter or a quantizer puts other classes in the place of linear layers; both, and compilers, may work by hooks instead.
        plain = all(
            (type(module) is nn.Linear or not isinstance(module, nn.Linear))
            and type(module).__module__.startswith(("torch.nn.", "transformers."))
            and module._compiled_call_impl is None
            and not module._forward_hooks
            and not module._forward_pre_hooks
            and "forward" not in vars(module)
            for module in language_model.modules()
        )
        return cls(language_model) if plain else None

    def begin(self, embeddings_BPD: Tensor) -> Beginnings:
        """Return the keys and values of texts that stand at the beginning, all of the same length."""
        num_texts, num_tokens, _ = embeddings_BPD.shape
        positions_1P = torch.arange(num_tokens, device=embeddings_BPD.device)[None]
        turn = self._turn(embeddings_BPD, positions_1P)
        x_ND = embeddings_BPD.flatten(0, 1).clone()
        layers = list(self._model.layers)
        keys, values = [], []

        def heads(values_NHE: Tensor) -> Tensor:
            return values_NHE.unflatten(0, (num_texts, num_tokens)).transpose(1, 2)

        for layer in layers:
            attention = layer.self_attn
            normed_ND = _normed(x_ND, layer.input_layernorm)
            keys.append(heads(_turned(_heads(normed_ND, attention, "k"), turn)))
            values.append(heads(_heads(normed_ND, attention, "v")))
            if layer is layers[-1]:
                break
            query_BHPE = heads(_turned(_heads(normed_ND, attention, "q"), turn))
            attended_BHPE = _attended(query_BHPE, keys[-1], values[-1], attention.scaling)
            _finish(layer, x_ND, attended_BHPE.transpose(1, 2).reshape(len(x_ND), -1))
        return Beginnings(keys=keys, values=values)

    def go_on(self, embeddings_ND: Tensor, positions_N: Tensor, feeds: Sequence[Feed], wanted_X: Tensor) -> Tensor:
        """Return logits_XV behind the wanted ones of the tokens that are fed. positions_N: of the tokens in their texts; feeds: where they belong."""
        turn = self._turn(embeddings_ND[None], positions_N[None])
        x_ND = embeddings_ND.clone()
        layers = list(self._model.layers)
        for number, layer in enumerate(layers):
            attention = layer.self_attn
            normed_ND = _normed(x_ND, layer.input_layernorm)
            query_NHE, key_NHE = (_turned(_heads(normed_ND, attention, name), turn) for name in "qk")
            attended_ND = attend_rows(
                query_NHE, key_NHE, _heads(normed_ND, attention, "v"), feeds, number, attention.scaling
            ).flatten(1)
            if layer is layers[-1]:
                x_ND, attended_ND = x_ND[wanted_X], attended_ND[wanted_X]
            _finish(layer, x_ND, attended_ND)
        logits_XV: Tensor = self._head(_normed(x_ND, self._model.norm))
        return logits_XV

    def _turn(self, embeddings_BND: Tensor, positions_1N: Tensor) -> _Turn:
        cos_1NE, sin_1NE = self._model.rotary_emb(embeddings_BND, position_ids=positions_1N)
        first, second = sin_1NE[0].chunk(2, -1)
        times = (len(embeddings_BND), 1)
        return cos_1NE[0].repeat(times)[:, None], torch.cat((-first, second), -1).repeat(times)[:, None]


# Cosines and sines (N, 1, E) of all tokens, the sines of the first half of a head with their sign turned.
_Turn = tuple[Tensor, Tensor]


def _normed(x_ND: Tensor, norm: Any) -> Tensor:
    """Return rows (N, ..., D) of a root mean square of one, times the norm's weight; rounded where transformers rounds."""
    normed_ND = torch.empty_like(x_ND)
    for rows, out in _blocks(x_ND, normed_ND):
        exact = rows.float()
        mean = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().div_(x_ND.shape[-1])
        scaled = exact * mean.add_(norm.variance_epsilon).rsqrt_()
        torch.mul(scaled.to(x_ND.dtype), norm.weight, out=out)
    return normed_ND


def _blocks(*arrays: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield rows of arrays that have equally many, so many at a time as stay in a core's cache from one operation to the next."""
    num_rows = len(arrays[0])
    size = max(1, _BLOCK_NUMBERS * num_rows // max(1, arrays[0].numel()))
    return zip(*(one.split(size) for one in arrays), strict=True)


def _heads(normed_ND: Tensor, attention: Any, name: str) -> Tensor:
    """Return (N, H, E): queries, keys or values, which Qwen3 norms."""
    values_NHE = getattr(attention, f"{name}_proj")(normed_ND).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return values_NHE if norm is None else _normed(values_NHE, norm)


def _turned(values_NHE: Tensor, turn: _Turn) -> Tensor:
    """Return (N, H, E) rotated by their positions (Su et al. 2021, arXiv 2104.09864; halves of a head as in transformers)."""
    turned_NHE = torch.empty_like(values_NHE)
    half = values_NHE.shape[-1] // 2
    for rows, out, cos, sin in _blocks(values_NHE, turned_NHE, *turn):
        swapped = torch.cat((rows[..., half:], rows[..., :half]), -1)
        torch.mul(rows, cos, out=out).addcmul_(swapped, sin)
    return turned_NHE


def _attended(query_BHPE: Tensor, keys_BGPE: Tensor, values_BGPE: Tensor, scaling: float) -> Tensor:
    """Return what each token sees of those up to itself, (B, H, P, E). keys, values: of G heads, each of which H / G heads of queries look at."""
    if query_BHPE.dtype != torch.bfloat16 or _has_tiles():
        return F.scaled_dot_product_attention(
            query_BHPE, keys_BGPE, values_BGPE, is_causal=True, scale=scaling, enable_gqa=True
        )
    # Without tiles torch's fused attention takes more than twice as long in bfloat16 as products and a softmax, some rows of scores at a time.
    num_groups, num_tokens = keys_BGPE.shape[1:3]
    query_BGQPE = (query_BHPE * scaling).unflatten(1, (num_groups, -1))
    keys_BGEP = keys_BGPE.transpose(2, 3)
    later = torch.full((_BLOCK_ROWS, _BLOCK_ROWS), -torch.inf, dtype=query_BHPE.dtype).triu_(1)
    seen = []
    for start in range(0, num_tokens, _BLOCK_ROWS):
        end = min(start + _BLOCK_ROWS, num_tokens)
        asks_BGQXE = query_BGQPE[:, :, :, start:end]
        scores_BGQXP = (asks_BGQXE.flatten(2, 3) @ keys_BGEP[..., :end]).unflatten(2, asks_BGQXE.shape[2:4])
        scores_BGQXP[..., start:].add_(later[: end - start, : end - start])
        weights = scores_BGQXP.softmax(-1).flatten(2, 3)
        seen.append((weights @ values_BGPE[:, :, :end]).unflatten(2, asks_BGQXE.shape[2:4]))
    return torch.cat(seen, 3).flatten(1, 2)


def _finish(layer: Any, x_ND: Tensor, attended_ND: Tensor) -> None:
    """Add to x_ND what the attention gives and what the feed-forward part makes of it."""
    _add(x_ND, attended_ND, layer.self_attn.o_proj)
    normed_ND = _normed(x_ND, layer.post_attention_layernorm)
    inner_NI = F.silu(layer.mlp.gate_proj(normed_ND), inplace=True).mul_(layer.mlp.up_proj(normed_ND))
    _add(x_ND, inner_NI, layer.mlp.down_proj)


def _add(x_ND: Tensor, values_NI: Tensor, linear: nn.Linear) -> None:
    x_ND.addmm_(values_NI, linear.weight.t())
    if linear.bias is not None:
        x_ND.add_(linear.bias)
