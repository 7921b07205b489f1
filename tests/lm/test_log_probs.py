"""Log-probabilities of batches against one sequence at a time, without padding or cache."""

import pytest
import torch
from conftest import BOS, EOS, MakeModel
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.estimates.memory import LiveBytes
from warpflow.lm import log_probs as module
from warpflow.lm.log_probs import (
    Completions,
    logits_by_part,
    positions,
    reads_prompts_once,
    response_logits,
    token_log_probs,
)
from warpflow.lm.texts import token_rows

PROMPTS = [[BOS, 5, 6, 7, 8], [BOS], [BOS, 9, 10]]
RESPONSES = [[11, EOS], [4, 0, 12, 7, 7, 13], [6, 5, 4, EOS]]  # the second samples id 0, the pad


def batch_of(
    prompts: list[list[int]],
    responses: list[list[int]],
    left: int = 0,
    right: int = 0,
    pad: int = 0,
) -> Completions:
    """Left-padded prompts and right-padded responses, with extra pads on either side."""
    before = max(map(len, prompts)) + left
    after = max(map(len, responses)) + right
    ids = torch.tensor([[pad] * (before - len(p)) + p for p in prompts])
    response = torch.tensor([r + [pad] * (after - len(r)) for r in responses])
    is_prompt = torch.arange(before)[None] >= before - torch.tensor([[len(p)] for p in prompts])
    is_response = torch.arange(after)[None] < torch.tensor([[len(r)] for r in responses])
    finished = torch.tensor([r[-1] == EOS for r in responses])
    return Completions(ids, is_prompt, response, is_response, finished)


@torch.no_grad()
def slow_log_probs(
    model: PreTrainedModel, prompt: list[int], response: list[int], temperature: float
) -> Tensor:
    """One forward pass for each token, on nothing but the tokens before it."""
    values = []
    for t, token in enumerate(response):
        logits = model(input_ids=torch.tensor([prompt + response[:t]]), use_cache=False).logits
        values.append((logits[0, -1].double() / temperature).log_softmax(-1)[token])
    return torch.stack(values)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_batches_are_scored_as_single_sequences(
    make_model: MakeModel, architecture: str, temperature: float
) -> None:
    """Without position ids a left-padded GPT-2 fails here by far; mistral's window is 4."""
    model = make_model(architecture)
    log_probs = token_log_probs(model, batch_of(PROMPTS, RESPONSES), temperature)
    assert log_probs.dtype == torch.float32
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        expected = slow_log_probs(model, prompt, response, temperature)
        scored = log_probs[row, : len(response)].double()
        torch.testing.assert_close(scored, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("left", "right", "pad"), [(3, 0, 0), (0, 2, 0), (4, 3, 0), (2, 2, EOS)])
def test_pads_change_nothing_and_give_zero(
    make_model: MakeModel, architecture: str, left: int, right: int, pad: int
) -> None:
    model = make_model(architecture)
    plain = token_log_probs(model, batch_of(PROMPTS, RESPONSES), 0.9)
    padded_batch = batch_of(PROMPTS, RESPONSES, left, right, pad)
    padded = token_log_probs(model, padded_batch, 0.9)
    torch.testing.assert_close(padded[:, : plain.shape[1]], plain, atol=2e-5, rtol=1e-5)
    assert (padded[~padded_batch.is_response] == 0).all()
    assert (padded[padded_batch.is_response] < 0).all()


def test_eos_and_a_sampled_pad_id_count(make_model: MakeModel) -> None:
    batch = batch_of(PROMPTS, RESPONSES)
    log_probs = token_log_probs(make_model("llama"), batch, 1.0)
    assert batch.lengths.tolist() == [2, 6, 4]
    assert log_probs[0, 1] < 0, "EOS"
    assert log_probs[1, 1] < 0, "id 0 as a sampled token"


def test_probabilities_of_the_next_token_sum_to_one(make_model: MakeModel) -> None:
    """The sum is over all tokens y_1 after one prompt, so nothing of the vocabulary is left out."""
    vocabulary = 20
    batch = batch_of([[BOS, 5]] * vocabulary, [[token] for token in range(vocabulary)])
    log_probs = token_log_probs(make_model("gpt2"), batch, 0.8)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_temperature_divides_the_logits(make_model: MakeModel) -> None:
    model, batch = make_model("gpt2"), batch_of(PROMPTS, RESPONSES)
    torch.testing.assert_close(
        response_logits(model, batch, 0.5), 2 * response_logits(model, batch, 1)
    )


def test_logits_of_a_bf16_model_are_cast_before_the_softmax(make_model: MakeModel) -> None:
    model, batch = make_model("llama").bfloat16(), batch_of(PROMPTS, RESPONSES)
    assert response_logits(model, batch, 1.0).dtype == torch.float32
    log_probs = token_log_probs(model, batch, 1.0)[batch.is_response]
    assert log_probs.dtype == torch.float32
    assert not torch.equal(log_probs, log_probs.bfloat16().float()), "rounded to bf16"


def test_gradients_reach_every_parameter(make_model: MakeModel, architecture: str) -> None:
    model = make_model(architecture)
    token_log_probs(model, batch_of(PROMPTS, RESPONSES), 1.0).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_positions_count_real_tokens_only() -> None:
    is_token = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert positions(is_token).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_rows_are_trimmed_to_what_they_hold(make_model: MakeModel) -> None:
    batch = batch_of(PROMPTS, RESPONSES, left=2, right=2)
    part = batch.rows(torch.tensor([2, 1]))
    assert token_rows(part) == [PROMPTS[2] + RESPONSES[2], PROMPTS[1] + RESPONSES[1]]
    assert part.prompt_ids.shape == (2, 3)
    assert part.response_ids.shape == (2, 6)
    assert part.finished.tolist() == [True, False]
    model = make_model("gpt2")
    whole = token_log_probs(model, batch, 1.0)
    scored = token_log_probs(model, part, 1.0)
    torch.testing.assert_close(scored, whole[[2, 1], :6], atol=2e-5, rtol=1e-5)


def test_a_large_vocabulary_is_scored_in_parts_with_the_same_gradient_in_less_memory(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama", words=[f"w{i}" for i in range(3000)])
    ids = torch.randint(3, 3000, (12, 20))
    real = torch.ones_like(ids, dtype=torch.bool)
    batch = Completions(ids[:, :4], real[:, :4], ids[:, 4:], real[:, 4:], real[:, 0])
    results = {}
    for limit in (2**25, 5 * 3004):  # less than a row
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", limit)
        model.zero_grad(set_to_none=True)
        with LiveBytes() as counter:
            scored = token_log_probs(model, batch, 0.7)
            scored.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        results[limit] = (scored.detach(), gradient, counter.peak)
    whole, parts = results.values()
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1], atol=1e-5, rtol=1e-4)
    assert parts[2] < 0.75 * whole[2]


def test_logits_in_parts_are_those_of_one_pass(
    make_model: MakeModel, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model reads on by its cache. Each part attends in another matrix product, so values agree
    to rounding."""
    model, batch = make_model(architecture), batch_of(PROMPTS, RESPONSES, left=1)
    whole = response_logits(model, batch, 0.7)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 3 * 20 * 2)
    parts = list(logits_by_part(model, batch, 0.7))
    assert [part.shape[1] for part in parts] == [2, 2, 2]
    real = batch.is_response
    torch.testing.assert_close(torch.cat(parts, 1)[real], whole[real], atol=2e-5, rtol=1e-4)


def completions_of_prompts(each: int, prompts: int = 3, length: int = 6) -> Completions:
    """Completions of 1 to `length` tokens, `each` for a prompt; prompts of different lengths."""
    ids = torch.randint(3, 20, (prompts, 5)).repeat_interleave(each, 0)
    is_prompt = torch.arange(5)[None] >= torch.arange(prompts).repeat_interleave(each)[:, None] % 4
    lengths = 1 + torch.randperm(prompts * each) * length // (prompts * each)
    is_response = torch.arange(length)[None] < lengths[:, None]
    response = torch.randint(3, 20, is_response.shape) * is_response
    return Completions(ids * is_prompt, is_prompt, response, is_response, lengths < length)


@pytest.mark.parametrize("architecture", module.READS_BRANCHES)
@pytest.mark.parametrize("each", [2, 4])
def test_completions_behind_one_copy_of_their_prompt_score_as_apart(
    make_model: MakeModel, architecture: str, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient agree, also with the softmax of one prompt at a time."""
    windows = {"sliding_window": 64} if architecture in ("mistral", "gemma3_text") else {}
    model, batch = make_model(architecture, **windows), completions_of_prompts(each)
    weights, results = torch.randn(batch.response_ids.shape), []
    for together, limit in ((1, 2**25), (each, 2**25), (each, 2)):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", limit)
        model.zero_grad(set_to_none=True)
        scored = token_log_probs(model, batch, 0.7, together)
        (scored * weights).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append((scored.detach(), gradient))
    for scored, gradient in results[1:]:
        torch.testing.assert_close(scored, results[0][0], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, results[0][1], atol=2e-4, rtol=1e-4)


def test_prompts_are_read_once_where_that_is_right_and_pays(make_model: MakeModel) -> None:
    batch, wide = completions_of_prompts(4), {"hidden_size": 64, "head_dim": 32}
    model = make_model("llama", **wide)
    assert reads_prompts_once(model, batch, 4)
    assert not reads_prompts_once(model, batch, 1)
    assert not reads_prompts_once(make_model("mistral", **wide), batch, 4), "a window in effect"
    assert not reads_prompts_once(model, completions_of_prompts(4, length=1000), 4), "long answers"
    assert not reads_prompts_once(model, completions_of_prompts(3), 9), "other prompts in a group"
    model.config.model_type = "bloom"
    assert not reads_prompts_once(model, batch, 4), "not tested"
