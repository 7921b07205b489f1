"""Prompts, then one token at a time through a Llama-like model (`lm.fast.layers`): the inner loop
of sampling without the cost of the library's calls."""

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

# Weights up to which a copy in another layout pays on a CPU (docs/log.md).
COPIED = 2**22


class Decoder:
    """The next token's logits for a batch whose past is in a key-value cache.

    Args:
        layers: of the cache, with a buffer of `capacity` tokens each (`PreallocatedLayer`).
        in_place: read the model's weights where they are; by default but for small models on the
            CPU (`COPIED`).
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
        """[B, V] float32 logits after the tokens `ids` [B, T], the last of `is_token` [B, S]: the
        prompts, then a token at a time.

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
        """[B, D] hidden states of the last of the prompts' tokens `ids` [B, T]."""
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
    """One token a row; its key and value are added to a layer's cache. A `layers.Layout`.

    Attributes:
        mask: which of the tokens in the cache it sees; None: all.
    """

    cos: Tensor
    sin: Tensor
    cache: Any
    mask: Tensor | None

    def spread(self, x: Tensor) -> Tensor:
        return x

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        keys, values = self.cache.update(keys[:, :, None], values[:, :, None])
        # The queries that share a key head stand where those of several tokens would.
        grouped = queries.reshape(len(queries), keys.shape[1], -1, keys.shape[3])
        attended = scaled_dot_product_attention(
            grouped, keys, values, attn_mask=self.mask, scale=scale
        )
        return attended.reshape(len(queries), -1)


@dataclass(frozen=True)
class Prompts(OneToken):
    """The tokens of left-padded prompts [B, T], with which a layer's cache begins.

    Attributes:
        mask: [B, 1, T, T]; None: causal.
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
