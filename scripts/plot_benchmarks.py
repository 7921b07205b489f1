"""Draw benchmark scores against KL (benchmarks.png, benchmarks.svg)."""

from warpflow.figures.cli import draw_figure
from warpflow.figures.side_by_side import plot_benchmarks


def main(argv: list[str] | None = None) -> None:
    draw_figure("benchmarks", ["benchmarks"], plot_benchmarks, __doc__, argv)


if __name__ == "__main__":
    main()
