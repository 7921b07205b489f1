"""The user's own models: which the config names, where they are, and whether they are plain.

All is read from config.json and the folder's listing, before any job and without model code. What a
job would meet as an error of another library, or read without a word as something else (8-bit
floats), is said here with what to do. A hub name is looked up in the cache of Hugging Face; one
that is not there yet is left to the job that loads it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warpflow.gold_names import GOLD_RESULT, gold_sources, is_endpoint, is_function
from warpflow.model_kinds import ADAPTER, DEQUANTISED, TEXT_TYPES
from warpflow.pipeline.architectures import assigned
from warpflow.weight_files import gguf_problem, is_gguf

OWN = ("fetch_policy", "train_reward_model", GOLD_RESULT)  # what the config calls the run's own
TASKS = {False: "CAUSAL_LM", True: "SEQUENCE_CLASSIFICATION"}  # in transformers' mappings
# Beside config.json in folders of quantisers whose models do not say so in it.
QUANTISER_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


@dataclass(frozen=True)
class GivenModel:
    """A model that the config names.

    Attributes:
        key: of the config, to be named in messages.
        path: a folder, a file, or a name on the hub.
        is_reward: a classifier with one label, else a causal language model.
    """

    key: str
    path: str
    is_reward: bool

    @property
    def folder(self) -> Path | None:
        """Where the model's files are; None where the name is no folder and not in the hub's
        cache."""
        return Path(self.path) if Path(self.path).is_dir() else hub_snapshot(self.path)


def given_models(config: Mapping[str, Any]) -> list[GivenModel]:
    """The models of others that a config names: policy, rewards, golds, contestants, judges."""
    found = [
        GivenModel("policy.path", config["policy"]["path"], False),
        GivenModel("train_reward_model.path", config["train_reward_model"]["path"], True),
    ]
    for column, source in gold_sources(config["evaluate_policy"]["gold"]).items():
        if not (is_function(source) or is_endpoint(source)):
            found.append(GivenModel(f"evaluate_policy.{column}", source, True))
    for name, comparison in (config["compare_answers"] or {}).items():
        where = f"compare_answers.{name}"
        for contestant, given in (comparison or {}).get("contestants", {}).items():
            key = f"{where}.contestants.{contestant}.path"
            found.append(GivenModel(key, given.get("path"), False))
        for judge, given in (comparison or {}).get("judges", {}).items():
            key = f"{where}.judges.{judge}.reward_model"
            found.append(GivenModel(key, given.get("reward_model"), True))
    return [model for model in found if model.path and model.path not in OWN]


def hub_snapshot(name: str) -> Path | None:
    """The folder of a hub name's newest commit in the cache of Hugging Face; its name is the
    commit."""
    from huggingface_hub import constants  # only where a hub name is given

    repository = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    reference = repository / "refs" / "main"
    if not reference.is_file():
        return None
    return repository / "snapshots" / reference.read_text(encoding="utf-8").strip()


def read_model_config(folder: Path | None) -> dict[str, Any]:
    """config.json of a model folder; empty where there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    file = folder / "config.json" if folder else None
    if file is None or not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error}); copy the folder again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected a JSON object; copy the folder again")
    return config


def model_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the models that a config names: the first thing of each."""
    for model in given_models(config):
        if is_gguf(model.path):
            if problem := gguf_problem(model.path):
                yield f"- {model.key}: {problem}"
            continue
        folder = model.folder
        if folder is None:
            continue
        try:
            given = read_model_config(folder)
        except ValueError as error:
            yield f"- {model.key}: {error}"
            continue
        problem = (
            adapter_problem(model, folder)
            or quantisation_problem(model, folder, given)
            or inner_problem(model, given)
            or type_problem(model, given)
        )
        if problem:
            yield f"- {model.key}: {model.path} {problem}"


def conversion(model: GivenModel) -> str:
    """The command that writes a plain folder, and what to do then."""
    out = f"{model.path.rstrip('/').rpartition('/')[2]}-plain"
    words = ["python", "scripts/convert_model.py", "--model", model.path, "--out", out]
    command = shlex.join([*words, *(["--reward_model"] if model.is_reward else [])])
    return f"`{command}`, and set {model.key} to {out}"


def adapter_problem(model: GivenModel, folder: Path) -> str | None:
    """What a folder with an adapter's config is: an adapter, or a model that transformers would
    take for one."""
    if not (folder / ADAPTER).is_file():
        return None
    if not any(path.suffix != ".json" for path in folder.glob("adapter_model.*")):
        return (
            f"has {ADAPTER} and no adapter_model.safetensors; transformers would look for an "
            f"adapter there: move {ADAPTER} to another place"
        )
    base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    lost = ""
    if str(base).startswith((".", "/")) and not Path(base).is_dir():
        lost = (
            f" That model is not at {base} here: first set base_model_name_or_path in {ADAPTER} to "
            "where it is."
        )
    return (
        f"is an adapter for {base}, not a model of its own. Merge the two with "
        f"{conversion(model)}.{lost}"
    )


def quantisation_problem(model: GivenModel, folder: Path, given: Mapping[str, Any]) -> str | None:
    """What to do with numbers of a quantiser: training and merging here are in float32."""
    beside = [name for file, name in QUANTISER_FILES.items() if (folder / file).is_file()]
    settings = given.get("quantization_config")
    if not settings and not beside:
        return None
    # Older versions of bitsandbytes did not say so.
    method = settings.get("quant_method", "bitsandbytes") if settings else beside[0]
    what = f"is quantised ({method}), while training and merging are in float32"
    before = "take the model as it was before it was quantised"
    if method not in DEQUANTISED:
        return f"{what}: {before}"
    package = DEQUANTISED[method]
    needs = f" (it needs `pip install {package}`)" if package else ""
    return f"{what}: {before}, which is better, or dequantise it with {conversion(model)}{needs}"


def inner_problem(model: GivenModel, given: Mapping[str, Any]) -> str | None:
    """What to do with a policy inside a model that sees or hears. A classifier is read as it is."""
    inner = given.get("text_config")
    if model.is_reward or not isinstance(inner, dict):
        return None
    name = next(iter(given.get("architectures") or [given.get("model_type")]))
    what = f"is {name}, which has a language model among other parts; only that can be trained here"
    kind = inner.get("model_type")
    known = model_types(is_reward=False)
    if kind is not None and known and TEXT_TYPES.get(kind, kind) not in known:
        return f"{what}, and transformers has no {kind} of its own: take another model"
    return f"{what}: write it alone with {conversion(model)}"


def type_problem(model: GivenModel, given: Mapping[str, Any]) -> str | None:
    """Whether the installed transformers has a model of this type that does what is asked of it."""
    kind, known = given.get("model_type"), model_types(model.is_reward)
    if kind is None or not known or kind in known:
        return None
    what = "classifies sequences" if model.is_reward else "is a causal language model"
    if "auto_map" in given:
        return (
            f"is of type {kind!r}, whose Python code comes with the model (auto_map in its "
            "config.json); such code is never run here: take a model of an architecture that "
            "transformers has itself"
        )
    return (
        f"is of type {kind!r}, of which the installed transformers has no model that {what}: take "
        "another model, or install a version of transformers that has one"
    )


def model_types(is_reward: bool) -> dict[str, Any]:
    """Model types of transformers that do what is asked; empty where it is not installed."""
    name = f"MODEL_FOR_{TASKS[is_reward]}_MAPPING_NAMES"
    return assigned("models/auto/modeling_auto.py", name)
