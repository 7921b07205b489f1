# Helpers of rules/evaluate.smk: what the experiments of a group evaluate.

from warpflow.experiments import evaluations, members_of


def evaluated(w):
    """The policies that the experiments of a group evaluate."""
    return sorted({row["policy"] for row in evaluations(PLAN, w.group)})


def scored_runs(w):
    """The RL runs of an iteration, by the member's number."""
    return members_of(PLAN, SCORED.format(**dict(w.items())))
