"""A run that is killed at any moment goes on to the very bytes of an undisturbed one."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import EOS, PAD, MakeModel
from test_reinforce import PROMPTS, count_fives, settings, weights

from warpflow.training.reinforce import start_run, train_policy
from warpflow.training.resume import (
    LAST,
    STOPPED,
    describe_differences,
    load_state,
    locked,
    save_state,
)

ROOT = Path(__file__).parents[2]
KILLS = 20
STEPS = 120


def train(run, chosen, stop: int | None = None) -> list:
    rows = []
    arguments = {"eos_ids": [EOS], "pad_id": PAD, "seed": 0}
    for row in train_policy(run, count_fives, PROMPTS, chosen, **arguments):
        rows.append(row)
        if row.step == stop:
            break
    return rows


@pytest.mark.gpu
@pytest.mark.parametrize("anchor", ["ema", "hard_reset"])
def test_a_loaded_run_goes_on_bit_for_bit(
    make_model: MakeModel, tmp_path: Path, anchor: str
) -> None:
    """Weights, anchor (TRL and OpenRLHF lose theirs), optimiser, prompts and random numbers."""
    chosen = settings(steps=6, anchor=anchor)
    whole = start_run(make_model("gemma"), make_model("gemma"), chosen)
    expected = train(whole, chosen)
    first = start_run(make_model("gemma"), make_model("gemma"), chosen)
    train(first, chosen, stop=3)
    save_state(tmp_path, first, {"beta": 0.1}, {"training": [{"step": 3}]})
    second = start_run(make_model("gemma", seed=9), make_model("gemma"), chosen)
    assert load_state(tmp_path, second, {"beta": 0.1}) == {"training": [{"step": 3}]}
    assert second.step == 3
    assert train(second, chosen) == expected[3:]
    assert torch.equal(weights(second.policy), weights(whole.policy))
    assert torch.equal(weights(second.anchor.model), weights(whole.anchor.model))


def test_no_state_is_none_and_another_runs_state_is_refused(
    make_model: MakeModel, tmp_path: Path
) -> None:
    run = start_run(make_model("llama"), make_model("llama"), settings())
    assert load_state(tmp_path, run, {"beta": 0.1}) is None
    save_state(tmp_path, run, {"beta": 0.1, "mu": 0.3}, {})
    with pytest.raises(ValueError, match=r"another run: beta is 0\.2, there 0\.1\. Restore"):
        load_state(tmp_path, run, {"beta": 0.2, "mu": 0.3})
    assert describe_differences({"a": 1}, {"b": 2}) == "a is None, there 1, b is 2, there None"


def test_a_save_cut_short_leaves_the_last_good_one(make_model: MakeModel, tmp_path: Path) -> None:
    run = start_run(make_model("llama"), make_model("llama"), settings())
    save_state(tmp_path, run, {}, {"training": [1]})
    (tmp_path / "step1.process0.pt").write_bytes(b"half a state")
    (tmp_path / f"{LAST}.tmp").write_bytes(b"half a name")
    assert load_state(tmp_path, run, {}) == {"training": [1]}
    run.step = 2
    save_state(tmp_path, run, {}, {"training": [1, 2]})
    assert load_state(tmp_path, run, {}) == {"training": [1, 2]}
    assert {path.name for path in tmp_path.iterdir()} == {LAST, "step2.process0.pt"}


def test_two_processes_never_share_a_state(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(RuntimeError, match="another process trains this run"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


# --- the script, killed ------------------------------------------------------------------------


def command(folder: Path, out: Path, state: Path) -> list[str]:
    """scripts/train_policy.py on the tiny models of tests/test_scripts.py, saving every step."""
    from test_scripts import GOLD, MODEL, REINFORCE, SAMPLING, flags

    paths = {name: folder / name for name in ("sft", "reward_model", "data")}
    tables = out.with_name(f"{out.name}.tables")
    changes = {"steps": STEPS, "evaluate_every": 100, "out": out, "tables": tables, "state": state}
    chosen = {
        **SAMPLING,
        **REINFORCE,
        "gold": GOLD,
        "rewards": MODEL,
        "seed": 0,
        "replicate": 1,
        "iteration": 1,
        **changes,
    }
    words = flags(init=folder / "sft", member=0, **paths, **chosen)
    return [sys.executable, str(ROOT / "scripts/train_policy.py"), *words]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def saved_step(state: Path) -> int:
    path = state / LAST
    return json.loads(path.read_text())["step"] if path.is_file() else 0


def wait_for_training(state: Path, process: int) -> None:
    """Wait until the process saved a state of its own, or ended."""
    before = (state / LAST).stat().st_mtime_ns if (state / LAST).is_file() else None
    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        now = (state / LAST).stat().st_mtime_ns if (state / LAST).is_file() else None
        if now != before:
            return
        time.sleep(0.002)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from test_scripts import make_inputs

    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(inputs, folder / "out", folder / "state"), check=True)
    return digest(folder / "out")


@pytest.mark.workflow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    inputs: Path, undisturbed: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """SIGKILL comes some milliseconds after a save, twenty times: in a step, and in the next
    save. The runs that are killed are forks (forked_runs.py), since imports take most of a start;
    the last run is a fresh process."""
    moments, state = random.Random(0), tmp_path / "state"
    steps = [0]
    program = [sys.executable, str(ROOT / "tests/training/forked_runs.py")]
    folders = os.pathsep.join(str(ROOT / name) for name in ("workflow", "scripts"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, env={**os.environ, "PYTHONPATH": folders}, **pipes) as runs:
        assert runs.stdin and runs.stdout
        for _ in range(KILLS):
            _, _, *words = command(inputs, tmp_path / "out", state)
            runs.stdin.write(json.dumps(words) + "\n")
            runs.stdin.flush()
            run = int(runs.stdout.readline())
            wait_for_training(state, run)
            time.sleep(moments.uniform(0, 0.06))
            os.kill(run, signal.SIGKILL)
            ended = int(runs.stdout.readline())
            assert ended == -signal.SIGKILL, "the run ended before it was killed: raise STEPS"
            steps.append(saved_step(state))
        runs.stdin.close()
    assert steps == sorted(steps), "a saved step was lost"
    assert steps[-1] >= KILLS
    assert not (tmp_path / "out").exists()
    subprocess.run(command(inputs, tmp_path / "out", state), check=True)
    assert digest(tmp_path / "out") == undisturbed
    with capfd.disabled():
        print(f"\n{KILLS} kills, steps saved: {steps}")


@pytest.mark.workflow
def test_sigterm_saves_and_asks_to_be_started_again(
    inputs: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    process = subprocess.Popen(command(inputs, tmp_path / "out", state))
    wait_for_training(state, process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == STOPPED
    assert 0 < saved_step(state) < STEPS
    assert subprocess.run(command(inputs, tmp_path / "out", state)).returncode == 0
    assert digest(tmp_path / "out") == undisturbed


@pytest.mark.workflow
def test_the_job_wrapper_passes_sigterm_on_and_keeps_the_state(
    inputs: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """A cluster ends a job so: the wrapper gets the signal, the run saves itself, the next start
    goes on from there, and the state is gone after success."""
    (tmp_path / "pointer.dvc").write_text("outs: [{md5: x, path: pointer}]\n")
    made, states = tmp_path / "result/checkpoint", tmp_path / "states"
    words = command(inputs, made, tmp_path / "unused")[:-2]
    wrapped = [sys.executable, "-m", "warpflow.pipeline.jobs", "run", "--makes", str(made)]
    wrapped += ["--log", str(tmp_path / "log"), "--states", str(states), "--", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    process = subprocess.Popen(wrapped, cwd=tmp_path, env=environment)
    while not list(states.glob(f"*/{LAST}")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    assert process.wait() == STOPPED
    assert list(states.glob(f"*/{LAST}"))
    assert not made.exists()
    subprocess.run(wrapped, cwd=tmp_path, env=environment, check=True)
    assert "resumed after step" in (tmp_path / "log").read_text()
    assert digest(made) == undisturbed
    assert not list(states.iterdir())
    assert json.loads((made.parent / "provenance.json").read_text())["seconds"] > 0
