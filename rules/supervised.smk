# Data → θ_sft (RESULTS/train_sft/checkpoint) → reward model
# (RESULTS/train_reward_model/checkpoint).
import json


rule train_sft:
    """Fine-tune the policy on completions. Every KL is measured to the result."""
    input:
        data=DATA,
        policy=FETCHED,
    output:
        f"{RESULTS}/train_sft/provenance.json",
    log:
        f"{LOGS}/train_sft.log",
    benchmark:
        f"{LOGS}/train_sft.tsv"
    threads: 1
    resources:
        runtime=1440,
        mem_mb=4000,
        gpu=GPUS_OF_A_JOB,
    params:
        job=JOB,
        code=code_hash("train_sft"),
        made=f"{RESULTS}/train_sft/checkpoint",
        reads=reading(GIVEN_POLICY),
        policy=flags(
            {"policy": POLICY}
            if POLICY
            else {"architecture": json.dumps(config["policy"]["architecture"], sort_keys=True)}
        ),
        settings=flags({"seed": config["seed"]} | config["train_sft"]),
    shell:
        "{params.job} --makes {params.made:q} --log {log:q} "
        "--gpus {resources.gpu} {params.reads} --inputs {input:q} -- "
        "python scripts/train_sft.py --data {input.data:q} "
        "--out {params.made:q} {params.policy} {params.settings}"


rule train_reward_model:
    """Train a reward model on preference pairs (Bradley–Terry), or store a given one."""
    input:
        data=DATA,
        sft=SFT,
    output:
        f"{RESULTS}/train_reward_model/provenance.json",
    log:
        f"{LOGS}/train_reward_model.log",
    benchmark:
        f"{LOGS}/train_reward_model.tsv"
    threads: 1
    resources:
        runtime=1440,
        mem_mb=4000,
        gpu=GPUS_OF_A_JOB,
    params:
        job=JOB,
        code=code_hash("train_reward_model"),
        made=f"{RESULTS}/train_reward_model/checkpoint",
        reads=reading(config["train_reward_model"]["path"]),
        settings=flags(
            {"seed": config["seed"], "gold_share": GOLD_SHARE} | config["train_reward_model"]
        ),
    shell:
        "{params.job} --makes {params.made:q} --log {log:q} "
        "--gpus {resources.gpu} {params.reads} --inputs {input:q} -- "
        "python scripts/train_reward_model.py --data {input.data:q} --sft {input.sft:q} "
        "--out {params.made:q} {params.settings}"


# Where the config asks for `held_out_preferences`, gold is trained in the same way, with its own
# seed, on the share that the other reward model never sees.
use rule train_reward_model as train_gold_reward_model with:
    output:
        f"{RESULTS}/train_gold_reward_model/provenance.json",
    log:
        f"{LOGS}/train_gold_reward_model.log",
    benchmark:
        f"{LOGS}/train_gold_reward_model.tsv"
    params:
        job=JOB,
        code=code_hash("train_reward_model"),
        made=f"{RESULTS}/train_gold_reward_model/checkpoint",
        reads="",
        settings=flags(
            {"seed": config["seed"], "gold_share": GOLD_SHARE, "gold": True}
            | config["train_reward_model"]
            | {"path": None}
        ),
