"""Draw the averages of a run's own weights against the run (averages.png, averages.svg)."""

import warpflow.quick_start  # noqa: F401  # first: see there

from warpflow.figures.averages import plot_averages
from warpflow.figures.cli import draw_figure


def main(argv: list[str] | None = None) -> None:
    draw_figure("averages", ["evaluations", "trajectories"], plot_averages, __doc__, argv)


if __name__ == "__main__":
    main()
