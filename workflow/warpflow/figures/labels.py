"""Place texts beside points where they cover no point or text, and few lines."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

GAPS = (3, 7)  # points between a text and its point; the nearer one first
# The sides of its point that a text may go to, where right and up are 1. The first one is below a
# rising front.
SIDES = ((1, -1), (-1, 1), (1, 0), (0, -1), (0, 1), (-1, 0), (1, 1), (-1, -1))


@dataclass(frozen=True)
class Placed:
    """A text to place next to a point of an axes, in data coordinates."""

    x: float
    y: float
    text: str
    color: str


def place_texts(figure: Figure, axes: Axes, texts: Sequence[Placed], size: float = 6.5) -> None:
    """Write each text beside its point, in order, clear of all markers and texts. Among places that
    are as near to the point, it takes the one where it covers the fewest lines.

    A text that finds no free place is left out. This needs the final limits of the axes, so call it
    after everything else is drawn.
    """
    figure.draw_without_rendering()
    lines = [path for line in axes.lines if (path := path_of(line)) is not None]
    taken = [box for line in axes.lines for box in marker_boxes(line, figure.dpi / 72)]
    for item in texts:
        if not (math.isfinite(item.x) and math.isfinite(item.y)):
            continue
        note = write_label(axes, item, size)
        places = free_places(note, taken)
        if not places:
            note.remove()
            continue
        dx, dy, box = min(places, key=lambda place: crossings(place[2], lines))
        note.set_position((dx, dy))
        taken.append(box)


def write_label(axes: Axes, item: Placed, size: float) -> Annotation:
    """Write a text with a white rim whose left lower corner is at its point for now."""
    note = axes.annotate(
        item.text,
        (item.x, item.y),
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=size,
        color=item.color,
        zorder=5,
        path_effects=[withStroke(linewidth=1.5, foreground="white")],
    )
    note.set_in_layout(False)
    return note


def free_places(note: Annotation, taken: Sequence[Bbox]) -> list[tuple[float, float, Bbox]]:
    """Return the offsets of a text from its point at which it covers nothing, in points, each with
    its box in pixels. All are at the smallest gap that has one."""
    axes, figure = note.axes, note.get_figure(root=True)
    assert axes is not None and figure is not None
    pixels = figure.dpi / 72
    box = note.get_window_extent()
    for gap in GAPS:
        found = []
        for right, up in SIDES:
            dx = right * gap - (1 - right) / 2 * box.width / pixels
            dy = up * gap - (1 - up) / 2 * box.height / pixels
            moved = box.translated(dx * pixels, dy * pixels)
            if lies_inside(moved, axes.bbox) and not moved.count_overlaps(taken):
                found.append((dx, dy, moved))
        if found:
            return found
    return []


def lies_inside(box: Bbox, frame: Bbox) -> bool:
    return all(frame.contains(*corner) for corner in (box.min, box.max))


def marker_boxes(line: Line2D, pixels: float) -> Iterator[Bbox]:
    """Yield the boxes of a line's markers. `pixels` is the number of pixels in a point."""
    if line.get_marker() in ("", " ", "None", "none", None) or not line.get_markersize():
        return
    half = line.get_markersize() * pixels / 2
    for x, y in line.get_transform().transform(line.get_xydata()):
        if math.isfinite(x) and math.isfinite(y):
            yield Bbox.from_extents(x - half, y - half, x + half, y + half)


def path_of(line: Line2D) -> Path | None:
    """Return a line in pixels, or None where only its markers are drawn."""
    if line.get_linestyle() in ("", " ", "None", "none"):
        return None
    return line.get_transform().transform_path(line.get_path()).cleaned(remove_nans=True)


def crossings(box: Bbox, lines: Sequence[Path]) -> int:
    return sum(line.intersects_bbox(box, filled=False) for line in lines)
