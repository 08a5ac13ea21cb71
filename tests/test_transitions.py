from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from strategies import dense_codes

import metrics
from tsae_lab.measures import transitions


def grid_of(on):
    """Codes of a bool (chunk, seq, feature) array."""
    n_seq, seq, d_sae = on.shape
    row, feature = np.nonzero(on.reshape(-1, d_sae))
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    shape = (n_seq * seq, max(int(slot.max(initial=0)) + 1, 1))
    idx, vals = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    idx[row, slot], vals[row, slot] = feature, 1
    return [torch.from_numpy(a.reshape(n_seq, seq, -1)) for a in (vals, idx)]


def persistent(run, *, n_plant=0, chunks=3175, seq=63, d_sae=500, lift=5.0, seed=0):
    """Two-state features (onset rates 0.5-2 %) and the patterns planted: after the source's onset
    the target's at `lag` is `lift` times as likely as ever. 200,000 tokens by default, six chunks a
    document.
    """
    rng = np.random.default_rng(seed)
    rate = rng.uniform(0.005, 0.02, d_sae).astype(np.float32)
    share = rate * run
    off = (1 - share) / rate
    pairs, lags = rng.permutation(d_sae)[: 2 * n_plant].reshape(-1, 2), rng.integers(1, 17, n_plant)
    extra = np.minimum(
        lift * rate[pairs[:, 1]] / (1 - share[pairs[:, 1]]) - 1 / off[pairs[:, 1]], 1
    )
    state = rng.random((chunks, d_sae), dtype=np.float32) < share
    on, onset = (np.zeros((seq, chunks, d_sae), bool) for _ in range(2))
    for t in range(seq):
        draw = rng.random((chunks, d_sae), dtype=np.float32)
        new = np.where(state, draw >= np.float32(1 / run), draw < 1 / off)
        for (source, target), lag, chance in zip(pairs, lags, extra, strict=True):
            if t >= lag:
                follows = (
                    onset[t - lag, :, source] & (rng.random(chunks) < chance) & ~state[:, target]
                )
                new[:, target] |= follows
        onset[t], state, on[t] = new & ~state, new, new
    place = torch.arange(chunks)
    vals, idx = grid_of(on.transpose(1, 0, 2))
    codes = metrics.codes_from_topk(vals, idx, d_sae, document=place // 6, start=place % 6 * seq)
    return codes, set(zip(*pairs.T.tolist(), lags.tolist(), strict=True)) if n_plant else set()


def triples(found, rows):
    p = found.patterns.take(np.flatnonzero(rows))
    return list(zip(p.source.tolist(), p.target.tolist(), p.lag.tolist(), strict=True))


def onsets_by_loop(case):
    """{(chunk, feature): [positions]} of the onsets after a chunk's first token."""
    found = {}
    for c, length in enumerate(case["lengths"].tolist()):
        on = (case["acts"][c, :length] > 0).numpy()
        for t, f in product(range(1, length), range(on.shape[1] if length else 0)):
            if on[t, f] and not on[t - 1, f]:
                found.setdefault((c, f), []).append(t)
    return found


def shift_distribution_by_loop(case, i, j, lag):
    """Observed count and {count: probability} over every combination of shifts of j's onsets in its
    chunks.
    """
    at, observed, total = onsets_by_loop(case), 0, {0: 1.0}
    for c, length in enumerate(case["lengths"].tolist()):
        n, source, target = length - 1, at.get((c, i), []), at.get((c, j), [])
        if n < 1:
            continue
        observed += sum(t + lag in target for t in source)
        moved = [{(t - 1 + shift) % n + 1 for t in target} for shift in range(n)]
        counts = [sum(t + lag in places for t in source) for places in moved]
        longer = {}
        for (have, p), more in product(total.items(), counts):
            longer[have + more] = longer.get(have + more, 0.0) + p / n
        total = longer
    return observed, total


# ---------------------------------------------------------------- onsets and the null


@given(dense_codes())
def test_onsets_are_those_of_the_loop(case):
    events = transitions.onsets(metrics.codes_from_dense(**case))
    found = {}
    for f, c, t in zip(
        events.feature.tolist(), events.chunk.tolist(), events.place.tolist(), strict=True
    ):
        found.setdefault((c, f), []).append(t)
    assert found == onsets_by_loop(case)
    assert events.places.tolist() == [max(n - 1, 0) for n in case["lengths"].tolist()]


@given(dense_codes(max_doc=5, max_seq=9, max_sae=3), st.integers(1, 3), st.data())
def test_the_shift_test_is_that_of_all_shifts(case, lag, data):
    d_sae = case["acts"].shape[2]
    assume(d_sae > 1)
    i, j = data.draw(st.permutations(range(d_sae)))[:2]
    pattern = transitions.Patterns(*(np.array([v]) for v in (i, j, lag)))
    found = transitions.shift_test(transitions.onsets(metrics.codes_from_dense(**case)), pattern)
    observed, total = shift_distribution_by_loop(case, i, j, lag)
    assert found.count[0] == observed
    assert found.reverse[0] == shift_distribution_by_loop(case, j, i, lag)[0]
    assert found.expected[0] == pytest.approx(sum(count * p for count, p in total.items()))
    assert found.p_value[0] == pytest.approx(
        sum(p for count, p in total.items() if count >= observed), abs=1e-11
    )


def test_many_patterns_at_once_are_tested_as_each_alone(monkeypatch):
    codes, _ = persistent(3, chunks=60, d_sae=12)
    events = transitions.onsets(codes)
    rows = np.array([(i, j, lag) for i, j, lag in product(range(12), range(12), (1, 4)) if i != j])
    together = transitions.shift_test(events, transitions.Patterns(*rows.T))
    monkeypatch.setattr(transitions, "BLOCK", 50)
    for row in range(0, len(rows), 17):
        alone = transitions.shift_test(events, transitions.Patterns(*rows[[row]].T))
        assert together.p_value[row] == pytest.approx(alone.p_value[0])
    split = transitions.shift_test(events, transitions.Patterns(*rows.T))
    assert together.p_value == pytest.approx(split.p_value)


@pytest.mark.parametrize("places", [2, 5, 40])
def test_p_values_are_those_of_the_binomial_down_to_the_floor(places):
    chunks = 30
    pattern = transitions.Patterns(np.array([0]), np.array([1]), np.array([1]))
    for met in range(chunks + 1):
        acts = torch.zeros(chunks, places + 1, 2)
        acts[:, 1, 0] = acts[:met, 2, 1] = acts[met:, 1, 1] = 1
        found = transitions.shift_test(transitions.onsets(metrics.codes_from_dense(acts)), pattern)
        exact = stats.binom.sf(met - 1, chunks, 1 / places)
        assert found.count[0] == met
        assert found.p_value[0] == pytest.approx(max(exact, transitions.P_FLOOR), rel=2e-3)


def test_a_heavy_tail_does_not_wrap_round():
    n, k, rng = 2047, 72, np.random.default_rng(0)
    places = np.sort(rng.choice(n - 4, k, replace=False)) + 1
    acts = torch.zeros(1, n + 1, 2)
    acts[0, places, 0] = acts[0, places + 2, 1] = 1
    events = transitions.onsets(metrics.codes_from_dense(acts))
    source, target = (events.place[events.feature == feature] for feature in (0, 1))
    meets = np.bincount(((source[:, None] + 1 - target) % n).flatten(), minlength=n)
    found = transitions.shift_test(
        events, transitions.Patterns(np.array([0]), np.array([1]), np.array([1]))
    )
    assert meets.max() > 50
    assert found.p_value[0] == pytest.approx((meets >= found.count[0]).mean(), rel=1e-6)


@pytest.mark.parametrize("run", [1.2, 8, 30])
def test_independent_persistent_features_are_called_significant_as_often_as_the_level_says(run):
    codes, _ = persistent(run, chunks=600, d_sae=60, seed=1)
    rows = np.array([(i, j, lag) for i, j, lag in product(range(60), range(60), (1, 5)) if i != j])
    p_value = transitions.shift_test(
        transitions.onsets(codes), transitions.Patterns(*rows.T)
    ).p_value
    assert 0.02 < (p_value <= 0.05).mean() < 0.06  # 0.05 less what a count's steps take


# ---------------------------------------------------------------- mining


@pytest.mark.parametrize("run", [1.2, 8, 30])
def test_planted_transitions_are_found_among_persistent_features(run):
    codes, planted = persistent(run, n_plant=50, seed=int(run))
    found = transitions.find_transitions(codes)
    called = set(triples(found, found.significant))
    assert codes.n_tokens > 200_000
    assert len(called & planted) >= 40
    assert len(called - planted) <= 0.1 * len(called)
    assert np.median(found.lift[found.significant]) == pytest.approx(5, rel=0.25)


@pytest.mark.parametrize("run", [1.2, 8, 30])
def test_nothing_is_found_where_nothing_is_planted(run):
    called = []
    for seed in range(10):
        codes, _ = persistent(run, chunks=500, d_sae=100, seed=seed)
        called.append(int(transitions.find_transitions(codes).significant.sum()))
    assert sum(n > 0 for n in called) <= 1, called  # 10 % of the data sets


def test_what_is_reported_of_a_transition_is_counted_on_the_test_half():
    codes, planted = persistent(2, n_plant=3, chunks=900, d_sae=40, lift=10.0, seed=4)
    found = transitions.find_transitions(codes, range(1, 17))
    assert planted <= set(triples(found, found.significant))
    on = metrics.token_matrix(codes).toarray().reshape(900, 63, 40) > 0
    onset = on[:, 1:] & ~on[:, :-1]
    onset = onset[found.tested_chunks]
    documents = metrics.document_rank(codes)
    assert set(documents[found.tested_chunks]).isdisjoint(documents[~found.tested_chunks])
    for row, (i, j, lag) in enumerate(triples(found, np.ones(len(found.patterns), bool))):
        first, second = onset[:, :-lag, i], onset[:, lag:, j]
        count, reverse = (first & second).sum(), (onset[:, :-lag, j] & onset[:, lag:, i]).sum()
        assert found.count[row] == count
        assert found.reverse[row] == reverse
        joint = count / first.size
        lift = joint / (first.mean() * second.mean())
        assert found.lift[row] == pytest.approx(lift)
        assert found.npmi[row] == pytest.approx(np.log(lift) / -np.log(joint) if count else -1.0)
        back = onset[:, :-lag, j].mean() * onset[:, lag:, i].mean() * first.size
        if count and reverse:
            assert found.direction[row] == pytest.approx(np.log(lift * back / reverse))
        else:
            assert not np.isfinite(found.direction[row])
    assert (np.diff(found.p_value) >= 0).all()
    assert found.significant.tolist() == (found.q_value <= 0.05).tolist()
    assert found.replication == pytest.approx((found.p_value <= 0.05).mean())


def test_degenerate_codes_have_no_transitions_and_one_document_is_refused():
    for acts in (torch.zeros(4, 6, 3), torch.ones(4, 6, 3), torch.ones(4, 1, 3)):
        found = transitions.find_transitions(metrics.codes_from_dense(acts), range(1, 40))
        assert (len(found.patterns), found.replication, found.significant.tolist()) == (0, None, [])
        assert transitions.graph(found).number_of_nodes() == 0
        assert transitions.chains(metrics.codes_from_dense(acts), found) == []
    with pytest.raises(ValueError, match=r"at least 2 documents.*got 1"):
        transitions.find_transitions(metrics.codes_from_dense(torch.zeros(1, 6, 3)))
    for lags in ([0, 1], [2, 1, 2]):
        with pytest.raises(ValueError, match=r"lags >= 1, each once; got \("):
            transitions.find_transitions(metrics.codes_from_dense(torch.zeros(2, 6, 3)), lags)


def test_shares_and_counts_do_not_depend_on_how_many_candidates_are_taken():
    """A few strong pairs among many weak ones: the strongest replicate more than most."""
    strong, planted = persistent(2, n_plant=8, chunks=900, d_sae=60, lift=12.0, seed=1)
    weak, _ = persistent(2, n_plant=90, chunks=900, d_sae=200, lift=2.2, seed=2)
    vals = torch.cat([strong.vals, weak.vals], 2)
    idx = torch.cat([strong.idx, weak.idx + 60], 2)
    codes = metrics.codes_from_topk(vals, idx, 260, document=strong.document, start=strong.start)
    whole = transitions.find_transitions(codes, screen_level=0.05, max_candidates=10**9)
    assert (whole.cut_frac, set(whole.weight)) == (0.0, {1.0})
    assert whole.n_candidates > 2_000
    assert whole.q_value == pytest.approx(stats.false_discovery_control(whole.p_value))
    for most in (300, 700):
        cut = transitions.find_transitions(codes, screen_level=0.05, max_candidates=most)
        assert cut.n_candidates == whole.n_candidates
        assert cut.cut_frac == pytest.approx(1 - most / whole.n_candidates)
        spread = 4 * (whole.replication * (1 - whole.replication) / len(cut.patterns)) ** 0.5
        assert cut.replication == pytest.approx(whole.replication, abs=spread)
        assert cut.weight.sum() == pytest.approx(len(whole.patterns), rel=0.15)
        assert planted <= set(triples(cut, cut.significant))  # the strongest are there to be listed
        # what a cap of the largest deviance would have called replication
        assert (cut.p_value[cut.weight == 1] <= 0.05).mean() > whole.replication + 0.02


def written(*documents):
    """A feature per string of 0 and 1, a document per tuple of them."""
    return torch.tensor(
        [[[float(c) for c in token] for token in zip(*d, strict=True)] for d in documents]
    )


def test_lift_npmi_and_direction_of_one_count_agree():
    """i = 01010, 01000; j = 01001, 01111: 6 places at lag 1, N_i = 3, N_j = 1, together once."""
    acts = written(("01010", "01001"), ("01000", "01111")).repeat(2, 1, 1)
    codes = metrics.codes_from_dense(acts, document=torch.tensor([0, 0, 1, 1]))
    found = transitions.find_transitions(codes, [1], min_count=1, screen_level=1.0)
    row = triples(found, np.ones(len(found.patterns), bool)).index((0, 1, 1))
    assert (found.count[row], found.reverse[row], found.lift[row]) == (1, 0, 2.0)
    assert found.npmi[row] == pytest.approx(np.log(2) / np.log(6))
    assert found.direction[row] == np.inf


@pytest.mark.parametrize("seq", [6, 12, 63])
def test_the_lift_of_a_planted_pair_is_the_planted_one_however_short_the_documents(seq):
    rng = np.random.default_rng(seq)
    chunks, rate, chance = 1_500_000 // (seq - 3), 0.03, 0.5
    onset = rng.random((chunks, seq, 2)) < rate
    onset[:, 2:, 1] |= onset[:, :-2, 0] & (rng.random((chunks, seq - 2)) < chance)
    vals, idx = grid_of(onset)
    found = transitions.find_transitions(metrics.codes_from_topk(vals, idx, 2), [2])
    row = triples(found, found.significant).index((0, 1, 2))
    on, after = (1 - (1 - rate) * (1 - p) for p in (rate * chance, chance))
    truth = after * (1 - rate) / (on * (1 - on))  # an onset: the token before is off
    assert found.lift[row] == pytest.approx(truth, rel=0.02)


# ---------------------------------------------------------------- token pairs, chains, graph


def bigram_and_memory(seed=0, chunks=800, seq=40):
    """Feature 0 then 1 fire on the words of a bigram; feature 3 follows feature 2 whatever the
    words.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 8, (chunks, seq))
    onset = rng.random((chunks, seq, 4)) < 0.02
    onset[:, :, :2] = False
    for c, t in zip(*np.nonzero(rng.random((chunks, seq - 1)) < 0.02), strict=True):
        tokens[c, t : t + 2] = 0, 1
    onset[:, :, 0], onset[:, :, 1] = tokens == 0, tokens == 1
    follows = onset[:, :-1, 2] & (rng.random((chunks, seq - 1)) < 0.3)
    onset[:, 1:, 3] |= follows
    vals, idx = grid_of(onset)
    return metrics.codes_from_topk(vals, idx, 4), torch.from_numpy(tokens)


def test_a_bigram_does_not_survive_stratifying_by_its_tokens_and_a_memory_does():
    codes, tokens = bigram_and_memory()
    found = transitions.find_transitions(codes, lags=[1])
    assert {(0, 1, 1), (2, 3, 1)} <= set(triples(found, found.significant))
    survives, p_value, lift = transitions.beyond_token_pairs(codes, tokens, found)
    left = triples(found, survives)
    assert (2, 3, 1) in left
    assert (0, 1, 1) not in left
    rows = triples(found, np.ones(len(survives), bool))
    assert p_value[rows.index((0, 1, 1))] == 1.0
    assert lift[rows.index((0, 1, 1))] == pytest.approx(1.0)
    assert lift[rows.index((2, 3, 1))] == pytest.approx(found.lift[rows.index((2, 3, 1))], rel=0.1)
    with pytest.raises(ValueError, match="needs tokens"):
        transitions.beyond_token_pairs(codes, tokens[:, 1:], found)


def test_the_stratified_test_is_that_of_the_tables():
    codes, tokens = bigram_and_memory(seed=1)
    found = transitions.find_transitions(codes, lags=[1])
    _, p_value, lift = transitions.beyond_token_pairs(codes, tokens, found)
    row = triples(found, np.ones(len(p_value), bool)).index((2, 3, 1))
    on = metrics.token_matrix(codes).toarray().reshape(800, 40, 4)[found.tested_chunks] > 0
    onset, words = on[:, 1:] & ~on[:, :-1], tokens.numpy()[found.tested_chunks][:, 1:]
    a, b = onset[:, :-1, 2].ravel(), onset[:, 1:, 3].ravel()
    strata = words[:, :-1].ravel() * 8 + words[:, 1:].ravel()
    expected, variance = 0.0, 0.0
    for s in np.unique(strata):
        x, y = a[strata == s], b[strata == s]
        n, n_x, n_y = len(x), x.sum(), y.sum()
        expected += n_x * n_y / n
        variance += n_x * n_y * (n - n_x) * (n - n_y) / (n**2 * (n - 1)) if n > 1 else 0.0
    count = (a & b).sum()
    z = (count - expected - 0.5) / np.sqrt(variance)
    assert p_value[row] == pytest.approx(stats.norm.sf(z), rel=1e-6)
    assert lift[row] == pytest.approx(count / expected)


def chain_of_three(seed=0, chunks=1200, seq=40):
    rng = np.random.default_rng(seed)
    onset = rng.random((chunks, seq, 6)) < 0.01
    onset[:, 2:, 1] |= onset[:, :-2, 0] & (rng.random((chunks, seq - 2)) < 0.5)
    after = onset[:, :-5, 0] & onset[:, 2:-3, 1]  # only the whole beginning foretells feature 2
    onset[:, 5:, 2] |= after & (rng.random(after.shape) < 0.8)
    vals, idx = grid_of(onset)
    return metrics.codes_from_topk(vals, idx, 6)


def test_a_planted_chain_of_three_is_found_and_beats_the_first_order_walk():
    codes = chain_of_three()
    found = transitions.find_transitions(codes)
    best = next(c for c in transitions.chains(codes, found) if c.features == (0, 1, 2))
    assert best.lags == (2, 3)
    assert best.lift > 1.2
    assert best.p_value < 1e-3
    on = metrics.token_matrix(codes).toarray().reshape(1200, 40, 6)[found.tested_chunks] > 0
    onset = on[:, 1:] & ~on[:, :-1]
    assert best.count == (onset[:, :-5, 0] & onset[:, 2:-3, 1] & onset[:, 5:, 2]).sum()
    with pytest.raises(ValueError, match="length >= 3; got 2"):
        transitions.chains(codes, found, length=2)


def test_the_graph_has_the_significant_transitions_as_edges():
    codes = chain_of_three()
    found = transitions.find_transitions(codes)
    drawn = transitions.graph(found)
    assert set(drawn.edges) == {(i, j) for i, j, _ in triples(found, found.significant)}
    assert drawn[0][1]["lag"] == 2
    assert drawn[0][1]["lift"] > 5
    assert transitions.graph(found, np.zeros(len(found.patterns), bool)).number_of_edges() == 0


def test_occurrences_are_where_both_onsets_are():
    acts = torch.zeros(2, 8, 2)
    acts[0, 2, 0] = acts[0, 4, 1] = 1
    acts[1, 3, 0] = acts[1, 5, 1] = acts[1, 6, 1] = 1
    acts[1, 0, 0] = acts[1, 7, 0] = 1  # the first is no onset seen, the last has nothing after it
    chunk, position = transitions.occurrences(metrics.codes_from_dense(acts), 0, 1, 2)
    assert list(zip(chunk.tolist(), position.tolist(), strict=True)) == [(0, 2), (1, 3)]


@pytest.mark.parametrize(
    "odd",
    [{"lags": [1, 1]}, {"alpha": float("nan")}, {"alpha": -1.0},
     {"max_candidates": 0}, {"screen_level": 0.0}, {"min_count": 0}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(odd):
    codes = metrics.codes_from_dense(torch.ones(2, 4, 3))
    with pytest.raises(ValueError, match=r"transitions need (lags|0 < alpha)"):
        transitions.find_transitions(codes, **odd)
