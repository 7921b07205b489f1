"""Load reward models in the two forms in which they are published: with a head on the sequence, or
with a head of one label on every token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from warpflow.lm.models import load_config, load_reward_model, load_whole


def load_classifier(path: str | Path) -> PreTrainedModel:
    """Load a model that gives each sequence one number, in fp32, on the device. A model that gives
    each token a number scores a sequence at its last token, as it was trained.

    Raises:
        ValueError: the model has more than one label, or no such head.
    """
    config = load_config(path)
    kinds = config.architectures or []
    if config.num_labels != 1 or not any(kind.endswith("ForTokenClassification") for kind in kinds):
        return load_reward_model(path)
    model = load_whole(AutoModelForTokenClassification, path)
    model.register_forward_hook(at_last_token, with_kwargs=True)
    return model


def at_last_token(
    module: torch.nn.Module, args: Any, given: dict[str, Any], output: Any
) -> SequenceClassifierOutput:
    """Return the logits [B, 1] of the last token that the attention mask keeps, for texts padded on
    the right."""
    last = given["attention_mask"].sum(1) - 1
    rows = torch.arange(len(last), device=last.device)
    return SequenceClassifierOutput(logits=output.logits[rows, last])
