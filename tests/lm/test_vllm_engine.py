"""vLLM itself as the sampler of RL runs, on a CPU: `make test-vllm`, in an environment of its own.

The models are tiny, and their head width is 32, the least that vLLM's attention on a CPU has.
`pytest -rP` shows the gaps that were found.
"""

import dataclasses
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BOS, EOS, PAD, Enumerate, MakeModel, Perturb
from test_reinforce import PROMPTS, count_fives, settings, weights
from torch import Tensor
from transformers import PreTrainedModel

from warpflow.lm import vllm_sampler
from warpflow.lm.log_probs import Completions, token_log_probs
from warpflow.lm.sampling import completed, draw_uniforms, pad_left
from warpflow.lm.vllm_sampler import Engine, sample_by_vllm, start_engine, version
from warpflow.training.reinforce import StepRow, compute_gradient, start_run, train_policy
from warpflow.training.resume import LAST, load_state, save_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: `make test-vllm`"
    ),
]

ROOT = Path(__file__).parents[2]
TEMPERATURE, LENGTH, ROWS, EACH = 0.9, 6, 8, 2
NEAR = 1e-4  # of a log-probability in fp32, whose sums have another order there
FAR = 1e9
NO_HEADS = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.2}
# Tied and untied output layers, norms with an offset, absolute positions, fused and joint products.
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "llama untied": ("llama", NO_HEADS),
    "llama tied": ("llama", {**NO_HEADS, "tie_word_embeddings": True}),
    "gemma": ("gemma", {**NO_HEADS, "head_dim": 32}),
    "qwen2": ("qwen2", NO_HEADS),
    "qwen3": ("qwen3", {**NO_HEADS, "head_dim": 32}),
    "gpt2": ("gpt2", {"n_embd": 64, "initializer_range": 0.2}),
}
KEPT: list[Engine] = []  # see `start`
Start = Callable[..., tuple[PreTrainedModel, Engine]]


@pytest.fixture(scope="module")
def start(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """A fresh model and the engine of its kind. Engines live on: vLLM ends what all of a process
    share when one is collected."""
    running: dict[str, Engine] = {}

    def started(kind: str, **changes: object) -> tuple[PreTrainedModel, Engine]:
        architecture, own = MODELS[kind]
        dtype = str(changes.pop("dtype", "float32"))
        model = make_model(architecture, **{**own, **changes})
        key = json.dumps([kind, dtype, changes], default=str)
        if key not in running:
            folder = tmp_path_factory.mktemp("model")
            model.save_pretrained(folder)
            given = {"rows": 64, "tokens": 32, "dtype": dtype}
            running[key] = start_engine(folder, model, **given)
        return model, running[key]

    return started


def sample(
    engine: Engine, model: PreTrainedModel, prompts: Iterable[list[int]] = PROMPTS, **changes: Any
) -> Completions:
    prompt_ids, is_prompt = pad_left(list(prompts), PAD)
    each = changes.get("samples_per_prompt", EACH)
    given = {
        "max_new_tokens": LENGTH,
        "temperature": TEMPERATURE,
        "eos_ids": [EOS],
        "pad_id": PAD,
        "uniforms": draw_uniforms(each * len(prompt_ids), LENGTH, "cpu", 0),
        "samples_per_prompt": EACH,
    }
    return sample_by_vllm(engine, model, prompt_ids, is_prompt, **{**given, **changes})


def distance(model: PreTrainedModel, batch: Completions) -> float:
    """The largest |log π − log μ| of a token."""
    assert batch.sampler_log_probs is not None
    with torch.no_grad():
        ours = token_log_probs(model, batch, TEMPERATURE)
    return (ours - batch.sampler_log_probs).abs().max().item()


# --- log-probabilities and weights -------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_log_probabilities_are_ours(start: Start, kind: str) -> None:
    """Of prompts of different lengths, at a temperature other than 1."""
    model, engine = start(kind)
    found = distance(model, sample(engine, model))
    print(f"{version()}, {kind}, fp32: largest |log π − log μ| of a token {found:.1e}")
    assert found < NEAR


@pytest.mark.parametrize("kind", MODELS)
def test_each_tensor_is_taken_over(start: Start, kind: str) -> None:
    """One after the other is changed so much that a stale copy of it anywhere would show."""
    model, engine = start(kind)
    sample(engine, model)
    generator = torch.Generator().manual_seed(1)
    shown = {}
    for name, weight in model.named_parameters():
        before = weight.detach().clone()
        with torch.no_grad():
            weight.add_(0.5 * torch.randn(weight.shape, generator=generator))
        batch = sample(engine, model)
        assert distance(model, batch) < NEAR, name
        with torch.no_grad():
            weight.copy_(before)
        shown[name] = distance(model, batch)  # what it would be had the engine the old tensor
    print(f"{kind}: a stale tensor would show by at least {min(shown.values()):.1e}")
    # A key's bias adds the same to all of a query's products, so that nothing depends on it.
    visible = {n: d for n, d in shown.items() if "k_proj.bias" not in n}
    assert min(visible.values()) > 100 * NEAR, visible


def test_a_tied_output_layer_that_is_not_laid_out_anew_is_noticed(
    start: Start, monkeypatch: pytest.MonkeyPatch, perturb: Perturb
) -> None:
    """vLLM's own `reload_weights` leaves it stale in fp32 on a CPU; the run stops and says so."""
    model, engine = start("llama tied")
    moved = perturb(model, 1, 0.1)
    sample(engine, model)
    monkeypatch.setattr(vllm_sampler, "renew_output_layer_", lambda layer: None)
    assert distance(moved, sample(engine, moved)) > 100 * NEAR
    with pytest.raises(RuntimeError, match=r"step 1: .* weights that vLLM did not take over"):
        train(moved, engine, settings())
    monkeypatch.undo()
    assert distance(moved, sample(engine, moved)) < NEAR


def test_ids_that_the_tokenizer_lacks_are_neither_drawn_nor_counted(start: Start) -> None:
    model, engine = start("llama untied")
    model.config.sampled_vocab_size, model.config.unsampled_ids = 12, [5]
    batch = sample(engine, model, samples_per_prompt=8)
    drawn = batch.response_ids[batch.is_response]
    assert drawn.max() < 12 and 5 not in drawn.tolist()
    assert distance(model, batch) < NEAR


# --- randomness --------------------------------------------------------------------------------


def test_a_completion_is_its_seeds_whatever_else_is_in_the_batch(start: Start) -> None:
    model, engine = start("llama untied")
    uniforms = draw_uniforms(ROWS, LENGTH, "cpu", 0)
    whole = sample(engine, model, uniforms=uniforms)
    again = sample(engine, model, uniforms=uniforms)
    for name, tensor in vars(whole).items():
        assert torch.equal(getattr(again, name), tensor), name
    for row in range(ROWS):
        alone = sample(
            engine,
            model,
            [PROMPTS[row // EACH]],
            uniforms=uniforms[row : row + 1],
            samples_per_prompt=1,
        )
        length = int(whole.lengths[row])
        assert alone.response_ids[0].tolist() == whole.response_ids[row, :length].tolist()
    other = sample(engine, model, uniforms=draw_uniforms(ROWS, LENGTH, "cpu", 1))
    assert other.response_ids.tolist() != whole.response_ids.tolist()
    pairs = whole.response_ids.view(-1, EACH, whole.response_ids.shape[1])
    assert not torch.equal(pairs[:, 0], pairs[:, 1])  # completions of a prompt have seeds too


def test_completions_are_as_likely_as_the_policy_says(
    start: Start, enumerate_completions: Enumerate
) -> None:
    """All that four tokens can say in three, drawn 4,000 times."""
    model, engine = start("llama untied", words=[])
    found = draw(engine, model, 4000)
    batch, probabilities = all_of(model, enumerate_completions)
    counts = counts_of(found, batch)
    expected = 4000 * probabilities
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    freedom = len(expected) - 1
    print(f"χ² {chi_square:.1f} with {freedom} degrees of freedom")
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5
    assert counts.sum() == 4000


def all_of(model: PreTrainedModel, enumerate_all: Enumerate) -> tuple[Completions, Tensor]:
    """All completions of up to 3 tokens and their probabilities."""
    batch = enumerate_all([BOS, 3], vocabulary=4, limit=3)
    with torch.no_grad():
        return batch, token_log_probs(model, batch, TEMPERATURE).sum(1).double().exp()


def draw(engine: Engine, model: PreTrainedModel, count: int) -> Completions:
    return sample(
        engine,
        model,
        [[BOS, 3]],
        samples_per_prompt=count,
        uniforms=draw_uniforms(count, 3, "cpu", 5),
        max_new_tokens=3,
    )


def counts_of(found: Completions, batch: Completions) -> Tensor:
    place = {tuple(row.tolist()): n for n, row in enumerate(batch.response_ids)}
    drawn = [tuple(row.tolist()) for row in found.response_ids]
    return torch.bincount(torch.tensor([place[row] for row in drawn]), minlength=len(place))


def test_the_weights_take_out_a_known_bias(
    start: Start, perturb: Perturb, enumerate_completions: Enumerate
) -> None:
    """Completions drawn from another policy: weighted, their mean reward and gradient are those of
    the policy that is trained, within the noise of 20,000 draws; unweighted, they are not."""
    policy, engine = start("llama untied", words=[])
    other = perturb(policy, 3, 0.02)
    batch, probabilities = all_of(policy, enumerate_completions)
    rewards = torch.randn(len(batch.finished), generator=torch.Generator().manual_seed(0)) + 2
    exact = (probabilities * rewards).sum().item()
    found = draw(engine, other, 20_000)
    place = {tuple(row.tolist()): n for n, row in enumerate(batch.response_ids)}
    places = torch.tensor([place[tuple(row.tolist())] for row in found.response_ids])
    assert found.sampler_log_probs is not None
    log_pi = probabilities.log()[places]
    ratio = (log_pi - found.sampler_log_probs.sum(1)).exp()
    for values, is_right in ((ratio * rewards[places], True), (rewards[places], False)):
        error = values.std().item() / len(values) ** 0.5
        off = (values.mean().item() - exact) / error
        print(f"weighted {is_right}: mean reward {off:+.1f} standard errors from the policy's")
        assert (abs(off) < 4) == is_right

    chosen = settings(
        importance_cap=FAR, sampling_gap_limit=FAR, max_grad_norm=FAR, beta=0.0, baseline="none"
    )

    def gradient(drawn: Completions) -> Tensor:
        compute_gradient(start_run(policy, policy, chosen), rewards[places], drawn, chosen, 1)
        return torch.cat([p.grad.flatten() for p in policy.parameters()])

    scores = score_functions(policy, batch)
    target = -(probabilities * rewards) @ scores
    with torch.no_grad():
        drawn_by = token_log_probs(other, batch, TEMPERATURE).sum(1).double().exp()
    each = -(probabilities / drawn_by * rewards)[:, None] * scores
    noise = (drawn_by @ (each - target).square().sum(1) / len(places)).sqrt()
    for drawn, is_right in (
        (found, True),
        (dataclasses.replace(found, sampler_log_probs=None), False),
    ):
        off = ((gradient(drawn) - target).norm() / noise).item()
        print(f"weighted {is_right}: gradient off by {off:.1f} of what the noise of draws gives")
        assert (off < 2) == is_right


def score_functions(model: PreTrainedModel, batch: Completions) -> Tensor:
    """[B, P] float64 ∇log π(y|x) of each completion."""
    log_probs = token_log_probs(model, batch, TEMPERATURE).sum(1)
    rows = [
        torch.autograd.grad(row, list(model.parameters()), retain_graph=True) for row in log_probs
    ]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()


# --- ends --------------------------------------------------------------------------------------


def test_ends_and_lengths_are_our_samplers(start: Start) -> None:
    """Several ids end a completion; the first of them is its last token; one more is cut off."""
    model, engine = start("llama untied")
    ends = [EOS, 7, 9]
    batch = sample(engine, model, samples_per_prompt=16, eos_ids=ends)
    ours = completed(
        batch.prompt_ids,
        batch.is_prompt,
        batch.response_ids.masked_fill(~batch.is_response, PAD),
        torch.tensor(ends),
    )
    for name in ("response_ids", "is_response", "finished"):
        assert torch.equal(getattr(batch, name), getattr(ours, name)), name
    assert 0 < batch.finished.sum() < len(batch.finished)
    assert set(batch.lengths[~batch.finished].tolist()) == {LENGTH}
    assert batch.lengths[batch.finished].min() == 1  # an EOS at once
    assert distance(model, batch) < NEAR


def test_only_the_given_ids_end_a_completion(start: Start) -> None:
    """Not the EOS of the model's config."""
    model, engine = start("llama untied")
    assert model.config.eos_token_id == EOS
    batch = sample(engine, model, samples_per_prompt=16, eos_ids=[9])
    drawn = batch.response_ids
    assert ((drawn == EOS) & batch.is_response)[:, :-1].any()
    assert torch.equal(batch.finished, ((drawn == 9) & batch.is_response).any(1))


def test_a_single_token(start: Start) -> None:
    model, engine = start("llama untied")
    batch = sample(engine, model, max_new_tokens=1, samples_per_prompt=16)
    assert batch.response_ids.shape == (64, 1) and batch.is_response.all()
    assert torch.equal(batch.finished, batch.response_ids[:, 0] == EOS)


# --- runs --------------------------------------------------------------------------------------


def train(
    model: PreTrainedModel | None, engine: Engine, chosen: Any, run: Any = None, stop: int = 0
) -> list[StepRow]:
    run = run or start_run(model, model, chosen)
    rows = []
    for row in train_policy(
        run,
        count_fives,
        PROMPTS,
        chosen,
        eos_ids=[EOS],
        pad_id=PAD,
        seed=0,
        sampler=lambda *given, **how: sample_by_vllm(engine, *given, **how),
    ):
        rows.append(row)
        if row.step == stop:
            break
    return rows


def test_random_numbers_threads_and_precision_are_as_before(
    start: Start, make_model: MakeModel, tmp_path: Path
) -> None:
    """After a start and after completions."""

    def state() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.set_num_threads.__module__,
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
        ]

    start("llama untied")  # whose engine shares with this one what a process has once
    model = make_model("llama", **NO_HEADS)
    model.save_pretrained(tmp_path)
    before = state()
    engine = start_engine(tmp_path, model, rows=8, tokens=32, dtype="float32")
    KEPT.append(engine)
    assert state() == before
    sample(engine, model)
    assert state() == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_goes_on_from_its_state(start: Start, tmp_path: Path, dtype: str) -> None:
    """Weights, optimiser, anchor and seeds; on a CPU even to the same bytes."""
    chosen = settings(steps=6, compute_dtype=dtype, learning_rate=1e-3)
    model, engine = start("llama tied", dtype=dtype)
    whole = start_run(model, model, chosen)
    expected = train(None, engine, chosen, whole)
    first = start_run(start("llama tied", dtype=dtype)[0], model, chosen)
    train(None, engine, chosen, first, stop=3)
    save_state(tmp_path, first, {}, {})
    second = start_run(start("llama tied", dtype=dtype)[0], model, chosen)
    load_state(tmp_path, second, {})
    assert train(None, engine, chosen, second) == expected[3:]
    assert torch.equal(weights(second.policy), weights(whole.policy))
    gaps = [row.sampling_gap for row in expected]
    print(f"{dtype}: sampling_gap {min(gaps):.1e} to {max(gaps):.1e}")
    assert 0 < max(gaps) < {"float32": NEAR, "bfloat16": 0.1}[dtype]
    assert all(row.sampling_weight == pytest.approx(1, abs=0.2) for row in expected)


def test_a_killed_script_goes_on_with_its_state(tmp_path: Path) -> None:
    """scripts/train_policy.py, killed after two saved steps and started again."""
    import train_reward_model
    import train_sft
    from test_scripts import MODEL, REINFORCE, SAMPLING, TINY, flags, make_inputs, supervised

    make_inputs(tmp_path)
    wide = json.dumps({**TINY, "hidden_size": 64, "head_dim": 32})
    data, sft, reward = (tmp_path / name for name in ("data", "wide", "judge"))
    train_sft.main(supervised(data=data, out=sft, seed=0, architecture=wide))
    train_reward_model.main(supervised(data=data, sft=sft, out=reward, seed=0, held_out=8))

    def command(out: str) -> list[str]:
        chosen = {**SAMPLING, **REINFORCE, "steps": 12, "sampler": "vllm", "rewards": MODEL}
        paths = {
            **{"init": sft, "sft": sft, "reward_model": reward, "data": data},
            "out": tmp_path / out / "checkpoint",
            "tables": tmp_path / out / "tables",
            "state": tmp_path / out / "state",
        }
        place = {"seed": 0, "replicate": 1, "iteration": 1, "member": 0}
        script = str(ROOT / "scripts/train_policy.py")
        return [sys.executable, script, *flags(**chosen, **paths, **place)]

    def run(out: str) -> None:
        done = subprocess.run(command(out), capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]

    run("whole")
    killed = subprocess.Popen(command("killed"), cwd=ROOT, stderr=subprocess.DEVNULL)
    last = tmp_path / "killed/state" / LAST
    while killed.poll() is None:
        if last.is_file() and json.loads(last.read_text())["step"] >= 2:
            os.kill(killed.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    assert killed.wait() == -signal.SIGKILL
    run("killed")
    names = ("tables/training.csv", "tables/completions.jsonl", "checkpoint/model.safetensors")
    for name in names:
        whole, resumed = ((tmp_path / out / name).read_bytes() for out in ("whole", "killed"))
        assert whole == resumed, name
    table = pd.read_csv(tmp_path / "whole/tables/training.csv")
    assert (table.sampling_gap < NEAR).all() and (table.sampling_gap > 0).any()
    saved = torch.load(next((tmp_path / "whole/state").glob("step*.pt")), weights_only=True)
    assert saved["fingerprint"]["sampler"] == version()
