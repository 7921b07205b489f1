"""Draw angles and norms of task vectors (geometry.png, geometry.svg)."""

import warpflow.quick_start  # noqa: F401  # first: see there

from warpflow.figures.cli import draw_figure
from warpflow.figures.geometry import plot_geometry


def main(argv: list[str] | None = None) -> None:
    tables = ["evaluations", "geometry"]
    draw_figure("geometry", tables, plot_geometry, __doc__, argv)


if __name__ == "__main__":
    main()
