# All policies of an iteration → an evaluation.json each → the tables of a group
# (RESULTS/collect_evaluations/<group>/).

from warpflow.experiments import PLANNED, trajectories


include: "helpers/evaluate.smk"


SCORED = "score_trajectories/{experiment}/replicate{replicate}/iteration{iteration}"

TABLES = [
    f"{RESULTS}/collect_evaluations/{{group}}/{table}.csv"
    for table in (
        "evaluations",
        "trajectories",
        "training",
        "geometry",
        "completions",
        "optimum",
    )
]


rule evaluate_front:
    """Measure reward, gold, KL to SFT, length and diversity of the policies of an iteration and of
    the points of its front, in one job. Each has an evaluation.json with its own key, and an index
    names them.
    """
    input:
        policies=lambda w: weights_of_front(w.front),
        sft=SFT,
        reward_model=REWARD_MODEL,
        gold_model=GOLD_MODEL,
        data=DATA,
        sft_evaluation=lambda w: sft_evaluation(w.front),
    output:
        index=f"{RESULTS}/evaluate_front/{{front}}/evaluations.json",
        provenance=f"{RESULTS}/evaluate_front/{{front}}/provenance.json",
    log:
        f"{LOGS}/evaluate_front/{{front}}.log",
    benchmark:
        f"{LOGS}/evaluate_front/{{front}}.tsv"
    threads: 1
    resources:
        runtime=lambda w: 240 + 60 * len(FRONTS[w.front]),
        mem_mb=lambda w, attempt: 4000 * attempt,
        gpu=GPUS_OF_A_JOB,
    params:
        job=shlex.join(["python", "-m", "warpflow.pipeline.point_jobs", "--results", RESULTS]),
        points=lambda w: json.dumps(points_of_front(w.front), sort_keys=True),
        functions=SCORERS,
        reads=reading(*GIVEN_GOLDS),
        code=code_hash("evaluate_front", *SCORERS),
        settings=flags(
            {"seed": config["seed"]}
            | SAMPLING
            | config["evaluate_policy"]
            | SCORING
            | {"batch_size": None, "points_per_job": None}
        ),
        runtime_args=flags({"batch_size": config["evaluate_policy"]["batch_size"]} | CALLING),
    shell:
        "{params.job} --points {params.points:q} --index {output.index:q} --log {log:q} "
        "--gpus {resources.gpu} --functions {params.functions} {params.reads} "
        "--inputs {input.sft:q} {input.reward_model:q} {input.gold_model:q} {input.data:q} "
        "--runtime_args={params.runtime_args:q} -- "
        "python scripts/evaluate_front.py --sft {input.sft:q} --data {input.data:q} {params.settings}"


rule score_trajectories:
    """Score the completions that the RL runs of an iteration kept: reward, gold and KL along each
    run."""
    input:
        runs=lambda w: [pointer(run, "tables") for run in scored_runs(w).values()],
        sft=SFT,
        reward_model=REWARD_MODEL,
        gold_model=GOLD_MODEL,
        data=DATA,
    output:
        trajectories=f"{RESULTS}/{SCORED}/trajectories.json",
        provenance=f"{RESULTS}/{SCORED}/provenance.json",
    log:
        f"{LOGS}/{SCORED}.log",
    benchmark:
        f"{LOGS}/{SCORED}.tsv"
    threads: 1
    resources:
        runtime=240,
        mem_mb=lambda w, attempt: 4000 * attempt,
        gpu=GPUS_OF_A_JOB,
    params:
        job=JOB,
        functions=SCORERS,
        reads=reading(*GIVEN_GOLDS),
        code=code_hash("score_trajectories", *SCORERS),
        members=lambda w: list(scored_runs(w)),
        settings=flags({"max_prompt_tokens": config["policy"]["max_prompt_tokens"]} | SCORING),
        runtime_args=flags({"batch_size": config["evaluate_policy"]["batch_size"]} | CALLING),
    shell:
        "{params.job} --makes {output.trajectories:q} --log {log:q} --gpus {resources.gpu} "
        "--functions {params.functions} {params.reads} --inputs {input:q} "
        "--runtime_args={params.runtime_args:q} -- "
        "python scripts/score_trajectories.py --runs {input.runs:q} --members {params.members} "
        "--sft {input.sft:q} --data {input.data:q} --out {output.trajectories:q} {params.settings}"


rule estimate_optimum:
    """Estimate from SFT samples the best reward at each KL to SFT that any policy can have, and
    best-of-n."""
    input:
        sft=SFT,
        reward_model=REWARD_MODEL,
        gold_model=GOLD_MODEL,
        data=DATA,
    output:
        optimum=f"{RESULTS}/estimate_optimum/optimum.csv",
        provenance=f"{RESULTS}/estimate_optimum/provenance.json",
    log:
        f"{LOGS}/estimate_optimum.log",
    benchmark:
        f"{LOGS}/estimate_optimum.tsv"
    threads: 1
    resources:
        runtime=240,
        mem_mb=lambda w, attempt: 4000 * attempt,
        gpu=GPUS_OF_A_JOB,
    params:
        job=JOB,
        functions=SCORERS,
        reads=reading(*GIVEN_GOLDS),
        code=code_hash("estimate_optimum", *SCORERS),
        settings=flags(
            {"seed": config["seed"]}
            | SAMPLING
            | SCORING
            | config["estimate_optimum"]
            | {"batch_size": None}
        ),
        runtime_args=flags({"batch_size": config["estimate_optimum"]["batch_size"]} | CALLING),
    shell:
        "{params.job} --makes {output.optimum:q} --log {log:q} --gpus {resources.gpu} "
        "--functions {params.functions} {params.reads} --inputs {input:q} "
        "--runtime_args={params.runtime_args:q} -- "
        "python scripts/estimate_optimum.py --sft {input.sft:q} --data {input.data:q} "
        "--out {output.optimum:q} {params.settings}"


rule collect_evaluations:
    """Collect a group's tables: evaluations, trajectories, training rows, geometry, completions."""
    input:
        evaluations=lambda w: evaluations_of(evaluated(w)),
        trajectories=lambda w: [trajectory(result) for result in trajectories(PLAN, w.group)],
        policies=lambda w: of_group(PLAN.policies, w.group, "tables"),
        merges=lambda w: of_group(PLAN.merged, w.group),
        optimum=f"{RESULTS}/estimate_optimum/optimum.csv",
    output:
        TABLES,
        directory(f"{RESULTS}/collect_evaluations/{{group}}/metrics"),
    log:
        f"{LOGS}/collect_evaluations/{{group}}.log",
    params:
        code=code_hash("collect_evaluations"),
        results=subpath(output[0], ancestor=3),
        out=subpath(output[0], parent=True),
        config=json.dumps({key: config[key] for key in PLANNED}),
    shell:
        "python scripts/collect_evaluations.py --results {params.results:q} --out {params.out:q} "
        "--group {wildcards.group} --config {params.config:q} --optimum {input.optimum:q} "
        "2>&1 | tee {log:q}"


rule compare_fronts:
    """Compare a group's fronts: verdicts on the paper's claims, differences from the base, shares
    of the optimum."""
    input:
        tables=TABLES,
        evaluations=lambda w: evaluations_of(evaluated(w)),
        trajectories=lambda w: [trajectory(result) for result in trajectories(PLAN, w.group)],
    output:
        f"{RESULTS}/compare_fronts/{{group}}/verdicts.csv",
        f"{RESULTS}/compare_fronts/{{group}}/comparisons.csv",
        f"{RESULTS}/compare_fronts/{{group}}/envelopes.csv",
        f"{RESULTS}/compare_fronts/{{group}}/shares.csv",
    log:
        f"{LOGS}/compare_fronts/{{group}}.log",
    localrule: True
    params:
        code=code_hash("compare_fronts"),
        results=subpath(output[0], ancestor=3),
        tables=lambda w, input: str(Path(input.tables[0]).parent),
        out=subpath(output[0], parent=True),
        settings=flags({"seed": config["seed"]} | config["compare_fronts"]),
    shell:
        "python scripts/compare_fronts.py --results {params.results:q} --tables {params.tables:q} "
        "--out {params.out:q} {params.settings} 2>&1 | tee {log:q}"
