# Helpers of rules/evaluate.smk: what the experiments of a group evaluate.

from warpflow.experiments import Weights, evaluations, members_of, weights_of


def evaluated(w):
    """The policies that the experiments of a group evaluate."""
    return sorted({row["policy"] for row in evaluations(PLAN, w.group)})


def scored_runs(w):
    """The RL runs of an iteration, by the member's number."""
    return members_of(PLAN, SCORED.format(**dict(w.items())))


def points_of_front(front):
    """What evaluate_front is told of each policy: where its weights are, or what they are composed of,
    and the file to write."""
    points = [(result, weights_of(PLAN, result)) for result in FRONTS[front]]
    return [
        {"out": evaluation(result), "policy": pointer(found.policy)}
        | ({"init": pointer(found.init), "eta": found.eta} if found.init else {})
        for result, found in points
    ]


def weights_of_front(front):
    """The pointers of all weights that the policies of a front are made of."""
    found = [weights_of(PLAN, result) for result in FRONTS[front]]
    return sorted({pointer(path) for w in found for path in (w.policy, w.init) if path})


def sft_evaluation(front):
    """The SFT policy's evaluation, which is that of η = 0 too: once it is there, fronts look it up."""
    is_on_it = Weights("train_sft") in [weights_of(PLAN, result) for result in FRONTS[front]]
    return evaluations_of(["train_sft"]) if is_on_it and front != FRONT_OF["train_sft"] else []
