"""What a change makes due, why, and how results are accepted after an upgrade of the code."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from project import (
    SMOKE,
    commit,
    copy_finished,
    dvc,
    execute,
    git,
    planned,
    plans_nothing,
    pointers,
    snakemake,
)

pytestmark = pytest.mark.workflow

RL = "workflow/warpflow/training/reinforce.py"
TABLES = {"collect_evaluations", "compare_fronts", "write_tables", "write_summary"}
GOLD = "my_gold:short"
AFTER_RL = {"merge_policies", "interpolate_policy", "evaluate_front", "score_trajectories"}


def edit(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def project(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that is committed, with a gold function to change to; tests put it back."""
    folder = copy_finished(finished, tmp_path_factory.mktemp("reruns") / "project")
    (folder / "my_gold.py").write_text(
        "def short(completions, **_):\n    return [-len(text) for text in completions]\n"
    )
    commit(folder, "finished")
    return folder


@pytest.fixture
def folder(project: Path):
    yield project
    git(project, "checkout", "-q", "--", ".")


def overlay(folder: Path, **changes: object) -> tuple[str, ...]:
    path = folder / ".git/overlay.yaml"
    path.write_text(yaml.safe_dump(changes))
    return (*SMOKE, str(path))


def due_rules(folder: Path, *arguments: str) -> set[str]:
    rules = set(planned(folder, *arguments))
    return {"plot_*" if rule.startswith("plot_") else rule for rule in rules}


@pytest.mark.parametrize(
    ("name", "old", "new", "due"),
    [
        (RL, "def penalised_rewards", "# a comment\ndef penalised_rewards", set()),
        (RL, '"""Return r_β = r − β', '"""Compute r_β = r − β', set()),
        ("workflow/warpflow/version.py", "0.", "9.", set()),
        ("workflow/warpflow/merging/methods.py", '"""', '"""In short: ', set()),
        (
            "workflow/warpflow/figures/eta_sweep.py",
            "MESSAGE = (",
            "SPARE = 1\nMESSAGE = (",
            {"plot_*"},
        ),
        (
            RL,
            "rewards - beta * kl",
            "rewards - 1 * beta * kl",
            {"train_policy", *AFTER_RL, *TABLES, "plot_*"},
        ),
    ],
    ids=["comment", "docstring", "version", "merge docstring", "plot code", "RL code"],
)
def test_code_makes_due_what_it_can_change(folder, name, old, new, due):
    edit(folder, name, old, new)
    assert due_rules(folder, *SMOKE) == due


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        (
            {"evaluate_policy": {"gold": GOLD}},
            {"evaluate_front", "score_trajectories", "estimate_optimum", *TABLES, "plot_*"},
        ),
        (
            {"evaluate_policy": {"gold": {"judge": {"url": "$JUDGE/score"}}}},
            {"evaluate_front", "score_trajectories", "estimate_optimum", *TABLES, "plot_*"},
        ),
        ({"evaluate_policy": {"batch_size": 7}}, set()),
        ({"estimate_optimum": {"batch_size": 7}}, set()),
        ({"train_policy": {"save_every": 3}}, set()),
        ({"report_to": []}, set()),
        ({"train_policy": {"beta": 0.2}}, {"train_policy", *AFTER_RL, *TABLES, "plot_*"}),
    ],
    ids=[
        "gold",
        "gold endpoint",
        "evaluate batch",
        "optimum batch",
        "save_every",
        "trackers",
        "beta",
    ],
)
def test_settings_make_due_what_they_can_change(folder, changes, due):
    found = due_rules(folder, *overlay(folder, **changes))
    computing = {"evaluate_front", "score_trajectories", "estimate_optimum", "train_policy"}
    if due:
        assert found == due
    else:  # Snakemake looks jobs up where a parameter of how they run changed
        assert found <= computing | TABLES | AFTER_RL | {"plot_*"}
        assert computed_anew(folder, changes) == []


def computed_anew(folder: Path, changes: dict[str, object]) -> list[str]:
    """Return the results that `explain_rerun` says would be computed."""
    printed = explain(folder, *overlay(folder, **changes))
    return [line for line in printed.splitlines() if ": runs" in line]


def explain(folder: Path, *arguments: str) -> str:
    return execute(folder, sys.executable, "scripts/explain_rerun.py", *arguments)


def test_how_often_is_logged_changes_no_weight(project, tmp_path):
    """The runs are trained again for their tables, and what is made from their weights is not."""
    copy = copy_finished(project, tmp_path / "copy")
    merged = "merge_policies/warp/replicate1/iteration1"
    before = pointers(copy)
    less = overlay(copy, train_policy={"log_every": 2})
    snakemake(copy, f"results/{merged}/checkpoint.dvc", *less)
    after = pointers(copy)
    changed = {name for name in before if after[name] != before[name]}
    runs = "results/train_policy/warp/replicate1/iteration1"
    assert changed == {f"{runs}/member{m}/tables.dvc" for m in (0, 1)}
    assert "not computed again" in (copy / f"results/logs/{merged}.log").read_text()


def test_explain_says_which_setting_input_and_function(folder):
    edit(folder, RL, "rewards - beta * kl", "rewards - 1 * beta * kl")
    printed = explain(folder, *overlay(folder, train_policy={"beta": 0.2}))
    assert f"code {RL}: penalised_rewards" in printed
    assert "setting --beta: 0.3 → 0.2" in printed
    assert "input train_policy/warp/replicate1/iteration1/member0: is due itself" in printed
    assert "All of them, one after the other: about" in printed
    git(folder, "checkout", "-q", "--", ".")
    assert "Nothing is due." in explain(folder, *SMOKE)


def test_a_dry_run_and_an_explanation_change_no_file(folder):
    edit(folder, RL, "rewards - beta * kl", "rewards - 1 * beta * kl")

    def times() -> dict[str, int]:
        paths = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
        ignored = (".git/", ".snakemake/log", "__pycache__", ".dvc/tmp", ".snakemake/iocache")
        names = {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in paths}
        return {n: t for n, t in names.items() if not any(part in n for part in ignored)}

    before = times()
    planned(folder, *SMOKE)
    explain(folder, *SMOKE)
    assert times() == before


def test_accepted_results_are_current_here_and_in_a_clone(project, tmp_path):
    copy = copy_finished(project, tmp_path / "copy")
    edit(copy, RL, "rewards - beta * kl", "rewards - 1 * beta * kl")
    edit(copy, "scripts/merge_policies.py", "def main(", "SPARE = 1\n\n\ndef main(")
    before = pointers(copy)
    accept = (sys.executable, "scripts/accept_results.py", "--reason", "times one", *SMOKE)
    printed = execute(copy, *accept)
    assert "train_policy/warp/replicate1/iteration2/member1: " in printed
    assert plans_nothing(copy)
    assert pointers(copy) == before
    provenance = copy / "results/train_policy/warp/replicate1/iteration1/member0/provenance.json"
    record = json.loads(provenance.read_text())
    (entry,) = record["accepted"]
    assert entry["reason"] == "times one"
    assert entry["new_key"] == record["key"] != entry["old_key"]
    assert {"author", "date", "old_code"} <= set(entry)
    trace = (sys.executable, "scripts/trace_provenance.py", str(provenance.parent))
    assert "ACCEPTED by" in execute(copy, *trace)

    dvc(copy, "remote", "add", "--default", "store", str(tmp_path / "store"))
    commit(copy, "accepted")
    dvc(copy, "push", "--run-cache")
    clone = tmp_path / "clone"
    git(copy, "clone", "-q", str(copy), str(clone))
    dvc(clone, "pull", "--run-cache")
    assert plans_nothing(clone)


def test_accepting_is_refused_where_more_than_code_differs_or_nothing_is_there(folder):
    edit(folder, RL, "rewards - beta * kl", "rewards - 1 * beta * kl")
    script = (sys.executable, "scripts/accept_results.py", "--reason", "why not")
    changed = overlay(folder, train_policy={"beta": 0.2})
    printed = execute(folder, *script, *changed, succeeds=False)
    assert "Nothing was accepted" in printed
    assert "setting --beta: 0.3 → 0.2" in printed
    provenance = "results/train_policy/warp/replicate1/iteration1/member0/provenance.json"
    (folder / provenance).unlink()
    printed = execute(folder, *script, *SMOKE, succeeds=False)
    assert "has not been made" in printed
    git(folder, "checkout", "-q", "--", provenance)
    printed = execute(folder, *script, "train_policy/no_such", *SMOKE, succeeds=False)
    assert "train_policy/no_such: is not due, or is no result" in printed
    assert "accepted" not in json.loads((folder / provenance).read_text())


def test_results_without_records_are_explained(folder, tmp_path):
    records = folder / ".snakemake/metadata"
    records.rename(tmp_path / "records")
    try:
        printed = snakemake(folder, "-n", *SMOKE, succeeds=False)
    finally:
        (tmp_path / "records").rename(records)
    assert "has no record of them" in printed
    assert "git checkout -- .snakemake/metadata" in printed


def test_branches_do_not_conflict_on_the_clocks_of_records(project, tmp_path):
    """The rule of .gitattributes, with the driver that the Makefile sets up."""
    copy = copy_finished(project, tmp_path / "copy")
    git(copy, "config", "merge.ours.driver", "true")
    record = next(p for p in sorted((copy / ".snakemake/metadata").rglob("*")) if p.is_file())
    for branch, clock in (("one", 1.0), ("two", 2.0)):
        git(copy, "checkout", "-q", "-b", branch, "main")
        document = json.loads(record.read_text()) | {"starttime": clock}
        record.write_text(json.dumps(document))
        commit(copy, branch)
    git(copy, "merge", "-q", "--no-edit", "one")
    assert json.loads(record.read_text())["starttime"] == 2.0
