"""Draw SLERP against LERP over λ (lambda_sweep.png, lambda_sweep.svg)."""

import warpflow.quick_start  # noqa: F401  # first: see there

from warpflow.figures.cli import draw_figure
from warpflow.figures.lambda_sweep import plot_lambda_sweep


def main(argv: list[str] | None = None) -> None:
    tables = ["evaluations"]
    draw_figure("lambda_sweep", tables, plot_lambda_sweep, __doc__, argv)


if __name__ == "__main__":
    main()
