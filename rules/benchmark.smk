# Capability benchmarks (section benchmark_policy): points of the fronts → lm-eval → table and
# figure. `snakemake benchmarks` makes those of the config.

from warpflow.evaluation.benchmark_points import benchmark_points

BENCHMARKS = config["benchmark_policy"]
BENCHMARKED = benchmark_points(PLAN, BENCHMARKS) if BENCHMARKS["tasks"] else []
BENCHMARK_FIGURES = [f"{RESULTS}/figures/benchmarks.svg"] if BENCHMARKED else []


rule benchmark_policy:
    """Run tasks of lm-eval on one policy."""
    input:
        policy=lambda w: pointer(w.result),
        parents=lambda w: [pointer(result) for result in recipe_parents(PLAN, w.result)],
        tasks=(
            sorted(str(path) for path in Path(BENCHMARKS["task_folder"]).rglob("*.yaml"))
            if BENCHMARKS["task_folder"]
            else []
        ),
    output:
        benchmarks=f"{RESULTS}/benchmark_policy/{{result}}/benchmarks.json",
        provenance=f"{RESULTS}/benchmark_policy/{{result}}/provenance.json",
    log:
        f"{LOGS}/benchmark_policy/{{result}}.log",
    benchmark:
        f"{LOGS}/benchmark_policy/{{result}}.tsv"
    threads: 1
    resources:
        runtime=1440,
        mem_mb=lambda w, attempt: 8000 * attempt,
        gpu=GPUS_OF_A_JOB,
    params:
        job=JOB,
        code=code_hash("benchmark_policy"),
        tasks=BENCHMARKS["tasks"],
        parents=lambda w, input: flags({"parents": list(input.parents) or None}),
        settings=flags(
            {"seed": config["seed"]}
            | {
                key: BENCHMARKS[key]
                for key in (
                    "task_folder",
                    "num_fewshot",
                    "limit",
                    "batch_size",
                    "apply_chat_template",
                )
            }
        ),
    shell:
        "{params.job} --makes {output.benchmarks:q} --log {log:q} "
        "--gpus {resources.gpu} --inputs {input:q} -- "
        "python scripts/benchmark_policy.py --policy {input.policy:q} --tasks {params.tasks:q} "
        "--out {output.benchmarks:q} {params.parents} {params.settings}"


rule collect_benchmarks:
    """Gather what each point scored, with its KL and reward."""
    input:
        benchmarks=[
            f"{RESULTS}/benchmark_policy/{row['policy']}/benchmarks.json" for row in BENCHMARKED
        ],
        evaluations=evaluations_of(row["policy"] for row in BENCHMARKED),
    output:
        f"{RESULTS}/collect_benchmarks/benchmarks.csv",
    log:
        f"{LOGS}/collect_benchmarks.log",
    localrule: True
    params:
        code=code_hash("collect_benchmarks"),
        results=subpath(output[0], ancestor=2),
        points=json.dumps(BENCHMARKED),
    shell:
        "python scripts/collect_benchmarks.py --results {params.results:q} --out {output:q} "
        "--points {params.points:q} 2>&1 | tee {log:q}"


rule plot_benchmarks:
    """Draw capability against KL, with a panel for each task and metric."""
    input:
        table=f"{RESULTS}/collect_benchmarks/benchmarks.csv",
    output:
        report(
            f"{RESULTS}/figures/benchmarks.svg",
            caption="../docs/captions/benchmarks.rst",
            category="Benchmarks",
            labels={"figure": "benchmarks"},
        ),
        f"{RESULTS}/figures/benchmarks.png",
    log:
        f"{LOGS}/plot_benchmarks.log",
    localrule: True
    params:
        code=code_hash("plot_benchmarks"),
        tables=subpath(input.table, parent=True),
        out=subpath(output[0], parent=True),
        settings=flags(LOOK),
    shell:
        "python scripts/plot_benchmarks.py --tables {params.tables:q} --out {params.out:q} "
        "{params.settings} 2>&1 | tee {log:q}"


rule benchmarks:
    """Make all benchmarks of the config."""
    input:
        BENCHMARK_FIGURES,
