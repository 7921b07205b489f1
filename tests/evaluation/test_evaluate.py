"""Evaluation: standard errors, diversity, summaries; KL of a policy to itself."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from statistics import fmean, stdev

import pytest
import torch
from conftest import BOS, EOS, PAD, MakeModel, Perturb
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from warpflow.evaluation.evaluate import (
    Samples,
    distinct_n,
    distinct_shares,
    entropy_per_token,
    evaluate,
    mean_and_error,
    pass_at_k,
    prompt_values,
    self_similarity,
    summarise,
    summarise_terms,
)
from warpflow.evaluation.sample import completion_rows, kls_and_entropy, sample_and_measure
from warpflow.lm import log_probs, scoring
from warpflow.lm.fast import packing
from warpflow.lm.log_probs import Completions
from warpflow.settings.evaluate_policy import EvaluationSettings

PROMPTS = [[BOS, 5], [BOS, 6, 7, 8], [BOS], [BOS, 9, 10]]
SETTINGS = EvaluationSettings(
    prompts=3, samples_per_prompt=2, batch_size=4, temperature=0.8, max_new_tokens=5
)


def count_tokens(batch: Completions) -> Tensor:
    return batch.lengths.float()


def evaluate_on(
    policy: PreTrainedModel,
    sft: PreTrainedModel,
    seed: int = 0,
    gold: Callable[[Completions], Tensor] | None = None,
) -> Samples:
    golds = {"gold": gold} if gold else {}
    return evaluate(
        policy, sft, count_tokens, golds, PROMPTS, SETTINGS, eos_ids=[EOS], pad_id=PAD, seed=seed
    )


def test_standard_errors_are_over_prompts() -> None:
    """Completions of one prompt are not independent: copies of them must not lower the error."""
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    mean, error = mean_and_error(values, 1)
    assert (mean, error) == pytest.approx((4.0, math.sqrt(38 / 3) / 2))
    copies = values.repeat_interleave(3)
    assert mean_and_error(copies, 3) == pytest.approx((mean, error))
    assert mean_and_error(copies, 1)[1] < error


def test_standard_error_of_one_prompt_is_unknown() -> None:
    mean, error = mean_and_error(torch.tensor([1.0, 3.0]), 2)
    assert mean == 2
    assert math.isnan(error)


def test_standard_error_covers_the_mean_as_often_as_it_says() -> None:
    """68 % of intervals of one error hold the true mean of prompts with common effects."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        prompts = torch.randn(50, 1, generator=generator)
        values = prompts + 0.5 * torch.randn(50, 4, generator=generator)
        mean, error = mean_and_error(values.flatten(), 4)
        held += abs(mean) < error
    assert 0.6 < held / 400 < 0.76


def test_distinct_n() -> None:
    assert distinct_n(["a b c", "d e"], 2) == 1
    assert distinct_n(["a b a b a b"], 2) == pytest.approx(2 / 5)
    assert distinct_n(["a b", "a b"], 2) == 0.5
    assert distinct_n(["a", ""], 2) == 0
    assert distinct_n(["a b", "b c"], 2) == 1, "no bigram across two texts"


def bigram_texts(count: int, rng: random.Random, words: int = 20) -> list[str]:
    """Return texts of one bigram each, uniform over those of so many words."""
    return [f"{rng.randrange(words)} {rng.randrange(words)}" for _ in range(count)]


def expected_share(draws: int, kinds: int = 400) -> float:
    """Return the expected share of distinct ones among uniform draws of so many kinds."""
    return kinds * (1 - (1 - 1 / kinds) ** draws) / draws


def test_distinct_bigrams_do_not_depend_on_the_number_of_completions() -> None:
    """One policy, measured along the way (200 completions) and at its end (400 prompts × 2): the
    share of all texts falls by half only with their number, that of equally many does not."""
    rng = random.Random(0)
    of_all: dict[int, list[float]] = {200: [], 800: []}
    of_equal: dict[int, list[float]] = {200: [], 800: []}
    for _ in range(100):
        for count, each in ((200, 1), (800, 2)):
            texts = bigram_texts(count, rng)
            shares = distinct_shares(texts, each)
            assert shares["distinct_completions"] == 100
            of_all[count].append(distinct_n(texts, 2))
            of_equal[count].append(shares["distinct_2"])
    for count in (200, 800):
        assert fmean(of_all[count]) == pytest.approx(expected_share(count), abs=0.01)
        assert fmean(of_equal[count]) == pytest.approx(expected_share(100), abs=0.01)
    assert fmean(of_all[200]) > 1.7 * fmean(of_all[800])


def test_distinct_bigrams_are_those_of_each_prompts_first_completion() -> None:
    texts = [f"{prompt} x" if first else "y y" for prompt in range(120) for first in (True, False)]
    shares = distinct_shares(texts, 2)
    assert (shares["distinct_2"], shares["distinct_completions"]) == (1, 100)
    assert distinct_shares(texts[:10], 2)["distinct_completions"] == 5


def test_self_similarity_does_not_depend_on_the_number_of_completions() -> None:
    """Two texts of one bigram are alike with the chance that they are equal, here 1 in 4."""
    rng = random.Random(0)
    for prompts, each in ((100, 2), (400, 2), (100, 8)):
        texts = [bigram_texts(prompts * each, rng, words=2) for _ in range(100)]
        similarities = [self_similarity(some, each) or 0.0 for some in texts]
        assert fmean(similarities) == pytest.approx(1 / 4, abs=0.02)


def test_self_similarity() -> None:
    assert self_similarity(["a b c", "a b c", "x y", "z w"], 2) == 0.5
    assert self_similarity(["a b c", "c b a"], 2) == 0
    assert self_similarity(["a b c", "a b d"], 2) == pytest.approx(1 / 3)
    assert self_similarity(["a", ""], 2) == 1, "two texts without bigrams are equal in them"
    assert self_similarity(["a b"], 1) is None


def test_same_seed_same_samples(make_model: MakeModel, perturb: Perturb) -> None:
    sft = make_model("gpt2")
    policy = perturb(sft, 1)
    first, again, other = (evaluate_on(policy, sft, seed) for seed in (1, 1, 2))
    assert torch.equal(first.kl, again.kl)
    assert torch.equal(first.reward, again.reward)
    assert not torch.equal(first.kl, other.kl)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_kl_of_a_policy_to_itself_is_zero(make_model: MakeModel, name: str) -> None:
    samples = evaluate_on(make_model(name), make_model(name))
    assert (samples.kl == 0).all()
    assert (samples.kl_exact == 0).all()


def test_kl_of_another_policy_is_positive(make_model: MakeModel, perturb: Perturb) -> None:
    sft = make_model("llama")
    samples = evaluate_on(perturb(sft, 1), sft)
    assert (samples.kl_exact > 0).all()
    assert samples.kl.min() < samples.kl_exact.mean() < samples.kl.max()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma3_text"])
def test_long_completions_are_evaluated_in_parts(
    make_model: MakeModel, perturb: Perturb, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are taken for two tokens at a time, where a row's are too many. They agree to
    rounding."""
    sft = make_model(name)
    policy = perturb(sft, 1)
    whole = evaluate_on(policy, sft)
    monkeypatch.setattr(log_probs, "LOGITS_AT_ONCE", 2 * 20)
    largest = [0]

    def note(module: Module, args: object, output: Tensor) -> None:
        largest[0] = max(largest[0], output.numel())

    batches = [replace(batch) for batch in whole.batch]
    policy.lm_head.register_forward_hook(note)
    for first, batch in enumerate(batches):
        values = kls_and_entropy(policy, sft, batch, SETTINGS.temperature)
        rows = slice(4 * first, 4 * first + 4)
        expected = [getattr(whole, key)[rows] for key in ("kl", "kl_exact", "entropy")]
        torch.testing.assert_close(list(values), expected, atol=2e-5, rtol=1e-4)
    assert largest[0] == 2 * 20


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma"])
@pytest.mark.parametrize("at_once", [2**25, 3 * 20])
def test_kls_of_tokens_side_by_side_are_those_of_the_librarys_rows(
    make_model: MakeModel,
    perturb: Perturb,
    name: str,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logits are taken at once, or for three tokens at a time. Prompts and completions differ in
    length."""
    sft = make_model(name)
    policy = perturb(sft, 1)
    (batch, *_) = evaluate_on(policy, sft).batch
    lengths = torch.tensor([[5], [3], [1], [4]])
    batch = replace(batch, is_response=torch.arange(5) < lengths)
    monkeypatch.setattr(packing, "LOGITS_AT_ONCE", at_once)
    used = []
    monkeypatch.setattr(
        scoring, "packed_logits", lambda *given: used.append(1) or packing.packed_logits(*given)
    )
    ours = kls_and_entropy(policy, sft, batch, SETTINGS.temperature, 2)
    assert len(used) == 2  # the policy's and the SFT policy's
    monkeypatch.setattr(scoring, "can_pack", lambda *given: False)
    theirs = kls_and_entropy(policy, sft, batch, SETTINGS.temperature, 2)
    assert len(used) == 2
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert (theirs[1] > 1e-3).all()


def test_parts_of_the_prompts_make_the_whole(make_model: MakeModel, perturb: Perturb) -> None:
    """Processes share them so, and one may have none."""
    sft = make_model("llama")
    policy = perturb(sft, 1)
    sizes = {"samples_per_prompt": 1, "batch_size": 2, "temperature": 0.9, "max_new_tokens": 4}
    given = {"eos_ids": [EOS], "pad_id": PAD, "seed": 0, **sizes}

    def rows(part: slice | None) -> list[dict[str, object]]:
        parts = sample_and_measure(policy, sft, PROMPTS, part=part, **given)
        return list(completion_rows(parts, part.start if part else 0))

    whole, last = rows(None), len(PROMPTS)
    joined = [row for part in (slice(0, 1), slice(1, 1), slice(1, last)) for row in rows(part)]
    assert [row["prompt"] for row in whole] == list(range(last))
    for one, other in zip(whole, joined, strict=True):
        for name in ("prompt", "ids", "finished"):
            assert one[name] == other[name], name
        for name in ("kl", "kl_exact", "entropy"):
            assert one[name] == pytest.approx(other[name], abs=1e-5)


def test_first_prompts_are_used_with_their_completions_adjacent(make_model: MakeModel) -> None:
    samples = evaluate_on(make_model("llama"), make_model("llama"), gold=lambda b: -count_tokens(b))
    rows = [
        ids[mask].tolist()
        for batch in samples.batch
        for ids, mask in zip(batch.prompt_ids, batch.is_prompt, strict=True)
    ]
    assert rows == [prompt for prompt in PROMPTS[:3] for _ in range(2)]
    assert len(samples.batch) == 2, "six completions in batches of four"
    assert torch.equal(samples.reward, samples.length)
    assert torch.equal(samples.golds["gold"], -samples.length)
    for values in (samples.kl, samples.kl_exact, samples.finished):
        assert values.shape == (6,)


def test_values_of_each_prompt_average_to_the_metrics(make_model: MakeModel) -> None:
    model = make_model("llama")
    samples = evaluate_on(model, model, gold=lambda batch: 2 * count_tokens(batch))
    values = prompt_values(samples, SETTINGS.samples_per_prompt)
    metrics = summarise(samples, [""] * 6, SETTINGS.samples_per_prompt)
    for name in ("reward", "gold", "kl", "kl_exact", "length"):
        of_prompts = values[name]
        assert of_prompts is not None and len(of_prompts) == 3
        assert sum(of_prompts) / 3 == pytest.approx(metrics[name], rel=1e-5)
    assert values["reward"] == (samples.length[0::2] + samples.length[1::2]).div(2).tolist()
    assert prompt_values(evaluate_on(model, model), SETTINGS.samples_per_prompt)["gold"] is None


def test_entropy_is_at_the_temperature(make_model: MakeModel) -> None:
    """Hot, it comes close to that of a uniform choice of the 20 words; cold, to 0."""
    model = make_model("llama")
    entropies = []
    for temperature in (100.0, 0.8, 0.01):
        settings = replace(SETTINGS, temperature=temperature)
        samples = evaluate(
            model, model, count_tokens, {}, PROMPTS, settings, eos_ids=[EOS], pad_id=PAD, seed=0
        )
        entropies.append(entropy_per_token(samples))
    assert entropies[0] == pytest.approx(math.log(20), rel=1e-3)
    assert entropies[0] > entropies[1] > entropies[2] >= 0
    assert entropies[2] < 0.1


def test_each_of_several_golds_has_columns_of_its_own(make_model: MakeModel) -> None:
    model = make_model("llama")
    golds = {f"gold.{n}": lambda batch, n=n: n * count_tokens(batch) for n in (2, 3)}
    samples = evaluate(
        model, model, count_tokens, golds, PROMPTS, SETTINGS, eos_ids=[EOS], pad_id=PAD, seed=0
    )
    row, values = summarise(samples, [""] * 6, 2), prompt_values(samples, 2)
    assert "gold" not in row, "there is no single one"
    for name in ("gold.2", "gold.3"):
        times = float(name[-1])
        assert row[name] == pytest.approx(times * samples.length.double().mean().item())
        assert row[f"{name}_se"] == pytest.approx(times * mean_and_error(samples.length, 2)[1])
        assert values[name] == pytest.approx([times * length for length in values["length"] or []])


@pytest.mark.parametrize("with_gold", [True, False])
def test_summary_with_and_without_gold(make_model: MakeModel, with_gold: bool) -> None:
    gold = (lambda batch: 2 * count_tokens(batch)) if with_gold else None
    samples = evaluate_on(make_model("llama"), make_model("llama"), gold=gold)
    row = summarise(samples, ["a b c", "a b d"] * 3, SETTINGS.samples_per_prompt)
    assert row["n_prompts"] == 3
    assert row["reward"] == row["length"] == samples.length.double().mean().item()
    assert row["kl"] == row["kl_exact"] == 0
    assert row["unfinished"] == pytest.approx(1 - samples.finished.float().mean().item())
    assert row["self_similarity"] == pytest.approx(1 / 3)
    assert row["distinct_2"] == pytest.approx(1 / 3), "of the first completions, all alike"
    assert row["distinct_completions"] == 3
    if with_gold:
        assert row["gold"] == 2 * samples.length.double().mean().item()
        assert row["gold_se"] == pytest.approx(2 * mean_and_error(samples.length, 2)[1])
    else:
        assert row["gold"] is None
        assert row["gold_se"] is None


def test_pass_at_k_counts_prompts_with_a_right_answer_among_k() -> None:
    """The test goes through all choices of k of the K completions."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, (6, 5), generator=generator).float()
    found = pass_at_k("gold", values.flatten(), 5)
    assert list(found) == [
        *("pass_at_2.gold", "pass_at_2.gold_se", "pass_at_4.gold", "pass_at_4.gold_se"),
        *("pass_at_5.gold", "pass_at_5.gold_se"),
    ]
    for k in (2, 4, 5):
        chosen = [fmean(max(part) for part in combinations(row, k)) for row in values.tolist()]
        assert found[f"pass_at_{k}.gold"] == pytest.approx(fmean(chosen))
        assert found[f"pass_at_{k}.gold_se"] == pytest.approx(stdev(chosen) / math.sqrt(6))


def test_pass_at_k_is_of_right_and_wrong_alone() -> None:
    assert pass_at_k("gold", torch.tensor([0.0, 1.0, 0.5, 1.0]), 2) == {}
    assert pass_at_k("gold", torch.tensor([0.0, 1.0]), 1) == {}
    assert pass_at_k("gold", torch.tensor([0.0, 1.0, 0.0, 0.0]), 2)["pass_at_2.gold"] == 0.5


def test_pass_at_k_is_beside_the_mean(make_model: MakeModel, perturb: Perturb) -> None:
    policy = make_model("llama")

    def is_even(batch: Completions) -> Tensor:
        return (batch.lengths % 2 == 0).float()

    samples = evaluate_on(policy, policy, gold=is_even)
    row = summarise(samples, ["a"] * len(samples.reward), 2)
    assert row["gold"] <= row["pass_at_2.gold"]
    assert "pass_at_2.reward" not in row


def test_terms_that_do_not_apply_to_all_are_means_over_those_they_apply_to(
    make_model: MakeModel,
) -> None:
    policy = make_model("llama")
    samples = evaluate_on(policy, policy)
    scores = iter([[1.0, math.nan, math.nan, math.nan], [5.0, 7.0]])
    term_of = {
        "mine:some": lambda batch: torch.tensor(next(scores)),
        "mine:none": lambda batch: torch.full_like(count_tokens(batch), math.nan),
        "mine:all": count_tokens,
    }
    row = summarise_terms(samples, term_of, 2)
    assert row["reward.mine:some"] == pytest.approx((1 + 6) / 2)
    assert row["applies.mine:some"] == pytest.approx(3 / 6)
    assert (row["reward.mine:none"], row["applies.mine:none"]) == (None, 0)
    assert "applies.mine:all" not in row
    assert row["reward.mine:all"] == pytest.approx(samples.length.mean().item())
