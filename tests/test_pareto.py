"""The pictures of run_4: the front, axes without outliers, labels that cover nothing."""

# None, or another type, is what no test here gets
# pyright: reportOptionalMemberAccess=false, reportUnhashable=false

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.transforms import Bbox

from tsae_lab.sections import pareto


def row(name, **values):
    return {"system": name} | values | {f"{key}_stderr": 0.001 for key in values}


def texts(figure) -> dict[str, Bbox]:
    figure.draw_without_rendering()
    return {note.get_text(): note.get_window_extent() for note in figure.axes[0].texts}


def test_the_front_holds_what_nothing_beats_in_both_measures():
    rows = [row("a", fve=0.9, births=3.0), row("b", fve=0.8, births=2.0),
            row("c", fve=0.7, births=2.5), row("d", fve=0.5, births=None)]  # fmt: skip
    assert pareto.pareto_front(rows, "births", "fve") == ["a", "b"]
    figure = pareto.pareto_figure(rows, "births", "fve", "fronts")
    assert figure.axes[0].get_title() == "fronts (filled: on the front)"
    assert texts(figure).keys() == {"a", "b", "c"}
    assert pareto.pareto_figure(rows[3:], "births", "fve", "nothing") is None


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.data())
def test_an_axis_shows_what_is_needed_and_three_quarters_of_each_rounds_values(values, data):
    needed = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    low, high = pareto.shown_span(values, needed)
    assert low in values
    assert high in values
    assert low <= min(needed) <= max(needed) <= high
    if (low, high) != (min(values), max(values)):
        assert high - low <= (max(values) - min(values)) / 2


def test_an_outlier_that_is_not_on_the_front_is_an_arrow_with_its_value():
    assert pareto.shown_span([1.0, 2.0, 3.0, 4.0, 90.0, 80.0, 3.0, 2.0], [1.0]) == (1, 4)
    assert pareto.shown_span([1.0, 2.0, 3.0, 4.0, 90.0, 3.0, 2.0, 1.0], [90.0]) == (1, 90)
    rows = [row(f"s{i}", tss_mean=0.05 + 0.001 * i, delta_ce=0.1 + 0.003 * i) for i in range(8)]
    figure = pareto.pareto_figure(
        [*rows, row("relu", tss_mean=0.05, delta_ce=2.345)], "tss_mean", "delta_ce", "t"
    )
    assert "relu (2.35)" in texts(figure)
    bottom, top = figure.axes[0].get_ylim()  # upside down: low is good
    assert top < 0.1 < bottom < 0.2
    assert "v" in {line.get_marker() for line in figure.axes[0].lines}


def test_an_outlier_on_the_front_is_an_arrow_too_unless_it_is_ours():
    rows = [row(f"s{i}", tss_mean=0.05 + 0.001 * i, fve=0.8 - 0.01 * i) for i in range(8)]
    far = {"tss_mean": 0.9, "fve": 0.75}
    for name, most in (("posthoc_ema", 0.07), ("tsae", 1.0)):
        figure = pareto.pareto_figure(
            [row("static", tss_mean=0.05, fve=0.8), *rows, row(name, **far)], "tss_mean", "fve", "t"
        )
        assert name in pareto.pareto_front([*rows, row(name, **far)], "tss_mean", "fve")
        assert 0.05 < figure.axes[0].get_xlim()[1] < most
        assert ("posthoc_ema (0.9)" in texts(figure)) == (name == "posthoc_ema")


@pytest.mark.parametrize("n", [5, 17])
def test_labels_cover_neither_one_another_nor_a_point(n):
    rng = np.random.default_rng(n)
    rows = [
        row(f"system_{i}", tss_mean=x, fve=y)
        for i, (x, y) in enumerate(0.05 + 0.02 * rng.random((n, 2)) ** 3)
    ]
    figure = pareto.pareto_figure(rows, "tss_mean", "fve", "crowded")
    boxes = texts(figure)
    assert len(boxes) == n
    for first, second in itertools.combinations(boxes.values(), 2):
        both = Bbox.intersection(first, second)
        assert both is None or both.width * both.height < 2
    for r in rows:
        x, y = figure.axes[0].transData.transform((r["tss_mean"], r["fve"]))
        assert not any(box.contains(x, y) for box in boxes.values())
