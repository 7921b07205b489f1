"""What keeps jobs from being submitted to SLURM is said beforehand; the commands are made up."""

from pathlib import Path

import pytest

from warpflow.slurm import submission_problem


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for made-up commands, alone on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def write_command(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_machine_without_sbatch_is_told_where_to_start(path):
    assert "login node" in submission_problem([])
    write_command(path / "sbatch", "")
    assert submission_problem([]) is None


def test_an_unknown_partition_is_named_with_those_that_there_are(path):
    write_command(path / "sbatch", "")
    write_command(path / "sinfo", "echo short; echo gpu; echo short")
    assert submission_problem(["gpu"]) is None
    problem = submission_problem(["gpu", "gpus"])
    assert "no partition gpus" in problem
    assert "gpu, short" in problem
