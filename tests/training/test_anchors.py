"""The EMA; and where the anchor's weights live changes what they cost, not what they are."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import EOS, PAD, MakeModel, Perturb
from test_reinforce import PROMPTS, count_fives, run, settings, weights
from test_resume import train

from warpflow.training.anchors import make_anchor, move_anchor_, update_ema_
from warpflow.training.reinforce import (
    ReinforceSettings,
    Run,
    StepRow,
    start_run,
    train_policy,
)
from warpflow.training.resume import load_state, save_state


@pytest.mark.parametrize("mu", [0.01, 0.3])
def test_ema_of_a_constant_policy_has_the_closed_form(mu: float) -> None:
    start, policy = torch.randn(7), torch.randn(7)
    anchor = [start.clone()]
    for _ in range(20):
        update_ema_(anchor, [policy], mu)
    expected = policy.double() + (start.double() - policy.double()) * (1 - mu) ** 20
    torch.testing.assert_close(anchor[0].double(), expected, atol=1e-6, rtol=0)


def test_ema_rate_0_keeps_the_anchor_and_1_copies_the_policy() -> None:
    start, policy = torch.randn(50), torch.randn(50) * 1e3
    for mu, expected in ((0.0, start), (1.0, policy)):
        anchor = [start.clone()]
        update_ema_(anchor, [policy], mu)
        assert torch.equal(anchor[0], expected)


def test_ema_moves_the_anchor_by_mu_towards_the_policy_and_leaves_the_policy() -> None:
    anchor, policy = [torch.zeros(3), torch.zeros(2)], [torch.ones(3), torch.full((2,), 2.0)]
    update_ema_(anchor, policy, 0.1)
    torch.testing.assert_close(anchor, [torch.full((3,), 0.1), torch.full((2,), 0.2)])
    assert torch.equal(policy[0], torch.ones(3))


def test_ema_registers_a_step_of_the_papers_size() -> None:
    """mu 0.01 of an Adam step of 1e-6 on a weight of 0.05 rounds to nothing in bf16."""
    anchor, policy = [torch.full((4,), 0.05)], [torch.full((4,), 0.05 + 1e-6)]
    update_ema_(anchor, policy, 0.01)
    assert (anchor[0] > 0.05).all()


@pytest.mark.parametrize("side", [0, 1])
def test_ema_refuses_bf16(side: int) -> None:
    pair = [[torch.zeros(2)], [torch.zeros(2)]]
    pair[side] = [torch.zeros(2, dtype=torch.bfloat16)]
    with pytest.raises(TypeError, match="float32"):
        update_ema_(pair[0], pair[1], 0.1)


def test_ema_of_a_tied_model_stays_tied(make_model: MakeModel) -> None:
    anchor, policy = make_model("gemma", 0), make_model("gemma", 1)
    before = anchor.get_input_embeddings().weight.clone()
    update_ema_(list(anchor.parameters()), list(policy.parameters()), 0.5)
    embedding = anchor.get_input_embeddings().weight
    assert anchor.get_output_embeddings().weight is embedding
    torch.testing.assert_close(embedding, (before + policy.get_input_embeddings().weight) / 2)


@pytest.mark.gpu
def test_an_anchor_in_host_memory_trains_the_same_policy_bit_for_bit(
    make_model: MakeModel,
) -> None:
    results = {}
    for memory in ("device", "host"):
        policy = make_model("gemma")
        rows = run(policy, make_model("gemma"), settings(anchor_memory=memory))
        results[memory] = (rows, weights(policy))
    assert results["host"][0] == results["device"][0]
    assert torch.equal(results["host"][1], results["device"][1])


def test_a_bf16_anchor_averages_in_fp32_where_bf16_would_stand_still(
    make_model: MakeModel, perturb: Perturb
) -> None:
    start = make_model("llama")
    policy = perturb(start, 1, 1e-4)  # a step of it times μ is far below bf16's resolution
    kept, full = make_anchor(start, "bfloat16"), make_anchor(start)
    for _ in range(200):
        move_anchor_(kept, policy, 0.01)
        move_anchor_(full, policy, 0.01)
    for shadow, weight, copy in zip(
        kept.weights, full.weights, kept.model.parameters(), strict=True
    ):
        assert torch.equal(shadow, weight)
        assert torch.equal(copy, weight.to(copy.dtype))
    kinds = {name.split(".")[-2]: p.dtype for name, p in kept.model.named_parameters()}
    assert kinds["q_proj"] == kinds["lm_head"] == torch.bfloat16
    assert kinds["norm"] == kinds["embed_tokens"] == torch.float32
    plain = [p.detach().bfloat16() for p in start.parameters()]
    for tensor, target in zip(plain, policy.parameters(), strict=True):
        for _ in range(200):
            tensor.lerp_(target.detach().bfloat16(), 0.01)
    goal = weights(policy) - weights(start)
    moved = weights(full.model) - weights(start)
    stood = torch.cat([tensor.float().flatten() for tensor in plain]) - weights(start)
    assert torch.cosine_similarity(moved, goal, dim=0) > 0.999
    assert torch.cosine_similarity(stood, goal, dim=0) < 0.5


@pytest.mark.gpu
def test_a_bf16_anchor_of_equal_weights_gives_no_kl(
    make_model: MakeModel, architecture: str
) -> None:
    """Its matrices are those that autocast makes of the policy's, and all else is the policy's."""
    chosen = settings(compute_dtype="bfloat16", anchor_memory="bfloat16", steps=1)
    policy = make_model(architecture)
    assert run(policy, policy, chosen)[0].kl_to_anchor == 0


def test_a_bf16_anchor_can_be_evaluated(make_model: MakeModel) -> None:
    """This is outside a step, where nothing else says in which dtype to compute."""
    anchor = make_anchor(make_model("llama"), "bfloat16")
    ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad(), anchor.scoring(anchor.model.device) as model:
        logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits.float(), make_model("llama")(ids).logits, atol=0.2, rtol=0.05)


def test_a_bf16_anchor_measures_nearly_the_same_kl(make_model: MakeModel) -> None:
    changes = {"anchor": "sft", "compute_dtype": "bfloat16"}
    kls = {}
    for memory in ("device", "bfloat16"):
        chosen = settings(anchor_memory=memory, **changes)
        kls[memory] = run(make_model("llama"), make_model("llama", seed=1), chosen)[0].kl_to_anchor
    assert kls["bfloat16"] == pytest.approx(kls["device"], rel=0.02)
    assert kls["device"] > 1


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["host", "bfloat16"])
def test_an_anchor_apart_resumes_bit_for_bit(
    make_model: MakeModel, tmp_path: Path, memory: str
) -> None:
    chosen = settings(steps=4, anchor_memory=memory, compute_dtype="bfloat16")
    models = [make_model("gemma", seed=seed) for seed in (0, 0, 9)]
    whole, first, second = (start_run(m, m, dataclasses.replace(chosen)) for m in models)
    expected = train(whole, chosen)
    train(first, chosen, stop=2)
    save_state(tmp_path, first, {}, {})
    load_state(tmp_path, second, {})
    assert train(second, chosen) == expected[2:]
    for a, b in zip(whole.anchor.weights, second.anchor.weights, strict=True):
        assert torch.equal(a, b)


def test_averages_are_the_ema_and_the_plain_mean_of_the_policies(make_model: MakeModel) -> None:
    chosen = settings(steps=5, anchor="init", evaluate_weights=["policy", "ema", "average"])
    training = start_run(make_model("llama"), make_model("llama"), chosen)
    policies, ema = [], weights(training.policy).double()
    for _ in range(chosen.steps):
        train(training, chosen, stop=training.step + 1)
        policies.append(weights(training.policy).double())
        ema = (1 - chosen.mu) * ema + chosen.mu * policies[-1]
    averages = {name: weights(a.model).double() for name, a in training.averages.items()}
    torch.testing.assert_close(averages["ema"], ema, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        averages["average"], torch.stack(policies).mean(0), atol=1e-6, rtol=0
    )
    assert not torch.equal(averages["ema"], averages["average"])


@pytest.mark.gpu
def test_the_anchors_own_ema_is_not_kept_twice(make_model: MakeModel) -> None:
    chosen = settings(evaluate_weights=["policy", "ema"])
    training = start_run(make_model("llama"), make_model("llama"), chosen)
    assert training.averages == {}
    assert training.weights("ema") is training.anchor


def test_elastic_reset_sets_the_policy_to_its_ema_and_that_to_the_init(
    make_model: MakeModel,
) -> None:
    chosen = settings(steps=3, anchor="elastic_reset", reset_every=3, mu=0.5)
    plain = settings(steps=3, anchor="init", mu=0.5, evaluate_weights=["policy", "ema"])
    reset, other = (start_run(make_model("llama"), make_model("llama"), c) for c in (chosen, plain))
    init = weights(reset.policy)
    assert train(reset, chosen) == train(other, plain), "the KL is measured to the init"
    assert torch.equal(weights(reset.policy), weights(other.averages["ema"].model))
    assert torch.equal(weights(reset.averages["ema"].model), init)
    assert torch.equal(weights(reset.anchor.model), init)
    assert not torch.equal(weights(reset.policy), init)


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["device", "bfloat16"])
def test_averages_resume_bit_for_bit(make_model: MakeModel, tmp_path: Path, memory: str) -> None:
    chosen = settings(
        steps=5,
        anchor="elastic_reset",
        reset_every=3,
        anchor_memory=memory,
        compute_dtype="bfloat16",
        evaluate_weights=["policy", "average"],
    )
    models = [make_model("gemma", seed=seed) for seed in (0, 0, 9)]
    whole, first, second = (start_run(m, m, chosen) for m in models)
    expected = train(whole, chosen)
    train(first, chosen, stop=2)
    save_state(tmp_path, first, {}, {})
    load_state(tmp_path, second, {})
    assert train(second, chosen) == expected[2:]
    assert set(second.averages) == {"average", "ema"}
    for name, average in whole.averages.items():
        for a, b in zip(average.weights, second.averages[name].weights, strict=True):
            assert torch.equal(a, b)


def test_weights_of_another_name_are_refused() -> None:
    """A list that is given as one text would silently become a third average."""
    with pytest.raises(ValueError, match="'policy', 'ema' or 'average'"):
        settings(evaluate_weights=["['policy']"])


def test_an_ema_that_moves_every_third_step(make_model: MakeModel) -> None:
    """This is TR-DPO's soft update. The average of all steps is kept beside it where asked for."""
    chosen = settings(steps=7, anchor_every=3, evaluate_weights=["ema"])
    policy = make_model("llama")
    state = start_run(policy, make_model("llama"), chosen)
    anchor = average = weights(policy).double()
    for row in steps_of(state, chosen):
        average = (1 - chosen.mu) * average + chosen.mu * weights(policy).double()
        if row.step % 3 == 0:
            anchor = (1 - chosen.mu) * anchor + chosen.mu * weights(policy).double()
        for model, expected in (
            (state.anchor.model, anchor),
            (state.weights("ema").model, average),
        ):
            torch.testing.assert_close(weights(model).double(), expected, atol=1e-6, rtol=0)
    assert not torch.allclose(anchor, average, atol=1e-4)


def steps_of(state: Run, chosen: ReinforceSettings) -> Iterator[StepRow]:
    return train_policy(state, count_fives, PROMPTS, chosen, eos_ids=[EOS], pad_id=PAD, seed=0)


@pytest.mark.parametrize("anchor", ["hard_reset", "elastic_reset"])
@pytest.mark.parametrize("resets", [True, False])
def test_a_reset_starts_the_optimiser_anew_where_asked_for(
    make_model: MakeModel, tmp_path: Path, anchor: str, resets: bool
) -> None:
    """ProRL does so. A run that was saved right after a reset goes on in the same way."""
    chosen = settings(steps=5, anchor=anchor, reset_every=2, reset_optimizer=resets)
    state = start_run(make_model("llama"), make_model("llama"), chosen)
    counted = []
    for row in steps_of(state, chosen):
        moments = state.optimizer.state.values()
        counted.append({int(moment["step"]) for moment in moments})
        if row.step == 2:
            save_state(tmp_path, state, {}, {})
    assert counted == ([{1}, set(), {1}, set(), {1}] if resets else [{1}, {2}, {3}, {4}, {5}])
    again = start_run(make_model("llama"), make_model("llama"), chosen)
    load_state(tmp_path, again, {})
    assert len(list(steps_of(again, chosen))) == 3
    assert torch.equal(weights(again.policy), weights(state.policy))
