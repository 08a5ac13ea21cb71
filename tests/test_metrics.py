from itertools import pairwise, permutations

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import dense_codes, grid, sizes, tensors

import metrics

ALL = {"min_tokens": 1, "min_documents": 1, "max_chance": 1.0}


def chunks_of(case):
    """The valid tokens of each chunk as a plain (length, d_sae) array, with its document."""
    rows = zip(
        case["acts"].numpy().astype(float),
        case["lengths"].tolist(),
        case["document"].tolist(),
        strict=True,
    )
    return [(acts[:length], document) for acts, length, document in rows]


def overlap_by_loop(case, lag):
    d_sae = case["acts"].shape[2]
    low, high = np.zeros(d_sae), np.zeros(d_sae)
    for acts, _ in chunks_of(case):
        for t in range(len(acts) - lag):
            for f in range(d_sae):
                low[f] += min(acts[t, f], acts[t + lag, f])
                high[f] += max(acts[t, f], acts[t + lag, f])
    return [a / b if b else 0.0 for a, b in zip(low, high, strict=True)]


def chance_by_loop(case, lag, null):
    """Expected sums over all orders of the tokens, by going through every ordered pair of distinct
    tokens.
    """
    d_sae = case["acts"].shape[2]
    pools, n_pairs = {}, {}
    for acts, document in chunks_of(case):
        key = document if null == "document" else 0
        pools.setdefault(key, []).extend(acts)
        n_pairs[key] = n_pairs.get(key, 0) + max(len(acts) - lag, 0)
    low, high = np.zeros(d_sae), np.zeros(d_sae)
    for key, rows in pools.items():
        pairs = list(permutations(rows, 2))
        if pairs:
            low += n_pairs[key] * np.mean([np.minimum(a, b) for a, b in pairs], axis=0)
            high += n_pairs[key] * np.mean([np.maximum(a, b) for a, b in pairs], axis=0)
    return [a / b if b else 0.0 for a, b in zip(low, high, strict=True)]


def random_codes(density, *, n_seq, seq=50, d_sae=10, amplitude="exponential", seed=0):
    g = torch.Generator().manual_seed(seed)
    on = torch.rand(n_seq, seq, d_sae, generator=g) < density
    size = torch.rand(n_seq, seq, d_sae, generator=g)
    size = {
        "exponential": -(1 - size).log() + 1e-6,
        "uniform": size + 1e-6,
        "binary": torch.ones_like(size),
    }[amplitude]
    return metrics.codes_from_topk(
        torch.where(on, size, 0.0), torch.arange(d_sae).expand(n_seq, seq, d_sae), d_sae
    )


def binary(*documents):
    """One feature, one document a string of 0 and 1, padded to the longest."""
    seq = max(len(d) for d in documents)
    acts = torch.tensor([[[float(c)] for c in d.ljust(seq, "0")] for d in documents])
    return metrics.codes_from_dense(acts, lengths=torch.tensor([len(d) for d in documents]))


# ---------------------------------------------------------------- codes


@given(dense_codes())
def test_token_matrix_is_the_dense_code_with_padding_emptied(case):
    codes = metrics.codes_from_dense(**case)
    expected = case["acts"].clone()
    for row, length in enumerate(case["lengths"]):
        expected[row, length:] = 0
    assert np.array_equal(metrics.token_matrix(codes).toarray(), expected.flatten(0, 1).numpy())


@given(dense_codes(), st.data())
def test_the_order_of_the_k_values_and_what_stands_on_padding_change_nothing(case, data):
    codes = metrics.codes_from_dense(**case)
    order = torch.tensor(data.draw(st.permutations(range(codes.vals.shape[2]))))
    vals = codes.vals[..., order].masked_fill(~codes.valid[..., None], float("nan"))
    other = metrics.codes_from_topk(vals, codes.idx[..., order], codes.d_sae, valid=codes.valid)
    assert (metrics.token_matrix(other) != metrics.token_matrix(codes)).nnz == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_documents_are_ranked_by_their_ids(ids):
    codes = metrics.codes_from_dense(torch.ones(len(ids), 1, 1), document=torch.tensor(ids))
    assert metrics.document_rank(codes).tolist() == [sorted(set(ids)).index(i) for i in ids]


def test_a_ratio_is_zero_where_its_bottom_is_not_above_zero_and_its_bottom_may_be_a_row():
    top = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    found = metrics.ratio(top, np.array([2.0, 0.0, -1.0]))
    assert found.tolist() == [[0.5, 0.0, 0.0], [2.0, 0.0, 0.0]]


def test_codes_refuse_what_is_no_code():
    good, idx = torch.ones(2, 3, 1), torch.zeros(2, 3, 1, dtype=torch.int64)
    from_topk = metrics.codes_from_topk
    with pytest.raises(ValueError, match="NaN"):
        from_topk(good * float("nan"), idx, 4)
    with pytest.raises(ValueError, match=r"values >= 0; got -1.0"):
        from_topk(-good, idx, 4)
    with pytest.raises(ValueError, match=r"\[0, 4\); got 7 to 7"):
        from_topk(good, idx + 7, 4)
    with pytest.raises(ValueError, match="once per token"):
        from_topk(good.expand(2, 3, 2), idx.expand(2, 3, 2), 4)
    with pytest.raises(ValueError, match="at least one valid"):
        from_topk(good, idx, 4, valid=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="end of a chunk"):
        from_topk(good, idx, 4, valid=torch.tensor([[True, False, True]] * 2))
    with pytest.raises(ValueError, match=r"start >= 0; got -1"):
        from_topk(good, idx, 4, start=torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="one length in"):
        metrics.codes_from_dense(good, lengths=torch.tensor([1, 9]))
    with pytest.raises(ValueError, match="none of them 0"):
        metrics.codes_from_dense(torch.zeros(0, 3, 1))
    with pytest.raises(ValueError, match="not both"):
        metrics.codes_from_dense(
            good, lengths=torch.tensor([1, 1]), valid=torch.ones(2, 3, dtype=torch.bool)
        )


def test_codes_share_no_memory_with_what_they_were_made_of():
    given = {
        "vals": torch.ones(2, 3, 1),
        "idx": torch.zeros(2, 3, 1, dtype=torch.int64),
        "valid": torch.ones(2, 3, dtype=torch.bool),
        "document": torch.arange(2),
        "start": torch.zeros(2, dtype=torch.int64),
    }
    codes = metrics.codes_from_topk(**given, d_sae=2)
    before = {name: getattr(codes, name).clone() for name in given}
    for tensor in given.values():
        tensor.copy_(~tensor if tensor.dtype == torch.bool else tensor + 1)
    assert all(torch.equal(getattr(codes, name), before[name]) for name in given)


@pytest.mark.parametrize("value", [1e-50, 1e300])
def test_a_value_that_float32_does_not_hold_is_refused_rather_than_changed(value):
    acts = torch.full((1, 2, 1), value, dtype=torch.float64)
    with pytest.raises(ValueError, match="float32 holds"):
        metrics.codes_from_dense(acts)
    least = torch.full((1, 2, 1), 1.5e-45, dtype=torch.float64)
    assert bool((metrics.codes_from_dense(least).vals > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_numbers_of_features_documents_and_tokens_are_integers(dtype, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for a user
    vals, idx = torch.ones(2, 3, 1), torch.zeros(2, 3, 1, dtype=torch.int64)
    wrong = torch.ones(2).to(dtype)
    with pytest.raises(ValueError, match="integers as idx"):
        metrics.codes_from_topk(vals, idx.to(dtype), 4)
    for name in ("document", "start"):
        with pytest.raises(ValueError, match=f"integers as {name}"):
            metrics.codes_from_topk(vals, idx, 4, **{name: wrong})
    with pytest.raises(ValueError, match="integers as lengths"):
        metrics.codes_from_dense(vals, lengths=wrong)


# ---------------------------------------------------------------- reconstruction and sparsity


def test_predicting_the_mean_explains_exactly_nothing():
    x = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1000
    assert metrics.fve(x, x.mean(0).expand_as(x)) == 0.0
    assert metrics.fve(x, x) == 1.0


def test_fve_of_three_numbers_by_hand():
    # mean 1, scatter 1 + 0 + 1 = 2, error 0 + 0.25 + 0.25
    assert metrics.fve(
        torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.5], [1.5]])
    ) == pytest.approx(0.75)


@given(st.data(), sizes("batch", "d_in"), st.integers(1, 3))
def test_fve_of_batches_is_fve_of_the_whole(data, n, pieces):
    x, x_hat = (
        data.draw(tensors(n["batch"] + 1, n["d_in"], elements=grid)) + 100 for _ in range(2)
    )
    scatter = float((x.double() - x.double().mean(0)).square().sum())
    assume(scatter > 0)
    sums = metrics.fve_start(n["d_in"])
    for a, b in zip(x.tensor_split(pieces), x_hat.tensor_split(pieces), strict=True):
        sums = metrics.fve_add(sums, a, b)
    expected = 1 - float((x - x_hat).double().square().sum()) / scatter
    assert metrics.fve_value(sums) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert metrics.fve(x, x_hat) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_fve_refuses_a_constant_and_nan():
    with pytest.raises(ValueError, match="varies; got 3 tokens"):
        metrics.fve(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="finite"):
        metrics.fve(torch.ones(3, 2), torch.full((3, 2), float("nan")))
    with pytest.raises(ValueError, match="varies; got 0 tokens"):
        metrics.fve_value(metrics.fve_start(4))


def test_ce_recovered_is_one_without_loss_and_zero_when_as_bad_as_ablated():
    assert metrics.ce_recovered(3.0, 3.0, 8.0) == 1.0
    assert metrics.ce_recovered(3.0, 8.0, 8.0) == 0.0
    assert metrics.ce_recovered(3.0, 4.0, 8.0) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="ablated > clean"):
        metrics.ce_recovered(3.0, 3.0, 3.0)


@given(dense_codes())
def test_l0_firing_rate_and_alive_frac_count_active_entries(case):
    codes = metrics.codes_from_dense(**case)
    rows = np.concatenate([acts for acts, _ in chunks_of(case)])
    assert metrics.l0(codes.vals, codes.valid) == pytest.approx((rows > 0).sum(1).mean())
    assert metrics.firing_rate(codes).numpy() == pytest.approx((rows > 0).mean(0))
    assert metrics.alive_frac(codes) == pytest.approx((rows > 0).any(0).mean())


def test_l0_of_no_token_is_refused():
    with pytest.raises(ValueError, match="at least one valid token"):
        metrics.l0(torch.ones(2, 3), torch.zeros(2, dtype=torch.bool))


# ---------------------------------------------------------------- Jaccard


@given(dense_codes(), st.integers(1, 3))
def test_jaccard_is_the_mean_overlap_of_sets(case, lag):
    assume(int(case["lengths"].max()) > lag)
    sets = [[set(np.flatnonzero(token)) for token in acts] for acts, _ in chunks_of(case)]
    pairs = [(a, b) for chunk in sets for a, b in zip(chunk, chunk[lag:], strict=False)]
    expected = np.mean([len(a & b) / len(a | b) if a | b else 0.0 for a, b in pairs])
    assert metrics.jaccard(metrics.codes_from_dense(**case), lag) == pytest.approx(expected)


def test_the_overlap_of_a_document_is_the_sum_over_its_own_pairs():
    acts = (torch.rand(7, 6, 4, generator=torch.Generator().manual_seed(3)) > 0.5).float()
    codes = metrics.codes_from_dense(acts, document=torch.tensor([5, 2, 5, 9, 9, 2, 5]))
    sums, n_pairs = metrics.jaccard_by_document(codes)
    for row, document in enumerate((2, 5, 9)):
        rows = codes.document == document
        own = metrics.codes_from_topk(codes.vals[rows], codes.idx[rows], codes.d_sae)
        assert n_pairs[row] == len(own.document) * 5
        assert sums[row] / n_pairs[row] == pytest.approx(metrics.jaccard(own))
    assert sums.sum() / n_pairs.sum() == pytest.approx(metrics.jaccard(codes))


def test_jaccard_above_chance_is_zero_for_shuffled_and_absent_for_frozen_codes():
    assert metrics.jaccard_kappa(random_codes(0.3, n_seq=400)) == pytest.approx(0, abs=0.01)
    assert metrics.jaccard(random_codes(0.3, n_seq=400)) > 0.15
    assert metrics.jaccard_kappa(metrics.codes_from_dense(torch.ones(2, 9, 3))) is None


def test_jaccard_above_chance_by_hand():
    # 1100 in 200 documents: J = 1/3; a random pair of tokens is both on in a quarter of all cases
    assert metrics.jaccard_kappa(binary(*["1100"] * 200)) == pytest.approx(
        (1 / 3 - 0.25) / 0.75, abs=0.02
    )


# ---------------------------------------------------------------- temporal stability


@given(dense_codes(), st.integers(1, 3), st.sampled_from(["global", "document"]))
def test_overlap_and_chance_are_those_of_the_loops(case, lag, null):
    assume(int(case["lengths"].max()) > lag)
    score = metrics.tss(metrics.codes_from_dense(**case), lags=[lag], null=null, **ALL)
    assert score.p[0] == pytest.approx(overlap_by_loop(case, lag))
    assert score.p0[0] == pytest.approx(chance_by_loop(case, lag, null))
    rows = np.concatenate([acts for acts, _ in chunks_of(case)])
    kappa = [
        (p - c) / (1 - c) if c < 1 and values.any() else np.nan
        for p, c, values in zip(score.p[0], score.p0[0], rows.T, strict=True)
    ]
    assert score.kappa[0] == pytest.approx(kappa, abs=1e-9, nan_ok=True)


@given(dense_codes(), st.floats(0.1, 50), st.randoms(use_true_random=False))
def test_stability_ignores_scale_direction_of_time_and_order_of_features(case, scale, random):
    assume(int(case["lengths"].max()) > 2)
    lags = (1, 2)
    base = metrics.tss(metrics.codes_from_dense(**case), lags=lags)
    d_sae = case["acts"].shape[2]
    scales = torch.tensor([scale * (f + 1) for f in range(d_sae)])
    scaled = metrics.tss(metrics.codes_from_dense(**case), scales, lags=lags)
    assert scaled.kappa == pytest.approx(base.kappa, abs=1e-9, nan_ok=True)
    backwards = torch.zeros_like(case["acts"])
    for row, length in enumerate(case["lengths"]):
        backwards[row, :length] = case["acts"][row, :length].flip(0)
    assert metrics.tss(
        metrics.codes_from_dense(**{**case, "acts": backwards}), lags=lags
    ).kappa == pytest.approx(base.kappa, nan_ok=True)
    order = random.sample(range(d_sae), d_sae)
    moved = metrics.tss(
        metrics.codes_from_dense(**{**case, "acts": case["acts"][..., order]}), lags=lags
    )
    assert moved.kappa == pytest.approx(base.kappa[:, order], nan_ok=True)


def test_a_constant_feature_overlaps_fully_and_has_nothing_above_chance_to_reach():
    score = metrics.tss(metrics.codes_from_dense(torch.full((6, 9, 1), 2.0)), lags=(1, 5))
    assert score.p.tolist() == [[1.0], [1.0]]
    assert score.p0.tolist() == [[1.0], [1.0]]
    assert np.isnan(score.kappa).all()
    assert not score.eligible.any()
    always = metrics.tss(metrics.codes_from_dense(torch.ones(6, 9, 1)), lags=[1], **ALL)
    assert (always.macro, always.eligible.any()) == (None, False)


def test_an_alternating_feature_has_overlap_zero_at_lag_one_and_one_at_lag_two():
    score = metrics.tss(binary("10101"), lags=(1, 2), **ALL)
    assert score.p[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_filling_the_gap_between_two_runs_raises_the_overlap(gap):
    apart, filled = (
        metrics.tss(binary("00111" + c * gap + "11100"), lags=[1]).p[0, 0] for c in "01"
    )
    assert filled > apart


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_interior_runs_of_one_length_give_overlap_and_implied_length(length):
    p = metrics.tss(
        binary("00" + "1" * length + "000", "0" + "1" * length + "00" + "1" * length + "0"),
        lags=[1],
    ).p[0, 0]
    assert p == pytest.approx((length - 1) / (length + 1))
    assert (1 + p) / (1 - p) == pytest.approx(length)


@given(dense_codes(), dense_codes())
def test_pooled_documents_are_pooled_sums(one, two):
    seq, d_sae = (max(c["acts"].shape[axis] for c in (one, two)) for axis in (1, 2))
    assume(max(int(c["lengths"].max()) for c in (one, two)) > 1)
    pad = [
        torch.nn.functional.pad(
            c["acts"], (0, d_sae - c["acts"].shape[2], 0, seq - c["acts"].shape[1])
        )
        for c in (one, two)
    ]
    both = {
        "acts": torch.cat(pad),
        **{k: torch.cat([one[k], two[k]]) for k in ("lengths", "document", "start")},
    }
    both["document"] = torch.arange(len(both["document"]))
    assert metrics.tss(metrics.codes_from_dense(**both), lags=[1]).p[0] == pytest.approx(
        overlap_by_loop(both, 1)
    )


@pytest.mark.parametrize("amplitude", ["binary", "uniform", "exponential"])
def test_features_without_memory_have_mean_kappa_zero_at_every_density(amplitude):
    density = torch.tensor([0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95])
    codes = random_codes(density, n_seq=4000, amplitude=amplitude)  # 200,000 tokens
    score = metrics.tss(codes, lags=(1, 4), max_chance=1.0)
    assert score.eligible.all()
    assert np.abs(score.kappa).max() < 0.02  # of each feature, so of every mean
    assert (
        score.p[:, -1].min() > 0.3
    )  # the raw overlap of a feature that remembers nothing; 0.9 if binary


def test_the_document_null_counts_a_topic_as_chance():
    on = torch.rand(40, 60, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    acts = (
        on.float() * (torch.arange(40) % 4 == 0)[:, None, None]
    )  # on half the time, in a quarter of the documents
    codes = metrics.codes_from_dense(acts)
    assert metrics.tss(codes, lags=[1]).kappa.mean() > 0.15
    assert abs(metrics.tss(codes, lags=[1], null="document").kappa.mean()) < 0.05


def test_means_over_features_are_those_of_the_definition():
    codes = metrics.codes_from_dense(
        torch.randint(0, 3, (9, 30, 6), generator=torch.Generator().manual_seed(1)).float()
        * torch.tensor([1, 1, 0, 1, 1, 1])
    )
    norm = torch.tensor([1.0, 5.0, 1.0, 2.0, 1.0, 1.0])
    score = metrics.tss(codes, norm, lags=(1, 2, 3))
    weight = (codes.valid.sum() * norm).numpy() * metrics.token_matrix(codes).sum(0)
    clipped = np.maximum(score.kappa, 0)
    assert score.eligible.tolist() == [True, True, False, True, True, True]
    assert score.eligible_frac == pytest.approx(5 / 6)
    assert score.macro_by_lag == pytest.approx(clipped[:, score.eligible].mean(1))
    assert score.weighted_by_lag == pytest.approx(np.nansum(clipped * weight, 1) / weight.sum())
    assert score.macro == pytest.approx(score.macro_by_lag.mean())


@pytest.mark.parametrize("null", ["global", "document"])
def test_eligible_needs_tokens_documents_and_room_above_chance(null):
    acts = torch.zeros(6, 40, 4)
    acts[:, 3:9, 0] = 1  # 36 tokens in 6 documents
    acts[0, 3:39, 1] = 1  # 36 tokens in one document
    acts[:, 3:6, 2] = 1  # 18 tokens in 6 documents
    acts[:, :, 3] = 1  # always on
    score = metrics.tss(metrics.codes_from_dense(acts), null=null)
    assert score.eligible.tolist() == [True, False, False, False]


def test_the_bootstrap_interval_holds_the_truth_about_as_often_as_it_says():
    truth = metrics.tss(sticky_codes(documents=20_000, seed=0), lags=[1]).macro
    inside = 0
    for seed in range(1, 61):
        low, high = metrics.tss(
            sticky_codes(documents=60, seed=seed), lags=[1], n_boot=60
        ).macro_interval or (0, 0)
        assert 0 <= low < high <= 1
        inside += low <= truth <= high
    assert 50 <= inside <= 60  # binomial(60, 0.95) is within this 99.9 % of the time


def sticky_codes(documents, seed, seq=30, stay=0.8, d_sae=3):
    rng = np.random.default_rng(seed)
    on = np.zeros((documents, seq, d_sae))
    state = rng.random((documents, d_sae)) < 0.5
    for t in range(seq):
        state = np.where(rng.random(state.shape) < stay, state, rng.random(state.shape) < 0.5)
        on[:, t] = state
    return metrics.codes_from_dense(torch.from_numpy(on).float())


def test_bootstrap_replicates_are_scores_of_resampled_documents():
    codes = sticky_codes(documents=7, seed=3)
    score = metrics.tss(codes, lags=(1, 2), n_boot=4, generator=torch.Generator().manual_seed(5))
    draws = torch.randint(7, (4, 7), generator=torch.Generator().manual_seed(5))
    for draw, replicate in zip(draws, score.macro_replicates, strict=True):
        resampled = metrics.codes_from_topk(codes.vals[draw], codes.idx[draw], codes.d_sae)
        p = metrics.tss(resampled, lags=(1, 2)).p
        kappa = np.maximum((p - score.p0) / (1 - score.p0), 0)
        assert replicate == pytest.approx(kappa.mean(1).mean())


def test_what_degenerate_codes_do_not_have_is_absent():
    silent = metrics.tss(metrics.codes_from_dense(torch.zeros(3, 20, 2)), n_boot=5)
    assert (silent.macro, silent.weighted, silent.eligible_frac) == (None, None, 0.0)
    assert np.isnan([*silent.kappa.flat, *silent.macro_by_lag, *silent.macro_replicates]).all()
    assert silent.macro_interval is None
    single = metrics.tss(binary("0011100110"), lags=[1], n_boot=5, **ALL)
    assert single.macro_interval is None
    assert np.isfinite(single.kappa).all()
    with pytest.raises(ValueError, match="got lag=3, longest=3"):
        metrics.tss(binary("010"), lags=[1, 3])
    with pytest.raises(ValueError, match="longest=1"):
        metrics.jaccard(binary("1", "0"))
    with pytest.raises(ValueError, match="needs a lag"):
        metrics.tss(binary("010"), lags=[])
    with pytest.raises(ValueError, match="dec_norm needs 1 finite"):
        metrics.tss(binary("010"), torch.tensor([float("nan")]), lags=[1])


# ---------------------------------------------------------------- splices and smoothness


def events_by_loop(case, window):
    """New features at each token that has one before it; different features in each window."""
    new, different = [], []
    for acts, _ in chunks_of(case):
        on = acts > 0
        new += [int((now & ~before).sum()) for before, now in pairwise(on)]
        ends = range(window, len(on) + 1, window)
        different += [int(on[end - window : end].any(0).sum()) for end in ends]
    return new, different


@given(dense_codes(), st.integers(1, 4), st.data())
def test_births_and_distinct_features_are_counted_token_by_token(case, window, data):
    codes = metrics.codes_from_dense(**case)
    new, different = events_by_loop(case, window)
    if different:
        assert metrics.distinct(codes, window) == pytest.approx(np.mean(different))
    else:
        assert metrics.distinct(codes, window) is None
    if not new:
        with pytest.raises(ValueError, match="pairs need"):
            metrics.births(codes)
        return
    assert metrics.births(codes) == pytest.approx(np.mean(new))
    order = torch.tensor(data.draw(st.permutations(range(codes.d_sae))))
    other = metrics.codes_from_dense(**(case | {"acts": case["acts"][..., order]}))
    assert metrics.births(other) == pytest.approx(metrics.births(codes))
    assert metrics.distinct(other, window) == metrics.distinct(codes, window)


@given(st.floats(0.05, 0.9), st.integers(0, 5))
def test_births_are_at_most_l0_and_a_window_has_at_least_l0_features(density, seed):
    codes = random_codes(density, n_seq=4, seed=seed)
    l0 = metrics.l0(codes.vals, codes.valid)
    assert 0 <= metrics.births(codes) <= metrics.l0(codes.vals[:, 1:]) + 1e-9
    assert metrics.distinct(codes, 1) == pytest.approx(l0)
    assert metrics.distinct(codes, 10) >= l0 - 1e-9
    support = codes.vals > 0
    frozen = metrics.codes_from_topk(
        codes.vals[:, :1].expand_as(codes.vals), codes.idx[:, :1].expand_as(codes.idx), codes.d_sae
    )
    assert metrics.births(frozen) == 0
    assert metrics.distinct(frozen) == pytest.approx(support[:, 0].sum(-1).double().mean().item())


@given(dense_codes(), st.data())
def test_smoothness_is_the_mean_over_chunks_of_their_features_mean_steepest_slope(case, data):
    shape = tuple(case["acts"].shape[:2])
    x = data.draw(tensors(*shape, 2, elements=grid))
    means = []
    for (acts, _), inputs in zip(chunks_of(case), x.double().numpy(), strict=True):
        steps = [t for t in range(1, len(acts)) if np.linalg.norm(inputs[t] - inputs[t - 1]) > 0]
        slopes = [
            max(
                abs(acts[t, f] - acts[t - 1, f]) / np.linalg.norm(inputs[t] - inputs[t - 1])
                for t in steps
            )
            for f in range(acts.shape[1])
            if any(acts[t, f] or acts[t - 1, f] for t in steps)
        ]
        means += [np.mean(slopes)] if slopes else []
    codes = metrics.codes_from_dense(**case)
    if means:
        assert metrics.smoothness(codes, x) == pytest.approx(np.mean(means))
    else:
        with pytest.raises(ValueError, match=r"needs an active feature|longest=1"):
            metrics.smoothness(codes, x)


def test_smoothness_of_two_sequences_by_hand_and_of_x_that_is_not_finite():
    codes = metrics.codes_from_dense(torch.tensor([[[0.0, 0], [3, 0]], [[1, 1], [1, 2]]]))
    x = torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]])
    assert metrics.smoothness(codes, x) == 1.625  # (3 + (0 + 1 / 2) / 2) / 2; pooled: 3.5 / 3
    chunks, values = metrics.smoothness_by_chunk(codes, x)
    assert (chunks.tolist(), values.tolist()) == ([0, 1], [3.0, 0.25])
    for wrong in (float("nan"), float("inf")):
        x[1, 1] = wrong
        with pytest.raises(ValueError, match="needs finite x"):
            metrics.smoothness(codes, x)
        padded = metrics.codes_from_dense(codes.vals, lengths=torch.tensor([2, 1]))
        assert metrics.smoothness(padded, x) > 0  # on padding anything may stand
