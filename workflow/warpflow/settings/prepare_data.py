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
    The section is used when `data` is `prepare_data`."""

    sft_path: str | None = None
    """The file or dataset of the SFT corpus; it is not needed with train_sft.steps 0."""
    sft_prompt: str | None = None
    """The corpus's column of prompts, which are texts or messages. null means that there are none,
    or that the columns have a format of TRL."""
    sft_completion: str | None = None
    """The corpus's column of completions, on which the loss is. They are texts, or messages that
    end with one of the assistant; the messages before it belong to the prompt. null means that the
    columns have a format of TRL."""
    preferences_path: str | None = None
    """The file or dataset of preferences; it is not needed with a trained reward model or without
    one."""
    preferences_prompt: str | None = None
    """The preferences' column of prompts, which are texts or messages. null means that there are
    none, or that the columns have a format of TRL."""
    preferences_chosen: str | None = None
    """The preferences' column of preferred completions, in the form of sft_completion. If all
    columns are null, they have a format of TRL."""
    preferences_rejected: str | None = None
    """The preferences' column of rejected completions."""
    preferences_text: str | None = None
    """The column of labelled texts, in place of preferences_chosen and preferences_rejected."""
    preferences_label: str | None = None
    """The column of their labels, 1 or 0. Each text labelled 1 is paired with a random one labelled
    0, none of which is used twice before all are used."""
    prompts_path: str | None = None
    """The file or dataset of prompts."""
    prompts_column: str | None = None
    """The column of prompts, which are texts or messages. Messages are lists of role and content
    for the chat template of the policy's tokenizer; a last message of the assistant is left out.
    null means that the columns have a format of TRL."""
    prompts_first_words: Count | None = None
    """The number of words of that column that make a prompt, the first ones; null takes all."""
    prompts_as_messages: Flag = False
    """Whether each text is a user's message, for the chat template of the policy's tokenizer."""
    drop_long_prompts: Flag = False
    """Whether prompts longer than policy.max_prompt_tokens are dropped and counted in the log;
    false makes them an error."""
    train_prompts: Count | None = None
    """The largest number of prompts for RL; null takes all that are not held out."""
    eval_prompts: Count | None = None
    """The number of held-out prompts for evaluation."""
    drop_eval_texts: Flag = False
    """Whether texts of the corpus and preferences that begin with a held-out prompt are dropped.
    Neither policy nor rewards have then seen its source."""
    vocab_size: Annotated[Integer, Field(ge=260)] | None = None
    """The size of the byte-level BPE tokenizer that is trained on the corpus; null where
    policy.path brings its own."""
    max_text_tokens: Annotated[Integer, Field(ge=2)] | None = None
    """The largest number of tokens of a text of the corpus or preferences. Longer ones are dropped
    and counted in the log."""
