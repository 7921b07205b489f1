"""Rewards: a sequence-classification model, Python functions named in the config, and their sum.

Each becomes a `Reward`, a function from a batch of completions to one float per completion, NaN
where it does not apply. A reward that fails stops the run and shows the completion. Its value is
never replaced by 0.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import logging
import math
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warpflow.data.files import Row
from warpflow.lm.log_probs import Completions
from warpflow.lm.models import compute_in, keep_in_host_memory_, lent, round_matrices_
from warpflow.lm.prompts import dialogue_tokens
from warpflow.lm.reward_models import require_readable, sequence_scores
from warpflow.lm.texts import (
    full_texts,
    prompt_texts,
    response_texts,
    token_rows,
    tokens_of_prompts,
)

Reward = Callable[[Completions], Tensor]
FrozenMemory = Literal["device", "host"]
# It is called with the keywords prompts, completions, finished and columns, a list each. It returns
# a float for each completion, or None where the reward does not apply. It may be async.
Scorer = Callable[..., Any]
# It takes the same arguments in a mapping, and returns checked scores.
Call = Callable[[Mapping[str, list[Any]]], list[float | None]]
Example = tuple[Any, str]  # a prompt, as its file has it or decoded, and its completion
# It maps the token ids of a prompt to its row in the prompts' file. A completion finds its row by
# its prompt's tokens, so that sampling, micro-batches and processes need not carry it.
PromptRows = Mapping[tuple[int, ...], Row]


@dataclass(frozen=True)
class Reading:
    """How a reward model reads completions.

    Attributes:
        rows: the number of rows that it reads at once.
        compute_dtype: the type of matrix products. The matrices of a model that computes in bf16
            are stored in bf16, which gives the same numbers.
        memory: where the model's weights are between its uses.
    """

    rows: int = 256
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    memory: FrozenMemory = "device"


READING = Reading()


def weighted_sum(
    terms: Sequence[tuple[float, Reward]], policy_tokenizer: PreTrainedTokenizerBase
) -> Reward:
    """Return r(x, y) = Σ weight · term, over the terms that apply to a completion.

    Raises (the reward): ValueError for a completion that no term applies to.
    """

    def score(batch: Completions) -> Tensor:
        values = [weight * term(batch) for weight, term in terms]
        absent = [value.isnan() for value in values]
        if (lost := torch.stack(absent).all(0)).any():
            prompt, completion = first_example(lost, batch, policy_tokenizer)
            raise ValueError(
                f"no term of the reward applies to the completion {completion!r:.1000} of prompt "
                f"{prompt!r:.1000}: all returned None. Let one of them apply to every completion"
            )
        applied = (value.masked_fill(none, 0) for value, none in zip(values, absent, strict=True))
        return functools.reduce(operator.add, applied)

    return score


def decoded(batch: Completions, policy_tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
    """Yield the prompts and completions of a batch as texts."""
    prompts = prompt_texts(batch, policy_tokenizer)
    yield from zip(prompts, response_texts(batch, policy_tokenizer), strict=True)


def first_example(
    chosen: Tensor, batch: Completions, policy_tokenizer: PreTrainedTokenizerBase
) -> Example:
    """Return the first completion for which `chosen` [B] is True, with its prompt."""
    return list(decoded(batch, policy_tokenizer))[int(chosen.nonzero()[0, 0])]


def applying(reward: Reward, name: str, policy_tokenizer: PreTrainedTokenizerBase) -> Reward:
    """Require that a reward applies to every completion, as one that is only measured must. It
    raises ValueError and shows the completion where it does not."""

    def score(batch: Completions) -> Tensor:
        values = reward(batch)
        if (absent := values.isnan()).any():
            prompt, completion = first_example(absent, batch, policy_tokenizer)
            raise ValueError(
                f"{name} returned None for prompt {prompt!r:.1000}, completion "
                f"{completion!r:.1000}: what is measured must be a number for every completion"
            )
        return values

    return score


def index_rows(encoded: Sequence[Sequence[int]], rows: Sequence[Row]) -> PromptRows:
    """Return the rows of prompts by the prompts' token ids.

    Raises:
        ValueError: two different rows become the same tokens.
    """
    found: dict[tuple[int, ...], Row] = {}
    for ids, row in zip(encoded, rows, strict=True):
        other = found.setdefault(tuple(ids), row)
        if other != row:
            raise ValueError(
                f"two prompts are the same to the policy's tokenizer, but their rows differ, so "
                f"that a reward function could not tell them apart: {other!r:.300} and "
                f"{row!r:.300}; leave one of them out"
            )
    return found


def model_reward(
    model: PreTrainedModel,
    model_tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    dialogues: PromptRows,
    reading: Reading = READING,
) -> Reward:
    """Return the reward r(x, y) of a sequence classifier with one label.

    A reward model that this pipeline trained stores the mean and standard deviation of its scores
    in its config (`reward_mean`, `reward_std`). Scores are returned in those units.

    The model reads one of three forms. If the prompt is messages, and the model has a chat template
    and was not trained by this pipeline on sampled ids, it reads them and the completion as the
    assistant's answer through this template. Else it reads the sampled ids, where both models share
    a vocabulary. Else it reads the decoded text. The first two show whether the completion ended or
    was cut at the limit, by the template's closing, which a cut answer lacks, or by the EOS token.
    Decoded text does not.

    Args:
        dialogues: the rows of prompts that are messages; empty where prompts are text.

    Raises (the reward): ValueError for a text longer than the model's context, FloatingPointError
    for a score that is not finite.
    """
    mean = getattr(model.config, "reward_mean", 0.0)
    std = getattr(model.config, "reward_std", 1.0)
    same_vocabulary = model_tokenizer.get_vocab() == policy_tokenizer.get_vocab()
    trained_on_these_ids = same_vocabulary and hasattr(model.config, "reward_std")
    device, kept = model.device, prepare_frozen_(model, reading)
    has_own_template = model_tokenizer.chat_template is not None and not trained_on_these_ids

    def encode(batch: Completions) -> list[list[int]]:
        if dialogues and has_own_template:
            answers = response_texts(batch, policy_tokenizer)
            return [
                dialogue_tokens(model_tokenizer, dialogues[tuple(ids)]["prompt"], answer, finished)
                for ids, answer, finished in zip(
                    tokens_of_prompts(batch), answers, batch.finished.tolist(), strict=True
                )
            ]
        if same_vocabulary:
            return token_rows(batch)
        return model_tokenizer(full_texts(batch, policy_tokenizer))["input_ids"]

    @torch.no_grad()
    def score(batch: Completions) -> Tensor:
        rows = encode(batch)
        with showing("reward_model", decoded(batch, policy_tokenizer)):
            require_readable(model, rows)
            with (
                lent(model, kept, device) if kept else nullcontext(),
                compute_in(reading.compute_dtype, device),
            ):
                scores = torch.cat(
                    [
                        sequence_scores(model, rows[i : i + reading.rows])
                        for i in range(0, len(rows), reading.rows)
                    ]
                )
        values = (scores - mean) / std
        require_finite(values, "reward_model", decoded(batch, policy_tokenizer))
        return values

    return score


def prepare_frozen_(model: PreTrainedModel, reading: Reading) -> list[Tensor]:
    """Store a model as `reading` says. Return its weights in host memory, where they are kept
    there."""
    if reading.compute_dtype == "bfloat16":
        round_matrices_(model)
    return keep_in_host_memory_(model) if reading.memory == "host" else []


def function_reward(
    function: Scorer, policy_tokenizer: PreTrainedTokenizerBase, name: str, prompt_rows: PromptRows
) -> Reward:
    """Return the reward of a function with keywords prompts, completions, finished and columns, as
    `called_reward` does. The function may be async.

    Raises (the reward): what the function raises, with the example; ValueError for a wrong count,
    FloatingPointError for a value that is not finite.
    """
    call = functools.partial(call_scorer, function, name)
    return called_reward(call, policy_tokenizer, name, prompt_rows)


def called_reward(
    call: Call, policy_tokenizer: PreTrainedTokenizerBase, name: str, prompt_rows: PromptRows
) -> Reward:
    """Return the reward of a call that scores texts. It logs how many completions the call did not
    apply to (None).

    Args:
        name: the config's name of the reward, for messages.
        prompt_rows: gives `prompts` (as they are in the file) and `columns` (the rest of the row, a
            dict). `completions` are decoded without special tokens.

    Raises (the reward): what `call` raises; FloatingPointError for a value that is not finite.
    """
    seen = absent = 0
    next_said = 1

    def score(batch: Completions) -> Tensor:
        nonlocal seen, absent, next_said
        rows = [prompt_rows[tuple(ids)] for ids in tokens_of_prompts(batch)]
        completions = response_texts(batch, policy_tokenizer)
        prompts = [row["prompt"] for row in rows]
        arguments = {
            "prompts": prompts,
            "completions": completions,
            "finished": batch.finished.tolist(),
            "columns": [{k: v for k, v in row.items() if k != "prompt"} for row in rows],
        }
        values = call(arguments)
        require_finite(values, name, list(zip(prompts, completions, strict=True)))
        seen, absent = seen + len(values), absent + values.count(None)
        if absent and seen >= next_said:  # ten times as many each time, not a line for every step
            next_said = 10 * seen
            logging.info("%s did not apply to %d of %d completions so far", name, absent, seen)
        plain = [math.nan if value is None else value for value in values]
        return torch.tensor(plain, dtype=torch.float32, device=batch.response_ids.device)

    return score


def call_scorer(
    function: Scorer, name: str, arguments: Mapping[str, list[Any]]
) -> list[float | None]:
    """Return one float per completion, or None. Where the function fails, its error says on which
    example. To find it, the function is called again on one example after the other."""

    def call(part: Mapping[str, list[Any]]) -> list[float | None]:
        scores = awaited(function(**part))
        values = [None if score is None else float(score) for score in scores]
        if len(values) != len(part["prompts"]):
            raise ValueError(
                f"{name} returned {len(values)} scores for {len(part['prompts'])} completions"
            )
        return values

    examples = list(zip(arguments["prompts"], arguments["completions"], strict=True))
    try:
        return call(arguments)
    except Exception:
        for index, example in enumerate(examples):
            with showing(name, [example]):
                call({key: values[index : index + 1] for key, values in arguments.items()})
        with showing(name, examples):
            raise


def awaited(given: Any) -> Any:
    """Wait for the result of an async function, and return anything else as it is. All run in one
    event loop, so that connections that such a function keeps open stay usable."""
    if not inspect.isawaitable(given):
        return given

    async def wait() -> Any:
        return await given

    return event_loop().run(wait())


@functools.cache
def event_loop() -> asyncio.Runner:
    return asyncio.Runner()


@contextmanager
def showing(name: str, examples: Iterable[Example]) -> Iterator[None]:
    """Add the first example to any error, and the number of others that were scored with it.
    `examples` is read only then."""
    try:
        yield
    except Exception as error:
        (prompt, completion), *others = examples
        more = f"; {len(others)} more were scored with it" if others else ""
        error.add_note(
            f"Raised by the reward {name}, on prompt {prompt!r:.1000}, completion "
            f"{completion!r:.1000}{more}"
        )
        raise


def require_finite(
    values: Tensor | Sequence[float | None], name: str, examples: Iterable[Example]
) -> None:
    """Raise FloatingPointError for a NaN or an infinity, and show where it came. None is no number
    and passes."""
    if isinstance(values, Tensor):
        values = values.tolist()
    wrong = (i for i, value in enumerate(values) if value is not None and not math.isfinite(value))
    index = next(wrong, None)
    if index is None:
        return
    prompt, completion = list(examples)[index]
    raise FloatingPointError(
        f"the reward {name} returned {values[index]} for prompt {prompt!r:.1000}, "
        f"completion {completion!r:.1000}"
    )


def load_function(name: str) -> Scorer:
    """Load the function that a config names as ``package.module:function``, from an installed
    package or from a file in the folder that the command runs in.

    Raises:
        ValueError: the name has another form, or the function takes other arguments.
    """
    module, separator, attribute = name.partition(":")
    if not separator:
        raise ValueError(f"{name!r}: expected package.module:function")
    if os.getcwd() not in sys.path:  # it has a script's folder, but not the project's
        sys.path.append(os.getcwd())
    function = getattr(importlib.import_module(module), attribute)
    try:
        inspect.signature(function).bind(prompts=[], completions=[], finished=[], columns=[])
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be called as {attribute}(prompts=…, completions=…, finished=…, "
            f"columns=…): {error}; let it take these names, and **_ for those it does not need"
        ) from None
    return function
