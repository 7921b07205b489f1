"""Draw the KL–reward fronts of LITI, RL trajectories and the optimum (fronts.png, fronts.svg)."""

from warpflow.plotting import plot_fronts
from warpflow.plotting_cli import draw_figure


def main(argv: list[str] | None = None) -> None:
    tables = ["evaluations", "trajectories"]
    draw_figure("fronts", tables, plot_fronts, __doc__, argv, optional=["optimum"])


if __name__ == "__main__":
    main()
