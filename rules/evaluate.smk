# Every policy → its evaluation.json → the tables of the run (RESULTS/collect_evaluations/).
import json

EVALUATED = sorted({row["policy"] for row in evaluations(PLAN)})


TABLES = [
    f"{RESULTS}/collect_evaluations/{table}"
    for table in (
        "evaluations.csv",
        "trajectories.csv",
        "training.csv",
        "geometry.csv",
        "completions.csv",
    )
]
METRICS = [
    f"{RESULTS}/collect_evaluations/metrics/{e.name}.iteration{i}.json"
    for e in PLAN.experiments.values()
    for i in range(1, e.iterations + 1)
    if min(e.interpolate_policy["etas"]) <= 1
]


rule evaluate_policy:
    """Reward, gold, KL to SFT, length and diversity of one policy on held-out prompts."""
    input:
        code=code_files("evaluate_policy", *SCORERS),
        policy=lambda w: pointer(w.result),
        parents=lambda w: [pointer(result) for result in recipe_parents(PLAN, w.result)],
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
        runtime=240,
        mem_mb=lambda w, attempt: 4000 * attempt,
        gpu=GPUS_OF_A_JOB,
    params:
        parents=lambda w, input: f"--parents {input.parents}" if input.parents else "",
        settings=flags({"seed": config["seed"]} | JUDGING | config["evaluate_policy"]),
    shell:
        "python -m warpflow.jobs run --makes {output.evaluation} --log {log} "
        "--gpus {resources.gpu} --inputs {input} -- "
        "python scripts/evaluate_policy.py --policy {input.policy} "
        "--sft {input.sft} --data {input.data} --out {output.evaluation} "
        "{params.parents} {params.settings}"


rule collect_evaluations:
    """One tidy table each: evaluations, RL trajectories, training rows, geometry, completions."""
    input:
        code=code_files("collect_evaluations"),
        evaluations=[evaluation(result) for result in EVALUATED],
        policies=sorted({pointer(result) for result in PLAN.policies.values()}),
        merges=sorted({pointer(result) for result in PLAN.merged.values()}),
    output:
        TABLES,
        METRICS,
    log:
        f"{LOGS}/collect_evaluations.log",
    params:
        results=subpath(output[0], ancestor=2),
        out=subpath(output[0], parent=True),
        config=json.dumps({key: config[key] for key in (*VARIABLE, "experiments")}),
    shell:
        "python scripts/collect_evaluations.py --results {params.results} --out {params.out} "
        "--config {params.config:q} 2>&1 | tee {log}"
