# Helpers of rules/figures.smk: what draws a figure.


def plot_command(figure):
    """What draws a figure: its stage of dvc.yaml, which are of the main group, or its script."""
    return lambda w: (
        f"dvc repro plot_{figure}"
        if UNDER_DVC and w.group == MAIN
        else shlex.join(
            [
                "python",
                f"scripts/plot_{figure}.py",
                *("--tables", f"{RESULTS}/collect_evaluations/{w.group}"),
                *("--out", f"{RESULTS}/figures/{w.group}"),
            ]
        )
        + f" {flags(config['figures'])}"
    )
