"""Section `policy` of the config."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from warpflow.settings.base import Count, section
from warpflow.settings.sampling import Sampling


def has_model_type(architecture: dict[str, Any]) -> dict[str, Any]:
    if "model_type" not in architecture:
        raise ValueError("a model_type among its keys")
    return architecture


Architecture = Annotated[
    dict[str, Any],
    AfterValidator(has_model_type),
    Field(json_schema_extra={"required": ["model_type"]}),
]


@section
class Model:
    """The choice of the policy."""

    path: str | None = None
    """Your Hugging Face policy; null builds one. It is a folder or a hub name
    (docs/your_models.md), or a GGUF file (folder/file.gguf), whose weights become float32.
    `fetch_policy` takes the model of the section of this name."""
    architecture: Architecture = Field(
        default_factory=lambda: {
            "model_type": "gemma",
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "max_position_embeddings": 128,
        }
    )
    """The architecture that is built when `path` is null. It has `model_type`, which is any Hugging
    Face causal model, and keys of its config class."""
    max_prompt_tokens: Count = 16
    """A prompt longer than this is an error, never cut silently."""


@section
class Policy(Sampling, Model):  # the fields of the last class come first
    """The policy and how it is sampled."""
