"""Place texts beside points where they cover no other point or text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

Box = tuple[float, float, float, float]  # left, low, right and high in pixels


@dataclass(frozen=True)
class Placed:
    """A text to place next to a point of an axes, in data coordinates."""

    x: float
    y: float
    text: str
    color: str


def place_texts(figure: Figure, axes: Axes, texts: Sequence[Placed], size: float = 6.5) -> None:
    """Write each text beside its point, in order, clear of all points and texts.

    A text that finds no free place is left out. This needs the final limits of the axes, so call it
    after everything else is drawn.
    """
    figure.draw_without_rendering()
    point = figure.dpi / 72
    shown = [item for item in texts if math.isfinite(item.x) and math.isfinite(item.y)]
    pixels = [axes.transData.transform((item.x, item.y)) for item in shown]
    markers = [(x - 2 * point, y - 2 * point, x + 2 * point, y + 2 * point) for x, y in pixels]
    taken: list[Box] = list(dict.fromkeys(markers))
    for item, (x, y) in zip(shown, pixels, strict=True):
        width = 0.62 * size * len(item.text)
        for dx, dy in ((4, -3 - size), (-4 - width, 4), (4, 4), (-4 - width, -3 - size)):
            left, low = x + dx * point, y + dy * point
            box = (left, low, left + width * point, low + size * point)
            if lies_inside(box, axes) and not any(overlap(box, other) for other in taken):
                taken.append(box)
                write_beside(axes, item, (dx, dy), size)
                break


def write_beside(axes: Axes, item: Placed, offset: tuple[float, float], size: float) -> None:
    """Write a text with a white rim at an offset, in typographic points, from its point."""
    note = axes.annotate(
        item.text,
        (item.x, item.y),
        xytext=offset,
        textcoords="offset points",
        fontsize=size,
        color=item.color,
        zorder=5,
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )
    note.set_in_layout(False)


def lies_inside(box: Box, axes: Axes) -> bool:
    frame = axes.bbox
    return frame.x0 <= box[0] and frame.y0 <= box[1] and box[2] <= frame.x1 and box[3] <= frame.y1


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
