"""Draw SLERP against LERP over λ (lambda_sweep.png, lambda_sweep.svg)."""

from warpflow.plotting import plot_lambda_sweep
from warpflow.plotting_cli import draw_figure


def main(argv: list[str] | None = None) -> None:
    tables = ["evaluations"]
    draw_figure("lambda_sweep", tables, plot_lambda_sweep, __doc__, argv)


if __name__ == "__main__":
    main()
