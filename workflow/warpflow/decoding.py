"""One token at a time through a Llama-like model (`warpflow.layers`): the inner loop of sampling
without the cost of the library's calls. Prompts are read by the model's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from warpflow.layers import Network, compute_dtype

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
        self.cos, self.sin = self.network.angles(torch.arange(capacity, device=model.device))

    def __call__(self, ids: Tensor, is_token: Tensor, padded: bool) -> Tensor:
        """[B, V] float32 logits after the tokens `ids` [B, 1], the last of `is_token` [B, T].

        Args:
            padded: whether `is_token` is False anywhere.
        """
        places = is_token.sum(1) - 1 if padded else is_token.shape[1:].numel() - 1
        cos, sin = self.cos[places], self.sin[places]
        if padded:
            cos, sin = cos[:, None], sin[:, None]
        mask = is_token[:, None, None] if padded else None
        layouts = [OneToken(cos, sin, cache, mask) for cache in self.cache]
        return self.network.logits(self.network(ids[:, 0], layouts))


@dataclass(frozen=True)
class OneToken:
    """One token a row; its key and value are added to a layer's cache. A `layers.Layout`."""

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
