"""Layers that kernels of the package `kernels` compute: kernels from a local folder, on a CPU.

Most of the tests need the extra `kernels` and are skipped without it.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import train_policy as script
from conftest import EOS, PAD, WORDS, MakeModel
from test_reinforce import PROMPTS, count_fives, run, settings, weights
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_kernels_available

from warpflow.evaluation.task import JudgeArguments
from warpflow.lm.fast.layers import is_covered
from warpflow.lm.kernels import replaced_layers, use_kernels_
from warpflow.lm.log_probs import token_log_probs
from warpflow.lm.models import load_policy, save_checkpoint
from warpflow.lm.scoring import scores_by_part
from warpflow.training.reinforce import Run, sample_batch, start_run, train_policy
from warpflow.training.resume import load_state, save_state

needs_package = pytest.mark.skipif(
    not is_kernels_available(), reason="no kernels of a version that transformers takes"
)

# A module of the package's form: a stateless layer, which computes an RMS norm as Llama's does.
KERNEL = """
import torch
from torch import nn

calls = 0

class Norm(nn.Module):
    has_backward = {has_backward}

    def forward(self, hidden_states):
        global calls
        calls += 1
        with torch.set_grad_enabled({has_backward} and torch.is_grad_enabled()):
            x = hidden_states.float()
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return self.weight * x.to(hidden_states.dtype)

class layers:
    Norm = Norm
"""
Repository = Callable[..., Any]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A folder with a kernel, as the package reads it from the hub."""
    kernels = pytest.importorskip("kernels")

    def make(has_backward: bool) -> Any:
        name = f"norm-{tmp_path.name}-{has_backward}".lower().replace("_", "-")
        folder = tmp_path / name / "torch-cpu"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(KERNEL.format(has_backward=has_backward))
        metadata = {"name": name, "id": name, "version": 1, "license": "Apache-2.0"}
        metadata |= {"python-depends": [], "backend": {"type": "cpu"}}
        (folder / "metadata.json").write_text(json.dumps(metadata))
        return kernels.LocalLayerRepository(folder.parent, layer_name="Norm")

    return make


@pytest.fixture
def kernel(repository: Repository) -> Iterator[Any]:
    """The module of a kernel with a gradient, which replaces RMS norms. For inference there is
    another one, without a gradient, and transformers prefers it in evaluation mode."""
    import kernels

    learning, inference = repository(True), repository(False)
    modes = {kernels.Mode.TRAINING: learning, kernels.Mode.INFERENCE: inference}
    with kernels.use_kernel_mapping({"RMSNorm": {"cpu": modes}}):
        yield kernels.get_local_kernel(learning._repo_path)


def kernelised(model: PreTrainedModel) -> PreTrainedModel:
    use_kernels_(model)
    return model


def gradients(model: PreTrainedModel) -> list[torch.Tensor | None]:
    """The gradient of some loss. One that is None did not reach its weight."""
    model.zero_grad()
    model(input_ids=torch.tensor([PROMPTS[2]])).logits.square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


@needs_package
def test_a_policy_in_evaluation_mode_takes_kernels_that_have_a_gradient(
    make_model: MakeModel, kernel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    policy = make_model("llama")
    with caplog.at_level(logging.INFO):
        use_kernels_(policy)
    assert "kernels compute these layers of LlamaForCausalLM: 5 RMSNorm" in caplog.text
    assert not policy.training
    expected = gradients(make_model("llama"))
    for _ in range(2):
        before = kernel.calls
        torch.testing.assert_close(gradients(policy), expected, atol=1e-5, rtol=1e-4)
        assert kernel.calls == before + 5
        policy.train().eval()  # transformers would choose kernels anew here

    policy.set_use_kernels(True)  # as from_pretrained(…, use_kernels=True) does
    assert sum(found is None for found in gradients(policy)) > 5


@needs_package
def test_kernels_without_a_gradient_are_refused(
    make_model: MakeModel, repository: Repository
) -> None:
    import kernels

    given = {"RMSNorm": {"cpu": repository(False)}}  # for any mode
    with kernels.use_kernel_mapping(given), pytest.raises(ValueError) as error:
        use_kernels_(make_model("llama"))
    assert "use_kernels: got true, but no layer of LlamaForCausalLM was replaced on cpu" in str(
        error.value
    )


@needs_package
@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2"])
def test_a_model_that_gets_no_kernel_is_refused(make_model: MakeModel, name: str) -> None:
    """transformers' own list has none for a CPU. The package then sets a layer's own forward, which
    counts as no kernel."""
    model = make_model(name)
    assert not replaced_layers(model)
    with pytest.raises(ValueError, match="set it to false"):
        use_kernels_(model)
    assert not replaced_layers(model)


@needs_package
def test_a_model_with_kernels_is_left_to_the_library(make_model: MakeModel, kernel: Any) -> None:
    """Its scores are those of the model itself, also where completions share a prompt."""
    plain, policy = make_model("llama"), kernelised(make_model("llama"))
    assert is_covered(plain) and not is_covered(policy)
    prompts = [[*range(4, 20)] * 4] * 2  # long, so that reading them once pays
    chosen = settings(batch_size=8, samples_per_prompt=4)
    batch = sample_batch(plain, prompts, chosen, 1, [EOS], PAD, seed=0)
    again = sample_batch(policy, prompts, chosen, 1, [EOS], PAD, seed=0)
    assert torch.equal(batch.response_ids, again.response_ids)
    expected = token_log_probs(plain, batch, 0.9)
    before = kernel.calls
    for part, score in scores_by_part([policy], batch, 0.9, each=4, size=None):
        found = score.tokens(policy)
        torch.testing.assert_close(found, expected[part, : found.shape[1]], atol=1e-4, rtol=0)
    assert kernel.calls > before


RUNS: list[dict[str, object]] = [
    {},
    {"micro_batch_size": 4, "gradient_checkpointing": True},
    {"lora_rank": 2},
    {"anchor": "sft"},
    {"anchor": "elastic_reset"},
    {"anchor_memory": "host"},
    {"compute_dtype": "bfloat16", "anchor_memory": "bfloat16"},
    {"kl_estimator": "exact"},
]


@needs_package
@pytest.mark.parametrize("changes", RUNS, ids=lambda changes: " ".join(changes) or "default")
def test_a_run_with_kernels_learns_what_one_without_learns(
    make_model: MakeModel, kernel: Any, changes: dict[str, object]
) -> None:
    chosen = settings(learning_rate=1e-3, **changes)
    policies = [make_model("llama"), kernelised(make_model("llama"))]
    rows = []
    for policy, sft in zip(policies, (make_model("llama"), make_model("llama")), strict=True):
        if policy is policies[1]:
            use_kernels_(sft)
        before = kernel.calls
        rows.append(run(policy, sft, chosen))
        assert (kernel.calls > before) == (policy is policies[1])
    near = 1e-2 if chosen.compute_dtype == "bfloat16" else 1e-4
    for one, other in zip(*rows, strict=True):
        assert one.reward == other.reward
        assert other.kl_to_anchor == pytest.approx(one.kl_to_anchor, abs=10 * near)
    torch.testing.assert_close(weights(policies[1]), weights(policies[0]), atol=near, rtol=0)


@needs_package
def test_a_run_with_kernels_is_saved_and_resumed_as_any_other(
    make_model: MakeModel, make_tokenizer: Any, kernel: Any, tmp_path: Path
) -> None:
    """A checkpoint does not remember kernels. A resumed run goes on to the same bytes."""
    chosen = settings(steps=4)
    save_checkpoint(make_model("llama"), make_tokenizer(WORDS), tmp_path / "sft")

    def start() -> Run:
        policy = kernelised(load_policy(tmp_path / "sft"))
        return start_run(policy, policy, chosen)

    def train(state: Run, stop: int) -> None:
        steps = train_policy(state, count_fives, PROMPTS, chosen, eos_ids=[EOS], pad_id=PAD, seed=0)
        while state.step < stop:
            next(steps)

    first, again = start(), start()
    train(first, 2)
    (tmp_path / "state").mkdir()
    save_state(tmp_path / "state", first, {}, {})
    assert load_state(tmp_path / "state", again, {}) == {}
    train(first, 4)
    train(again, 4)
    for one, other in ((first.policy, again.policy), (first.anchor.model, again.anchor.model)):
        assert torch.equal(weights(one), weights(other))
        assert replaced_layers(one) == replaced_layers(other) == {"RMSNorm": 5}
        assert all(m.forward.__self__ is m for m in one.modules() if "forward" in vars(m))

    save_checkpoint(first.policy, make_tokenizer(WORDS), tmp_path / "out")
    loaded = load_policy(tmp_path / "out")
    assert torch.equal(weights(loaded), weights(first.policy)) and not replaced_layers(loaded)
    configs = [(tmp_path / name / "config.json").read_bytes() for name in ("sft", "out")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("asked", [False, True])
def test_a_run_replaces_layers_of_policy_and_sft_where_it_is_told_to(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anchor is a copy of one of them."""
    replaced: list[object] = []

    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(script, "load_judges", lambda *_: SimpleNamespace(sft="sft"))
    monkeypatch.setattr(script, "load_policy", lambda *_: "policy")
    monkeypatch.setattr(script, "use_kernels_", replaced.append)
    monkeypatch.setattr(script, "start_run", stop)
    given: dict[str, Any] = {"seed": 0, "replicate": 1, "iteration": 1, "member": 0}
    arguments = script.Arguments(init="init", out="out", tables="tables", **given)
    judges = JudgeArguments(sft="sft", data="data", max_prompt_tokens=8, rewards="{}")
    with pytest.raises(InterruptedError):
        script.train(arguments, judges, settings(use_kernels=asked), [], None)  # type: ignore[arg-type]
    assert replaced == (["policy", "sft"] if asked else [])


def test_a_model_as_it_was_loaded_has_no_kernels(make_model: MakeModel) -> None:
    assert not replaced_layers(make_model("llama"))
