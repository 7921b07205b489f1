"""Containers and clusters that lack what one takes for granted: a user's name, a home, `srun`; and
files of somebody else."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import SMOKE, copy_project, environment, snakemake

pytestmark = pytest.mark.workflow

UID = 54321
# Another user's process, who may read what root may: the tests' own interpreter and folders.
READ_ALL = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
BECOME = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *READ_ALL)
SHAPE = (
    '{"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}'
)
Run = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that belongs to a user without a name."""
    if os.getuid() != 0 or subprocess.run([*BECOME, "true"], check=False).returncode:
        pytest.skip("only root can become a user without a name")
    folder = copy_project(tmp_path / "project")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID)
    return folder


@pytest.fixture
def nameless(project: Path, tmp_path: Path) -> Run:
    """Run a command there as that user, and return all that it prints."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o777)

    def run(*command: str, home: str | None) -> str:
        variables = environment(project) | {"TMPDIR": str(tmp_path / "tmp")}
        for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
            variables.pop(name, None)
        variables |= {} if home is None else {"HOME": home}
        done = subprocess.run(
            [*BECOME, *command], cwd=project, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("home", [None, "/"])
def test_without_name_and_home_every_entry_works(project, nameless, home):
    """Snakemake itself ends without a home, before it reads our files; `make` gives it one. All
    else sets what is missing, and says so once."""
    generate = ["python", "scripts/generate_data.py", "--seed", "0", "--sft_examples", "30"]
    generate += ["--preference_pairs", "10", "--train_prompts", "8", "--eval_prompts", "4"]
    nameless(*generate, "--out", "direct", home=home)
    train = ["python", "scripts/train_sft.py", "--seed", "0", "--steps", "1", "--warmup_steps", "0"]
    nameless(*train, "--architecture", SHAPE, "--data", "direct", "--out", "sft", home=home)
    job = ["-m", "warpflow.pipeline.jobs", "run", "--makes", "made/data", "--log", "log"]
    said = nameless("python", *job, "--", *generate, "--out", "made/data", home=home)
    assert said.count(f"User id {UID} has no name") == 1
    assert said.count(f"HOME is {home or 'unset'}") == 1
    said = nameless("python", "scripts/explain_rerun.py", home=home)
    assert "generate_data: " in said
    assert said.count("HOME is ") == 1
    assert not (project / "~").exists()


def test_without_a_name_a_run_is_made_and_tracked(project, nameless, tmp_path):
    """Snakemake and DVC ask who they work for."""
    (tmp_path / "tmp/home").mkdir()
    (tmp_path / "tmp/home").chmod(0o777)
    run = ("snakemake", "--cores", "1", "results/generate_data/data.dvc", *SMOKE)
    said = nameless(*run, home=str(tmp_path / "tmp/home"))
    assert said.count(f"User id {UID} has no name") == 1
    assert (project / "results/generate_data/data.dvc").stat().st_uid == UID
    assert list((project / ".dvc/cache/files/md5").rglob("*.dir"))


def test_a_changed_file_of_somebody_else_is_due_and_not_touched(project, nameless, tmp_path):
    """Whoever may only read a file cannot set its times, and need not."""
    folder = tmp_path / "of somebody else"
    folder.mkdir()
    words = [f"w{i}" for i in range(16)]
    table = pd.DataFrame([{"prompt": f"{a} {b}", "text": b} for a in words for b in words])
    path = folder / "shared.csv"
    config = {
        "data": "prepare_data",
        "rewards": {"reward_model": 0, "warpflow.data.toy_reviews:gold_score": 1.0},
        "prepare_data": {
            "sft_path": str(path),
            "sft_prompt": "prompt",
            "sft_completion": "text",
            "prompts_path": str(path),
            "prompts_column": "prompt",
            "eval_prompts": 16,
            "max_text_tokens": 8,
            "vocab_size": 300,
        },
    }
    (project / "mine.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "tmp/home").mkdir()
    (tmp_path / "tmp/home").chmod(0o777)
    run = ["snakemake", "--cores", "1", "results/prepare_data/data.dvc", *SMOKE, "mine.yaml"]

    def write(rows: pd.DataFrame) -> os.stat_result:
        rows.to_csv(path, index=False)
        path.chmod(0o444)
        os.utime(path, (1e9, 1e9))  # older than every result
        return path.stat()

    write(table)
    nameless(*run, home=str(tmp_path / "tmp/home"))
    assert "Nothing to be done" in nameless(*run, "-n", home=str(tmp_path / "tmp/home"))
    before = write(table[:-1])
    assert "rule prepare_data" in nameless(*run, "-n", home=str(tmp_path / "tmp/home"))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert after.st_uid != UID


def test_an_rl_run_is_a_step_where_there_is_srun(tmp_path):
    """In a SLURM job whose container has no srun, it is a plain process."""
    folder = copy_project(tmp_path / "project")
    target = "results/train_policy/warp/replicate1/iteration1/member0/provenance.json"
    planned = snakemake(folder, "-n", "-p", target, *SMOKE)
    (command,) = re.findall(r"^Shell command: (step=.*)$", planned, re.M)
    (tmp_path / "bin").mkdir()
    shell = shutil.which("bash")
    for name in ("python", "srun"):
        stub = tmp_path / "bin" / name
        stub.write_text(f"#!{shell}\necho {name}\n")
        stub.chmod(0o755)

    def started(**variables: str) -> list[str]:
        variables |= {"PATH": str(tmp_path / "bin")}
        done = subprocess.run([shell, "-c", command], env=variables, capture_output=True, text=True)
        return done.stdout.split()

    assert started()[0] == "python"
    assert started(SLURM_JOB_ID="7")[0] == "srun"
    (tmp_path / "bin/srun").unlink()
    assert started(SLURM_JOB_ID="7")[0] == "python"
