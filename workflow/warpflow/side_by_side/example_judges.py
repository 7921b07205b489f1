"""Two judges to try `compare_answers` with (config/competitors.yaml). Each prefers something about
the text that is easy to count, and they disagree. Neither says which answer is better."""

from __future__ import annotations

from collections.abc import Sequence

MOST_MARKS = 10  # an answer counts no more marks than these


def structure(completions: Sequence[str], **_: object) -> list[float]:
    """Count list items and bold words of each answer, up to `MOST_MARKS`. Its length does not
    count."""
    return [
        min(
            float(MOST_MARKS),
            sum(text.count(mark) for mark in ("\n- ", "\n* ", "\n1.")) + text.count("**") / 2,
        )
        for text in completions
    ]


def overlap(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """Return the share of the instruction's words that each answer takes up."""
    shares = []
    for prompt, text in zip(prompts, completions, strict=True):
        words = set(prompt.lower().split())
        shares.append(len(words & set(text.lower().split())) / max(1, len(words)))
    return shares
