"""Score stored answers by a Python function or a reward model. These judges need no pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warpflow.evaluation.rewards import (
    Scorer,
    call_scorer,
    require_finite,
    showing,
)
from warpflow.lm.prompts import dialogue_tokens, encode_example, is_messages, user_message
from warpflow.lm.reward_models import require_readable, sequence_scores
from warpflow.side_by_side.answers import Answer


def function_scores(function: Scorer, name: str, answers: Sequence[Answer]) -> list[float]:
    """Return a score for each answer, by a function that is called as rewards are.

    Raises: as in `rewards.function_reward`, with the answer on which the function fails.
    """
    arguments = {
        "prompts": [answer.prompt for answer in answers],
        "completions": [answer.text for answer in answers],
        "finished": [answer.finished for answer in answers],
        "columns": [answer.columns for answer in answers],
    }
    values = call_scorer(function, name, arguments)
    require_finite(values, name, [(a.prompt, a.text) for a in answers])
    for value, answer in zip(values, answers, strict=True):
        if value is None:
            raise ValueError(
                f"{name} returned None for prompt {answer.prompt!r:.1000}, answer "
                f"{answer.text!r:.1000}: a judge must give every answer a number"
            )
    return [value for value in values if value is not None]


def model_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[Answer],
    *,
    reads_policy_ids: bool,
    as_messages: bool,
    batch_size: int,
) -> list[float]:
    """Return a score for each answer, by a sequence classifier with one label. A reward model that
    this pipeline trained stores the units of its scores with itself (`rewards.model_reward`).

    Args:
        reads_policy_ids: whether it shares the vocabulary of the run's policies. Then it reads what
            they would have sampled: prompt, answer, and EOS where the answer ended. Else it reads
            what its chat template makes, where prompts are messages and it has one, or plain text.
        as_messages: whether prompts that are text are what a user asks, and not beginnings of
            texts.
    """

    is_own = reads_policy_ids and hasattr(model.config, "reward_std")
    has_template = tokenizer.chat_template is not None and not is_own

    def encode(answer: Answer) -> list[int]:
        prompt = user_message(answer.prompt, as_messages and has_template)
        if is_messages(prompt) and has_template:
            return dialogue_tokens(tokenizer, prompt, answer.text, answer.finished)
        if reads_policy_ids:
            ids, _ = encode_example(tokenizer, prompt, answer.text)
            return ids if answer.finished else ids[:-1]
        if not isinstance(prompt, str):
            raise ValueError(
                "the prompts are messages, but the reward model's tokenizer has no chat template "
                "to put them into words: expected a model that has one"
            )
        return tokenizer(prompt + answer.text)["input_ids"]

    rows = [encode(answer) for answer in answers]
    examples = [(answer.prompt, answer.text) for answer in answers]
    with torch.no_grad(), showing("reward_model", examples):
        require_readable(model, rows)
        parts = [
            sequence_scores(model, rows[i : i + batch_size])
            for i in range(0, len(rows), batch_size)
        ]
    mean, std = (
        getattr(model.config, f"reward_{name}", i) for i, name in enumerate(("mean", "std"))
    )
    values = (torch.cat(parts).cpu() - mean) / std
    require_finite(values, "reward_model", examples)
    return values.tolist()
