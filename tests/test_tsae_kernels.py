from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import grid, sizes, tensors

import tsae_kernels

quick = settings(deadline=None, max_examples=40)
signs = st.integers(-4, 4).map(float)


@st.composite
def codes(draw: st.DrawFn, tokens: int, d_sae: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole values, zeros and negative ones too, at distinct features of every token."""
    k = draw(st.integers(1, d_sae))
    order = draw(tensors(tokens, d_sae, elements=grid))
    return draw(tensors(tokens, k, elements=grid)), order.argsort(-1)[:, :k]


def dense(vals, idx, d_sae):
    """By a loop."""
    out = torch.zeros(len(vals), d_sae)
    for t, (row, features) in enumerate(zip(vals.tolist(), idx.tolist(), strict=True)):
        for value, f in zip(row, features, strict=True):
            out[t, f] += value
    return out


def leaf(tensor) -> Any:
    return tensor.clone().requires_grad_()


# -------------------------------------------------------------------------------------------- top-k


@quick
@given(st.data(), sizes("tokens", "d_sae", max_size=12))
def test_topk_idx_finds_the_values_of_torch_topk(data, n):
    pre = data.draw(tensors(n["tokens"], n["d_sae"]))
    k = data.draw(st.integers(1, n["d_sae"]))
    assert_topk(pre, k)


@quick
@given(
    st.data(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 5),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_topk_idx_finds_them_in_two_steps_too(data, tokens, k, more, dtype):
    d_sae = 8 * (4 * k + more)
    pre = data.draw(
        tensors(
            tokens, d_sae, elements=data.draw(st.sampled_from([grid, st.floats(-1, 1, width=32)]))
        )
    )
    assert_topk(pre.to(dtype), k)


@pytest.mark.parametrize("k", [1, 9, 18])
@pytest.mark.parametrize("clustered", [False, True])
def test_topk_idx_finds_them_in_wide_rows_wherever_they_lie(k, clustered):
    pre = torch.randn(33, 576, generator=torch.Generator().manual_seed(k))
    if clustered:  # the largest all in one column of eight, or next to one another
        pre[:16, 3::72] += 9
        pre[16:, 100:120] += 9
    assert_topk(pre, k)
    assert_topk(torch.zeros(3, 576), k)


def assert_topk(pre, k):
    idx = tsae_kernels.topk_idx(pre, k)
    assert idx.shape == (len(pre), k)
    assert all(len(set(row)) == k for row in idx.tolist())
    assert torch.equal(pre.gather(1, idx).sort(1, descending=True).values, pre.topk(k, 1).values)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_topk_idx_refuses_k_outside_the_width(k):
    with pytest.raises(ValueError, match=f"0 < k <= d_sae; got k={k}, d_sae=3"):
        tsae_kernels.topk_idx(torch.zeros(2, 3), k)


# ------------------------------------------------------------------------------------- sparse codes


@quick
@given(st.data(), sizes("tokens", "d_sae", "d"))
def test_scatter_codes_puts_every_value_at_its_feature(data, n):
    vals, idx = data.draw(codes(n["tokens"], n["d_sae"]))
    assert torch.equal(
        tsae_kernels.scatter_codes(vals, idx, n["d_sae"]), dense(vals, idx, n["d_sae"])
    )
    assert torch.equal(tsae_kernels.scatter_codes(vals, idx * 0, n["d_sae"])[:, 0], vals.sum(1))


@quick
@given(st.data(), sizes("tokens", "d_sae", "d"))
@example(None, {"tokens": 0, "d_sae": 5, "d": 3})
@example(None, {"tokens": 1, "d_sae": 1, "d": 2})
def test_gather_dot_is_the_dense_product_at_the_features(data, n):
    x, W, (vals, idx) = case_of(data, n)
    assert torch.equal(tsae_kernels.gather_dot(x, W, idx), (x @ W.t()).gather(1, idx))
    assert torch.equal(
        tsae_kernels.gather_dot(x.t().contiguous().t(), W, idx), (x @ W.t()).gather(1, idx)
    )
    assert vals.shape == idx.shape


@quick
@given(st.data(), sizes("tokens", "d_sae", "d"))
@example(None, {"tokens": 0, "d_sae": 5, "d": 3})
@example(None, {"tokens": 1, "d_sae": 1, "d": 2})
def test_codes_t_product_is_the_transposed_dense_code_times_x(data, n):
    x, _, (vals, idx) = case_of(data, n)
    expected = dense(vals, idx, n["d_sae"]).t() @ x
    assert torch.equal(tsae_kernels.codes_t_product(vals, idx, x, n["d_sae"]), expected)


def case_of(data, n):
    """x (tokens d), W (d_sae d) and a code, drawn or, without data, all ones."""
    if data is None:
        idx = torch.zeros(n["tokens"], 1, dtype=torch.int64)
        return (
            torch.ones(n["tokens"], n["d"]),
            torch.ones(n["d_sae"], n["d"]),
            (torch.ones(n["tokens"], 1), idx),
        )
    x = data.draw(tensors(n["tokens"], n["d"], elements=grid))
    return (
        x,
        data.draw(tensors(n["d_sae"], n["d"], elements=grid)),
        data.draw(codes(n["tokens"], n["d_sae"])),
    )


@quick
@given(st.data(), sizes("tokens", "d_sae", "d"))
@example(None, {"tokens": 0, "d_sae": 5, "d": 3})
def test_decode_codes_equals_the_dense_decoder_and_its_gradients(data, n):
    _, W, (vals, idx) = case_of(data, n)
    upstream = (
        torch.ones(n["tokens"], n["d"])
        if data is None
        else data.draw(tensors(n["tokens"], n["d"], elements=grid))
    )
    vals, W = leaf(vals), leaf(W)
    out = tsae_kernels.decode_codes(vals, idx, W)
    found = torch.autograd.grad(out, (vals, W), upstream)
    dense_out = torch.zeros(n["tokens"], n["d_sae"]).scatter(1, idx, vals) @ W
    assert torch.equal(out, dense_out)
    for got, expected in zip(
        found, torch.autograd.grad(dense_out, (vals, W), upstream), strict=True
    ):
        assert torch.equal(got, expected)


@quick
@given(st.data(), sizes("tokens", "d_in", "d_sae"))
def test_kept_values_equal_relu_of_the_dense_encoder_at_the_features_and_its_gradients(data, n):
    x, W, b = (
        data.draw(tensors(*s, elements=signs))
        for s in ((n["tokens"], n["d_in"]), (n["d_in"], n["d_sae"]), (n["d_sae"],))
    )
    upstream, idx = data.draw(codes(n["tokens"], n["d_sae"]))
    W, b, x = leaf(W), leaf(b), leaf(x)
    pre = x @ W + b
    out = tsae_kernels.kept_values(pre.gather(1, idx), idx, x, W, b)
    expected = pre.relu().gather(1, idx)
    assert torch.equal(out, expected)
    got = torch.autograd.grad(out, (x, W, b), upstream)
    for a, c in zip(got, torch.autograd.grad(expected, (x, W, b), upstream), strict=True):
        assert torch.equal(a, c)


def test_a_frozen_encoder_or_decoder_gets_no_gradient():
    x, W, idx = torch.ones(2, 3), torch.ones(3, 4), torch.tensor([[0], [2]])
    b = leaf(torch.zeros(4))
    tsae_kernels.kept_values((x @ W + b).gather(1, idx), idx, x, W, b).sum().backward()
    assert b.grad.tolist() == [1.0, 0.0, 1.0, 0.0]
    vals = leaf(torch.ones(2, 1))
    tsae_kernels.decode_codes(vals, idx, W.t().contiguous()).sum().backward()
    assert vals.grad.tolist() == [[3.0], [3.0]]


# -------------------------------------------------------------------------------- sums and runs


@settings(quick)
@given(st.data(), sizes("tokens", "d_sae"), st.booleans())
def test_feature_sums_add_up_the_values_of_each_feature(data, n, whole):
    vals, idx = data.draw(codes(n["tokens"], n["d_sae"]))
    vals = vals.long() if whole else vals
    expected = dense(vals, idx, n["d_sae"]).sum(0).to(vals.dtype)
    assert torch.equal(tsae_kernels.feature_sums(vals, idx, n["d_sae"]), expected)


@settings(quick)
@given(st.data(), sizes("batch", "seq", "d_sae"), st.integers(1, 4))
def test_add_window_adds_what_a_loop_over_the_tokens_before_reads(data, n, window):
    batch, seq, d_sae = n.values()
    rows = [data.draw(codes(window + seq, d_sae)) for _ in range(batch)]
    k = min(vals.shape[1] for vals, _ in rows)
    vals, idx = (torch.stack([row[i][:, :k] for row in rows]) for i in range(2))
    weights = data.draw(tensors(window, elements=grid))
    base = data.draw(tensors(batch * seq, d_sae, elements=grid))
    expected = base.clone()
    for b in range(batch):
        acts = dense(vals[b], idx[b], d_sae)
        for t in range(seq):
            for j in range(1, window + 1):
                expected[b * seq + t] += weights[j - 1] * acts[window + t - j]
    out = tsae_kernels.add_window(base, vals, idx, weights)
    assert torch.equal(out, expected)
    assert out.data_ptr() == base.data_ptr()


@settings(quick)
@given(st.data(), sizes("streams", "seq", "d_sae"))
def test_follow_runs_finds_where_each_feature_was_on_before_and_where_its_run_began(data, n):
    streams, seq, d_sae = n.values()
    on = data.draw(tensors(streams, seq, d_sae, elements=st.sampled_from([0.0, 1.0]))) > 0
    idx = torch.where(on, torch.arange(d_sae), -1)
    position = 5 + torch.arange(seq).expand(streams, seq)
    last = data.draw(tensors(streams, d_sae, elements=st.sampled_from([-2.0, 1.0, 4.0]))).long()
    begun = torch.where(last < 0, -2, last - 1)
    held = last.clone(), begun.clone()
    before, begin, new_last, new_begun = tsae_kernels.follow_runs(last, begun, idx, position)
    assert torch.equal(last, held[0])
    assert torch.equal(begun, held[1])
    for s in range(streams):
        for f in range(d_sae):
            at_last, at_begun = int(last[s, f]), int(begun[s, f])
            for t in range(seq):
                if on[s, t, f]:
                    at_begun = at_begun if at_last == 5 + t - 1 else 5 + t
                    assert (before[s, t, f], begin[s, t, f]) == (at_last, at_begun)
                    at_last = 5 + t
            assert (new_last[s, f], new_begun[s, f]) == (at_last, at_begun)


def test_run_counts_of_one_feature_that_goes_off_and_on_again():
    on = torch.tensor([[[1], [1], [0], [0], [1]]]) > 0
    never, opens = torch.full((1, 1), -2), torch.tensor([True])
    real, idx, length = torch.ones(1, 5) > 0, torch.zeros(1, 5, 1, dtype=torch.int64), opens * 0
    counts, oldest, (last, begun, read) = tsae_kernels.run_counts(
        never, never, length, opens, idx, on, real
    )
    expected = {"births": 2, "deaths": 1, "gaps": 1, "gap_tokens": 2, "age_sum": 1 + 2 + 1}
    assert {name: count.item() for name, count in counts.items()} == expected
    assert (oldest.item(), last.item(), begun.item(), read.item()) == (2, 4, 4, 5)


# -------------------------------------------------------------------------------------------- gates


@quick
@given(st.data(), sizes("tokens", "hidden", "d_sae"))
def test_gate_values_equal_the_clipped_dense_gate_and_its_gradients_where_it_is_not_saturated(
    data, n
):
    part = st.integers(-4, 4).map(lambda v: v / 8)
    shapes = (n["tokens"], n["hidden"]), (n["d_sae"], n["hidden"]), (n["d_sae"],)
    h, W, b = (leaf(data.draw(tensors(*s, elements=part))) for s in shapes)
    upstream, idx = data.draw(codes(n["tokens"], n["d_sae"]))
    z = (h @ W.t() + b).gather(1, idx)
    out = tsae_kernels.gate_values(h, W, b, idx, inward=True)
    assert torch.equal(out, z.clamp(0, 1))
    inward = ((z < 0) & (upstream < 0)) | (
        (z > 1) & (upstream > 0)
    )  # what leads a saturated gate back
    open_or_inward = ((z >= 0) & (z <= 1)) | inward
    expected = torch.autograd.grad(z, (h, W, b), upstream * open_or_inward, retain_graph=True)
    for got, want in zip(torch.autograd.grad(out, (h, W, b), upstream), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    expected = torch.autograd.grad(z.clamp(0, 1), (h, W, b), upstream)
    true = torch.autograd.grad(tsae_kernels.gate_values(h, W, b, idx), (h, W, b), upstream)
    for got, want in zip(true, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_a_saturated_gate_comes_back_and_goes_no_further_out():
    h, W, idx = torch.ones(1, 1), torch.zeros(4, 1), torch.arange(4)[None]
    b = leaf(torch.tensor([5.0, 5.0, -5.0, -5.0]))
    out = tsae_kernels.gate_values(h, W, b, idx, inward=True)
    assert out.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    (out * torch.tensor([[1.0, -1.0, 1.0, -1.0]])).sum().backward()
    assert b.grad.tolist() == [
        1.0,
        0.0,
        0.0,
        -1.0,
    ]  # gradient descent moves b against it: inward each time


# -------------------------------------------------------------------------------- products and LSTM


@quick
@given(st.data(), sizes("tokens", "d_a", "d_b"), st.sampled_from([torch.float32, torch.bfloat16]))
def test_product_equals_the_dense_product_and_its_gradients(data, n, low):
    x, W, upstream = (
        data.draw(tensors(*s, elements=signs))
        for s in ((n["tokens"], n["d_a"]), (n["d_a"], n["d_b"]), (n["tokens"], n["d_b"]))
    )
    x, W = leaf(x), leaf(W)
    out = tsae_kernels.product(x, W, low)
    assert out.dtype == torch.float32
    assert torch.equal(out, x @ W)  # small whole numbers: exact in bfloat16 too, up to 256
    got = torch.autograd.grad(out, (x, W), upstream)
    for a, b in zip(got, torch.autograd.grad(x @ W, (x, W), upstream), strict=True):
        assert torch.equal(a, b)


def torch_lstm(W_x, W_h, b):
    """torch.nn.LSTM with our gates (output, input, forget, candidate) in its own order."""
    d_in, hidden = len(W_x), len(W_h)
    model: Any = torch.nn.LSTM(d_in, hidden, batch_first=True)

    def ordered(rows):
        o, i, f, g = rows.split(hidden)
        return torch.cat([i, f, g, o])

    with torch.no_grad():
        model.weight_ih_l0.copy_(ordered(W_x.t()))
        model.weight_hh_l0.copy_(ordered(W_h.t()))
        model.bias_ih_l0.copy_(ordered(b))
        model.bias_hh_l0.zero_()
    return model, ordered


@quick
@given(st.data(), sizes("batch", "seq", "d_in", "hidden", max_size=6))
def test_lstm_equals_torchs_lstm_and_its_gradients(data, n):
    batch, seq, d_in, hidden = n.values()
    part = st.integers(-8, 8).map(lambda v: v / 4)
    shapes = (
        (batch, seq, d_in),
        (batch, hidden),
        (batch, hidden),
        (d_in, 4 * hidden),
        (hidden, 4 * hidden),
        (4 * hidden,),
    )
    x, h, c, W_x, W_h, b = given_ = [
        leaf(data.draw(tensors(*shape, elements=part))) for shape in shapes
    ]
    up = [
        data.draw(tensors(*s, elements=part))
        for s in ((batch, seq, hidden), (batch, hidden), (batch, hidden))
    ]
    before = [tensor.detach().clone() for tensor in given_]
    found = tsae_kernels.lstm(x, h, c, W_x, W_h, b)
    got = torch.autograd.grad(found, given_, up)
    model, ordered = torch_lstm(W_x, W_h, b)
    hs, (h_n, c_n) = model(x, (h[None], c[None]))
    wanted = (hs, h_n[0], c_n[0])
    for a, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)
    weights = [model.weight_ih_l0, model.weight_hh_l0, model.bias_ih_l0]
    d_x, d_h, d_c, d_ih, d_hh, d_b = torch.autograd.grad(wanted, [x, h, c, *weights], up)
    for a, e in zip(got[:3], (d_x, d_h, d_c), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)
    for a, e in zip((got[3].t(), got[4].t(), got[5]), (d_ih, d_hh, d_b), strict=True):
        torch.testing.assert_close(ordered(a), e, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, e) for a, e in zip(before, given_, strict=True))


@quick
@given(st.data(), sizes("batch", "seq", "d_in", "hidden", max_size=6), st.booleans())
def test_torchs_lstm_on_documents_of_their_own_is_ours_and_its_gradients(data, n, packed):
    batch, seq, d_in, hidden = n.values()
    part = st.integers(-8, 8).map(lambda v: v / 4)
    shapes = ((batch, seq, d_in), (batch, hidden), (batch, hidden), (d_in, 4 * hidden))
    shapes += ((hidden, 4 * hidden), (4 * hidden,))
    held = [leaf(data.draw(tensors(*shape, elements=part))) for shape in shapes]
    ends = ((batch, seq, hidden), (batch, hidden), (batch, hidden))
    up = [data.draw(tensors(*shape, elements=part)) for shape in ends]
    drawn = data.draw(tensors(batch, seq, elements=st.sampled_from([0.0, 0.0, 1.0]))) > 0
    starts = drawn if packed else None
    found, wanted = (f(*held, starts=starts) for f in (tsae_kernels.fused_lstm, tsae_kernels.lstm))
    for a, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)
    got, expected = (torch.autograd.grad(outs, held, up) for outs in (found, wanted))
    for a, e in zip(got, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@quick
@given(st.data(), sizes("batch", "seq"))
def test_segments_are_the_stretches_between_starts_packed_by_step(data, n):
    batch, seq = n.values()
    starts = data.draw(tensors(batch, seq, elements=st.sampled_from([0.0, 1.0]))) > 0
    stretches: list[list[int]] = []
    for place, start in enumerate(starts.flatten().tolist()):
        if start or place % seq == 0:
            stretches.append([])
        stretches[-1].append(place)
    stretches.sort(key=len, reverse=True)
    sizes_, order, back, row, carries, last = tsae_kernels.segments(starts)
    by_step = [[s[t] for s in stretches if len(s) > t] for t in range(len(stretches[0]))]
    assert sizes_.tolist() == [len(places) for places in by_step]
    assert order.tolist() == [place for places in by_step for place in places]
    assert torch.equal(order[back], torch.arange(batch * seq))
    assert row.tolist() == [s[0] // seq for s in stretches]
    assert carries.tolist() == [not starts.flatten()[s[0]] for s in stretches]
    assert [stretches[i][-1] for i in last.tolist()] == [seq * (r + 1) - 1 for r in range(batch)]


def test_indices_are_sorted_once_for_all_that_view_them_and_anew_when_they_change():
    idx = torch.tensor([[2, 0], [1, 2]])
    order, begin = tsae_kernels.by_feature(idx, 4)
    assert (order.tolist(), begin.tolist()) == ([1, 2, 0, 3], [0, 1, 2, 4])
    assert tsae_kernels.by_feature(idx.view(1, 2, 2).flatten(0, 1), 4)[0] is order
    assert tsae_kernels.by_feature(idx[:1], 4)[0].tolist() == [1, 0]
    idx[0, 0] = 0
    assert tsae_kernels.by_feature(idx, 4)[0].tolist() == [0, 1, 2, 3]
    assert tsae_kernels.by_feature(idx, 3)[1].tolist() == [0, 2, 3]


def test_init_lstm_draws_within_the_fan_in_and_opens_the_forget_gates():
    like, g = torch.zeros(9, 2, dtype=torch.float64), torch.Generator().manual_seed(0)
    drawn = tsae_kernels.init_lstm("enc", like, 4, g)
    assert {name: tuple(w.shape) for name, w in drawn.items()} == {
        "enc_W_x": (9, 16), "enc_W_h": (4, 16), "enc_b": (16,)
    }  # fmt: skip
    assert {w.dtype for w in drawn.values()} == {torch.float64}
    assert 0.9 / 3 < drawn["enc_W_x"].abs().max() <= 1 / 3
    assert 0.8 / 2 < drawn["enc_W_h"].abs().max() <= 1 / 2
    assert drawn["enc_b"].tolist() == [0.0] * 8 + [1.0] * 4 + [0.0] * 4


def test_lstm_in_bf16_products_is_close_to_fp32():
    g = torch.Generator().manual_seed(0)
    shapes = (5, 9, 24), (5, 16), (5, 16), (24, 64), (16, 64), (64,)
    args = [(torch.randn(s, generator=g) / 4).requires_grad_() for s in shapes]
    outs = {low: tsae_kernels.lstm(*args, low=low) for low in (torch.float32, torch.bfloat16)}
    grads = [
        torch.autograd.grad(out[0].square().sum() + out[2].sum(), args) for out in outs.values()
    ]
    for got, expected in ((outs[torch.bfloat16], outs[torch.float32]), (grads[1], grads[0])):
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == torch.float32
            assert (a - b).norm() < 0.02 * b.norm()


def test_lstm_over_no_token_returns_its_state_and_one_token_is_one_step():
    g = torch.Generator().manual_seed(0)
    x, h, c, W_x, W_h, b = (
        torch.randn(s, generator=g) for s in ((2, 1, 3), (2, 4), (2, 4), (3, 16), (4, 16), (16,))
    )
    hs, h_last, c_last = tsae_kernels.lstm(x[:, :0], h, c, W_x, W_h, b)
    assert hs.shape == (2, 0, 4)
    assert torch.equal(h_last, h)
    assert torch.equal(c_last, c)
    o, i, f, new = (x[:, 0] @ W_x + h @ W_h + b).split(4, 1)
    c_next = f.sigmoid() * c + i.sigmoid() * new.tanh()
    hs, h_last, c_last = tsae_kernels.lstm(x, h, c, W_x, W_h, b)
    torch.testing.assert_close(c_last, c_next)
    torch.testing.assert_close(h_last, o.sigmoid() * c_next.tanh())
    assert torch.equal(hs[:, 0], h_last)
