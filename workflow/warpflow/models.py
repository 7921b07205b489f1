"""Policies, reward models and tokenizers as Hugging Face folders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from warpflow.checkpoints import make_readable
from warpflow.recipes import compose, is_recipe


def pick_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode on the device of `pick_device`."""
    return model.eval().to(pick_device())  # type: ignore[arg-type]


def build_policy(
    architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """A randomly initialised causal language model for `tokenizer`'s vocabulary.

    Args:
        architecture: keyword arguments of a Hugging Face config, `model_type` among them, e.g.
            ``{"model_type": "gemma", "hidden_size": 96, ...}``.
    """
    config = AutoConfig.for_model(
        **architecture,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def load_policy(path: str | Path, parents: Sequence[str | Path] = ()) -> PreTrainedModel:
    """A causal language model in fp32 masters, dropout off, on the device.

    Without `dtype` a bf16 checkpoint would stay bf16, where steps of lr 1e-6 round to nothing.
    A recipe is composed of its two parents (`recipes.compose`): these folders, or those it names.
    """
    if is_recipe(path):
        config = AutoConfig.from_pretrained(path)
        with torch.device("meta"):  # no weights: only the class that the config stands for
            model_class = type(AutoModelForCausalLM.from_config(config))
        tensors = compose(path, parents)
        model = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32
        )
        return to_device(model)
    return to_device(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))


def warn_of_half_precision(path: str | Path) -> None:
    """Warn where a policy is stored in bf16 or fp16: that rounding is in θ_init for good, and
    small task vectors vanish when merges are stored so. Training and merging here are fp32."""
    dtype = AutoConfig.from_pretrained(path).dtype
    if dtype in (torch.bfloat16, torch.float16):
        logging.warning(
            "WARNING: %s is stored in %s. It is trained, averaged and stored in float32 from here "
            "on; do not round it back before the last export.",
            path,
            dtype,
        )


def load_reward_model(path: str | Path) -> PreTrainedModel:
    """A sequence classifier with one label, in fp32, on the device.

    Raises:
        ValueError: more than one label.
    """
    model = to_device(AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32))
    if model.config.num_labels != 1:
        raise ValueError(
            f"reward model {path} has {model.config.num_labels} labels, expected 1: "
            "a reward is one number; pick a model trained with num_labels=1"
        )
    return model


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer with an EOS token; a missing pad token becomes the EOS token.

    Raises:
        ValueError: no EOS token, so that no completion could ever end.
    """
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {path} has no EOS token: set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Weights (safetensors), config and tokenizer, readable by whoever may read the folder.

    A model without a pad token (GPT-2) gets the tokenizer's: a reward model that starts from it
    could not score batches otherwise.
    """
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    make_readable(folder)
