# provenance.json of a finished result → its DVC pointer. The only rule that calls DVC.


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
