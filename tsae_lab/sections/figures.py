"""Figures of temporal structure: survival, stability by lag, evolution of a document, lifecycle
raster, transitions.

A function takes measured data and returns a matplotlib `Figure`, drawn without a display or global
state; `save_figure` writes it as PNG and SVG. Colours are Okabe and Ito's (2008), told apart in
every common colour blindness, and lines differ in dashes as well.
"""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import networkx as nx
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from metrics import Stability
from tsae_lab import definitions
from tsae_lab.measures.lifetimes import Evolution, Survival

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
DPI = 100  # one inch is 100 pixels: sizes below are those seen at 100 % in a browser
WORD_INCHES = 0.18  # width of a token's column
PART_NODES = 5  # features in one part of a transition graph
CELL_INCHES = (3.6, 2.4)  # width and height of one part


def save_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.png and `stem`.svg; the two paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    for path in paths:
        save(figure, path)
    return paths


def save(figure: Figure, path: Path) -> None:
    """Writes a .png or .svg under a temporary name that is then renamed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    with (
        warnings.catch_warnings(),
        matplotlib.rc_context({"svg.hashsalt": "tsae", "svg.fonttype": "path"}),
    ):
        warnings.filterwarnings(
            "ignore", message="Glyph"
        )  # a token in a script the font has not: drawn as a box
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(
            draft, format=path.suffix[1:], dpi=DPI, bbox_inches="tight", metadata=metadata
        )
    os.replace(draft, path)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _style(row: int) -> dict[str, Any]:
    return {"color": COLOURS[row % len(COLOURS)], "linestyle": DASHES[row % len(DASHES)]}


def survival_figure(
    curves: Mapping[str, Survival], title: str = "Lifetime of active features"
) -> Figure:
    """Kaplan-Meier curves with their 95 % bands, one a model; the half-lives stand in the legend.

    The share is drawn by its logarithm, where a constant rate of ending is a straight line, down to
    one run in 100,000.
    """
    _need(curves, "survival_figure", "curve")
    figure, axes = _canvas(7.0, 4.5)
    for row, (name, curve) in enumerate(curves.items()):
        label = f"{name} (half-life {curve.median_text} token{'s' * (curve.median_text != '1')})"
        axes.step(curve.t, curve.survival, where="post", label=label, **_style(row))
        axes.fill_between(
            curve.t,
            curve.low,
            curve.high,
            step="post",
            color=COLOURS[row % len(COLOURS)],
            alpha=0.2,
            lw=0,
        )
    axes.set(
        xlabel="t (tokens)",
        ylabel="share of runs longer than t",
        title=title,
        yscale="log",
        xlim=(0, None),
    )
    least = min(float(curve.survival[curve.survival > 0].min()) for curve in curves.values())
    axes.set_ylim(max(least / 2, 1e-5), 1.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def stability_figure(
    scores: Mapping[str, Stability], title: str = "Temporal stability by lag"
) -> Figure:
    """TSS at each lag (solid marks: mean over features; hollow: weighted by activity), one colour a
    model.
    """
    _need(scores, "stability_figure", "score")
    figure, axes = _canvas(7.0, 4.5)
    for row, (name, score) in enumerate(scores.items()):
        label = f"{name} (TSS {score.macro:.3f}, {score.eligible_frac:.0%} of features eligible)"
        axes.plot(score.lags, score.macro_by_lag, marker="o", label=label, **_style(row))
        hollow = {**_style(row), "linestyle": "", "marker": "o", "markerfacecolor": "none"}
        axes.plot(score.lags, score.weighted_by_lag, **hollow)
    handles, labels = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color="grey", linestyle="", marker="o", markerfacecolor="none"))
    axes.legend(handles, [*labels, "hollow: weighted by activity"], frameon=False)
    axes.set(
        xlabel="lag (tokens)",
        ylabel="TSS (0 = chance, 1 = unchanging)",
        title=title,
        ylim=(0, None),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def evolution_figure(
    table: Evolution,
    words: Sequence[str],
    names: Mapping[int, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Heat map of a document's leading features over its tokens, each row by its own maximum; seams
    of chunks dashed.

    One word a token. `names` labels features (default: their number). Raises ValueError for another
    number of words or no active feature.
    """
    figure, axes = _token_axes(table, words, names)
    shade = table.acts / table.acts.max(axis=1, keepdims=True)
    image = axes.imshow(
        shade, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest"
    )
    figure.colorbar(image, ax=axes, label="activation / row maximum", pad=0.01, fraction=0.03)
    axes.set_title(title or f"Document {table.document}: features over its tokens")
    return figure


def raster_figure(
    table: Evolution,
    words: Sequence[str],
    names: Mapping[int, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Lifecycle raster: a bar for each run of a feature, a triangle at its birth, a cross where it
    has died.

    A run without a triangle or cross was cut by the seam of two chunks: its birth or death was not
    seen. Raises ValueError as `evolution_figure`.
    """
    figure, axes = _token_axes(table, words, names)
    breaks = np.zeros(table.acts.shape[1], bool)
    breaks[table.seams] = True
    for row, on in enumerate(table.acts > 0):
        begins = np.flatnonzero(on & (~np.pad(on, (1, 0))[:-1] | breaks))
        ends = np.flatnonzero(on & (~np.pad(on, (0, 1))[1:] | np.pad(breaks, (0, 1))[1:])) + 1
        bars = np.stack([begins - 0.5, ends - begins], axis=1)
        axes.broken_barh(
            [(float(x), float(width)) for x, width in bars], (row - 0.3, 0.6), color="#56B4E9", lw=0
        )
    marks = (
        (table.births, "^", "#000000", "birth"),
        (table.deaths, "x", "#D55E00", "death (first token off)"),
    )
    for where, marker, colour, label in marks:
        rows, columns = np.nonzero(where)
        axes.scatter(
            columns, rows, marker=marker, s=22, color=colour, label=label, zorder=3, linewidths=1.2
        )
    axes.set_ylim(len(table.features) - 0.5, -0.5)
    axes.set_xlim(-0.5, table.acts.shape[1] - 0.5)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, borderaxespad=0.2
    )
    axes.set_title(title or f"Document {table.document}: lives of features", loc="right")
    return figure


def _token_axes(
    table: Evolution, words: Sequence[str], names: Mapping[int, str] | None
) -> tuple[Figure, Axes]:
    n_rows, n_tokens = table.acts.shape
    if len(words) != n_tokens:
        raise ValueError(
            f"a document's figure needs one word a token ({n_tokens}); got {len(words)}"
        )
    if n_rows == 0:
        raise ValueError(
            f"a document's figure needs an active feature; got none in document {table.document}"
        )
    ticks = [shown(w) for w in words]
    height = 0.24 * max(n_rows, 8) + 1.2 + 0.09 * max(map(len, ticks))
    figure, axes = _canvas(max(WORD_INCHES * n_tokens + 3.0, 6.0), height)
    axes.set_xticks(range(n_tokens), ticks, rotation=90, fontsize=9, parse_math=False)
    labels = [(names or {}).get(int(f), str(int(f))) for f in table.features]
    axes.set_yticks(range(n_rows), labels, fontsize=9, parse_math=False)
    axes.set(xlabel="token", ylabel="feature")
    for seam in table.seams:
        axes.axvline(seam - 0.5, color="#CC79A7", linestyle="--", lw=1)
    return figure, axes


def shown(word: str) -> str:
    """A token as an axis can show it: spaces at the ends off, line breaks and other blanks as
    signs.
    """
    if not word.strip():
        return {"": "(empty)", " ": "␣"}.get(word, "↵" if "\n" in word else "␣")
    return "".join(c if c.isprintable() else " " for c in word.strip().replace("\n", "↵"))


def transition_figure(
    found: nx.DiGraph,
    names: Mapping[int, str] | None = None,
    *,
    max_edges: int = 30,
    title: str = "Transitions",
) -> Figure:
    """Up to `max_edges` edges of smallest p (then largest lift) of `transitions.graph`; arrows say
    `+lag, lift`.

    An edge is left out where stronger ones have joined its features already, or would join more
    than `PART_NODES`: what is drawn is a forest whose edges do not cross. An empty graph says so.
    `names` labels features.
    """
    drawn = _forest(found, max_edges)
    ranked = list(drawn.edges(data=True))
    parts = sorted(nx.weakly_connected_components(drawn), key=lambda part: (-len(part), min(part)))
    columns = max(int(np.ceil(np.sqrt(len(parts)))), 1)
    rows = max(-(-len(parts) // columns), 1)
    figure, axes = _canvas(max(CELL_INCHES[0] * columns, 6.0), max(CELL_INCHES[1] * rows, 3.0))
    axes.set_axis_off()
    axes.set_title(title)
    if not parts:
        axes.text(
            0.5,
            0.5,
            "no significant transition",
            ha="center",
            va="center",
            transform=axes.transAxes,
        )
        return figure
    place = _places(drawn, [sorted(part) for part in parts], columns)
    widest = max(edge["lift"] for _, _, edge in ranked)
    shown_as = {node: (names or {}).get(node, str(node)) for node in place}
    for source, target, edge in ranked:
        width, label = 0.8 + 2.2 * edge["lift"] / widest, f"+{edge['lag']}, lift {edge['lift']:.1f}"
        _arrow(
            axes, place[source], place[target], width, label, (shown_as[source], shown_as[target])
        )
    for node, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.3", "facecolor": "#FFFFFF", "edgecolor": COLOURS[0]}
        axes.text(
            x,
            y,
            shown_as[node],
            ha="center",
            va="center",
            fontsize=9,
            bbox=box,
            zorder=3,
            parse_math=False,
        )
    axes.set(xlim=(-0.1, columns * 1.0 + 0.1), ylim=(-rows - 0.1, 0.1))
    note = "node: feature and its word;  arrow: +lag in tokens, lift = count / count expected by chance"
    axes.text(
        0.5,
        0,
        note,
        ha="center",
        va="bottom",
        fontsize=9,
        color="#555555",
        transform=axes.transAxes,
    )
    return figure


def _forest(found: nx.DiGraph, max_edges: int) -> nx.DiGraph:
    """The strongest edges that close no circle and make no part of more than `PART_NODES`
    features.
    """
    ranked = sorted(found.edges(data=True), key=lambda e: (e[2]["p_value"], -e[2]["lift"]))
    drawn, part = nx.DiGraph(), {node: {node} for node in found}
    for source, target, edge in ranked:
        joined = part[source] | part[target]
        if part[source] is part[target] or len(joined) > PART_NODES:
            continue
        drawn.add_edge(source, target, **edge)
        part |= dict.fromkeys(joined, joined)
        if drawn.number_of_edges() == max_edges:
            break
    return drawn


def _places(
    drawn: nx.DiGraph, parts: Sequence[Sequence[int]], columns: int
) -> dict[int, tuple[float, float]]:
    """A cell of the unit grid for each tree, its nodes on a circle in depth-first order, so that no
    edges cross.
    """
    place = {}
    for cell, part in enumerate(parts):
        first = max(part, key=lambda node: drawn.out_degree(node) - drawn.in_degree(node))
        reached = list(nx.dfs_preorder_nodes(drawn.to_undirected(as_view=True), first))
        angle = np.pi - 2 * np.pi * np.arange(len(reached)) / len(reached)
        x, y = (
            cell % columns + 0.5 + 0.36 * np.cos(angle),
            -(cell // columns) - 0.5 + 0.36 * np.sin(angle),
        )
        place |= {node: (float(a), float(b)) for node, a, b in zip(reached, x, y, strict=True)}
    return place


def _arrow(
    axes: Axes,
    begin: tuple[float, float],
    end: tuple[float, float],
    width: float,
    label: str,
    boxes: tuple[str, str],
) -> None:
    """An arrow between two boxes with these texts, from edge to edge."""
    across, up = CELL_INCHES[0] * abs(end[0] - begin[0]), CELL_INCHES[1] * abs(end[1] - begin[1])
    far = math.hypot(across, up)
    steep, flat = max(up / far, 1e-3), max(across / far, 1e-3)
    halves = [
        (3 * max(map(len, text.split("\n"))) + 6, 5 + 6 * len(text.split("\n"))) for text in boxes
    ]  # points
    gaps = [min(wide / flat, high / steep) + 3 for wide, high in halves]
    bend = {
        "arrowstyle": "-|>",
        "connectionstyle": "arc3,rad=0.15",
        "lw": width,
        "color": "#555555",
    }
    axes.annotate(
        "",
        xy=end,
        xytext=begin,
        arrowprops={**bend, "shrinkA": gaps[0], "shrinkB": gaps[1]},
        zorder=2.5,
    )
    middle = (np.array(begin) + np.array(end)) / 2 + 0.075 * np.array(
        [end[1] - begin[1], begin[0] - end[0]]
    )
    paper = {
        "boxstyle": "square,pad=0.1",
        "facecolor": "#FFFFFF",
        "edgecolor": "none",
        "alpha": 0.85,
    }
    axes.text(
        middle[0],
        middle[1],
        label,
        ha="center",
        va="center",
        fontsize=8,
        color=COLOURS[1],
        bbox=paper,
        zorder=2,
    )


def training_figure(
    lines: Sequence[Mapping[str, Any]], title: str = "Training", *, pieces: int = 1
) -> Figure:
    """FVE, loss, L0 and mix by step, from the lines of log.jsonl: one colour a text and model, one
    line a seed.

    FVE and loss are means over a step and the `pieces - 1` before it: the pieces of a sequence are
    not equally hard. The loss of phase (a) is a distance to the teacher, not to x, and is left out.
    """
    if not lines:
        raise ValueError("training_figure needs at least one line of the log; got none")
    figure = Figure(figsize=(10.0, 6.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(2, 2)
    wanted = (
        ("fve", f"{definitions.label('fve')} of the batch"),
        ("loss", "squared error"),
        ("l0", definitions.label("l0")),
        ("mix", "mix"),
    )
    groups = list(dict.fromkeys((line["dataset"], line["model"]) for line in lines))
    for axes, (key, name) in zip(panels.flat, wanted, strict=True):
        for row, (dataset, model) in enumerate(groups):
            ours = [line for line in lines if (line["dataset"], line["model"]) == (dataset, model)]
            for at, seed in enumerate(dict.fromkeys(line["seed"] for line in ours)):
                kept = [
                    n
                    for n in ours
                    if n["seed"] == seed and not (key == "loss" and n["phase"] == "distil")
                ]
                points = sorted((line["step"], line[key]) for line in kept) or [
                    (math.nan, math.nan)
                ]
                points = _trailing_means(points, pieces if key in ("fve", "loss") else 1)
                label = (
                    f"{dataset}, {'TSAE' if model == 'tsae' else 'static SAE'}" if at == 0 else None
                )
                axes.plot(
                    *zip(*points, strict=True), label=label, linewidth=1.2, alpha=0.8, **_style(row)
                )
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 1].set_yscale("log")
    panels[0, 0].set_ylim(bottom=max(0.0, min(line["fve"] for line in lines[len(lines) // 20 :])))
    panels[0, 0].legend(frameon=False)
    return figure


def _trailing_means(points: Sequence[tuple[int, float]], n: int) -> list[tuple[int, float]]:
    """Each value's mean with the n - 1 before it, fewer at the start."""
    values = [value for _, value in points]
    return [
        (x, float(np.mean(values[max(0, i + 1 - n) : i + 1]))) for i, (x, _) in enumerate(points)
    ]


def tradeoff_figure(
    points: Sequence[Mapping[str, float]],
    static: Mapping[str, float],
    title: str = "Faithfulness against stability",
) -> Figure:
    """FVE against Jaccard overlap at each bridge strength (`beta`), and the static SAE's point
    (`fve`, `jaccard`).
    """
    if not points:
        raise ValueError("tradeoff_figure needs at least one point; got none")
    figure, axes = _canvas(7.0, 4.5)
    ordered = sorted(points, key=lambda point: point["beta"])
    x, y = [p["jaccard"] for p in ordered], [p["fve"] for p in ordered]
    axes.plot(x, y, marker="o", label="TSAE, by bridge strength beta", **_style(0))
    for point in ordered:
        where = (point["jaccard"], point["fve"])
        axes.annotate(
            f"{point['beta']:g}", where, textcoords="offset points", xytext=(5, 6), fontsize=9
        )
    axes.plot(
        [static["jaccard"]],
        [static["fve"]],
        linestyle="",
        marker="s",
        markersize=8,
        color=COLOURS[1],
    )
    axes.annotate(
        "static SAE", (static["jaccard"], static["fve"]), textcoords="offset points", xytext=(8, 5)
    )
    axes.axhline(static["fve"], color=COLOURS[1], linestyle=":", linewidth=1)
    axes.axvline(2 * static["jaccard"], color=COLOURS[6], linestyle=":", linewidth=1)
    axes.annotate("twice the static overlap", (2 * static["jaccard"], min(y)), rotation=90, xytext=(-10, 0),
                  textcoords="offset points", fontsize=8, va="bottom")  # fmt: skip
    fve, overlap = definitions.label("fve"), definitions.label("jaccard")
    axes.set(xlabel=overlap, ylabel=f"{fve} on validation text", title=title)
    axes.legend(frameon=False, loc="lower left")
    return figure


def _need(given: Mapping, function: str, what: str) -> None:
    if not given:
        raise ValueError(f"{function} needs at least one {what}; got none")


LABELS = {
    "tsae": "TSAE",
    "static": "static SAE",
    "resid": "residual stream",
    "embedding": "embedding (layer 0)",
}
Row = Mapping[str, Any]


def accuracy_figure(rows: Sequence[Row], title: str = "Probes on held-out groups") -> Figure:
    """Accuracy by the number of features, one panel a task, one line a code; the bar is the 95 %
    interval.

    Rows as of `language.task_rows`. Raises ValueError where none is about all items.
    """
    kept = [row for row in rows if row["items"] == "all"]
    order = [*sorted({row["k"] for row in kept if row["k"] != "all"}), "all"]
    figure, panels = _panels(kept, title)
    for axes, task in panels:
        _lines(
            axes, [row for row in kept if row["task"] == task], lambda row: order.index(row["k"])
        )
        axes.set_xticks(range(len(order)), [str(k) for k in order])
        axes.set_xlabel("features the probe is given")
    return figure


def distance_figure(
    rows: Sequence[Row], k: int | str = 5, title: str = "Probes by distance"
) -> Figure:
    """Accuracy by distance in words, for probes on k features ("all": dense); one panel a task, one
    line a code.
    """
    kept = [row for row in rows if row["items"].startswith("distance ") and row["k"] == k]
    said = "all features" if k == "all" else f"{k} features"
    figure, panels = _panels(kept, f"{title}, {said}")
    for axes, task in panels:
        _lines(
            axes,
            [row for row in kept if row["task"] == task],
            lambda row: int(row["items"].split()[1]),
        )
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
        axes.errorbar(
            x,
            y,
            yerr=bars,
            label=label,
            marker="o",
            markersize=4,
            capsize=2,
            color=colour,
            linestyle=dash,
        )
    axes.legend(frameon=False, fontsize=8)


MARKERS = "osD^vP"


def offset_figure(
    profiles: Mapping[str, Float[np.ndarray, " offsets"]],
    offsets: Sequence[int],
    *,
    patch: Float[np.ndarray, " offsets"] | None = None,
    controls: Float[np.ndarray, "draws offsets"] | None = None,
    title: str = "Effect of an edit at one token on the verb's number",
) -> Figure:
    """Normalised effect at each offset to the verb, a line a model and mode; the 5-95 % band of the
    controls in grey.

    `patch`, the full patch at the same offset, is the ceiling (black, dotted). ValueError where
    nothing is drawn.
    """
    if not profiles or not len(offsets):
        raise ValueError("offset_figure needs at least one profile and one offset; got none")
    figure, axes = _canvas(7.5, 4.6)
    order = np.argsort(offsets)
    x = np.array(offsets)[order]
    if controls is not None:
        low, middle, high = np.nanquantile(controls[:, order], (0.05, 0.5, 0.95), axis=0)
        label = f"{len(controls)} matched random sets (5-95 %)"
        axes.fill_between(x, low, high, color="#999999", alpha=0.45, lw=0, label=label)
        axes.plot(x, middle, color="#666666", lw=1)
    if patch is not None:
        axes.plot(
            x,
            patch[order],
            color=COLOURS[6],
            linestyle=":",
            marker="x",
            label="full patch (residual)",
        )
    for row, (name, values) in enumerate(profiles.items()):
        axes.plot(
            x,
            values[order],
            marker=MARKERS[row % len(MARKERS)],
            markersize=5,
            label=name,
            **_style(row),
        )
    _finish(axes, "offset of the edited token to the verb (tokens)", title)
    axes.set_ylabel("effect / effect of the whole full patch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def steering_figure(
    curves: Mapping[str, Float[np.ndarray, " strengths"]],
    strengths: Sequence[float],
    *,
    controls: Float[np.ndarray, "draws strengths"] | None = None,
    title: str = "Steering the number features",
) -> Figure:
    """Change of logit(plural) - logit(singular) at the verb against the strength; the controls'
    5-95 % band in grey.

    Strength 1 adds the features' own difference between plural and singular subjects at every token
    from the subject on. ValueError where nothing is drawn.
    """
    if not curves:
        raise ValueError("steering_figure needs at least one curve; got none")
    figure, axes = _canvas(7.5, 4.6)
    x = np.array(strengths)
    if controls is not None:
        low, high = np.nanquantile(controls, (0.05, 0.95), axis=0)
        axes.fill_between(x, low, high, color="#999999", alpha=0.45, lw=0,
                          label=f"{len(controls)} matched random sets (5-95 %)")  # fmt: skip
    for row, (name, values) in enumerate(curves.items()):
        axes.plot(
            x, values, marker=MARKERS[row % len(MARKERS)], markersize=5, label=name, **_style(row)
        )
    _finish(axes, "strength (multiples of plural minus singular)", title)
    axes.axvline(0, color="#000000", lw=0.6)
    axes.set_ylabel("change of logit(plural) - logit(singular)")
    return figure


def duration_figure(
    points: Mapping[str, tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]],
    rhos: Mapping[str, str],
    title: str = "Does a feature's lifetime predict how long its effect lasts?",
) -> Figure:
    """A dot a feature: mean lifetime against the KL-weighted mean distance of its ablation's
    effect.
    """
    if not points:
        raise ValueError("duration_figure needs at least one model; got none")
    figure, axes = _canvas(7.5, 4.6)
    for row, (name, (life, lasts)) in enumerate(points.items()):
        axes.scatter(life, lasts, s=26, marker=MARKERS[row], facecolors="none", edgecolors=COLOURS[row], linewidths=1.3,
                     label=f"{name}, rank correlation {rhos[name]}")  # fmt: skip
    _finish(axes, "mean lifetime of the feature (tokens)", title)
    axes.set_ylabel("mean distance of its effect (tokens)")
    return figure


def _finish(axes: Axes, xlabel: str, title: str) -> None:
    axes.axhline(0, color="#000000", lw=0.6)
    axes.set_xlabel(xlabel)
    axes.set_title(title)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
