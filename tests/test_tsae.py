import re
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import cases, cut, eighths, grid, sizes, tensors
from torch.utils._pytree import tree_leaves
from toys import random_model

import tsae
from tsae import Codes, Dials
from tsae_lab.jobs import schedules

quick = settings(deadline=None, max_examples=25)
loose: Any = {"rtol": 1e-4, "atol": 1e-4}


@st.composite
def codes_of(draw: st.DrawFn, batch: int, seq: int, k: int, d_sae: int) -> Codes:
    """Whole values >= 0 at distinct features of every token."""
    vals = draw(tensors(batch, seq, k, elements=st.integers(0, 5).map(float)))
    order = draw(tensors(batch, seq, d_sae, elements=grid))
    return Codes(vals, order.argsort(-1)[..., :k])


def run(params, x, dials, pieces):
    """Dense codes and reconstruction, fed in pieces with the state carried."""
    state, acts, out = None, [], []
    for start, end in pieces:
        x_hat, codes, state = tsae.forward(params, x[:, start:end], dials, state)
        acts.append(tsae.dense(codes, len(params.static.b_enc)))
        out.append(x_hat)
    return torch.cat(acts, 1), torch.cat(out, 1)


# ----------------------------------------------------------------------------------- what must hold


@quick
@given(cases(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_without_mix_and_with_open_gates_it_is_the_static_sae_bit_for_bit(case, low):
    t = case.params.temporal
    params = replace(
        case.params, temporal=replace(t, W_gate=t.W_gate * 0, b_gate=t.b_gate.abs() + 1)
    )
    x_hat, codes, _ = tsae.forward(params, case.x, replace(case.dials, mix=0.0, low=low))
    static = tsae.encode_static(case.x, params.static, case.dials.k, low)
    assert torch.equal(codes.vals, static.vals)
    assert torch.equal(codes.idx, static.idx)
    assert torch.equal(x_hat, tsae.decode_static(static, params.static))


@quick
@given(cases(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_static_sae_as_a_tsae_encodes_and_decodes_bit_for_bit_as_it_does_itself(case, low):
    static, k = case.params.static, case.dials.k
    sae = tsae.static_sae(static, k, low)
    assert not sae.temporal
    assert sae.d_sae == case.d_sae
    codes, state = tsae.encode(sae.params, case.x, sae.dials)
    expected = tsae.encode_static(case.x, static, k, low)
    x_hat, both, _ = tsae.forward(sae.params, case.x, sae.dials)
    for own in (codes, both):
        assert torch.equal(own.vals, expected.vals)
        assert torch.equal(own.idx, expected.idx)
    decoded, _ = tsae.decode(sae.params, expected, sae.dials, state)
    for own in (decoded, x_hat):
        assert torch.equal(own, tsae.decode_static(expected, static))


@quick
@given(cases())
def test_without_temporal_parts_that_act_an_sae_is_not_temporal_and_what_came_before_is_forgotten(
    case,
):
    sae = tsae.Sae(params=case.params, dials=case.dials)
    _, state = tsae.encode(sae.params, case.x, sae.dials)
    later, alone = (tsae.forward(sae.params, case.x, sae.dials, s)[:2] for s in (state, None))
    if not sae.temporal:
        assert torch.equal(later[0], alone[0])
        assert torch.equal(later[1].vals, alone[1].vals)
    assert sae.temporal == (case.dials.mix > 0 or case.dials.gate)


def test_an_sae_on_a_device_has_all_its_tensors_there_and_its_dials():
    sae = tsae.Sae(params=random_model(), dials=Dials(k=3))
    moved = tsae.to(sae, "meta")
    assert {t.device.type for t in tsae.tensors(moved.params).values()} == {"meta"}
    assert moved.dials == sae.dials


@quick
@given(cases())
def test_from_static_computes_what_the_static_sae_does_until_the_bridge_acts(case):
    static, dials = case.params.static, replace(case.dials, beta=0.0)
    g = torch.Generator().manual_seed(0)
    params = tsae.from_static(static, scale=2.0, hidden_enc=3, hidden_dec=5, generator=g)
    x_hat, codes, _ = tsae.forward(params, case.x, dials)
    expected = tsae.encode_static(case.x, static, dials.k)
    assert torch.equal(codes.vals, expected.vals)
    assert torch.equal(x_hat, tsae.decode_static(expected, static))


@quick
@given(cases(), st.data())
def test_a_token_changes_no_code_and_no_reconstruction_before_it(case, data):
    t = data.draw(st.integers(0, case.seq - 1), label="t")
    other = case.x.clone()
    other[:, t:] = data.draw(tensors(case.batch, case.seq - t, case.d_in, elements=eighths))
    for a, b in zip(
        *(run(case.params, x, case.dials, [(0, case.seq)]) for x in (case.x, other)), strict=True
    ):
        assert torch.equal(a[:, :t], b[:, :t])


@settings(quick, max_examples=30)
@given(cases(), st.data())
def test_streaming_in_any_pieces_equals_one_call(case, data):
    whole = run(case.params, case.x, case.dials, [(0, case.seq)])
    for got, expected in zip(
        run(case.params, case.x, case.dials, cut(data, case.seq)), whole, strict=True
    ):
        torch.testing.assert_close(got, expected, **loose)


@pytest.mark.parametrize("window", [1, 16, 40])
def test_streaming_token_by_token_equals_one_call(window):
    params, dials = random_model(), Dials(k=7, window=window, tau=6.0, beta=2.0)
    x = torch.randn(3, 24, 12, generator=torch.Generator().manual_seed(1))
    whole = run(params, x, dials, [(0, 24)])
    for got, expected in zip(
        run(params, x, dials, [(t, t + 1) for t in range(24)]), whole, strict=True
    ):
        torch.testing.assert_close(got, expected, **loose)
    bare = run(params, x, replace(dials, beta=0.0), [(0, 24)])
    assert not torch.equal((bare[0] > 0), (whole[0] > 0))  # the memory acts


@quick
@given(cases(), st.integers(1, 3))
def test_a_streams_state_is_of_one_size_however_long_it_runs(case, repeats):
    state: Any = None
    for _ in range(repeats):
        _, _, state = tsae.forward(case.params, case.x, case.dials, state)
    memory = state.memory.vals.numel() + state.memory.idx.numel()
    assert memory == 2 * case.batch * case.dials.window * case.dials.k
    assert {h.shape for h in (state.enc_h, state.enc_c)} == {(case.batch, case.hidden_enc)}
    assert {h.shape for h in (state.dec_h, state.dec_c)} == {(case.batch, case.hidden_dec)}


@quick
@given(cases(), st.booleans())
def test_decoding_the_code_is_the_forward_pass(case, in_the_middle):
    state = tsae.forward(case.params, case.x, case.dials)[2] if in_the_middle else None
    x_hat, expected, after = tsae.forward(case.params, case.x.flip(1), case.dials, state)
    codes, encoded = tsae.encode(case.params, case.x.flip(1), case.dials, state)
    decoded, last = tsae.decode(case.params, codes, case.dials, state)
    assert torch.equal(codes.vals, expected.vals)
    assert torch.equal(codes.idx, expected.idx)
    assert torch.equal(decoded, x_hat)
    assert torch.equal(encoded.enc_h, after.enc_h)
    assert torch.equal(last.dec_h, after.dec_h)


@quick
@given(cases())
def test_a_code_has_at_most_k_values_and_none_is_negative(case):
    state = None
    for x in (case.x, -case.x):
        codes, state = tsae.encode(case.params, x, case.dials, state)
        acts = tsae.dense(codes, case.d_sae)
        assert codes.vals.shape[-1] == case.dials.k
        assert (codes.vals >= 0).all()
        assert ((acts != 0).sum(-1) <= case.dials.k).all()
        torch.testing.assert_close(acts.sum(-1), codes.vals.sum(-1))


@quick
@given(cases(), st.data())
def test_a_closed_gate_is_an_exact_zero_and_an_open_one_an_exact_one(case, data):
    is_open = data.draw(tensors(case.d_sae, elements=st.sampled_from([0.0, 1.0])), label="is_open")
    t = case.params.temporal
    params = replace(case.params, temporal=replace(t, b_gate=2_000.0 * is_open - 1_000.0))
    got = tsae.dense(tsae.encode(params, case.x, replace(case.dials, gate=True))[0], case.d_sae)
    bare = tsae.dense(tsae.encode(params, case.x, replace(case.dials, gate=False))[0], case.d_sae)
    assert torch.equal(got, bare * is_open)


@quick
@given(cases())
def test_nothing_that_goes_into_the_model_is_written_to(case):
    _, _, state = tsae.forward(case.params, case.x, case.dials)
    held = [*tsae.tensors(case.params).values(), state.memory.vals, state.memory.idx, case.x]
    held += [state.enc_h, state.enc_c, state.dec_h, state.dec_c]
    before = [tensor.clone() for tensor in held]
    tsae.forward(case.params, case.x, case.dials, state)
    assert all(torch.equal(a, b) for a, b in zip(before, held, strict=True))


# ------------------------------------------------------------------------------------------- memory


@quick
@given(st.data(), sizes("batch", "k", "d_sae"), st.integers(1, 5))
@example(None, {"batch": 2, "k": 1, "d_sae": 1}, 1)
def test_the_memory_is_a_deque_of_the_last_window_codes(data, n, window):
    batch, d_sae = n["batch"], n["d_sae"]
    k = min(n["k"], d_sae)
    memory, model = tsae.empty_memory(batch, window, k, torch.zeros(1)), deque(maxlen=window)
    model.extend([torch.zeros(batch, d_sae)] * window)
    for _ in range(3):
        if data is None:
            codes = Codes(torch.ones(batch, 2, k), torch.zeros(batch, 2, k, dtype=torch.int64))
        else:
            codes = data.draw(
                codes_of(batch, data.draw(st.integers(0, 7)), data.draw(st.integers(1, k)), d_sae)
            )
        vals, idx = memory.vals.clone(), memory.idx.clone()
        pushed = tsae.push(memory, codes)
        assert torch.equal(memory.vals, vals)
        assert torch.equal(memory.idx, idx)
        memory = pushed
        model.extend(tsae.dense(codes, d_sae).unbind(1))
        assert torch.equal(tsae.dense(tsae.recall(memory), d_sae), torch.stack(list(model), 1))
    assert memory.vals.shape == (batch, window, k)


@quick
@given(st.data(), sizes("batch", "k", "seq", "d_sae"), st.integers(1, 3))
def test_a_wider_code_widens_the_memory_and_keeps_what_it_held(data, n, window):
    d_sae, k = n["d_sae"], min(n["k"], n["d_sae"])
    first = data.draw(codes_of(n["batch"], window, k, d_sae))
    wide = data.draw(codes_of(n["batch"], 1, d_sae, d_sae))
    memory = tsae.push(
        tsae.push(tsae.empty_memory(n["batch"], window, k, torch.zeros(1)), first), wide
    )
    expected = torch.cat([tsae.dense(first, d_sae)[:, 1:], tsae.dense(wide, d_sae)], 1)
    assert torch.equal(tsae.dense(tsae.recall(memory), d_sae), expected)


@quick
@given(st.data(), sizes("batch", "seq", "past", "d_sae"), st.integers(1, 5))
def test_what_is_remembered_equals_a_loop_over_the_tokens_before(data, n, window):
    batch, seq, past, d_sae = n.values()
    k, k_past = (data.draw(st.integers(1, d_sae)) for _ in range(2))
    before = data.draw(codes_of(batch, past, k_past, d_sae))
    now = data.draw(codes_of(batch, seq, k, d_sae))
    weights = data.draw(tensors(window, elements=grid))
    memory = tsae.push(tsae.empty_memory(batch, window, 1, torch.zeros(1)), before)
    acts = torch.cat([tsae.dense(before, d_sae), tsae.dense(now, d_sae)], 1)
    expected = torch.zeros(batch, seq, d_sae)
    for t in range(seq):
        for j in range(1, window + 1):
            if past + t - j >= 0:
                expected[:, t] += weights[j - 1] * acts[:, past + t - j]
    assert torch.equal(tsae.remember(memory, now, weights, d_sae), expected)


@quick
@given(st.integers(1, 40), st.floats(1e-6, 1e6) | st.just(float("inf")))
def test_read_weights_fall_by_e_every_tau_tokens_and_sum_to_one(window, tau):
    weights = tsae.read_weights(window, tau).double()
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    for j in range(1, window):
        ratio = torch.tensor(-1 / tau, dtype=torch.float64).exp()
        torch.testing.assert_close(weights[j], weights[j - 1] * ratio, rtol=1e-5, atol=1e-37)


@quick
@given(cases(), st.data())
def test_selection_is_the_k_largest_of_pre_plus_what_the_bridge_adds(case, data):
    dials, d_sae = case.dials, case.d_sae
    past = data.draw(codes_of(case.batch, data.draw(st.integers(0, 6)), 1, d_sae))
    memory = tsae.push(tsae.empty_memory(case.batch, dials.window, dials.k, torch.zeros(1)), past)
    temporal = case.params.temporal
    bridge, scale = temporal.bridge, temporal.scale
    seen = tsae.see(case.params, case.x, dials, tsae.start_state(case.params, case.batch, dials))
    pre, held = tsae.pre_acts(case.x, case.params.static), seen.static
    _, chosen = tsae.select(case.params, seen.centred, dials, memory, held=held)
    idx, added = chosen.idx, chosen.added
    assert torch.equal(chosen.pre, pre.gather(-1, idx))
    top = pre.topk(dials.k).values
    assert torch.equal(pre.gather(-1, held.idx).sort(-1, descending=True).values, top)
    assert torch.equal(held.vals, pre.gather(-1, held.idx).relu())
    acts = torch.cat([tsae.dense(past, d_sae), tsae.dense(held, d_sae)], 1).clamp(
        max=dials.cap * scale.item()
    )
    j = torch.arange(1, dials.window + 1)
    weights = (-(j - 1) / dials.tau).exp() / (-(j - 1) / dials.tau).exp().sum()
    sel = pre.clone()
    for t in range(case.seq):
        for lag, weight in enumerate(weights.tolist(), start=1):
            at = past.vals.shape[1] + t - lag
            if at >= 0:
                sel[:, t] += dials.mix * dials.beta * weight * bridge * acts[:, at]
    torch.testing.assert_close(
        sel.gather(-1, idx).sort(-1, descending=True).values, sel.topk(dials.k).values
    )
    torch.testing.assert_close(added, (sel - pre).gather(-1, idx), rtol=1e-4, atol=1e-5)
    assert all(len(set(row.tolist())) == dials.k for row in idx.flatten(0, 1))


@quick
@given(cases())
def test_codes_with_reads_what_is_held_in_place_of_the_static_codes(case):
    params, dials = case.params, case.dials
    start = tsae.start_state(params, case.batch, dials)
    seen = tsae.see(params, case.x, dials, start)
    whole, _ = tsae.encode(params, case.x, dials)
    again = tsae.codes_with(params, seen, seen.static, start.memory, dials)
    assert torch.equal(again.vals, tsae.selected_codes(params, seen, seen.selected).vals)
    assert torch.equal(tsae.dense(again, case.d_sae), tsae.dense(whole, case.d_sae))
    nothing = replace(seen.static, vals=torch.zeros_like(seen.static.vals))
    forgetful = tsae.codes_with(params, seen, nothing, start.memory, dials)
    local, _ = tsae.encode(params, case.x, replace(dials, beta=0.0))
    assert torch.equal(forgetful.vals.sort(-1).values, local.vals.sort(-1).values)


@quick
@given(cases(), st.data(), st.integers(1, 60), st.sampled_from([torch.float32, torch.bfloat16]))
def test_spans_of_tokens_give_what_all_at_once_give(case, data, most, low):
    dials, batch, seq = replace(case.dials, low=low), case.batch, case.seq
    starts = data.draw(
        st.none() | st.lists(st.booleans(), min_size=batch * seq, max_size=batch * seq)
    )
    starts = None if starts is None else torch.tensor(starts).view(batch, seq)
    before = data.draw(codes_of(batch, data.draw(st.integers(0, 6)), 1, case.d_sae))
    state = tsae.start_state(case.params, batch, dials)
    state = replace(state, memory=tsae.push(state.memory, before))
    named = {name: t.requires_grad_() for name, t in tsae.tensors(case.params).items()}
    threshold = torch.full((case.d_sae,), 0.25)

    def everything(values: int) -> list[torch.Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tsae, "PRE_VALUES", values)
            params = tsae.params_from(named)
            x_hat, codes, after = tsae.forward(params, case.x, dials, state, starts)
            static = tsae.encode_static(case.x, params.static, dials.k, low)
            jump = tsae.Thresholded(**vars(params.static), threshold=threshold)
            dense = tsae.dense(tsae.encode_static(case.x, jump, 1, low), case.d_sae)
            loss = x_hat.square().sum() + static.vals.sum() + dense.square().sum()
        learned = [t for name, t in named.items() if name != "scale"]
        grads = torch.autograd.grad(loss, learned, allow_unused=True)
        leaves = tree_leaves((x_hat, codes, after, static, dense, grads))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    for whole, part in zip(everything(10**9), everything(most), strict=True):
        assert torch.equal(whole, part)


@quick
@given(cases(), st.data())
def test_the_straight_through_bridge_adds_no_value_and_has_the_memorys_gradient(case, data):
    dials, bridge = (
        replace(case.dials, gate=False),
        case.params.temporal.bridge.clone().requires_grad_(),
    )
    params = replace(case.params, temporal=replace(case.params.temporal, bridge=bridge))
    codes, _ = tsae.encode(params, case.x, dials)
    bare, _ = tsae.encode(case.params, case.x, dials)
    assert torch.equal(codes.vals, bare.vals)
    assert torch.equal(codes.idx, bare.idx)
    upstream = data.draw(tensors(*codes.vals.shape, elements=grid))
    codes.vals.backward(upstream)
    memory = tsae.empty_memory(case.batch, dials.window, dials.k, case.x)
    static = tsae.encode_static(case.x, case.params.static, dials.k)
    read = dials.mix * dials.beta * tsae.read_weights(dials.window, dials.tau)
    capped = Codes(static.vals.clamp(max=dials.cap * params.temporal.scale.item()), static.idx)
    m = tsae.remember(memory, capped, read, case.d_sae)
    expected = torch.zeros(case.d_sae)
    for b, t, j in (
        torch.cartesian_prod(*(torch.arange(n) for n in codes.vals.shape)).view(-1, 3).tolist()
    ):
        if codes.vals[b, t, j] > 0:
            expected[codes.idx[b, t, j]] += upstream[b, t, j] * m[b, t, codes.idx[b, t, j]]
    torch.testing.assert_close(bridge.grad, expected, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------- schedules

shares = st.floats(0, 1)
ends = st.floats(-1e6, 1e6)


@quick
@given(ends, ends, st.integers(1, 60), st.sampled_from(["linear", "cosine"]))
def test_a_ramp_is_exact_at_both_ends_monotone_and_never_outside(start, end, steps, shape):
    values = [
        schedules.ramp(s, start=start, end=end, steps=steps, shape=shape)
        for s in range(-2, steps + 3)
    ]
    assert values[:3] == [start] * 3
    assert values[-3:] == [end] * 3
    rising = sorted(values) if start <= end else sorted(values, reverse=True)
    assert values == rising
    middle = schedules.ramp(steps / 2, start=start, end=end, steps=steps, shape=shape)
    assert middle == pytest.approx((start + end) / 2, rel=1e-9, abs=1e-6)


def test_a_cosine_ramp_leaves_slowly_and_a_ramp_of_no_steps_is_at_its_end():
    early = {
        shape: schedules.ramp(1, start=0.0, end=1.0, steps=10, shape=shape)
        for shape in ("linear", "cosine")
    }
    assert 0 < early["cosine"] < early["linear"] == 0.1
    assert schedules.ramp(0, start=3.0, end=5.0, steps=0) == 5.0
    with pytest.raises(ValueError, match="got 'square'"):
        schedules.ramp(1, start=0, end=1, steps=2, shape="square")


@quick
@given(st.integers(0, 50), st.tuples(shares, shares, shares))
@example(3, (0.5, 0.5, 0.0))
def test_phases_share_out_all_steps(total, parts):
    whole = max(1.0, sum(parts))
    a, b, c = (part / whole for part in parts)
    phases = schedules.phase_steps(total, pretrain=a, settle=b, introduce=c)
    assert min(vars(phases).values()) >= 0
    assert phases.total == total
    assert abs(phases.pretrain - total * a) <= 0.5
    names = [schedules.phase_at(step, phases) for step in range(total)]
    assert {name: names.count(name) for name in vars(phases)} == vars(phases)
    assert names == sorted(names, key=list(vars(phases)).index)
    assert schedules.phase_at(total, phases) == "refine"


@quick
@given(st.integers(0, 30), shares, shares, shares, st.integers(1, 40), st.floats(1, 4))
def test_memory_and_k_follow_the_phases(total, a, b, c, k, multiple):
    whole = max(1.0, a + b + c)
    phases = schedules.phase_steps(total, pretrain=a / whole, settle=b / whole, introduce=c / whole)
    seen = [(schedules.phase_at(s, phases), schedules.memory_at(s, phases)) for s in range(total)]
    ks = [schedules.k_at(s, phases, k=k, multiple=multiple) for s in range(total)]
    for (phase, mix), now in zip(seen, ks, strict=True):
        assert mix == {"pretrain": 0, "settle": 0, "refine": 1}.get(phase, mix)
        assert 0 <= mix <= 1
        assert k <= now <= round(multiple * k)
        assert phase != "pretrain" or now == round(multiple * k)
        assert phase != "refine" or now == k
    assert ks == sorted(ks, reverse=True)
    mixes = [mix for _, mix in seen]
    assert mixes == sorted(mixes)
    assert (
        schedules.memory_at(total, phases),
        schedules.k_at(total, phases, k=k, multiple=multiple),
    ) == (1, k)


@quick
@given(st.integers(0, 60), st.floats(0, 1), st.integers(1, 9))
def test_pretraining_takes_whole_groups_of_steps(total, share, group):
    phases = schedules.phase_steps(total, pretrain=share, settle=0.0, introduce=0.0, group=group)
    assert phases.total == total
    assert phases.pretrain % group == 0 or phases.pretrain == total
    assert abs(phases.pretrain - total * share) <= max(group / 2, 0.5)


@pytest.mark.parametrize("bad", [(-0.1, 0.1, 0.1), (0.5, 0.4, 0.2)])
def test_phase_shares_outside_one_whole_are_refused(bad):
    with pytest.raises(ValueError, match="shares need to be >= 0 and sum to at most 1; got"):
        schedules.phase_steps(
            10, **dict(zip(("pretrain", "settle", "introduce"), bad, strict=True))
        )


@quick
@given(st.integers(1, 100), st.integers(0, 30), st.floats(1e-9, 1))
def test_the_rate_warms_up_stays_and_falls(total, warmup, decay):
    values = [
        schedules.rate_at(step, total=total, warmup=warmup, decay=decay) for step in range(total)
    ]
    assert all(0 < value <= 1 for value in values)
    assert schedules.rate_at(total, total=total, warmup=warmup, decay=decay) == 0
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)
    steady = range(max(warmup - 1, 0), int(total - max(decay * total, 1)) + 1)
    assert all(values[step] == 1 for step in steady if step < total)


# ------------------------------------------------------------------------------ names and bad input


@quick
@given(cases())
def test_params_from_is_the_inverse_of_tensors(case):
    named = tsae.tensors(case.params)
    again = tsae.tensors(tsae.params_from(named))
    assert list(named) == list(again)
    assert all(again[name] is tensor for name, tensor in named.items())
    assert list(tsae.tensors(case.params.static)) == ["W_enc", "b_enc", "W_dec", "b_dec"]


def test_missing_tensors_are_named():
    named = tsae.tensors(random_model())
    with pytest.raises(ValueError, match=r"missing: W_dec, b_gate$"):
        tsae.params_from(
            {name: tensor for name, tensor in named.items() if name not in ("W_dec", "b_gate")}
        )


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        (Dials(k=97), "k needs 0 < k <= d_sae; got k=97, d_sae=96"),
        (Dials(k=0), "got k=0, d_sae=96"),
        (Dials(window=0), "window needs to be at least 1 token; got 0"),
        (Dials(tau=0.0), "tau needs to be > 0 tokens; got 0.0"),
        (Dials(tau=float("nan")), "tau needs to be > 0 tokens; got nan"),
        (Dials(cap=0.0), "cap needs to be > 0 (in units of scale); got 0.0"),
        (Dials(beta=-1.0), "beta=-1.0"),
        (Dials(beta=float("inf")), "beta needs to be finite and >= 0; got beta=inf"),
        (Dials(mix=float("nan")), "mix=nan"),
    ],
)
def test_dials_out_of_range_are_refused_with_what_is_needed(dials, message):
    params = random_model()
    calls = [lambda: tsae.check_dials(dials, d_sae=96)]
    calls += [
        lambda f=f: f(params, torch.zeros(1, 2, 12), dials) for f in (tsae.encode, tsae.forward)
    ]
    for call in calls:
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            call()
        assert "\n" not in str(caught.value)
    widest = Dials(k=96, window=1, tau=float("inf"), cap=float("inf"), beta=0.0, mix=0.0)
    tsae.check_dials(widest, d_sae=96)


def test_activations_of_a_foreign_width_are_refused():
    with pytest.raises(ValueError, match="needs d_in=12; got activations of width 11"):
        tsae.encode(random_model(), torch.zeros(1, 2, 11), Dials(k=3))
    with pytest.raises(ValueError, match="needs d_in=12; got activations of width 11"):
        tsae.encode_static(torch.zeros(1, 2, 11), random_model().static, 3)


@pytest.mark.parametrize("call", [tsae.encode, tsae.forward])
def test_the_state_of_another_stream_or_model_is_refused(call):
    params, dials, x = random_model(), Dials(k=3, window=4), torch.zeros(2, 1, 12)
    foreign = {
        "streams=3": tsae.start_state(params, 3, dials),
        "window=5": tsae.start_state(params, 2, replace(dials, window=5)),
        "hidden_enc=9": tsae.start_state(random_model(hidden=9), 2, dials),
    }
    for got, state in foreign.items():
        with pytest.raises(
            ValueError, match="needs a state of streams=2, window=4, hidden_enc=8"
        ) as caught:
            call(params, x, dials, state)
        assert got in str(caught.value)
        assert "\n" not in str(caught.value)
    codes, _ = tsae.encode(params, x, dials)
    with pytest.raises(ValueError, match="streams=3"):
        tsae.decode(params, codes, dials, foreign["streams=3"])


def test_a_start_without_scale_or_width_is_refused():
    static, g = random_model().static, torch.Generator()
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"finite scale > 0 .* got {scale}"):
            tsae.from_static(static, scale=scale, generator=g)
    with pytest.raises(ValueError, match="window needs to be at least 1 token; got 0"):
        tsae.empty_memory(1, 0, 1, torch.zeros(1))
    with pytest.raises(ValueError, match="got k=9, d_sae=8"):
        tsae.encode_static(
            torch.zeros(1, 1, 4), tsae.init_static(torch.zeros(4), 8, generator=g), 9
        )


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_no_stream_no_token_and_a_single_token_are_fine(shape):
    params, dials = random_model(), Dials(k=3, window=2)
    x_hat, codes, state = tsae.forward(params, torch.ones(*shape, 12), dials)
    assert x_hat.shape == (*shape, 12)
    assert codes.vals.shape == (*shape, 3)
    assert state.memory.pushed == shape[1]
