"""The project as its users have it: a copy in a folder of its own, Snakemake, DVC and Git there."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
# The smoke settings, in the folder that dvc.yaml draws from; targets go in front of them.
SMOKE = ("--config", "results=results", "--configfile", "config/smoke.yaml")
FILES = ("Snakefile", "dvc.yaml", ".gitignore", ".gitattributes", ".dvcignore")
FILES += (".dvc/config", ".dvc/.gitignore")
FOLDERS = ("rules", "scripts", "config", "profiles", "slurm", "workflow", "docs")
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org")


def environment(folder: Path) -> dict[str, str]:
    """The copy's library, not the installed one, is what jobs and rules import."""
    return {**os.environ, "PYTHONPATH": str(folder / "workflow")}


def execute(
    folder: Path, *command: str, succeeds: bool = True, extra: dict[str, str] | None = None
) -> str:
    """Run a command there, require that it succeeds or fails, and return all that it prints."""
    variables = environment(folder) | (extra or {})
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables)
    output = result.stdout + result.stderr
    assert (result.returncode == 0) == succeeds, f"{' '.join(command)}\n{output[-5000:]}"
    return output


def git(folder: Path, *arguments: str) -> str:
    return execute(folder, "git", *IDENTITY, *arguments)


def dvc(
    folder: Path, *arguments: str, succeeds: bool = True, extra: dict[str, str] | None = None
) -> str:
    return execute(folder, "dvc", *arguments, succeeds=succeeds, extra=extra)


def snakemake(folder: Path, *arguments: str, succeeds: bool = True) -> str:
    return execute(folder, "snakemake", "--cores", "2", *arguments, succeeds=succeeds)


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    """Return the jobs of a dry run by rule, without `track`, `all` and `report`."""
    output = snakemake(folder, "-n", "--quiet", "rules", *arguments)
    counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.M)}
    ignored = ("track", "track_run", "all", "report", "total")
    return {rule: count for rule, count in counts.items() if rule not in ignored}


def plans_nothing(folder: Path) -> bool:
    """Whether a dry run says that all is made, trackers and report included."""
    return "Nothing to be done" in snakemake(folder, "-n", *SMOKE)


def copy_files(target: Path) -> Path:
    """The project's files, without Git."""
    for name in FILES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    return target


def copy_project(target: Path) -> Path:
    """The project's files as a fresh Git repository, as after a clone."""
    copy_files(target)
    git(target, "init", "-q", "-b", "main")
    commit(target, "start")
    return target


def commit(folder: Path, message: str) -> None:
    """Commit all that Git is to keep."""
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", message)


def copy_finished(finished: Path, target: Path) -> Path:
    """Copy a finished project to change it: its files are its own, and links between them are
    kept."""
    subprocess.run(["cp", "-a", str(finished), str(target)], check=True)
    return target


def set_config(folder: Path, **changes: dict[str, object]) -> None:
    """Write values of a section into config/config.yaml, as a user's edit does: line by line."""
    path = folder / "config/config.yaml"
    text = path.read_text()
    for section, settings in changes.items():
        for key, value in settings.items():
            pattern = rf"(^{section}:.*\n(?:(?: .*|#.*)?\n)*?  {key}: *)[^ \n#]+"
            text, found = re.subn(pattern, rf"\g<1>{value}", text, flags=re.M)
            assert found == 1, f"{section}.{key} found {found} times"
    path.write_text(text)
    read = yaml.safe_load(text)
    for section, settings in changes.items():
        assert {key: read[section][key] for key in settings} == settings


def pointers(folder: Path) -> dict[str, str]:
    """Return every DVC pointer with its text, except the report's, which holds a date."""
    found = sorted((folder / "results").rglob("*.dvc"))
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in found
        if path.name != "main.html.dvc"
    }
