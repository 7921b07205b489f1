"""Section `prepare_data` of the config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from warpflow.settings.base import Count, Flag, Integer, section


@section
class PrepareData:
    """Your files: JSON lines (.jsonl, .jsonl.gz), a JSON list (.json, .json.gz), CSV (.csv,
    .csv.gz) or Parquet (.parquet); or datasets of the hub, `hub:org/name?split=train` (also
    `&config=…`, `&revision=…`). Columns of TRL's dataset formats need no key (docs/your_data.md).
    Used when `data` is `prepare_data`."""

    sft_path: str | None = None
    """File or dataset of the SFT corpus; not needed with train_sft.steps 0."""
    sft_prompt: str | None = None
    """Its column of prompts, texts or messages; null: none, or a format of TRL's."""
    sft_completion: str | None = None
    """Its column of completions (the loss is on these): texts, or messages that end with the
    assistant's (those before belong to the prompt). null: a format of TRL's."""
    preferences_path: str | None = None
    """File or dataset of preferences; not needed with a trained reward model, or none."""
    preferences_prompt: str | None = None
    """Its column of prompts, texts or messages; null: none, or a format of TRL's."""
    preferences_chosen: str | None = None
    """Its column of preferred completions, as sft_completion; with all columns null: a format of
    TRL's."""
    preferences_rejected: str | None = None
    """Its column of the others."""
    preferences_text: str | None = None
    """Instead of chosen and rejected: a column of texts …"""
    preferences_label: str | None = None
    """… and one of labels; each text labelled 1 is paired with a random one labelled 0, none of
    which is used twice before all are used."""
    prompts_path: str | None = None
    """File or dataset of prompts."""
    prompts_column: str | None = None
    """Its column: texts, or messages (lists of role and content) for the chat template of the
    policy's tokenizer; a last message of the assistant's is left out. null: a format of TRL's."""
    prompts_first_words: Count | None = None
    """Use only the first words of that column as the prompt; null: all of it."""
    prompts_as_messages: Flag = False
    """Each text is a user's message, for the chat template of the policy's tokenizer."""
    drop_long_prompts: Flag = False
    """Drop prompts longer than policy.max_prompt_tokens, and count them in the log; false: they are
    an error."""
    train_prompts: Count | None = None
    """At most so many prompts for RL; null: all that are not held out."""
    eval_prompts: Count | None = None
    """Held-out prompts for evaluation."""
    drop_eval_texts: Flag = False
    """Drop texts of the corpus and preferences that begin with a held-out prompt, so that neither
    policy nor rewards have seen its source."""
    vocab_size: Annotated[Integer, Field(ge=260)] | None = None
    """Size of the byte-level BPE tokenizer trained on the corpus; null where policy.path brings
    its own."""
    max_text_tokens: Annotated[Integer, Field(ge=2)] | None = None
    """Longer texts of the corpus and preferences are dropped, and counted in the log."""
