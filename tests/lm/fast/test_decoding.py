"""Our decoding loop against the library's forward pass, and what it leaves to that."""

import logging

import pytest
import torch
from conftest import BOS, EOS, PAD, MakeModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from warpflow.lm import sampling
from warpflow.lm.fast import layers
from warpflow.lm.fast.decoding import Decoder
from warpflow.lm.log_probs import Completions
from warpflow.lm.sampling import draw_uniforms, make_cache, make_decoder, next_logits, pad_left

PADDED, LEVEL = [[BOS, 5, 6, 7], [BOS], [BOS, 9, 10]], [[BOS, 5, 6], [BOS, 8, 9], [BOS, 7, 4]]


def sample(model: PreTrainedModel, prompts: list[list[int]], count: int = 12) -> Completions:
    ids, mask = pad_left(prompts, PAD, model.device)
    return sampling.sample_completions(
        model,
        ids,
        mask,
        max_new_tokens=count,
        temperature=1.0,
        eos_ids=[EOS],
        pad_id=PAD,
        uniforms=draw_uniforms(4 * len(prompts), count, model.device, 0),
        samples_per_prompt=4,
    )


def calls_of(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths that the library's forward pass reads from now on."""
    lengths: list[int] = []

    def counted(model: PreTrainedModel, ids: Tensor, *rest: object) -> Tensor:
        lengths.append(ids.shape[1])
        return next_logits(model, ids, *rest)

    monkeypatch.setattr(sampling, "next_logits", counted)
    return lengths


@pytest.mark.gpu
@pytest.mark.parametrize("prompts", [PADDED, LEVEL, [[BOS]]], ids=["padded", "not padded", "BOS"])
def test_the_tokens_are_those_of_the_librarys_forward_pass(
    covered: PreTrainedModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four completions of each prompt, of which some leave the batch early; the library reads
    the prompts of the first batch and takes its first step beside ours, and no more."""
    lengths, longest = calls_of(covered, monkeypatch), max(map(len, prompts))
    first = sample(covered, prompts * 4)
    assert lengths == [longest, 1]
    ours = sample(covered, prompts * 4)
    assert lengths == [longest, 1]
    assert torch.equal(first.response_ids, ours.response_ids)
    monkeypatch.setattr(sampling, "make_decoder", lambda *_: None)
    theirs = sample(covered, prompts * 4)
    assert len(lengths) > 4
    assert torch.equal(ours.response_ids, theirs.response_ids)
    assert torch.equal(ours.is_response, theirs.is_response)
    assert len(ours.lengths.unique()) > 2


@pytest.mark.gpu
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_logits_are_those_of_the_librarys_forward_pass(
    covered: PreTrainedModel, dtype: torch.dtype, in_place: bool
) -> None:
    """The prompts are read, then token by token. Logits agree to the rounding of fp32, and under
    autocast to that of bf16."""
    device = covered.device
    ids, is_prompt = pad_left(PADDED, PAD, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        caches = [make_cache(covered, 16) for _ in range(2)]
        decoder, is_token = Decoder(covered, caches[0].layers, 16, in_place), is_prompt
        steps = (torch.tensor([[4 + step], [9 + step], [15 - step]]) for step in range(8))
        for token in (ids, *(step.to(device) for step in steps)):
            theirs = next_logits(covered, token, is_token, is_prompt, caches[1])
            ours = decoder(token, is_token, padded=True)
            limit = {torch.float32: 2e-5, torch.bfloat16: 0.05}[dtype]
            assert (ours - theirs).abs().max() <= limit * theirs.abs().max()
            is_token = pad(is_token, (0, 1), value=True)


def test_a_model_that_computes_another_thing_is_noticed_and_sampled_by_the_library(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A future transformers might do so. Here the activation that our layers read is another
    one."""
    expected = sample(make_model("llama"), LEVEL)
    model, make = make_model("llama"), layers.Layer.__init__

    def make_another(layer: layers.Layer, *arguments: object) -> None:
        make(layer, *arguments)  # type: ignore[arg-type]
        layer.activation = nn.functional.gelu

    monkeypatch.setattr(layers.Layer, "__init__", make_another)
    lengths = calls_of(model, monkeypatch)
    with caplog.at_level(logging.WARNING):
        actual = sample(model, LEVEL)
    assert "differs from it by" in caplog.text
    assert torch.equal(actual.response_ids, expected.response_ids)
    assert len(lengths) > 4


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "gpt2", "gpt_neox", "mistral"])
def test_other_architectures_and_windows_in_effect_are_left_to_the_library(
    make_model: MakeModel, name: str
) -> None:
    model = make_model(name)
    ids, is_prompt = pad_left(PADDED, PAD)
    assert make_decoder(model, make_cache(model, 16), 16, ids, is_prompt) is None
