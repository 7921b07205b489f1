"""The columns of a dataset that the config does not name, recognised by TRL's dataset formats.

These formats (https://huggingface.co/docs/trl/dataset_formats) are a prompt; a prompt and a
completion; messages; a chosen and a rejected answer, with the prompt in a column of its own or at
the beginning of both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from warpflow.data.files import Row

Columns = Mapping[str, str | None]  # keys of `prepare_data` → columns
# The formats by the keys' first word. A dataset has the first one whose columns are all there.
FORMATS: Mapping[str, Sequence[Mapping[str, str]]] = {
    "sft": (
        {"sft_prompt": "prompt", "sft_completion": "completion"},
        {"sft_completion": "messages"},
        {"sft_completion": "text"},
    ),
    "preferences": (
        {
            "preferences_prompt": "prompt",
            "preferences_chosen": "chosen",
            "preferences_rejected": "rejected",
        },
        {"preferences_chosen": "chosen", "preferences_rejected": "rejected"},
    ),
    "prompts": ({"prompts_column": "prompt"}, {"prompts_column": "messages"}),
}
# These keys of `prepare_data` name columns.
COLUMN_KEYS = {
    "sft": ("sft_prompt", "sft_completion"),
    "preferences": (
        *("preferences_prompt", "preferences_chosen", "preferences_rejected"),
        *("preferences_text", "preferences_label"),
    ),
    "prompts": ("prompts_column",),
}


def named_columns(settings: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Return the columns of sft, preferences or prompts that the settings name, by key."""
    return {key: settings[key] for key in COLUMN_KEYS[kind] if settings.get(key) is not None}


def columns_of(settings: Mapping[str, Any], kind: str, first: Row, path: str) -> Columns:
    """Return the columns of a dataset by all keys of its kind. They are those that the settings
    name, or those of a format of TRL where the settings name none.

    Args:
        first: the dataset's first row. path: the dataset's path, for the message.

    Raises:
        ValueError: the settings name no column, and the dataset's columns have none of these
            formats.
    """
    named: Mapping[str, str] = named_columns(settings, kind) or recognised(kind, first, path)
    return {key: named.get(key) for key in COLUMN_KEYS[kind]}


def recognised(kind: str, first: Row, path: str) -> Mapping[str, str]:
    """Return the columns of the format that a dataset has."""
    for columns in FORMATS[kind]:
        is_there = set(columns.values()) <= first.keys()
        if is_there and not repeats_prompt(first, columns):
            return columns
    formats = "; ".join(" and ".join(columns.values()) for columns in FORMATS[kind])
    raise ValueError(
        f"{path}: its columns are {', '.join(map(str, first)) or 'none'}. Without "
        f"{', '.join(f'prepare_data.{key}' for key in COLUMN_KEYS[kind])} they are expected to be "
        f"those of a format of TRL's: {formats}. Name the columns in these keys"
    )


def repeats_prompt(first: Row, columns: Mapping[str, str]) -> bool:
    """Whether a column of prompts repeats, as text, what the dialogues of answers begin with, as in
    UltraFeedback. Only the dialogues are read then."""
    chosen = first.get("chosen")
    is_dialogue = isinstance(chosen, list) and len(chosen) > 1
    return (
        columns.get("preferences_prompt") == "prompt"
        and isinstance(first["prompt"], str)
        and is_dialogue
    )


def split_common_start(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return the prompt that two texts begin with, and the rest of each (TRL's implicit prompt).
    The prompt ends with a whole word, and each rest begins with its space."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    spaces = [match.start() for match in re.finditer(r"\s+", chosen[:same])]
    cut = spaces[-1] if spaces else 0
    return chosen[:cut], chosen[cut:], rejected[cut:]
