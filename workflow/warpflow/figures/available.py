"""Which figures have something to draw for a group of experiments, by its settings.

The others would be a frame with a sentence about what to set. So a report leaves them out by
default. `snakemake results/figures/main/averages.svg` still draws one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from warpflow.experiments import Experiment, Plan

Experiments = Sequence[Experiment]


def available_figures(plan: Plan, group: str, figures: Sequence[str]) -> list[str]:
    """Return those of `figures` that have something to draw for the group's experiments, in order.
    A figure without a condition is always among them."""
    experiments = [plan.experiments[name] for name in plan.groups[group]]
    return [name for name in figures if CONDITIONS.get(name, always)(experiments)]


def always(experiments: Experiments) -> bool:
    return True


def has_several_etas(experiments: Experiments) -> bool:
    return any(len(set(e.interpolate_policy["etas"])) > 1 for e in experiments)


def has_merge_weights(experiments: Experiments) -> bool:
    """Whether some experiment merges two policies at a set weight and evaluates the merge (η =
    1)."""
    return any(
        e.members == 2
        and e.merge_policies["weight"] is not None
        and 1 in e.interpolate_policy["etas"]
        for e in experiments
    )


def has_pairs(experiments: Experiments) -> bool:
    return any(e.members > 1 for e in experiments)


def has_averages(experiments: Experiments) -> bool:
    return any(len(e.train_policy["evaluate_weights"]) > 1 for e in experiments)


def has_both_anchors(experiments: Experiments) -> bool:
    return {"ema", "sft"} <= {e.train_policy["anchor"] for e in experiments}


CONDITIONS: dict[str, Callable[[Experiments], bool]] = {
    "eta_sweep": has_several_etas,
    "lambda_sweep": has_merge_weights,
    "geometry": has_pairs,
    "averages": has_averages,
    "envelopes": has_both_anchors,
}
