"""A verifiable reward: whether the answer to a problem of mathematics is right.

It is called as `rewards` and `evaluate_policy.gold` are.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

LATEX = ("$", r"\(", r"\[", r"\boxed")  # math-verify finds LaTeX by these


def solves(
    completions: Sequence[str], columns: Sequence[Mapping[str, Any]], **_: object
) -> list[float | None]:
    """Return 1 where math-verify finds the last answer in a completion equal to column `answer` of
    the prompts' file (``1/2`` and ``\\frac{1}{2}``, ``x + 1`` and ``1 + x``), else 0. Return None
    where the column holds nothing that it can read.

    Raises:
        KeyError: a row has no column `answer`. ModuleNotFoundError: math-verify is not installed.
    """
    verifier = math_verify()
    return [
        verify(verifier, str(row["answer"]), text)
        for text, row in zip(completions, columns, strict=True)
    ]


def verify(verifier: Any, answer: str, text: str) -> float | None:
    """Return the score of one completion. An answer without a sign of LaTeX is still read as LaTeX,
    because of plain text only the last number would be read."""
    is_latex = any(sign in answer for sign in LATEX)
    right = verifier.parse(answer if is_latex else f"${answer}$")
    return float(verifier.verify(right, verifier.parse(text))) if right else None


@functools.cache
def math_verify() -> Any:
    """Return the module math_verify, which is loaded once."""
    try:
        return importlib.import_module("math_verify")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the reward warpflow.evaluation.math_rewards:solves needs a verifier: `pip install "
            "math-verify==0.9.0` (or the project's extra `math`)"
        ) from error
