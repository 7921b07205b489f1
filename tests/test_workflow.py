"""The DAG as a user meets it: Snakemake on the smoke configuration in a copy of the project."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SMOKE = ("--configfile", "config/smoke.yaml")
pytestmark = pytest.mark.workflow


def copy_project(target: Path) -> Path:
    """The project's files as a fresh Git repository, as after a clone."""
    names = ("Snakefile", "dvc.yaml", ".gitignore", ".dvcignore", "rules", "scripts", "config")
    for name in (*names, "workflow", "docs", ".dvc/config", ".dvc/.gitignore"):
        source = ROOT / name
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target / name)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "start")):
        subprocess.run([*git, *command], cwd=target, check=True)
    return target


def snakemake(folder: Path, *arguments: str, check: bool = True) -> str:
    """Run Snakemake there; its output."""
    command = ["snakemake", "--cores", "2", *arguments]
    # The copy's library, not the installed one, is what jobs and rules import.
    environment = {**os.environ, "PYTHONPATH": str(folder / "workflow")}
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    output = result.stdout + result.stderr
    if check:
        assert result.returncode == 0, output[-5000:]
    else:
        assert result.returncode != 0, output[-5000:]
    return output


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """Jobs by rule of a dry run, `track`, `all` and `report` left out."""
    output = snakemake(folder, "-n", "--quiet", "rules", *arguments)
    counts: dict[str, int] = {}
    for line in output.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            counts[words[0]] = int(words[1])
    ignored = ("track", "all", "report", "total")
    return {rule: count for rule, count in counts.items() if rule not in ignored}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A copy of the project with a finished smoke run; tests must leave it as it is."""
    folder = copy_project(tmp_path_factory.mktemp("workflow") / "project")
    snakemake(folder, *SMOKE)
    return folder


@pytest.fixture
def overlay(finished: Path, tmp_path: Path):
    """Arguments that lay changes over the smoke configuration."""

    def write(**changes) -> tuple[str, ...]:
        path = tmp_path / "changes.yaml"
        path.write_text(yaml.safe_dump(changes))
        return (*SMOKE, str(path))

    return write


def test_everything_is_made(finished):
    results = finished / "results/smoke"
    tables = results / "collect_evaluations"
    names = {path.name for path in tables.iterdir()}
    assert names >= {"evaluations.csv", "trajectories.csv", "geometry.csv", "completions.csv"}
    figures = {path.name for path in (results / "figures").iterdir()}
    for figure in ("fronts", "eta_sweep", "lambda_sweep", "geometry", "training_curves"):
        assert {f"{figure}.svg", f"{figure}.png"} <= figures
    report = (results / "report.html").read_text()
    assert "fronts.svg" in report
    metrics = json.loads((tables / "metrics.json").read_text())
    assert set(metrics["warp"]) == {"iteration1", "iteration2"}


def test_checkpoints_are_hugging_face_folders(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished / "results/smoke/merge_policies/warp/iteration2/checkpoint"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "gemma"
    assert model.config.vocab_size == len(tokenizer)
    assert (folder / "model.safetensors").stat().st_mode & 0o044  # readable by colleagues


def test_finished_run_has_nothing_to_do(finished):
    assert "Nothing to be done" in snakemake(finished, *SMOKE)


def test_content_decides_not_clocks(finished):
    for path in sorted(finished.rglob("*")):
        if path.is_file() and not path.is_symlink() and ".git" not in path.parts:
            os.utime(path, (1.6e9 + hash(str(path)) % 10**8,) * 2)
    assert planned(finished, *SMOKE) == {}


def test_new_eta_runs_only_its_jobs(finished, overlay):
    jobs = planned(finished, *overlay(interpolate_policy={"etas": [0.5, 1, 0.25]}))
    assert jobs.pop("interpolate_policy") == jobs.pop("evaluate_policy") == 3  # warp × 2, lerp
    assert set(jobs) == {"collect_evaluations", "write_tables"} | {
        f"plot_{name}"
        for name in ("fronts", "eta_sweep", "lambda_sweep", "geometry", "training_curves")
    }


def test_beta_reruns_rl_and_what_follows(finished, overlay):
    jobs = planned(finished, *overlay(train_policy={"beta": 0.2}))
    assert "train_sft" not in jobs
    assert "train_reward_model" not in jobs
    assert jobs["train_policy"] == 6  # not the SFT-anchored run, whose β is its own


def test_colour_only_plots(finished, overlay):
    jobs = planned(finished, *overlay(figures={"palette": "Set2"}))
    assert jobs
    assert all(rule.startswith("plot_") for rule in jobs)


def test_editing_code_reruns_what_imports_it(finished, tmp_path):
    copy = tmp_path / "edited"
    shutil.copytree(finished, copy, symlinks=True)
    script = copy / "scripts/merge_policies.py"
    script.write_text(script.read_text() + "# a comment\n")
    jobs = planned(copy, *SMOKE)
    assert "train_sft" not in jobs
    assert jobs["merge_policies"] == 5


def test_same_seed_in_another_folder_gives_the_same_table(finished, tmp_path):
    """The same config from scratch, elsewhere: the tables are equal byte for byte."""
    folder = copy_project(tmp_path / "again")
    snakemake(folder, "results/smoke/collect_evaluations/evaluations.csv", *SMOKE)
    for table in ("evaluations.csv", "trajectories.csv", "training.csv", "geometry.csv"):
        name = f"results/smoke/collect_evaluations/{table}"
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), table


def test_large_plan_is_fast(finished, overlay):
    jobs = planned(finished, *overlay(iterations=5, members=5))
    assert jobs["train_policy"] >= 25


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"train_policy": {"bta": 1}}, ["train_policy.bta", "did you mean beta?"]),
        ({"interpolate_policy": {"etas": [3]}}, ["interpolate_policy.etas.0", "at most 2"]),
        ({"members": 0}, ["members", "at least 1"]),
        ({"data": "prepare_data"}, ["prepare_data.sft_path", "missing"]),
    ],
)
def test_bad_config_starts_and_touches_nothing(tmp_path, overlay, change, parts):
    folder = copy_project(tmp_path / "bad")
    before = sorted(p.relative_to(folder) for p in folder.rglob("*") if ".git" not in p.parts)
    output = snakemake(folder, *overlay(**change), check=False)
    for part in parts:
        assert part in output
    assert not (folder / "results").exists()
    after = {p.relative_to(folder) for p in folder.rglob("*") if ".git" not in p.parts}
    # Snakemake makes its own folder and log; __pycache__ comes with importing the library.
    assert not [
        p
        for p in after - set(before)
        if p.parts[0] != ".snakemake" and "__pycache__" not in p.parts
    ]
