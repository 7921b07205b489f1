"""Draw the diversity and length of completions against KL (diversity.png, diversity.svg)."""

import warpflow.quick_start  # noqa: F401  # first: see there

from warpflow.figures.cli import draw_figure
from warpflow.figures.diversity import plot_diversity


def main(argv: list[str] | None = None) -> None:
    draw_figure("diversity", ["evaluations", "trajectories"], plot_diversity, __doc__, argv)


if __name__ == "__main__":
    main()
