"""Score token sequences by a sequence classifier with one label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


def sequence_scores(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the scores [B] of token sequences, which are right-padded here. The pad token is in
    the text config, an inner config in multimodal models (Gemma 3)."""
    width, device = max(map(len, rows)), model.device
    pad_id = model.config.get_text_config().pad_token_id
    ids = torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    is_token = torch.arange(width, device=device)[None] < lengths[:, None]
    return model(input_ids=ids, attention_mask=is_token.long()).logits[:, 0].float()


def require_readable(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
    """Raise ValueError where a row is longer than the model's context."""
    config, longest = model.config.get_text_config(), max(map(len, rows))
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and longest > context:
        raise ValueError(
            f"a text of {longest} tokens, but the reward model reads at most {context} "
            "(max_position_embeddings in its config.json): lower policy.max_new_tokens or "
            "policy.max_prompt_tokens"
        )
