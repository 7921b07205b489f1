# provenance.json of a finished result → its DVC pointer. The only rule that calls DVC.


rule track:
    """Give a finished result to DVC, or take it from DVC's cache where it was made before."""
    input:
        "{results}/{result}/provenance.json",
    output:
        "{results}/{result}/{made}.dvc",
    resources:
        dvc=1,
    shell:
        "python -m warpflow.jobs track {input} {output}"
