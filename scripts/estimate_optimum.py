"""Estimate the best reward at each KL to SFT from SFT samples. All policies are measured by it.

It writes one CSV file: the optimal KL–reward front (kind `optimum`, a row per β) and best-of-n
(kind `best_of_n`, a row per n). Next in reading order: warpflow.evaluation.optimum.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import logging
from collections.abc import Sequence
from pathlib import Path

from warpflow.cli import parse_arguments
from warpflow.evaluation.optimum import OptimumSettings, optimum_table, reliable_front
from warpflow.evaluation.sft_samples import score_samples
from warpflow.evaluation.task import JudgeArguments, load_judges
from warpflow.settings.base import section


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    out: str
    """The CSV file to write."""
    seed: int
    """The base seed."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, given, settings = parse_arguments(
        __doc__, argv, Arguments, JudgeArguments, OptimumSettings
    )
    judges = load_judges(given, settings.max_new_tokens)
    scores = score_samples(
        judges.sft,
        [judges.reward, *judges.golds.values()],
        judges.eval_prompts,
        settings,
        eos_ids=judges.eos_ids,
        pad_id=judges.tokenizer.pad_token_id,
        seed=arguments.seed,
    )
    golds = dict(zip(judges.golds, scores[1:], strict=True))
    table = optimum_table(scores[0], golds, settings)
    end = reliable_front(table).iloc[-1]
    logging.info(
        "%d prompts × %d samples: reliable up to KL %.3g, where β = %.3g gains %.3g over SFT",
        *scores.shape[1:],
        end.kl,
        end.beta,
        end.gain,
    )
    table.to_csv(Path(arguments.out), index=False)


if __name__ == "__main__":
    main()
