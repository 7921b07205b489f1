"""What rules declare: the code that a script consists of, and settings as a command line."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LIBRARY = Path("workflow/warpflow")


def code_files(script: str, *functions: str | None) -> list[str]:
    """A script and the library modules that it imports, directly or not: editing one of them
    re-runs its rule, editing any other does not.

    Args:
        script: its name, as the rule's.
        functions: ``package.module:function`` that the config names; a module that is ours, or
            lies in this folder, is code of the script too.
    """
    files: set[str] = set()
    pending = [Path("scripts", f"{script}.py"), *map(module_file, filter(None, functions))]
    while pending:
        path = pending.pop()
        if path is None or str(path) in files:
            continue
        files.add(str(path))
        for node in running_nodes(ast.parse(path.read_text())):
            pending += map(module_file, imported_modules(node, path))
    return sorted(files)


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree but those under ``if TYPE_CHECKING:``, which never run."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from running_nodes(child)


def imported_modules(node: ast.AST, path: Path) -> list[str]:
    """The modules that an import in the file `path` may name; ``from a import b`` may mean a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = path.parts[: -node.level] if node.level else ()  # relative: from . import b
    module = ".".join([*package, *([node.module] if node.module else [])])
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def module_file(name: str) -> Path | None:
    """The file of a module ``a.b`` (or a function ``a.b:f``) of the library or of this folder."""
    path = Path(name.partition(":")[0].replace(".", "/"))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    files = (folder / file for folder in (LIBRARY.parent, Path()) for file in candidates)
    return next((file for file in files if file.is_file()), None)


def flags(settings: Mapping[str, Any]) -> str:
    """Settings as a command line: {"beta": 0.1, "etas": [0, 1]} → --beta 0.1 --etas 0 1. Null
    settings are left out.

    In the order of the keys' names: a config laid over another one may bring them in any order,
    and the same settings are to be the same job.
    """
    return shlex.join(
        text
        for key, value in sorted(settings.items())
        if value is not None
        for text in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    )
