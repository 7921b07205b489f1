"""The user's own models: which the config names, where they are, and whether they are plain.

All is read from config.json and the folder's listing, before any job and without model code. Here a
message says what to do where a job would end with an error of another library, or would silently
read something else (8-bit floats). A hub name is looked up in the cache of Hugging Face. One that
is not there yet is left to the job that loads it.
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

OWN = ("fetch_policy", "train_reward_model", GOLD_RESULT)  # the config's names for the run's models
TASKS = {False: "CAUSAL_LM", True: "SEQUENCE_CLASSIFICATION"}  # transformers names mappings so
# These files lie beside config.json in folders of quantisers that leave no word in it.
QUANTISER_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


@dataclass(frozen=True)
class GivenModel:
    """A model that the config names.

    Attributes:
        key: the key of the config, for messages.
        path: a folder, a file, or a name on the hub.
        is_reward: whether it is a classifier with one label, else a causal language model.
    """

    key: str
    path: str
    is_reward: bool

    @property
    def folder(self) -> Path | None:
        """The folder of the model's files, or None where the name is no folder and not in the hub's
        cache."""
        return Path(self.path) if Path(self.path).is_dir() else hub_snapshot(self.path)


def given_models(config: Mapping[str, Any]) -> list[GivenModel]:
    """Return the given models that a config names: policy, rewards, golds, contestants, judges."""
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
    """Return the folder of a hub name's newest commit in the cache of Hugging Face. It is named
    after the commit."""
    from huggingface_hub import constants  # only where a hub name is given

    repository = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    reference = repository / "refs" / "main"
    if not reference.is_file():
        return None
    return repository / "snapshots" / reference.read_text(encoding="utf-8").strip()


def read_model_config(folder: Path | None) -> dict[str, Any]:
    """Return config.json of a model folder, or an empty one where there is none.

    Raises:
        ValueError: it is not a JSON object.
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
    """Yield the first thing that is wrong with each model that a config names."""
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
    """Return the command that writes a plain folder, and what to do then."""
    out = f"{model.path.rstrip('/').rpartition('/')[2]}-plain"
    words = ["python", "scripts/convert_model.py", "--model", model.path, "--out", out]
    command = shlex.join([*words, *(["--reward_model"] if model.is_reward else [])])
    return f"`{command}`, and set {model.key} to {out}"


def adapter_problem(model: GivenModel, folder: Path) -> str | None:
    """Say what a folder with an adapter's config is: an adapter, or a model that transformers would
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
    """Say what to do with quantised numbers, because training and merging are in float32."""
    beside = [name for file, name in QUANTISER_FILES.items() if (folder / file).is_file()]
    settings = given.get("quantization_config")
    if not settings and not beside:
        return None
    # Older versions of bitsandbytes did not name their method.
    method = settings.get("quant_method", "bitsandbytes") if settings else beside[0]
    what = f"is quantised ({method}), while training and merging are in float32"
    before = "take the model as it was before it was quantised"
    if method not in DEQUANTISED:
        return f"{what}: {before}"
    package = DEQUANTISED[method]
    needs = f" (it needs `pip install {package}`)" if package else ""
    return f"{what}: {before}, which is better, or dequantise it with {conversion(model)}{needs}"


def inner_problem(model: GivenModel, given: Mapping[str, Any]) -> str | None:
    """Say what to do with a policy inside a multimodal model. A classifier is read as it is."""
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
    """Say why the installed transformers has no model of this type for the task, if it has none."""
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
    """Return the model types of transformers for the task, or none where it is not installed."""
    name = f"MODEL_FOR_{TASKS[is_reward]}_MAPPING_NAMES"
    return assigned("models/auto/modeling_auto.py", name)
