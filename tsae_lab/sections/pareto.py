"""run_4's pictures: every system in the plane of two measures, and the front of the best."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox, BboxBase

from tsae_lab import definitions
from tsae_lab.sections.figures import COLOURS, sheet

PLANES = {"fve": ("tss_mean", "fve"), "delta_ce": ("tss_mean", "delta_ce"),
          "births": ("births", "fve")}  # fmt: skip
"""Figures by name: what stands on the x and on the y axis."""
OWN_COLOURS = {"tsae": COLOURS[1], "static": COLOURS[6]}
MARGIN = 0.07  # of an axis, on either side
DOT = 5  # pixels that a label stays away from the middle of a point
RINGS, ANGLES = (4, 14, 24, 36, 50, 66, 84), 16  # pixels from a point, and directions, of its label


def pareto_front(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[str]:
    """Systems that no other is at least as good as in both measures and better in one."""
    points = {
        row["system"]: np.array([_good(key) * row[key] for key in (x, y)])
        for row in rows
        if row[x] is not None and row[y] is not None
    }
    return [
        name
        for name, own in points.items()
        if not any((p >= own).all() and (p > own).any() for p in points.values())
    ]


def _good(key: str) -> int:
    return -1 if definitions.definition(key).better == "lower" or key == "births" else 1


def shown_span(values: Sequence[float], needed: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: those of the values, less outliers.

    Outliers are up to a quarter of the values, at one end, none of them `needed`, without which the
    axis is at most half as long; of either end in turn.
    """
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    for n in range(1, len(ordered) // 4 + 1):
        for first, last in ((ordered[n], high), (low, ordered[-1 - n])):
            whole = first <= min(needed) and max(needed) <= last
            if whole and last - first <= (high - low) / 2 and last > first:
                return shown_span([v for v in ordered if first <= v <= last], needed)
    return low, high


def pareto_figure(rows: Sequence[Mapping[str, Any]], x: str, y: str, title: str) -> Figure | None:
    """Every system as a point with its standard errors, the front filled and as a line.

    An outlier, but for the TSAE and the static SAE, is an arrow at the edge with its value. None
    without a system that has both measures.
    """
    placed = [row for row in rows if row[x] is not None and row[y] is not None]
    if not placed:
        return None
    front = pareto_front(placed, x, y)
    placed.sort(key=lambda row: row["system"] not in front)
    figure, (axes,) = sheet(8.0, 5.4)
    FigureCanvasAgg(figure)
    spans, ours = {}, OWN_COLOURS.keys() & {row["system"] for row in placed} or front
    for key, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
        needed = [row[key] for row in placed if row["system"] in ours]
        spans[key] = low, high = shown_span([row[key] for row in placed], needed)
        room = MARGIN * (high - low or abs(high) or 1.0)
        limit(low - room, high + room)
    spots = [_point(axes, row, (x, y), spans, row["system"] in front) for row in placed]
    line = sorted((row[x], row[y]) for row in placed if row["system"] in front)
    axes.plot(*zip(*line, strict=True), color=COLOURS[6], linestyle=":", linewidth=1, zorder=1)
    if _good(y) < 0:
        axes.invert_yaxis()
    said = f"{title} (filled: on the front)"
    axes.set(xlabel=definitions.label(x), ylabel=definitions.label(y), title=said)
    _write_labels(axes, spots)
    return figure


Spot = tuple[tuple[float, float], str]
"""Where a point is drawn, in the axes' units, and what stands beside it."""


def _point(
    axes: Axes, row: Mapping[str, Any], keys: tuple[str, str],
    spans: Mapping[str, tuple[float, float]], on_front: bool,
) -> Spot:  # fmt: skip
    """Draws a system's point; outside a span an arrow at its end."""
    colour = OWN_COLOURS.get(row["system"], COLOURS[0])
    place = tuple(float(np.clip(row[key], *spans[key])) for key in keys)
    style: dict[str, Any] = {"color": colour, "markersize": 6}
    style["markerfacecolor"] = colour if on_front else "white"
    outside = [key for key, value in zip(keys, place, strict=True) if value != row[key]]
    if not outside:
        errors = {f"{axis}err": row[f"{key}_stderr"] for axis, key in zip("xy", keys, strict=True)}
        axes.errorbar(*place, fmt="o", elinewidth=1, **style, **errors)
        return (place[0], place[1]), row["system"]
    beyond = row[outside[0]] > spans[outside[0]][1]
    up = beyond != (_good(keys[1]) < 0)  # the y axis of a measure to be small is upside down
    marker = ("<>"[beyond]) if outside[0] == keys[0] else ("v^"[up])
    axes.plot(*place, marker=marker, **style)
    values = ", ".join(f"{row[key]:.3g}" for key in outside)
    return (place[0], place[1]), f"{row['system']} ({values})"


def _write_labels(axes: Axes, spots: Sequence[Spot]) -> None:
    """Writes each text near its point, where it covers no point and no text written before."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # the layout is fixed from here on
    figure.set_layout_engine("none")
    points = [axes.transData.transform(place) for place, _ in spots]
    taken = [Bbox.from_extents(*(p - DOT), *(p + DOT)) for p in points]
    for (place, text), point in zip(spots, points, strict=True):
        note = axes.annotate(text, place, (0, 0), textcoords="offset points", fontsize=8)
        box = note.get_window_extent().padded(1)
        ways = [_label_box(point, box, ring, turn) for ring in RINGS for turn in range(ANGLES)]
        costs = [_covered(way, taken, axes.get_window_extent()) for way in ways]
        chosen = ways[int(np.argmin(costs))]
        taken.append(chosen)
        offset = (np.array(chosen.min) + 1 - point) * 72 / figure.dpi
        note.set_position((float(offset[0]), float(offset[1])))
        note.set_in_layout(False)
        nearest = np.clip(point, chosen.min, chosen.max)
        if np.linalg.norm(nearest - point) > 2 * DOT:
            ends = axes.transData.inverted().transform([point, nearest])
            axes.plot(*ends.T, color="0.6", linewidth=0.6, zorder=1)


def _label_box(point: np.ndarray, box: Bbox, ring: int, turn: int) -> Bbox:
    angle = math.pi / 4 + 2 * math.pi * turn / ANGLES
    size = np.array([box.width, box.height])
    centre = point + np.array([math.cos(angle), math.sin(angle)]) * (ring + size / 2)
    return Bbox.from_extents(*(centre - size / 2), *(centre + size / 2))


def _covered(box: Bbox, taken: Sequence[Bbox], inside: BboxBase) -> float:
    """Pixels of `box` that are taken or outside."""
    cut = Bbox.intersection(box, inside)
    out = box.width * box.height - (cut.width * cut.height if cut else 0)
    shared = [Bbox.intersection(box, other) for other in taken]
    return out + sum(both.width * both.height for both in shared if both)
