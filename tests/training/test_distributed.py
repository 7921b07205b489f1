"""Two processes do what one does: data-parallel through `accelerate launch`, and sharded."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import EOS, PAD, MakeModel
from safetensors.torch import load_file
from test_reinforce import PROMPTS, count_fives, settings
from test_scripts import GOLD, MODEL, REINFORCE, SAMPLING, flags, make_inputs

from warpflow.training.distributed import own_part
from warpflow.training.reinforce import start_run, train_policy

pytestmark = pytest.mark.slow  # each test starts several processes

ROOT = Path(__file__).parents[2]
OPTIONS = {"num_processes": 2, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
LAUNCH = ["accelerate", "launch", "--multi_gpu", "--main_process_port", "0", *flags(**OPTIONS)]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "workflow", ROOT / "scripts", ROOT / "tests"))),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def start_script(launcher: list[str], folder: Path, out: Path, **changes: object) -> str:
    """Run scripts/train_policy.py to its end, and return what it printed."""
    paths = {name: folder / name for name in ("sft", "reward_model", "data")}
    judging = {"gold": GOLD, "rewards": MODEL}
    chosen = {
        **SAMPLING,
        **REINFORCE,
        **judging,
        "seed": 0,
        "replicate": 1,
        "iteration": 1,
        "steps": 5,
    }
    tables = out.with_name(f"{out.name}.tables")
    words = flags(
        init=folder / "sft", member=0, out=out, tables=tables, **paths, **(chosen | changes)
    )
    command = [*launcher, str(ROOT / "scripts/train_policy.py"), *words]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_two_processes_train_as_one(inputs: Path, tmp_path: Path) -> None:
    """The same global batch gives the same completions, rewards and gradient."""
    baseline = "batch"  # the only one that needs the rewards of other processes
    state = {"state": tmp_path / "state", "save_every": 2}
    start_script([sys.executable], inputs, tmp_path / "one", baseline=baseline)
    printed = start_script(LAUNCH, inputs, tmp_path / "two", baseline=baseline, **state)
    assert (tmp_path / "two/model.safetensors").is_file(), printed
    one, two = (pd.read_csv(tmp_path / f"{name}.tables/training.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-4, atol=1e-5)
    one, two = (  # sampling along the way is shared
        pd.read_json(tmp_path / f"{name}.tables/completions.jsonl", lines=True)
        for name in ("one", "two")
    )
    pd.testing.assert_frame_equal(one, two, rtol=1e-4, atol=1e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    start = load_file(inputs / "sft/model.safetensors")
    assert largest_difference(*weights) < 1e-5 < 1e-3 < largest_difference(start, weights[0])
    # What two processes saved, one goes on with (and is done: step 4 of 5).
    printed = start_script([sys.executable], inputs, tmp_path / "on", baseline=baseline, **state)
    assert "resumed after step 4" in printed
    resumed = load_file(tmp_path / "on/model.safetensors")
    assert largest_difference(weights[1], resumed) < 1e-5


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_loaded(
    inputs: Path, tmp_path: Path
) -> None:
    printed = start_script(LAUNCH, inputs / "nowhere", tmp_path, batch_size=6)
    assert "batch_size / samples_per_prompt: got 3, expected a multiple of the 2" in printed


def test_a_sharded_policy_and_anchor_move_as_whole_ones(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """A sharded state also resumes bit for bit (asserted in tests/training/sharded_run.py)."""
    make_model("gemma").save_pretrained(tmp_path / "model")
    (tmp_path / "state").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(ROOT / "tests/training/sharded_run.py"), str(tmp_path)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    whole = start_run(make_model("gemma"), make_model("gemma"), settings(steps=6))
    start = whole.anchor.model.state_dict()
    start = {name: tensor.clone() for name, tensor in start.items()}
    rows = train_policy(
        whole, count_fives, PROMPTS, settings(steps=6), eos_ids=[EOS], pad_id=PAD, seed=0
    )
    assert len(list(rows)) == 6
    for name, model in (("policy", whole.policy), ("anchor", whole.anchor.model)):
        saved = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert largest_difference(saved, model.state_dict()) < 1e-5
        assert largest_difference(start, model.state_dict()) > 1e-3


def test_one_process_has_all_rows() -> None:
    assert own_part(7, "batch_size") == slice(0, 7)
