"""Probes: planted features are found, controls are at chance, no group leaks; and the real model
knows the tasks.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from threadpoolctl import threadpool_info

import probes
from probes import Item
from tsae_lab.data import tasks
from tsae_lab.sections import figures


def planted(
    n_groups: int = 20,
    n_each: int = 8,
    width: int = 30,
    at: Sequence[int] = (7,),
    strength: float = 3.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Noise, in which features `at` carry the label; balanced within every group."""
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], n_groups * n_each // 2)
    features = rng.normal(size=(len(labels), width))
    features[:, list(at)] += strength * (2 * labels - 1)[:, None] / 2
    return features, labels, [f"g{i // n_each}" for i in range(len(labels))]


def as_codes(features: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array(np.maximum(features, 0))


# ------------------------------------------------------------------------------------------- splits


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(2, 4), st.integers(0, 5))
def test_folds_keep_groups_whole_and_even(members, n_folds, seed):
    groups = [str(i) for i in members]
    n = len(set(groups))
    labels = np.arange(len(groups)) % 2
    if n < n_folds:
        with pytest.raises(ValueError, match="folds needs 2 <= n_folds <= groups"):
            probes.folds(groups, labels, n_folds, seed=seed)
        return
    fold = probes.folds(groups, labels, n_folds, seed=seed)
    sizes = [
        len({g for g, f in zip(groups, fold, strict=True) if f == at}) for at in range(n_folds)
    ]
    assert sum(sizes) == n
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(0, 9))
def test_groups_of_one_class_are_dealt_out_class_by_class(n_folds, seed):
    groups = [f"{label}{i}" for label in (0, 1) for i in range(n_folds * 2)]
    labels = np.array([int(group[0]) for group in groups])
    fold = probes.folds(groups, labels, n_folds, seed=seed)
    assert all((labels[fold == at] == 0).sum() == 2 for at in range(n_folds))


# ------------------------------------------------------------------------------------------- probes


@settings(deadline=None)
@given(strategies.tensors(8, 5, elements=strategies.grid), st.integers(1, 5))
def test_chosen_features_have_the_largest_difference_of_class_means(features, k):
    labels = np.arange(8) % 2
    dense = features.double().numpy()
    loops = [abs(sum(dense[1::2, j]) / 4 - sum(dense[::2, j]) / 4) for j in range(5)]
    expected = sorted(range(5), key=lambda j: (-loops[j], j))[:k]
    assert list(probes.chosen(dense, labels, k)) == expected
    assert probes.chosen(sparse.csr_array(dense), labels, k) == probes.chosen(dense, labels, k)


@settings(deadline=None)
@given(strategies.tensors(8, 5, elements=strategies.grid), st.integers(1, 5))
def test_the_standardised_difference_is_in_deviations_and_blind_to_scale(features, k):
    labels = np.arange(8) % 2
    dense = features.double().numpy()
    loops = []
    for column in dense.T.tolist():
        mean = sum(column) / 8
        spread = math.sqrt(sum((x - mean) ** 2 for x in column) / 8)
        difference = abs(sum(column[1::2]) - sum(column[::2])) / 4
        loops.append(difference / spread if spread else 0.0)
    picked = probes.chosen(dense, labels, k, "standardised")
    assert len(set(picked)) == k
    least = min(loops[j] for j in picked)
    assert all(loops[j] <= least + 1e-9 for j in range(5) if j not in picked)
    scaled = dense * 2.0 ** np.array([0, 20, -20, 3, -1])
    assert probes.chosen(scaled, labels, k, "standardised") == picked
    assert probes.chosen(sparse.csr_array(dense), labels, k, "standardised") == picked
    assert probes.chosen(dense.astype(np.float32), labels, k, "standardised") == picked


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_the_rules_rank_a_quiet_telling_feature_and_a_loud_noisy_one_in_opposite_order(form):
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 200)
    groups = [f"g{i // 20}" for i in range(400)]
    codes = np.maximum(rng.normal(size=(400, 12)), 0)
    codes[:, 3] = 0.2 * labels * (rng.random(400) < 0.7)  # rare: on at seven of ten of one class
    codes[:, 8] = rng.exponential(20 + 5 * labels)  # large raw difference, a quarter deviation
    assert probes.chosen(form(codes), labels, 1) == (8,)
    by_rule = {}
    for by in probes.CHOICES:
        picked = probes.probe(form(codes), labels, groups, k=1, by=by)
        assert set(picked.features) == {(8,) if by == "raw" else (3,)}
        by_rule[by] = picked.correct.mean()
    assert by_rule["raw"] < 0.65
    assert min(by_rule["standardised"], by_rule["l1"]) > 0.8


def test_an_l1_path_takes_what_adds_to_a_feature_and_not_its_copy():
    rng = np.random.default_rng(1)
    labels = np.tile([0, 1], 300)
    sign = 2.0 * labels - 1
    features = rng.normal(size=(600, 10))
    features[:, 2] = sign + 0.8 * rng.normal(size=600)
    features[:, 5] = features[:, 2] + 0.05 * rng.normal(size=600)  # the copy
    features[:, 7] = sign + 1.6 * rng.normal(size=600)  # weaker, and of its own
    assert set(probes.chosen(features, labels, 2, "standardised")) == {2, 5}
    picked = set(probes.chosen(features, labels, 2, "l1"))
    assert 7 in picked
    assert len(picked & {2, 5}) == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000), st.booleans())
def test_the_first_feature_of_an_l1_path_has_the_steepest_loss_at_zero(seed, is_sparse):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % 2)
    features = rng.normal(size=(60, 9)) + 0.3 * labels[:, None]
    codes = as_codes(features) if is_sparse else features
    rows = codes.toarray() if is_sparse else (features - features.mean(0)) / features.std(0)
    rows = rows / np.sqrt((rows**2).mean(0))
    slopes = [abs(sum((labels[i] - 0.5) * rows[i, j] for i in range(60))) for j in range(9)]
    (first,) = probes.chosen(codes, labels, 1, "l1")
    assert slopes[first] >= 0.93 * max(slopes)  # the path is followed in steps of 5 %


@settings(deadline=None, max_examples=25)
@given(strategies.tensors(8, 5, elements=strategies.grid), st.integers(1, 5))
def test_an_l1_path_gives_k_features_of_any_codes_the_same_each_time(features, k):
    labels = np.arange(8) % 2
    dense = features.double().numpy()
    picked = probes.chosen(dense, labels, k, "l1")
    assert len(set(picked)) == k
    assert set(picked) <= set(range(5))
    assert probes.chosen(dense, labels, k, "l1") == picked
    wide = sparse.csr_array(dense)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    assert len(set(probes.chosen(wide, labels, k, "l1"))) == k


@pytest.mark.parametrize("by", probes.CHOICES)
def test_features_are_chosen_on_the_training_items_alone(by):
    features, labels, groups = planted(at=(7, 3), strength=1.0)
    before = probes.probe(features, labels, groups, k=2, by=by)
    fold = probes.folds(groups, labels, 5)
    tested, trained = features.copy(), features.copy()
    tested[fold == 2, 11] += 9.0 * labels[fold == 2]  # tells all, but only where it is tested
    trained[fold != 2, 11] += 9.0 * labels[fold != 2]
    picked = {
        name: probes.probe(x, labels, groups, k=2, by=by).features[2]
        for name, x in (("tested", tested), ("trained", trained))
    }
    assert picked["tested"] == before.features[2]
    assert 11 in picked["trained"]


@pytest.mark.parametrize("form", [np.asarray, as_codes])
def test_a_planted_feature_is_found_in_every_fold_and_predicts(form):
    features, labels, groups = planted()
    found = probes.probe(form(features), labels, groups, k=1)
    assert found.features == ((7,),) * 5
    assert found.correct.mean() > 0.8
    assert set(found.strengths) <= set(probes.STRENGTHS)


def test_more_features_help_where_several_carry_the_label():
    features, labels, groups = planted(at=(1, 4, 9, 12, 20), strength=1.2)
    one, five, all_ = (
        probes.probe(features, labels, groups, k=k).correct.mean() for k in (1, 5, None)
    )
    assert one + 0.05 < five
    assert abs(five - all_) < 0.1


def test_a_probe_on_one_feature_agrees_with_the_best_threshold():
    features, labels, groups = planted(n_groups=40)
    found = probes.probe(features, labels, groups, k=1).correct.mean()
    column = features[:, 7]
    best = max(np.mean((column > t) == labels) for t in np.linspace(-2, 2, 81))
    assert best - 0.03 <= found <= best


def test_group_labels_are_one_per_group_as_frequent_as_the_labels_and_at_chance():
    features, labels, groups = planted(n_groups=100)
    for share in (0.5, 0.25):
        ours = labels * (np.arange(800) % 16 < 32 * share)
        control = probes.group_labels(ours, groups, seed=1)
        assert all(len(set(control[i : i + 8])) == 1 for i in range(0, 800, 8))
        assert control.mean() == pytest.approx(ours.mean(), abs=0.01)
    control = probes.group_labels(labels, groups, seed=1)
    for k in (1, 5, None):
        assert 0.4 <= probes.probe(features, control, groups, k=k).correct.mean() <= 0.6
    assert set(probes.group_labels(np.ones(4, int), list("aabb"))) == {0, 1}  # a probe needs both


def named_groups() -> tuple[np.ndarray, tuple[Item, ...]]:
    """Features that name the group of each of 240 items, and nothing else."""
    features = np.repeat(np.eye(40), 6, axis=0)
    items = tuple(
        Item(text="a", begin=0, end=1, unit="u", label=i % 2, group=f"g{i // 6}")
        for i in range(240)
    )
    return features, items


def test_the_control_sees_a_leaky_split_and_the_recurring_one_what_is_learnt_by_heart(monkeypatch):
    features, items = named_groups()
    assert probes.scores(features, items, k=None, control="groups").mean() <= 0.6
    assert probes.scores(features, items, k=None, control="recurring").mean() >= 0.95

    def leaky(groups, _, n_folds, *, seed=0):
        return np.random.default_rng(seed).integers(0, n_folds, len(groups))

    shuffled = np.random.default_rng(0).permutation([item.label for item in items])
    monkeypatch.setattr(probes, "folds", leaky)
    assert probes.scores(features, items, k=None, control="groups").mean() >= 0.95
    by_item = probes.probe(features, shuffled, [item.group for item in items]).correct.mean()
    assert by_item <= 0.6  # labels drawn per item, as before, see nothing


@pytest.mark.parametrize("few", [False, True])
def test_what_belongs_to_a_group_is_of_no_use_on_held_out_groups(few):
    """A feature a group names the label exactly: a split by items would score 1."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.permutation([0, 1] * 20), 6)
    features = np.repeat(np.eye(40), 6, axis=0)
    groups = [str(i // 6) for i in range(240)]
    assert probes.probe(features, labels, groups, few=few).correct.mean() <= 0.55
    by_item = probes.probe(features, labels, [str(i) for i in range(240)]).correct.mean()
    assert by_item == 1.0


def test_with_few_an_item_is_tested_by_all_folds_but_its_own():
    features, labels, groups = planted(strength=1.5)
    correct = probes.probe(features, labels, groups, k=1, n_folds=4, few=True).correct
    assert set(np.round(correct * 3, 9)) <= {0, 1, 2, 3}
    assert len(set(np.round(correct * 3, 9))) > 2


def test_constant_features_are_at_chance_exactly():
    _, labels, groups = planted()
    for features in (
        np.ones((160, 3)),
        sparse.csr_array(np.ones((160, 3))),
        sparse.csr_array((160, 3)),
    ):
        assert probes.probe(features, labels, groups).correct.mean() == 0.5
        for by in probes.CHOICES:
            constant = probes.probe(features, labels, groups, k=2, by=by)
            assert set(constant.features) == {(0, 1)}
            assert constant.correct.mean() == 0.5


def test_a_probe_is_the_same_each_time_and_writes_to_nothing():
    features, labels, groups = planted()
    before = features.copy(), labels.copy(), list(groups)
    ours, again = (probes.probe(features, labels, groups, k=2).correct for _ in range(2))
    assert np.array_equal(ours, again)
    assert np.array_equal(before[0], features)
    assert np.array_equal(before[1], labels)
    assert before[2] == groups


def test_bad_input_to_a_probe_is_refused():
    features, labels, groups = planted()
    with pytest.raises(ValueError, match="as many rows of features as labels and groups; got"):
        probes.probe(features[1:], labels, groups)
    with pytest.raises(ValueError, match=r"items of both classes, 0 and 1; got \[1\]"):
        probes.probe(features, np.ones_like(labels), groups)
    with pytest.raises(ValueError, match="1 <= k <= features; got k=31, 30 features"):
        probes.probe(features, labels, groups, k=31)
    with pytest.raises(ValueError, match="finite features"):
        probes.probe(np.where(features > 2, np.nan, features), labels, groups)
    with pytest.raises(ValueError, match="training split has one class only"):
        probes.probe(features[:4], np.array([0, 0, 1, 1]), ["a", "a", "b", "b"], n_folds=2)


# ----------------------------------------------------------------------------------------- accuracy


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40))
def test_accuracy_is_the_mean_within_an_interval_over_groups(drawn):
    groups, right = [str(g) for g, _ in drawn], np.array([float(r) for _, r in drawn])
    found = probes.accuracy(right, groups, n_boot=200)
    assert found.value == pytest.approx(right.mean())
    if len(set(groups)) < 2:
        assert found.low is found.high is None
    else:
        assert 0 <= found.low <= found.high <= 1
    assert (found.n_items, found.n_groups) == (len(drawn), len(set(groups)))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        rates = rng.beta(7, 3, size=60)
        right = rng.binomial(1, np.repeat(rates, 5)).astype(float)
        found = probes.accuracy(right, [str(i // 5) for i in range(300)], n_boot=300)
        hits += found.low <= 0.7 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_intervals_cover_an_accuracy_and_a_difference_of_correlated_twins_as_often_as_they_say():
    rng, n_runs, n_pairs = np.random.default_rng(0), 500, 60
    groups = [str(i // 2) for i in range(2 * n_pairs)]

    def twins(rate):
        """Right or wrong, with a correlation of 0.8 between the two of a pair."""
        alone, both = rng.random((n_pairs, 2)) < rate, rng.random((n_pairs, 1)) < rate
        return np.where(rng.random((n_pairs, 1)) < 0.8, both, alone).astype(float).ravel()

    covered = {"accuracy": 0, "difference": 0}
    for _ in range(n_runs):
        first, second = twins(0.7), twins(0.6)
        own = probes.accuracy(first, groups, n_boot=200)
        apart = probes.accuracy(first - second, groups, least=-1.0, n_boot=200)
        covered["accuracy"] += own.low <= 0.7 <= own.high
        covered["difference"] += apart.low <= 0.1 <= apart.high
    assert all(0.92 <= n / n_runs <= 0.98 for n in covered.values())


def test_the_standard_error_is_that_of_the_mean_of_independent_groups():
    right = np.random.default_rng(0).binomial(1, 0.7, size=400).astype(float)
    found = probes.accuracy(right, [str(i) for i in range(400)])
    assert found.stderr == pytest.approx(right.std() / 20, rel=0.1)
    single = probes.accuracy(right, ["a"] * 400)
    assert (single.stderr, single.low, single.high) == (None, None, None)


def test_a_probe_is_fitted_on_one_blas_thread_and_leaves_the_others_as_they_were(monkeypatch):
    def threads():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before, during, regression = threads(), [], probes._regression

    def watched(*arguments):
        during.append(threads())
        return regression(*arguments)

    monkeypatch.setattr(probes, "_regression", watched)
    rng = np.random.default_rng(0)
    probes.probe(rng.normal(size=(24, 3)), np.arange(24) % 2, [str(i // 2) for i in range(24)])
    assert during
    assert all(n == 1 for seen in during for n in seen)
    assert threads() == before


def test_baselines_find_the_frequent_label_and_the_word_that_tells_it():
    def item(i: int, told: str) -> Item:
        text = f"w{i} {told} x yes"
        return Item(text=text, begin=0, end=text.index(" yes"), unit="u", label=int(i % 3 > 0),
                    group=str(i))  # fmt: skip

    items = [item(i, ("he", "she", "she")[i % 3]) for i in range(120)]
    found = probes.baselines(items)
    scored = {name: probes.scores(code, items, k=None).mean() for name, code in found.items()}
    assert scored == {"majority": pytest.approx(2 / 3), "bag of words": 1.0}
    blind = [replace(one, text=one.text.replace("she", "he"), end=one.end - (i % 3 > 0))
             for i, one in enumerate(items)]  # fmt: skip
    after = probes.scores(probes.baselines(blind)["bag of words"], blind, k=None).mean()
    assert after == pytest.approx(2 / 3, abs=0.05)


def test_a_bag_of_two_texts_is_their_difference():
    items = [Item(text="a b", begin=0, end=3, unit="u", label=0, group="g", other=("a c", 0, 1))]
    words = probes.baselines(items)["bag of words"]
    assert words.sum() == 1  # "b": what is after the read-out word does not count


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        probes.accuracy(np.zeros(0), [])


def toy_items() -> tuple[Item, ...]:
    made = []
    for i in range(160):
        congruent = None if i % 40 < 20 else bool(i % 4 < 2)
        rest = {
            "unit": "ab"[i % 40 < 20],
            "label": i % 2,
            "group": f"g{i // 8}",
            "congruent": congruent,
        }
        made.append(Item(text=f"a b {i}", begin=0, end=1, distance=1 + i % 40 // 20, **rest))
    return tuple(made)


def test_scores_train_one_probe_a_unit():
    features, _, _ = planted()
    features[:80:2, 7] *= -1  # an arbitrary change: units must not see one another
    items = toy_items()
    found = probes.scores(features, items, k=1)
    for unit in "ab":
        at = [i for i, item in enumerate(items) if item.unit == unit]
        labels, groups = np.array([items[i].label for i in at]), [items[i].group for i in at]
        assert np.array_equal(found[at], probes.probe(features[at], labels, groups, k=1).correct)
    with pytest.raises(
        ValueError, match=r"unit 'b' \(20 items\): a probe needs items of both classes"
    ):
        probes.scores(features[:20], [replace(item, label=0) for item in items[:20]], k=1)


def test_breakdown_parts_partition_the_items():
    parts = probes.breakdown(toy_items())
    assert parts["all"].all()
    assert (parts["a"] ^ parts["b"]).all()
    assert np.array_equal(parts["congruent"] | parts["incongruent"], parts["attractor"])
    assert (parts["distance 1"] ^ parts["distance 2"]).all()


# ------------------------------------------------------------------------------- tables and figures


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    features, labels, _ = planted()
    codes = as_codes(features)
    task = probes.Task(name="toy", items=toy_items())
    found = {
        "embedding": np.zeros((160, 2)),
        "tsae": codes,
        "static": sparse.csr_array(codes[:, ::-1]),
        "resid": features,
    }
    assert np.array_equal(labels, [item.label for item in task.items])
    return probes.task_rows(task, found, ks=(1, 5))


def test_rows_hold_accuracy_interval_and_control_of_every_code_and_part(rows):
    models = ("tsae", "static", "resid", probes.DIFFERENCE)
    probed = {(1, "raw"), ("all", ""), *((5, by) for by in ("raw", "standardised", "l1"))}
    expected = {(model, *with_) for model in models for with_ in probed}
    expected |= {("embedding", "all", "")}
    assert {(row["model"], row["k"], row["chosen"]) for row in rows} == expected
    assert {(k or "all", by if k else "") for k, by in probes.probed_with((1, 5))} == probed
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    controlled = [row for row in rows if "control" in row]
    assert {row["k"] for row in controlled} == {5, "all"}
    assert all(row["selectivity"] == row["accuracy"] - row["control"] for row in controlled)


def test_differences_are_paired_rows_whose_interval_is_that_of_the_same_items(rows):
    by = {(row["model"], row["k"], row["chosen"], row["items"]): row for row in rows}
    for (model, *key), row in by.items():
        if model == probes.DIFFERENCE:
            ours, theirs = by["tsae", *key], by["static", *key]
            assert row["accuracy"] == pytest.approx(ours["accuracy"] - theirs["accuracy"])
    features, _, _ = planted()
    task = probes.Task(name="toy", items=toy_items())
    same = probes.task_rows(task, {"tsae": features, "static": features}, ks=(1,))
    paired = [row for row in same if row["model"] == probes.DIFFERENCE]
    assert len(paired) == 2 * len(probes.breakdown(task.items))
    assert all(row["accuracy"] == row["low"] == row["high"] == 0 for row in paired)


def test_numbers_are_the_rows_under_their_names(rows):
    numbers = probes.row_numbers(rows)
    by = {(row["model"], row["k"], row["items"], row["chosen"]): row["accuracy"] for row in rows}
    assert numbers["probe_toy_k5"] == by["tsae", 5, "all", "raw"]
    assert numbers["static_probe_toy_k5_l1"] == by["static", 5, "all", "l1"]
    assert numbers["probe_toy_b_k5_standardised"] == by["tsae", 5, "b", "standardised"]
    assert numbers["static_probe_toy_incongruent_k1"] == by["static", 1, "incongruent", "raw"]
    assert numbers["resid_probe_toy"] == by["resid", "all", "all", ""]
    assert numbers["embed_probe_toy"] == 0.5
    assert not any("distance" in name for name in numbers)
    assert all(isinstance(value, float) for value in numbers.values())


def test_figures_show_every_code(rows):
    for figure in (figures.accuracy_figure(rows), figures.distance_figure(rows, 5)):
        (axes,) = figure.axes
        labels = {text.get_text() for text in axes.get_legend().get_texts()}
        assert {"TSAE", "static SAE", "residual stream"} <= labels
        assert probes.DIFFERENCE not in labels
    with pytest.raises(ValueError, match="at least one row"):
        figures.distance_figure([], 5)


def test_a_task_without_a_generator_is_refused():
    with pytest.raises(
        ValueError, match=r"a task is one of agreement, .*, disambiguation_long; got 'x'"
    ):
        tasks.generated("x")
