"""Preferences in two shares, texts of held-out prompts left out, pairs that share no text."""

import random

import pytest

from warpflow.data.preferences import share_of_preferences
from warpflow.data.prepare import begins_with, pair_by_label, without_eval_texts

ROWS = [
    {"prompt": f"p{i % 150}", "chosen": f"c{i}", "rejected": f"r{i}"}
    for i in range(600)  # four pairs of each prompt
]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_shares_are_apart_and_together_all(share: float) -> None:
    gold, proxy = (share_of_preferences(ROWS, share, 0, held_out) for held_out in (True, False))
    assert sorted(row["chosen"] for row in gold + proxy) == sorted(row["chosen"] for row in ROWS)
    assert not {row["prompt"] for row in gold} & {row["prompt"] for row in proxy}
    # Four standard deviations of 150 coins, in pairs.
    assert len(gold) == pytest.approx(600 * share, abs=4 * 4 * (150 * share * (1 - share)) ** 0.5)


def test_another_seed_gives_other_shares_and_a_larger_share_adds_to_a_smaller_one() -> None:
    def chosen(share: float, seed: int) -> set[str]:
        return {row["chosen"] for row in share_of_preferences(ROWS, share, seed, True)}

    assert chosen(0.5, 0) != chosen(0.5, 1)
    assert chosen(0.3, 0) < chosen(0.5, 0)


def test_pairs_of_labelled_texts_share_no_text_across_the_shares() -> None:
    """There are twice as many preferred texts as others, so that each of the others is in two
    pairs."""
    texts = [f"t{i}" for i in range(300)]
    labels = [i % 3 > 0 for i in range(300)]
    pairs = pair_by_label(texts, labels, random.Random(0))
    uses = [pair["rejected"] for pair in pairs]
    assert {uses.count(text) for text in uses} == {2}
    gold, proxy = (share_of_preferences(pairs, 0.5, 0, held_out) for held_out in (True, False))
    for side in ("chosen", "rejected"):
        assert not {row[side] for row in gold} & {row[side] for row in proxy}
    assert gold and proxy


def test_texts_that_begin_with_a_held_out_prompt_are_dropped_and_no_others() -> None:
    evaluation = [{"prompt": "the film is"}, {"prompt": "a"}]
    rows = [
        {"prompt": "", "completion": text}
        for text in ("the film is good", "the  film\nis", "the film isn't", "the film", "a b", "ab")
    ]
    rows += [{"prompt": "the film", "completion": " is bad"}]
    kept = without_eval_texts(rows, ["completion"], evaluation)
    assert [row["completion"] for row in kept] == ["the film isn't", "the film", "ab"]


def test_a_pair_goes_where_either_text_begins_so_and_messages_where_they_are_the_same() -> None:
    evaluation = [{"prompt": "a b"}]
    pairs = [
        {"prompt": "", "chosen": "a b c", "rejected": "x"},
        {"prompt": "", "chosen": "x", "rejected": "a b"},
        {"prompt": "", "chosen": "x", "rejected": "y"},
    ]
    assert without_eval_texts(pairs, ["chosen", "rejected"], evaluation) == pairs[2:]
    question = [{"role": "user", "content": "a b"}]
    begins = begins_with([{"prompt": question}])
    assert begins(question, "any") and not begins([{**question[0], "content": "a"}], "any")
