"""The optimisers: what each does to a weight, what it takes, and how it goes on after a stop."""

from pathlib import Path

import pytest
import torch
from conftest import MakeModel
from test_reinforce import run, settings, weights
from test_resume import train

from warpflow.estimates.memory import optimizer_bytes
from warpflow.settings.train_policy import BY_BITSANDBYTES
from warpflow.training.optimizers import OPTIMIZERS, make_optimizer
from warpflow.training.reinforce import check_sharding, start_run
from warpflow.training.resume import load_state, save_state


def needs_package(optimizer: str) -> None:
    if optimizer in BY_BITSANDBYTES:
        pytest.importorskip("bitsandbytes", reason="the extra eight_bit is not installed")


def one_step(optimizer: str, **changes: float) -> torch.Tensor:
    """A weight of 1 after a step by a gradient of 1, at a learning rate of 0.01."""
    needs_package(optimizer)
    weight = torch.nn.Parameter(torch.ones(4096))
    weight.grad = torch.ones(4096)
    make_optimizer([weight], settings(optimizer=optimizer, learning_rate=0.01, **changes)).step()
    return weight.detach()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_first_step_is_one_learning_rate_long(optimizer: str) -> None:
    torch.testing.assert_close(one_step(optimizer), torch.full((4096,), 0.99), atol=1e-5, rtol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_decoupled_decay_takes_its_share_of_the_weight(optimizer: str) -> None:
    """Decay inside the gradient, as Adam's, would not change the first step at all."""
    found = one_step(optimizer, weight_decay=0.1)
    expected = torch.full((4096,), 1 - 0.01 * 0.1 - 0.01)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_adamw_without_decay_is_adam(make_model: MakeModel) -> None:
    trained = []
    for optimizer in ("adam", "adamw"):
        policy = make_model("llama")
        run(policy, make_model("llama"), settings(optimizer=optimizer))
        trained.append(weights(policy))
    assert torch.equal(*trained)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_moments_take_what_the_estimate_says(make_model: MakeModel, optimizer: str) -> None:
    needs_package(optimizer)
    policy = make_model("llama", hidden_size=64, intermediate_size=128, words=list("abcdefghij"))
    made = make_optimizer(policy.parameters(), settings(optimizer=optimizer))
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    taken = sum(
        value.nbytes
        for state in made.state.values()
        for name, value in state.items()
        if name != "step" and not name.startswith("qmap")  # of all tensors together 2 KB
    )
    assert taken == optimizer_bytes(policy, optimizer)


def test_moments_in_8_bits_take_a_quarter(make_model: MakeModel) -> None:
    policy = make_model("llama", hidden_size=256, intermediate_size=512)
    assert 0.25 < optimizer_bytes(policy, "adam_8bit") / optimizer_bytes(policy, "adam") < 0.27


def test_a_run_with_8_bits_goes_on_to_the_same_bytes(make_model: MakeModel, tmp_path: Path) -> None:
    needs_package("adamw_8bit")
    chosen = settings(steps=4, optimizer="adamw_8bit")
    wide = {"hidden_size": 64, "intermediate_size": 128}

    def start():
        return start_run(make_model("llama", **wide), make_model("llama", **wide), chosen)

    whole, first, second = start(), start(), start()
    train(whole, chosen, 4)
    assert any("absmax1" in state for state in whole.optimizer.state.values())
    train(first, chosen, 2)
    save_state(tmp_path, first, {}, {})
    assert load_state(tmp_path, second, {}) is not None
    train(second, chosen, 4)
    assert torch.equal(weights(second.policy), weights(whole.policy))


def test_fsdp_is_refused_with_8_bits() -> None:
    check_sharding(settings(optimizer="adamw"))
    with pytest.raises(ValueError, match="got adam_8bit, whose moments FSDP cannot shard"):
        check_sharding(settings(optimizer="adam_8bit"))
