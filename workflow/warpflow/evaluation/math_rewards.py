"""A reward that can be verified: whether the answer to a problem of mathematics is right. Called as
`rewards` and `evaluate_policy.gold` are."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

LATEX = ("$", r"\(", r"\[", r"\boxed")  # what math-verify finds LaTeX by


def solves(
    completions: Sequence[str], columns: Sequence[Mapping[str, Any]], **_: object
) -> list[float | None]:
    """1 where the last answer in a completion equals column `answer` of the prompts' file as
    mathematics (``1/2`` and ``\\\\frac{1}{2}``, ``x + 1`` and ``1 + x``), else 0; None where the
    column holds nothing that can be read as such. By math-verify.

    Raises:
        KeyError: a row has no column `answer`. ModuleNotFoundError: math-verify is not installed.
    """
    verifier = math_verify()
    return [
        verify(verifier, str(row["answer"]), text)
        for text, row in zip(completions, columns, strict=True)
    ]


def verify(verifier: Any, answer: str, text: str) -> float | None:
    """The score of one completion. An answer without a sign of LaTeX is read as LaTeX all the
    same, since plain text would be read for its last number."""
    is_latex = any(sign in answer for sign in LATEX)
    right = verifier.parse(answer if is_latex else f"${answer}$")
    return float(verifier.verify(right, verifier.parse(text))) if right else None


@functools.cache
def math_verify() -> Any:
    """The module; it is loaded once."""
    try:
        return importlib.import_module("math_verify")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the reward warpflow.evaluation.math_rewards:solves needs a verifier: `pip install "
            "math-verify==0.9.0` (or the project's extra `math`)"
        ) from error
