"""The code of a job: which files can run in it, and what they do.

A result's key holds a hash of what its code *does*, which is a hash of the syntax tree without
comments, docstrings and formatting. So a reformatted file or an edited docstring makes nothing due.
Read next: `warpflow.pipeline.jobs.make_record`, where the key is made.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

LIBRARY = Path("workflow/warpflow")


def code_files(script: str, *functions: str | None) -> list[str]:
    """Return a script and the modules that it imports, directly or not. They are all the code that
    can run in a job. An edit of one of them may re-run the rule, and an edit of any other file does
    not.

    Args:
        script: its name, which is the rule's, or its path.
        functions: ``package.module:function`` that the config names. A module of ours or in this
            folder is also code of the job.

    Raises:
        ValueError: a file cannot be parsed. The message names it.
    """
    path = Path(script) if script.endswith(".py") else Path("scripts", f"{script}.py")
    files: set[str] = set()
    pending = [path, *map(module_file, filter(None, functions))]
    while pending:
        found = pending.pop()
        if found is None or str(found) in files:
            continue
        files.add(str(found))
        stat = found.stat()
        for module in _imports(found, stat.st_mtime_ns, stat.st_size):
            pending += [module_file(module), *package_files(module)]
    return sorted(files)


@cache
def _imports(path: Path, time: int, size: int) -> list[str]:
    """Return the modules that a file imports when it runs."""
    nodes = running_nodes(parse(path))
    return [module for node in nodes for module in imported_modules(node, path)]


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: cannot be parsed ({error.msg}), so that it is not known "
            "which results it changes: mend it"
        ) from None


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree but those under ``if TYPE_CHECKING:``, which never run."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not is_for_type_checkers(child):
            yield from running_nodes(child)


def is_for_type_checkers(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and not node.orelse
        and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    )


def imported_modules(node: ast.AST, path: Path) -> list[str]:
    """Return the modules that an import in file `path` may name. ``from a import b`` may mean
    a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    package = path.parts[: -node.level] if node.level else ()  # relative: from . import b
    module = ".".join([*package, *([node.module] if node.module else [])])
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def module_file(name: str) -> Path | None:
    """Return the file of a module ``a.b`` (or function ``a.b:f``) of the library or of this
    folder."""
    path = Path(name.partition(":")[0].replace(".", "/"))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    files = (folder / file for folder in (LIBRARY.parent, Path()) for file in candidates)
    return next((file for file in files if file.is_file()), None)


def package_files(module: str) -> list[Path]:
    """Return the ``__init__.py`` files with code that run when a module is imported."""
    parts = module.split(".")
    found = [module_file(".".join(parts[:n])) for n in range(1, len(parts))]
    return [path for path in found if path is not None and definitions(path)]


# --- what code does ----------------------------------------------------------------------------


def code_hashes(script: str, *functions: str | None) -> dict[str, str]:
    """Return the files of `code_files`, each with a hash of what it does."""
    return {path: file_hash(Path(path)) for path in code_files(script, *functions)}


def code_hash(script: str, *functions: str | None) -> str:
    """Return one hash of all that the code of a job does. Rules have it as a parameter, so that
    Snakemake runs them again when it changes."""
    return digest(code_hashes(script, *functions))


def file_hash(path: Path) -> str:
    """Return a hash of what a file does. Comments, docstrings and formatting do nothing."""
    return digest(definitions(path))


def definitions(path: Path) -> dict[str, str]:
    """Return each function and class of a file with a hash of what it does. All other statements
    are under the name ``module``."""
    stat = path.stat()
    return _definitions(path, stat.st_mtime_ns, stat.st_size)


@cache
def _definitions(path: Path, time: int, size: int) -> dict[str, str]:
    named: dict[str, list[Any]] = {}
    for node in running_statements(parse(path).body):
        is_named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        named.setdefault(node.name if is_named else "module", []).append(outline(node))  # type: ignore[attr-defined]
    return {name: digest(nodes) for name, nodes in named.items()}


def running_statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements without those that do nothing: docstrings, also those below an
    attribute, and imports for type checkers."""
    return [node for node in body if not (is_docstring(node) or is_for_type_checkers(node))]


def is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def outline(node: Any) -> Any:
    """Return a syntax tree as nested lists, the same for every version of Python. Empty fields are
    left out, since newer versions have more of them."""
    if isinstance(node, ast.AST):
        fields = [(name, outline(value)) for name, value in ast.iter_fields(node) if name != "kind"]
        return [type(node).__name__, *(f for f in fields if f[1] not in (None, []))]
    if isinstance(node, list):
        is_body = bool(node) and all(isinstance(item, ast.stmt) for item in node)
        return [outline(item) for item in (running_statements(node) if is_body else node)]
    return None if node is None else repr(node)


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value. The order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
