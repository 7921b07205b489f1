"""Draw reward, KL and gold reward against η (eta_sweep.png, eta_sweep.svg)."""

import warpflow.quick_start  # noqa: F401  # first: see there

from warpflow.figures.cli import draw_figure
from warpflow.figures.eta_sweep import plot_eta_sweep


def main(argv: list[str] | None = None) -> None:
    tables = ["evaluations"]
    draw_figure("eta_sweep", tables, plot_eta_sweep, __doc__, argv)


if __name__ == "__main__":
    main()
