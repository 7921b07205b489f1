"""The example rewards: what raises and lowers them."""

import importlib
import sys

import pytest

from warpflow.evaluation import example_rewards
from warpflow.evaluation.example_rewards import answers_instruction, of_length, vader


def test_the_lexicon_reads_prompt_and_completion_and_of_messages_the_answer() -> None:
    pytest.importorskip("vaderSentiment", reason="pip install --no-deps vaderSentiment==3.3.2")
    texts = vader(["a film that", "a dull film"], [" i loved .", " i loved ."])
    assert 1 > texts[0] > texts[1]
    (bad,) = vader(["the film"], [" is a boring , awful mess ."])
    assert -1 <= bad < 0
    question = [{"role": "user", "content": "terrible, awful, boring"}]
    assert vader([question], ["I love it."])[0] == vader([""], ["I love it."])[0] > 0


def test_a_missing_lexicon_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    example_rewards.vader_scorer.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps vaderSentiment=="):
        vader(["a"], ["b"])
    assert importlib.import_module("warpflow.evaluation.example_rewards")


def test_each_rule_of_an_answer_counts_a_third() -> None:
    question = [{"role": "user", "content": "Name the capital of France, please."}]
    good = "The capital of France is Paris, please note that well."
    scores = answers_instruction(
        [question] * 4,
        [good, good, "France", "one two three four five six seven eight"],
        [True, False, True, True],
    )
    taken = 3 / 4  # capital, France and please, not name
    assert scores[0] == pytest.approx((1 + 1 + taken) / 3)
    assert scores[1] == pytest.approx(scores[0] - 1 / 3), "it did not end"
    assert scores[2] == pytest.approx((1 + 1 / 8 + 1 / 4) / 3)
    assert scores[3] == pytest.approx(2 / 3), "none of its words"


def test_length_has_a_plateau_and_no_cliff() -> None:
    assert [of_length(n) for n in (0, 4, 8, 40, 60, 80, 500)] == [0, 0.5, 1, 1, 0.5, 0, 0]
