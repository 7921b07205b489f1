# The tables of the run → figures, tables to read, and the report.
#
# Each figure is a stage of dvc.yaml, so `dvc repro` and Snakemake leave one and the same state. Runs
# in another results folder, with figure settings of another config, or without DVC, call the same
# script by themselves.

from pathlib import Path

import yaml

FIGURE_NAMES = ["fronts", "eta_sweep", "lambda_sweep", "geometry", "training_curves"]
FIGURES = expand(f"{RESULTS}/figures/{{figure}}.svg", figure=FIGURE_NAMES)
DEFAULTS = yaml.safe_load(Path("config/config.yaml").read_text())  # what dvc.yaml reads
UNDER_DVC = (
    RESULTS == "results" and config["figures"] == DEFAULTS["figures"] and not tracking_problem()
)

for figure in FIGURE_NAMES:

    rule:
        name:
            f"plot_{figure}"
        input:
            code=code_files(f"plot_{figure}"),
            pipeline="dvc.yaml",
            tables=TABLES,
        output:
            report(
                f"{RESULTS}/figures/{figure}.svg",
                caption=f"../docs/captions/{figure}.rst",
                category="Figures",
                labels={"figure": figure.replace("_", " ")},
            ),
            f"{RESULTS}/figures/{figure}.png",
        log:
            f"{LOGS}/plot_{figure}.log",
        localrule: True
        resources:
            dvc=1,
        params:
            command=(
                f"dvc repro plot_{figure}"
                if UNDER_DVC
                else f"python scripts/plot_{figure}.py --tables {RESULTS}/collect_evaluations "
                f"--out {RESULTS}/figures {flags(config['figures'])}"
            ),
            settings=config["figures"],
        shell:
            "{params.command} 2>&1 | tee {log}"


rule write_tables:
    """The evaluations and some completions as HTML tables, for the report."""
    input:
        code=code_files("write_tables"),
        tables=TABLES,
    output:
        report(
            f"{RESULTS}/figures/evaluations.html",
            caption="../docs/captions/evaluations.rst",
            category="Tables",
            labels={"table": "evaluations"},
        ),
        report(
            f"{RESULTS}/figures/completions.html",
            caption="../docs/captions/completions.rst",
            category="Tables",
            labels={"table": "completions"},
        ),
    log:
        f"{LOGS}/write_tables.log",
    localrule: True
    params:
        tables=lambda w, input: str(Path(input.tables[0]).parent),
        out=subpath(output[0], parent=True),
    shell:
        "python scripts/write_tables.py --tables {params.tables} --out {params.out} "
        "2>&1 | tee {log}"


rule report:
    """All figures and tables with captions in one self-contained HTML file."""
    input:
        shown=[
            *FIGURES,
            f"{RESULTS}/figures/evaluations.html",
            f"{RESULTS}/figures/completions.html",
        ],
        caption="docs/captions/workflow.rst",
    output:
        f"{RESULTS}/report.html",
    log:
        f"{LOGS}/report.log",
    resources:
        dvc=1,
    params:
        config=json.dumps(config),  # as it is in force, overlays and --config included
        configfile=f"{LOGS}/report.json",
        track="true" if tracking_problem() else "dvc --wait-for-lock add --quiet",
    shell:
        "printf %s {params.config:q} > {params.configfile} && "
        "(snakemake {input.shown} --report {output} --nolock --configfile {params.configfile} && "
        "{params.track} {output}) 2>&1 | tee {log}"
