"""Jobs on one machine share its GPUs, none with another; the devices are made up."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warpflow.pipeline import gpus as devices
from warpflow.pipeline.gpus import held_gpus, visible_gpus

pytestmark = pytest.mark.slow  # several jobs wait for one another

ROOT = Path(__file__).parents[2]
# Says which devices it has, and keeps them for a while.
JOB = """\
import os, pathlib, sys, time
out = pathlib.Path(sys.argv[1])
out.mkdir()
(out / "begin").write_text(f"{time.monotonic()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
time.sleep(float(sys.argv[2]))
(out / "end").write_text(str(time.monotonic()))
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine with so many GPUs, to be called with the number."""

    def make(count: int) -> Path:
        program = tmp_path / "bin/nvidia-smi"
        program.parent.mkdir()
        rows = "\n".join(f"{i}, GPU-{i}, Fake {i}" for i in range(count))
        program.write_text(f"#!/bin/sh\ncat <<END\n{rows}\nEND\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("TMPDIR", str(tmp_path))  # where locks are, of this test alone
        monkeypatch.setattr(devices.tempfile, "tempdir", None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        (tmp_path / "job.py").write_text(JOB)
        return tmp_path

    return make


def start(folder: Path, name: str, gpus: int, seconds: float) -> subprocess.Popen:
    """A job of the wrapper that rules call."""
    out = folder / name / "checkpoint"
    words = [
        sys.executable,
        "-m",
        "warpflow.pipeline.jobs",
        "run",
        "--makes",
        str(out),
        "--gpus",
        str(gpus),
    ]
    words += ["--log", str(folder / f"{name}.log"), "--", sys.executable, "job.py", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    return subprocess.Popen([*words, str(seconds)], cwd=folder, env=environment)


def interval(folder: Path, name: str) -> tuple[float, float, str]:
    begin, uuids = (folder / name / "checkpoint/begin").read_text().split()
    return float(begin), float((folder / name / "checkpoint/end").read_text()), uuids


def test_visible_devices_are_respected(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(3)
    assert [gpu.uuid for gpu in visible_gpus()] == ["GPU-0", "GPU-1", "GPU-2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-0")
    assert [gpu.name for gpu in visible_gpus()] == ["Fake 0", "Fake 2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


@pytest.mark.parametrize(("gpus", "each", "jobs"), [(1, 1, 2), (2, 1, 4), (8, 2, 6)])
def test_no_two_jobs_have_a_device_at_once(machine, gpus: int, each: int, jobs: int) -> None:
    folder = machine(gpus)
    processes = [start(folder, f"job{i}", each, 0.3) for i in range(jobs)]
    assert [process.wait() for process in processes] == [0] * jobs
    intervals = [interval(folder, f"job{i}") for i in range(jobs)]
    for i, (begin, end, uuids) in enumerate(intervals):
        assert len(set(uuids.split(","))) == each
        for other_begin, other_end, others in intervals[i + 1 :]:
            if begin < other_end and other_begin < end:
                assert not set(uuids.split(",")) & set(others.split(","))


def test_a_killed_wrappers_command_keeps_its_device_until_it_ends(machine) -> None:
    folder = machine(1)
    first = start(folder, "first", 1, 2.0)
    begun = next(iter_until(lambda: list(folder.glob("first/checkpoint.tmp*/begin"))))
    first.kill()
    first.wait()
    second = start(folder, "second", 1, 0.0)
    assert second.wait() == 0
    end = float((begun.parent / "end").read_text())
    assert interval(folder, "second")[0] >= end


def iter_until(found, seconds: float = 30.0):
    deadline = time.monotonic() + seconds
    while not (results := found()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.02)
    return iter(results)


def test_more_than_there_are_is_refused_and_slurm_has_chosen_already(
    machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(1)
    with pytest.raises(ValueError, match="asks for 2 GPUs, but 1 are visible"), held_gpus(2):
        pass
    with held_gpus(0) as nothing:
        assert nothing == ({}, [])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for count in (1, 2):
        with held_gpus(count) as nothing:
            assert nothing == ({}, [])


def test_jobs_in_one_large_allocation_of_slurm_share_its_devices(
    machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(3)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    with held_gpus(1) as (first, _), held_gpus(1) as (second, _):
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"GPU-1", "GPU-2"}
