# These helpers of rules/compare.smk say who answers and who judges in a comparison.

from warpflow.side_by_side.settings import policy_result


def answers(w):
    """Return the contestants' files of answers, in the config's order."""
    comparison = COMPARISONS[w.comparison]
    return [
        comparison.stored.get(name, f"{RESULTS}/answer_prompts/{w.comparison}/{name}/answers.json")
        for name in comparison.contestants
    ]


def contestant(w):
    """Return the config of a contestant."""
    return COMPARISONS[w.comparison].contestants[w.contestant]


def own_policy(w):
    """Return the run's result that a contestant is, or None for another checkpoint."""
    given = contestant(w)
    return policy_result(PLAN, given["policy"]) if "policy" in given else None


def answer_flags(w, input):
    """Return the flags of answer_prompts: who answers what, and how."""
    comparison = COMPARISONS[w.comparison]
    given = {
        "policy": input.policy or comparison.contestants[w.contestant].get("path"),
        "name": w.contestant,
        "prompts": comparison.prompts,
        "instructions": input.instructions or None,
        "data": input.data or None,
        "seed": config["seed"],
    }
    for key in ("max_prompt_tokens", "max_new_tokens", "temperature"):
        given[key] = getattr(comparison, key) or config["policy"][key]
    return f"{flags(given)} {flags({'parents': list(input.parents) or None})}".rstrip()


def judge(w):
    """Return the config of a judge."""
    return COMPARISONS[w.comparison].judges[w.judge]


def other_reward_model(w):
    """Return the user's reward model that judges, or None where something else does."""
    name = judge(w).get("reward_model")
    return None if name == OWN_REWARD_MODEL else name


def judge_flags(w, input):
    """Return the flags of judge_answers: who judges what."""
    comparison = COMPARISONS[w.comparison]
    return flags(
        {
            "judge": json.dumps(judge(w), sort_keys=True),
            "pairs": comparison.pairs,
            "prompts": comparison.prompts,
            "reward_model": input.reward_model or None,
            "sft": input.sft or None,
            "as_messages": True if comparison.stored else None,
        }
    )
