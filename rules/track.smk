# provenance.json of a finished result → its DVC pointer. The only rules that call DVC.


rule track:
    """Give a finished result to DVC, or take it from DVC's cache where it was made before."""
    input:
        f"{RESULTS}/{{result}}/provenance.json",
    output:
        f"{RESULTS}/{{result}}/{{made}}.dvc",
    log:
        f"{LOGS}/track/{{result}}/{{made}}.log",
    resources:
        dvc=1,
    shell:
        "python -m warpflow.pipeline.jobs track {input:q} {output:q} 2>&1 | tee {log:q}"


rule track_run:
    """`track` for an RL run, which makes two folders: DVC is called once for both."""
    input:
        f"{RESULTS}/train_policy/{{run}}/provenance.json",
    output:
        checkpoint=f"{RESULTS}/train_policy/{{run}}/checkpoint.dvc",
        tables=f"{RESULTS}/train_policy/{{run}}/tables.dvc",
    log:
        f"{LOGS}/track_run/{{run}}.log",
    resources:
        dvc=1,
    shell:
        "python -m warpflow.pipeline.jobs track {input:q} {output:q} 2>&1 | tee {log:q}"


ruleorder: track_run > track
