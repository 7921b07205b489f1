"""Score what the RL runs of an iteration answered along their way: reward, gold, KL, diversity.

It writes one JSON file with `trajectories`, a row for each member, step and kind of weights, and
`prompts`, the values of every prompt, which pair one run with another. Next in reading order:
warpflow.evaluation.trajectories.score_trajectory.
"""

from __future__ import annotations

import warpflow.quick_start  # noqa: F401  # first: see there

import json
from collections.abc import Sequence
from pathlib import Path

from warpflow.cli import parse_arguments
from warpflow.data.files import read_rows
from warpflow.evaluation.task import JudgeArguments, load_scorers
from warpflow.evaluation.trajectories import score_trajectory
from warpflow.lm.models import pick_device
from warpflow.settings.base import Count, section


@section
class Arguments:
    """Arguments of the command line beside those of the scorers."""

    runs: list[str]
    """The folders of completions.jsonl, one for each member."""
    members: list[int]
    """Their numbers."""
    out: str
    """The JSON file to write."""
    batch_size: Count = 256
    """The number of completions that are scored together."""


def main(argv: Sequence[str] | None = None) -> None:
    arguments, given = parse_arguments(__doc__, argv, Arguments, JudgeArguments)
    scorers = load_scorers(given)
    document: dict[str, list[dict[str, object]]] = {"trajectories": [], "prompts": []}
    for member, run in zip(arguments.members, arguments.runs, strict=True):
        tables = score_trajectory(
            read_rows(f"{run}/completions.jsonl"),
            scorers.eval_prompts,
            scorers.reward,
            scorers.golds,
            scorers.tokenizer,
            arguments.batch_size,
            pick_device(),
        )
        for name, rows in zip(document, tables, strict=True):
            document[name] += [{"member": member} | row for row in rows]
    Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
