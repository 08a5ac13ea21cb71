import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toys import HOOK, random_model

import metrics
from tsae import Dials, Sae
from tsae_lab.data import language_model
from tsae_lab.measures import effects, interventions, lifetimes


def make_sae(lm) -> Sae:
    return Sae(params=random_model(d_in=lm.d_in, d_sae=96), dials=Dials(k=6))


def test_kl_is_that_of_the_two_distributions_and_exactly_zero_for_equal_logits():
    clean, edited = torch.randn(2, 3, 11), torch.randn(2, 3, 11)
    p, q = clean.softmax(-1), edited.softmax(-1)
    torch.testing.assert_close(effects.kl_nats(clean, edited), (p * (p / q).log()).sum(-1))
    assert (effects.kl_nats(clean, clean.clone()) == 0).all()


def test_unrelated_text_feels_an_active_features_ablation_and_not_an_inactive_ones(lm):
    tokens = language_model.tokenize(lm, ["the quick brown fox " * 9, "a lazy dog"], seq=16)
    sae, above = make_sae(lm), language_model.layers_above(lm, HOOK)
    x = language_model.residual(lm, tokens.ids, HOOK)[:, len(lm.prefix) :]
    codes = interventions.codes_of(sae, x)
    active = codes.idx[codes.vals > 0].unique()
    off = torch.tensor([f for f in range(96) if f not in active.tolist()][:2])
    rows = range(len(tokens.ids))
    on_kl, off_kl = effects.unrelated_kl(
        lm, above, HOOK, sae, [active[:5], off], tokens, rows, propagated=False
    )
    assert on_kl > 0
    assert off_kl == 0


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3))
def test_occurrences_are_active_tokens_with_room_on_both_sides(before, after, n_each):
    generator = torch.Generator().manual_seed(0)
    acts = (torch.rand(6, 9, 5, generator=generator) > 0.5).float()
    codes = metrics.codes_from_dense(acts, lengths=torch.tensor([9, 8, 9, 2, 5, 0]))
    found = effects.edit_places(codes, np.arange(5), n_each, before=before, after=after)
    lengths = codes.valid.sum(1).numpy()
    assert (acts.numpy()[found.row, found.position, found.feature] > 0).all()
    assert (found.position >= before).all()
    assert (found.position + after < lengths[found.row]).all()
    for feature in range(5):
        possible = sum(
            acts[r, p, feature] > 0
            for r in range(6)
            for p in range(before, int(lengths[r]) - after)
        )
        assert (found.feature == feature).sum() == min(n_each, int(possible))


def test_the_effect_of_one_ablation_is_the_kl_of_full_runs_with_it_hooked_in(lm):
    tokens = language_model.tokenize(
        lm, ["the quick brown fox jumps over the lazy dog " * 6], seq=24
    )
    sae = make_sae(lm)
    x = language_model.residual(lm, tokens.ids, HOOK)[:, len(lm.prefix) :]
    codes = interventions.codes_of(sae, x)
    held = metrics.codes_from_topk(
        codes.vals, codes.idx, 96, valid=tokens.valid, document=tokens.document
    )
    active = held.idx[0, 5, held.vals[0, 5].argmax()]
    found = effects.Occurrences(np.array([int(active)]), np.array([0]), np.array([5]))
    kl = effects.decay(
        lm,
        language_model.layers_above(lm, HOOK),
        HOOK,
        sae,
        tokens,
        found,
        [False, True],
        before=5,
        after=3,
    )
    ids = tokens.ids[:1, : len(lm.prefix) + 9].long()
    for values, propagated in zip(kl, (False, True), strict=True):
        edit = interventions.ablate(active[None], interventions.positions(9, [5]))
        edited = interventions.edited_logits(lm, ids, HOOK, sae, edit, propagated=propagated)[
            :, -4:
        ]
        expected = effects.kl_nats(lm.bridge(ids)[:, -4:], edited)
        np.testing.assert_allclose(values, expected.numpy(), rtol=1e-2, atol=1e-6)
        assert values[0, 0] > 0


def test_durations_are_weighted_mean_distances_by_feature():
    kl = np.array([[1.0, 0, 0], [0, 0, 3.0], [0, 0, 0], [2.0, 2.0, 0]])
    names, lasts = effects.durations(kl, np.array([4, 4, 7, 9]))
    assert names.tolist() == [4, 9]  # 7 has no effect
    np.testing.assert_allclose(lasts, [6 / 4, 2 / 4])


def test_the_rank_correlation_is_scipys_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    one = rng.normal(size=60)
    other = one + rng.normal(size=60)
    found = effects.spearman(one, other)
    assert found.rho == pytest.approx(float(stats.spearmanr(one, other)[0]))  # type: ignore[arg-type]
    assert 0 < found.low < found.rho < found.high < 1
    assert effects.spearman(one, -one).rho == -1
    constant = effects.spearman(np.ones(5), np.arange(5.0))
    assert (constant.rho, constant.low, constant.high) == (0, -1, 1)


def test_features_are_spread_over_the_ranks_of_their_lifetimes():
    acts = torch.zeros(1, 400, 4)
    for feature, length in enumerate((1, 2, 4, 8)):
        for begin in range(0, 390, length + 1):
            acts[0, begin : begin + length, feature] = 1
    runs = lifetimes.runs(metrics.codes_from_dense(acts))
    assert effects.spread_features(runs, 4).tolist() == [0, 1, 2, 3]
    assert effects.spread_features(runs, 2).tolist() == [0, 3]
    assert effects.spread_features(runs, 9).tolist() == [0, 1, 2, 3]
