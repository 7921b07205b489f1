"""Rewards that say nothing about the text."""

import numpy as np

from warpflow.evaluation.noise import normal
from warpflow.evaluation.rewards import load_function


def test_noise_is_standard_normal_and_the_same_for_the_same_text() -> None:
    prompts = [f"prompt {i % 100}" for i in range(10_000)]
    completions = [f"completion {i}" for i in range(10_000)]
    values = np.array(
        load_function("warpflow.evaluation.noise:normal")(
            prompts=prompts, completions=completions, finished=[], columns=[]
        )
    )
    assert abs(values.mean()) < 0.04 and abs(values.std() - 1) < 0.03
    shares = [np.mean(values < z) for z in (-1.645, 0, 1.645)]
    np.testing.assert_allclose(shares, [0.05, 0.5, 0.95], atol=0.015)
    assert normal(prompts[5:7], completions[5:7]) == values[5:7].tolist()


def test_neighbouring_texts_have_nothing_in_common() -> None:
    """Neither the prompt nor a part of the completion says anything about the reward."""
    texts = [f"good film {i}" for i in range(4000)]
    a = normal(["p"] * 4000, texts)
    for other in (normal(["q"] * 4000, texts), normal(["p"] * 4000, [f"{t} ." for t in texts])):
        assert abs(np.corrcoef(a, other)[0, 1]) < 0.06


def test_equal_completions_of_a_batch_have_rewards_of_their_own() -> None:
    first, second, third = normal(["p", "p", [{"role": "user"}]], ["x", "x", "x"])
    assert len({first, second, third}) == 3
    assert normal(["p", "p"], ["x", "x"]) == [first, second]
