"""Figures of trade-offs: reconstruction against stability, and against what a reader has to read.

They are drawn as all figures are (`figures`), on its sheets and in its colours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from tsae_lab import definitions
from tsae_lab.sections.figures import COLOURS, require, sheet, stroke


def tradeoff_figure(
    points: Sequence[Mapping[str, float]], static: Mapping[str, float], title: str
) -> Figure:
    """FVE against Jaccard overlap at each bridge strength (`beta`), and the static SAE's point."""
    require(points, "tradeoff_figure", "point")
    figure, (axes,) = sheet(7.0, 4.5)
    ordered = sorted(points, key=lambda point: point["beta"])
    x, y = [p["jaccard"] for p in ordered], [p["fve"] for p in ordered]
    axes.plot(x, y, marker="o", label="TSAE, by bridge strength beta", **stroke(0))
    beside: dict[str, Any] = {"textcoords": "offset points"}
    for point in ordered:
        place = (point["jaccard"], point["fve"])
        axes.annotate(f"{point['beta']:g}", place, xytext=(5, 6), fontsize=9, **beside)
    place = (static["jaccard"], static["fve"])
    axes.plot(*place, linestyle="", marker="s", markersize=8, color=COLOURS[1])
    axes.annotate("static SAE", place, xytext=(8, 5), **beside)
    axes.axhline(static["fve"], color=COLOURS[1], linestyle=":", linewidth=1)
    axes.axvline(2 * static["jaccard"], color=COLOURS[6], linestyle=":", linewidth=1)
    upright: dict[str, Any] = {"rotation": 90, "fontsize": 8, "va": "bottom", **beside}
    foot = (2 * static["jaccard"], min(y))
    axes.annotate("twice the static overlap", foot, xytext=(-10, 0), **upright)
    fve, overlap = definitions.label("fve"), definitions.label("jaccard")
    axes.set(xlabel=overlap, ylabel=f"{fve} on validation text", title=title)
    axes.legend(frameon=False, loc="upper right")
    return figure


def frontier_figure(
    static: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]], axis: str, title: str
) -> Figure:
    """FVE and delta CE against a measure of events, `births` or `distinct`: a point per `k`, a line
    for the static SAEs and one for the TSAEs.
    """
    figure, panels = sheet(10.0, 4.2, columns=2)
    figure.suptitle(title)
    for row, (name, points) in enumerate((("TSAE", ours), ("static SAE", static))):
        require(points, "frontier_figure", f"point of the {name}")
        ordered = sorted(points, key=lambda point: point["k"])
        for axes, key in zip(panels, ("fve", "delta_ce"), strict=True):
            places = [(point[axis], point[key]) for point in ordered]
            axes.plot(*zip(*places, strict=True), marker="os"[row], label=name, **stroke(row))
            for point, place in zip(ordered, places, strict=True):
                offset = (0, (8, -14)[row if key == "fve" else 1 - row])
                beside: dict[str, Any] = {"textcoords": "offset points", "ha": "center"}
                axes.annotate(f"k {point['k']}", place, offset, fontsize=8, **beside)
    for axes, key in zip(panels, ("fve", "delta_ce"), strict=True):
        axes.set(xlabel=definitions.label(axis), ylabel=definitions.label(key))
        axes.margins(y=0.12)
    panels[0].legend(frameon=False, loc="lower right")
    return figure
