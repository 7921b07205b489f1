# provenance.json of a finished result → its DVC pointer. No other rules call DVC for results.


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
    """Do the same for an RL run, which makes two folders, with one call of DVC for both."""
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
