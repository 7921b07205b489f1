"""One token at a time through a Llama-like decoder: the inner loop of sampling without the cost of
the library's calls.

Prompts are read by the model's own forward pass, which also takes the first step of every batch
beside ours: where the two disagree, sampling goes on with the library's (`agrees`). Weights, rotary
embedding and activation are the model's own modules. `is_covered` lists what must hold; anything
else is sampled by the library's forward pass alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention
from transformers import (
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

FAMILIES = (
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    GemmaForCausalLM,
)
# Rotary embeddings whose angles depend on the position alone, not on the length so far.
ROTARY_TYPES = ("default", "linear", "llama3")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The largest difference of logits, relative to the largest logit, that is rounding.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}

# Weights up to which a copy in another layout pays on a CPU (docs/log.md).
COPIED = 2**22

Project = Callable[[Tensor], Tensor]


def is_covered(model: PreTrainedModel) -> bool:
    """Whether `Decoder` computes what this model's forward pass does: a family of `FAMILIES`
    exactly (no subclass, so nothing that FSDP shards), fp32 weights in plain linear layers (no
    quantisation, no adapters), without hooks and without patches. Sliding windows are the cache's
    to know."""
    if type(model) not in FAMILIES or model.training:
        return False
    modules = dict(model.named_modules())
    return (
        all(parameter.dtype == torch.float32 for parameter in model.parameters())
        and all(
            type(module) is nn.Linear
            for name, module in modules.items()
            if name.rpartition(".")[2] in (*PROJECTIONS, "lm_head")
        )
        and not any(
            module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
            for module in modules.values()
        )
        and model.model.rotary_emb.rope_type in ROTARY_TYPES
        and not getattr(model.config, "use_bidirectional_attention", False)
    )


def projection(*layers: nn.Linear, dtype: torch.dtype | None) -> Project:
    """x → the layers' outputs side by side.

    Args:
        dtype: of a copy of the weights, side by side and transposed, by which a CPU multiplies a
            few rows faster. None: in place.
    """
    if dtype is None:
        if len(layers) == 1:
            return lambda x: linear(x, layers[0].weight, layers[0].bias)
        return lambda x: torch.cat([linear(x, layer.weight, layer.bias) for layer in layers], -1)
    matrix = torch.cat([layer.weight.to(dtype) for layer in layers]).t().contiguous()
    if layers[0].bias is None:
        return lambda x: x @ matrix
    bias = torch.cat([layer.bias.to(dtype) for layer in layers])
    return lambda x: torch.addmm(bias, x, matrix)


def norm_scale(norm: nn.Module) -> Tensor:
    """What an RMS norm multiplies by; Gemma stores it less 1."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    return 1 + weight if type(norm).__name__ == "GemmaRMSNorm" else weight


class Layer:
    """A decoder layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, layer: Any, config: Any, dtype: torch.dtype | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.eps = config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width, self.scaling = attention.head_dim, attention.scaling
        self.norms = norm_scale(layer.input_layernorm), norm_scale(layer.post_attention_layernorm)
        self.qk_scale: Tensor | None = None
        if hasattr(attention, "q_norm"):  # [heads + kv_heads, width]
            self.qk_scale = torch.cat([
                norm_scale(attention.q_norm).expand(self.heads, -1),
                norm_scale(attention.k_norm).expand(self.kv_heads, -1),
            ])  # fmt: skip
        self.qkv = projection(attention.q_proj, attention.k_proj, attention.v_proj, dtype=dtype)
        self.output = projection(attention.o_proj, dtype=dtype)
        self.gate_up = projection(mlp.gate_proj, mlp.up_proj, dtype=dtype)
        self.down, self.activation = projection(mlp.down_proj, dtype=dtype), mlp.act_fn

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Any
    ) -> Tensor:
        """[B, D] → [B, D]; the tokens' keys and values are added to the layer's cache."""
        qkv = self.qkv(self.norm(x, 0)).view(len(x), -1, self.width)
        qk, values = qkv.split([self.heads + self.kv_heads, self.kv_heads], 1)
        if self.qk_scale is not None:
            normed = rms_norm(qk.float(), (self.width,), eps=self.eps)
            qk = self.qk_scale * normed.to(qk.dtype)
        qk = torch.addcmul(qk * cos, qk.roll(self.width // 2, -1), sin)
        queries, keys = qk.split([self.heads, self.kv_heads], 1)
        keys, values = cache.update(keys[:, :, None], values[:, :, None])
        # The queries that share a key head stand where those of several tokens would.
        queries = queries.reshape(len(x), self.kv_heads, -1, self.width)
        attended = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=self.scaling
        )
        x = x + self.output(attended.reshape(len(x), -1))
        gate, up = self.gate_up(self.norm(x, 1)).chunk(2, -1)
        return x + self.down(self.activation(gate) * up)

    def norm(self, x: Tensor, which: int) -> Tensor:
        return rms_norm(x, x.shape[-1:], self.norms[which], self.eps)


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
        device = model.device
        self.dtype = torch.float32
        if torch.is_autocast_enabled(device.type):
            self.dtype = torch.get_autocast_dtype(device.type)
        if in_place is None:
            in_place = device.type != "cpu" or model.num_parameters() > COPIED
        dtype = None if in_place else self.dtype
        inner: Any = model.model
        self.embed, self.cache, self.eps = inner.embed_tokens, layers, model.config.rms_norm_eps
        self.layers = [Layer(layer, model.config, dtype) for layer in inner.layers]
        self.scale = norm_scale(inner.norm)
        self.head = projection(model.lm_head, dtype=dtype)
        places = torch.arange(capacity, device=device)[None]
        cos, sin = inner.rotary_emb(self.embed.weight[:1], position_ids=places)
        half = cos.shape[-1] // 2
        # x cos + rotate_half(x) sin, the sign in the sine: the halves then only change places.
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)

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
        x = self.embed(ids[:, 0])
        for layer, cache in zip(self.layers, self.cache, strict=True):
            x = layer(x, cos, sin, mask, cache)
        return self.head(rms_norm(x, x.shape[-1:], self.scale, self.eps)).float()

    def agrees(self, ours: Tensor, theirs: Tensor) -> bool:
        """Whether the logits of the library's forward pass are ours but for rounding; else warn."""
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if difference <= TOLERANCE[self.dtype]:
            return True
        logging.warning(
            "sampling by the library's forward pass, which is slower: warpflow.decoding differs "
            "from it by %.1e of the largest logit (expected %.0e at most); this version of "
            "transformers may compute the model in another way",
            difference,
            TOLERANCE[self.dtype],
        )
        return False
