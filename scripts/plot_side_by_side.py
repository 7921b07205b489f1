"""Draw the matrices of win rates and graded scores (side_by_side.png, side_by_side.svg)."""

import warpflow.quick_start  # noqa: F401  # first: see there

from warpflow.figures.cli import draw_figure
from warpflow.figures.side_by_side import plot_side_by_side


def main(argv: list[str] | None = None) -> None:
    draw_figure("side_by_side", ["side_by_side"], plot_side_by_side, __doc__, argv)


if __name__ == "__main__":
    main()
