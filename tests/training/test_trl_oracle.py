"""Our RL step against TRL's RLOOTrainer on the completions that TRL has sampled: the same clipped
gradients, policy and EMA anchor. `make trl` builds the environment that TRL runs in; `pytest -rP`
shows the differences."""

import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeModel, MakeTokenizer
from safetensors.torch import load_file
from test_reinforce import SETTINGS
from torch import Tensor

from warpflow.lm.log_probs import Completions
from warpflow.lm.models import load_policy, save_checkpoint
from warpflow.lm.prompts import Prompt
from warpflow.training import reinforce
from warpflow.training.reinforce import ReinforceSettings, Run

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-trl/bin/python"
# Where a run of config/smollm2.yaml leaves the model; a variable names a copy of it elsewhere.
SMOLLM2 = Path(os.environ.get("TRL_ORACLE_MODEL", ROOT / "results/smollm2/fetch_policy/checkpoint"))
TOLERANCE = 1e-5  # of each number
# Of all numbers by norm, which tells more where all are small. The weights of a large model go a
# way so short that fp32 rounds it noticeably, above all in TRL's average: it scales, then adds.
GRADIENT_SHARE, WEIGHTS_SHARE = 1e-4, 1e-2
SHORT, LONG = "What is the capital of France?", "Tell a long story about a fox."  # answers

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="TRL is not installed: run `make trl`")


@dataclasses.dataclass
class Steps:
    """What TRL started from, and what it did.

    Attributes:
        gradients: of each step, clipped. policy, anchor: after the last step.
    """

    model: Path
    settings: ReinforceSettings
    batches: list[Completions]
    rewards: list[Tensor]
    gradients: list[dict[str, Tensor]]
    policy: dict[str, Tensor]
    anchor: dict[str, Tensor]


def run_trl(
    model: Path, prompts: Sequence[Prompt], settings: ReinforceSettings, out: Path
) -> Steps:
    asked = dataclasses.asdict(settings) | {"prompts": prompts}
    (out / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    command = [PYTHON, ROOT / "tests/training/trl_steps.py", model, out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    steps = [load_file(out / f"step{n + 1}.safetensors") for n in range(settings.steps)]
    orders = [by_prompt(step["prompt_ids"]) for step in steps]
    return Steps(
        model,
        settings,
        [completions_of(step).rows(order) for step, order in zip(steps, orders, strict=True)],
        [step["rewards"][order] for step, order in zip(steps, orders, strict=True)],
        [
            {name.removeprefix("gradient/"): step[name] for name in step if "/" in name}
            for step in steps
        ],
        load_file(out / "policy.safetensors"),
        load_file(out / "anchor.safetensors"),
    )


def by_prompt(prompt_ids: Tensor) -> Tensor:
    """Row indices with those of one prompt side by side, as our step has them: TRL shuffles the
    rows once it has their advantages."""
    return prompt_ids.unique(dim=0, return_inverse=True)[1].argsort(stable=True)


def completions_of(step: Mapping[str, Tensor]) -> Completions:
    ids, is_response = step["completion_ids"], step["completion_mask"].bool()
    last = ids.gather(1, is_response.sum(1, keepdim=True) - 1)[:, 0]
    return Completions(
        step["prompt_ids"], step["prompt_mask"].bool(), ids, is_response, last == step["eos_id"]
    )


def our_gradients(
    run: Run, steps: Steps, settings: ReinforceSettings
) -> Iterator[dict[str, Tensor]]:
    """Train on TRL's batches; after each step the clipped gradient that the optimiser took."""
    taken: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        taken.update((name, p.grad.clone()) for name, p in run.policy.named_parameters())

    run.optimizer.register_step_pre_hook(keep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reinforce, "sample_batch", lambda *given: steps.batches[given[3] - 1])
        rewards = iter(steps.rewards)
        rows = reinforce.train_policy(
            run, lambda batch: next(rewards), [], settings, eos_ids=[], pad_id=0, seed=0
        )
        for row in rows:
            assert row.grad_norm > settings.max_grad_norm, "the clipping is to be tested"
            yield taken


def norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())


def apart(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], start: Mapping[str, Tensor] | None
) -> tuple[float, float]:
    """The largest difference of a number; and all differences by norm, as a share of TRL's
    gradient, or of the way that TRL's weights went from `start`."""
    assert ours.keys() == theirs.keys()
    with torch.no_grad():  # one tensor after the other: of a large model all would take much memory
        largest = max(float((ours[n] - theirs[n]).abs().max()) for n in theirs)
        way = norm(theirs[n] if start is None else theirs[n] - start[n] for n in theirs)
        return largest, norm(ours[n] - theirs[n] for n in theirs) / way


def compare(steps: Steps, **changes: Any) -> dict[str, tuple[float, float]]:
    """Return how far our steps are from TRL's, with `changes` of our settings."""
    settings = dataclasses.replace(steps.settings, **changes)
    policy = load_policy(steps.model)
    run = reinforce.start_run(policy, policy, settings)
    found = {}
    for step, ours in enumerate(our_gradients(run, steps, settings)):
        found[f"gradient {step + 1}"] = apart(ours, steps.gradients[step], None)
    start = dict(load_policy(steps.model).named_parameters())
    anchor = run.anchor.model
    found["policy"] = apart(dict(policy.named_parameters()), steps.policy, start)
    found["EMA"] = apart(dict(anchor.named_parameters()), steps.anchor, start)
    for name, (largest, share) in found.items():
        print(f"{changes} {name}: at most {largest:.1e} apart, by norm a share of {share:.1e}")
    return found


def agree(found: Mapping[str, tuple[float, float]]) -> bool:
    return all(
        largest < TOLERANCE and share < (GRADIENT_SHARE if "gradient" in name else WEIGHTS_SHARE)
        for name, (largest, share) in found.items()
    )


def check_batches(steps: Steps) -> None:
    """Some rows are cut and some end, and prompts are padded."""
    for batch in steps.batches:
        assert 0 < int(batch.finished.sum()) < len(batch.finished)
        assert not bool(batch.is_prompt.all())


@pytest.fixture(scope="module")
def tiny(
    make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Steps:
    """A random Llama, prompts of one to five words, about half of the completions cut."""
    folder = tmp_path_factory.mktemp("trl")
    save_checkpoint(make_model("llama"), make_tokenizer(), folder / "tiny")
    settings = dataclasses.replace(
        SETTINGS, steps=2, batch_size=16, samples_per_prompt=4, max_new_tokens=12,
        learning_rate=1e-3, max_grad_norm=0.1, temperature=0.8, beta=1.0, mu=0.2,
    )  # fmt: skip
    return run_trl(
        folder / "tiny", ["w1 w2 w3", "w4", "w5 w6", "w7 w8 w9 w10 w11"], settings, folder
    )


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_steps_are_those_of_trl(tiny: Steps, micro_batch_size: int | None) -> None:
    check_batches(tiny)
    assert agree(compare(tiny, micro_batch_size=micro_batch_size))


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"beta": 0.9}, "gradient 2"),
        ({"temperature": 0.79}, "gradient 1"),
        ({"baseline": "batch"}, "gradient 1"),
        ({"length_penalty": 1e-3}, "gradient 1"),
        ({"max_grad_norm": 0.11}, "gradient 1"),
        ({"learning_rate": 1.1e-3}, "policy"),
        ({"warmup_steps": 2}, "policy"),
        ({"mu": 0.21}, "EMA"),
        ({"anchor": "init"}, "gradient 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_the_comparison_sees_a_setting_that_differs(
    tiny: Steps, changes: dict[str, Any], differs: str
) -> None:
    assert compare(tiny, **changes)[differs][0] > TOLERANCE


@pytest.mark.skipif(
    not (SMOLLM2 / "config.json").exists(),
    reason="SmolLM2 is not there: run `make smollm2`, or name its folder in TRL_ORACLE_MODEL",
)
def test_steps_of_smollm2_are_those_of_trl() -> None:
    """Eight completions through the chat template; EOS is the pad token too."""
    settings = dataclasses.replace(
        SETTINGS, steps=2, batch_size=8, samples_per_prompt=4, max_new_tokens=12,
        learning_rate=5e-6, max_grad_norm=1.0, temperature=0.8, beta=0.1, mu=0.2,
    )  # fmt: skip
    prompts: list[Prompt] = [[{"role": "user", "content": text}] for text in (SHORT, LONG)]
    with tempfile.TemporaryDirectory() as folder:  # 2 GB, which pytest would keep
        steps = run_trl(SMOLLM2, prompts, settings, Path(folder))
        check_batches(steps)
        assert agree(compare(steps))
