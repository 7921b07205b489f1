"""Evaluate one policy: reward, gold, KL to SFT, length, diversity, and some of its completions.

Writes one JSON file: `metrics` (a row of evaluations.csv), `completions` (a table to read) and
`prompts` (values of every prompt, which pair one policy with another).
Next in reading order: warpflow.evaluation.evaluate.evaluate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from warpflow.cli import parse_arguments
from warpflow.evaluation.evaluate import (
    Samples,
    evaluate,
    mean_and_error,
    prompt_values,
    summarise,
)
from warpflow.evaluation.rewards import Reward
from warpflow.evaluation.task import JudgeArguments, load_judges
from warpflow.lm.texts import prompt_texts, response_texts
from warpflow.merging.points import load_point
from warpflow.settings.base import listed, section
from warpflow.settings.evaluate_policy import EvaluationSettings


@section
class Arguments:
    """What the command line says beside the settings."""

    policy: str
    """Checkpoint to evaluate."""
    out: str
    """JSON file to write."""
    seed: int
    """Base seed, the same for every policy."""
    parents: list[str] = listed()
    """The two checkpoints of a policy that is a recipe."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, given, settings = parse_arguments(
        __doc__, argv, Arguments, JudgeArguments, EvaluationSettings
    )
    judges = load_judges(given, settings.max_new_tokens)
    samples = evaluate(
        load_point(arguments.policy, arguments.parents),
        judges.sft,
        judges.reward,
        judges.gold,
        judges.eval_prompts,
        settings,
        eos_ids=judges.eos_ids,
        pad_id=judges.tokenizer.pad_token_id,
        seed=arguments.seed,
    )
    prompts, responses = (
        [text for batch in samples.batch for text in texts(batch, judges.tokenizer)]
        for texts in (prompt_texts, response_texts)
    )
    metrics = summarise(samples, responses, settings.samples_per_prompt)
    if len(judges.terms) > 1:
        metrics |= summarise_terms(samples, judges.terms, settings.samples_per_prompt)
    table = completion_rows(
        samples, prompts, responses, settings.samples_per_prompt, settings.completions
    )
    values = prompt_values(samples, settings.samples_per_prompt)
    document = {"metrics": metrics, "completions": table, "prompts": values}
    Path(arguments.out).write_text(
        json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def summarise_terms(
    samples: Samples, terms: Mapping[str, Reward], samples_per_prompt: int
) -> dict[str, float]:
    """Mean and error of each term of the reward, unweighted: which of them a policy raised."""
    row: dict[str, float] = {}
    for name, term in terms.items():
        values = torch.cat([term(batch) for batch in samples.batch]).cpu()
        mean, error = mean_and_error(values, samples_per_prompt)
        row |= {f"reward.{name}": mean, f"reward.{name}_se": error}
    return row


def completion_rows(
    samples: Samples, prompts: list[str], responses: list[str], samples_per_prompt: int, count: int
) -> list[dict[str, object]]:
    """The first completion of each of the first `count` prompts, with its scores."""
    return [
        {
            "prompt": prompts[i],
            "completion": responses[i],
            "reward": round(samples.reward[i].item(), 4),
            "gold": None if samples.gold is None else round(samples.gold[i].item(), 4),
            "finished": bool(samples.finished[i]),
        }
        for i in range(0, min(len(responses), count * samples_per_prompt), samples_per_prompt)
    ]


if __name__ == "__main__":
    main()
