# Every policy → its evaluation.json → the tables of the run (RESULTS/collect_evaluations/).
import json

ROWS = evaluations(PLAN)
EVALUATED = sorted({row["policy"] for row in ROWS})


TABLES = [
    f"{RESULTS}/collect_evaluations/{table}"
    for table in (
        "evaluations.csv",
        "trajectories.csv",
        "training.csv",
        "geometry.csv",
        "completions.csv",
        "metrics.json",
    )
]


def evaluation(result):
    return f"{RESULTS}/evaluate_policy/{result}/evaluation.json"


rule evaluate_policy:
    """Reward, gold, KL to SFT, length and diversity of one policy on held-out prompts."""
    input:
        code=code("evaluate_policy"),
        policy=lambda w: pointer(w.result),
        sft=SFT,
        reward_model=REWARD_MODEL,
        data=DATA,
    output:
        evaluation=f"{RESULTS}/evaluate_policy/{{result}}/evaluation.json",
        provenance=f"{RESULTS}/evaluate_policy/{{result}}/provenance.json",
    log:
        f"{LOGS}/evaluate_policy/{{result}}.log",
    benchmark:
        f"{LOGS}/evaluate_policy/{{result}}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        gpu=TRAINING_GPUS,
    params:
        settings=flags({"seed": config["seed"]} | SAMPLING | config["evaluate_policy"]),
    shell:
        RUN + "{output.evaluation} -- python scripts/evaluate_policy.py --policy {input.policy} "
        "--sft {input.sft} --reward_model {input.reward_model} --data {input.data} "
        "--out {output.evaluation} {params.settings} > {log} 2>&1"


rule collect_evaluations:
    """One tidy table each: evaluations, RL trajectories, training rows, geometry, completions."""
    input:
        code=code("collect_evaluations"),
        evaluations=[evaluation(result) for result in EVALUATED],
        policies=sorted({pointer(result) for result in PLAN.policies.values()}),
        merges=sorted({pointer(result) for result in PLAN.merged.values()}),
    output:
        TABLES,
    log:
        f"{LOGS}/collect_evaluations.log",
    params:
        plan=json.dumps(
            {
                "evaluations": ROWS,
                "policies": [[*key, result] for key, result in PLAN.policies.items()],
                "merges": [[*key, result] for key, result in PLAN.merged.items()],
            }
        ),
    shell:
        "python scripts/collect_evaluations.py --results {RESULTS} --out {RESULTS}/collect_evaluations "
        "--plan {params.plan:q} > {log} 2>&1"
