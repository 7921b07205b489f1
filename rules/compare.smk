# Answers side by side (section compare_answers): each contestant's answers → judgements of each
# judge → win rates and graded scores → matrices. `snakemake compare_answers` makes those of the
# config.

from warpflow.settings.compare_answers import JUDGE_TEMPLATE
from warpflow.side_by_side.settings import OWN_REWARD_MODEL


include: "helpers/compare.smk"


SIDE_BY_SIDE = expand(f"{RESULTS}/figures/{{comparison}}/side_by_side.svg", comparison=COMPARISONS)


rule answer_prompts:
    """Let one contestant answer the prompts of a comparison."""
    input:
        policy=lambda w: pointer(own_policy(w)) if own_policy(w) else [],
        parents=lambda w: [pointer(result) for result in recipe_parents(PLAN, own_policy(w))],
        instructions=lambda w: list(COMPARISONS[w.comparison].stored.values())[:1],
        data=lambda w: [] if COMPARISONS[w.comparison].stored else DATA,
    output:
        answers=f"{RESULTS}/answer_prompts/{{comparison}}/{{contestant}}/answers.json",
        provenance=f"{RESULTS}/answer_prompts/{{comparison}}/{{contestant}}/provenance.json",
    log:
        f"{LOGS}/answer_prompts/{{comparison}}/{{contestant}}.log",
    benchmark:
        f"{LOGS}/answer_prompts/{{comparison}}/{{contestant}}.tsv"
    threads: 1
    resources:
        runtime=240,
        mem_mb=lambda w, attempt: 4000 * attempt,
        gpu=GPUS_OF_A_JOB,
    params:
        job=JOB,
        code=code_hash("answer_prompts"),
        reads=lambda w: reading(contestant(w).get("path")),
        settings=answer_flags,
        runtime_args=flags({"batch_size": config["evaluate_policy"]["batch_size"]}),
    shell:
        "{params.job} --makes {output.answers:q} --log {log:q} "
        "--gpus {resources.gpu} {params.reads} --inputs {input:q} "
        "--runtime_args={params.runtime_args:q} -- "
        "python scripts/answer_prompts.py --out {output.answers:q} {params.settings}"


rule judge_answers:
    """Let one judge judge all contestants. Replies of a chat judge are kept as they come."""
    input:
        answers=answers,
        reward_model=lambda w: (
            pointer(OWN_REWARD_MODEL) if judge(w).get("reward_model") == OWN_REWARD_MODEL else []
        ),
        sft=lambda w: SFT if judge(w).get("reward_model") == OWN_REWARD_MODEL else [],
        template=lambda w: (
            judge(w)["chat"].get("template", JUDGE_TEMPLATE) if "chat" in judge(w) else []
        ),
    output:
        judgements=f"{RESULTS}/judge_answers/{{comparison}}/{{judge}}/judgements.json",
        provenance=f"{RESULTS}/judge_answers/{{comparison}}/{{judge}}/provenance.json",
    log:
        f"{LOGS}/judge_answers/{{comparison}}/{{judge}}.log",
    benchmark:
        f"{LOGS}/judge_answers/{{comparison}}/{{judge}}.tsv"
    threads: 1
    resources:
        runtime=1440,
        mem_mb=lambda w, attempt: 4000 * attempt,
        gpu=lambda w: GPUS_OF_A_JOB if "reward_model" in judge(w) else 0,
    params:
        job=JOB,
        code=lambda w: code_hash("judge_answers", judge(w).get("function")),
        names=lambda w: list(COMPARISONS[w.comparison].contestants),
        functions=lambda w: judge(w).get("function", ""),
        reads=lambda w: reading(other_reward_model(w)),
        settings=judge_flags,
        runtime_args=lambda w: flags(
            {
                "batch_size": config["evaluate_policy"]["batch_size"],
                "cache": f"{RESULTS}/judgements/{w.comparison}.{w.judge}.jsonl",
            }
        ),
    shell:
        "{params.job} --makes {output.judgements:q} --log {log:q} "
        "--gpus {resources.gpu} --functions {params.functions} {params.reads} --inputs {input:q} "
        "--runtime_args={params.runtime_args:q} -- "
        "python scripts/judge_answers.py --names {params.names} --answers {input.answers:q} "
        "--out {output.judgements:q} {params.settings}"


rule grade_answers:
    """Count win rates, ties and graded scores of every pair by every judge."""
    input:
        answers=answers,
        judgements=lambda w: [
            f"{RESULTS}/judge_answers/{w.comparison}/{name}/judgements.json"
            for name in COMPARISONS[w.comparison].judges
        ],
    output:
        f"{RESULTS}/grade_answers/{{comparison}}/side_by_side.csv",
        f"{RESULTS}/grade_answers/{{comparison}}/judges.csv",
    log:
        f"{LOGS}/grade_answers/{{comparison}}.log",
    localrule: True
    params:
        code=code_hash("grade_answers"),
        out=subpath(output[0], parent=True),
        names=lambda w: list(COMPARISONS[w.comparison].contestants),
        judges=lambda w: list(COMPARISONS[w.comparison].judges),
        thresholds=lambda w: list(COMPARISONS[w.comparison].thresholds),
        settings=lambda w: flags(
            {
                "pairs": COMPARISONS[w.comparison].pairs,
                "prompts": COMPARISONS[w.comparison].prompts,
                "confidence": COMPARISONS[w.comparison].confidence,
                "seed": config["seed"],
            }
        ),
    shell:
        "python scripts/grade_answers.py --names {params.names} --answers {input.answers:q} "
        "--judges {params.judges} --judgements {input.judgements:q} --out {params.out:q} "
        "--thresholds {params.thresholds} {params.settings} 2>&1 | tee {log:q}"


rule plot_side_by_side:
    """Draw a matrix for each judge of a comparison."""
    input:
        table=f"{RESULTS}/grade_answers/{{comparison}}/side_by_side.csv",
    output:
        report(
            f"{RESULTS}/figures/{{comparison}}/side_by_side.svg",
            caption="../docs/captions/side_by_side.rst",
            category="Side by side",
            labels={"comparison": "{comparison}"},
        ),
        f"{RESULTS}/figures/{{comparison}}/side_by_side.png",
    log:
        f"{LOGS}/plot_side_by_side/{{comparison}}.log",
    localrule: True
    params:
        code=code_hash("plot_side_by_side"),
        tables=subpath(input.table, parent=True),
        out=subpath(output[0], parent=True),
        settings=flags(LOOK),
    shell:
        "python scripts/plot_side_by_side.py --tables {params.tables:q} --out {params.out:q} "
        "{params.settings} 2>&1 | tee {log:q}"


rule compare_answers:
    """Make all comparisons of the config."""
    input:
        SIDE_BY_SIDE,
