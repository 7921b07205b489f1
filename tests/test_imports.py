"""Imports between the library's folders go one way: a reader meets nothing before its place, and a
job's key holds no code that the job does not need."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from warpflow.pipeline.code_files import imported_modules, module_file, running_nodes

ROOT = Path(__file__).parents[1]
LIBRARY = Path("workflow/warpflow")
# A folder may import those of earlier rows, not another one of its own row. `data` comes after
# `lm`, because `data.prepare` counts tokens with the policy's own tokenizer; `lm` reads no data.
# `pipeline` comes late, because it checks the settings of all that runs. The modules at the top
# (seeds, locks, experiments …) import no folder but `settings`, of which `cli` makes flags, and
# every folder may import them.
TOP = ""
LAYERS = (
    ("settings",),
    (TOP,),
    ("lm",),
    ("data",),
    ("training", "merging"),
    ("evaluation",),
    ("fronts",),
    ("figures", "side_by_side"),
    ("pipeline",),
    ("estimates", "export"),
)
WITHOUT_MODEL_CODE = ("settings", "pipeline", "fronts", "figures")
MODEL_CODE = ("torch", "transformers", "accelerate", "peft")
# `lm.fast` can be deleted as one: these choose between it and the library's forward pass, and the
# estimate of memory measures what the chosen one holds.
USERS_OF_FAST = {"lm/scoring.py", "lm/sampling.py", "estimates/memory.py"}


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def imports() -> Iterator[tuple[Path, Path]]:
    """Each import of one module of the library by another, as paths in its folder; imports of
    types, which never run, left out."""
    for path in sorted((ROOT / LIBRARY).rglob("*.py")):
        importer = path.relative_to(ROOT)
        for node in running_nodes(ast.parse(path.read_text())):
            for imported in map(module_file, imported_modules(node, importer)):
                if imported and imported.is_relative_to(LIBRARY):
                    yield importer.relative_to(LIBRARY), imported.relative_to(LIBRARY)


def folder(module: Path) -> str:
    return module.parts[0] if len(module.parts) > 1 else TOP


def test_every_folder_has_its_place() -> None:
    folders = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert folders <= {name for layer in LAYERS for name in layer}


def test_folders_import_earlier_ones_only() -> None:
    place = {name: place for place, layer in enumerate(LAYERS) for name in layer}
    found = [(importer, imported) for importer, imported in imports()]
    assert found
    for importer, imported in found:
        is_own = folder(importer) == folder(imported)
        assert is_own or place[folder(importer)] > place[folder(imported)], (
            f"{importer} imports {imported}"
        )


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph: dict[Path, set[Path]] = {}
    for importer, imported in imports():
        graph.setdefault(importer, set()).add(imported)
    TopologicalSorter(graph).prepare()  # raises CycleError and names the modules


def test_the_fast_layers_are_used_in_few_places() -> None:
    fast = Path("lm/fast")
    users = {i for i, imported in imports() if imported.parent == fast and i.parent != fast}
    assert {str(user) for user in users} == USERS_OF_FAST


def test_what_snakemake_and_the_plots_load_has_no_model_code() -> None:
    """It is loaded for every command, and on nodes that only draw."""
    modules = ["warpflow.experiments"]
    for name in WITHOUT_MODEL_CODE:
        files = (LIBRARY / name).glob("[a-z]*.py")
        modules += [f"warpflow.{name}.{path.stem}" for path in files]
    assert len(modules) > 10
    code = f"import sys, {', '.join(modules)}; print(*{{*{MODEL_CODE}}} & {{*sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (loaded.returncode, loaded.stdout.strip()) == (0, ""), loaded.stderr
