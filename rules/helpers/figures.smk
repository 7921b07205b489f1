# Helpers of rules/figures.smk: what draws a figure.


def plot_command(figure):
    """What draws a figure: its stage of dvc.yaml, which are of the main group, or its script."""
    return lambda w: (
        f"dvc repro plot_{figure}"
        if UNDER_DVC and w.group == MAIN
        else f"python scripts/plot_{figure}.py --tables {RESULTS}/collect_evaluations/{w.group} "
        f"--out {RESULTS}/figures/{w.group} {flags(config['figures'])}"
    )
