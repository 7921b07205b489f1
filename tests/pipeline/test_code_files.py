"""What rules declare, and that the rules themselves are clean."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from write_keys import files_of_rules

from warpflow.pipeline.code_files import code_files, definitions, file_hash, module_file
from warpflow.pipeline.command_line import flags

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
    known = r"\s*(from warpflow\.[\w.]+ import|import warpflow\.\w+)"
    assert files
    for path in files:
        forms = re.findall(r"^\s*(?:from|import) warpflow\b.*", path.read_text(), re.M)
        assert all(re.match(known, form) for form in forms), path


def test_functions_named_in_the_config_are_code():
    assert "workflow/warpflow/data/toy_reviews.py" in code_files(
        "evaluate_front", "warpflow.data.toy_reviews:gold_score"
    )
    assert module_file("math:sqrt") is None
    assert code_files("evaluate_front", None) == code_files("evaluate_front")


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
    expected = set(files) - {"other.py", "mine/__init__.py", "mine/deep/__init__.py"}  # empty ones
    found = set(code_files("job", "mine.rewards:short"))
    assert found - {"mine/__init__.py", "mine/deep/__init__.py"} == expected


def test_code_of_a_package_that_runs_on_import_is_code_of_the_job(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "mine/__init__.py").write_text("LIMIT = 3\n")
    (tmp_path / "mine/rewards.py").write_text("")
    (tmp_path / "scripts/job.py").write_text("import mine.rewards\n")
    monkeypatch.chdir(tmp_path)
    assert "mine/__init__.py" in code_files("job")


def test_imports_for_type_checkers_are_no_code_of_a_job(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import other\n"
    (tmp_path / "scripts/job.py").write_text(text)
    (tmp_path / "other.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert code_files("job") == ["scripts/job.py"]


def test_a_module_that_cannot_be_parsed_is_named(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/job.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("x = 1\ndef f(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"helper\.py, line 2: cannot be parsed"):
        code_files("job")


# --- what code does ----------------------------------------------------------------------------

CODE = '''\
"""What the file is for."""
import math

RATE: float = 0.1
"""A note on the attribute."""


class Settings:
    """Of the run."""

    steps: int = 3


def area(radius: float, scale: float = 1.0) -> float:
    """Of a circle."""
    return math.pi * radius**2 * scale
'''


def hash_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / f"{abs(hash(text))}.py"
    path.write_text(text)
    return file_hash(path)


@pytest.mark.parametrize(
    "old, new",
    [
        ("import math", "import math  # a comment"),
        ("import math", "\n\n# a comment\nimport math"),
        ('"""Of a circle."""', '"""Of a circle, or of\n\n    a disc."""'),
        ('    """Of a circle."""\n', ""),
        ('"""A note on the attribute."""', '"""Another note."""'),
        ('"""What the file is for."""\n', ""),
        ('    """Of the run."""\n\n', ""),
        (
            "(radius: float, scale: float = 1.0)",
            "(\n    radius: float,\n    scale: float = 1.0,\n)",
        ),
        ("math.pi * radius**2 * scale", "(math.pi * radius ** 2) * scale"),
    ],
)
def test_what_does_nothing_changes_no_hash(tmp_path, old, new):
    assert old in CODE
    assert hash_of(tmp_path, CODE.replace(old, new)) == hash_of(tmp_path, CODE)


@pytest.mark.parametrize(
    "old, new",
    [
        ("0.1", "0.2"),
        ("radius**2", "radius**3"),
        ("scale: float = 1.0", "scale: float = 2.0"),
        ("steps: int = 3", "steps: int = 4"),
        ("import math", "import cmath as math"),
        ("math.pi * radius", "math.pi + radius"),
        ('    """Of a circle."""', '    print("Of a circle.")'),
    ],
)
def test_what_does_something_changes_the_hash(tmp_path, old, new):
    assert old in CODE
    assert hash_of(tmp_path, CODE.replace(old, new)) != hash_of(tmp_path, CODE)


def test_a_change_is_found_in_its_function(tmp_path):
    path, edited = tmp_path / "a.py", tmp_path / "b.py"
    path.write_text(CODE)
    edited.write_text(CODE.replace("radius**2", "radius**3"))
    before, after = definitions(path), definitions(edited)
    assert set(before) == {"module", "Settings", "area"}
    assert {name for name in before if before[name] != after[name]} == {"area"}


def test_flags_round_trip_and_leave_out_null():
    settings = {"beta": 0.1, "path": None, "text": "a b's", "steps": 3}
    assert shlex.split(flags(settings)) == ["--beta", "0.1", "--steps", "3", "--text", "a b's"]
    assert flags(dict(reversed(settings.items()))) == flags(settings)
    assert flags({"weights": ["policy", "ema"], "eta": 1}) == "--eta 1 --weights policy ema"


def test_rules_have_script_log_and_folder_of_one_name():
    """A newcomer finds a rule's script, log and results by the rule's name."""
    rules = []
    for path in Path("rules").glob("*.smk"):
        text = path.read_text()
        for name, value in re.findall(
            r'^([A-Z]+) = \(?\s*"(.*)"$', text, re.M
        ):  # folders, written once
            text = text.replace(f"{{{name}}}", value)
        rules += re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", text, re.M | re.S)
    scripted = [(name, body) for name, body in rules if "python scripts/" in body]
    assert len(scripted) >= 9
    for name, body in scripted:
        assert f"python scripts/{name}.py" in body
        assert f"{{LOGS}}/{name}" in body
        if name != "write_tables" and not name.startswith("plot_"):  # they write to figures/
            assert f"{{RESULTS}}/{name}" in body or name == "collect_evaluations"


@pytest.mark.slow
@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
def test_snakemake_lint(snakefile):
    command = ["snakemake", "--snakefile", snakefile, "--lint"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "your workflow is in a good condition" in result.stdout + result.stderr, result.stderr


def test_figures_of_dvc_depend_on_the_code_that_snakemake_names():
    """`dvc repro` and Snakemake must re-plot after the same edits."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    plots = {name: stage for name, stage in stages.items() if name.startswith("plot_")}
    assert len(plots) == 6  # averages are drawn where a run has some
    for name, stage in plots.items():
        assert {dep for dep in stage["deps"] if dep.endswith(".py")} == set(code_files(name))


def test_no_figure_depends_on_the_file_of_another():
    """An edit to one figure must not draw the others."""
    names = {path.stem.removeprefix("plot_") for path in Path("scripts").glob("plot_*.py")}
    assert len(names) == 10
    for name in names:
        files = {Path(file).stem for file in code_files(f"plot_{name}") if "/figures/" in file}
        assert files & names == {name}


def test_the_files_of_each_key_are_the_listed_ones():
    """A new import that widens the key of a rule is seen in review: `tests/pipeline/keys.yaml`."""
    listed = yaml.safe_load(Path("tests/pipeline/keys.yaml").read_text())
    assert len(listed) >= 15
    assert files_of_rules() == listed
