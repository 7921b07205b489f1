# These helpers of rules/evaluate.smk say what the experiments of a group evaluate.

from warpflow.experiments import Weights, evaluations, members_of, weights_of


def evaluated(w):
    """Return the policies that the experiments of a group evaluate."""
    return sorted({row["policy"] for row in evaluations(PLAN, w.group)})


def scored_runs(w):
    """Return the RL runs of an iteration, by the member's number."""
    return members_of(PLAN, SCORED.format(**dict(w.items())))


def points_of_front(front):
    """Return what evaluate_front is told about each policy: where its weights are, or what they are
    composed of, and the file to write."""
    points = [(result, weights_of(PLAN, result)) for result in FRONTS[front]]
    return [
        {"out": evaluation(result), "policy": pointer(found.policy)}
        | ({"init": pointer(found.init), "eta": found.eta} if found.init else {})
        for result, found in points
    ]


def weights_of_front(front):
    """Return the pointers of all weights of which the policies of a front are made."""
    found = [weights_of(PLAN, result) for result in FRONTS[front]]
    return sorted({pointer(path) for w in found for path in (w.policy, w.init) if path})


def sft_evaluation(front):
    """Return the SFT policy's evaluation, which fronts look up for η = 0."""
    is_on_it = Weights("train_sft") in [weights_of(PLAN, result) for result in FRONTS[front]]
    return evaluations_of(["train_sft"]) if is_on_it and front != FRONT_OF["train_sft"] else []
