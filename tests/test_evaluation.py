import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import HOOK, random_model, store_of

import metrics
import tsae
from tsae_lab.data import language_model
from tsae_lab.data.store import Store
from tsae_lab.measures import evaluation


@pytest.fixture
def store() -> Store:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 5, 6, generator=generator)
    valid = torch.ones(70, 5, dtype=torch.bool)
    valid[3, 2:] = False
    return store_of(x.masked_fill(~valid[..., None], 0.0), valid)


def static(d_in: int, d_sae: int) -> tsae.Static:
    return tsae.init_static(torch.zeros(d_in), d_sae, generator=torch.Generator().manual_seed(1))


def test_measure_equals_one_pass_over_all_valid_tokens(store):
    sae = tsae.static_sae(static(6, 11), 3)
    calls = []
    found = evaluation.measure(sae, store, lambda: calls.append(1))
    x, valid = store.x(slice(None)), store.tokens.valid
    codes = tsae.encode_static(x, sae.params.static, 3)
    x_hat = tsae.decode_static(codes, sae.params.static)
    assert found.fve == pytest.approx(metrics.fve(x[valid], x_hat[valid]), abs=1e-6)
    assert found.codes.n_tokens == int(valid.sum())
    assert metrics.l0(found.codes.vals, valid) == pytest.approx(
        ((codes.vals > 0).sum(-1)[valid]).float().mean().item()
    )
    assert len(calls) == math.ceil(len(store) / evaluation.EVAL_ROWS)


def test_a_fresh_tsae_without_memory_measures_as_its_static_sae(store):
    params = tsae.from_static(static(6, 11), scale=1.0, generator=torch.Generator())
    fresh = tsae.Sae(params=params, dials=tsae.Dials(k=3, beta=0.0))
    ours, theirs = (
        evaluation.code_measures(evaluation.measure(sae, store), params.static.W_dec)
        for sae in (fresh, tsae.static_sae(params.static, 3))
    )
    assert ours == pytest.approx(theirs)


def test_the_mean_explains_nothing(store):
    x, valid = store.x(slice(None)), store.tokens.valid
    x_hat = evaluation.mean_replacement(store)(x)
    assert metrics.fve(x[valid], x_hat[valid]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("n_tokens", "rows"), [(1, 1), (5, 1), (50, 10), (10_000, 70)])
def test_picked_rows_are_distinct_ordered_and_as_many_as_the_tokens_need(store, n_tokens, rows):
    picked = evaluation.pick_rows(store, n_tokens)
    assert len(picked) == rows
    assert (np.diff(picked) > 0).all()
    assert picked[0] >= 0
    assert picked[-1] < len(store)


def test_splice_losses_are_the_models_own_loss_and_what_a_replacement_adds_to_it(lm):
    tokens = language_model.tokenize(lm, ["the quick brown fox jumps over it. " * 12], seq=9)
    x = language_model.residual(lm, tokens.ids, HOOK)[:, len(lm.prefix) :]
    fields = {name: getattr(tokens, name) for name in ("ids", "document", "start", "chars")}
    store, rows = store_of(x, tokens.valid, **fields), np.array([0, 2])
    broken = evaluation.mean_replacement(store)
    losses = evaluation.splice_losses(lm, store, rows, {"same": lambda x: x, "mean": broken})
    with torch.no_grad():
        log_p = lm.model(tokens.ids[rows].long()).logits[:, len(lm.prefix) - 1 : -1].log_softmax(-1)
    text, valid = tokens.ids[rows].long()[:, len(lm.prefix) :], tokens.valid[rows]
    nats = -sum(log_p[i, j, text[i, j]].item() for i, j in valid.nonzero().tolist())
    assert losses["clean"]["token"] == pytest.approx(nats / int(valid.sum()), rel=1e-4)
    assert losses["clean"]["char"] == pytest.approx(nats / int(tokens.chars[rows].sum()), rel=1e-4)
    assert losses["same"]["token"] == pytest.approx(losses["clean"]["token"], rel=1e-5)
    assert losses["clean"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert losses["mean"]["kl"] > 1e-3
    picked, clean = evaluation.read_clean(lm, store, 2 * tokens.valid.shape[1])
    assert picked.tolist() == [0, len(store) - 1]
    given = {"mean": broken}
    expected = evaluation.splice_losses(lm, store, picked, given)
    assert evaluation.splice_losses(lm, store, picked, given, clean) == expected
    assert evaluation.read_clean(lm, store, 2 * tokens.valid.shape[1])[1] is clean
    assert evaluation.read_clean(lm, store, tokens.valid.shape[1])[1] is not clean


@torch.no_grad()
def test_a_replacement_reconstructs_every_sequence_from_an_empty_state():
    sae = tsae.Sae(params=random_model(d_in=6, d_sae=40), dials=tsae.Dials(k=3, window=4))
    x = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(2))
    replacement = evaluation.replacement(sae)
    codes, _ = tsae.encode(sae.params, x, sae.dials)
    assert torch.equal(replacement(x), tsae.decode(sae.params, codes, sae.dials)[0])
    assert torch.equal(replacement(x), replacement(x))


def frontier_points(births, residuals):
    return [
        {"k": k, "births": b, "fve": 1 - r}
        for k, (b, r) in enumerate(zip(births, residuals, strict=True), 1)
    ]


falling = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=2, max_size=6).map(
    lambda steps: (np.cumsum([a for a, _ in steps]), np.cumsum([b for _, b in steps]))
)
"""Whole-numbered births that rise, and amounts by which the residual falls with them."""


@given(falling, st.floats(0, 1), st.randoms())
def test_between_points_of_a_frontier_the_residual_is_between_theirs(drawn, place, rng):
    births, falls = drawn[0].astype(float), drawn[1]
    residuals = 1 - falls / 250
    points = frontier_points(births.tolist(), residuals.tolist())
    rng.shuffle(points)  # their order does not matter
    for b, r in zip(births.tolist(), residuals.tolist(), strict=True):
        assert evaluation.residual_at(points, b) == pytest.approx(r, abs=1e-12)
    at = float(births[0] + place * (births[-1] - births[0]))
    i = min(int(np.searchsorted(births, at, side="right")), len(births) - 1)
    value = evaluation.residual_at(points, at)
    assert residuals[i] - 1e-12 <= value <= residuals[i - 1] + 1e-12
    assert evaluation.residual_at(points, float(births[0]) - 0.5) is None
    assert evaluation.residual_at(points, float(births[-1]) + 0.5) is None


@given(falling, st.floats(0.05, 0.9))
def test_a_frontier_that_is_lower_by_a_share_takes_that_share_away(drawn, share):
    births, falls = (values.astype(float).tolist() for values in drawn)
    residuals = [1 - fall / 250 for fall in falls]
    static = frontier_points(births, residuals)
    ours = frontier_points(births, [(1 - share) * r for r in residuals])
    for row, point in zip(evaluation.at_equal_births(static, ours), static, strict=True):
        assert (row["k"], row["births"]) == (point["k"], point["births"])
        assert row["static_residual"] == pytest.approx(1 - point["fve"])
        assert row["residual_taken"] == pytest.approx(share)


def test_fewer_births_at_one_error_take_error_away_and_what_is_outside_is_absent():
    births, residuals = [10.0, 20.0, 40.0, 80.0], [0.4, 0.3, 0.2, 0.1]
    static, ours = frontier_points(births, residuals), frontier_points(births, residuals)
    fewer = [point | {"births": 0.8 * point["births"]} for point in ours]
    rows = evaluation.at_equal_births(static, fewer)
    assert [row["residual_taken"] is None for row in rows] == [False, False, False, True]
    assert rows[3]["residual"] is None  # 80 births, of at most 64
    assert all(0 < row["residual_taken"] < 0.3 for row in rows[:3])
    assert evaluation.at_equal_births(static, []) == [
        row | {"residual": None, "residual_taken": None}
        for row in evaluation.at_equal_births(static, static)
    ]
    twice = [*ours, {"k": 9, "births": 20.0, "fve": 0.75}]  # the better of two
    assert evaluation.residual_at(twice, 20.0) == 0.25
    assert evaluation.residual_at(ours[:1], 10.0) == pytest.approx(0.4)
    perfect = [{"k": 1, "births": 10.0, "fve": 1.0}]
    assert evaluation.at_equal_births(perfect, ours)[0]["residual_taken"] is None


def test_a_step_during_which_the_machine_stood_still_counts_as_the_others():
    steps = [9.0, 1.0, 1.1, 0.9]  # the first is slow: nothing is known before it
    for took, counted in ((9.9, 9.9), (3600.0, 1.05), (0.1, 0.1)):
        assert evaluation.step_time(took, steps) == pytest.approx(counted)
    assert evaluation.step_time(3600.0, steps[:2]) == 3600.0
