"""Check whether `policy.architecture` can be built, without importing transformers or torch.

An import of transformers takes seconds, and Snakemake reads the rules in every job. So the files of
the installed transformers are read and not run. They say which model types are causal language
models, and which settings with which defaults their config classes have.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

KEY = "policy.architecture"
# Mappings of vLLM's registry, by the names of the classes that transformers has.
VLLM_MODELS = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")


def architecture_problems(architecture: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with an architecture, as far as the files of transformers show it.

    Nothing is reported where transformers is not installed, because only lists and lint run there.
    """
    if transformers_folder() is None:
        return
    model_type = architecture["model_type"]
    known = assigned("models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    if known and model_type not in known:
        near = difflib.get_close_matches(str(model_type), known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        yield (
            f"- {KEY}.model_type: got {model_type!r}, expected a causal language model of the "
            f"installed transformers, gemma, llama or qwen3 say{hint}"
        )
        return
    defaults, aliases = config_class(model_type)
    yield from misspelt_keys(architecture, {*defaults, *aliases})
    yield from head_problems(architecture, defaults, aliases)


def architecture_classes(architecture: Mapping[str, Any]) -> list[str]:
    """Return the class of the model that is built, in a list as in a config.json. The list is empty
    where the files do not tell."""
    known = assigned("models/auto/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    return [name for kind, name in known.items() if kind == architecture["model_type"]]


@cache
def architectures_of_vllm() -> set[str]:
    """Return the classes that the installed vLLM has an implementation of. Its file is read and not
    run. The set is empty where vLLM is not installed or the file has another form."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        return set()
    file = Path(found.submodule_search_locations[0], "model_executor/models/registry.py")
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "").body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            is_of_models = ast.unparse(node.targets[0]) in VLLM_MODELS
            keys = [key for key in node.value.keys if isinstance(key, ast.Constant)]
            names |= {str(key.value) for key in keys if is_of_models}
    return names


def misspelt_keys(architecture: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    """Yield keys that the config class does not have and that are nearly one of its keys. The class
    takes any key and reads only its own, so a misspelt one would change nothing."""
    for name in architecture:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if name != "model_type" and name not in known and near:
            yield f"- {KEY}.{name}: unknown key; did you mean {near[0]}?"


def head_problems(
    architecture: Mapping[str, Any], defaults: Mapping[str, Any], aliases: Mapping[str, str]
) -> Iterator[str]:
    """Yield numbers of heads that do not divide the width or one another."""

    def value(name: str) -> Any:
        own = aliases.get(name, name)
        return architecture.get(own, architecture.get(name, defaults.get(own)))

    width, heads, groups = (
        value(name) for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    for name, number in (("num_attention_heads", heads), ("num_key_value_heads", groups)):
        if isinstance(number, int) and number < 1:
            yield f"- {KEY}.{name}: got {number}, expected at least 1"
            return
    # A type whose own defaults do not divide computes the width of a head in another way.
    standard = [defaults.get(aliases.get(n, n)) for n in ("hidden_size", "num_attention_heads")]
    has_width_of_its_own = value("head_dim") is not None or leaves_rest(*standard)
    if leaves_rest(width, heads) and not has_width_of_its_own:
        yield (
            f"- {KEY}: hidden_size = {width} is no multiple of num_attention_heads = {heads}: "
            "change one of them, or give head_dim where the model type has it"
        )
    if "num_key_value_heads" in defaults and leaves_rest(heads, groups):
        yield (
            f"- {KEY}: num_attention_heads = {heads} is no multiple of num_key_value_heads = "
            f"{groups}, so that heads cannot share keys evenly: change one of them"
        )


def leaves_rest(number: Any, divisor: Any) -> bool:
    """Whether both numbers are known and their division leaves a remainder."""
    known = isinstance(number, int) and isinstance(divisor, int) and divisor > 0
    return known and number % divisor != 0


# --- the files of transformers -----------------------------------------------------------------


@cache
def transformers_folder() -> Path | None:
    """Return the folder of transformers, or None where it is not installed."""
    found = importlib.util.find_spec("transformers")
    return Path(found.submodule_search_locations[0]) if found and found.origin else None  # type: ignore[index]


@cache
def read_file(path: str) -> ast.Module:
    """Return the syntax tree of a file of transformers. It is empty where this version has no such
    file. Then nothing is known, and nothing is reported."""
    file = (transformers_folder() or Path()) / path
    return ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")


def assigned(path: str, variable: str) -> dict[str, Any]:
    """Return a mapping that a file writes as ``VARIABLE = OrderedDict([(key, value), …])``."""
    for node in read_file(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == variable:
            value = node.value.args[0] if isinstance(node.value, ast.Call) else node.value
            return dict(ast.literal_eval(value))
    return {}


def kernels_versions() -> tuple[str, str] | None:
    """Return the versions of the package kernels that transformers takes, from the first one to
    below the second one. It is None where the file does not tell."""
    given = {
        ast.unparse(node.targets[0]): literal(node.value)
        for node in read_file("utils/import_utils.py").body
        if isinstance(node, ast.Assign)
    }
    lowest, end = given.get("KERNELS_MIN_VERSION"), given.get("KERNELS_MAX_VERSION")
    return (lowest, end) if lowest and end else None


def config_class(model_type: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings of a model type's config class with their defaults, and other names for
    them. A default that is not written out is None."""
    auto = "models/auto/auto_mappings.py"
    modules = assigned(auto, "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
    module = modules.get(model_type, model_type.replace("-", "_"))
    name = assigned(auto, "CONFIG_MAPPING_NAMES").get(model_type, "")
    return fields(f"models/{module}/configuration_{module}.py", name)


def fields(path: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings of the class of that name in a file, with those of its parents, as
    `config_class` does."""
    defaults: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    for node in read_file(path).body:
        if not isinstance(node, ast.ClassDef) or node.name != name:
            continue
        for parent in node.bases:
            in_file, base = path, ast.unparse(parent)
            if base == "PreTrainedConfig":
                in_file = "configuration_utils.py"
            more, other_names = fields(in_file, base)
            defaults |= more
            aliases |= other_names
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and not ast.unparse(line.annotation).startswith(
                "ClassVar"
            ):
                defaults[ast.unparse(line.target)] = literal(line.value)
            elif isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "attribute_map":
                aliases |= literal(line.value) or {}
    return defaults, aliases


def literal(node: ast.expr | None) -> Any:
    """Return a value that is written out, or None for one that is computed."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
