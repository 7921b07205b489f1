# The WARP loop (Algorithm 1). Iteration i starts from its init, which PLAN.init names: θ_sft, then
# the LITI point of the iteration before. It makes M policies → their merge → LITI points.


include: "helpers/warp.smk"


TRAINED = "train_policy/{experiment}/replicate{replicate}/iteration{iteration}/member{member}"
MERGED = "merge_policies/{experiment}/replicate{replicate}/iteration{iteration}"
POINT = (
    "interpolate_policy/{experiment}/replicate{replicate}/iteration{iteration}/{towards}/eta{eta}"
)


rule train_policy:
    """Stage 1: train member m of iteration i and replicate r by RL, with a KL penalty to its
    anchor."""
    input:
        init=lambda w: pointer(PLAN.init[stage(w)]),
        sft=SFT,
        reward_model=lambda w: training_model(w),
        optimizer=lambda w: optimizer_of(w),
        data=DATA,
    output:
        f"{RESULTS}/{TRAINED}/provenance.json",
    log:
        f"{LOGS}/{TRAINED}.log",
    benchmark:
        f"{LOGS}/{TRAINED}.tsv"
    threads: 1
    resources:
        runtime=1440,
        mem_mb=4000,
        gpu=GPUS_OF_A_JOB,
        # One run may use several GPUs or nodes (docs/gpu.md). 0 starts as many processes as GPUs,
        # or one.
        processes=0,
        nodes=1,
        accelerate="ddp",
    params:
        job=JOB,
        functions=lambda w: training_functions(w),
        code=lambda w: code_hash("train_policy", *training_functions(w)),
        made=f"{RESULTS}/{TRAINED}/checkpoint",
        tables=f"{RESULTS}/{TRAINED}/tables",
        states=f"{RESULTS}/states",
        settings=lambda w: flags(
            {"seed": config["seed"]}
            | SAMPLING
            | reward_flags(w)
            | {"optimizer_of": optimizer_of(w) or None}
            | training(w)
            | {"save_every": None}
        ),
        # These flags do not change the result, and are no part of its key.
        runtime_args=lambda w: flags(
            {
                "evaluate_batch_size": config["evaluate_policy"]["batch_size"],
                "save_every": training(w)["save_every"],
                "report_to": config["report_to"] or None,
                "trackers": LOGS,
                "run": TRAINED.format(**dict(w.items())).partition("/")[2],
            }
            | calling(rewarding(w))
        ),
    # Under SLURM it runs in a step of its own, so that SIGTERM comes to it and not only to
    # Snakemake. Over several nodes warpflow.pipeline.launch makes the step. A container may have no
    # srun.
    shell:
        "step=${{SLURM_JOB_ID:+srun --overlap --ntasks=1 --cpus-per-task={threads}}}; "
        "[ {resources.nodes} = 1 ] && command -v srun > /dev/null || step=; "
        "$step {params.job} --makes {params.made:q} {params.tables:q} --log {log:q} "
        "--gpus {resources.gpu} --processes {resources.processes} --nodes {resources.nodes} "
        "--accelerate {resources.accelerate} --functions {params.functions} --inputs {input:q} "
        "--states {params.states:q} --runtime_args={params.runtime_args:q} -- "
        "python scripts/train_policy.py --init {input.init:q} --sft {input.sft:q} --data {input.data:q} "
        "--replicate {wildcards.replicate} --iteration {wildcards.iteration} --member {wildcards.member} "
        "--out {params.made:q} --tables {params.tables:q} {params.settings}"


rule merge_policies:
    """Stage 2: merge the M policies of an iteration by SLERP of task vectors, layer by layer."""
    input:
        init=lambda w: pointer(PLAN.init[stage(w)]),
        policies=lambda w: [
            pointer(PLAN.policies[*stage(w), member])
            for member in range(PLAN.experiments[w.experiment].members)
        ],
    output:
        f"{RESULTS}/{MERGED}/provenance.json",
    log:
        f"{LOGS}/{MERGED}.log",
    benchmark:
        f"{LOGS}/{MERGED}.tsv"
    threads: 1
    resources:
        runtime=120,
        mem_mb=lambda w, attempt: 2000 * attempt,
    params:
        job=JOB,
        code=code_hash("merge_policies"),
        made=f"{RESULTS}/{MERGED}/checkpoint",
        settings=lambda w: flags(PLAN.experiments[w.experiment].merge_policies),
    shell:
        "{params.job} --makes {params.made:q} --log {log:q} --inputs {input:q} "
        "--runtime_args='--workers {threads}' -- "
        "python scripts/merge_policies.py --init {input.init:q} "
        "--policies {input.policies:q} --out {params.made:q} {params.settings}"


rule interpolate_policy:
    """Stage 3, LITI: interpolate the merge towards SFT (the front) or its init (the next start)."""
    input:
        init=lambda w: (SFT if w.towards == "sft" else pointer(PLAN.init[stage(w)])),
        policy=lambda w: pointer(PLAN.merged[stage(w)]),
    output:
        f"{RESULTS}/{POINT}/provenance.json",
    log:
        f"{LOGS}/{POINT}.log",
    benchmark:
        f"{LOGS}/{POINT}.tsv"
    threads: 1
    resources:
        runtime=120,
        mem_mb=lambda w, attempt: 2000 * attempt,
    params:
        job=JOB,
        code=code_hash("interpolate_policy"),
        made=f"{RESULTS}/{POINT}/checkpoint",
        # A recipe names its parents only by content, so it is the same under any path.
        recipe=lambda w: (
            "--recipe contents"
            if recipe_parents(
                PLAN,
                POINT.format(**dict(w.items())),
            )
            else ""
        ),
    shell:
        "{params.job} --makes {params.made:q} --log {log:q} --inputs {input:q} "
        "--runtime_args='--workers {threads}' -- "
        "python scripts/interpolate_policy.py --init {input.init:q} "
        "--policy {input.policy:q} --eta {wildcards.eta} --out {params.made:q} {params.recipe}"
