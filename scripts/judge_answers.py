"""Let one judge judge all contestants of a comparison: scores of answers, or verdicts on pairs.

It writes one JSON file: `scores` by contestant, or `verdicts`, `failed` and `usage`. Next in
reading order: warpflow.side_by_side.scores, warpflow.side_by_side.chat_judge.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warpflow.cli import parse_arguments
from warpflow.evaluation.rewards import load_function
from warpflow.lm.classifiers import load_classifier
from warpflow.lm.models import load_reward_tokenizer, load_tokenizer
from warpflow.settings.base import section
from warpflow.side_by_side.answers import Answer, list_pairs, match_answers, read_answers
from warpflow.side_by_side.chat_judge import ChatSettings, judge_pairs
from warpflow.side_by_side.scores import function_scores, model_scores


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    names: list[str]
    """The names of the contestants."""
    answers: list[str]
    """The contestants' files of answers, in the same order."""
    judge: str
    """The judge as JSON: function, reward_model or chat."""
    out: str
    """The JSON file to write."""
    pairs: str = "all"
    """Which pairs are judged: all, or the first contestant against each other one."""
    prompts: int | None = None
    """The number of prompts that are taken, the first ones."""
    reward_model: str | None = None
    """The checkpoint of a reward model."""
    sft: str | None = None
    """θ_sft, where the reward model is the run's own."""
    as_messages: bool = False
    """Whether prompts that are text are a user's messages."""
    batch_size: int = 64
    """The number of answers that are scored together."""
    cache: str = "judgements.jsonl"
    """The file for a chat judge's replies; all files of its folder are read."""


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(__doc__, argv, Arguments)
    files = zip(arguments.names, arguments.answers, strict=True)
    answers = match_answers({name: read_answers(path) for name, path in files}, arguments.prompts)
    Path(arguments.out).write_text(
        json.dumps(judge(answers, arguments), indent=1) + "\n", encoding="utf-8"
    )


def judge(answers: dict[str, list[Answer]], arguments: Arguments) -> dict[str, Any]:
    """Return what the judge says about matched answers, by contestant."""
    given = json.loads(arguments.judge)
    if "chat" in given:
        pairs = list_pairs(arguments.names, arguments.pairs)
        return judge_pairs(ChatSettings(**given["chat"]), answers, pairs, Path(arguments.cache))
    if "function" in given:
        name = given["function"]
        function = load_function(name)
        return {"scores": {who: function_scores(function, name, a) for who, a in answers.items()}}
    path = arguments.reward_model or given["reward_model"]
    model, tokenizer = load_classifier(path), load_reward_tokenizer(path)
    reads_policy_ids = bool(
        arguments.sft and load_tokenizer(arguments.sft).get_vocab() == tokenizer.get_vocab()
    )
    scores = {
        who: model_scores(
            model,
            tokenizer,
            rows,
            reads_policy_ids=reads_policy_ids,
            as_messages=arguments.as_messages,
            batch_size=arguments.batch_size,
        )
        for who, rows in answers.items()
    }
    return {"scores": scores}


if __name__ == "__main__":
    main()
