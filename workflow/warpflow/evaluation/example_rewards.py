"""Example rewards: the sentiment of a lexicon, and rules for an answer to an instruction.

Each is called as `rewards` and `evaluate_policy.gold` are.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Sequence

from warpflow.lm.prompts import Prompt

FEW, MANY = 8, 40  # an answer of so many words is neither short nor long
LEAST = 4  # an instruction's word of so many letters says what it is about


def vader(prompts: Sequence[Prompt], completions: Sequence[str], **_: object) -> list[float]:
    """Return the sentiment of each text from −1 to 1, by a lexicon (VADER, Hutto and Gilbert 2014).
    It is the compound score of prompt and completion together, or of the answer alone where the
    prompt is messages.

    Raises:
        ModuleNotFoundError: vaderSentiment is not installed. The message says how to install it.
    """
    score = vader_scorer()
    return [
        score(prompt + completion if isinstance(prompt, str) else completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


@functools.cache
def vader_scorer() -> Callable[[str], float]:
    """Return a function that scores a text by the lexicon, which is read once."""
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
    """Return the mean of three rules, from 0 to 1: the answer ends by itself, has FEW to MANY
    words, and takes up words of the instruction. No rule says whether the answer is right."""
    return [
        (float(ended) + of_length(len(text.split())) + words_taken(last_text(prompt), text)) / 3
        for prompt, text, ended in zip(prompts, completions, finished, strict=True)
    ]


def of_length(words: int) -> float:
    """Return 1 from FEW to MANY words. The value falls to 0 at no words, and at twice MANY."""
    return max(0.0, min(1.0, words / FEW, 2 - words / MANY))


def words_taken(instruction: str, answer: str) -> float:
    """Return the share of the instruction's longer words that the answer has, or 1 where it has
    none."""
    asked, said = (set(re.findall(r"\w+", text.lower())) for text in (instruction, answer))
    asked = {word for word in asked if len(word) >= LEAST}
    return len(asked & said) / len(asked) if asked else 1.0


def last_text(prompt: Prompt) -> str:
    """Return what the user asks: the prompt, or the last of its messages."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
