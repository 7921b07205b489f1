"""The commands of the documentation exist, with their flags, targets and files; and its configs
are valid. Nothing is computed: parsers of the programs themselves read the commands."""

import contextlib
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pages import FENCE, ROOT, commands, pages
from pydantic import TypeAdapter

from warpflow.settings.config import Config

# Programs that are not of this project, or whose commands need what the reader has.
ELSEWHERE = {"cd", "git", "pip", "docker", "export", ".", "cut", "squeue", "sacct", "pre-commit"}
# What the reader is to write, and what a run makes.
YOURS = ("config/mine.yaml", "results/")
TEST_MODULES = [f"tests/{name}.py" for name in ("conftest", "project", "quick_imports")]
PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)


def check_make(words: list[str]) -> None:
    """Check that the target is in the Makefile, by asking make without doing anything."""
    done = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def check_snakemake(words: list[str]) -> None:
    """Check that Snakemake knows the options, and that rules, groups and files are there."""
    from snakemake.cli import get_argument_parser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            arguments = get_argument_parser().parse_args(words)
    except SystemExit:
        pytest.fail(said.getvalue())
    for file in map(str, arguments.configfile or []):
        assert file.startswith(YOURS) or (ROOT / file).is_file(), f"{file} is not there"
    known = targets()
    for target in arguments.targets or ():
        assert target.startswith("results/") or target in known, f"{target} is no target"


def targets() -> set[str]:
    """Return the names of rules, and of the groups of experiments."""
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk"))
    names = set(re.findall(r"^ *rule (\w+):", rules, re.MULTILINE))
    for path in (ROOT / "config").glob("*.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        names |= set(config.get("ablations") or {})
    return names


def check_python(words: list[str]) -> None:
    """Check that the script is there, and that its help has each flag."""
    if words[0] in ("-m", "-c"):
        compile(words[1] if words[0] == "-c" else "", "command", "exec")
        return
    path = ROOT / words[0]
    assert path.is_file(), f"{words[0]} is not there"
    flags = [word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)]
    unknown = [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}\b", help_of(path))]
    assert not unknown, f"{words[0]} has no {', '.join(unknown)}"


def help_of(path: Path) -> str:
    """Return what the script prints at --help, run in this process, which has loaded the
    libraries."""
    module = importlib.import_module(path.stem)  # pyproject.toml has both folders on the path
    assert module.__file__ and Path(module.__file__) == path
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", [str(path), "--help"])
        with contextlib.suppress(SystemExit):
            module.main()
    return said.getvalue()


def check_pytest(words: list[str]) -> None:
    for word in words:
        if word.startswith("tests/"):
            assert (ROOT / word).exists(), f"{word} is not there"


def check_dvc(words: list[str]) -> None:
    from dvc.cli import parse_args

    parse_args(words)


def check_tensorboard(words: list[str]) -> None:
    assert words[0] == "--logdir" and words[1].startswith("results/")


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "snakemake": check_snakemake,
    "python": check_python,
    "pytest": check_pytest,
    "dvc": check_dvc,
    "tensorboard": check_tensorboard,
}


@PAGES
def test_commands_are_those_that_there_are(page: Path) -> None:
    for command in commands(page):
        for part in re.split(r"\s(?:&&|;)\s", command):
            words = shlex.split(part)
            while words and re.match(r"\w+=", words[0]):
                del words[0]  # a variable of the environment
            if not words or words[0] in ELSEWHERE or "…" in part:
                continue
            assert words[0] in CHECKS, f"{page.name}: how is {part!r} to be checked?"
            CHECKS[words[0]](words[1:])


def test_commands_are_found() -> None:
    found = [command for page in pages() for command in commands(page)]
    assert {"make run", "make test"} <= set(found)
    assert any(command.startswith("python scripts/merge_policies.py") for command in found)


@pytest.mark.slow
def test_the_merge_method_of_the_page_passes_the_tests_of_all(tmp_path: Path) -> None:
    """The example of docs/extend.md is written into a copy of the project as the page says."""
    for name in ("workflow/warpflow", "tests/merging"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in (*TEST_MODULES, "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    blocks = FENCE.findall((ROOT / "docs/extend.md").read_text(encoding="utf-8"))
    function, line, test = [block for language, block in blocks if language == "python"][:3]
    methods = tmp_path / "workflow/warpflow/merging/methods.py"
    before, after = methods.read_text().split("METHODS: dict", 1)
    table, rest = after.split("\n}", 1)
    methods.write_text(f"{before}{function}\n\nMETHODS: dict{table}\n{line.rstrip()}\n}}{rest}")
    with open(tmp_path / "tests/merging/test_methods.py", "a") as file:
        file.write(f"\n\n{test}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/merging/test_methods.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "workflow")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "passed" in done.stdout


@pytest.mark.parametrize("name", ["README.md", "docs/your_rewards.md", "docs/extend.md"])
def test_configs_of_the_pages_are_valid(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    page = page.replace("method: lerp_equal_lengths", "method: lerp")  # the page adds that method
    configs = [
        yaml.safe_load(block) for language, block in FENCE.findall(page) if language == "yaml"
    ]
    assert configs
    for config in configs:
        TypeAdapter(Config).validate_python(config)
