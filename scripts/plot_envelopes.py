"""Draw envelopes over β of both anchors at equal KL (envelopes.png, envelopes.svg)."""

import warpflow.quick_start  # noqa: F401  # first: see there

from warpflow.figures.cli import draw_figure
from warpflow.figures.envelopes import plot_envelopes


def main(argv: list[str] | None = None) -> None:
    draw_figure("envelopes", ["envelopes"], plot_envelopes, __doc__, argv)


if __name__ == "__main__":
    main()
