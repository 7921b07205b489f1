# These helpers of rules/figures.smk say what draws a figure, and what a report shows.


def plot_command(figure):
    """Return what draws a figure: its stage of dvc.yaml, for the main group, or its script."""
    return lambda w: (
        f"dvc repro plot_{figure}"
        if UNDER_DVC and w.group == MAIN and f"plot_{figure}" in DVC_STAGES
        else shlex.join(
            [
                "python",
                f"scripts/plot_{figure}.py",
                *("--tables", f"{RESULTS}/collect_evaluations/{w.group}"),
                *("--out", f"{RESULTS}/figures/{w.group}"),
            ]
        )
        + f" {flags(LOOK)}"
    )


def shown_in_report(group):
    """Return the summary, the figures that have something to draw, and the tables."""
    figures = available_figures(PLAN, group, [*FIGURE_NAMES, "envelopes"])
    return [
        f"{RESULTS}/write_summary/{group}.html",
        *[f"{RESULTS}/figures/{group}/{figure}.svg" for figure in figures],
        *[f"{RESULTS}/figures/{group}/{table}.html" for table in HTML_TABLES],
    ]
