"""Grade every pair of contestants by every judge.

Win rates and graded scores go to side_by_side.csv, and what each judge did and cost to judges.csv.

Next in reading order: warpflow.side_by_side.grades.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from warpflow.cli import parse_arguments
from warpflow.settings.base import section
from warpflow.side_by_side.answers import list_pairs, match_answers, read_answers
from warpflow.side_by_side.grades import side_by_side_table


@section
class Arguments:
    """Arguments of the command line beside the settings."""

    names: list[str]
    """The names of the contestants."""
    answers: list[str]
    """The contestants' files of answers, in the same order."""
    judges: list[str]
    """The names of the judges."""
    judgements: list[str]
    """The judges' files of judgements, in the same order."""
    out: str
    """The folder for side_by_side.csv and judges.csv."""
    seed: int
    """The seed of the bootstrap."""
    thresholds: list[float]
    """The largest differences of a tie, of slightly better, and of better."""
    confidence: float
    """The level of the intervals."""
    pairs: str = "all"
    """Which pairs are judged: all, or the first contestant against each other one."""
    prompts: int | None = None
    """The number of prompts that are taken, the first ones."""


def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse_arguments(__doc__, argv, Arguments)
    files = zip(arguments.names, arguments.answers, strict=True)
    answers = match_answers({name: read_answers(path) for name, path in files}, arguments.prompts)
    judgements = {
        name: json.loads(Path(path).read_text(encoding="utf-8"))
        for name, path in zip(arguments.judges, arguments.judgements, strict=True)
    }
    table = side_by_side_table(
        judgements,
        answers,
        pairs=list_pairs(arguments.names, arguments.pairs),
        thresholds=arguments.thresholds,
        confidence=arguments.confidence,
        seed=arguments.seed,
    )
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "side_by_side.csv", index=False, float_format="%.6g")
    judges = pd.DataFrame([judge_row(name, document) for name, document in judgements.items()])
    judges.to_csv(out / "judges.csv", index=False)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    print(judges.to_string(index=False))


def judge_row(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of judges.csv. A failed judgement is shown with its reason."""
    failed = document.get("failed", [])
    row: dict[str, Any] = {
        "judge": name,
        "kind": "verdicts" if "verdicts" in document else "scores",
    }
    row |= {"failed": len(failed), "first_failure": failed[0]["why"] if failed else ""}
    return row | document.get("usage", {})


if __name__ == "__main__":
    main()
