from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import edited_logits, random_model

import tsae
from tsae import Codes, Dials, Memory, Sae
from tsae_lab.data import language_model
from tsae_lab.measures import interventions

quick = settings(deadline=None, max_examples=20)
loose = {"rtol": 1e-4, "atol": 1e-4}
D_IN, D_SAE, K = 12, 96, 6


@st.composite
def saes(draw: st.DrawFn) -> Sae:
    """A TSAE whose every part acts; values are normal, so no two pre-activations are equal."""
    dials = Dials(
        k=K,
        window=draw(st.integers(1, 5)),
        beta=draw(st.sampled_from([0.0, 1.0, 4.0])),
        mix=draw(st.sampled_from([0.0, 0.5, 1.0])),
        gate=draw(st.booleans()),
        recur=draw(st.booleans()),
    )
    return Sae(
        params=random_model(d_in=D_IN, d_sae=D_SAE, seed=draw(st.integers(0, 3))), dials=dials
    )


def text(seq: int, batch: int = 3, seed: int = 0) -> torch.Tensor:
    """Activations that change slowly, so that the memory matters."""
    steps = torch.randn(batch, seq, D_IN, generator=torch.Generator().manual_seed(seed))
    return steps.cumsum(1) / torch.arange(1, seq + 1)[:, None] ** 0.5


def edits(data: st.DataObject, batch: int, seq: int, n: int = 2) -> interventions.Edit:
    features = torch.tensor(
        data.draw(st.lists(st.integers(0, D_SAE - 1), min_size=n, max_size=n, unique=True))
    )
    at = torch.tensor(data.draw(st.lists(st.booleans(), min_size=seq, max_size=seq))).expand(
        batch, seq
    )
    kind = data.draw(st.sampled_from(["ablate", "clamp", "steer"]))
    if kind == "ablate":
        return interventions.ablate(features, at)
    value = data.draw(st.sampled_from([-2.0, 0.5, 3.0]))
    return (
        interventions.clamp(features, at, value)
        if kind == "clamp"
        else interventions.steer(features, at, value)
    )


def part(edit: interventions.Edit, begin: int, end: int) -> interventions.Edit:
    cut = {name: getattr(edit, name)[:, begin:end] for name in ("features", "keep", "add", "at")}
    return replace(edit, **cut)


def edited_dense(acts: torch.Tensor, edit: interventions.Edit, t: int) -> torch.Tensor:
    """Dense codes of token t with the edit made, by loops."""
    out = acts.clone()
    for row in range(len(acts)):
        if not edit.at[row, t]:
            continue
        for j, feature in enumerate(edit.features[row, t].tolist()):
            out[row, feature] = edit.keep[row, t, j] * acts[row, feature] + edit.add[row, t, j]
    return out


def as_codes(acts: torch.Tensor) -> Codes:
    return Codes(acts[:, None], torch.arange(acts.shape[-1]).expand(len(acts), 1, -1))


def by_loop(sae: Sae, x: torch.Tensor, edit: interventions.Edit) -> torch.Tensor:
    """The propagated delta, token by token with the library's own encoder; the memory as a list of
    dense codes.
    """
    params, dials = sae.params, sae.dials
    original, edited = (tsae.start_state(params, len(x), dials) for _ in range(2))
    slots: list[torch.Tensor] = []  # what the edited stream remembers, dense
    out = []
    for t in range(x.shape[1]):
        now = x[:, t : t + 1]
        plain, original = tsae.encode(params, now, dials, original)
        x_hat, original = tsae.decode(params, plain, dials, original)
        if slots:
            recent = slots[-dials.window :]
            fresh = tsae.start_state(params, len(x), dials).memory
            memory = tsae.push(
                Memory(fresh.vals, fresh.idx, 0), as_codes(torch.zeros(len(x), D_SAE))
            )
            for slot in recent:
                memory = tsae.push(memory, as_codes(slot))
            edited = replace(edited, memory=memory)
        static = tsae.dense(tsae.encode_static(now, params.static, dials.k), D_SAE)[:, 0]
        codes, edited = tsae.encode(params, now, dials, edited)
        acts = tsae.dense(codes, D_SAE)[:, 0]
        changed = edited_dense(acts, edit, t)
        slots.append(torch.where(changed != acts, edited_dense(static, edit, t), static))
        x_edited, edited = tsae.decode(params, as_codes(changed), dials, edited)
        out.append(x_edited - x_hat)
    return torch.cat(out, 1)


@quick
@given(saes(), st.data(), st.integers(1, 9))
def test_a_propagated_edit_equals_a_loop_over_tokens_with_the_memory_edited_in_place(
    sae, data, seq
):
    x = text(seq)
    edit = edits(data, len(x), seq)
    delta, _ = interventions.intervene(sae, x, edit, propagated=True)
    torch.testing.assert_close(delta, by_loop(sae, x, edit), **loose)


@quick
@given(saes(), st.data(), st.integers(1, 9))
def test_a_local_edit_adds_the_features_rows_at_its_positions_and_nothing_else(sae, data, seq):
    x = text(seq)
    edit = edits(data, len(x), seq)
    delta, _ = interventions.intervene(sae, x, edit, propagated=False)
    acts = tsae.dense(tsae.encode(sae.params, x, sae.dials)[0], D_SAE)
    changed = torch.stack([edited_dense(acts[:, t], edit, t) for t in range(seq)], 1)
    torch.testing.assert_close(delta, (changed - acts) @ sae.params.static.W_dec, **loose)
    assert (delta[~edit.at] == 0).all()


@quick
@given(saes(), st.data(), st.booleans())
def test_token_by_token_with_the_states_carried_gives_what_one_call_gives(sae, data, propagated):
    x, seq = text(8), 8
    edit = edits(data, len(x), seq)
    whole, _ = interventions.intervene(sae, x, edit, propagated=propagated)
    states, parts = None, []
    for t in range(seq):
        delta, states = interventions.intervene(
            sae, x[:, t : t + 1], part(edit, t, t + 1), propagated=propagated, states=states
        )
        parts.append(delta)
    torch.testing.assert_close(torch.cat(parts, 1), whole, **loose)


@quick
@given(saes(), st.booleans(), st.integers(0, 7))
def test_an_identity_edit_and_an_inactive_features_ablation_change_nothing_at_all(
    sae, propagated, position
):
    x = text(8)
    at = interventions.positions(8, [position], len(x))
    active = tsae.dense(interventions.codes_of(sae, x), D_SAE)[:, position] > 0
    off = (~active.any(0)).nonzero()[:3, 0]
    on = active[0].nonzero()[:2, 0]
    codes = interventions.codes_of(sae, x)
    same = (
        interventions.steer(on, at, 0.0),
        interventions.clamp(on, at, interventions.values_of(codes, on.expand(*at.shape, -1))),
        interventions.ablate(off, at),
    )
    for edit in (*same, interventions.swap(on, at, codes)):
        delta, _ = interventions.intervene(sae, x, edit, propagated=propagated)
        assert (delta == 0).all()


@quick
@given(saes(), st.data(), st.integers(0, 7))
def test_nothing_before_the_edit_changes_and_something_after_it_may(sae, data, position):
    x = text(8)
    edit = replace(edits(data, len(x), 8), at=interventions.positions(8, [position], len(x)))
    delta, _ = interventions.intervene(sae, x, edit, propagated=True)
    assert (delta[:, :position] == 0).all()


def test_an_edit_runs_on_through_the_memory_alone_and_through_the_decoder_alone():
    params, x = random_model(d_in=D_IN, d_sae=D_SAE), text(8)
    active = interventions.codes_of(Sae(params=params, dials=Dials(k=K, gate=False)), x).idx[
        0, 0, :1
    ]
    edit = interventions.clamp(active, interventions.positions(8, [0], len(x)), 50.0)
    for dials in (
        Dials(k=K, beta=2.0, gate=False, recur=False),
        Dials(k=K, beta=0.0, gate=False, recur=True),
    ):
        delta, _ = interventions.intervene(
            Sae(params=params, dials=dials), x, edit, propagated=True
        )
        assert (delta[:, 1:] != 0).any()


@quick
@given(st.data())
def test_for_a_static_sae_local_and_propagated_are_the_same(data):
    sae = tsae.static_sae(random_model(d_in=D_IN, d_sae=D_SAE).static, K)
    x = text(6)
    edit = edits(data, len(x), 6)
    local, propagated = (
        interventions.intervene(sae, x, edit, propagated=p)[0] for p in (False, True)
    )
    torch.testing.assert_close(local, propagated, **loose)
    torch.testing.assert_close(
        tsae.dense(interventions.codes_of(sae, x), D_SAE),
        tsae.dense(tsae.encode_static(x, sae.params.static, K), D_SAE),
    )


@quick
@given(saes(), st.data())
def test_an_sae_has_a_second_mode_where_an_edit_reaches_later_tokens_and_only_there(sae, data):
    x, at = text(6), interventions.positions(6, [0], 3)
    edit = interventions.steer(torch.tensor([data.draw(st.integers(0, D_SAE - 1))]), at, 3.0)
    local, propagated = (
        interventions.intervene(sae, x, edit, propagated=p)[0] for p in (False, True)
    )
    assert list(interventions.modes(sae).values()) in ([False], [False, True])
    if len(interventions.modes(sae)) == 1:
        torch.testing.assert_close(local, propagated, **loose)
    elif sae.dials.recur:
        assert (propagated[:, 1:] - local[:, 1:]).abs().max() > 1e-3


@quick
@given(saes())
def test_swapping_the_whole_code_gives_the_twins_reconstruction_where_nothing_runs_on(sae):
    sae = replace(sae, dials=replace(sae.dials, recur=False))
    x, other = text(6), text(6, seed=1)
    at = interventions.positions(6, [1, 4], len(x))
    codes, twin = interventions.codes_of(sae, x), interventions.codes_of(sae, other)
    delta, _ = interventions.intervene(sae, x, interventions.swap_code(at, twin), propagated=False)
    x_hat, goal = (tsae.decode_static(c, sae.params.static) for c in (codes, twin))
    torch.testing.assert_close(delta, torch.where(at[..., None], goal - x_hat, 0.0), **loose)
    same, _ = interventions.intervene(sae, x, interventions.swap_code(at, codes), propagated=True)
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-5, rtol=0)


def test_swapping_features_gives_them_the_twins_values():
    sae = Sae(params=random_model(d_in=D_IN, d_sae=D_SAE), dials=Dials(k=K))
    twin = interventions.codes_of(sae, text(6, seed=1))
    features = twin.idx[0, 2]
    edit = interventions.swap(features, interventions.positions(6, [2], 3), twin)
    assert torch.equal(edit.add, tsae.dense(twin, D_SAE)[..., features])


def test_what_goes_in_is_not_written_to():
    sae = Sae(params=random_model(d_in=D_IN, d_sae=D_SAE), dials=Dials(k=K))
    x = text(5)
    states = interventions.start_states(sae, len(x))
    copies = [t.clone() for t in (x, states.edited.memory.vals, states.original.dec_h)]
    interventions.intervene(
        sae,
        x,
        interventions.clamp(torch.tensor([3]), interventions.positions(5, [1], 3), 2.0),
        propagated=True,
        states=states,
    )
    assert all(map(torch.equal, copies, (x, states.edited.memory.vals, states.original.dec_h)))


def test_bad_edits_are_refused_in_one_line():
    sae = Sae(params=random_model(d_in=D_IN, d_sae=D_SAE), dials=Dials(k=K))
    x, at = text(5), interventions.positions(5, [-1], 3)
    for feature in (D_SAE, -1):
        with pytest.raises(ValueError, match=f"0 <= feature < d_sae={D_SAE}; got {feature}"):
            interventions.intervene(
                sae, x, interventions.ablate(torch.tensor([feature]), at), propagated=True
            )
    with pytest.raises(ValueError, match="finite"):
        interventions.intervene(
            sae, x, interventions.clamp(torch.tensor([1]), at, float("nan")), propagated=False
        )
    with pytest.raises(ValueError, match="the edit is for"):
        interventions.intervene(
            sae, x[:, 1:], interventions.ablate(torch.tensor([1]), at), propagated=False
        )
    with pytest.raises(ValueError, match="position 5 is outside the text: it has 5 tokens"):
        interventions.positions(5, [5])


# ---------------------------------------------------------------------------------- language models


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_layers_above_give_what_the_bridge_gives_with_the_edit_hooked_in(any_lm, layer):
    hook = f"blocks.{layer}.hook_resid_post"
    ids = torch.tensor([[*any_lm.prefix, *any_lm.tokenizer("a lazy dog jumps")["input_ids"]]])
    sae = Sae(params=random_model(d_in=any_lm.d_in, d_sae=D_SAE), dials=Dials(k=K))
    seq = ids.shape[1] - len(any_lm.prefix)
    hidden = language_model.residual(any_lm, ids, hook)
    x = hidden[:, len(any_lm.prefix) :]
    edit = interventions.steer(torch.tensor([5]), interventions.positions(seq, [2]), 4.0)
    delta, _ = interventions.intervene(sae, x, edit, propagated=True)
    patched = torch.cat([hidden[:, : len(any_lm.prefix)], x + delta], 1)
    fast = language_model.layers_above(any_lm, hook)(ids, patched, seq)
    slow = edited_logits(any_lm, ids, hook, sae, edit, propagated=True)
    torch.testing.assert_close(fast, slow[:, -seq:], rtol=1e-4, atol=1e-5)
    plain = any_lm.bridge(ids)
    assert (slow[:, -seq + 2 :] - plain[:, -seq + 2 :]).abs().max() > 1e-4
    assert torch.equal(slow[:, : -seq + 2], plain[:, : -seq + 2])
