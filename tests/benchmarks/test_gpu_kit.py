"""The kit for a GPU, rehearsed on the CPU on a machine without Snakemake, DVC and TRL."""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu_kit import (
    FAILED,
    NEEDED,
    NOT_RUN,
    PARTS,
    SIZES,
    Speed,
    Work,
    least_seconds,
    run_part,
    step_arguments,
)

pytestmark = pytest.mark.slow  # it starts the kit in processes of its own

ROOT = Path(__file__).parents[2]
# What a bare machine lacks.
ABSENT = (
    "snakemake",
    "dvc",
    "trl",
    "datasets",
    "openai",
    "matplotlib",
    "configobj",
    "platformdirs",
)


def kit(tmp_path: Path, *words: str, without: tuple[str, ...] = ABSENT) -> tuple[int, str, list]:
    """Return exit status, output and rows of a run that cannot import some modules."""
    (tmp_path / "blocked").mkdir()
    blocking = f"import sys\nsys.modules.update(dict.fromkeys({without!r}))\n"
    (tmp_path / "blocked/sitecustomize.py").write_text(blocking)
    given = ("--size", "tiny", "--device", "cpu", "--out", str(tmp_path / "out"))
    command = [sys.executable, str(ROOT / "benchmarks/gpu_kit.py"), *given, *words]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "blocked")}
    done = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    path = tmp_path / "out/rows.json"
    return (
        done.returncode,
        done.stdout,
        json.loads(path.read_text())["rows"] if path.exists() else [],
    )


def test_every_part_gives_its_rows_on_a_bare_machine(tmp_path: Path) -> None:
    status, output, rows = kit(tmp_path, "--start", "fork", "--commit", "abc")
    assert status == 0, output
    found = {(row["part"], row["what"]): row["value"] for row in rows}
    assert {part for part, _ in found} == set(PARTS)
    assert ("trl", NOT_RUN) in found
    assert found["step", "fast layers in sampling"] == "yes"
    assert found["step", "completions"] > 0
    phases = {row["what"]: row for row in rows if row["what"].startswith("phase: ")}
    for phase in ("sample", "score", "policy forward", "backward and the rest", "optimiser"):
        assert phases[f"phase: {phase}"]["value"] > 0
        assert "floor" in phases[f"phase: {phase}"]["note"]
    assert found["identical", "weights of two runs have the same bytes, as runs are"] == "yes"
    assert found["two_at_once", "weights as those of the run alone"] == "yes"
    assert found["memory", "tiny, defaults"] > 100
    assert re.search(
        r"\d+/\d+ tests collected|\d+ tests collected", found["tests", "pytest -m gpu"]
    )
    assert found["merge", "merge of two, 1 process"] > found["merge", "floor: read three, copy one"]
    document = json.loads((tmp_path / "out/rows.json").read_text())
    assert document["machine"]["commit"] == "abc"
    assert {"date", "card", "torch", "transformers"} <= set(document["machine"])
    table = (tmp_path / "out/rows.md").read_text()
    assert table.count("\n| ") == len(rows) + 1
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_a_part_that_is_cut_short_is_written_down(tmp_path: Path) -> None:
    """The part runs in its own process that imports by itself, as on a GPU."""
    given = argparse.Namespace(minutes=1.0, out=tmp_path, size="tiny", device="cpu", start="spawn")
    now = time.monotonic()
    cut, *_ = run_part("step", given, tmp_path / "work", now + 0.5)  # its imports take longer
    assert (cut.part, cut.what, cut.value, cut.note) == ("step", FAILED, None, "out of time")
    (late,) = run_part("floor", given, tmp_path / "work", now)
    assert (late.part, late.what, late.note) == ("floor", NOT_RUN, "--minutes 1 were over")


def test_a_missing_package_is_named_with_how_to_carry_it_before_anything_runs(
    tmp_path: Path,
) -> None:
    status, output, rows = kit(tmp_path, without=(*ABSENT, "pydantic", "pydantic_core"))
    assert status == 1 and not rows
    assert "missing here, or too old: pydantic, pydantic_core." in output
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lock if re.match("pydantic(_core)?==", line)]
    assert " ".join(pins) in output.replace("\n", " ")
    assert "pip download" in output and "Traceback" not in output


def test_every_package_that_is_needed_is_pinned() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    names = set(re.findall(r"^([\w.-]+)==", lock, re.M))
    assert set(NEEDED.values()) <= names


WORK = Work(
    inner=1000,
    output=100,
    total=1200,
    cached=0,
    width=2,
    prompts=2,
    rows=8,
    prompt_tokens=5,
    length=10.0,
    longest=20,
)


def test_the_floor_is_of_bytes_or_of_operations() -> None:
    fast = Speed(bandwidth=1e30, products=1.0)
    least = least_seconds(WORK, fast)
    prompts, tokens = 2 * 5, 8 * 10
    assert least["sample"] == 2 * 1000 * prompts + 2 * 1100 * tokens
    assert least["score"] == 2 * 1000 * (prompts + tokens) + 2 * 100 * tokens
    assert least["policy forward"] == least["score"] == least["backward and the rest"] / 2
    slow = least_seconds(WORK, Speed(bandwidth=1.0, products=1e30))
    assert slow["sample"] == pytest.approx(20 * 2 * 1100), "all weights for every token"
    assert (slow["optimiser"], slow["EMA"]) == (28 * 1200, 12 * 1200)
    longer = dataclasses.replace(WORK, cached=3)
    more = least_seconds(longer, Speed(bandwidth=1.0, products=1e30))["sample"] - slow["sample"]
    assert more == pytest.approx(3 * tokens * (5 + 10 / 2)), "each token reads those before it"


def test_the_sizes_are_of_models_and_settings_that_exist() -> None:
    import memory
    import rl_step

    from warpflow.training.reinforce import ReinforceSettings

    for size in SIZES.values():
        for changes in ({}, size.trl, size.members):
            arguments = step_arguments(size, "cpu", **changes)
            assert arguments.model in rl_step.MODELS
            assert arguments.generations > 1, "baseline rloo"
        for name, changes in size.memory:
            assert name in memory.SIZES
            ReinforceSettings(**memory.SETTINGS | changes)
