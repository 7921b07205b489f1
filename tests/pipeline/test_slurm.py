"""What keeps jobs from being submitted to SLURM is said beforehand; the commands are made up."""

import importlib.util
import subprocess
from pathlib import Path

import pytest
from project import ROOT

from warpflow.pipeline.slurm import Needs, login_node_warning, step_warning, submission_problem


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for made-up commands, alone on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def write_command(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def asks(**needs: object) -> list[tuple[str, Needs]]:
    return [("train_policy", Needs(**needs))]


NODES = """echo 'short*|16|64000|(null)'
echo 'gpu|32|256000|gpu:a100:4(S:0-1)'
echo 'gpu|64|128000|gpu:2,gpu:v100:4,shard:9'"""


def test_a_machine_without_sbatch_is_told_where_to_start(path):
    assert "login node" in submission_problem([])
    write_command(path / "sbatch", "")
    assert submission_problem(asks(mem_mb=10**9)) is None  # no sinfo: nothing is known


def test_an_unknown_partition_is_named_with_those_that_there_are(path):
    write_command(path / "sbatch", "")
    write_command(path / "sinfo", NODES)
    assert submission_problem(asks(partition="gpu")) is None
    problem = submission_problem([*asks(partition="gpu"), *asks(partition="gpus")])
    assert "no partition gpus" in problem
    assert "gpu, short" in problem


def test_what_no_node_has_is_said_with_rule_key_and_the_largest_there_is(path):
    write_command(path / "sbatch", "")
    write_command(path / "sinfo", NODES)
    fitting = {"partition": "gpu", "threads": 64, "mem_mb": 128000, "gpu": 6}
    assert submission_problem(asks(**fitting)) is None
    problem = submission_problem(asks(**fitting | {"gpu": 8}))
    assert "rule train_policy asks partition gpu for gpu = 8" in problem
    assert "largest node has 6" in problem
    problem = submission_problem(asks(mem_mb=64001, threads=17))
    assert "partition short for threads = 17" in problem  # the default one
    assert "mem_mb = 64001, but the largest node has 64000" in problem
    assert "set-resources in slurm/config.yaml" in problem
    problem = submission_problem(asks(**fitting | {"mem_mb": 256000}))
    assert "no node of partition gpu has all of them" in problem


def test_training_on_a_login_node_is_warned_of(path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert login_node_warning({"train_policy"}) is None  # no SLURM
    write_command(path / "sbatch", "")
    assert "train_policy will run on this machine" in login_node_warning({"train_policy"})
    assert login_node_warning({"collect_evaluations"}) is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert login_node_warning({"train_policy"}) is None  # inside a job


@pytest.mark.workflow
@pytest.mark.skipif(
    importlib.util.find_spec("snakemake_executor_plugin_lsf") is None,
    reason="snakemake-executor-plugin-lsf is not installed",
)
def test_another_engine_is_a_profile():
    """The worked example of docs/slurm.md: jobs get its queues, and training a GPU."""
    target = "results/train_policy/warp/replicate1/iteration1/member0/checkpoint.dvc"
    command = ["snakemake", "-n", "--forceall", target, "--profile", "profiles/lsf"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    job = printed[printed.index("rule train_policy:") :]
    needs = next(line for line in job.splitlines() if "resources:" in line)
    assert {"lsf_queue=gpu", "gpu=1", "lsf_extra=-gpu num=1"} <= set(needs.strip().split(", "))


def test_a_job_of_slurm_without_srun_is_told_what_it_lacks(path, monkeypatch):
    """This happens in a container, and only where something would be trained."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert step_warning({"train_policy"}) is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert step_warning({"merge_policies"}) is None
    assert "job 7 of SLURM, but srun is not on the PATH" in str(step_warning({"train_policy"}))
    write_command(path / "srun", "")
    assert step_warning({"train_policy"}) is None
