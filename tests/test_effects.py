from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toys import HOOK, load_toy, random_model, save_model, toy_batch

import metrics
import tsae
from tsae import Dials, Sae
from tsae_lab.data import language_model, splicing, tasks
from tsae_lab.data.texts import Tokens
from tsae_lab.measures import effects, interventions, text_effects
from tsae_lab.measures.effects import SPAN, Batch, Case


def make_sae(lm) -> Sae:
    """A random TSAE whose every part acts."""
    return Sae(params=random_model(d_in=lm.d_in, d_sae=96), dials=Dials(k=6))


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
    draws = effects.matched_features(rates, ranked[:1], 100, seed=0)
    assert len(draws.unique()) == 100
    assert feature not in draws
    amounts = effects.swap_amounts(sae, ranked[:1], test)
    control = []
    for stand_ins in draws:
        push = effects.matched_push(sae, ranked[:1], stand_ins, lambda _: amounts, propagated=False)
        control.append(effects.profile(above, [test], push, [SPAN])[0].mean())
    assert abs(own) > np.abs(control).max()
    assert abs(own) > 2 * np.quantile(np.abs(control), 0.9)


def test_a_matched_push_has_the_swaps_contribution_at_its_positions(lm):
    batch = toy_batch(lm, n=6)
    sae = make_sae(lm)
    features = interventions.codes_of(sae, batch.twin).idx[0, 1, :1]
    masks = torch.stack([effects.where(batch, offset) for offset in (SPAN, -4, -1)])
    swap = effects.swap_features(sae, features, propagated=False)
    delta, pushed = swap(batch, masks), effects.swap_amounts(sae, features, batch)
    push = effects.matched_push(
        sae, features, (features + 1) % 96, lambda _: pushed, propagated=False
    )
    torch.testing.assert_close(push(batch, masks).norm(dim=-1), delta.norm(dim=-1))
    assert (delta[:, 0, 1] != 0).any()
    direction = effects.random_direction(swap, 0)(batch, masks)
    torch.testing.assert_close(direction.norm(dim=-1), delta.norm(dim=-1))
    moved = effects.elsewhere(swap)(batch, masks)
    torch.testing.assert_close(moved[:, :, 2], delta.sum(2))  # the subject is at 1
    assert (moved[:, :, [0, 1, 3, 4]] == 0).all()


def test_variants_in_one_call_are_what_they_are_alone(lm):
    batch = toy_batch(lm, n=6)
    sae = make_sae(lm)
    features = interventions.codes_of(sae, batch.x).idx[0, 1, :2]
    masks = torch.stack([effects.where(batch, offset) for offset in (SPAN, -4, -2)])
    for change in (
        effects.swap_features(sae, features, propagated=True),
        effects.swap_codes(sae, propagated=True),
        effects.ablate_features(sae, features, propagated=True),
        effects.swap_features(sae, features, propagated=False),
        effects.full_patch,
    ):
        alone = torch.cat([change(batch, masks[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(change(batch, masks), alone, rtol=1e-4, atol=1e-4)


def test_the_full_patch_of_the_whole_text_gives_the_twins_logits(lm):
    batch, above = toy_batch(lm, n=6), language_model.layers_above(lm, HOOK)
    twin = replace(batch, hidden=torch.cat([batch.hidden[:, : -batch.seq], batch.twin], 1))
    patch = effects.profile(above, [batch], effects.full_patch, [SPAN, -1, -9])
    goal = effects.clean_differences(above, [twin]) - effects.clean_differences(above, [batch])
    np.testing.assert_allclose(patch[0], goal, rtol=1e-3, atol=1e-5)
    assert np.isnan(patch[2]).all()
    assert patch.shape == (3, 6)
    assert effects.normalised(patch[0], patch[0]) == 1


def hooked_differences(lm, batch: Batch, delta: torch.Tensor) -> torch.Tensor:
    """logit(good) - logit(bad) by full runs with `delta` (batch seq d_in) added to the text."""

    def add(x, hook):  # noqa: ARG001 the bridge names it
        return torch.cat([x[:, : -batch.seq], x[:, -batch.seq :] + delta], 1)

    logits = lm.bridge.run_with_hooks(batch.ids, fwd_hooks=[(HOOK, add)])[:, -1]
    rows = torch.arange(len(batch.ids))
    return logits[rows, batch.good] - logits[rows, batch.bad]


@torch.no_grad()
def test_logit_differences_are_those_of_full_runs_with_the_deltas_hooked_in(lm, monkeypatch):
    batch, above = toy_batch(lm, n=5), language_model.layers_above(lm, HOOK)
    deltas = torch.randn(3, *batch.twin.shape, generator=torch.Generator().manual_seed(0))
    deltas[1] = 0
    expected = torch.stack([hooked_differences(lm, batch, delta) for delta in deltas])
    for n_tokens in (2_048, 2 * batch.ids.shape[1]):  # all at once, and two rows per call
        monkeypatch.setattr(language_model, "FORWARD_TOKENS", n_tokens)
        differences = effects.logit_differences(above, batch, deltas)
        torch.testing.assert_close(differences, expected, rtol=1e-3, atol=1e-5)
    clean = effects.clean_differences(above, [batch])
    np.testing.assert_allclose(clean, expected[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("propagated", [False, True])
def test_each_variant_of_a_change_is_the_edit_of_each_case_alone(lm, propagated):
    batch, sae = toy_batch(lm, n=3), make_sae(lm)
    features = interventions.codes_of(sae, batch.twin).idx[0, 1, :2]
    masks = torch.stack([effects.where(batch, offset) for offset in (SPAN, -2)])

    def make(batch, mask):
        return interventions.swap(features, mask, effects.twin_codes(sae, batch, mask))

    deltas = effects.change_by(sae, make, propagated=propagated)(batch, masks)
    assert (deltas != 0).any()
    for variant, mask in enumerate(masks):
        for case in range(3):
            twin = interventions.codes_of(sae, batch.twin[case : case + 1])
            edit = interventions.swap(features, mask[case : case + 1], twin)
            x = batch.x[case : case + 1]
            alone = interventions.intervene(sae, x, edit, propagated=propagated)[0][0]
            torch.testing.assert_close(deltas[variant, case], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("propagated", [False, True])
def test_steering_gives_each_variant_its_own_amounts_and_by_zero_it_is_the_identity(lm, propagated):
    batch, sae = toy_batch(lm, n=4), make_sae(lm)
    features = torch.tensor([7, 40])
    amounts = torch.tensor([[0.0, 0.0], [2.0, -1.0], [0.5, 0.0]])
    mask = effects.where(batch, SPAN)
    steering = effects.steer_features(sae, features, amounts, propagated=propagated)
    deltas = steering(batch, mask.expand(3, -1, -1))
    assert (deltas[0] == 0).all()
    for delta, amount in zip(deltas, amounts, strict=True):
        edit = interventions.steer(features, mask, amount)
        alone = interventions.intervene(sae, batch.x, edit, propagated=propagated)[0]
        torch.testing.assert_close(delta, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("propagated", [False, True])
def test_an_inactive_features_ablation_has_no_effect_and_an_active_ones_has(lm, propagated):
    batch, above, sae = toy_batch(lm, n=6), language_model.layers_above(lm, HOOK), make_sae(lm)
    codes = interventions.codes_of(sae, batch.x)
    active = codes.idx[codes.vals > 0].unique()
    dead = torch.tensor([f for f in range(96) if f not in active.tolist()])
    for features, moves in ((dead, False), (active, True)):
        change = effects.ablate_features(sae, features, propagated=propagated)
        assert (change(batch, effects.where(batch, SPAN)[None]) != 0).any() == moves
        effect = effects.profile(above, [batch], change, [SPAN, -1])
        assert (abs(effect) > 1e-5).any() == moves


@pytest.mark.parametrize("propagated", [False, True])
def test_an_edit_reaches_no_prediction_before_its_position(lm, propagated):
    batch, above, sae = toy_batch(lm, n=4), language_model.layers_above(lm, HOOK), make_sae(lm)
    swap = effects.swap_codes(sae, propagated=propagated)
    delta = swap(batch, effects.where(batch, -2)[None])[0]
    assert (delta[:, : batch.seq - 2] == 0).all()
    assert (delta[:, batch.seq - 2] != 0).any()
    edited = batch.hidden.clone()
    edited[:, -batch.seq :] += delta
    clean, changed = (above(batch.ids, x, batch.seq) for x in (batch.hidden, edited))
    assert torch.equal(changed[:, :-2], clean[:, :-2])
    assert not torch.equal(changed[:, -1], clean[:, -1])


def test_a_position_is_counted_from_the_verb_and_the_span_begins_at_the_subject(lm):
    batch = replace(toy_batch(lm, n=3, seq=5), subject=torch.tensor([1, 0, 4]))
    span = [[i >= start for i in range(5)] for start in (1, 0, 4)]
    assert effects.where(batch, SPAN).tolist() == span
    assert effects.where(batch, -2).tolist() == [[i == 3 for i in range(5)]] * 3


def test_first_cases_are_whole_lengths_the_most_frequent_first(lm):
    few, many = toy_batch(lm, n=3, seq=4), toy_batch(lm, n=5, seq=6)
    for n, sizes in ((4, [4]), (5, [5]), (7, [5, 2]), (99, [5, 3])):
        taken = effects.first_cases([few, many], n)
        assert [len(batch.ids) for batch in taken] == sizes
        assert torch.equal(taken[0].ids, many.ids[: sizes[0]])
        assert all(len(values) == sizes[-1] for values in vars(taken[-1]).values())


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
    bounds = effects.normalised_interval(effect, patch, np.arange(len(effect)))
    assert (bounds is None) == (len(seen) == 1)
    low, high = bounds or (value, value)
    assert low - 1e-9 <= value <= high + 1e-9
    if len({e / p for e, p in seen}) == 1:  # every sample has the one ratio
        assert high - low == pytest.approx(0, abs=1e-9)


def test_the_interval_of_a_normalised_effect_is_that_of_its_mean_where_all_patches_are_equal():
    effect = np.random.default_rng(0).normal(size=200)
    low, high = effects.normalised_interval(effect, np.full(200, 2.0), np.arange(200))
    half = stats.t.ppf(0.975, 199) * effect.std(ddof=1) / np.sqrt(200) / 2
    np.testing.assert_allclose([low, high], effect.mean() / 2 + half * np.array([-1, 1]), atol=0.01)


def test_the_interval_covers_the_truth_where_twins_are_alike():
    """Planted: the effect is .5, twins share half of their noise; drawn apart they cover less."""
    rng, group = np.random.default_rng(0), np.repeat(np.arange(24), 2)
    covers = {"pairs": 0, "cases": 0}
    for _ in range(200):
        effect = 0.5 + rng.normal(size=24)[group] + 0.5 * rng.normal(size=48)
        for name, drawn in (("pairs", group), ("cases", np.arange(48))):
            low, high = effects.normalised_interval(effect, np.ones(48), drawn)
            covers[name] += low <= 0.5 <= high
    assert 0.91 <= covers["pairs"] / 200 <= 0.99
    assert covers["cases"] / 200 <= 0.89


def test_agreement_cases_come_in_twins_that_differ_in_the_subject_alone():
    items = tasks.agreement()
    cases = effects.agreement_cases(items)
    assert {case.text for case in cases} == {item.text for item in items}
    texts = {case.text for case in cases}
    for case in cases[:400]:
        ours, theirs = case.text.split(), case.twin.split()
        assert [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b] == [1]
        assert case.twin in texts
        assert (case.good, case.bad) == ((" is", " are") if case.label == 0 else (" are", " is"))
    train, test = effects.split_cases(cases, 40, 20)
    assert (len(train), len(test)) == (40, 20)
    assert not {c.group for c in train} & {c.group for c in test}
    for half in (train, test):
        assert sum(c.label for c in half) * 2 == len(half)
        assert {c.twin for c in half} == {c.text for c in half}


def test_unusable_cases_are_skipped_and_counted(lm):
    base = {"text": "a fox", "twin": "a dog", "good": "s", "bad": "t", "label": 0, "group": ""}
    bad = (
        {"bad": "s"},
        {"good": "xyzzy"},
        {"twin": "a lazy dog"},
        {"twin": "a fox"},
        {"text": "", "twin": ""},
        {"text": "a" * 99, "twin": "b" + "a" * 98},
    )
    cases = [Case(**base), *(Case(**{**base, **change}) for change in bad)]
    usable, skipped = effects.batches(lm, HOOK, cases)
    assert sum(len(batch.ids) for batch in usable) == 1
    assert skipped == {
        "good and bad forms are equal or not one token each": 2,
        "text and twin differ in tokens": 1,
        "text and twin are equal, or empty": 2,
        "too long for the model": 1,
    }
    alone = [Case(**{**base, "twin": base["text"]})]
    with pytest.raises(
        ValueError, match="none of 1 texts can be measured: text and twin are equal"
    ):
        effects.batches(lm, HOOK, alone)
    batch = effects.batches(lm, HOOK, alone, need_twin=False)[0][0]
    assert torch.equal(batch.x, batch.twin)
    assert batch.subject.tolist() == [0]


def test_a_batch_holds_the_tokens_and_the_subject_of_its_cases(lm):
    base = {"good": "s", "bad": "t", "label": 0, "group": ""}
    texts = [("the fox", "the dog"), ("fox the", "dog the"), ("lazy dog over", "lazy fox over")]
    cases = [Case(text=text, twin=twin, **base) for text, twin in texts]
    batches, skipped = effects.batches(lm, HOOK, cases)
    assert not skipped
    rows = [(row, batch) for batch in batches for row in range(len(batch.ids))]
    words = [lm.tokenizer.decode(batch.ids[row, len(lm.prefix) :]) for row, batch in rows]
    assert sorted(words) == sorted(text for text, _ in texts)
    for (row, batch), text in zip(rows, words, strict=True):
        ours, theirs = (language_model.token_ids(lm, t) for t in (text, dict(texts)[text]))
        assert batch.subject[row] == next(i for i in range(9) if ours[i] != theirs[i])
        x = language_model.residual(lm, torch.tensor([[*lm.prefix, *theirs]]), HOOK)
        torch.testing.assert_close(batch.twin[row], x[0, len(lm.prefix) :])


def test_stand_ins_have_rates_near_those_of_the_features_and_are_never_named_twice(monkeypatch):
    monkeypatch.setattr(effects, "NEAR", 40)
    rates = torch.linspace(0, 1, 400)
    features = torch.tensor([200, 201, 50])
    draws = effects.matched_features(rates, features, 60, seed=3)
    assert draws.shape == (60, 3)
    assert all(len(set(draw)) == 3 for draw in draws.tolist())
    assert not set(draws.flatten().tolist()) & {0, *features.tolist()}
    assert ((draws[:, 2] - 50).abs() <= 25).all()
    with pytest.raises(ValueError, match="3 stand-ins are needed; 1 other"):
        effects.matched_features(torch.ones(4), torch.tensor([0, 1, 2]), 5, seed=0)


def test_one_number_alone_tells_no_features(lm):
    batch = toy_batch(lm, n=2)
    alone = Batch(**{name: value[:1] for name, value in vars(batch).items()})
    with pytest.raises(ValueError, match="both numbers"):
        effects.number_features(make_sae(lm), [alone])


# ----------------------------------------------------------------- on other text, and for how long


@pytest.mark.parametrize("at_once", [1, 22, 2**20])
def test_kl_is_that_of_the_two_distributions_and_0_for_equal_logits(monkeypatch, at_once):
    monkeypatch.setattr(splicing, "IN_CACHE", at_once)
    clean, edited = torch.randn(2, 3, 11), torch.randn(2, 3, 11)
    p, q = clean.softmax(-1), edited.softmax(-1)
    torch.testing.assert_close(text_effects.kl_nats(clean, edited), (p * (p / q).log()).sum(-1))
    assert (text_effects.kl_nats(clean, clean.clone()) == 0).all()


def test_unrelated_text_feels_an_active_features_ablation_and_not_an_inactive_ones(lm):
    tokens = language_model.tokenize(lm, ["the quick brown fox " * 9, "a lazy dog"], seq=16)
    sae, above = make_sae(lm), language_model.layers_above(lm, HOOK)
    x = language_model.residual(lm, tokens.ids, HOOK)[:, len(lm.prefix) :]
    codes = interventions.codes_of(sae, x)
    active = codes.idx[codes.vals > 0].unique()
    off = torch.tensor([f for f in range(96) if f not in active.tolist()][:2])
    rows = range(len(tokens.ids))
    kl, n_tokens = text_effects.unrelated_kl(
        lm, above, HOOK, sae, [active[:5], off], tokens, rows, propagated=False
    )
    assert n_tokens.tolist() == tokens.valid.sum(1).tolist()
    assert (kl[0] > 0).all()
    assert (kl[1] == 0).all()


@pytest.mark.parametrize("n_each", [1, 3, 99])
def test_occurrences_are_active_tokens_with_room_on_both_sides(n_each):
    generator = torch.Generator().manual_seed(0)
    acts = (torch.rand(6, 37, 5, generator=generator) > 0.5).float()
    codes = metrics.codes_from_dense(acts, lengths=torch.tensor([37, 36, 37, 28, 33, 0]))
    places = text_effects.edit_places(codes, np.arange(5), n_each, seed=0)
    lengths = codes.valid.sum(1).numpy()
    assert (acts.numpy()[places.row, places.position, places.feature] > 0).all()
    assert (places.position >= text_effects.BEFORE).all()
    assert (places.position + text_effects.AFTER < lengths[places.row]).all()
    assert len(set(zip(places.feature, places.row, places.position, strict=True))) == len(
        places.row
    )
    for feature in range(5):
        possible = sum(
            acts[row, position, feature] > 0
            for row in range(6)
            for position in range(text_effects.BEFORE, int(lengths[row]) - text_effects.AFTER)
        )
        assert (places.feature == feature).sum() == min(n_each, int(possible))


def test_the_effect_of_one_ablation_is_the_kl_of_full_runs_with_it_hooked_in(lm):
    text = "the quick brown fox jumps over the lazy dog " * 6
    tokens = language_model.tokenize(lm, [text], seq=32)
    sae, before, n = make_sae(lm), text_effects.BEFORE, text_effects.BEFORE + 1 + text_effects.AFTER
    ids = tokens.ids[:1, : len(lm.prefix) + n].long()
    codes = interventions.codes_of(sae, language_model.residual(lm, ids, HOOK)[:, len(lm.prefix) :])
    active = codes.idx[0, before, codes.vals[0, before].argmax()]
    places = text_effects.Occurrences(np.array([int(active)]), np.array([0]), np.array([before]))
    above = language_model.layers_above(lm, HOOK)
    by_mode = text_effects.decay(lm, above, HOOK, sae, tokens, places, [False, True])
    for kl, propagated in zip(by_mode, (False, True), strict=True):
        edit = interventions.ablate(active[None], interventions.positions(n, [before]))
        act = interventions.edit_hook(sae, edit, len(lm.prefix), propagated=propagated)
        edited = lm.bridge.run_with_hooks(ids, fwd_hooks=[(HOOK, act)])
        expected = text_effects.kl_nats(lm.bridge(ids), edited)[:, -text_effects.AFTER - 1 :]
        np.testing.assert_allclose(kl, expected.numpy(), rtol=1e-2, atol=1e-6)
        assert kl[0, 0] > 0


def test_occurrences_are_timed_where_the_short_text_has_the_feature(lm):
    texts = torch.randint(20, 250, (6, 60), generator=torch.Generator().manual_seed(0))
    prefix = torch.tensor(lm.prefix).expand(6, -1)
    tokens = Tokens(ids=torch.cat([prefix, texts], 1).int(), valid=torch.ones(6, 60).bool(),
                    document=torch.arange(6).int(), chars=torch.full((6,), 60).int(),
                    start=torch.zeros(6).int())  # fmt: skip
    sae = make_sae(lm)
    drawn = np.array([(f, row, 20 + row) for f in range(96) for row in range(6)])
    places = text_effects.Occurrences(*drawn.T)
    fires = []
    for feature, row, position in drawn:
        text = tokens.ids[row, len(lm.prefix) + position - text_effects.BEFORE :][None].long()
        ids = torch.cat([prefix[:1], text[:, : text_effects.BEFORE + 1]], 1)
        x = language_model.residual(lm, ids, HOOK)[:, len(lm.prefix) :]
        codes = interventions.codes_of(sae, x)
        fires.append(bool((codes.vals[0, -1] * (codes.idx[0, -1] == feature)).sum() > 0))
    kept, inactive = text_effects.active_places(lm, HOOK, sae, tokens, places, 99)
    expected = drawn[np.array(fires)]
    assert np.array_equal(np.stack([kept.feature, kept.row, kept.position], 1), expected)
    assert len(expected) > 0
    assert inactive == pytest.approx(1 - np.mean(fires))
    two, _ = text_effects.active_places(lm, HOOK, sae, tokens, places, 2)
    assert np.bincount(two.feature).max() <= 2
    above = language_model.layers_above(lm, HOOK)
    assert (text_effects.decay(lm, above, HOOK, sae, tokens, two, [False])[0].sum(1) > 0).all()


def test_durations_are_weighted_mean_distances_by_feature():
    kl = np.array([[1.0, 0, 0], [0, 0, 3.0], [0, 0, 0], [2.0, 2.0, 0]])
    names, lasts = text_effects.durations(kl, np.array([4, 4, 7, 9]))
    assert names.tolist() == [4, 9]  # 7 has no effect
    np.testing.assert_allclose(lasts, [6 / 4, 2 / 4])
    first, *_, last = text_effects.decay_rows(kl, np.array([4, 4, 7, 9]))
    assert first == {"feature": 4, "kl_0": 0.5, "kl_1": 0.0, "kl_2": 1.5}
    assert last == {"feature": 9, "kl_0": 2.0, "kl_1": 2.0, "kl_2": 0.0}


def test_the_rank_correlation_is_scipys_and_so_are_those_of_its_resamples(monkeypatch):
    monkeypatch.setattr(text_effects, "EFFECT_BOOT", 60)
    rng = np.random.default_rng(0)
    x = rng.integers(5, size=12).astype(float)  # with ties
    y = x + rng.normal(size=12)
    rho, found = text_effects.spearman(x, y)
    assert rho == pytest.approx(float(stats.spearmanr(x, y)[0]))  # type: ignore[arg-type]
    rows = [np.repeat(np.arange(12), n.astype(int)) for n in metrics.resamples(12, 60)]
    assert found == pytest.approx([stats.spearmanr(x[row], y[row])[0] for row in rows])
    assert metrics.interval(*text_effects.spearman(y, -y), 12, -1.0) == (-1, -1)


def test_the_rank_correlation_of_a_constant_or_of_two_things_says_nothing():
    for x in (np.ones(5), np.arange(2.0)):
        rho, replicates = text_effects.spearman(x, np.arange(float(len(x))))
        assert (rho, len(replicates)) == (None, 0)


def test_features_are_spread_over_the_ranks_of_their_lifetimes():
    life = np.array([2.5, np.nan, 1.5, 9.0, 4.0])  # feature 1 has no lifetime
    assert text_effects.spread_features(life, 4).tolist() == [2, 0, 4, 3]
    assert text_effects.spread_features(life, 2).tolist() == [2, 3]
    assert text_effects.spread_features(life, 9).tolist() == [2, 0, 4, 3]
    assert text_effects.spread_features(np.zeros(3), 2).tolist() == []
