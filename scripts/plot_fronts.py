"""Draw the KL–reward fronts of LITI, RL trajectories and the optimum (fronts.png, fronts.svg)."""

import warpflow.quick_start  # noqa: F401  # first: see there

from warpflow.figures.cli import draw_figure
from warpflow.figures.fronts import plot_fronts


def main(argv: list[str] | None = None) -> None:
    tables = ["evaluations", "trajectories"]
    draw_figure("fronts", tables, plot_fronts, __doc__, argv, optional=["optimum"])


if __name__ == "__main__":
    main()
