# Nothing, or the user's files → RESULTS/generate_data/data or RESULTS/prepare_data/data, with
# sft.jsonl, preferences.jsonl, train_prompts.jsonl, eval_prompts.jsonl and tokenizer/.

from warpflow.data.hub import is_hub
from warpflow.pipeline.config import held_out_pairs

USER_DATA = sorted(
    {path for key, path in config["prepare_data"].items() if key.endswith("_path") and path}
)
USER_FILES = [path for path in USER_DATA if not is_hub(path)]
HUB_DATASETS = [path for path in USER_DATA if is_hub(path)]
# The pairs that reward models need beside those from which they learn.
HELD_OUT_PAIRS = held_out_pairs(config)


rule generate_data:
    """Make the embedded synthetic language: corpus, noisy preferences and prompts from a seed."""
    output:
        f"{RESULTS}/generate_data/provenance.json",
    log:
        f"{LOGS}/generate_data.log",
    benchmark:
        f"{LOGS}/generate_data.tsv"
    threads: 1
    resources:
        runtime=30,
        mem_mb=2000,
    params:
        job=JOB,
        code=code_hash("generate_data"),
        made=f"{RESULTS}/generate_data/data",
        settings=flags({"seed": config["seed"]} | config["generate_data"]),
    shell:
        "{params.job} --makes {params.made:q} --log {log:q} --inputs {input:q} -- "
        "python scripts/generate_data.py --out {params.made:q} {params.settings}"


rule prepare_data:
    """Prepare the user's corpus, preferences and prompts from files or datasets of the hub."""
    input:
        files=USER_FILES,
        policy=FETCHED,
    output:
        f"{RESULTS}/prepare_data/provenance.json",
    log:
        f"{LOGS}/prepare_data.log",
    benchmark:
        f"{LOGS}/prepare_data.tsv"
    threads: 1
    resources:
        runtime=120,
        mem_mb=lambda w, attempt: 4000 * attempt,
    params:
        job=JOB,
        code=code_hash("prepare_data"),
        made=f"{RESULTS}/prepare_data/data",
        reads=reading(GIVEN_POLICY, *HUB_DATASETS),
        settings=flags(
            {
                "seed": config["seed"],
                "tokenizer_path": POLICY,
                "max_prompt_tokens": config["policy"]["max_prompt_tokens"],
            }
            | config["prepare_data"]
        ),
        # The job only checks this, so it is no part of its key.
        runtime_args=flags({"held_out_pairs": HELD_OUT_PAIRS}),
    shell:
        "{params.job} --makes {params.made:q} --log {log:q} {params.reads} --inputs {input:q} "
        "--runtime_args={params.runtime_args:q} -- "
        "python scripts/prepare_data.py --out {params.made:q} {params.settings}"
