"""Draw benchmark scores against KL (benchmarks.png, benchmarks.svg)."""

import warpflow.quick_start  # noqa: F401  # first: see there

from warpflow.figures.benchmarks import plot_benchmarks
from warpflow.figures.cli import draw_figure


def main(argv: list[str] | None = None) -> None:
    draw_figure("benchmarks", ["benchmarks"], plot_benchmarks, __doc__, argv)


if __name__ == "__main__":
    main()
