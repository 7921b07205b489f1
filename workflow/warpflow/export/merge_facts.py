"""What a policy was merged from, in the terms of mergekit: parents, method, weights.

A LITI point of iteration 2 is a merge of a merge, whose policies were trained from a merge. Each of
these is a document of its own, as mergekit-multi reads them, named by its result. The documents
say what was done; they are no recipe for mergekit where `note` says that its method differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from warpflow.experiments import SFT, Experiment, Plan, ends_of

# mergekit's names of our methods. A method that mergekit lacks keeps our name.
MERGEKIT = {
    "slerp": "nuslerp",
    "lerp": "linear",
    "lerp_norm_matched": "lerp_norm_matched",
    "karcher": "karcher",
    "model_stock": "model_stock",
    "ties": "ties",
}
NOTES = {
    "slerp": (
        "SLERP of task vectors, one angle for each {granularity}; of more than two policies one "
        "after another with weight 1/m. mergekit's nuslerp takes an angle for each tensor, of two."
    ),
    "lerp_norm_matched": (
        "LERP, scaled to the norm that SLERP would have; mergekit has no such method."
    ),
}


def merge_documents(plan: Plan, result: str) -> list[dict[str, Any]]:
    """Return a document for each merge from which a result comes, in the order in which they were
    made. There is none for the SFT policy and for a policy that was trained from it.

    Each has `name`, `merge_method`, `models` (each with `model` and, under `parameters`, `weight`)
    and where it applies `base_model` and `note`. Models are names of results; train_policy/… are
    policies that were trained from the document before, or from SFT.
    """
    documents: dict[str, dict[str, Any]] = {}
    for document in parents_first(plan, result):
        documents.setdefault(document["name"], document)
    return list(documents.values())


def parents_first(plan: Plan, result: str) -> Iterator[dict[str, Any]]:
    """Yield `merge_documents`, some of them several times."""
    for key, point in plan.points.items():
        if point == result:
            init, merged = ends_of(plan, key)
            yield from parents_first(plan, init)
            yield from parents_first(plan, merged)
            yield linear_document(result, init, merged, float(key[-1]))
            return
    for (e, r, i), merge in plan.merged.items():
        if merge == result:
            start, experiment = plan.init[e, r, i], plan.experiments[e]
            policies = [plan.policies[e, r, i, m] for m in range(experiment.members)]
            yield from parents_first(plan, start)
            if len(policies) > 1:  # the merge of one policy is that policy
                yield merge_document(result, start, policies, experiment)
            return
    for (e, r, i, _), policy in plan.policies.items():
        if policy == result:
            yield from parents_first(plan, plan.init[e, r, i])
            return
    if result != SFT:
        raise ValueError(f"{result}: the run has no such policy")


def linear_document(result: str, init: str, merged: str, eta: float) -> dict[str, Any]:
    """Return the document of LITI: (1 − η) of the initialisation and η of the merge."""
    return {
        "name": result,
        "merge_method": "linear",
        "models": [weighted(init, 1 - eta), weighted(merged, eta)],
        "note": f"LITI at η = {eta:g}, in float32.",
    }


def merge_document(
    result: str, start: str, policies: list[str], experiment: Experiment
) -> dict[str, Any]:
    """Return the document of the merge of an iteration's policies."""
    settings = experiment.merge_policies
    method, weight = settings["method"], settings["weight"]
    weights = [1 / len(policies)] * len(policies) if weight is None else [1 - weight, weight]
    document: dict[str, Any] = {
        "name": result,
        "merge_method": MERGEKIT[method],
        "base_model": start,
        "models": [weighted(p, w) for p, w in zip(policies, weights, strict=True)],
    }
    if method in NOTES and settings["vectors"] == "task_vectors":
        document["note"] = NOTES[method].format(granularity=settings["granularity"])
    if settings["vectors"] != "task_vectors":
        document["note"] = f"{method} of full weights, not of task vectors."
    return document


def weighted(model: str, weight: float) -> dict[str, Any]:
    return {"model": model, "parameters": {"weight": round(weight, 6)}}


def as_yaml(documents: list[dict[str, Any]]) -> str:
    """Write the documents as mergekit-multi's file has them, separated by ---."""
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=100)
