"""Draw the RL runs over their steps (training_curves.png, training_curves.svg)."""

import warpflow.quick_start  # noqa: F401  # first: see there

from warpflow.figures.cli import draw_figure
from warpflow.figures.training_curves import plot_training_curves


def main(argv: list[str] | None = None) -> None:
    tables = ["evaluations", "training", "trajectories"]
    draw_figure("training_curves", tables, plot_training_curves, __doc__, argv)


if __name__ == "__main__":
    main()
