"""The memory estimate: exact where it can be, near what a real step takes, and lower where a
setting promises it."""

import dataclasses
import re
from pathlib import Path

import estimate_resources
import memory as benchmark
import pytest
import torch
import train_policy as script
from conftest import ARCHITECTURES, MakeModel
from project import ROOT
from test_reinforce import settings
from transformers import AutoConfig, PreTrainedConfig

from warpflow.estimates.memory import Estimate, LiveBytes, estimate_training
from warpflow.lm.log_probs import Completions
from warpflow.lm.models import matrices
from warpflow.training.reinforce import ReinforceSettings, compute_gradient, start_run

CHOSEN = settings(batch_size=16, max_new_tokens=24, anchor="ema")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}


def estimate(
    policy: PreTrainedConfig, chosen: ReinforceSettings = CHOSEN, shards: int = 1, **changes: object
) -> Estimate:
    reward = AutoConfig.for_model(
        "llama",
        **{"vocab_size": 8, "hidden_size": 8, "num_labels": 1},
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        pad_token_id=0,
    )
    chosen = dataclasses.replace(chosen, **changes)
    return estimate_training(
        policy,
        reward,
        chosen,
        prompt_tokens=8,
        evaluate_prompts=4,
        evaluate_batch_size=4,
        shards=shards,
    )


def test_live_bytes_are_of_tensors_that_are_alive() -> None:
    weight = torch.zeros(500, 500)
    with LiveBytes() as counter:
        first = (weight.t()[0] + weight[0]).repeat(2)
        assert counter.live == 4000  # of the weight and its views nothing
        second = first * 2
        view = second[:10]
        assert counter.live == 8000
        del second
        assert counter.live == 8000  # the view holds it
        del view, first
        assert counter.live == 0
    assert counter.peak == 8000


def test_what_is_held_is_exact(make_model: MakeModel) -> None:
    policy = make_model("gemma")
    size = 4 * sum(p.numel() for p in policy.parameters())
    held = estimate(policy.config).held
    assert [held[name] for name in ("policy", "anchor")] == [size] * 2
    assert held["Adam"] == 2 * size
    assert held["LoRA"] == 0


@pytest.mark.parametrize(
    ("architecture", "checkpointing"), [*((name, False) for name in ARCHITECTURES), ("gemma", True)]
)
def test_a_real_steps_backward_is_as_estimated(
    make_model: MakeModel, architecture: str, checkpointing: bool
) -> None:
    """The same counter is run on real tensors, through the step itself."""
    changes = {} if architecture in ("gpt2", "gpt_neox") else WIDE
    policy = make_model(architecture, words=[f"w{i}" for i in range(500)], **changes)
    chosen = dataclasses.replace(CHOSEN, gradient_checkpointing=checkpointing)
    expected = estimate(policy.config, chosen).phases["forward and backward"]
    ids = torch.randint(3, 500, (16, 32))
    real = torch.ones_like(ids, dtype=torch.bool)
    batch = Completions(ids[:, :8], real[:, :8], ids[:, 8:], real[:, 8:], real[:, 0])
    run = start_run(policy, policy, chosen)
    with LiveBytes() as counter:
        compute_gradient(run, torch.randn(16), batch, chosen, step=1)
    assert counter.peak == pytest.approx(expected, rel=0.15)


def test_each_setting_saves_what_it_promises(make_model: MakeModel) -> None:
    policy = make_model("llama", words=[f"w{i}" for i in range(500)], **WIDE)
    plain = estimate(policy.config)

    def peak(**changes: object) -> int:
        return estimate(policy.config, **changes).phases["forward and backward"]

    most = plain.phases["forward and backward"]
    assert peak(micro_batch_size=4) < 0.4 * most
    assert peak(gradient_checkpointing=True) < 0.9 * most
    lora = estimate(policy.config, lora_rank=2).held
    assert lora["Adam"] == 2 * lora["LoRA"] < 0.2 * plain.held["Adam"]
    size = plain.held["anchor"]
    drawn = plain.phases["sampling"]
    assert estimate(policy.config, sampling_batch_size=4).phases["sampling"] < 0.4 * drawn
    kept, moved = (estimate(policy.config, frozen_memory=m) for m in ("device", "host"))
    saved = kept.held["reward model"] - moved.held["reward model"]
    assert saved == kept.held["reward model"] == moved.phases["reward"] - kept.phases["reward"] > 0
    host = estimate(policy.config, anchor_memory="host")
    assert host.held["anchor"] == 0
    assert host.phases["anchor's scores"] == plain.phases["anchor's scores"] + size
    half = estimate(policy.config, anchor_memory="bfloat16", compute_dtype="bfloat16")
    rounded = sum(weight.numel() for weight in matrices(policy))
    assert half.held["anchor"] == size - 2 * rounded


def test_shards_share_what_fsdp_shares(make_model: MakeModel) -> None:
    policy = make_model("llama", words=[f"w{i}" for i in range(500)], **WIDE)
    whole, each = (estimate(policy.config, compute_dtype="bfloat16", shards=n) for n in (1, 4))
    for name in ("policy", "anchor", "Adam"):
        assert each.held[name] == whole.held[name] // 4
    assert each.held["reward model"] == whole.held["reward model"]
    gradient = whole.held["policy"]
    assert each.phases["forward and backward"] < whole.phases["forward and backward"]
    assert each.phases["forward and backward"] > gradient / 4
    copy = 4 * sum(p.numel() for p in policy.parameters()) - 2 * sum(
        p.numel() for p in matrices(policy)
    )
    assert each.phases["sampling"] > copy


def test_the_papers_setting_is_estimated_without_its_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its models and prompts are not there yet. docs/gpu.md says that it fits 4 GPUs of 80 GB."""
    monkeypatch.chdir(ROOT)
    chosen = ["--set", "frozen_memory=host", "sampling_batch_size=32"]
    estimate_resources.main(["--configfile", "config/paper.yaml", "--shards", "4", *chosen])
    found = re.search(r"at most ([\d.]+) GB", capsys.readouterr().out)
    assert found and 40 < float(found[1]) < 80


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_names_the_settings_to_lower_and_the_estimate(
    error: RuntimeError, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_scripts import make_inputs, run_train_policy

    def run_out(*_: object) -> None:
        raise error

    folder = make_inputs(tmp_path)
    monkeypatch.setattr(script, "train", run_out)
    with pytest.raises(MemoryError) as caught:
        run_train_policy(folder, 0, tmp_path / "out")
    message = str(caught.value)
    for part in ("micro_batch_size (now 4)", "gradient_checkpointing", "anchor_memory", "at most"):
        assert part in message
    assert caught.value.__cause__ is error


@pytest.mark.slow
def test_the_estimate_is_within_15_percent_of_a_real_run(tmp_path: Path) -> None:
    """This is the benchmark's run at its smallest size. docs/memory.md has the others."""
    size, changes = benchmark.VARIANTS[0]
    benchmark.make_inputs(tmp_path, benchmark.SIZES[size])
    expected = benchmark.expect(tmp_path, changes, "cpu")
    settings = benchmark.SETTINGS | changes
    measured, _ = benchmark.measure(tmp_path, settings, benchmark.GIVE_BACK)
    assert abs(expected / measured - 1) < 0.15


def test_eager_attention_holds_its_weights_in_the_estimate(make_model: MakeModel) -> None:
    policy = make_model("llama", words=[f"w{i}" for i in range(500)])
    peaks = [
        estimate(policy.config, max_new_tokens=200, attn_implementation=attention).phases
        for attention in (None, "sdpa", "eager")
    ]
    assert peaks[0] == peaks[1]
    assert peaks[2]["forward and backward"] > 1.2 * peaks[0]["forward and backward"]


def test_the_exact_kl_holds_two_distributions(make_model: MakeModel) -> None:
    for architecture in ("llama", "gpt2"):
        policy = make_model(architecture, words=[f"w{i}" for i in range(2000)])
        one, two = (estimate(policy.config, kl_estimator=name) for name in ("k1", "exact"))
        assert two.phases["anchor's scores"] == 0
        assert two.phases["forward and backward"] > 1.2 * one.phases["forward and backward"]
        assert two.held == one.held


def test_vllm_holds_a_second_copy_of_the_weights_and_its_cache(make_model: MakeModel) -> None:
    policy = make_model("llama", words=[f"w{i}" for i in range(500)], **WIDE)
    size = 4 * sum(p.numel() for p in policy.parameters())
    own, full, half = (
        estimate(policy.config, **changes)
        for changes in (
            {},
            {"sampler": "vllm"},
            {"sampler": "vllm", "compute_dtype": "bfloat16", "sampling_batch_size": 4},
        )
    )
    assert full.held["vLLM's weights"] == size == full.held["policy"]
    assert half.held["vLLM's weights"] == size // 2
    # 16 rows and one more, or 4 and one; a block of 32 holds the 8 + 24 tokens.
    row = full.held["vLLM's key-value cache"] // 17
    assert half.held["vLLM's key-value cache"] == 5 * row // 2
    assert set(full.held) - set(own.held) == {"vLLM's weights", "vLLM's key-value cache"}
    assert full.peak >= own.peak + size
    words = 4 * 504  # of a completion's logits; probabilities and noise are as large
    assert full.phases["sampling"] >= 16 * 3 * words
