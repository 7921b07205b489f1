"""Sets of answers to the same prompts, in AlpacaEval's format.

A file is a list of objects with `instruction` (text, or messages), `output`, and possibly more
columns; `generator` and `dataset` are AlpacaEval's. Answers that were sampled here also have
`finished` (EOS was sampled) and `columns` (the rest of the prompt's row).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warpflow.data.files import Row, read_rows, require_columns, require_whole, texts_of

OWN = ("instruction", "output", "finished", "columns")
KEY = "compare_answers"  # the config section whose files these are


@dataclass(frozen=True)
class Answer:
    """A prompt as its file has it (text or messages), an answer, and what else reward functions
    get."""

    prompt: Any
    text: str
    finished: bool
    columns: Row


def read_answers(path: str | Path) -> list[Answer]:
    """Return the answers of a file.

    Raises:
        ValueError: a column is missing, an output is no text, or an instruction has two answers.
    """
    rows = read_rows(path)
    require_columns(rows, ["instruction", "output"], path, KEY)
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row["output"], str):
            raise ValueError(
                f"{path}, row {number}: output must be text, got {row['output']!r:.80}"
            )
        for column in ("instruction", "output"):
            for text in texts_of(row[column]):
                require_whole(text, f"{path}, row {number}: {column}")
        first = seen.setdefault(prompt_key(row["instruction"]), number)
        if first != number:
            raise ValueError(
                f"{path}: rows {first} and {number} answer the same instruction, "
                f"{row['instruction']!r:.200}; expected one answer to each: leave one of them out"
            )
    return [
        Answer(
            row["instruction"],
            row["output"],
            row.get("finished", True),
            row.get("columns", {k: v for k, v in row.items() if k not in OWN}),
        )
        for row in rows
    ]


def write_answers(path: str | Path, answers: Sequence[Answer], generator: str) -> None:
    """Write a file that `read_answers`, and AlpacaEval itself, reads."""
    rows = [
        {
            "dataset": "prompts",
            "instruction": answer.prompt,
            "output": answer.text,
            "generator": generator,
            "finished": answer.finished,
            "columns": answer.columns,
        }
        for answer in answers
    ]
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    # Half a character in another column stays a JSON escape, as in the prompts' file.
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")


def prompt_key(prompt: Any) -> str:
    """Return a text that is equal for two prompts exactly where they are the same prompt."""
    return json.dumps(prompt, sort_keys=True)


def match_answers(
    sets: Mapping[str, Sequence[Answer]], count: int | None = None
) -> dict[str, list[Answer]]:
    """Return the sets in the order of the first set's prompts, so that rows have the same prompt.

    Args:
        sets: the sets by name, for messages.
        count: the number of prompts of the first set that are compared, the first ones. None
            compares all, and no set may have others.

    Raises:
        ValueError: the prompts differ. The message says how many, and which one first.
    """
    names = list(sets)
    wanted = [answer.prompt for answer in sets[names[0]][:count]]
    if count is not None and len(wanted) < count:
        raise ValueError(
            f"{names[0]} has {len(wanted)} answers, but {count} prompts are to be compared: lower "
            f"{KEY}.….prompts, or set it to null, which takes all"
        )
    matched = {}
    for name, answers in sets.items():
        by_prompt = {prompt_key(answer.prompt): answer for answer in answers}
        keys = [prompt_key(prompt) for prompt in wanted]
        lacking = [prompt for prompt, key in zip(wanted, keys, strict=True) if key not in by_prompt]
        others = [] if count is not None else [by_prompt[k].prompt for k in by_prompt.keys() - keys]
        if lacking or others:
            raise ValueError(describe_mismatch(names[0], name, len(wanted), lacking, others))
        matched[name] = [by_prompt[key] for key in keys]
    return matched


def describe_mismatch(
    reference: str, name: str, wanted: int, lacking: Sequence[Any], others: Sequence[Any]
) -> str:
    """Say how many prompts of two sets differ, and the first of them."""
    parts = [f"the prompts of {name} do not match those of {reference}:"]
    if lacking:
        parts.append(
            f"{len(lacking)} of {wanted} have no answer in {name}, first {lacking[0]!r:.200};"
        )
    if others:
        first = min(others, key=prompt_key)
        parts.append(f"{len(others)} are only in {name}, first {first!r:.200};")
    return " ".join(
        [*parts, "expected answers to the same instructions, word for word: mend the files"]
    )


def list_pairs(contestants: Sequence[str], which: str) -> list[tuple[str, str]]:
    """Return (A, B) of every comparison: `all` pairs, or the `first` contestant against each other
    one."""
    pairs = list(itertools.combinations(contestants, 2))
    return pairs if which == "all" else [pair for pair in pairs if pair[0] == contestants[0]]
