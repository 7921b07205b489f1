"""On a real SLURM of two virtual nodes on this machine (tests/slurm/start.sh): the run of a fresh
clone, and jobs that are taken from it in every way that clusters have."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from project import (
    ROOT,
    SMOKE,
    copy_finished,
    copy_project,
    environment,
    execute,
    pointers,
    snakemake,
)

pytestmark = pytest.mark.workflow

START = ROOT / "tests/slurm/start.sh"
STATE = Path(os.environ.get("SLURM_TEST_DIR", "/tmp/warpflow-slurm"))  # of the cluster
# As users call it, but for the wait before SLURM is asked how a job fares: what one takes here.
PROFILE = ("--profile", "slurm", "--slurm-init-seconds-before-status-checks", "4")
TABLE = "results/collect_evaluations/main/evaluations.csv"
POLICY = "results/train_policy/warp/replicate1/iteration1/member0/checkpoint.dvc"
SUBMITTED = "has been submitted with SLURM jobid"
STEPS, SAVE_EVERY = 8, 3
# A reward that takes its time, as real ones do, and notes its calls; neither is part of a result.
PATIENT = """\
import os
import time
from pathlib import Path


def length(completions, **_):
    with open("calls", "a") as file:
        file.write(f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
    time.sleep(float(Path("delay").read_text()))
    return [float(len(text.split())) for text in completions]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A running cluster; one that runs already is left running."""
    if subprocess.run(["sh", "-c", "command -v nvidia-smi"], capture_output=True).returncode == 0:
        pytest.skip("a machine with GPUs: virtual nodes with made-up ones would use them")
    was_up = subprocess.run([START, "status"], capture_output=True).returncode == 0
    started = subprocess.run([START], capture_output=True, text=True)
    if started.returncode == 77:
        pytest.skip(started.stderr.splitlines()[-1])
    assert started.returncode == 0, started.stdout + started.stderr
    yield
    if not was_up:
        subprocess.run([START, "stop"], check=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two RL runs, with all made that they need."""
    folder = copy_project(tmp_path_factory.mktemp("slurm") / "project")
    path = folder / "config/smoke.yaml"
    settings = yaml.safe_load(path.read_text())
    training = {"steps": STEPS, "save_every": SAVE_EVERY, "evaluate_every": 100}
    settings["train_policy"] |= training
    settings["rewards"] = {"reward_model": 0, "patient:length": 1.0}
    settings["interpolate_policy"] = {"etas": [1]}
    experiments = yaml.safe_load((folder / "config/config.yaml").read_text())["experiments"]
    settings |= {"iterations": 1, "experiments": dict.fromkeys(experiments)}
    path.write_text(yaml.safe_dump(settings))
    (folder / "patient.py").write_text(PATIENT)
    (folder / "delay").write_text("0")
    snakemake(folder, "results/train_sft/checkpoint.dvc", *SMOKE)
    return folder


@dataclass(frozen=True)
class Undisturbed:
    """The run on this machine, without SLURM."""

    folder: Path
    calls: int  # of the reward, in the RL run that faults come over


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = copy_finished(prepared, tmp_path_factory.mktemp("slurm") / "undisturbed")
    snakemake(folder, POLICY, *SMOKE)
    count = len(calls(folder))
    snakemake(folder, TABLE, *SMOKE)
    return Undisturbed(folder, count)


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_the_run_of_a_cluster_gives_the_bytes_of_a_local_one(
    cluster, prepared, undisturbed, tmp_path
):
    folder = copy_finished(prepared, tmp_path / "project")
    printed = execute(folder, "snakemake", TABLE, *PROFILE, *SMOKE)
    assert printed.count(SUBMITTED) == 7  # 2 RL runs, merge, LITI, 3 evaluations
    assert "localrule collect_evaluations" in printed
    assert pointers(folder) == pointers(undisturbed.folder)
    assert (folder / TABLE).read_bytes() == (undisturbed.folder / TABLE).read_bytes()
    assert set(calls(folder)) <= {"GPU 0", "GPU 1"}  # one for each job
    assert set(calls(undisturbed.folder)) == {"GPU "}  # tests hide them


# --- taken away --------------------------------------------------------------------------------


def control(*command: str) -> str:
    """A command of SLURM's, and what it prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def wait_until(true: Callable[[], object], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def running() -> list[str]:
    return control("squeue", "--noheader", "--states=R", "--partition=main", "--format=%i").split()


def disturbed(folder: Path, fault: Callable[[str], None], *arguments: str) -> str:
    """Train on the cluster, have `fault` come over the job (it gets the id) after some steps, and
    wait for the end of the run; what Snakemake printed."""
    log = folder / "printed"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["snakemake", POLICY, *arguments, *PROFILE, *SMOKE],
            cwd=folder,
            env=environment(folder),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: len(calls(folder)) >= 5, f"no steps: {log.read_text()[-3000:]}")
        (job,) = running()
        fault(job)
        process.wait(timeout=240)
    finally:
        process.kill()
        for job in running():
            control("scancel", job)
    assert process.returncode == 0, log.read_text()[-5000:]
    return log.read_text()


def cancel(job: str) -> None:
    control("scancel", job)


def reach_time_limit(job: str) -> None:
    control("scontrol", "update", f"jobid={job}", "endtime=now")


def preempt(job: str) -> None:
    wrap = ("--wrap", "sleep 2", "--output=/dev/null")
    control("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", *wrap)


def lose_node(job: str) -> None:
    """The node's power goes: its daemon, SLURM's watchers and the job die at once."""
    node = control("squeue", "--noheader", f"--jobs={job}", "--format=%N")
    daemon = int((STATE / f"run/slurmd.{node}.pid").read_text())
    watchers, others = [], []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue  # it has ended
        if command.startswith(f"slurmstepd: [{job}.".encode()):
            watchers.append(int(path.name))
        elif f"SLURM_JOB_ID={job}".encode() in variables.split(b"\0"):
            others.append(int(path.name))
    assert watchers
    assert others
    for process in (daemon, *watchers, *others):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    wait_until(lambda: job in running() and lost(node), f"{job} does not start on another node")
    subprocess.run([START], check=True)  # the node is repaired


def lost(node: str) -> bool:
    return "down" in control("sinfo", "--noheader", f"--nodes={node}", "--format=%T")


@pytest.mark.parametrize(
    ("fault", "warned", "submissions"),
    [
        (cancel, True, 2),
        (reach_time_limit, True, 2),
        (preempt, True, 1),  # requeued by SLURM: the same job starts again
        (lose_node, False, 1),
    ],
)
def test_a_run_taken_away_goes_on_to_the_same_bytes(
    cluster, prepared, undisturbed, tmp_path, fault, warned, submissions
):
    folder = copy_finished(prepared, tmp_path / "project")
    (folder / "delay").write_text("1")
    started = time.monotonic()
    printed = disturbed(folder, fault)
    repeated = len(calls(folder)) - undisturbed.calls
    print(f"{fault.__name__}: {time.monotonic() - started:.0f} s, {repeated} steps repeated")
    assert (folder / POLICY).read_text() == (undisturbed.folder / POLICY).read_text()
    assert printed.count(SUBMITTED) == submissions
    assert repeated <= (0 if warned else SAVE_EVERY)  # nothing before the last save
    assert not list((folder / "results/states").iterdir())


def test_out_of_memory_the_next_attempt_gets_more(cluster, prepared, undisturbed, tmp_path):
    folder = copy_finished(prepared, tmp_path / "project")
    needs = "train_policy:mem_mb=450 if attempt == 1 else 4000"
    printed = execute(folder, "snakemake", POLICY, *PROFILE, "--set-resources", needs, *SMOKE)
    assert printed.count(SUBMITTED) == 2
    logs = "".join(path.read_text() for path in folder.glob(".snakemake/slurm_logs/*/*/*.log"))
    assert re.search("Out Of Memory|memory limit", logs)  # of the attempt that failed
    assert (folder / POLICY).read_text() == (undisturbed.folder / POLICY).read_text()


def test_snakemake_killed_leaves_a_job_that_the_next_start_does_not_disturb(
    cluster, prepared, undisturbed, tmp_path
):
    folder = copy_finished(prepared, tmp_path / "project")
    (folder / "delay").write_text("2.5")
    command = ("snakemake", POLICY, *PROFILE, *SMOKE)
    first = subprocess.Popen(
        command, cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL
    )
    wait_until(lambda: calls(folder), "no steps")
    first.kill()
    first.wait()
    execute(folder, *command[:2], "--unlock", *SMOKE)
    printed = execute(folder, *command)
    assert printed.count(SUBMITTED) > 1  # while the first job trained, others left it alone
    assert (folder / POLICY).read_text() == (undisturbed.folder / POLICY).read_text()
    assert len(calls(folder)) == undisturbed.calls


# --- several GPUs without a cluster ------------------------------------------------------------


def test_two_runs_at_once_on_a_machine_with_two_gpus(prepared, tmp_path):
    folder = copy_finished(prepared, tmp_path / "project")
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '0, GPU-a, Fake\\n1, GPU-b, Fake\\n'\n")
    program.chmod(0o755)
    (folder / "delay").write_text("0.5")
    execute(
        folder,
        *("snakemake", POLICY, POLICY.replace("member0", "member1"), "--cores", "2", *SMOKE),
        extra={"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
        | {"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path)},
    )
    called = calls(folder)
    assert called.count("GPU GPU-a") == called.count("GPU GPU-b") == STEPS + 2
    assert set(called[:STEPS]) == {"GPU GPU-a", "GPU GPU-b"}  # neither waited for the other
