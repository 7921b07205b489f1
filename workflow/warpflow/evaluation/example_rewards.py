"""Rewards of text to try things with: the sentiment of a lexicon, and rules for an answer to an
instruction. Each is called as `rewards` and `evaluate_policy.gold` are."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Sequence

from warpflow.lm.prompts import Prompt

FEW, MANY = 8, 40  # words of an answer that `answers_instruction` finds neither short nor long
LEAST = 4  # letters of an instruction's word that says what it is about


def vader(prompts: Sequence[Prompt], completions: Sequence[str], **_: object) -> list[float]:
    """Sentiment of each text from −1 to 1, by the words of a lexicon (VADER, Hutto and Gilbert
    2014): the compound score of prompt and completion together, of an answer to messages alone.

    Raises:
        ModuleNotFoundError: vaderSentiment is not installed; says how.
    """
    score = vader_scorer()
    return [
        score(prompt + completion if isinstance(prompt, str) else completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


@functools.cache
def vader_scorer() -> Callable[[str], float]:
    """The lexicon's score of a text; it is read once."""
    try:
        module = importlib.import_module("vaderSentiment.vaderSentiment")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the reward warpflow.evaluation.example_rewards:vader needs a lexicon: `pip install "
            "--no-deps vaderSentiment==3.3.2`"
        ) from error
    analyser = module.SentimentIntensityAnalyzer()
    return lambda text: float(analyser.polarity_scores(text)["compound"])


def answers_instruction(
    prompts: Sequence[Prompt], completions: Sequence[str], finished: Sequence[bool], **_: object
) -> list[float]:
    """From 0 to 1, the mean of three rules: the answer ends by itself, has FEW to MANY words, and
    takes up words of the instruction. None of them says whether it is right."""
    return [
        (float(ended) + of_length(len(text.split())) + words_taken(last_text(prompt), text)) / 3
        for prompt, text, ended in zip(prompts, completions, finished, strict=True)
    ]


def of_length(words: int) -> float:
    """1 from FEW to MANY words; it falls to 0 at none, and at twice MANY."""
    return max(0.0, min(1.0, words / FEW, 2 - words / MANY))


def words_taken(instruction: str, answer: str) -> float:
    """Share of the instruction's longer words that the answer has; 1 where it has no such word."""
    asked, said = (set(re.findall(r"\w+", text.lower())) for text in (instruction, answer))
    asked = {word for word in asked if len(word) >= LEAST}
    return len(asked & said) / len(asked) if asked else 1.0


def last_text(prompt: Prompt) -> str:
    """What the user asks: the prompt, or the last of its messages."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
