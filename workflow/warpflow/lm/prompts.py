"""Prompts, which are text or messages for the tokenizer's chat template, and their tokens."""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, TypeGuard

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]  # with "role" and "content", as chat templates take them
Prompt = str | Messages

DAY = date(2024, 7, 26)  # Llama's template says this where it has no clock


def is_messages(value: Any) -> TypeGuard[Messages]:
    """Whether a cell holds messages, each with a role and a text."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )


def user_message(prompt: Prompt, as_messages: bool) -> Prompt:
    """Return a prompt, with a text as the message of a user if `as_messages` says so."""
    if isinstance(prompt, str) and as_messages:
        messages: Messages = [{"role": "user", "content": prompt}]
        return messages
    return prompt


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> list[list[int]]:
    """Return the token ids of each prompt, as `prompt_tokens` does.

    Raises:
        ValueError: a prompt has no tokens, or the template refuses messages.
    """
    ids = prompt_tokens(tokenizer, prompts)
    for prompt, row in zip(prompts, ids, strict=True):
        if not row:
            raise ValueError(f"prompt {prompt!r} has no tokens and the tokenizer has no BOS token")
    return ids


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    path: str,
    max_prompt_tokens: int,
) -> list[list[int]]:
    """Return the token ids of the prompts of a file's rows, none longer than
    `max_prompt_tokens`."""
    encoded = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    for row, ids in zip(rows, encoded, strict=True):
        if len(ids) > max_prompt_tokens:
            raise ValueError(
                f"{path}: a prompt of {len(ids)} tokens, expected at most {max_prompt_tokens} "
                f"(policy.max_prompt_tokens): shorten it or raise the limit: {row['prompt']!r:.80}"
            )
    return encoded


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return token ids. Those of a text begin with BOS, where the tokenizer has one and the text
    was not rendered by the chat template already. Those of messages are what the chat template
    makes, up to where the assistant's answer begins, with a BOS only if the template has it."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    opening = template_opening(tokenizer) if texts else []
    return [
        with_bos(tokenizer, next(encoded), opening)
        if isinstance(prompt, str)
        else dialogue_tokens(tokenizer, prompt)
        for prompt in prompts
    ]


def encode_example(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: str
) -> tuple[list[int], int]:
    """Return ``prompt + completion + [eos]`` as ids, and how many of them are the prompt's, with
    its BOS.

    Prompt and completion are tokenised separately, as the policy sees them when it is sampled.
    """
    start = prompt_tokens(tokenizer, [prompt])[0]
    rest = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return start + with_eos(tokenizer, rest), len(start)


def with_bos(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], opening: Sequence[int]
) -> list[int]:
    """Return a text's ids with one BOS token first, where the tokenizer has one. A text that the
    chat template has rendered starts as the template does, with BOS or without.

    Args:
        opening: the result of `template_opening`.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    if ids[:1] == [bos] or starts_with(ids, opening):
        warn_once(
            f"WARNING: texts start with {tokenizer.convert_ids_to_tokens(ids[0])} already, as if "
            f"rendered by the chat template; they get no other {tokenizer.bos_token}. Prompts that "
            "are messages need not be rendered beforehand"
        )
        return ids
    return [bos, *ids]


def with_eos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return a completion's ids with one EOS token last. A completion that the chat template
    rendered ends with it already, and often with a line break after it."""
    eos = tokenizer.eos_token_id
    if eos in ids:
        end = len(ids) - ids[::-1].index(eos)
        if not str(tokenizer.decode(ids[end:])).strip():
            return ids[:end]
    return [*ids, eos]


def starts_with(ids: Sequence[int], opening: Sequence[int]) -> bool:
    return bool(opening) and list(ids[: len(opening)]) == list(opening)


def is_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text starts like what the chat template renders."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return starts_with(ids, template_opening(tokenizer))


def template_opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the special tokens with which the chat template starts (Gemma's <bos> and
    <start_of_turn>, ChatML's <|im_start|>). There are none where it starts with text, where it
    takes no question of a user, and where there is no template."""
    if tokenizer.chat_template is None:
        return []
    try:
        return list(_opening(tokenizer, fixed_template(tokenizer)))
    except ValueError:
        return []


@functools.lru_cache(maxsize=8)  # rendering takes longer than a text's tokens
def _opening(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[int, ...]:
    ids = dialogue_tokens(tokenizer, [{"role": "user", "content": "A question?"}])
    return tuple(itertools.takewhile(special_ids(tokenizer).__contains__, ids))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that no ordinary text has: those of special tokens, and of other tokens that
    were added (as <|im_end|> in some models), if they are more than space."""
    added = tokenizer.added_tokens_decoder
    return {i for i, token in added.items() if token.special or token.content.strip()} | set(
        tokenizer.all_special_ids
    )


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning the first time that it occurs in a process."""
    logging.warning(message)


def dialogue_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    answer: str | None = None,
    finished: bool = True,
) -> list[int]:
    """Return the token ids of messages through the chat template, up to the assistant's answer or
    with it.

    Args:
        finished: whether the answer ended by itself. A cut answer gets no closing of the template.
            A template that closes an answer with nothing cannot show the difference.

    Raises:
        ValueError: the template refuses the messages, for example two of one role in a row.
    """
    try:
        ids = tokenizer.apply_chat_template(
            messages if answer is None else [*messages, {"role": "assistant", "content": answer}],
            add_generation_prompt=answer is None,
            continue_final_message=answer is not None and not finished,
            return_dict=False,
            chat_template=fixed_template(tokenizer),
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses {messages!r:.1000}: {error}") from error
    return list(ids)


def fixed_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the chat template with a fixed date, where it uses today's.

    Llama 3.1's and others put today's date into every prompt, so that a run would depend on the
    day, and change at midnight. Here the date is always DAY.
    """
    return re.sub(
        r"""strftime_now\((['"])(.*?)\1\)""",
        lambda found: repr(DAY.strftime(found[2])),
        tokenizer.get_chat_template(),
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str | None:
    """Return the token (`special_ids`) with which the chat template closes an answer to `messages`,
    or None where it closes without one. Often it is not the tokenizer's EOS token (Gemma's
    <end_of_turn>)."""
    answer = "An answer."
    dialogue = [*messages, {"role": "assistant", "content": answer}]
    text = str(tokenizer.apply_chat_template(dialogue, tokenize=False))
    closing = tokenizer(text.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    special = special_ids(tokenizer)
    return next((str(tokenizer.convert_ids_to_tokens(i)) for i in closing if i in special), None)
