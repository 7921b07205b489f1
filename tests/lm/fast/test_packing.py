"""Scores of tokens side by side against the library's forward pass, row by row."""

import logging

import pytest
import torch
from conftest import MakeModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from warpflow.estimates.memory import LiveBytes
from warpflow.lm.fast import layers, packing
from warpflow.lm.fast.packing import pack, packed_log_probs
from warpflow.lm.log_probs import Completions, token_log_probs
from warpflow.lm.scoring import scores_by_part


def completions_of(each: int, rows: int = 32, length: int = 40, padded: bool = True) -> Completions:
    """`each` completions of every prompt, of 1 to `length` tokens; 0 is both pad and drawn."""
    prompts = rows // each
    lengths = 1 + torch.randperm(rows) * length // rows
    is_response = torch.arange(length)[None] < lengths[:, None]
    shorter = torch.arange(prompts) % 4 if padded else torch.zeros(prompts)
    is_prompt = (torch.arange(5)[None] >= shorter[:, None]).repeat_interleave(each, 0)
    ids = torch.randint(1, 20, (prompts, 5)).repeat_interleave(each, 0) * is_prompt
    response = torch.randint(0, 20, is_response.shape) * is_response
    return Completions(ids, is_prompt, response, is_response, lengths < length)


def values_and_gradient(model: PreTrainedModel, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values and the gradient of their sum, each with another weight."""
    model.zero_grad(set_to_none=True)
    (values * torch.linspace(-1, 1, len(values), device=values.device)).sum().backward()
    return values.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], by: float) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).abs().max() <= by * other.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "not padded"])
@pytest.mark.parametrize("each", [1, 4])
def test_scores_and_gradient_are_those_of_the_librarys_forward_pass(
    covered: PreTrainedModel, each: int, padded: bool
) -> None:
    batch = completions_of(each, padded=padded)
    batch = Completions(**{name: rows.to(covered.device) for name, rows in batch.tensors().items()})
    packed = pack(batch, each)
    assert len(packed.shapes) > 1

    def both() -> list[tuple[Tensor, Tensor]]:
        """Return our values and the library's."""
        library = token_log_probs(covered, batch, 0.7)[batch.is_response]
        return [
            values_and_gradient(covered, values)
            for values in (packed_log_probs(covered, packed, 0.7), library)
        ]

    ours, theirs = both()
    assert_same(ours, theirs, 1e-4)
    with torch.autocast(covered.device.type, torch.bfloat16):
        for rounded, their_rounded, exact in zip(*both(), theirs, strict=True):
            assert rounded.dtype == torch.float32
            assert 0 < (rounded - exact).norm() < 2 * (their_rounded - exact).norm()


def test_no_token_is_read_twice_and_none_for_nothing() -> None:
    """Each prompt is read once, and of each completion all but its last token."""
    batch = completions_of(4)
    packed = pack(batch, 4)
    assert len(packed.ids) == batch.is_prompt[::4].sum() + (batch.lengths - 1).sum()
    assert len(packed.targets) == len(packed.predicting) == batch.lengths.sum()
    assert torch.equal(packed.targets, batch.response_ids[batch.is_response])
    assert torch.equal(packed.rows[packed.returns], torch.arange(len(packed.ids)))
    assert sum(rows for rows, _ in packed.shapes) == len(batch.lengths)
    pads = 1 - (batch.is_prompt.sum() + (batch.lengths - 1).sum()) / len(packed.rows)
    assert 0 < pads < 0.25, "rows of like length attend together"


@pytest.mark.parametrize("limit", [2**25, 4 * 3004])
def test_a_large_vocabulary_is_scored_in_parts_with_the_same_gradient_in_less_memory(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    model = make_model("llama", words=[f"w{i}" for i in range(3000)])
    packed = pack(completions_of(4), 4)
    whole = values_and_gradient(model, packed_log_probs(model, packed, 0.7))
    with LiveBytes() as of_whole:
        packed_log_probs(model, packed, 0.7).sum().backward()
    monkeypatch.setattr(packing, "LOGITS_AT_ONCE", limit)
    parts = values_and_gradient(model, packed_log_probs(model, packed, 0.7))
    assert_same(parts, whole, 1e-5)
    with LiveBytes() as of_parts:
        packed_log_probs(model, packed, 0.7).sum().backward()
    assert (of_parts.peak < 0.5 * of_whole.peak) == (limit < 2**25)


def test_gradient_checkpointing_takes_less_memory_for_the_same_gradient(
    make_model: MakeModel,
) -> None:
    results = []
    for checkpointing in (False, True):
        model, batch = make_model("qwen3", num_hidden_layers=6), completions_of(4)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.eval()
        with LiveBytes() as counter:
            values = packed_log_probs(model, pack(batch, 4), 1.0)
            live = counter.live
        results.append((values_and_gradient(model, values), live))
    (plain, held), (recomputed, held_less) = results
    assert_same(recomputed, plain, 0.0)
    assert held_less < 0.5 * held


# --- which way scores are computed --------------------------------------------------------------


def scores_of(
    models: list[PreTrainedModel], batch: Completions, each: int, size: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Return the scores under the last of `models`, and the parts."""
    parts = scores_by_part(models, batch, 0.9, each=each, size=size)
    scores = torch.full((len(batch.lengths),), torch.nan)
    for part, score in parts:
        scores[part] = score(models[-1]).detach()
    return scores, [part for part, _ in parts]


@pytest.mark.parametrize("size", [None, 1, 6, 8, 100])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_every_row_is_scored_once_whatever_the_parts(
    make_model: MakeModel, name: str, size: int | None
) -> None:
    """Rows are scored by `packing` (llama), or the library with prompts read once (gpt2) or not
    (mistral, which has a window)."""
    model, batch = make_model(name), completions_of(4)
    expected = token_log_probs(model, batch, 0.9).sum(1).detach()
    scores, parts = scores_of([model], batch, 4, size)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)
    assert all(len(part) <= (size or 32) for part in parts)


def test_what_one_model_is_not_scored_by_neither_is(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal weights give equal scores, so that a policy's KL to its own copy is 0 and not noise."""
    batch, used = completions_of(4), []
    monkeypatch.setattr(
        "warpflow.lm.scoring.packed_log_probs",
        lambda *arguments: used.append(1) or packed_log_probs(*arguments),
    )
    scores_of([make_model("llama"), make_model("llama")], batch, 4)
    assert used
    used.clear()
    scores_of([make_model("llama"), make_model("llama").bfloat16()], batch, 4)
    scores_of([make_model("mistral")], batch, 4)
    assert not used, "another dtype; a window in effect"
    scores_of([make_model("mistral", sliding_window=45)], batch, 4)
    assert used, "a window longer than any row"


def test_a_model_that_computes_another_thing_is_noticed_and_scored_by_the_library(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch, make = completions_of(4), layers.Layer.__init__
    model = make_model("llama")
    expected = token_log_probs(model, batch, 0.9).sum(1).detach()

    def make_another(layer: layers.Layer, *arguments: object) -> None:
        make(layer, *arguments)  # type: ignore[arg-type]
        layer.activation = nn.functional.gelu

    monkeypatch.setattr(layers.Layer, "__init__", make_another)
    with caplog.at_level(logging.WARNING):
        scores, _ = scores_of([model], batch, 4)
    assert "scoring by the library's forward pass" in caplog.text
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)
