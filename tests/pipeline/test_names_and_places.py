"""Paths as users have them: with spaces and accents, below `~`, outside the project."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from project import copy_project, execute

from warpflow.pipeline.config import ConfigError, check_config, path_problem
from warpflow.pipeline.config_files import expand_paths
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
    """This includes the rules that the run of odd names leaves out."""
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


@pytest.mark.parametrize("path", [".hidden", "a:b"])
def test_results_that_cannot_be(config, path):
    config["results"] = path
    assert "- results: got" in message(config)
    assert "expected a folder below the project's root, or an absolute path" in message(config)


def test_paths_that_snakemake_would_read_as_patterns(config):
    config["data"] = "prepare_data"
    config["prepare_data"] = {"prompts_path": "my {prompts}.csv"}
    assert "prepare_data.prompts_path: got 'my {prompts}.csv'" in message(config)


def test_homes_and_variables_in_paths_are_those_of_the_user(config, monkeypatch):
    """They are replaced in every section, and only in paths."""
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SCRATCH", "/scratch/of ada")
    given = {
        "results": "${SCRATCH}//warp/",
        "policy": {"path": "~/policy"},
        "prepare_data": {"prompts_path": "$SCRATCH/a.csv", "prompts_column": "$SCRATCH"},
        "compare_answers": {
            "mine": {
                "contestants": {"a": {"path": "~/b"}, "c": {"answers": "~/d.json"}},
                "judges": {"e": {"reward_model": "$SCRATCH/f"}},
            }
        },
        "rewards": {"reward_model": 1.0},
        "evaluate_policy": {"gold": {"mine": "~/g", "half": {"held_out_preferences": 0.5}}},
        "fetch_policy": {"requirements": "~/h.lock"},
    }
    assert expand_paths(given) == {
        "results": "/scratch/of ada/warp",
        "policy": {"path": "/home/ada/policy"},
        "prepare_data": {"prompts_path": "/scratch/of ada/a.csv", "prompts_column": "$SCRATCH"},
        "compare_answers": {
            "mine": {
                "contestants": {"a": {"path": "/home/ada/b"}, "c": {"answers": "/home/ada/d.json"}},
                "judges": {"e": {"reward_model": "/scratch/of ada/f"}},
            }
        },
        "rewards": {"reward_model": 1.0},
        "evaluate_policy": {"gold": {"mine": "/home/ada/g", "half": {"held_out_preferences": 0.5}}},
        "fetch_policy": {"requirements": "/home/ada/h.lock"},
    }
    assert expand_paths({"gold": "$SCRATCH/g"}) == {"gold": "/scratch/of ada/g"}
    endpoint = {"url": "$SCRATCH/score", "version": "~"}  # replaced when it is called
    for gold in (endpoint, {"served": endpoint}):
        assert expand_paths({"gold": gold}) == {"gold": gold}


def test_every_path_of_the_settings_is_expanded():
    """Settings whose descriptions speak of a file or folder that the user names."""
    schema = yaml.safe_load((ROOT / "config/schema.yaml").read_text(encoding="utf-8"))
    is_path = re.compile("(?:The |A )?(?:your |another |file|folder)", re.IGNORECASE)
    named = {name for name, text in texts(schema) if name.islower() and is_path.match(text)}
    assert {"results", "path", "prompts_path", "answers", "task_folder"} <= named
    given = {name: "~" for name in named}
    assert "~" not in expand_paths(given).values(), expand_paths(given)


def texts(schema: object) -> Iterator[tuple[str, str]]:
    """Names and descriptions of all settings."""
    if isinstance(schema, list):
        for item in schema:
            yield from texts(item)
    if isinstance(schema, dict):
        for name, value in schema.items():
            if isinstance(value, dict) and "description" in value:
                yield name, value["description"]
            yield from texts(value)


@pytest.mark.parametrize("key", ["results", "policy", "prepare_data"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("$NOT_SET_HERE/a", "the environment has no variable NOT_SET_HERE"),
        ("${NOT_SET_HERE}/a", "the environment has no variable NOT_SET_HERE"),
        ("~nobody-of-this-name/a", "there is no user of this name"),
    ],
)
def test_homes_and_variables_that_are_not_known(config, key, path, said):
    if key == "prepare_data":
        config |= {"data": key, key: {"prompts_path": path}}
    config |= {"policy": config["policy"] | {"path": path}} if key == "policy" else {}
    config |= {"results": path} if key == "results" else {}
    assert said in message(expand_paths(config))


def test_a_dollar_in_the_name_of_a_file_that_is_there(tmp_path):
    path = tmp_path / "100 $USD.csv"
    assert path_problem(str(path)) is not None
    path.touch()
    assert path_problem(expand_paths({"prompts_path": str(path)})["prompts_path"]) is None


def test_dvc_follows_no_link_of_a_folder(tmp_path):
    """`outside_problem` relies on this."""
    folder = copy_project(tmp_path / "project")
    (tmp_path / "scratch/made").mkdir(parents=True)
    (tmp_path / "scratch/made/a.txt").write_text("a", encoding="utf-8")
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results/mine").symlink_to(tmp_path / "scratch")
    done = subprocess.run(
        ["dvc", "add", "results/mine/made"], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode != 0
