"""Figures: survival, stability, evolution of a document, transitions, training, probes, effects.

A function takes measured data and returns a matplotlib `Figure`, drawn without a display or global
state; `save_figure` writes it as PNG and SVG. Colours are Okabe and Ito's (2008), told apart in
every common colour blindness, and lines differ in dashes as well. Without data: ValueError.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence, Sized
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
from matplotlib.patches import FancyArrowPatch
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from networkx.utils import UnionFind

import probes
from metrics import Stability
from tsae_lab import definitions, files
from tsae_lab.measures.lifetimes import Evolution, Survival
from tsae_lab.sections import fonts
from tsae_lab.terminal import console

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP"
LABELS = {
    "tsae": "TSAE",
    "static": "static SAE",
    "resid": "residual stream",
    "embedding": "embedding (layer 0)",
}
DPI = 100  # one inch is 100 pixels: sizes below are those seen at 100 % in a browser
WORD_INCHES = 0.18  # width of a token's column
PART_NODES = 5  # features in one part of a transition graph
CELL_INCHES = (4.0, 2.6)  # width and height of one part
BEND = 0.15  # of an arrow: height of its arc by its length, times 2
Row = Mapping[str, Any]


# ---------------------------------------------------------------- every figure


def save_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.png and `stem`.svg; the two paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    for path in paths:
        save(figure, path)
    return paths


def save(figure: Figure, path: Path) -> None:
    """Writes a .png or .svg, atomically; the same figure gives the same bytes."""
    kind = path.suffix[1:]
    options: dict[str, Any] = {
        "dpi": DPI,
        "bbox_inches": "tight",
        "metadata": {"Date": None} if kind == "svg" else {},
    }

    def write(draft: Path) -> None:
        with (
            warnings.catch_warnings(),
            matplotlib.rc_context({"svg.hashsalt": "tsae", "svg.fonttype": "path"}),
        ):
            warnings.filterwarnings("ignore", message="Glyph")  # drawn as a box, and said
            figure.savefig(draft, format=kind, **options)

    if missing := fonts.fit_fonts(figure.findobj(Text)):
        said = f"{path}: no font here has {missing[:20]}, which are boxes in it"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    files.write_atomic(path, write)


def shown(word: str) -> str:
    """A token as an axis can show it: no blanks at the ends, other blanks, line ends as signs."""
    if not word.strip():
        return {"": "(empty)", " ": "␣"}.get(word, "↵" if "\n" in word else "␣")
    return "".join(c if c.isprintable() else " " for c in word.strip().replace("\n", "↵"))


def sheet(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many inches and its panels, line by line; options of `subplots`."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _canvas(width: float = 7.5, height: float = 4.6) -> tuple[Figure, Axes]:
    figure, (axes,) = sheet(width, height)
    return figure, axes


def stroke(row: int) -> dict[str, Any]:
    """Colour and dashes of the line number `row`."""
    return {"color": COLOURS[row % len(COLOURS)], "linestyle": DASHES[row % len(DASHES)]}


def require(items: Sized, figure: str, what: str) -> None:
    """ValueError where there is nothing to draw."""
    if not len(items):
        raise ValueError(f"{figure} needs at least one {what}; got none")


# ---------------------------------------------------------------- stability and lifetimes


def survival_figure(curves: Mapping[str, Survival]) -> Figure:
    """Kaplan-Meier curves with 95 % bands, one per model; the half-lives stand in the legend.

    The share is drawn by its logarithm, where a constant rate of ending is a straight line, down to
    one run in 100,000.
    """
    require(curves, "survival_figure", "curve")
    figure, axes = _canvas(7.0, 4.5)
    for row, (name, curve) in enumerate(curves.items()):
        label = f"{name} (half-life {curve.median_text} token{'s' * (curve.median_text != '1')})"
        axes.step(curve.t, curve.survival, where="post", label=label, **stroke(row))
        colour = stroke(row)["color"]
        axes.fill_between(
            curve.t, curve.low, curve.high, step="post", color=colour, alpha=0.2, lw=0
        )
    least = min(float(curve.survival[curve.survival > 0].min()) for curve in curves.values())
    axes.set(
        xlabel="t (tokens)",
        ylabel="share of runs longer than t",
        title="Lifetime of active features",
        yscale="log",
        xlim=(0, None),
        ylim=(max(least / 2, 1e-5), 1.15),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def stability_figure(scores: Mapping[str, Stability]) -> Figure:
    """TSS by lag, one colour per model: mean over features solid, weighted by activity hollow."""
    require(scores, "stability_figure", "score")
    figure, axes = _canvas(7.0, 4.5)
    ring: dict[str, Any] = {"linestyle": "", "marker": "o", "markerfacecolor": "none"}
    for row, (name, score) in enumerate(scores.items()):
        tss = "none" if score.macro is None else f"{score.macro:.3f}"
        label = f"{name} (TSS {tss}, {score.eligible_frac:.0%} of features eligible)"
        axes.plot(score.lags, score.macro_by_lag, marker="o", label=label, **stroke(row))
        axes.plot(score.lags, score.weighted_by_lag, **stroke(row) | ring)
    handles, labels = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color="grey", **ring))
    axes.legend(handles, [*labels, "hollow: weighted by activity"], frameon=False)
    axes.set(
        xlabel="lag (tokens)",
        ylabel="TSS (0 = chance, 1 = unchanging)",
        title="Temporal stability by lag",
        ylim=(0, None),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


# ---------------------------------------------------------------- one document


def evolution_figure(
    table: Evolution, words: Sequence[str], names: Mapping[int, str], title: str
) -> Figure:
    """Heat map of a document's leading features over its tokens, each row by its own maximum.

    One word per token; `names` labels features (otherwise their number). Seams of chunks are
    dashed. ValueError for another number of words or no active feature.
    """
    figure, axes = _token_axes(table, words, names)
    shade = table.acts / table.acts.max(axis=1, keepdims=True)
    image = axes.imshow(
        shade, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest"
    )
    figure.colorbar(image, ax=axes, label="activation / row maximum", pad=0.01, fraction=0.03)
    axes.set_title(title)
    return figure


def raster_figure(
    table: Evolution, words: Sequence[str], names: Mapping[int, str], title: str
) -> Figure:
    """Lifecycle raster: a bar per run of a feature, a triangle at its birth, a cross at its death.

    A run without a triangle or cross was cut by the seam of two chunks: its birth or death was not
    seen. ValueError as `evolution_figure`.
    """
    figure, axes = _token_axes(table, words, names)
    breaks = np.zeros(table.acts.shape[1], bool)
    breaks[table.seams] = True
    for row, on in enumerate(table.acts > 0):
        begins = np.flatnonzero(on & (~np.pad(on, (1, 0))[:-1] | breaks))
        ends = np.flatnonzero(on & (~np.pad(on, (0, 1))[1:] | np.pad(breaks, (0, 1))[1:])) + 1
        bars = [(a - 0.5, b - a) for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
        axes.broken_barh(bars, (row - 0.3, 0.6), color="#56B4E9", lw=0)
    marks = {
        "birth": (table.births, "^", "#000000"),
        "death (first token off)": (table.deaths, "x", "#D55E00"),
    }
    for label, (where, marker, colour) in marks.items():
        rows, tokens = np.nonzero(where)
        style: dict[str, Any] = {
            "marker": marker,
            "s": 22,
            "color": colour,
            "zorder": 3,
            "linewidths": 1.2,
        }
        axes.scatter(tokens, rows, label=label, **style)
    axes.set(ylim=(len(table.features) - 0.5, -0.5), xlim=(-0.5, table.acts.shape[1] - 0.5))
    above: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0, 1.0),
        "ncols": 2,
        "borderaxespad": 0.2,
    }
    axes.legend(frameon=False, **above)
    axes.set_title(title, loc="right")
    return figure


def _token_axes(
    table: Evolution, words: Sequence[str], names: Mapping[int, str]
) -> tuple[Figure, Axes]:
    n_rows, n_tokens = table.acts.shape
    if len(words) != n_tokens:
        raise ValueError(
            f"a document's figure needs one word per token ({n_tokens}); got {len(words)}"
        )
    if n_rows == 0:
        raise ValueError(
            f"a document's figure needs an active feature; got none in document {table.document}"
        )
    ticks = [shown(w) for w in words]
    height = 0.24 * max(n_rows, 8) + 1.2 + 0.09 * max(map(len, ticks))
    figure, axes = _canvas(max(WORD_INCHES * n_tokens + 3.0, 6.0), height)
    axes.set_xticks(range(n_tokens), ticks, rotation=90, fontsize=9, parse_math=False)
    labels = [fonts.numbered(names.get(int(f), str(int(f)))) for f in table.features]
    axes.set_yticks(range(n_rows), labels, fontsize=9, parse_math=False)
    axes.set(xlabel="token", ylabel="feature")
    for seam in table.seams:
        axes.axvline(seam - 0.5, color="#CC79A7", linestyle="--", lw=1)
    return figure, axes


# ---------------------------------------------------------------- transitions


def transition_figure(
    graph: nx.DiGraph, names: Mapping[int, str], *, max_edges: int = 30, title: str = "Transitions"
) -> Figure:
    """Up to `max_edges` edges of smallest p (then largest lift) of `transitions.graph`.

    An edge is left out where stronger ones have joined its features already, or would join more
    than `PART_NODES`: what is drawn is a forest whose edges do not cross. Without an edge the
    figure says so. `names` labels features (otherwise their number); arrows say `+lag, lift`.
    """
    drawn = _forest(graph, max_edges)
    trees = sorted(nx.weakly_connected_components(drawn), key=lambda tree: (-len(tree), min(tree)))
    columns = max(math.ceil(math.sqrt(len(trees))), 1)
    rows = max(-(-len(trees) // columns), 1)
    figure, axes = _canvas(max(CELL_INCHES[0] * columns, 6.0), max(CELL_INCHES[1] * rows, 3.0))
    axes.set_axis_off()
    axes.set(title=title, xlim=(-0.1, columns + 0.1), ylim=(-rows - 0.1, 0.1))
    centred: dict[str, Any] = {"ha": "center", "transform": axes.transAxes}
    if not trees:
        axes.text(0.5, 0.5, "no significant transition", va="center", **centred)
        return figure
    places: dict[int, tuple[float, float]] = {}
    for cell, tree in enumerate(trees):
        centre = (cell % columns + 0.5, -(cell // columns) - 0.5)
        places |= _places(drawn, sorted(tree), centre)
    node = {"boxstyle": "round,pad=0.3", "facecolor": "#FFFFFF", "edgecolor": COLOURS[0]}
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "bbox": node}
    boxes = {
        f: axes.text(x, y, fonts.numbered(names.get(f, str(f))), parse_math=False, **style)
        for f, (x, y) in places.items()
    }
    widest = max(lift for *_, lift in drawn.edges(data="lift"))
    for source, target, edge in drawn.edges(data=True):
        label = f"+{edge['lag']}, lift {edge['lift']:.1f}"
        width = 0.8 + 2.2 * edge["lift"] / widest
        _arrow(axes, boxes[source], boxes[target], label, width)
    note = "node: feature and its word;  arrow: +lag in tokens, lift = count / count by chance"
    axes.text(0.5, 0, note, va="bottom", fontsize=9, color="#555555", **centred)
    return figure


def _forest(graph: nx.DiGraph, max_edges: int) -> nx.DiGraph:
    """The strongest edges that close no circle and make no part of more than `PART_NODES` nodes."""
    ranked = sorted(graph.edges(data=True), key=lambda e: (e[2]["p_value"], -e[2]["lift"]))
    drawn, parts = nx.DiGraph(), UnionFind()
    for source, target, edge in ranked:
        a, b = parts[source], parts[target]
        if a == b or parts.weights[a] + parts.weights[b] > PART_NODES:
            continue
        drawn.add_edge(source, target, **edge)
        parts.union(a, b)
        if drawn.number_of_edges() == max_edges:
            break
    return drawn


def _places(
    drawn: nx.DiGraph, tree: Sequence[int], centre: tuple[float, float]
) -> dict[int, tuple[float, float]]:
    """A tree's nodes on a circle of diameter 0.72, in depth-first order: no edges cross."""
    first = max(tree, key=lambda node: drawn.out_degree(node) - drawn.in_degree(node))
    order = nx.dfs_preorder_nodes(drawn.to_undirected(as_view=True), first)
    circle = nx.circular_layout(nx.path_graph(order), scale=-0.36, center=centre)  # from the left
    return {node: (float(x), float(y)) for node, (x, y) in circle.items()}


def _arrow(axes: Axes, source: Text, target: Text, label: str, width: float) -> None:
    """A bent arrow from the edge of one node's box to that of another, its label in the middle."""
    begin, end = np.array(source.get_position()), np.array(target.get_position())
    arrow = FancyArrowPatch(
        tuple(begin),
        tuple(end),
        arrowstyle="-|>",
        connectionstyle=f"arc3,rad={BEND}",
        mutation_scale=10,
        patchA=source.get_bbox_patch(),
        patchB=target.get_bbox_patch(),
        shrinkA=2,
        shrinkB=2,
        lw=width,
        color="#555555",
        zorder=4,  # drawn after the boxes, whose places are known only then
    )
    axes.add_patch(arrow)
    across, up = (end - begin) * CELL_INCHES
    middle = (begin + end) / 2 + BEND / 2 * np.array([up, -across]) / CELL_INCHES  # of the arc
    halo = withStroke(linewidth=2, foreground="#FFFFFF")
    style: dict[str, Any] = {
        "ha": "center",
        "va": "center",
        "fontsize": 8,
        "color": COLOURS[1],
        "zorder": 5,
    }
    axes.text(middle[0], middle[1], label, path_effects=[halo], **style)


# ---------------------------------------------------------------- training


PANELS = {
    "fve": f"{definitions.label('fve')} of the batch",
    "loss": "squared error",
    "l0": definitions.label("l0"),
    "beta": "beta, strength of the memory",
}


def training_figure(lines: Sequence[Row], *, pieces: int = 1) -> Figure:
    """FVE, loss, L0 and beta by step: one colour per text and model, one line per seed.

    `lines` are those of log.jsonl. FVE and loss are means over a step and the `pieces - 1` before
    it: the pieces of a sequence are not equally hard.
    """
    require(lines, "training_figure", "line of the log")
    figure, panels = sheet(10.0, 6.4, rows=2, columns=2)
    figure.suptitle("Training")
    groups = list(dict.fromkeys((line["dataset"], line["model"]) for line in lines))
    for axes, (key, name) in zip(panels, PANELS.items(), strict=True):
        n = pieces if key in ("fve", "loss") else 1
        for row, (dataset, model) in enumerate(groups):
            ours = [line for line in lines if (line["dataset"], line["model"]) == (dataset, model)]
            label = f"{dataset}, {LABELS[model]}"
            for seed in dict.fromkeys(line["seed"] for line in ours):
                steps, values = _curve([line for line in ours if line["seed"] == seed], key, n)
                axes.plot(steps, values, label=label, linewidth=1.2, alpha=0.8, **stroke(row))
                label = None  # one entry of the legend for all seeds
        axes.set(xlabel="step", ylabel=name)
    panels[1].set_yscale("log")
    panels[0].set_ylim(bottom=max(0.0, min(line["fve"] for line in lines[len(lines) // 20 :])))
    panels[0].legend(frameon=False)
    return figure


def _curve(lines: Sequence[Row], key: str, n: int) -> tuple[list[int], list[float]]:
    """Steps, and each step's value as the mean with those of the n - 1 before it (start: fewer)."""
    points = sorted((line["step"], line[key]) for line in lines)
    values = [value for _, value in points]
    means = [float(np.mean(values[max(0, i + 1 - n) : i + 1])) for i in range(len(values))]
    return [step for step, _ in points], means


# ---------------------------------------------------------------- probes


def accuracy_figure(rows: Sequence[Row]) -> Figure:
    """Accuracy with its 95 % interval by number of features; one panel per task, one line per code.

    Rows as of `probes.task_rows`; those about all items are drawn.
    """
    drawn = [row for row in rows if row["items"] == "all"]
    order = [*sorted({row["k"] for row in drawn if row["k"] != "all"}), "all"]
    figure, panels = _panels(drawn, "Probes on held-out groups", lambda row: order.index(row["k"]))
    for axes in panels:
        axes.set_xticks(range(len(order)), [str(k) for k in order])
        axes.set_xlabel("features the probe is given")
    return figure


def distance_figure(rows: Sequence[Row], k: int | str) -> Figure:
    """Accuracy by distance in words of probes on k features ("all": dense), drawn likewise."""
    drawn = [row for row in rows if row["items"].startswith("distance ") and row["k"] == k]
    title = f"Probes by distance, {'all' if k == 'all' else k} features"
    figure, panels = _panels(drawn, title, lambda row: int(row["items"].split()[1]))
    for axes in panels:
        axes.set_xlabel("words to the read-out")
    return figure


def _panels(
    rows: Sequence[Row], title: str, place: Callable[[Row], float]
) -> tuple[Figure, list[Axes]]:
    """One panel per task, one line per code, with `place` as the x of a row; no differences,
    features by the raw difference of class means.
    """
    rows = [r for r in rows if r["model"] != probes.DIFFERENCE and r["chosen"] in ("", "raw")]
    require(rows, "a figure of probes", "row")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    columns = min(4, len(tasks))
    n_lines = math.ceil(len(tasks) / columns)
    shape: dict[str, Any] = {"rows": n_lines, "columns": columns, "sharey": True}
    figure, panels = sheet(3.4 * columns + 0.8, 3.7 * n_lines + 0.3, **shape)
    while len(panels) > len(tasks):
        panels.pop().remove()
    figure.suptitle(title)
    for axes, task in zip(panels, tasks, strict=True):
        axes.axhline(0.5, color="#888888", linewidth=0.8, linestyle=":")
        _accuracy_lines(axes, [row for row in rows if row["task"] == task], place)
        axes.set(title=task, ylim=(0.35, 1.02))
        axes.legend(frameon=False, fontsize=8)
    for axes in panels[::columns]:
        axes.set_ylabel("accuracy")
    return figure, panels


def _accuracy_lines(axes: Axes, rows: Sequence[Row], place: Callable[[Row], float]) -> None:
    for i, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        ours = sorted((row for row in rows if row["model"] == model), key=place)
        columns = [[r[key] for r in ours] for key in ("accuracy", "low", "high")]
        y, low, high = np.array(columns, float)  # no interval: NaN, no bar
        bars = np.maximum(0.0, [y - low, high - y])
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 2, **stroke(i)}
        axes.errorbar([place(r) for r in ours], y, bars, label=LABELS.get(model, model), **style)


# ---------------------------------------------------------------- effects


def offset_figure(
    profiles: Mapping[str, Float[np.ndarray, " offsets"]],
    offsets: Sequence[int],
    *,
    patch: Float[np.ndarray, " offsets"] | None = None,
    controls: Float[np.ndarray, "draws offsets"] | None = None,
) -> Figure:
    """Normalised effect at each offset to the verb, one line per model and mode.

    `patch`, the full patch at the same offset, is the ceiling (black, dotted); the 5-95 % band of
    the controls is grey.
    """
    require(profiles, "offset_figure", "profile")
    require(offsets, "offset_figure", "offset")
    figure, axes = _canvas()
    order = np.argsort(offsets)
    x = np.array(offsets)[order]
    if controls is not None:
        middle = _control_band(axes, x, controls[:, order])
        axes.plot(x, middle, color="#666666", lw=1)
    if patch is not None:
        dotted: dict[str, Any] = {"color": COLOURS[6], "linestyle": ":", "marker": "x"}
        axes.plot(x, patch[order], label="full patch (residual)", **dotted)
    for row, (name, values) in enumerate(profiles.items()):
        axes.plot(x, values[order], label=name, **_line_style(row))
    axes.set(
        xlabel="offset of the edited token to the verb (tokens)",
        ylabel="effect / effect of the whole full patch",
        title="Effect of an edit at one token on the verb's number",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _ruled(axes)
    return figure


def steering_figure(
    curves: Mapping[str, Float[np.ndarray, " strengths"]],
    strengths: Sequence[float],
    *,
    controls: Float[np.ndarray, "draws strengths"] | None = None,
) -> Figure:
    """Change of logit(plural) - logit(singular) at the verb against the strength; controls in grey.

    Strength 1 adds the features' own difference between plural and singular subjects at every token
    from the subject on.
    """
    require(curves, "steering_figure", "curve")
    figure, axes = _canvas()
    if controls is not None:
        _control_band(axes, np.array(strengths), controls)
    for row, (name, values) in enumerate(curves.items()):
        axes.plot(strengths, values, label=name, **_line_style(row))
    axes.axvline(0, color="#000000", lw=0.6)
    axes.set(
        xlabel="strength (multiples of plural minus singular)",
        ylabel="change of logit(plural) - logit(singular)",
        title="Steering the number features",
    )
    _ruled(axes)
    return figure


def duration_figure(
    points: Mapping[str, tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]],
    rhos: Mapping[str, str],
) -> Figure:
    """One dot per feature: its mean lifetime, and the KL-weighted mean distance of its effect."""
    require(points, "duration_figure", "model")
    figure, axes = _canvas()
    for row, (name, (life, distance)) in enumerate(points.items()):
        style: dict[str, Any] = {
            "marker": MARKERS[row],
            "s": 26,
            "facecolors": "none",
            "linewidths": 1.3,
        }
        label = f"{name}, rank correlation {rhos[name]}"
        axes.scatter(life, distance, edgecolors=COLOURS[row], label=label, **style)
    axes.set(
        xlabel="mean lifetime of the feature (tokens)",
        ylabel="mean distance of its effect (tokens)",
        title="Does a feature's lifetime predict how long its effect lasts?",
    )
    _ruled(axes)
    return figure


def absorption_figure(rows: Sequence[Row]) -> Figure:
    """Per letter, the share of tokens that are absorbed in full, and the mean share in part."""
    require(rows, "absorption_figure", "letter")
    figure, axes = _canvas()
    for row, (name, label) in enumerate((("full", "in full"), ("part", "in part, mean"))):
        values = [line[name] for line in rows]
        axes.plot(range(len(rows)), values, MARKERS[row], color=COLOURS[row], label=label)
    axes.set_xticks(range(len(rows)), [line["letter"] for line in rows])
    axes.set(xlabel="letter that a word begins with", ylabel="absorbed", ylim=(-0.03, 1.03),
             title="Absorption of first letters")  # fmt: skip
    _ruled(axes)
    return figure


def _line_style(row: int) -> dict[str, Any]:
    return {"marker": MARKERS[row % len(MARKERS)], "markersize": 5, **stroke(row)}


def _control_band(axes: Axes, x: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Draws the 5-95 % band of the rows of `controls`; their medians come back."""
    low, middle, high = np.nanquantile(controls, (0.05, 0.5, 0.95), axis=0)
    label = f"{len(controls)} matched random sets (5-95 %)"
    axes.fill_between(x, low, high, color="#999999", alpha=0.45, lw=0, label=label)
    return middle


def _ruled(axes: Axes) -> None:
    axes.axhline(0, color="#000000", lw=0.6)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
