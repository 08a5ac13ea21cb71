"""Figures of probes: accuracy by the number of features, and by the distance that a code has to bridge."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from report import COLOURS, DASHES, DPI

LABELS = {"tsae": "TSAE", "static": "static SAE", "resid": "residual stream", "embedding": "embedding (layer 0)"}
Row = Mapping[str, Any]


def accuracy_figure(rows: Sequence[Row], title: str = "Probes on held-out groups") -> Figure:
    """Accuracy by the number of features, one panel a task, one line a code; the bar is the 95 % interval.

    Rows as of `language.task_rows`. Raises ValueError where none is about all items.
    """
    kept = [row for row in rows if row["items"] == "all"]
    order = [*sorted({row["k"] for row in kept if row["k"] != "all"}), "all"]
    figure, panels = _panels(kept, title)
    for axes, task in panels:
        _lines(axes, [row for row in kept if row["task"] == task], lambda row: order.index(row["k"]))
        axes.set_xticks(range(len(order)), [str(k) for k in order])
        axes.set_xlabel("features the probe is given")
    return figure


def distance_figure(rows: Sequence[Row], k: int | str = 5, title: str = "Probes by distance") -> Figure:
    """Accuracy by distance in words, for probes on k features ("all": dense); one panel a task, one line a code."""
    kept = [row for row in rows if row["items"].startswith("distance ") and row["k"] == k]
    said = "all features" if k == "all" else f"{k} features"
    figure, panels = _panels(kept, f"{title}, {said}")
    for axes, task in panels:
        _lines(axes, [row for row in kept if row["task"] == task], lambda row: int(row["items"].split()[1]))
        axes.set_xlabel("words to the read-out")
    return figure


def _panels(rows: Sequence[Row], title: str) -> tuple[Figure, list[tuple[Axes, str]]]:
    names = list(dict.fromkeys(row["task"] for row in rows))
    if not names:
        raise ValueError("a figure of probes needs at least one row; got none")
    figure = Figure(figsize=(3.4 * len(names) + 0.8, 4.0), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        axes.set(title=name, ylim=(0.35, 1.02))
        axes.axhline(0.5, color="#888888", linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy")
    return figure, list(zip(panels, names, strict=True))


def _lines(axes: Axes, rows: Sequence[Row], place: Callable[[Row], float]) -> None:
    for at, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        ours = sorted((row for row in rows if row["model"] == model), key=place)
        x, y = [place(row) for row in ours], [row["accuracy"] for row in ours]
        bars = [
            [max(0.0, row["accuracy"] - row["low"]) for row in ours],
            [max(0.0, row["high"] - row["accuracy"]) for row in ours],
        ]
        colour, dash = COLOURS[at % len(COLOURS)], DASHES[at % len(DASHES)]
        label = LABELS.get(model, model)
        axes.errorbar(x, y, yerr=bars, label=label, marker="o", markersize=4, capsize=2, color=colour, linestyle=dash)
    axes.legend(frameon=False, fontsize=8)
