"""One training run as several processes: what is started, what is refused, and its end."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_distributed import largest_difference
from test_resume import command

from warpflow.pipeline.launch import Processes, choose_processes, launched, process_environment
from warpflow.training.resume import LAST

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def test_one_process_to_each_gpu_unless_told_otherwise() -> None:
    assert choose_processes(0, 0, 1, "ddp").count == 1
    assert choose_processes(0, 4, 1, "fsdp") == Processes(4, 1, "fsdp")
    assert choose_processes(1, 4, 1, "ddp").count == 1
    assert choose_processes(2, 0, 1, "ddp").count == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((3, 2, 1, "ddp"), "processes: got 3, expected at most gpu = 2"),
        ((3, 0, 2, "ddp"), "nodes: got 2, expected a divisor of the 3 processes"),
        ((2, 0, 2, "ddp"), "nodes: got 2, expected 1: this is no job of SLURM"),
        ((2, 0, 1, "dpp"), "accelerate: got dpp, expected a file of config/accelerate/: ddp, fsdp"),
    ],
)
def test_what_cannot_be_names_the_resource(given: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_processes(*given)


def test_several_nodes_need_srun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="nodes: got 2, expected 1: srun is not on the PATH"):
        choose_processes(2, 0, 2, "ddp")


def test_one_process_is_started_as_ever() -> None:
    assert launched(["python", "a.py", "--b", "c d"], Processes(), 4) == [
        *("python", "a.py", "--b", "c d")
    ]
    assert process_environment(Processes(), {"OMP_NUM_THREADS": "4"}) == {}


def test_cores_of_a_node_are_shared_among_its_processes() -> None:
    environment = process_environment(Processes(4, 2), {"OMP_NUM_THREADS": "6"})
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"


def test_over_nodes_each_ranks_launcher_comes_to_the_first_at_a_free_port() -> None:
    step = launched(["python", "a.py", "--b", "c d"], Processes(4, 2), 3)
    assert step[0] == "srun"
    assert {"--nodes=2", "--ntasks=2", "--cpus-per-task=3"} < set(step)
    run = subprocess.run(
        ["bash", "-c", step[-1].replace("exec python -m", "echo")],
        env={**os.environ, "SLURM_NODEID": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    words = run.stdout.split()
    assert words[words.index("--machine_rank") + 1] == "1"
    assert words[words.index("--num_processes") + 1] == "4"
    assert words[-4:] == ["a.py", "--b", "c", "d"]
    assert "'c d'" in step[-1]
    again = launched(["python", "a.py"], Processes(4, 2), 3)
    port = shlex.split(step[-1]).index("--main_process_port") + 1
    assert shlex.split(step[-1])[port] != shlex.split(again[-1])[port]


@pytest.mark.workflow
def test_sigterm_reaches_all_processes_which_save_and_go_on(inputs: Path, tmp_path: Path) -> None:
    """And a run may go on with another number of processes."""
    made, states, log = tmp_path / "result/checkpoint", tmp_path / "states", tmp_path / "log"
    words = ["python", *shortened(command(inputs, made, tmp_path / "unused"))[1:-2]]

    def start(processes: int) -> subprocess.Popen:
        wrapped = [sys.executable, "-m", "warpflow.pipeline.jobs", "run", "--makes", str(made)]
        wrapped += ["--processes", str(processes), "--log", str(log), "--states", str(states)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*wrapped, "--", *words], env=environment)

    process = start(2)
    deadline = time.monotonic() + 60
    while not list(states.glob(f"*/{LAST}")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait() != 0
    (last,) = states.glob(f"*/{LAST}")
    step = json.loads(last.read_text())["step"]
    assert f"stopped by SIGTERM after step {step}" in log.read_text()
    assert start(1).wait() == 0
    assert "resumed after step" in log.read_text()
    alone = tmp_path / "alone"
    subprocess.run(shortened(command(inputs, alone, tmp_path / "state")), check=True)
    weights = [load_file(folder / "model.safetensors") for folder in (made, alone)]
    assert largest_difference(*weights) < 1e-5


def shortened(words: list[str]) -> list[str]:
    """The run takes long enough for a signal, and no longer."""
    place = words.index("--steps") + 1
    return [*words[:place], "60", *words[place + 1 :]]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    from test_scripts import make_inputs

    return make_inputs(tmp_path / "inputs")
