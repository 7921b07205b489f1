"""Evaluate policies: reward, gold, KL to SFT, length, diversity, and some of their completions.

    python scripts/evaluate_front.py --sft A --data D --rewards '{"reward_model": 1}' \\
        --reward_model R --max_prompt_tokens 16 --max_new_tokens 48 --temperature 0.9 --seed 0 \\
        --policy B --out b.json                      # a folder of weights
        --init A --policy B --eta 0.3 --out c.json   # a point of a front, composed in memory
        --points '[{"init": "A", "policy": "B", "eta": 0.3, "out": "c.json"}, …]'   # several

θ_sft, the reward model and the prompts are loaded once for all points, and the points of one front
are composed in one model. For each point it writes one JSON file as soon as the point is done:
`metrics` (a row of evaluations.csv), `completions` (a table to read) and `prompts` (values of every
prompt, which pair one policy with another). A point that cannot be evaluated is named at the end,
with exit status 1, and the others are kept.
Next in reading order: warpflow.evaluation.evaluate.evaluate.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from warpflow.cli import parse_arguments
from warpflow.evaluation.evaluate import (
    Samples,
    evaluate,
    gold_values,
    prompt_values,
    summarise,
    summarise_terms,
)
from warpflow.evaluation.task import JudgeArguments, Judges, load_judges
from warpflow.lm.texts import prompt_texts, response_texts
from warpflow.merging.points import Composer, load_point
from warpflow.pipeline.contents import write_atomically
from warpflow.settings.base import Eta, section
from warpflow.settings.evaluate_policy import EvaluationSettings

OUT_OF_MEMORY = (
    "out of memory: lower evaluate_policy.batch_size (the completions that are sampled together)"
)


@section
class Point:
    """A policy to evaluate: a folder of weights, or two of them and η."""

    policy: str
    """The checkpoint to evaluate, or the one at η = 1. A recipe is read too, with the parents that
    it names."""
    out: str
    """The JSON file to write."""
    init: str | None = None
    """The checkpoint at η = 0."""
    eta: Eta | None = None
    """η of the point (1 − η) · init + η · policy, together with init."""

    def __post_init__(self) -> None:
        if (self.init is None) != (self.eta is None):
            raise ValueError("init and eta: expected both or none of them")


@section
class Arguments:
    """Arguments of the command line beside the settings: one point, or several."""

    seed: int
    """The base seed, the same for every policy."""
    policy: str | None = None
    """The checkpoint to evaluate, or the one at η = 1."""
    out: str | None = None
    """The JSON file to write."""
    init: str | None = None
    """The checkpoint at η = 0."""
    eta: Eta | None = None
    """η of the point, together with init."""
    points: str | None = None
    """A JSON list of objects with the keys policy, out, init and eta, in place of these flags."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, given, settings = parse_arguments(
        __doc__, argv, Arguments, JudgeArguments, EvaluationSettings
    )
    try:
        points = read_points(arguments)
    except (TypeError, ValueError) as error:
        sys.exit(f"evaluate_front: {error}")
    judges = load_judges(given, settings.max_new_tokens)
    failed = list(evaluate_points(points, judges, settings, arguments.seed))
    if failed:
        sys.exit("\n".join([f"{len(failed)} of {len(points)} points failed:", *failed]))


def read_points(arguments: Arguments) -> list[Point]:
    """Return the points that the command line names. Raises ValueError where there is none or it is
    wrong."""
    if arguments.points is not None:
        return [Point(**point) for point in json.loads(arguments.points)]
    if arguments.policy is None or arguments.out is None:
        raise ValueError("expected --policy and --out, or --points")
    return [Point(arguments.policy, arguments.out, arguments.init, arguments.eta)]


def evaluate_points(
    points: Sequence[Point], judges: Judges, settings: EvaluationSettings, seed: int
) -> Iterator[str]:
    """Evaluate each point and write its file. Yield what went wrong with those that failed."""
    composers: dict[tuple[str, str], Composer] = {}
    for point in points:
        try:
            document = evaluation(load(point, composers), judges, settings, seed)
        except (ValueError, OSError) as error:
            yield f"- {point.out}: {error}"
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            sys.exit(f"{point.out}: {OUT_OF_MEMORY}: {error}")
        else:
            text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
            write_atomically(Path(point.out), text.encode())  # a kill leaves all of it or nothing
            logging.info("%s: done", point.out)


def load(point: Point, composers: dict[tuple[str, str], Composer]) -> PreTrainedModel:
    """Return the model of a point, valid until the next one is loaded.

    Args:
        composers: the composer of the current front, by its parents. It is kept from point to
            point.
    """
    if point.init is None or point.eta is None:
        return load_point(point.policy)
    parents = point.init, point.policy
    if parents not in composers:
        composers.clear()  # the last front's model is freed before this one is built
        composers[parents] = Composer(*parents)
    return composers[parents].compose(point.eta)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left. torch reports the latter only by its
    message."""
    is_said = "can't allocate memory" in str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or is_said


def evaluation(
    model: PreTrainedModel, judges: Judges, settings: EvaluationSettings, seed: int
) -> dict[str, object]:
    """Return the document of one policy."""
    samples = evaluate(
        model,
        judges.sft,
        judges.reward,
        judges.golds,
        judges.eval_prompts,
        settings,
        eos_ids=judges.eos_ids,
        pad_id=judges.tokenizer.pad_token_id,
        seed=seed,
    )
    prompts, responses = (
        [text for batch in samples.batch for text in texts(batch, judges.tokenizer)]
        for texts in (prompt_texts, response_texts)
    )
    each = settings.samples_per_prompt
    metrics = summarise(samples, responses, each)
    if len(judges.terms) > 1:
        metrics |= summarise_terms(samples, judges.terms, each)
    return {
        "metrics": metrics,
        "completions": completion_rows(samples, prompts, responses, each, settings.completions),
        "prompts": prompt_values(samples, each),
    }


def completion_rows(
    samples: Samples, prompts: list[str], responses: list[str], samples_per_prompt: int, count: int
) -> list[dict[str, object]]:
    """Return the first completion of each of the first `count` prompts, with its scores."""
    golds = gold_values(samples)
    return [
        {
            "prompt": prompts[i],
            "completion": responses[i],
            "reward": round(samples.reward[i].item(), 4),
            **{n: None if g is None else round(g[i].item(), 4) for n, g in golds.items()},
            "finished": bool(samples.finished[i]),
        }
        for i in range(0, min(len(responses), count * samples_per_prompt), samples_per_prompt)
    ]


if __name__ == "__main__":
    main()
