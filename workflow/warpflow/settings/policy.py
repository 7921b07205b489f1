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
    """Which policy it is."""

    path: str | None = None
    """Your Hugging Face policy (folder or hub name, docs/your_models.md), or a GGUF file
    (folder/file.gguf), whose weights become float32; `fetch_policy`: that of the section of this
    name; null: build one."""
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
    """Of any Hugging Face causal model type. `model_type` and the keys of its config class; used
    when `path` is null."""
    max_prompt_tokens: Count = 16
    """A prompt longer than this is an error, never cut silently."""


@section
class Policy(Sampling, Model):  # the fields of the last class come first
    """The policy and how it is sampled."""
