"""A real SLURM of two virtual nodes on this machine (tests/slurm/start.sh) runs a fresh clone, and
its jobs are interrupted in every way that clusters have."""

import csv
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
from safetensors.torch import load_file

pytestmark = pytest.mark.workflow

START = ROOT / "tests/slurm/start.sh"
STATE = Path(os.environ.get("SLURM_TEST_DIR", "/tmp/warpflow-slurm"))  # of the cluster
# Where the cluster keeps accounts (SLURM_ACCOUNTING=1), jobs are asked for by sacct, too.
ACCOUNTED = ("--slurm-status-command", "sacct", "--slurm-efficiency-report")
# As users call it, but for the wait before SLURM is asked how a job fares: what one takes here.
PROFILE = ("--profile", "slurm", "--slurm-init-seconds-before-status-checks", "4")
TABLE = "results/collect_evaluations/main/evaluations.csv"
POLICY = "results/train_policy/warp/replicate1/iteration1/member0/checkpoint.dvc"
SUBMITTED = "has been submitted with SLURM jobid"
STEPS, SAVE_EVERY = 8, 3
SMALL = ("--set-resources", "train_policy:mem_mb=1500")  # several jobs on a node
WARNED = ("train_policy:slurm_extra='--signal=TERM@60'",)
TWO_NODES = [
    f"train_policy:{need}"
    for need in ("nodes=2", "gpu=2", "mpi=srun", "tasks=2", "tasks_per_gpu=0", "mem_mb=1500")
]
# A reward that takes its time, as real ones do, and notes its calls; neither is part of a result.
PATIENT = """\
import os
import time
from pathlib import Path

import torch


def length(completions, **_):
    with open("calls", "a") as file:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        file.write(f"GPU {devices}, threads {torch.get_num_threads()}\\n")
    time.sleep(float(Path("delay").read_text()))
    while Path("hold").exists():
        time.sleep(0.1)
    return [float(len(text.split())) for text in completions]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A running cluster; one that runs already is left running."""
    if subprocess.run(["sh", "-c", "command -v nvidia-smi"], capture_output=True).returncode == 0:
        pytest.skip("a machine with GPUs: virtual nodes with made-up ones would use them")
    was_up = subprocess.run([START, "status"], capture_output=True).returncode == 0
    started = subprocess.run([START], capture_output=True, text=True)
    if started.returncode == 77 and os.environ.get("SLURM_ACCOUNTING"):
        without = {**os.environ, "SLURM_ACCOUNTING": ""}
        started = subprocess.run([START], capture_output=True, text=True, env=without)
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


# --- what is tried on it -----------------------------------------------------------------------


def control(*command: str) -> str:
    """Run a command of SLURM, and return what it prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def accounts() -> bool:
    """Whether slurmdbd answers."""
    command = ["sacctmgr", "--noheader", "show", "cluster"]
    return subprocess.run(command, capture_output=True).returncode == 0


def wait_until(true: Callable[[], object], what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def running(folder: Path) -> list[str]:
    """Return the ids of the jobs submitted from there that run now."""
    lines = control("squeue", "--noheader", "--states=R", "--format=%i %Z").splitlines()
    return [line.split()[0] for line in lines if line.split()[1] == str(folder)]


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """Start Snakemake on the cluster, with what it prints in `printed`."""
    command = ["snakemake", *arguments, *PROFILE, *SMOKE]
    variables = environment(folder) | {"GLOO_SOCKET_IFNAME": "lo"}  # all nodes are this machine
    with (folder / "printed").open("w") as file:
        return subprocess.Popen(
            command, cwd=folder, env=variables, stdout=file, stderr=subprocess.STDOUT
        )


def finish(process: subprocess.Popen, folder: Path) -> str:
    """Wait for the end of the run, and return what it printed."""
    try:
        process.wait(timeout=400)
    finally:
        process.kill()
        for job in running(folder):
            control("scancel", job)
    printed = (folder / "printed").read_text()
    assert process.returncode == 0, printed[-5000:]
    return printed


def disturbed(folder: Path, fault: Callable[[str], None], *arguments: str) -> str:
    """Train, and have `fault` come over the job (it gets the id) after some steps."""
    (folder / "delay").write_text("1")
    started = time.monotonic()
    process = start(folder, POLICY, *arguments)
    try:
        wait_until(lambda: len(calls(folder)) >= 5, f"no steps in {folder}")
        (job,) = running(folder)
        fault(job)
    except BaseException:
        process.kill()
        raise
    printed = finish(process, folder)
    print(f"{fault.__name__}: {time.monotonic() - started:.0f} s, {len(calls(folder))} calls")
    return printed


def cancel(job: str) -> None:
    control("scancel", job)


def reach_time_limit(job: str) -> None:
    """SLURM refuses a time that has passed, as `now` may have by the second that it is read."""
    command = ["scontrol", "update", f"jobid={job}", "endtime=now"]
    wait_until(
        lambda: subprocess.run(command, capture_output=True).returncode == 0, "no time limit", 5
    )


def near_time_limit(job: str) -> None:
    """Set a time limit so near that SLURM sends the signal that `--signal` asks for. SLURM looks
    every 30 s, for which the steps left would not last."""
    folder = Path(control("squeue", "--noheader", f"--jobs={job}", "--format=%Z"))
    (folder / "delay").write_text("8")
    control("scontrol", "update", f"jobid={job}", "endtime=now+80")
    wait_until(lambda: job not in running(folder), "no signal")
    (folder / "delay").write_text("1")


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
    wait_until(lambda: runs(job) and lost(node), f"{job} does not start on another node")
    subprocess.run([START], check=True)  # the node is repaired


def runs(job: str) -> bool:
    return control("squeue", "--noheader", f"--jobs={job}", "--format=%t") == "R"


def lost(node: str) -> bool:
    return "down" in control("sinfo", "--noheader", f"--nodes={node}", "--format=%T")


def run_out_of_memory(folder: Path) -> str:
    needs = "train_policy:mem_mb=450 if attempt == 1 else 1500"
    return finish(start(folder, POLICY, "--set-resources", needs), folder)


def kill_snakemake(folder: Path) -> str:
    """While its job trains, and start it again; it trains on once others were submitted."""
    (folder / "hold").touch()
    first = start(folder, POLICY, *SMALL)  # so that the second job need not wait for its memory
    wait_until(lambda: calls(folder), "no steps")
    first.kill()
    first.wait()
    execute(folder, "snakemake", POLICY, "--unlock", *SMOKE)
    second = start(folder, POLICY, *SMALL)
    try:
        wait_until(lambda: (folder / "printed").read_text().count(SUBMITTED) > 1, "one job")
    finally:
        (folder / "hold").unlink()
    return finish(second, folder)


def run_all(folder: Path) -> str:
    return finish(start(folder, TABLE, *SMALL, *(ACCOUNTED if accounts() else ())), folder)


# What runs side by side, each in a folder of its own: most of a run on a cluster is waiting.
AT_ONCE: dict[str, Callable[[Path], str]] = {
    "whole": lambda folder: finish(
        start(folder, TABLE, *(ACCOUNTED if accounts() else ())), folder
    ),
    "two_nodes": lambda folder: disturbed(folder, cancel, "--set-resources", *TWO_NODES),
    "cancel": lambda folder: disturbed(folder, cancel, *SMALL),
    "reach_time_limit": lambda folder: disturbed(folder, reach_time_limit, *SMALL),
    "near_time_limit": lambda folder: disturbed(folder, near_time_limit, *SMALL, *WARNED),
    "run_out_of_memory": run_out_of_memory,
    "kill_snakemake": kill_snakemake,
}


@pytest.fixture(scope="module")
def runs_at_once(
    cluster, prepared, undisturbed, tmp_path_factory
) -> Iterator[dict[str, tuple[Path, Future[str]]]]:
    """Return the folder of each run, and what Snakemake printed there once it is done."""
    with ThreadPoolExecutor(4) as pool:  # more are too many for two cores
        found = {}
        for name, trial in AT_ONCE.items():
            folder = copy_finished(prepared, tmp_path_factory.mktemp("cluster") / "project")
            found[name] = folder, pool.submit(trial, folder)
        yield found


def test_the_run_of_a_cluster_gives_the_bytes_of_a_local_one(runs_at_once, undisturbed):
    folder, printed = runs_at_once["whole"]
    # 2 RL runs, the scores of their trajectories, merge, one front for all evaluations, the optimum
    assert printed.result().count(SUBMITTED) == 6
    assert "localrule collect_evaluations" in printed.result()
    assert pointers(folder) == pointers(undisturbed.folder)
    assert (folder / TABLE).read_bytes() == (undisturbed.folder / TABLE).read_bytes()
    devices = {line.split(",")[0] for line in calls(folder)}
    assert devices <= {"GPU 0", "GPU 1"}  # one for each job
    assert {line.split(",")[0] for line in calls(undisturbed.folder)} == {"GPU "}  # tests hide them


def test_with_accounts_a_run_ends_with_a_report_of_its_efficiency(runs_at_once):
    if not accounts():
        pytest.skip("no slurmdbd: SLURM_ACCOUNTING=1 starts one")
    folder, printed = runs_at_once["whole"]
    assert "Efficiency report" in printed.result()
    (path,) = folder.glob("efficiency_report_*.csv")
    rules = {row["RuleName"].split("_wildcards")[0] for row in csv.DictReader(path.open())}
    assert {"rule_train_policy", "rule_merge_policies", "rule_evaluate_front"} <= rules


@pytest.mark.parametrize(("fault", "repeated"), [("cancel", 0), ("reach_time_limit", SAVE_EVERY)])
def test_a_run_taken_away_goes_on_to_the_same_bytes(runs_at_once, undisturbed, fault, repeated):
    """At a time limit nothing before the last save is lost. On a machine that is not too busy
    nothing at all is lost, as there is time to save."""
    folder, printed = runs_at_once[fault]
    assert printed.result().count(SUBMITTED) == 2
    assert_same(folder, undisturbed, repeated)


def test_a_signal_before_the_time_limit_leaves_time_to_save(runs_at_once, undisturbed):
    folder, printed = runs_at_once["near_time_limit"]
    assert printed.result().count(SUBMITTED) == 2
    assert "'FAILED'" in printed.result()  # it ended itself, before …
    assert "'TIMEOUT'" not in printed.result()
    assert_same(folder, undisturbed, SAVE_EVERY)  # none where the machine is not too busy


def assert_same(folder: Path, undisturbed: Undisturbed, repeated: int) -> None:
    """Require the bytes of an undisturbed run, and at most so many steps done twice."""
    assert (folder / POLICY).read_text() == (undisturbed.folder / POLICY).read_text()
    assert len(calls(folder)) - undisturbed.calls <= repeated
    assert not list((folder / "results/states").iterdir())


def test_out_of_memory_the_next_attempt_gets_more(runs_at_once, undisturbed):
    folder, printed = runs_at_once["run_out_of_memory"]
    assert printed.result().count(SUBMITTED) == 2
    logs = "".join(path.read_text() for path in folder.glob(".snakemake/slurm_logs/*/*/*.log"))
    assert re.search("Out Of Memory|memory limit", logs)  # of the attempt that failed
    assert (folder / POLICY).read_text() == (undisturbed.folder / POLICY).read_text()


def test_snakemake_killed_leaves_a_job_that_the_next_start_does_not_disturb(
    runs_at_once, undisturbed
):
    folder, printed = runs_at_once["kill_snakemake"]
    assert (
        printed.result().count(SUBMITTED) > 1
    )  # while the first job trained, others left it alone
    assert_same(folder, undisturbed, repeated=0)


def test_one_run_over_two_nodes_saves_itself_and_has_the_weights_of_one_process(
    runs_at_once, undisturbed
):
    folder, printed = runs_at_once["two_nodes"]
    assert printed.result().count(SUBMITTED) == 2  # it was cancelled once
    assert largest_difference(folder, undisturbed.folder) < 1e-5
    assert len(calls(folder)) == 2 * undisturbed.calls  # no step of either process done twice
    made = json.loads((folder / POLICY).with_name("provenance.json").read_text())
    here = json.loads((undisturbed.folder / POLICY).with_name("provenance.json").read_text())
    assert made["key"] == here["key"]
    assert made["environment"]["nodes"] == made["environment"]["processes"] == 2


def largest_difference(*folders: Path) -> float:
    one, other = (
        load_file((folder / POLICY).with_suffix("") / "model.safetensors") for folder in folders
    )
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def runs_alone(
    cluster, prepared, runs_at_once, tmp_path_factory
) -> Iterator[dict[str, tuple[Path, Future[str]]]]:
    """The same for faults that would disturb other jobs, one after the other. They come after those
    runs, and go on while tests run that need no cluster."""
    wait([printed for _, printed in runs_at_once.values()])
    with ThreadPoolExecutor(1) as pool:
        found = {}
        for fault in (preempt, lose_node):
            folder = copy_finished(prepared, tmp_path_factory.mktemp("cluster") / "project")
            found[fault.__name__] = folder, pool.submit(disturbed, folder, fault)
        yield found


def test_what_no_node_has_is_said_before_anything_is_submitted(runs_alone, prepared):
    too_much = ("--set-resources", "train_policy:mem_mb=900000")
    printed = execute(prepared, "snakemake", POLICY, *PROFILE, *too_much, *SMOKE, succeeds=False)
    assert "mem_mb = 900000, but the largest node has 8000" in printed
    assert SUBMITTED not in printed
    assert (prepared / "results/train_sft/checkpoint/model.safetensors").is_file()


def test_a_file_that_shows_up_late_is_waited_for(tmp_path):
    """This happens on a shared file system, where Snakemake's own 5 seconds are too few."""
    (tmp_path / "Snakefile").write_text(
        'rule all:\n    output: "made"\n    shell: "(sleep 8; touch {output}) > /dev/null 2>&1 &"\n'
    )
    profile = yaml.safe_load((ROOT / "slurm/config.yaml").read_text())
    snakemake(tmp_path, "--latency-wait", str(profile["latency-wait"]))


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
    called = [line.split(",")[0] for line in calls(folder)]
    assert called.count("GPU GPU-a") == called.count("GPU GPU-b") == STEPS
    assert set(called[:STEPS]) == {"GPU GPU-a", "GPU GPU-b"}  # neither waited for the other


# --- the cores and processes of a job ----------------------------------------------------------


def test_torch_has_the_threads_of_the_rule(prepared, undisturbed, tmp_path):
    """Jobs share the cores. Otherwise each would take them all."""
    assert {line.split(", ")[1] for line in calls(undisturbed.folder)} == {"threads 1"}
    folder = copy_finished(prepared, tmp_path / "project")
    snakemake(folder, POLICY, "--set-threads", "train_policy=2", *SMOKE)
    assert {line.split(", ")[1] for line in calls(folder)} == {"threads 2"}


def test_one_run_of_two_processes_has_the_weights_of_one(prepared, undisturbed, tmp_path):
    folder = copy_finished(prepared, tmp_path / "project")
    two = ("--set-resources", "train_policy:processes=2", "--set-threads", "train_policy=2")
    snakemake(folder, POLICY, *two, *SMOKE)
    assert largest_difference(folder, undisturbed.folder) < 1e-5
    assert len(calls(folder)) == 2 * undisturbed.calls
    assert {line.split(", ")[1] for line in calls(folder)} == {"threads 1"}  # of two for both
    assert snakemake(folder, "-n", POLICY, *SMOKE).count("Nothing to be done") == 1


def test_a_second_snakemake_is_told_of_the_first_and_disturbs_nothing(
    prepared, undisturbed, tmp_path
):
    folder = copy_finished(prepared, tmp_path / "project")
    (folder / "delay").write_text("1")
    command = ("snakemake", "--cores", "1", POLICY, *SMOKE)
    first = subprocess.Popen(
        command, cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL
    )
    wait_until(lambda: calls(folder), "no steps")
    printed = execute(folder, *command, succeeds=False)
    assert "Directory cannot be locked" in printed
    assert "no other Snakemake process" in printed
    assert "--unlock" in printed
    assert first.wait() == 0
    assert_same(folder, undisturbed, repeated=0)


# --- the end of what began before those ---------------------------------------------------------


@pytest.mark.parametrize(("fault", "repeated"), [("preempt", 0), ("lose_node", SAVE_EVERY)])
def test_what_slurm_itself_starts_again_goes_on_to_the_same_bytes(
    runs_alone, undisturbed, fault, repeated
):
    folder, printed = runs_alone[fault]
    assert printed.result().count(SUBMITTED) == 1
    assert_same(folder, undisturbed, repeated)  # nothing before the last save
