"""The sampler draws from the model's own distribution, whatever batch a prompt is in."""

import collections
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import BOS, EOS, PAD, Enumerate, MakeModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, PreTrainedModel

from warpflow.estimates.memory import LiveBytes
from warpflow.lm import sampling
from warpflow.lm.log_probs import Completions, token_log_probs
from warpflow.lm.sampling import (
    LEAVING_SHARE,
    draw_tokens,
    draw_uniforms,
    make_cache,
    next_logits,
    pad_left,
    sample_completions,
    sample_in_chunks,
)
from warpflow.lm.scoring import scores_by_part
from warpflow.training.adapters import add_adapters
from warpflow.training.reinforce import compute_in

PROMPTS = [[BOS, 5, 6, 7, 8, 9], [BOS], [BOS, 10, 11]]


def sample(
    model: PreTrainedModel,
    prompts: list[list[int]],
    max_new_tokens: int = 8,
    temperature: float = 1.0,
    seed: int = 0,
    eos_ids: tuple[int, ...] = (EOS,),
) -> Completions:
    ids, mask = pad_left(prompts, PAD, model.device)
    return sample_completions(
        model,
        ids,
        mask,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos_ids=eos_ids,
        pad_id=PAD,
        uniforms=draw_uniforms(len(prompts), max_new_tokens, model.device, seed),
    )


def responses(batch: Completions) -> list[tuple[int, ...]]:
    rows = zip(batch.response_ids, batch.is_response, strict=True)
    return [tuple(ids[mask].tolist()) for ids, mask in rows]


@pytest.mark.parametrize("rows", [4, 7], ids=["", "padded embedding"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_samples_follow_the_exact_distribution(
    name: str, rows: int, make_model: MakeModel, enumerate_completions: Enumerate
) -> None:
    """Two prompts of different lengths in one batch, 40 possible completions each: chi-square of
    39 degrees of freedom, whose 99.99 % point is 82. Rows that end early leave the batch, so a
    mistake in that bookkeeping shows here too. An embedding of 7 rows for 4 ids gives the other 3
    no probability, in sampling and in scores."""
    model = make_model(name, words=[], initializer_range=0.2)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.config.sampled_vocab_size = 4
    prompts, draws, temperature = [[BOS, 3, 3, 1], [BOS]], 6000, 0.9
    sampled = responses(sample(model, prompts * draws, 3, temperature))
    for which, prompt in enumerate(prompts):
        everything = enumerate_completions(prompt, vocabulary=4, limit=3)
        with torch.no_grad():
            exact = token_log_probs(model, everything, temperature).sum(1).exp()
            parts = scores_by_part([model], everything, temperature, each=1, size=None)
            scored = torch.empty_like(exact)
            for part, score in parts:
                scored[part] = score(model).exp()
        assert exact.sum().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(scored, exact)
        counts = collections.Counter(sampled[which :: len(prompts)])
        observed = torch.tensor([counts.pop(row, 0) for row in responses(everything)])
        assert not counts, "something that cannot be sampled was"
        expected = draws * exact
        assert ((observed - expected) ** 2 / expected).sum().item() < 82


def test_the_whole_vocabulary_is_sampled(make_model: MakeModel) -> None:
    """`generate()` would cut at the 50 likeliest of these 104 tokens."""
    model = make_model("llama", words=[f"w{i}" for i in range(100)], initializer_range=0.02)
    draws = 4000
    batch = sample(model, [[BOS, 5]] * draws, max_new_tokens=1)
    with torch.no_grad():
        probabilities = model(torch.tensor([[BOS, 5]])).logits[0, -1].softmax(-1)
    rare = probabilities.argsort()[:54]
    expected = probabilities[rare].sum().item()
    assert expected > 0.2
    share = torch.isin(batch.response_ids, rare).float().mean().item()
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / draws)
    assert len(batch.response_ids.unique()) > 95


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """Return the likeliest continuation of a single prompt, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_near_temperature_zero_every_row_is_its_own_greedy_continuation(
    make_model: MakeModel, architecture: str
) -> None:
    """Rows of a left-padded batch leave it at different steps; mistral's window of 4 is long
    passed. Which token ends a row is chosen so that the first row ends early."""
    lengths = set()
    for seed in range(3):
        model = make_model(architecture, seed=seed)
        alone = [greedy(model, prompt, 12) for prompt in PROMPTS]
        eos_id = alone[0][4]
        batch = sample(model, PROMPTS * 2, 12, temperature=1e-4, eos_ids=(eos_id,))
        for expected, response in zip(alone * 2, responses(batch), strict=True):
            length = expected.index(eos_id) + 1 if eos_id in expected else 12
            assert response == tuple(expected[:length])
            lengths.add(length)
    assert len(lengths) > 1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_any_of_several_ids_ends_a_completion(make_model: MakeModel, name: str) -> None:
    """With the same uniforms a completion is the one without an end, cut at the first end."""
    model, ends = make_model(name), (EOS, 5, 9)
    endless = responses(sample(model, PROMPTS * 8, 12, eos_ids=(-1,)))
    batch = sample(model, PROMPTS * 8, 12, eos_ids=ends)
    cut = []
    for whole in endless:
        places = [place for place, token in enumerate(whole) if token in ends]
        cut.append(whole[: places[0] + 1] if places else whole)
    assert responses(batch) == cut
    assert batch.finished.tolist() == [row[-1] in ends for row in cut]
    assert {row[-1] for row in cut} >= set(ends)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1] * 3], ids=["padded", "not padded"])
@torch.no_grad()
def test_cached_logits_are_those_of_a_plain_forward_pass(
    make_model: MakeModel, architecture: str, prompts: list[list[int]]
) -> None:
    """Tokens go one by one through the sampler's cache, and a row leaves it on the way."""
    model, rows = make_model(architecture), [list(prompt) for prompt in prompts]
    ids, is_prompt = pad_left(rows, PAD)
    is_token, count = is_prompt, 9
    cache = make_cache(model, ids.shape[1] + count)
    for step in range(count):
        logits = next_logits(model, ids, is_token, is_prompt, cache)
        for row, cached in zip(rows, logits, strict=True):
            plain = model(torch.tensor([row]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(cached, plain, atol=2e-5, rtol=1e-4)
        if step == 5:
            keep = torch.tensor([0, 2])
            cache.batch_select_indices(keep)
            rows, is_token, is_prompt = [rows[0], rows[2]], is_token[keep], is_prompt[keep]
        ids = torch.tensor([[5 + (step + 3 * place) % 14] for place in range(len(rows))])
        for row, token in zip(rows, ids.tolist(), strict=True):
            row += token
        is_token = torch.cat([is_token, torch.ones_like(is_token[:, :1])], 1)


def test_rows_that_end_leave_the_batch_and_sampling_stops_with_the_last(
    make_model: MakeModel,
) -> None:
    model = make_model("llama", words=[], initializer_range=0.05)
    sizes: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    batch = sample(model, [[BOS]] * 6, max_new_tokens=200)
    steps = int(batch.lengths.max())
    assert batch.finished.all()
    assert steps < 200
    assert batch.response_ids.shape == (6, steps)
    assert len(sizes) == steps
    going_on = [int((batch.lengths > step).sum()) for step in range(steps)]
    assert all(needed <= size < needed / (1 - LEAVING_SHARE) + 1e-9 or size == needed
               for needed, size in zip(going_on, sizes, strict=True))  # fmt: skip
    assert len(set(sizes)) > 1


def test_a_prompt_is_read_once_for_all_its_completions(make_model: MakeModel) -> None:
    """The completions are the same as from the prompt given K times."""
    for name in ("gemma", "gpt2", "mistral"):  # mistral's layers slide: the library's own cache
        model, uniforms = make_model(name), draw_uniforms(9, 8, "cpu", 0)
        settings = {"max_new_tokens": 8, "temperature": 1.0, "eos_ids": [EOS], "pad_id": PAD}
        ids, mask = pad_left(PROMPTS, PAD)
        repeated = sample_completions(
            model,
            ids.repeat_interleave(3, 0),
            mask.repeat_interleave(3, 0),
            uniforms=uniforms,
            **settings,
        )
        once = sample_completions(
            model, ids, mask, uniforms=uniforms, samples_per_prompt=3, **settings
        )
        assert responses(once) == responses(repeated)
        assert torch.equal(once.prompt_ids, repeated.prompt_ids)


def test_lengths_masks_and_finished_agree_with_the_ids(make_model: MakeModel) -> None:
    limit = 4
    batch = sample(
        make_model("gpt2", words=[], initializer_range=0.1), [[BOS, 3], [BOS]] * 50, limit
    )
    for ids, mask, length, finished in zip(
        batch.response_ids.tolist(),
        batch.is_response.tolist(),
        batch.lengths.tolist(),
        batch.finished.tolist(),
        strict=True,
    ):
        assert mask == [t < length for t in range(limit)]
        assert EOS not in ids[: length - 1]
        assert finished == (ids[length - 1] == EOS)
        assert finished or length == limit
        assert set(ids[length:]) <= {PAD}
    assert 0 < batch.finished.sum() < 100
    ends_at_the_limit = batch.finished & (batch.lengths == limit)
    assert ends_at_the_limit.any(), "EOS as the last allowed token counts as finished"


@pytest.mark.gpu
def test_the_seed_alone_decides(make_model: MakeModel) -> None:
    model = make_model("llama")
    torch.manual_seed(1)
    first = responses(sample(model, PROMPTS * 4, seed=3))
    torch.manual_seed(2)
    assert responses(sample(model, PROMPTS * 4, seed=3)) == first
    assert responses(sample(model, PROMPTS * 4, seed=4)) != first


@pytest.mark.gpu
def test_a_row_does_not_depend_on_the_others(make_model: MakeModel) -> None:
    """So micro-batches, processes and evaluation batches of any size give the same completions."""
    model = make_model("llama")
    ids, mask = pad_left(PROMPTS * 4, PAD, model.device)
    uniforms = draw_uniforms(12, 8, model.device, 0)
    settings = {"max_new_tokens": 8, "temperature": 1.0, "eos_ids": [EOS], "pad_id": PAD}
    whole = responses(sample_completions(model, ids, mask, uniforms=uniforms, **settings))
    for part in (slice(0, 5), slice(5, 12), slice(3, 4)):
        rows = sample_completions(model, ids[part], mask[part], uniforms=uniforms[part], **settings)
        assert responses(rows) == whole[part]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [2, 5, 6, 100])
def test_chunks_are_sampled_as_the_whole(make_model: MakeModel, size: int) -> None:
    """They agree to the bit, in the order of the whole batch, with a prompt's completions
    together."""
    model = make_model("gemma")
    ids, mask = pad_left(PROMPTS * 3, PAD, model.device)
    given = {"max_new_tokens": 12, "temperature": 1.0, "eos_ids": [EOS, 5], "pad_id": PAD}
    given |= {"uniforms": draw_uniforms(18, 12, model.device, 0), "samples_per_prompt": 2}
    whole = sample_completions(model, ids, mask, **given)
    chunks = sample_in_chunks(model, ids, mask, rows_at_once=size, **given)
    assert whole.finished.any() and not whole.finished.all()
    for name, value in whole.tensors().items():
        assert torch.equal(getattr(chunks, name), value), name


class Calls(TorchDispatchMode):
    """Counts what is asked of PyTorch, by name, of tensors that `counts` picks."""

    def __init__(self, name: str, counts: Callable[[Tensor], bool] = lambda tensor: True) -> None:
        super().__init__()
        self.name, self.counts, self.count = name, counts, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += self.name in str(function) and self.counts(args[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("ours", [True, False])
def test_the_host_waits_every_few_tokens_and_samples_the_same(
    make_model: MakeModel, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds for our decoder, and for the library's forward pass."""
    model = make_model("llama", words=[f"w{i}" for i in range(12)], initializer_range=0.05)
    if not ours:
        monkeypatch.setattr(sampling, "make_decoder", lambda *_: None)
    every_token = sample(model, [[BOS, 3]] * 12, 40)
    monkeypatch.setitem(sampling.LOOK_EVERY, "cpu", 8)
    with Calls("_local_scalar_dense") as waits:
        seldom = sample(model, [[BOS, 3]] * 12, 40)
    assert seldom.finished.any()
    for key, value in every_token.tensors().items():
        assert torch.equal(getattr(seldom, key), value), key
    steps = int(seldom.lengths.max())
    assert steps > 16
    assert waits.count <= steps / 8 + 5


def test_keys_and_values_are_cached_in_the_dtype_of_attention(
    covered: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = []

    def noting(*arguments: Any) -> DynamicCache:
        caches.append(make_cache(*arguments))
        return caches[-1]

    monkeypatch.setattr(sampling, "make_cache", noting)
    with compute_in("bfloat16", covered.device):
        sample(covered, PROMPTS)
    found = {(layer.keys.dtype, layer.values.dtype) for cache in caches for layer in cache.layers}
    assert found == {(torch.bfloat16, torch.bfloat16)}


def test_frozen_weights_are_cast_once_for_all_tokens(make_model: MakeModel) -> None:
    """LoRA leaves the policy's weights without a gradient, whose casts autocast does not keep."""
    model = make_model("llama").requires_grad_(True)
    add_adapters(model, 2, 4, seed=0)
    ids, mask = pad_left(PROMPTS, PAD)
    frozen = {weight.data_ptr() for weight in model.parameters() if not weight.requires_grad}
    counts = []
    for tokens in (4, 16):
        with (
            compute_in("bfloat16", model.device),
            Calls("_to_copy", lambda tensor: tensor.data_ptr() in frozen) as casts,
        ):
            sample_in_chunks(
                *(model, ids, mask),
                **{"rows_at_once": None, "samples_per_prompt": 1, "temperature": 1.0},
                **{"max_new_tokens": tokens, "eos_ids": [-1], "pad_id": PAD},
                uniforms=draw_uniforms(3, tokens, "cpu", 0),
            )
        counts.append(casts.count)
    assert 0 < counts[0] == counts[1]
    assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())


def test_draw_tokens_in_parts_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, uniforms = torch.randn(37, 50), torch.rand(37, dtype=torch.float64)
    whole = draw_tokens(logits, uniforms)
    monkeypatch.setattr(sampling, "LOGITS_AT_ONCE", 50 * 4)
    with LiveBytes() as counter:
        assert torch.equal(draw_tokens(logits, uniforms), whole)
    assert counter.peak < 4 * 50 * 40  # 4 rows: fp32, and fp64 twice


def test_draw_tokens_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().repeat(5, 1)
    uniforms = torch.tensor([0.0, 0.49, 0.51, 0.76, 1 - 2**-53], dtype=torch.float64)
    assert draw_tokens(logits, uniforms)[:, 0].tolist() == [0, 0, 2, 3, 3]


def test_draw_tokens_never_leaves_the_vocabulary() -> None:
    """The fp32 sum of the probabilities is off 1 here, on either side."""
    logits = torch.randn(200, 50_000, generator=torch.Generator().manual_seed(0)) * 5
    logits[:, -1] = -torch.inf
    tokens = draw_tokens(logits, torch.full((200,), 1 - 2**-53, dtype=torch.float64))
    assert tokens.max() < 49_999


def test_pad_left() -> None:
    ids, mask = pad_left([[5], [6, 7, 8]], pad_id=9)
    assert ids.tolist() == [[9, 9, 5], [6, 7, 8]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]
