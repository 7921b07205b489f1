# Helpers of rules/warp.smk.

from warpflow.experiments import policy_settings


def training(w):
    """Settings of section train_policy for the RL run with these wildcards."""
    return policy_settings(PLAN.experiments[w.experiment], int(w.iteration))
