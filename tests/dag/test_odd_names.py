"""The DAG where folders and files have names with spaces, accents and quotes, and where results lie
outside the repository."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from project import commit, copy_project, dvc, git, planned, snakemake
from safetensors.torch import load_file

pytestmark = pytest.mark.workflow
WORDS = [f"w{i}" for i in range(16)]


def odd_config(folder: Path, make_model, make_tokenizer) -> dict[str, object]:
    """A user's policy and files in a folder with an odd name, and results in another."""
    mine = folder / "mes données d'été"
    make_model("llama").save_pretrained(mine / "ma politique")
    make_tokenizer().save_pretrained(mine / "ma politique")
    rows = [{"prompt": f"{a} {b}", "yes": f"{b} {a}", "no": "w0 w0"} for a in WORDS for b in WORDS]
    table = pd.DataFrame(rows)
    # As Excel writes it: Git must leave the ends of its lines alone.
    table.to_csv(mine / "über (1).csv", index=False, lineterminator="\r\n")
    (mine / 'mine "quoted".jsonl').write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    files = {"csv": "mes données d'été/über (1).csv", "jsonl": str(mine / 'mine "quoted".jsonl')}
    return {
        "results": "résultats à l'essai",
        "policy": {"path": "./mes données d'été/ma politique"},
        "data": "prepare_data",
        "prepare_data": {
            "sft_path": files["jsonl"],
            "sft_prompt": "prompt",
            "sft_completion": "yes",
            "preferences_path": files["csv"],
            "preferences_prompt": "prompt",
            "preferences_chosen": "yes",
            "preferences_rejected": "no",
            "prompts_path": files["csv"],
            "prompts_column": "prompt",
            "eval_prompts": 8,
            "max_text_tokens": 8,
        },
        "train_sft": {"steps": 2},
        "train_reward_model": {"steps": 2},
        "evaluate_policy": {"gold": None},
        "iterations": 1,
        "interpolate_policy": {"etas": [0.5]},
        "experiments": {"lerp": None, "sft_anchor_beta_0.1": None, "slerp_lambda_0.5": None},
    }


def test_everything_is_made_where_names_are_odd(tmp_path, make_model, make_tokenizer):
    """The whole default run is made, with report, figures and DVC's pointers. Then nothing is due,
    neither here nor in a clone of Git for Windows' settings, and a result that is taken away comes
    back."""
    folder = copy_project(tmp_path / "mon projet d'été")
    config = odd_config(folder, make_model, make_tokenizer)
    (folder / "ma config.yaml").write_text(
        yaml.safe_dump(config, allow_unicode=True), encoding="utf-8"
    )
    configs = ("--configfile", "config/smoke.yaml", "ma config.yaml")
    snakemake(folder, *configs)
    results = folder / "résultats à l'essai"
    evaluations = pd.read_csv(results / "collect_evaluations/main/evaluations.csv")
    assert (evaluations.kl_exact >= 0).all()
    assert (results / "report/main.html").is_file()
    assert (results / "figures/main/fronts.svg").is_file()
    assert "Nothing to be done" in snakemake(folder, "-n", *configs)
    commit(folder, "finished")
    clone = tmp_path / "ein Klon"
    git(tmp_path, "clone", "-q", "-c", "core.autocrlf=true", str(folder), str(clone))
    # Only the page, whose bytes DVC keeps, as it keeps the report's.
    assert planned(clone, *configs) == {"write_summary": 1}
    pointer = results / "train_sft/checkpoint.dvc"
    assert "up to date" in dvc(folder, "status", str(pointer))
    shutil.rmtree(pointer.with_suffix(""))
    dvc(folder, "checkout", str(pointer))
    assert "up to date" in dvc(folder, "status", str(pointer))
    assert load_file(pointer.with_suffix("") / "model.safetensors")


def test_a_whole_run_on_a_scratch_file_system(tmp_path, monkeypatch):
    """A variable names the place, and the run goes from data to report, with a tracker. The project
    itself stays as it is. A setting that is set back is computed again, since there is no cache."""
    folder, scratch = copy_project(tmp_path / "project"), tmp_path / "scratch space"
    monkeypatch.setenv("SCRATCH_OF_ADA", str(scratch))
    fewer = {"lerp": None, "sft_anchor_beta_0.1": None, "slerp_lambda_0.5": None}
    settings = {"results": "$SCRATCH_OF_ADA/run1", "iterations": 1, "experiments": fewer}
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings))
    commit(folder, "a config")
    configs = ("--configfile", "config/smoke.yaml", "mine.yaml")
    assert f"{scratch}/run1 lies outside this folder" in snakemake(folder, *configs)
    results = scratch / "run1"
    assert (results / "report/main.html").is_file()
    assert (results / "figures/main/fronts.svg").is_file()
    run = "warp/replicate1/iteration1/member0"
    assert list((results / f"logs/tensorboard/{run}").glob("events.out.tfevents*"))
    changed = {line.split()[1] for line in git(folder, "status", "--short").splitlines()}
    assert changed <= {".snakemake/"}
    assert not (folder / ".dvc/cache/files").exists()
    assert planned(folder, *configs) == {}
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings | {"report_to": []}))
    assert "train_sft" not in planned(folder, *configs)
    weights = results / f"train_policy/{run}/checkpoint/model.safetensors"
    before = weights.stat().st_mtime_ns
    snakemake(folder, *configs)
    assert weights.stat().st_mtime_ns == before, "another tracker trains nothing"


@pytest.mark.parametrize("place", ["link", "absolute"])
def test_results_on_another_file_system(tmp_path, place):
    """They are made and kept there, untracked by DVC; it is said, and nothing is due afterwards."""
    folder, scratch = copy_project(tmp_path / "project"), tmp_path / "scratch space"
    scratch.mkdir()
    if place == "link":
        (folder / "results").mkdir(exist_ok=True)
        (folder / "results/mine").symlink_to(scratch)
    results = "results/mine" if place == "link" else str(scratch)
    target = f"{results}/train_sft/checkpoint.dvc"
    arguments = ("--config", f"results={results}", "--configfile", "config/smoke.yaml")
    arguments += ("--", target)
    output = snakemake(folder, *arguments)
    assert "Results are not tracked by DVC" in output
    assert str(scratch) in output
    assert (scratch / "train_sft/checkpoint/model.safetensors").is_file()
    assert not (folder / ".dvc/cache/files").exists()
    assert planned(folder, *arguments) == {}
