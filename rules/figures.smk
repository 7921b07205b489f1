# The tables of the run → figures, tables to read, and the report.
#
# A figure that every run has is a stage of dvc.yaml, so that `dvc repro` and Snakemake leave the
# same state. Four cases call the same script directly: another results folder, other figure
# settings than the default's, no DVC, and figures of other groups than main.

from pathlib import Path

import yaml

from warpflow.figures.available import available_figures
from warpflow.pipeline.code_files import code_files


include: "helpers/figures.smk"


FIGURE_NAMES = [
    "fronts",
    "eta_sweep",
    "lambda_sweep",
    "geometry",
    "training_curves",
    "diversity",
    "averages",
]
# dvc.yaml draws a figure where it would draw the same.
DEFAULTS = yaml.safe_load(
    Path("config/config.yaml").read_text(encoding="utf-8")
)  # what dvc.yaml reads
UNDER_DVC = (
    RESULTS == "results" and LOOK == look_of(DEFAULTS["figures"]) and not tracking_problem(RESULTS)
)
DVC_STAGES = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]


HTML_TABLES = ["verdicts", "comparisons", "evaluations", "completions"]

for figure in FIGURE_NAMES:

    rule:
        name:
            f"plot_{figure}"
        input:
            # These are files, as in dvc.yaml, so that both draw anew after the same edits.
            code=code_files(f"plot_{figure}"),
            pipeline="dvc.yaml",
            tables=TABLES,
        output:
            report(
                f"{RESULTS}/figures/{{group}}/{figure}.svg",
                caption=f"../docs/captions/{figure}.rst",
                category="Figures",
                labels={"group": "{group}", "figure": figure.replace("_", " ")},
            ),
            f"{RESULTS}/figures/{{group}}/{figure}.png",
        log:
            f"{LOGS}/plot_{figure}/{{group}}.log",
        localrule: True
        resources:
            dvc=1,
        params:
            command=plot_command(figure),
            settings=LOOK,
        shell:
            "{params.command} 2>&1 | tee {log:q}"


rule plot_envelopes:
    """Draw both anchors over β at equal KL, from rule compare_fronts."""
    input:
        envelopes=f"{RESULTS}/compare_fronts/{{group}}/envelopes.csv",
    output:
        report(
            f"{RESULTS}/figures/{{group}}/envelopes.svg",
            caption="../docs/captions/envelopes.rst",
            category="Figures",
            labels={"group": "{group}", "figure": "envelopes"},
        ),
        f"{RESULTS}/figures/{{group}}/envelopes.png",
    log:
        f"{LOGS}/plot_envelopes/{{group}}.log",
    localrule: True
    params:
        code=code_hash("plot_envelopes"),
        tables=subpath(input.envelopes, parent=True),
        out=subpath(output[0], parent=True),
        settings=flags(LOOK),
    shell:
        "python scripts/plot_envelopes.py --tables {params.tables:q} --out {params.out:q} "
        "{params.settings} 2>&1 | tee {log:q}"


rule write_tables:
    """Write verdicts, comparisons, evaluations and some completions as HTML for the report."""
    input:
        tables=TABLES,
        comparisons=rules.compare_fronts.output,
    output:
        report(
            f"{RESULTS}/figures/{{group}}/verdicts.html",
            caption="../docs/captions/verdicts.rst",
            category="Tables",
            labels={"group": "{group}", "table": "verdicts"},
        ),
        report(
            f"{RESULTS}/figures/{{group}}/comparisons.html",
            caption="../docs/captions/comparisons.rst",
            category="Tables",
            labels={"group": "{group}", "table": "comparisons"},
        ),
        report(
            f"{RESULTS}/figures/{{group}}/evaluations.html",
            caption="../docs/captions/evaluations.rst",
            category="Tables",
            labels={"group": "{group}", "table": "evaluations"},
        ),
        report(
            f"{RESULTS}/figures/{{group}}/completions.html",
            caption="../docs/captions/completions.rst",
            category="Tables",
            labels={"group": "{group}", "table": "completions"},
        ),
    log:
        f"{LOGS}/write_tables/{{group}}.log",
    localrule: True
    params:
        code=code_hash("write_tables"),
        tables=lambda w, input: str(Path(input.tables[0]).parent),
        comparisons=lambda w, input: str(Path(input.comparisons[0]).parent),
        out=subpath(output[0], parent=True),
    shell:
        "python scripts/write_tables.py --tables {params.tables:q} "
        "--comparisons {params.comparisons:q} --out {params.out:q} 2>&1 | tee {log:q}"


rule write_summary:
    """Write what a group found on one page: front, verdicts, points to take, completions, cost."""
    input:
        tables=TABLES,
        comparisons=rules.compare_fronts.output,
        template="workflow/warpflow/figures/summary.html",
    output:
        report(
            f"{RESULTS}/write_summary/{{group}}.html",
            caption="../docs/captions/summary.rst",
            category="Answer",
            labels={"group": "{group}", "page": "summary"},
        ),
    log:
        f"{LOGS}/write_summary/{{group}}.log",
    benchmark:
        f"{LOGS}/write_summary/{{group}}.tsv"
    localrule: True
    resources:
        dvc=1,
    params:
        code=code_hash("write_summary"),
        results=subpath(output[0], ancestor=2),
        tables=lambda w, input: str(Path(input.tables[0]).parent),
        comparisons=lambda w, input: str(Path(input.comparisons[0]).parent),
        settings=flags(config["figures"]),
        track="true" if tracking_problem(RESULTS) else "dvc --wait-for-lock add --quiet",
    shell:
        "(python scripts/write_summary.py --results {params.results:q} --tables {params.tables:q} "
        "--comparisons {params.comparisons:q} --group {wildcards.group} --out {output:q} "
        "{params.settings} && {params.track} {output:q}) 2>&1 | tee {log:q}"


rule report:
    """Put all figures and tables of a group, with captions, into one self-contained HTML file."""
    input:
        shown=lambda w: shown_in_report(w.group),
        # These are measured beside the run, where the config asks for them.
        beside=lambda w: [*SIDE_BY_SIDE, *BENCHMARK_FIGURES] if w.group == MAIN else [],
        caption="docs/captions/workflow.rst",
    output:
        f"{RESULTS}/report/{{group}}.html",
    log:
        f"{LOGS}/report/{{group}}.log",
    resources:
        dvc=1,
    params:
        config=json.dumps(config),  # the config in force, with overlays and --config
        configfile=f"{LOGS}/report/{{group}}.json",
        track="true" if tracking_problem(RESULTS) else "dvc --wait-for-lock add --quiet",
    shell:
        "printf %s {params.config:q} > {params.configfile:q} && "
        "(snakemake {input.shown:q} {input.beside:q} --report {output:q} --nolock --configfile {params.configfile:q} && "
        "{params.track} {output:q}) 2>&1 | tee {log:q}"


# The target of a group, as in `snakemake anchor`, is its report, which shows all that was made of
# it.
for group in PLAN.groups:

    rule:
        name:
            group
        input:
            f"{RESULTS}/report/{group}.html",


rule ablations:
    """Make the reports of all groups of the config's section `ablations`."""
    input:
        [f"{RESULTS}/report/{group}.html" for group in PLAN.groups if group != MAIN],
