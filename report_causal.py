"""Figures of causal effects: effect against offset with the band of its controls, and against steering strength."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from report import COLOURS, _canvas, _style

MARKERS = "osD^vP"


def offset_figure(
    profiles: Mapping[str, Float[np.ndarray, " offsets"]],
    offsets: Sequence[int],
    *,
    patch: Float[np.ndarray, " offsets"] | None = None,
    controls: Float[np.ndarray, "draws offsets"] | None = None,
    title: str = "Effect of an edit at one token on the verb's number",
) -> Figure:
    """Normalised effect at each offset to the verb, a line a model and mode; the 5-95 % band of the controls in grey.

    `patch`, the full patch at the same offset, is the ceiling (black, dotted). ValueError where nothing is drawn.
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
        axes.plot(x, patch[order], color=COLOURS[6], linestyle=":", marker="x", label="full patch (residual)")
    for row, (name, values) in enumerate(profiles.items()):
        axes.plot(x, values[order], marker=MARKERS[row % len(MARKERS)], markersize=5, label=name, **_style(row))
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
    """Change of logit(plural) - logit(singular) at the verb against the strength; the controls' 5-95 % band in grey.

    Strength 1 adds the features' own difference between plural and singular subjects at every token from the subject
    on. ValueError where nothing is drawn.
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
        axes.plot(x, values, marker=MARKERS[row % len(MARKERS)], markersize=5, label=name, **_style(row))
    _finish(axes, "strength (multiples of plural minus singular)", title)
    axes.axvline(0, color="#000000", lw=0.6)
    axes.set_ylabel("change of logit(plural) - logit(singular)")
    return figure


def duration_figure(
    points: Mapping[str, tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]],
    rhos: Mapping[str, str],
    title: str = "Does a feature's lifetime predict how long its effect lasts?",
) -> Figure:
    """A dot a feature: mean lifetime against the KL-weighted mean distance of its ablation's effect."""
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
