"""The layers of Llama-like models as functions of tokens side by side, without pads. They make
fewer calls than the library, for sampling (`lm.fast.decoding`) and scores (`lm.fast.packing`).

Weights, rotary embedding and activation are the model's own modules, and gradients are autograd's.
`is_covered` lists what must hold. Anything else is left to the library's forward pass. Ours is
compared with it once for each model (`agrees`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm
from torch.utils.checkpoint import checkpoint
from transformers import (
    Gemma3ForCausalLM,
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from warpflow.lm.log_probs import UNSAMPLED, of_known_ids

FAMILIES = (
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    GemmaForCausalLM,
    Gemma3ForCausalLM,
)
# Rotary embeddings whose angles depend only on the position, not on the length so far.
ROTARY_TYPES = ("default", "linear", "llama3")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LINEAR = (*PROJECTIONS, "lm_head")
# The RMS norms in the order of a layer. Gemma 3 also normalises what attention and MLP add.
NORMS = ("input_layernorm", None, "post_attention_layernorm", None)
NORMS_AROUND = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
# These norms store their scale less 1.
LESS_ONE = ("GemmaRMSNorm", "Gemma3RMSNorm")
# The largest difference of logits, relative to the largest logit, that counts as rounding.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}

Project = Callable[[Tensor], Tensor]


class Layout(Protocol):
    """Where attention finds the tokens of a layer. There are N tokens outside attention and S
    inside."""

    @property
    def cos(self) -> Tensor:
        """The cosines [S, 1, W] or [W] of `Network.angles`. `sin` has the same shape."""

    @property
    def sin(self) -> Tensor: ...

    def spread(self, x: Tensor) -> Tensor:
        """Map [N, …] to [S, …]."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Map queries [S, heads, W], keys and values [S, kv_heads, W] to [N, heads · W]."""


def is_covered(model: PreTrainedModel) -> bool:
    """Whether `Network` computes what this model's forward pass does. The model must be exactly of
    a family of `FAMILIES` (no subclass, so nothing that FSDP shards). Its weights must be fp32, or
    for matrices what autocast makes of them, in plain linear layers (no quantisation, no adapters),
    without hooks and patches. Its attention must be sdpa, as ours is. The caller must check sliding
    windows."""
    if type(model) not in FAMILIES or model.training:
        return False
    modules = dict(model.named_modules())
    return (
        all(
            parameter.dtype == torch.float32
            or (parameter.dtype == torch.bfloat16 and name.split(".")[-2] in LINEAR)
            for name, parameter in model.named_parameters()
        )
        and all(
            type(module) is nn.Linear
            for name, module in modules.items()
            if name.rpartition(".")[2] in LINEAR
        )
        and not any(
            module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
            for module in modules.values()
        )
        and model.config._attn_implementation == "sdpa"
        and set(rotary_types(model.model.rotary_emb)) <= set(ROTARY_TYPES)
        and not getattr(model.config, "use_bidirectional_attention", False)
    )


def rotary_types(rotary: Any) -> list[str]:
    """Return the types of a model's rotary angles: one, or one for each kind of layer (Gemma 3)."""
    types = rotary.rope_type
    return list(types.values()) if isinstance(types, dict) else [types]


_agreeing: WeakKeyDictionary[PreTrainedModel, dict[str, bool]] = WeakKeyDictionary()


def agrees(model: PreTrainedModel, what: str, compute: Callable[[], tuple[Tensor, Tensor]]) -> bool:
    """Whether our numbers are those of the library's forward pass up to rounding. They are compared
    the first time for each model, and later calls repeat the answer.

    Args:
        what: what is computed, for the warning where the two differ.
        compute: returns both, ours first.
    """
    known = _agreeing.setdefault(model, {})
    if what not in known:
        with torch.no_grad():
            ours, theirs = compute()
        computed = theirs > UNSAMPLED / 2  # values that are set and not computed show nothing
        ours, theirs = ours[computed], theirs[computed]
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        limit = TOLERANCE[compute_dtype(model)]
        known[what] = difference <= limit
        if not known[what]:
            logging.warning(
                "%s by the library's forward pass, which is slower: warpflow.lm.fast.layers "
                "differs from it by %.1e of the largest value (expected %.0e at most); this "
                "version of transformers may compute the model in another way",
                *(what, difference, limit),
            )
    return known[what]


def compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the current type of matrix products: autocast's, or fp32."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32


def projection(*layers: nn.Linear, copy: torch.dtype | None) -> Project:
    """Return a function from x to the layers' outputs side by side.

    Args:
        copy: the dtype of a copy of the weights, side by side and transposed, with which a CPU
            multiplies a few rows faster. It has no gradient. None uses the weights in place.
    """
    if copy is None:
        return partial(project_in_place, layers)
    matrix = torch.cat([layer.weight.to(copy) for layer in layers]).t().contiguous()
    if layers[0].bias is None:
        return lambda x: x @ matrix
    bias = torch.cat([layer.bias.to(copy) for layer in layers])
    return lambda x: torch.addmm(bias, x, matrix)


def project_in_place(layers: Sequence[nn.Linear], x: Tensor) -> Tensor:
    """Return the outputs side by side. For many tokens weights are put side by side, as they are
    smaller."""
    if len(layers) == 1:
        return linear(x, layers[0].weight, layers[0].bias)
    if len(x) < layers[0].in_features or layers[0].bias is not None:
        return torch.cat([linear(x, layer.weight, layer.bias) for layer in layers], -1)
    return linear(x, torch.cat([layer.weight for layer in layers]))


def norm_scale(norm: nn.Module) -> Tensor:
    """Return the factor of an RMS norm."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    return 1 + weight if type(norm).__name__ in LESS_ONE else weight


class Layer:
    """A decoder layer: x + attention(norm(x)), then x + mlp(norm(x)). In Gemma 3 what is added is
    normalised, too."""

    def __init__(self, layer: Any, config: Any, copy: torch.dtype | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.eps = config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width, self.scaling = attention.head_dim, attention.scaling
        names = NORMS_AROUND if hasattr(layer, NORMS_AROUND[-1]) else NORMS
        self.norms = [None if name is None else norm_scale(getattr(layer, name)) for name in names]
        self.qk_scale: Tensor | None = None
        if hasattr(attention, "q_norm"):  # [heads + kv_heads, width]
            self.qk_scale = torch.cat([
                norm_scale(attention.q_norm).expand(self.heads, -1),
                norm_scale(attention.k_norm).expand(self.kv_heads, -1),
            ])  # fmt: skip
        self.qkv = projection(attention.q_proj, attention.k_proj, attention.v_proj, copy=copy)
        self.output = projection(attention.o_proj, copy=copy)
        self.gate, self.up = (projection(p, copy=copy) for p in (mlp.gate_proj, mlp.up_proj))
        self.down, self.activation = projection(mlp.down_proj, copy=copy), mlp.act_fn

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """Map [N, D] to [N, D]."""
        qkv = layout.spread(self.qkv(self.norm(x, 0)))
        qkv = qkv.view(len(qkv), -1, self.width)
        qk, values = qkv.split([self.heads + self.kv_heads, self.kv_heads], 1)
        if self.qk_scale is not None:
            normed = rms_norm(qk.float(), (self.width,), eps=self.eps)
            qk = self.qk_scale * normed.to(qk.dtype)
        qk = torch.addcmul(qk * layout.cos, qk.roll(self.width // 2, -1), layout.sin)
        queries, keys = qk.split([self.heads, self.kv_heads], 1)
        attended = self.output(layout.attend(queries, keys, values, self.scaling))
        x = x + self.norm(attended, 1)
        normed = self.norm(x, 2)
        added = self.down(self.activation(self.gate(normed)) * self.up(normed))
        return x + self.norm(added, 3)

    def norm(self, x: Tensor, which: int) -> Tensor:
        """Return x after a norm of `NORMS`, or x itself where the model has none there."""
        scale = self.norms[which]
        return x if scale is None else rms_norm(x, x.shape[-1:], scale, self.eps)


class Network:
    """The forward pass of a covered model. The caller does the attention.

    Args:
        copy: the dtype of a copy of the weights (`projection`).
    """

    def __init__(self, model: PreTrainedModel, copy: torch.dtype | None = None) -> None:
        inner: Any = model.model
        self.embed, self.rotary = inner.embed_tokens, inner.rotary_emb
        self.layers = [Layer(layer, model.config, copy) for layer in inner.layers]
        # The rotary angles of each layer by name; one name where all layers have the same.
        by_kind = isinstance(inner.rotary_emb.rope_type, dict)
        self.kinds = model.config.layer_types if by_kind else ["every layer"] * len(self.layers)
        self.scale, self.eps = norm_scale(inner.norm), model.config.rms_norm_eps
        self.head = projection(model.lm_head, copy=copy)
        self.cap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.known = partial(of_known_ids, model=model)
        self.recomputes = getattr(model, "is_activation_checkpointing", False)

    def angles(self, places: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return cos and sin [N, W] at positions [N], for each of `kinds`, so that x · cos +
        roll(x) · sin rotates x. The sign of `rotate_half` is in the sine, and the halves only
        change places."""
        found = {}
        for kind in dict.fromkeys(self.kinds):
            which = {"layer_type": kind} if isinstance(self.rotary.rope_type, dict) else {}
            cos, sin = self.rotary(self.embed.weight[:1], position_ids=places[None], **which)
            half = cos.shape[-1] // 2
            found[kind] = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
        return found

    def __call__(self, ids: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """Return the hidden states [N, D] of the tokens `ids` [N], after the last norm.

        Args:
            layouts: the layout of each layer.
        """
        x = self.embed(ids)
        for layer, layout in zip(self.layers, layouts, strict=True):
            if self.recomputes and torch.is_grad_enabled():
                x = checkpoint(layer, x, layout, use_reentrant=False)
            else:
                x = layer(x, layout)
        return rms_norm(x, x.shape[-1:], self.scale, self.eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map [N, D] to float32 logits [N, V] of the ids that the tokenizer has."""
        logits = self.head(hidden)
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return self.known(logits).float()
