# Helpers of rules/warp.smk.

from warpflow.experiments import carried_from, policy_settings, run_rewards


def training(w):
    """Return the settings of section train_policy for the RL run with these wildcards."""
    return policy_settings(PLAN.experiments[w.experiment], int(w.iteration))


def rewarding(w):
    """Return the terms of the reward of that run, as the config has them."""
    return run_rewards(PLAN.experiments[w.experiment], int(w.member))


def training_model(w):
    """Return the pointer of the reward model, where it has a weight there."""
    return pointer("train_reward_model") if "reward_model" in rewarding(w) else []


def training_functions(w):
    """Return the functions of that reward, whose files are code of the job."""
    return [name for name in rewarding(w) if is_function(name)]


def reward_flags(w):
    """Return the flags that say what scores completions in that run."""
    return {
        "rewards": json.dumps(reward_terms(rewarding(w)), sort_keys=True),
        "reward_model": training_model(w) or None,
    }


def optimizer_of(w):
    """Return the pointer of the run whose optimiser that one goes on with, if it has no fresh
    one."""
    result = carried_from(PLAN, *stage(w), int(w.member))
    return pointer(result) if result else []
