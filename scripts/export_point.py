"""Export a point of a front as a model to use and to share: weights, tokenizer, model card.

    python scripts/export_point.py warp/2/0.5 --out FOLDER
    python scripts/export_point.py warp/2/0.5 --out FOLDER --dtype bfloat16 --push ORG/NAME
    python scripts/export_point.py warp/2/0.5 --out FOLDER --gguf --llama_cpp CHECKOUT

A point is EXPERIMENT/ITERATION/ETA, of replicate 1, or the name of any policy of the run, such as
merge_policies/warp/replicate1/iteration2. FOLDER is a Hugging Face folder with a model card
(README.md), the front with the point in it, provenance.json and mergekit_config.yml. `--push` makes
a private repository of it; the token is that of `hf auth login` or of HF_TOKEN. `--gguf` adds
FOLDER/NAME.gguf, by the converter of a checkout of llama.cpp.
Next in reading order: warpflow.export.card.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi

from warpflow.experiments import SFT, Plan, Weights, make_plan, weights_of
from warpflow.export import card
from warpflow.export.front import write_front
from warpflow.export.llama_cpp import find_converter, write_gguf
from warpflow.export.merge_facts import as_yaml, merge_documents
from warpflow.export.push import check_push, push_folder
from warpflow.figures.style import FigureStyle
from warpflow.fronts.tables import read_evaluation
from warpflow.merging.checkpoints import MappedTensors, read_tensors
from warpflow.merging.chunks import DTYPES, check_sources, interpolate, output_dtypes, to_dtype
from warpflow.merging.liti import interpolate_into
from warpflow.merging.streaming import rounding_loss
from warpflow.merging.workers import available_cores
from warpflow.merging.writing import new_checkpoints, provenance
from warpflow.pipeline.config import check_config
from warpflow.pipeline.config_files import DEFAULTS, read_config
from warpflow.pipeline.provenance import provenance_tree
from warpflow.side_by_side.settings import policy_result
from warpflow.version import VERSION

MERGES, CARD, FRONT = "mergekit_config.yml", "README.md", "front.png"


@dataclass(frozen=True)
class Point:
    """What is exported.

    Attributes:
        name: the name as given. result: its name in the plan. metrics: those of its evaluation.
        weights: where its weights are. experiment, replicate, iteration: where it belongs.
    """

    name: str
    result: str
    metrics: dict[str, Any]
    weights: Weights
    experiment: str
    replicate: int
    iteration: int


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("point", help="EXPERIMENT/ITERATION/ETA, e.g. warp/2/0.5")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--configfile", nargs="*", default=[], help="laid over config/config.yaml")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: as they are")
    parser.add_argument("--gguf", action="store_true", help="also as a GGUF file for llama.cpp")
    parser.add_argument(
        "--llama_cpp", metavar="CHECKOUT", help="folder of llama.cpp; default: $LLAMA_CPP"
    )
    parser.add_argument("--push", metavar="ORG/NAME", help="repository to make on the hub")
    parser.add_argument("--public", action="store_true", help="for all to see; default: private")
    parser.add_argument(
        "--base_model",
        help="hub name of what the SFT policy came from; default: policy.path if it is one",
    )
    parser.add_argument("--license", help="its identifier on the hub, e.g. apache-2.0")
    arguments = parser.parse_args(argv)
    try:
        export_point(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"export_point: {error}")


def export_point(arguments: argparse.Namespace) -> None:
    """Do all checks, then write the folder, then push to the hub."""
    config = read_config((*DEFAULTS, *arguments.configfile))
    check_config(config, files=False)
    plan = make_plan(config)
    point = find_point(plan, arguments.point, config["results"])
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    if arguments.push:
        check_push(arguments.push, api)
    converter = find_converter(arguments.llama_cpp) if arguments.gguf else None
    parents = read_parents(plan, point, config["results"])
    write_point(arguments, config, plan, point, parents)
    print(f"{arguments.out}: {point.name}, with its model card in {arguments.out / CARD}")
    if converter:
        file, content = write_gguf(converter, arguments.out, written_dtypes(arguments, parents))
        print(f"{file}: {content}")
    if arguments.push:
        print(push_folder(arguments.out, arguments.push, api, private=not arguments.public))


def find_point(plan: Plan, name: str, results: str) -> Point:
    """Return the policy that a name means, and its evaluation.

    Raises:
        ValueError: the run has no such policy (lists those that it has), or did not evaluate it.
    """
    result = policy_result(plan, name)
    file = Path(results, "evaluate_policy", result, "evaluation.json")
    if not file.is_file():
        raise ValueError(
            f"{name} was not evaluated: {file} is missing, so that a card could not say what the "
            "model is worth. Let the run finish (`snakemake`), or bring its results from Git"
        )
    tables = (plan.points, plan.merged, plan.policies)
    keys = [key for table in tables for key, made in table.items() if made == result]
    experiment, replicate, iteration = keys[0][:3] if keys else (next(iter(plan.experiments)), 1, 0)
    wanted = name.split("/")[0]  # of experiments that share a result the one that was asked for
    experiment = next((key[0] for key in keys if key[0] == wanted), experiment)
    metrics = read_evaluation(results, result)["metrics"]
    where = weights_of(plan, result)
    return Point(name, result, metrics, where, experiment, replicate, iteration)


def read_parents(plan: Plan, point: Point, results: str) -> list[MappedTensors]:
    """Return the checkpoints at η = 0 and at η = 1 of a point. For another policy they are SFT and
    itself.

    Raises:
        ValueError: one of them is not on this machine.
    """
    folders = []
    for result in (point.weights.init or SFT, point.weights.policy):
        folder = Path(results, result, "checkpoint")
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is not on this machine: `dvc pull {folder}.dvc` brings it, and "
                f"`snakemake --cores all {folder}.dvc` makes it"
            )
        folders.append(folder)
    parents = [read_tensors(folder) for folder in folders]
    check_sources(parents)
    return parents


def write_point(
    arguments: argparse.Namespace,
    config: Mapping[str, Any],
    plan: Plan,
    point: Point,
    parents: Sequence[MappedTensors],
) -> None:
    """Write the folder as a whole or not at all."""
    init, policy = parents
    eta = float(point.weights.eta or 1)
    dtypes = output_dtypes(parents, to_dtype(arguments.dtype))
    documents = merge_documents(plan, point.result)
    facts = {"point": point.name, "result": point.result, "eta": eta, "dtype": arguments.dtype}
    facts |= {"merges": documents, "version": VERSION}
    document = provenance("export_point", facts, {"init": init, "policy": policy})
    with new_checkpoints([arguments.out], parents, dtypes, [document]) as (emit, (folder,)):
        interpolate_into(emit, init, policy, [eta], available_cores())
        (folder / MERGES).write_text(as_yaml(documents), encoding="utf-8")
        rounding = rounding_text(set(dtypes.values()), init, policy, eta)
        texts = card_texts(arguments, config, plan, point, folder)
        data = card.card_data(
            arguments.base_model or card.hub_parent(config["policy"]["path"]), arguments.license
        )
        kinds = sorted(str(d).removeprefix("torch.") for d in set(dtypes.values()))
        texts |= {
            "rounding": rounding,
            "dtype": ", ".join(kinds),
            "merges": as_yaml(documents).strip() or "# none: it is one trained policy",
            "has_template": has_template(init.folder),
        }
        card.model_card(data, texts).save(folder / CARD)


def written_dtypes(
    arguments: argparse.Namespace, parents: Sequence[MappedTensors]
) -> set[torch.dtype]:
    return set(output_dtypes(parents, to_dtype(arguments.dtype)).values())


def rounding_text(
    dtypes: set[torch.dtype], init: MappedTensors, policy: MappedTensors, eta: float
) -> str:
    """Say how far rounding to half precision moves the weights, as a share of their way from
    SFT."""
    halves = dtypes & {torch.bfloat16, torch.float16}
    if not halves or init.folder == policy.folder:
        return ""
    (half,) = halves
    loss = rounding_loss(half, init, lambda a, others: interpolate(a, others[0], eta), [policy])
    print(f"Rounding to {half} moves the weights by {loss:.1%} of their way from the init.")
    return f"{loss:.1%}"


def card_texts(
    arguments: argparse.Namespace,
    config: Mapping[str, Any],
    plan: Plan,
    point: Point,
    folder: Path,
) -> dict[str, Any]:
    """Return what the card says about the point, and draw the figure beside it."""
    experiment, results = plan.experiments[point.experiment], config["results"]
    group = next(name for name, names in plan.groups.items() if point.experiment in names)
    tables = Path(results, "collect_evaluations", group)
    style = FigureStyle(**config["figures"])
    evaluations = write_front(tables, folder / FRONT, point.metrics, style)
    sft = {} if evaluations is None else card.sft_metrics(evaluations, point.replicate)
    name = (arguments.push or arguments.out.name).split("/")[-1]
    return {
        "title": name,
        "first_sentence": "A language model aligned by WARP, a point of a KL–reward front.",
        "point": point.name,
        "experiment": point.experiment,
        "replicate": point.replicate,
        "iteration": point.iteration,
        "eta": point.weights.eta,
        "numbers": card.number_rows(point.metrics, sft),
        "prompts": point.metrics["n_prompts"],
        "temperature": config["policy"]["temperature"],
        "new_tokens": config["policy"]["max_new_tokens"],
        "has_figure": evaluations is not None,
        "front": [] if evaluations is None else card.front_rows(evaluations, point.result),
        "data": card.data_text(config),
        "rewards": card.rewards_text(config, experiment),
        "gold": card.gold_text(config),
        "hyperparameters": card.hyperparameters(config, experiment, max(point.iteration, 1)),
        "commit": commit_of(results, point.weights.policy),
        "commands": card.commands_text(point.name, arguments.configfile),
        "tree": tree_of(results, point.weights.policy),
        "repository": arguments.push,
        "example": json.dumps(example_prompt(results, point.result), ensure_ascii=False),
    }


def has_template(folder: Path) -> bool:
    """Whether a tokenizer's folder has a chat template."""
    settings = folder / "tokenizer_config.json"
    text = settings.read_text(encoding="utf-8") if settings.is_file() else "{}"
    return (folder / "chat_template.jinja").is_file() or "chat_template" in json.loads(text)


def example_prompt(results: str, result: str) -> str:
    """Return a prompt on which the point was evaluated."""
    completions = read_evaluation(results, result)["completions"]
    return str(completions[0]["prompt"]) if completions else "…"


def commit_of(results: str, result: str) -> str | None:
    """Return the commit of the project at which a result was made."""
    file = Path(results, result, "provenance.json")
    if not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8"))["environment"]["git_commit"]


def tree_of(results: str, result: str) -> str:
    """Return the tree of jobs behind a result. It is empty where it would name folders of this
    machine."""
    path = Path(results, result)
    if path.is_absolute() or not (path / "provenance.json").is_file():
        return ""
    return "\n".join(provenance_tree(path.absolute(), Path().absolute()))


if __name__ == "__main__":
    main()
