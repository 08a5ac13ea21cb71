from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import HOOK, load_toy, random_model, save_model, toy_batch

import tsae
from tsae import Dials, Sae
from tsae_lab.data import language_model, tasks
from tsae_lab.measures import effects, interventions
from tsae_lab.measures.effects import SPAN, Batch, Case


def planted(lm, batch: Batch) -> tuple[Sae, int]:
    """A static SAE of random features, one of which fires at the plural subject and pushes the
    verb's plural logit.
    """
    generator = torch.Generator().manual_seed(1)
    static = tsae.init_static(torch.zeros(lm.d_in), 512, generator=generator)
    planted = 77
    x = batch.x
    plural, singular = (x[batch.label == n, 1].mean(0) for n in (1, 0))
    apart = (plural - singular) / (plural - singular).square().sum()
    hidden = batch.hidden.clone().requires_grad_()
    with torch.enable_grad():
        view = lm.model.model
        for layer in list(view.layers)[2:]:
            positions = torch.arange(hidden.shape[1])[None]
            hidden_out = layer(hidden, position_embeddings=view.rotary_emb(hidden, positions))
            hidden_out = hidden_out[0] if isinstance(hidden_out, tuple) else hidden_out
        logits = lm.model.lm_head(view.norm(hidden_out))[:, -1]
        (logits[:, 40] - logits[:, 30]).sum().backward()
    push = hidden.grad[:, -batch.seq + 1].mean(0)
    W_dec, W_enc, b_enc = static.W_dec.clone(), static.W_enc.clone(), static.b_enc.clone()
    W_dec[planted] = push / push.norm()
    W_enc[:, planted] = 200 * apart
    b_enc[planted] = -200 * float(apart @ (plural + singular) / 2)
    return tsae.static_sae(replace(static, W_dec=W_dec, W_enc=W_enc, b_enc=b_enc), 8), planted


def test_a_planted_causal_feature_is_found_and_a_hundred_random_features_are_not(tmp_path):
    lm = load_toy(save_model(tmp_path, "llama", hidden_size=120, intermediate_size=80))
    above = language_model.layers_above(lm, HOOK)
    train, test = toy_batch(lm), toy_batch(lm, seed=5)
    sae, feature = planted(lm, train)
    ranked, difference = effects.number_features(sae, [train])
    assert ranked[0] == feature
    assert difference[feature] > 0
    swap = effects.swap_features(sae, ranked[:1], propagated=False)
    own = effects.profile(above, [test], swap, [SPAN])[0].mean()
    assert own < 0  # towards the other number
    rates = torch.ones(512)
    draws = effects.matched_features(rates, ranked[:1], 100, seed=0, near=511)
    assert len(draws.unique()) == 100
    assert feature not in draws
    found = []
    for stand_ins in draws:
        push = effects.matched_push(
            sae,
            ranked[:1],
            stand_ins,
            lambda b: effects.swap_amounts(sae, ranked[:1], b),
            propagated=False,
        )
        found.append(effects.profile(above, [test], push, [SPAN])[0].mean())
    assert abs(own) > np.abs(found).max()
    assert abs(own) > 2 * np.quantile(np.abs(found), 0.9)


def test_a_matched_push_has_the_swaps_contribution_at_its_positions(lm):
    batch = toy_batch(lm, n=6)
    sae = Sae(params=random_model(d_in=lm.d_in, d_sae=96), dials=Dials(k=6))
    features = interventions.codes_of(sae, batch.twin).idx[0, 1, :1]
    at = torch.stack([effects.where(batch, offset) for offset in (SPAN, -4, -1)])
    swap = effects.swap_features(sae, features, propagated=False)(batch, at)
    pushed = effects.swap_amounts(sae, features, batch)
    push = effects.matched_push(
        sae, features, (features + 1) % 96, lambda _: pushed, propagated=False
    )(batch, at)
    torch.testing.assert_close(push.norm(dim=-1), swap.norm(dim=-1))
    assert (swap[:, 0, 1] != 0).any()
    direction = effects.random_direction(effects.swap_features(sae, features, propagated=False), 0)(
        batch, at
    )
    torch.testing.assert_close(direction.norm(dim=-1), swap.norm(dim=-1))
    moved = effects.elsewhere(effects.swap_features(sae, features, propagated=False))(batch, at)
    torch.testing.assert_close(moved[:, :, 0], swap.sum(2))
    assert (moved[:, :, 1:] == 0).all()


def test_variants_in_one_call_are_what_they_are_alone(lm):
    batch = toy_batch(lm, n=6)
    sae = Sae(params=random_model(d_in=lm.d_in, d_sae=96), dials=Dials(k=6))
    features = interventions.codes_of(sae, batch.x).idx[0, 1, :2]
    at = torch.stack([effects.where(batch, offset) for offset in (SPAN, -4, -2)])
    for change in (
        effects.swap_features(sae, features, propagated=True),
        effects.swap_codes(sae, propagated=True),
        effects.ablate_features(sae, features, propagated=True),
        effects.swap_features(sae, features, propagated=False),
        effects.full_patch,
    ):
        alone = torch.cat([change(batch, at[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(change(batch, at), alone, rtol=1e-4, atol=1e-4)


def test_the_full_patch_of_the_whole_text_gives_the_twins_logits(lm):
    batch, above = toy_batch(lm, n=6), language_model.layers_above(lm, HOOK)
    twin = replace(batch, hidden=torch.cat([batch.hidden[:, : -batch.seq], batch.twin], 1))
    found = effects.profile(above, [batch], effects.full_patch, [SPAN, -1, -9])
    goal = effects.clean_differences(above, [twin]) - effects.clean_differences(above, [batch])
    np.testing.assert_allclose(found[0], goal, rtol=1e-3, atol=1e-5)
    assert np.isnan(found[2]).all()
    assert found.shape == (3, 6)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(-5, 5), st.integers(1, 5), st.booleans()), min_size=1, max_size=9
    )
)
def test_the_normalised_effect_is_a_ratio_of_sums_over_the_cases_that_have_the_position(rows):
    effect = np.array([np.nan if missing else float(e) for e, _, missing in rows])
    patch = np.array([float(p) for _, p, _ in rows])
    seen = [(e, p) for e, p, missing in rows if not missing]
    value = effects.normalised(effect, patch)
    if not seen:
        assert np.isnan(value)
        return
    expected = sum(e for e, _ in seen) / sum(p for _, p in seen)
    assert value == pytest.approx(expected)
    low, high = effects.normalised_interval(effect, patch)
    ratios = [e / p for e, p in seen]
    assert min(ratios) - 1e-9 <= low <= high <= max(ratios) + 1e-9


def test_agreement_cases_come_in_twins_that_differ_in_the_subject_alone():
    cases = effects.agreement_cases(tasks.agreement(cells=3))
    assert len(cases) == len(tasks.agreement(cells=3))
    texts = {case.text for case in cases}
    for case in cases[:400]:
        ours, theirs = case.text.split(), case.twin.split()
        assert [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b] == [1]
        assert case.twin in texts
        assert (case.good, case.bad) == ((" is", " are") if case.label == 0 else (" are", " is"))
    train, test = effects.split_cases(cases, 40, 20)
    assert (len(train), len(test)) == (40, 20)
    assert not {c.group for c in train} & {c.group for c in test}
    for part in (train, test):
        assert sum(c.label for c in part) * 2 == len(part)
        assert {c.twin for c in part} == {c.text for c in part}


def test_unusable_cases_are_skipped_and_counted(lm):
    base = {"text": "a fox", "twin": "a dog", "good": "s", "bad": "t", "label": 0, "group": ""}
    bad = ({"bad": "s"}, {"good": "xyzzy"}, {"twin": "a lazy dog"}, {"twin": "a fox"}, {"text": "", "twin": ""},
           {"text": "a" * 99, "twin": "b" + "a" * 98})  # fmt: skip
    found, skipped = effects.batches(
        lm, HOOK, [Case(**base), *(Case(**{**base, **change}) for change in bad)]
    )
    assert sum(len(batch.ids) for batch in found) == 1
    assert sum(skipped.values()) == len(bad)
    assert skipped["good and bad forms are equal or not one token each"] == 2


def test_stand_ins_have_rates_near_those_of_the_features_and_are_never_named_twice():
    rates = torch.linspace(0, 1, 400)
    features = torch.tensor([200, 201, 50])
    draws = effects.matched_features(rates, features, 60, seed=3, near=40)
    assert draws.shape == (60, 3)
    assert all(len(set(draw)) == 3 for draw in draws.tolist())
    assert not set(draws.flatten().tolist()) & {0, *features.tolist()}
    assert ((draws[:, 2] - 50).abs() <= 25).all()
    with pytest.raises(ValueError, match="3 stand-ins are needed; 1 other"):
        effects.matched_features(
            rates[:4] * 0 + torch.tensor([1.0, 1, 1, 1]), torch.tensor([0, 1, 2]), 5, seed=0
        )


def test_one_number_alone_tells_no_features(lm):
    batch = toy_batch(lm, n=2)
    one = Batch(**{name: value[:1] for name, value in vars(batch).items()})
    with pytest.raises(ValueError, match="both numbers"):
        effects.number_features(
            Sae(params=random_model(d_in=lm.d_in, d_sae=96), dials=Dials(k=6)), [one]
        )
