from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from strategies import dense_codes

import metrics
from tsae_lab.measures import lifetimes


def codes_of(*chunks, start=None, document=None):
    """One feature; a chunk is a string of activations 0-9, padded to the longest."""
    seq = max(len(c) for c in chunks)
    acts = torch.tensor([[[float(v)] for v in c.ljust(seq, "0")] for c in chunks])
    ids = {
        name: torch.tensor(v)
        for name, v in (("start", start), ("document", document))
        if v is not None
    }
    return metrics.codes_from_dense(acts, lengths=torch.tensor([len(c) for c in chunks]), **ids)


def runs_by_loop(case):
    found = []
    for f in range(case["acts"].shape[2]):
        for c, length in enumerate(case["lengths"].tolist()):
            on, begin = (case["acts"][c, :length, f] > 0).tolist(), None
            for t, active in enumerate([*on, False]):
                if active and begin is None:
                    begin = t
                if not active and begin is not None:
                    truncated = begin == 0 and int(case["start"][c]) > 0
                    found.append((f, c, begin, t - begin, truncated, t == length))
                    begin = None
    return found


def markov(lifetime, *, trials, documents, chunks=3, seq=64, d_sae=4, off=10.0, seed=0):
    """(trial, document, chunk, seq, feature) of two-state features, documents running on through
    their chunks.
    """
    rng = np.random.default_rng(seed)
    state = rng.random((trials, documents, d_sae)) < lifetime / (lifetime + off)
    on = np.empty((trials, documents, chunks * seq, d_sae), dtype=np.float32)
    for t in range(chunks * seq):
        flip = rng.random(state.shape) < np.where(state, 1 / lifetime, 1 / off)
        state = state ^ flip
        on[:, :, t] = state
    return torch.from_numpy(on).view(trials, documents, chunks, seq, d_sae)


def chunked(on):
    """Codes of one trial of `markov`."""
    documents, chunks, seq, _ = on.shape
    document = torch.arange(documents).repeat_interleave(chunks)
    return metrics.codes_from_dense(
        on.flatten(0, 1), document=document, start=(torch.arange(chunks) * seq).repeat(documents)
    )


# ---------------------------------------------------------------- runs


@given(dense_codes())
def test_runs_are_those_of_the_loop(case):
    found = lifetimes.runs(metrics.codes_from_dense(**case))
    fields = (
        found.feature,
        found.chunk,
        found.position,
        found.length,
        found.truncated,
        found.censored,
    )
    assert list(zip(*(f.tolist() for f in fields), strict=True)) == runs_by_loop(case)
    assert found.document_ids[found.document].tolist() == case["document"][found.chunk].tolist()


def test_runs_by_hand_with_their_censoring():
    found = lifetimes.runs(codes_of("1101110", "11011", "1", start=[0, 7, 0], document=[5, 5, 2]))
    assert found.length.tolist() == [2, 3, 2, 2, 1]
    assert found.truncated.tolist() == [False, False, True, False, False]
    assert found.censored.tolist() == [False, False, False, True, True]
    assert found.document_ids[found.document].tolist() == [5, 5, 5, 5, 2]


# ---------------------------------------------------------------- survival


def test_survival_by_hand():
    # ends after 1, 2, 2 and 3 tokens; both chunks' last runs reach the end: followed for 2 tokens
    curve = lifetimes.survival(lifetimes.runs(codes_of("10110110111", "011100111")))
    assert curve.at_risk.tolist() == [6, 6, 5, 1]
    assert curve.survival == pytest.approx([1, 5 / 6, 5 / 6 * 3 / 5, 0])
    assert curve.hazard == pytest.approx([0, 1 / 6, 2 / 5, 1])
    assert (curve.median, curve.median_text, curve.follow_up) == (2, "2", 3)
    assert (curve.n_runs, curve.n_censored, curve.n_truncated) == (6, 2, 0)


@given(dense_codes())
def test_survival_is_the_product_limit_of_the_loop(case):
    seen = [
        (length - cut, not cut)
        for *_, length, truncated, cut in runs_by_loop(case)
        if not truncated
    ]
    assume(any(t > 0 for t, _ in seen))
    found = lifetimes.runs(metrics.codes_from_dense(**case))
    curve, expected = lifetimes.survival(found), 1.0
    for t in range(curve.follow_up + 1):
        risk = sum(time >= t for time, _ in seen)
        deaths = sum(time == t and ended for time, ended in seen)
        expected *= 1 - deaths / risk
        assert curve.survival[t] == pytest.approx(expected)
        assert curve.at_risk[t] == risk
    assert (curve.low <= curve.survival).all()
    assert (curve.survival <= curve.high).all()
    tau = curve.follow_up + 1
    assert lifetimes.restricted_mean(found, tau).value == pytest.approx(curve.survival[:tau].sum())


def test_median_is_said_to_lie_beyond_the_follow_up():
    curve = lifetimes.survival(lifetimes.runs(codes_of("01111", "01111", "01000")))
    assert curve.median is None
    assert curve.median_text == ">3"


@pytest.mark.parametrize("lifetime", [2, 8, 32])
def test_restricted_means_cover_the_planted_truth_although_long_runs_are_cut(lifetime):
    trials, inside = (
        markov(lifetime, trials=100, documents=40, seed=lifetime),
        {16: 0, 64: 0, 128: 0},
    )
    for on in trials:
        found = lifetimes.runs(chunked(on))
        for tau in inside:
            truth = lifetime * (1 - (1 - 1 / lifetime) ** tau)
            low, high = lifetimes.restricted_mean(found, tau, n_boot=100).interval
            inside[tau] += low <= truth <= high
    assert min(inside.values()) >= 90, inside


def test_without_its_censoring_a_lifetime_is_biased_and_with_it_not():
    on = markov(8.33, trials=1, documents=20_000, chunks=1, seq=8, d_sae=1, off=8.33)[0]
    found = lifetimes.runs(chunked(on))
    pooled, _ = lifetimes.persistence(found)
    assert 1 / (1 - pooled) == pytest.approx(8.33, rel=0.03)
    assert lifetimes.restricted_mean(found, 4000).value == pytest.approx(8.33, rel=0.2)
    assert found.length.mean() < 5


def test_beyond_the_follow_up_the_tail_is_geometric_and_said_to_be():
    found = lifetimes.runs(codes_of("0110", "0111"))  # deaths after 2; one followed for 2
    mean = lifetimes.restricted_mean(found, 5)
    assert mean.extrapolated
    assert mean.value == pytest.approx(1 + 1 + 0.5 + 0.5**1.5 + 0.5**2)
    assert not lifetimes.restricted_mean(found, 2).extrapolated
    assert lifetimes.restricted_mean(lifetimes.runs(codes_of("0" + "1" * 99)), 64).value == 64


@given(dense_codes(), st.integers(1, 9))
def test_restricted_means_lie_between_one_and_tau(case, tau):
    found = lifetimes.runs(metrics.codes_from_dense(**case))
    assume((found.length - found.censored)[~found.truncated].any())
    mean = lifetimes.restricted_mean(found, tau, n_boot=5)
    assert 1 <= mean.value <= tau + 1e-12
    low, high = mean.interval or (1.0, tau)
    assert low <= mean.value + 1e-12
    assert mean.value <= high + 1e-12
    by_feature = lifetimes.feature_restricted_mean(found, tau, min_deaths=1)
    assert (np.isnan(by_feature) | ((by_feature >= 1) & (by_feature <= tau + 1e-12))).all()


def test_feature_means_are_pooled_means_of_single_features():
    codes = chunked(markov(4, trials=1, documents=30)[0])
    by_feature = lifetimes.feature_restricted_mean(lifetimes.runs(codes), 16)
    dense = torch.from_numpy(metrics.token_matrix(codes).toarray()).float().view(90, 64, 4)
    for f in range(4):
        alone = metrics.codes_from_dense(
            dense[..., f : f + 1], document=codes.document, start=codes.start
        )
        assert by_feature[f] == pytest.approx(
            lifetimes.restricted_mean(lifetimes.runs(alone), 16).value
        )


# ---------------------------------------------------------------- persistence, null


@given(dense_codes())
def test_persistence_is_the_share_of_active_tokens_that_stay_active(case):
    stay, total = np.zeros(case["acts"].shape[2]), np.zeros(case["acts"].shape[2])
    for acts, length in zip(case["acts"].numpy(), case["lengths"].tolist(), strict=True):
        for t in range(length - 1):
            stay += (acts[t] > 0) & (acts[t + 1] > 0)
            total += acts[t] > 0
    pooled, by_feature = lifetimes.persistence(lifetimes.runs(metrics.codes_from_dense(**case)))
    expected = [a / b if b else np.nan for a, b in zip(stay, total, strict=True)]
    assert by_feature == pytest.approx(expected, nan_ok=True)
    assert pooled == (pytest.approx(stay.sum() / total.sum()) if total.sum() else None)


def test_replicates_of_persistence_are_those_of_resampled_documents():
    codes = chunked(markov(4, trials=1, documents=6)[0])
    draws = torch.randint(6, (5, 6), generator=torch.Generator().manual_seed(2))
    found = lifetimes.persistence_replicates(
        lifetimes.runs(codes), 5, torch.Generator().manual_seed(2)
    )
    rank = torch.from_numpy(metrics.document_rank(codes))
    for draw, replicate in zip(draws, found, strict=True):
        rows = torch.cat([(rank == document).nonzero()[:, 0] for document in draw])
        own = metrics.codes_from_topk(
            codes.vals[rows], codes.idx[rows], codes.d_sae, start=codes.start[rows]
        )
        assert replicate == pytest.approx(lifetimes.persistence(lifetimes.runs(own))[0])


@given(dense_codes(), st.integers(0, 5))
def test_shuffle_keeps_the_tokens_of_each_document(case, seed):
    codes = metrics.codes_from_dense(**case)
    moved = lifetimes.shuffle(codes, torch.Generator().manual_seed(seed))
    rank, valid = metrics.document_rank(codes), codes.valid.numpy()
    for d in range(rank.max() + 1):
        before, after = (
            sorted(
                map(
                    tuple,
                    metrics.token_matrix(c)
                    .toarray()
                    .reshape(*valid.shape, -1)[valid & (rank == d)[:, None]],
                )
            )
            for c in (codes, moved)
        )
        assert before == after


def test_shuffled_codes_live_as_long_as_chance_has_it():
    codes = chunked(markov(20, trials=1, documents=40, off=20)[0])
    null = lifetimes.runs(lifetimes.shuffle(codes))
    rate = float(metrics.firing_rate(codes).mean())
    pooled, _ = lifetimes.persistence(null)
    assert rate < pooled < rate + 0.06  # documents differ a little in how often a feature is on
    assert lifetimes.persistence(lifetimes.runs(codes))[0] == pytest.approx(0.95, abs=0.01)


# ---------------------------------------------------------------- lifecycle and evolution


def test_lifecycle_by_hand():
    life = lifetimes.lifecycle(codes_of("2205001", "1300090", start=[0, 7], document=[0, 0]))
    assert life.births.tolist() == [4]  # the run at the start of the second chunk was under way
    assert life.deaths.tolist() == [4]  # the run at the end of the first is
    assert life.fired.tolist() == [7]
    assert life.gaps.tolist() == [3]
    assert life.gap_tokens.tolist() == [1 + 2 + 3]
    assert life.peak.tolist() == [9.0]
    assert life.age_sum.tolist() == [3 + 1 + 1 + 3 + 1]
    assert life.oldest.tolist() == [2]
    means = lifetimes.lifecycle_means(life)
    assert means["pooled_gap_tokens"] == means["feature_gap_tokens"] == 2.0
    assert means["pooled_age_tokens"] == pytest.approx(9 / 7)
    assert means["pooled_births_per_1000_active"] == pytest.approx(4000 / 7)


@given(dense_codes(), st.integers(1, 4))
def test_the_lifecycle_of_a_text_is_that_of_its_runs_and_its_means_are_finite(case, streams):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifetimes, "STREAMS", streams)
        life = lifetimes.lifecycle(metrics.codes_from_dense(**case))
    found = runs_by_loop(case)
    for f in range(case["acts"].shape[2]):
        mine = [r for r in found if r[0] == f]
        assert life.births[f] == sum(not r[4] for r in mine)
        assert life.deaths[f] == sum(not r[5] for r in mine)
        assert life.fired[f] == sum(r[3] for r in mine)
        assert life.oldest[f] == max((r[3] for r in mine), default=0)
        assert life.age_sum[f] == sum(sum(range(1, r[3] + 1)) for r in mine)
        gaps = [b[2] - a[2] - a[3] for a, b in pairwise(mine) if a[1] == b[1]]
        assert (life.gaps[f], life.gap_tokens[f]) == (len(gaps), sum(gaps))
    assert all(v is None or np.isfinite(v) for v in lifetimes.lifecycle_means(life).values())


def test_an_inactive_entry_of_a_code_may_name_any_feature():
    vals, idx = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1, 99]]])
    life = lifetimes.lifecycle(metrics.codes_from_topk(vals, idx, 3))
    assert life.births.tolist() == life.fired.tolist() == [0, 1, 0]


def test_the_mean_of_the_features_that_count_is_absent_if_none_does():
    values = np.array([1.0, 3.0, 8.0])
    assert lifetimes.mean_where(values, values < 5) == 2.0
    assert lifetimes.mean_where(values, values > 9) is None


def test_pooled_means_count_events_and_feature_means_count_features():
    acts = torch.zeros(1, 40, 3)
    acts[0, 0:40:2, 0] = 1  # 20 active tokens of age 1
    acts[0, 5:8, 1] = 1  # ages 1, 2, 3
    means = lifetimes.lifecycle_means(lifetimes.lifecycle(metrics.codes_from_dense(acts)))
    assert means["pooled_age_tokens"] == pytest.approx(26 / 23)
    assert means["feature_age_tokens"] == pytest.approx(1.5)


def test_evolution_shows_a_document_in_order_with_births_deaths_and_seams():
    acts = torch.zeros(3, 4, 3)
    acts[1, :, 0] = torch.tensor([0.0, 2, 2, 1])  # document 7, first chunk
    acts[0, :, 0] = torch.tensor([3.0, 0, 0, 0])  # document 7, second chunk
    acts[0, :, 2] = torch.tensor([0.0, 0, 5, 0])
    acts[2, :, 1] = 9.0  # another document
    codes = metrics.codes_from_dense(
        acts, document=torch.tensor([7, 7, 3]), start=torch.tensor([4, 0, 0])
    )
    table = lifetimes.evolution(codes, 7)
    assert table.features.tolist() == [0, 2]
    assert table.acts.tolist() == [[0, 2, 2, 1, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0, 5, 0]]
    assert np.flatnonzero(table.births[0]).tolist() == [
        1
    ]  # at token 4 a new chunk begins: nobody saw the birth
    assert np.flatnonzero(table.deaths[0]).tolist() == [5]
    assert table.index.tolist() == list(range(8))
    assert table.seams.tolist() == [4]
    assert table.chunk.tolist() == [1] * 4 + [0] * 4
    assert lifetimes.evolution(codes, 7, n_features=1, max_tokens=4).acts.tolist() == [[0, 2, 2, 1]]
    with pytest.raises(ValueError, match="got document=8"):
        lifetimes.evolution(codes, 8)


def test_a_token_of_outlying_norm_does_not_fill_the_rows_and_features_on_together_are_one_row():
    acts = torch.zeros(1, 40, 30)
    acts[0, 7, :20] = 1e4 * (1 + torch.arange(20.0))  # twenty features at the outlier alone
    for f in range(20, 26):
        acts[0, f : f + 10, f] = 1.0
    acts[0, 22:32, 26] = 0.5  # together with feature 22
    codes = metrics.codes_from_dense(acts)
    leading = lifetimes.evolution(codes, 0, n_features=6)
    n_alike = dict(zip(leading.features.tolist(), leading.alike.tolist(), strict=True))
    assert n_alike == {20: 1, 21: 1, 22: 2, 23: 1, 24: 1, 25: 1}
    every = lifetimes.evolution(codes, 0)
    assert (every.features[0], every.alike[0]) == (19, 20)
    assert every.acts[0, 7] == 2e5  # shown as it is


@given(dense_codes(), st.integers(1, 30))
def test_every_feature_of_a_document_is_in_one_row_that_is_on_at_its_tokens(case, most):
    codes = metrics.codes_from_dense(**case)
    assume(0 in codes.document[codes.valid.any(1)])
    table = lifetimes.evolution(codes, 0, n_features=codes.d_sae, max_tokens=most)
    dense = metrics.token_matrix(codes).toarray()
    on = dense[table.chunk * codes.valid.shape[1] + table.position].T > 0
    sets = Counter(tuple(row) for row in on.tolist() if any(row))
    shown = [tuple(row) for row in (table.acts > 0).tolist()]
    assert dict(zip(shown, table.alike.tolist(), strict=True)) == sets
    assert len(set(shown)) == len(shown)


@given(dense_codes(), st.integers(0, 2), st.integers(1, 30))
def test_the_births_and_deaths_of_a_document_are_the_seen_ends_of_its_runs(case, document, most):
    codes = metrics.codes_from_dense(**case)
    chunks = [c for c, d in enumerate(case["document"].tolist()) if d == document]
    chunks.sort(key=lambda c: int(case["start"][c]))
    assume(sum(int(case["lengths"][c]) for c in chunks))
    table, column = lifetimes.evolution(codes, document, max_tokens=most), {}
    for c in chunks:
        for t in range(int(case["lengths"][c])):
            column[c, t] = len(column)
    expected = {"births": set(), "deaths": set()}
    for f, c, begin, length, truncated, censored in runs_by_loop(case):
        if f not in table.features:  # another row is on at the same tokens
            continue
        if c in chunks and not truncated and column[c, begin] < most:
            expected["births"].add((f, column[c, begin]))
        if c in chunks and not censored and column[c, begin + length] < most:
            expected["deaths"].add((f, column[c, begin + length]))
    for name, events in expected.items():
        rows, columns = np.nonzero(getattr(table, name))
        shown = zip(table.features[rows].tolist(), columns.tolist(), strict=True)
        assert set(shown) == events


def test_silent_and_degenerate_codes_give_documented_values():
    silent = lifetimes.runs(codes_of("000", "00"))
    assert lifetimes.persistence(silent)[0] is None
    assert set(lifetimes.lifecycle_means(lifetimes.lifecycle(codes_of("000"))).values()) == {None}
    assert lifetimes.feature_restricted_mean(silent, 4).tolist() == pytest.approx(
        [np.nan], nan_ok=True
    )
    assert lifetimes.evolution(codes_of("000"), 0).acts.shape == (0, 3)
    with pytest.raises(ValueError, match="got none of 0"):
        lifetimes.survival(silent)
    with pytest.raises(ValueError, match="got none of 1"):
        lifetimes.restricted_mean(lifetimes.runs(codes_of("001")), 4)
    with pytest.raises(ValueError, match="tau >= 1; got 0"):
        lifetimes.restricted_mean(lifetimes.runs(codes_of("010")), 0)
    one_document = lifetimes.restricted_mean(lifetimes.runs(codes_of("0110")), 4, n_boot=9)
    assert one_document.interval is None
    always = lifetimes.survival(lifetimes.runs(codes_of("111", "111")))
    assert always.survival.tolist() == [1, 1, 1]
    assert np.isfinite(always.low).all()


def test_the_curve_is_that_of_scipy_on_planted_lifetimes():
    found = lifetimes.runs(chunked(markov(8, trials=1, documents=40)[0]))
    kept = ~found.truncated
    length, cut = found.length[kept], found.censored[kept]
    sample = stats.CensoredData(uncensored=length[~cut], right=length[cut] - 1)
    curve = lifetimes.survival(found)
    assert curve.survival == pytest.approx(stats.ecdf(sample).sf.evaluate(curve.t))
    assert lifetimes.restricted_mean(found, 16).value == pytest.approx(curve.survival[:16].sum())
