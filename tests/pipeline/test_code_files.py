"""What rules declare, and that the rules themselves are clean."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from warpflow.pipeline.code_files import code_files, flags, module_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_code_of_a_script_is_what_it_imports():
    merge = code_files("merge_policies")
    assert "scripts/merge_policies.py" in merge
    assert "workflow/warpflow/merging/methods.py" in merge
    assert "workflow/warpflow/training/reinforce.py" not in merge
    assert "workflow/warpflow/lm/fast/layers.py" in code_files("train_policy")  # by reinforce.py


def test_a_training_run_depends_on_no_code_that_only_merges():
    """Hours of training must not be due again after an edit to the merge."""
    files = code_files("train_policy")
    for name in ("recipes", "streaming", "workers", "checkpoints", "version"):
        assert not [file for file in files if Path(file).stem == name]
    for script in ("merge_policies", "interpolate_policy"):
        assert "workflow/warpflow/version.py" not in code_files(script)


def test_an_import_of_types_is_no_code(tmp_path, monkeypatch):
    text = "import b\nif TYPE_CHECKING:\n    import a\n"
    for name, content in {"scripts/job.py": text, "a.py": "", "b.py": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    assert code_files("job") == ["b.py", "scripts/job.py"]


def test_every_import_of_the_library_is_found():
    """The rules' inputs would miss an import of another form, and stale results would stay."""
    files = [*Path("scripts").glob("*.py"), *Path("workflow/warpflow").rglob("*.py")]
    assert files
    for path in files:
        forms = re.findall(r"^\s*(?:from|import) warpflow\b.*", path.read_text(), re.M)
        assert all(re.match(r"\s*from warpflow\.[\w.]+ import", form) for form in forms), path


def test_functions_named_in_the_config_are_code():
    assert "workflow/warpflow/data/toy_reviews.py" in code_files(
        "evaluate_policy", "warpflow.data.toy_reviews:gold_score"
    )
    assert module_file("math:sqrt") is None
    assert code_files("evaluate_policy", None) == code_files("evaluate_policy")


def test_code_of_a_users_function_is_all_that_it_imports_from_this_folder(tmp_path, monkeypatch):
    files = {
        "mine/__init__.py": "",
        "mine/rewards.py": "import helper, re\nfrom . import words\nfrom .lists import SHORT\n",
        "mine/words.py": "from mine.deep import deeper",
        "mine/lists.py": "",
        "mine/deep/__init__.py": "",
        "mine/deep/deeper.py": "",
        "helper.py": "",
        "other.py": "",
        "scripts/job.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    expected = set(files) - {"other.py", "mine/__init__.py"}
    assert set(code_files("job", "mine.rewards:short")) - {"mine/__init__.py"} == expected


def test_flags_round_trip_and_leave_out_null():
    settings = {"beta": 0.1, "path": None, "text": "a b's", "steps": 3}
    assert shlex.split(flags(settings)) == ["--beta", "0.1", "--steps", "3", "--text", "a b's"]
    assert flags(dict(reversed(settings.items()))) == flags(settings)
    assert flags({"weights": ["policy", "ema"], "eta": 1}) == "--eta 1 --weights policy ema"


def test_rules_have_script_log_and_folder_of_one_name():
    """A newcomer finds a rule's script, log and results by the rule's name."""
    text = "".join(path.read_text() for path in Path("rules").glob("*.smk"))
    rules = re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", text, re.M | re.S)
    scripted = [(name, body) for name, body in rules if "python scripts/" in body]
    assert len(scripted) >= 9
    for name, body in scripted:
        assert f"python scripts/{name}.py" in body
        assert f"{{LOGS}}/{name}" in body
        if name != "write_tables" and not name.startswith("plot_"):  # they write to figures/
            assert f"{{RESULTS}}/{name}" in body or name == "collect_evaluations"


def test_snakemake_lint():
    """One lint is not followed: an environment per rule. The project has one, requirements.lock."""
    result = subprocess.run(["snakemake", "--lint"], capture_output=True, text=True)
    lints = re.findall(r"^    \* (.*)", result.stdout + result.stderr, re.M)
    assert lints, result.stderr  # the one that is not followed
    assert [title for title in lints if "conda environment or container" not in title] == []


def test_figures_of_dvc_depend_on_the_code_that_snakemake_names():
    """`dvc repro` and Snakemake must re-plot after the same edits."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    plots = {name: stage for name, stage in stages.items() if name.startswith("plot_")}
    assert len(plots) == 7
    for name, stage in plots.items():
        assert {dep for dep in stage["deps"] if dep.endswith(".py")} == set(code_files(name))
