"""Let one policy answer the prompts of a comparison, with one sampled answer to each.

Answers are in AlpacaEval's format. The prompts are the run's held-out ones (`--data`), or the
instructions of a file of stored answers (`--instructions`), which a policy with a chat template
gets as a user's message. Next in reading order: warpflow.side_by_side.answers.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warpflow.cli import parse_arguments
from warpflow.data.files import Row, read_rows
from warpflow.lm.models import (
    ending_ids,
    load_config,
    load_tokenizer,
    note_known_ids_,
    require_context,
)
from warpflow.lm.prompts import encode_rows, user_message
from warpflow.lm.sampling import draw_uniforms, pad_left, sample_completions
from warpflow.lm.texts import response_texts
from warpflow.merging.points import load_point
from warpflow.settings.base import listed, section
from warpflow.settings.sampling import Sampling
from warpflow.side_by_side.answers import Answer, read_answers, write_answers


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    policy: str
    """The checkpoint that answers, a folder or a hub name."""
    out: str
    """The JSON file to write."""
    name: str
    """The answers' generator."""
    seed: int
    """The base seed, the same for every policy."""
    max_prompt_tokens: int
    """The largest number of tokens of a prompt; a longer one is an error."""
    batch_size: int
    """The number of answers that are sampled together."""
    prompts: int | None = None
    """The number of prompts that are taken, the first ones."""
    data: str | None = None
    """The data folder with the held-out prompts."""
    instructions: str | None = None
    """A file of stored answers, whose instructions are the prompts."""
    parents: list[str] = listed()
    """The two checkpoints of a policy that is a recipe."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, sampling = parse_arguments(__doc__, argv, Arguments, Sampling)
    rows, source = read_prompts(arguments)
    needed = arguments.max_prompt_tokens + sampling.max_new_tokens
    require_context(load_config(arguments.policy), needed, arguments.policy)
    tokenizer = load_tokenizer(arguments.policy)
    has_template = bool(arguments.instructions) and tokenizer.chat_template is not None
    encoded = encode_rows(
        tokenizer,
        [{"prompt": user_message(row["prompt"], has_template)} for row in rows],
        source,
        arguments.max_prompt_tokens,
    )
    eos_ids = ending_ids(arguments.policy, tokenizer)
    policy = load_point(arguments.policy, arguments.parents)
    note_known_ids_(policy.config, tokenizer)
    texts, finished = [], []
    for text, is_finished in sample(policy, tokenizer, encoded, eos_ids, arguments, sampling):
        texts.append(text)
        finished.append(is_finished)
    answers = [
        Answer(row["prompt"], text, ended, {k: v for k, v in row.items() if k != "prompt"})
        for row, text, ended in zip(rows, texts, finished, strict=True)
    ]
    write_answers(arguments.out, answers, arguments.name)


def read_prompts(arguments: Arguments) -> tuple[list[Row], str]:
    """Return rows with a `prompt` each and where they come from. Raises ValueError where there are
    too few."""
    if arguments.instructions:
        source = arguments.instructions
        rows = [{**answer.columns, "prompt": answer.prompt} for answer in read_answers(source)]
    elif arguments.data:
        source = f"{arguments.data}/eval_prompts.jsonl"
        rows = read_rows(source)
    else:
        raise ValueError("give --data or --instructions: there is nothing to answer")
    if arguments.prompts and len(rows) < arguments.prompts:
        raise ValueError(
            f"{source} has {len(rows)} prompts, expected {arguments.prompts}: lower "
            "compare_answers.….prompts, or hold out more"
        )
    return rows[: arguments.prompts], source


def sample(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Sequence[int]],
    eos_ids: Sequence[int],
    arguments: Arguments,
    sampling: Sampling,
) -> Iterator[tuple[str, bool]]:
    """Yield each prompt's answer, and whether it ended by itself."""
    limit = sampling.max_new_tokens
    uniforms = draw_uniforms(len(encoded), limit, policy.device, arguments.seed, "answer_prompts")
    for start in range(0, len(encoded), arguments.batch_size):
        part = slice(start, start + arguments.batch_size)
        ids, mask = pad_left(encoded[part], tokenizer.pad_token_id, policy.device)
        batch = sample_completions(
            policy,
            ids,
            mask,
            max_new_tokens=limit,
            temperature=sampling.temperature,
            eos_ids=eos_ids,
            pad_id=tokenizer.pad_token_id,
            uniforms=uniforms[part],
        )
        yield from zip(response_texts(batch, tokenizer), batch.finished.tolist(), strict=True)


if __name__ == "__main__":
    main()
