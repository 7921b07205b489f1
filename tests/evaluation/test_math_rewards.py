"""The verifiable reward."""

import sys

import pytest

from warpflow.evaluation.math_rewards import math_verify, solves
from warpflow.evaluation.rewards import load_function

PAIRS = [
    ("1/2", r"So it is $\frac{1}{2}$.", 1.0),
    (r"$\frac12$", "The answer is 0.5.", 1.0),
    ("1 + x", r"Hence \boxed{x+1}", 1.0),
    ("4", "It is 3.", 0.0),
    ("2", "I do not know.", 0.0),
    ("", "5", None),
]


@pytest.mark.parametrize(("answer", "completion", "score"), PAIRS)
def test_answers_are_compared_as_mathematics(
    answer: str, completion: str, score: float | None
) -> None:
    pytest.importorskip("math_verify")
    solver = load_function("warpflow.evaluation.math_rewards:solves")
    given = {"prompts": [""], "finished": [True], "columns": [{"answer": answer}]}
    assert solver(completions=[completion], **given) == [score]


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    math_verify.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install math-verify=="):
        solves(["1"], [{"answer": "1"}])
