"""Paths as users have them: with spaces and accents, below `~`, outside the project."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from project import copy_project, execute

from warpflow.pipeline.config import ConfigError, check_config
from warpflow.pipeline.dvc_cache import _cache_folder, cache_folder, outside_problem

ROOT = Path(__file__).parents[2]
PATHS = re.compile(
    r"\{((?:input|output)(?:\.\w+)?|log|params\.(?:made|tables|states|results|out|comparisons))\}"
)


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))


def message(config) -> str:
    with pytest.raises(ConfigError) as error:
        check_config(config)
    return str(error.value)


@pytest.mark.parametrize("file", sorted((ROOT / "rules").glob("*.smk")), ids=lambda p: p.name)
def test_every_path_in_a_rules_command_is_quoted(file):
    """Those of rules that the run of odd names leaves out, too."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith('"') and "RESULTS" not in line:
            assert not PATHS.findall(line), line


@pytest.mark.parametrize(
    ("file", "named"),
    [
        (None, None),
        (".dvc/config.local", "~/my cache"),
        (".dvc/config.local", "../../shared cache"),
        (".dvc/config.local", '"/tmp/with # mark"'),
        (".dvc/config", "~/cäche"),
        ("user/config", "beside"),
        ("system/config", "~/of all"),
    ],
)
def test_the_cache_is_where_dvc_says(tmp_path, monkeypatch, file, named):
    """`~` is the user's home, and a relative path starts at the file that names it."""
    folder = copy_project(tmp_path / "my project")
    for name in ("home", "user", "system"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("DVC_SYSTEM_CONFIG_DIR", str(tmp_path / "system"))
    if file:
        path = folder / file if file.startswith(".dvc") else tmp_path / file
        path.write_text(f"[cache]\n    dir = {named}\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    _cache_folder.cache_clear()
    said = execute(folder, "dvc", "cache", "dir").strip()
    assert Path(os.path.abspath(said)) == cache_folder()


def test_the_last_config_that_names_a_cache_decides(tmp_path, monkeypatch):
    folder = copy_project(tmp_path / "project")
    (tmp_path / "user").mkdir()
    (tmp_path / "user/config").write_text("[cache]\n    dir = /a\n", encoding="utf-8")
    (folder / ".dvc/config.local").write_text("[cache]\n    dir = /b\n", encoding="utf-8")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.chdir(folder)
    _cache_folder.cache_clear()
    assert cache_folder() == Path("/b") == Path(execute(folder, "dvc", "cache", "dir").strip())


def test_what_dvc_cannot_track_is_told_apart(tmp_path, monkeypatch):
    project, scratch = tmp_path / "project", tmp_path / "scratch"
    for folder in (project / "results", project / "real", scratch):
        folder.mkdir(parents=True)
    monkeypatch.chdir(project)
    (project / "linked").symlink_to(scratch)
    (project / "inside").symlink_to(project / "real")
    assert outside_problem("results") is None
    assert outside_problem("results/that/is/not/there") is None
    assert outside_problem(project / "results") is None
    assert "by a symbolic link" in str(outside_problem("linked/sft"))
    assert "by a symbolic link" in str(outside_problem("inside"))
    assert "outside this folder" in str(outside_problem(scratch))


def test_results_in_the_project_are_named_from_there(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config["results"] = str(tmp_path / "results/mine")
    assert "write it from there, as results/mine" in message(config)
    config["results"] = "/scratch/of mine"
    assert "results" not in [line.split(":")[0] for line in problems(config)]


def problems(config) -> list[str]:
    try:
        check_config(config)
    except ConfigError as error:
        return [line.removeprefix("- ") for line in str(error).splitlines()]
    return []


@pytest.mark.parametrize("path", ["~/x", ".hidden", "a{b}", "a:b"])
def test_results_that_cannot_be(config, path):
    config["results"] = path
    assert "- results: got" in message(config)
    assert "expected a folder below the project's root, or an absolute path" in message(config)


def test_paths_that_snakemake_would_read_as_patterns(config):
    config["data"] = "prepare_data"
    config["prepare_data"] = {"prompts_path": "my {prompts}.csv"}
    assert "prepare_data.prompts_path: got 'my {prompts}.csv'" in message(config)


def test_dvc_follows_no_link_of_a_folder(tmp_path):
    """What `outside_problem` foresees."""
    folder = copy_project(tmp_path / "project")
    (tmp_path / "scratch/made").mkdir(parents=True)
    (tmp_path / "scratch/made/a.txt").write_text("a", encoding="utf-8")
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results/mine").symlink_to(tmp_path / "scratch")
    done = subprocess.run(
        ["dvc", "add", "results/mine/made"], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode != 0
