"""Verdicts as sentences. No sentence says more than its interval does."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

# The first page shows these claims. They are found by the beginning of their names in verdicts.csv,
# and each has its topic. `1 same β` is left out, because the same β is not the same penalty.
TOPICS = {
    "1 envelopes": "EMA anchor",
    "2": "SLERP",
    "5 iteration": "Interpolation",
    "5 one run": "Interpolation of one run",
    "6 iteration": "Iterating",
    "6 diminishing": "Returns of iterating",
}
Row = Mapping[Any, Any]

ANSWERS = {"held": "yes", "did not hold": "no"}
BASELINES = {"above": "better", "below": "worse"}
NO_RUNS = (
    "With one replicate nothing is said of other runs of the same settings: the intervals are over "
    "the prompts of this one run. Set `replicates` to 3 or more for verdicts."
)


@dataclass(frozen=True)
class Sentence:
    """A verdict in words.

    Attributes:
        topic: what it is about. answer: yes, no, undecided, one run, not measured, or too few
            prompts. text: the sentence. details: what was compared.
    """

    topic: str
    answer: str
    text: str
    details: str


def verdict_sentences(verdicts: pd.DataFrame) -> Iterator[Sentence]:
    """Yield the main claims of verdicts.csv, each with estimate and interval, or why there is
    none."""
    for row in verdicts.to_dict("records"):
        topic = topic_of(str(row["claim"]))
        if topic is not None:
            yield verdict_sentence(topic, row)


def topic_of(claim: str) -> str | None:
    """Return the topic of a claim, or None where the page does not show it. Claims for other
    settings of the training name them after a comma, and so does the topic."""
    name, comma, changes = claim.partition(", ")
    for start, topic in TOPICS.items():
        if name == start or re.fullmatch(rf"{re.escape(start)} \d+", name):
            return f"{topic}{comma}{changes}"
    return None


def verdict_sentence(topic: str, row: Row) -> Sentence:
    """Return the sentence of one row of verdicts.csv."""
    statement, verdict = str(row["statement"]), str(row["verdict"])
    details = str(row["compared"])
    if verdict == "not measured":
        return Sentence(topic, verdict, f"Not measured here: {statement}.", details)
    numbers = with_interval(row)
    if numbers is None:
        return Sentence(
            topic, "undecided", f"No interval, so nothing is said: {statement}.", details
        )
    if verdict == "one run":
        side = "is above" if row["low"] > row["reference"] else "contains"
        side = "is below" if row["high"] < row["reference"] else side
        text = f"“{statement}”: {numbers} in this one run; the interval over its prompts {side} "
        return Sentence(topic, verdict, f"{text}{row['reference']:g}.", details)
    if verdict in ANSWERS:
        text = statement[0].upper() + statement[1:]
        text = text if verdict == "held" else f"Not so here: {statement}"
        return Sentence(topic, ANSWERS[verdict], f"{text}: {numbers}.", details)
    why = f"on both sides of {row['reference']:g}"
    if not row["low"] <= row["reference"] <= row["high"]:
        why = "which is too few prompts' to decide anything"
    return Sentence(
        topic, "undecided", f"Undecided whether {statement}: {numbers}, {why}.", details
    )


def merging_sentences(evaluations: pd.DataFrame, comparisons: pd.DataFrame) -> Iterator[Sentence]:
    """Say whether the merge of iteration 1 has more reward than one of its own runs, at equal KL.
    The run is that of the experiment whose only run is the base experiment's first one, where the
    group has it."""
    base = evaluations["experiment"].iloc[0]
    rows = evaluations[(evaluations["stage"] == "train_policy") & (evaluations["iteration"] == 1)]
    runs = {name: list(rows["policy"]) for name, rows in rows.groupby("experiment", sort=False)}
    singles = [name for name, own in runs.items() if name != base and own == runs[base][:1]]
    found = comparisons[
        comparisons["experiment"].isin(singles)
        & (comparisons["against"] == base)
        & (comparisons["against_iteration"] == 1)
        & (comparisons["measure"] == "mean reward")
    ]
    for row in found.to_dict("records"):
        # The table has the single run minus the base, but the sentence is about the base.
        turned = {"estimate": -row["estimate"], "low": -row["high"], "high": -row["low"]}
        verdicts = {"below": "held", "above": "did not hold"}
        statement = f"merging {len(runs[base])} runs gives a better front than one of them"
        yield verdict_sentence(
            "Merging",
            {
                **row,
                **turned,
                "statement": statement,
                "verdict": verdicts.get(row["result"], row["result"]),
                "reference": 0.0,
                "compared": f"reward of {base} − {row['experiment']}, iteration 1, {kl_range(row)}",
            },
        )


def baseline_sentences(comparisons: pd.DataFrame) -> Iterator[Sentence]:
    """Compare each experiment's last front with the base experiment's, by the mean reward at equal
    KL and by each gold reward, from comparisons.csv."""
    base = comparisons["against"].iloc[0] if len(comparisons) else None
    means = comparisons[comparisons["measure"].str.startswith("mean ", na=False)]
    for row in means[means["against"] == base].to_dict("records"):
        yield baseline_sentence(row)


def baseline_sentence(row: Row) -> Sentence:
    """Return the sentence of one row of comparisons.csv."""
    name = f"{row['experiment']}, iteration {row['iteration']}"
    base = f"{row['against']}, iteration {row['against_iteration']}"
    quantity, result = str(row["measure"]).removeprefix("mean "), str(row["result"])
    numbers = with_interval(row)
    if numbers is None:
        return Sentence(name, result, f"Not compared with {base}: {result}.", "")
    text = f"{quantity} at equal KL, minus that of {base}: {numbers}"
    if result in BASELINES:
        return Sentence(name, BASELINES[result], f"{text}.", kl_range(row))
    tail = " in this one run" if result == "one run" else ""
    return Sentence(name, result, f"{text}{tail}.", kl_range(row))


def kl_range(row: Row) -> str:
    """Return the KLs of a comparison, in words."""
    if math.isnan(row["kl_low"]):
        return ""
    if row["kl_low"] == row["kl_high"]:
        return f"at KL {row['kl_low']:.3g}"
    return f"over KL {row['kl_low']:.3g} to {row['kl_high']:.3g}"


def with_interval(row: Row) -> str | None:
    """Write ``+0.11 [+0.08, +0.13]``, or return None where an end is missing or not finite."""
    values = [row["estimate"], row["low"], row["high"]]
    if not all(math.isfinite(value) for value in values):
        return None
    estimate, low, high = (signed(value) for value in values)
    return f"{estimate} [{low}, {high}]"


def signed(value: float) -> str:
    """Write a number with its sign, to two decimals or three digits, and never −0."""
    text = f"{value:+.2f}" if 0.095 <= abs(value) < 100 else f"{value:+.3g}"
    return text.replace("-", "−") if float(text) else "0"
