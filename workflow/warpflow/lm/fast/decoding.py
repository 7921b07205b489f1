"""Read prompts, then one token at a time, through a Llama-like model (`lm.fast.layers`).

This is the inner loop of sampling without the cost of the library's calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from warpflow.lm.fast.layers import Network, compute_dtype
from warpflow.lm.log_probs import positions

# Up to this number of weights a copy in another layout pays on a CPU (docs/log.md).
COPIED = 2**22


class Decoder:
    """Compute the next token's logits for a batch whose past is in a key-value cache.

    Args:
        layers: the layers of the cache, each with a buffer of `capacity` tokens
            (`PreallocatedLayer`).
        in_place: whether to read the model's weights where they are. This is the default except for
            small models on the CPU (`COPIED`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[Any],
        capacity: int,
        in_place: bool | None = None,
    ) -> None:
        if in_place is None:
            in_place = model.device.type != "cpu" or model.num_parameters() > COPIED
        self.network = Network(model, None if in_place else compute_dtype(model))
        self.cache = layers
        self.angles = self.network.angles(torch.arange(capacity, device=model.device))

    def __call__(self, ids: Tensor, is_token: Tensor, padded: bool) -> Tensor:
        """Return float32 logits [B, V] after the tokens `ids` [B, T], the last of `is_token` [B,
        S]. The first call reads the prompts, and each later call one token.

        Args:
            padded: whether `is_token` is False anywhere.
        """
        if ids.shape[1] > 1:
            return self.network.logits(self.read(ids, is_token, padded))
        places = is_token.sum(1, keepdim=True) - 1 if padded else is_token.shape[1:].numel() - 1
        mask = is_token[:, None, None] if padded else None
        at = {kind: (cos[places], sin[places]) for kind, (cos, sin) in self.angles.items()}
        layouts = [
            OneToken(*at[kind], cache, mask)
            for kind, cache in zip(self.network.kinds, self.cache, strict=True)
        ]
        return self.network.logits(self.network(ids[:, 0], layouts))

    def read(self, ids: Tensor, is_token: Tensor, padded: bool) -> Tensor:
        """Return the hidden states [B, D] of the last of the prompts' tokens `ids` [B, T]."""
        places = positions(is_token).flatten()
        mask: Tensor | None = None
        if padded:  # pads see pads, so that no row of the mask is empty
            mask = (is_token[:, None] | ~is_token[:, :, None]).tril()[:, None]
        at = {
            kind: (cos[places][:, None], sin[places][:, None])
            for kind, (cos, sin) in self.angles.items()
        }
        layouts = [
            Prompts(*at[kind], cache, mask, len(ids))
            for kind, cache in zip(self.network.kinds, self.cache, strict=True)
        ]
        return self.network(ids.flatten(), layouts)[ids.shape[1] - 1 :: ids.shape[1]]


@dataclass(frozen=True)
class OneToken:
    """A `layers.Layout` of one token per row, whose key and value are added to a layer's cache.

    Attributes:
        mask: which of the tokens in the cache it sees. None means all.
    """

    cos: Tensor
    sin: Tensor
    cache: Any
    mask: Tensor | None

    def spread(self, x: Tensor) -> Tensor:
        return x

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        keys, values = self.cache.update(keys[:, :, None], values[:, :, None])
        # The queries that share a key head take the place of those of several tokens.
        grouped = queries.reshape(len(queries), keys.shape[1], -1, keys.shape[3])
        attended = scaled_dot_product_attention(
            grouped, keys, values, attn_mask=self.mask, scale=scale
        )
        return attended.reshape(len(queries), -1)


@dataclass(frozen=True)
class Prompts(OneToken):
    """A `layers.Layout` of the tokens of left-padded prompts [B, T], with which a layer's cache
    begins.

    Attributes:
        mask: [B, 1, T, T]. None means causal.
        rows: B.
    """

    rows: int

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        queries, keys, values = (
            t.unflatten(0, (self.rows, -1)).transpose(1, 2) for t in (queries, keys, values)
        )
        self.cache.update(keys, values)
        attended = scaled_dot_product_attention(
            *(queries, keys, values),
            attn_mask=self.mask,
            is_causal=self.mask is None,
            scale=scale,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        return attended.transpose(1, 2).flatten(0, 1).flatten(1)
